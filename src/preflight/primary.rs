//! Questions about the primary alone: may it have another standby?

use pgpool_recovery_core::error::{Error, Kind, Result};
use pgpool_recovery_core::manifest::plan::Tablespace;
use pgpool_recovery_core::preflight::{Finding, slot_limits};

use crate::pg::{catalog, slot};
use crate::preflight::PrimaryFacts;

impl PrimaryFacts {
    /// Questions about this server alone; `tablespaces` is the answer of [`PrimaryFacts::tablespaces`].
    pub(crate) fn primary_findings(&self, tablespaces: Result<Vec<Tablespace>>) -> Result<Vec<Finding>> {
        let user = &self.settings.replication_user;
        Ok(vec![
            Finding::new("primary_is_primary", self.not_in_recovery()),
            Finding::new("wal_level", self.wal_level()),
            Finding::new("wal_senders", self.wal_senders(self.primary.used_wal_senders)),
            Finding::new("replication_slot", self.replication_slot()?),
            self.slot_limits()?,
            Finding::new("replication_user", replication_user(user, catalog::role(user)?)),
            Finding::new("tablespaces", tablespaces.map(|spaces| format!("{} to map", spaces.len()))),
        ])
    }

    fn slot_limits(&self) -> Result<Finding> {
        if self.slot_name.is_empty() {
            return Ok(Finding::advice("slot_limits", Ok("no slot is used".to_owned())));
        }
        Ok(slot_limits::finding(catalog::slot_limits()?, u64::from(self.primary.wal_segment_size)))
    }

    fn not_in_recovery(&self) -> Result<String> {
        if !self.primary.in_recovery {
            return Ok(format!("timeline {}", self.primary.timeline));
        }
        Err(Error::new(Kind::WrongState, "this server is a standby")
            .detail("A standby is rebuilt from its primary, and recovery is in progress here.")
            .hint("Connect to the primary. If Pgpool-II called, it does not know the primary: see show pool_nodes."))
    }

    pub(super) fn wal_level(&self) -> Result<String> {
        if self.primary.wal_level != "minimal" {
            return Ok(self.primary.wal_level.clone());
        }
        Err(Error::new(Kind::WrongState, "wal_level is minimal")
            .detail("A standby needs wal_level replica or logical.")
            .hint("Set wal_level = replica and restart the primary."))
    }

    pub(super) fn wal_senders(&self, used: u32) -> Result<String> {
        let limit = self.primary.max_wal_senders;
        if used < limit {
            return Ok(format!("{used} of {limit} in use"));
        }
        Err(Error::new(Kind::LimitExceeded, "no walsender is left for the standby")
            .detail(format!("max_wal_senders is {limit}, {used} are in use."))
            .hint("Increase max_wal_senders and restart the primary."))
    }

    pub(super) fn replication_slot(&self) -> Result<Result<String>> {
        if self.slot_name.is_empty() {
            return Ok(Ok("no slot is used".to_owned()));
        }
        if let Err(error) = slot::validate(&self.slot_name) {
            return Ok(Err(error));
        }
        Ok(match catalog::slot(&self.slot_name)? {
            None => catalog::check_free_slot().map(|()| format!("\"{}\" will be made", self.slot_name)),
            Some(found) if found.slot_type != "physical" => {
                Err(slot::wrong_type(&self.slot_name, &found.slot_type))
            }
            Some(catalog::SlotState { active_pid: Some(pid), .. }) => Err(slot::active(&self.slot_name, pid)),
            Some(_) => Ok(format!("\"{}\" exists and is not in use", self.slot_name)),
        })
    }
}

pub(super) fn replication_user(name: &str, role: Option<catalog::Role>) -> Result<String> {
    let hint = "Name a role with LOGIN and REPLICATION in pgpool_recovery.replication_user.";
    match role {
        Some(catalog::Role { can_login: true, can_replicate: true }) => Ok(format!("\"{name}\"")),
        Some(_) => Err(Error::new(Kind::InvalidArgument, format!("role \"{name}\" cannot replicate"))
            .detail("The standby would connect as this role; it lacks LOGIN or REPLICATION.")
            .hint(hint)),
        None => Err(Error::new(Kind::InvalidArgument, format!("role \"{name}\" does not exist"))
            .detail("The standby would connect as this role.")
            .hint(hint)),
    }
}
