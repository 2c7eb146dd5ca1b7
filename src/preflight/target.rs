//! Questions about the target, as its receiver describes it.

use pgdata::wal::Lsn;
use pgpool_recovery_core::compare::wal_map::{Agreement, Past, Wal};
use pgpool_recovery_core::error::Result;
use pgpool_recovery_core::host::policy::resolve;
use pgpool_recovery_core::manifest::dropped::Directories;
use pgpool_recovery_core::manifest::path::normalize_directory;
use pgpool_recovery_core::manifest::plan::Plan;
use pgpool_recovery_core::preflight::{self, Finding, OwnWal, Strategy, collation, minor_versions};
use pgpool_recovery_core::sender::{Planned, Session};
use pgpool_recovery_core::sys::cancel::Cancel;
use pgpool_recovery_core::sys::libraries::{Libraries, loaded_icu};
use pgpool_recovery_core::sys::size::pretty;
use pgpool_recovery_core::wire::protocol::message::{PlanHeader, TargetInfo};

use crate::pg::threads::DropAside;
use crate::pg::{backup, catalog, libc_version};
use crate::preflight::PrimaryFacts;
use crate::run::Run;
use crate::settings::Overwrite;

impl PrimaryFacts {
    /// Refuses a local target that is, holds or lies in this server's data directory, before anything is
    /// opened there. Not for the main thread: it looks at the target's directory.
    pub(crate) fn demand_other_directory(&self) -> Result<()> {
        if !self.is_local {
            return Ok(());
        }
        let directory = normalize_directory(&self.request.dest_dir)?;
        preflight::apart(&self.data_directory, &resolve(&directory))
    }

    /// Questions about the target, as its receiver describes it.
    pub(crate) fn target_findings(&self, target: &TargetInfo) -> Result<Vec<Finding>> {
        let any_cluster = self.settings.overwrite == Overwrite::AnyCluster;
        // asked now, when the target has been looked at: a standby has nothing from after that
        let wal = if self.primary.in_recovery { None } else { Some(self.own_wal(target.landmark.as_ref())?) };
        let mut findings = preflight::check_target(&self.identity, wal, target, self.is_local, any_cluster);
        for finding in &mut findings {
            // a call that is to start the server fails without this
            finding.is_advice &= !(finding.step == "start_command" && self.settings.start);
        }
        findings
            .extend(minor_versions::finding(&self.primary.server_version, target.server_release.as_deref()));
        let libraries = Libraries { glibc: libc_version::glibc(), icu: loaded_icu() };
        findings.push(collation::finding(&libraries, target.libraries.as_ref(), &catalog::collations()?));
        findings.extend(self.configuration_findings(target));
        Ok(findings)
    }

    /// What this primary's WAL says of a target.
    fn own_wal(&self, landmark: Option<&Past>) -> Result<OwnWal> {
        let flushed = backup::flushed();
        let agrees = self.agrees(landmark, flushed)?;
        Ok(OwnWal { flushed, agrees })
    }

    /// Whether this primary, whose WAL is on its disk up to `flushed`, has these records of another server.
    pub(crate) fn agrees(&self, landmark: Option<&Past>, flushed: Lsn) -> Result<Agreement> {
        let Some(landmark) = landmark else { return Ok(Agreement::Unknown) };
        let directory = self.data_directory.join("pg_wal");
        let wal = Wal::new(&directory, &self.control);
        wal.agrees(&wal.lineage(self.primary.timeline)?, flushed, landmark, &Cancel::new())
    }

    /// Proposes a plan: whether there is room for it, and nothing in its way. The session ends.
    pub(crate) fn propose(
        &self,
        target: &TargetInfo,
        session: DropAside<Session>,
        (plan, header): (Plan, PlanHeader),
        run: &mut Run<'_>,
    ) -> Result<Planned> {
        let own = Directories::of(&self.data_directory, &plan);
        let (_session, planned) = run.step(session, None, |session: Session| {
            let (session, planned) = session.propose(plan, header)?;
            self.demand_other_locations(target, &planned.locations, &own)?;
            Ok((session, planned))
        })?;
        Ok(planned)
    }

    /// What to say of the slot that the target was set to use before, where that is another one. It may be a slot of
    /// another node, so it is left alone.
    pub(crate) fn former_slot(&self, target: &TargetInfo) -> Result<Option<String>> {
        let former = target.standby.as_ref().and_then(|standby| standby.slot_name.as_deref());
        let Some(former) = former.filter(|former| *former != self.slot_name) else { return Ok(None) };
        Ok(catalog::retained_by_idle_slot(former)?.map(|retained| {
            format!(
                "replication slot \"{former}\", which the target used before, is inactive and retains {} of WAL: unless \
                 another standby uses it, drop it with SELECT pg_drop_replication_slot('{former}')",
                pretty(retained)
            )
        }))
    }

    /// How the target is going to be filled.
    pub(crate) fn strategy(&self, target: &TargetInfo) -> Strategy {
        preflight::strategy(&self.identity, target)
    }
}
