//! What a server that is to follow this primary is asked, and what this primary is asked about it.

use std::path::Path;

use pgdata::wal::Lsn;
use pgpool_recovery_core::compare::wal_map::Wal;
use pgpool_recovery_core::error::{Error, Kind, Result};
use pgpool_recovery_core::preflight::follow::{Primary, Standing, standing};
use pgpool_recovery_core::replication::naming::shown_application_name;
use pgpool_recovery_core::replication::streaming::{self, Expected, Walsender};
use pgpool_recovery_core::sender::Session;
use pgpool_recovery_core::wire::protocol::message::{Content, TargetInfo};
use pgpool_recovery_core::wire::protocol::stop::Asker;

use crate::pg::{backup, catalog};
use crate::preflight::{PrimaryFacts, primary};
use crate::run::Run;

/// What [`walsender`] finds of one standby.
pub(crate) struct Own {
    /// Whether the standby has all WAL of this server's own timeline, and gets more as it is written.
    pub(crate) is_streaming: bool,
    /// What the standby has, as it last reported; else what it was sent.
    pub(crate) position: Option<Lsn>,
    pub(crate) state: String,
}

impl PrimaryFacts {
    /// Questions about this server alone.
    pub(crate) fn demand_may_be_followed(&self) -> Result<()> {
        if self.primary.in_recovery {
            return Err(Error::new(Kind::WrongState, "this server is a standby, which nothing follows")
                .detail("Recovery is in progress here.")
                .hint("Call on the primary; after a failover, once this server has been promoted."));
        }
        let user = &self.settings.replication_user;
        self.wal_level()?;
        primary::replication_user(user, catalog::role(user)?).map(drop)
    }

    /// What the walsender of the standby is known by, once it follows as it is told to.
    pub(crate) fn expected(&self) -> Result<Expected> {
        Ok(Expected {
            port: catalog::own_port()?,
            slot_name: Some(self.slot_name.clone()).filter(|slot| !slot.is_empty()),
            application_name: shown_application_name(&self.application_name, catalog::major_version()?),
        })
    }

    /// What the server of a session that looks is to this primary.
    pub(crate) fn standing(
        &self,
        session: &mut Session,
        asker: &Asker,
        was_stopped: bool,
        run: &mut Run<'_>,
    ) -> Result<Standing> {
        let target = run.blocking(|_| session.describe())?;
        // asked after the other server: that one cannot have more of it
        let flushed = backup::flushed();
        let directory = self.data_directory.join("pg_wal");
        let wal = Wal::new(&directory, &self.control);
        let primary = Primary {
            system_identifier: self.primary.system_identifier,
            major_version: &(self.primary.server_version_num / 10_000).to_string(),
            history: &asker.history,
            flushed,
            agrees: self.agrees(target.landmark.as_ref(), flushed)?,
            // one that has all needs none that is there
            has_wal: &|position| Ok(position == flushed || wal.has_segment(&asker.history, position)?),
        };
        standing(&primary, &target, Path::new(&self.request.dest_dir), was_stopped)
    }
}

/// Refuses a directory in which there is no server that could follow.
pub(crate) fn demand_cluster(target: &TargetInfo) -> Result<()> {
    let directory = target.directory.display();
    if target.marker.is_some() {
        return Err(Error::new(Kind::WrongState, format!("\"{directory}\" is not complete"))
            .detail("A recovery of this directory was interrupted.")
            .hint("Run the recovery again; it sends only what is missing."));
    }
    if target.content != Content::Cluster {
        return Err(Error::new(Kind::TargetRefused, format!("\"{directory}\" holds no cluster"))
            .detail("Nothing is there that could follow this server.")
            .hint("Check the directory, or make a standby there with pgpool_recovery_1st_stage."));
    }
    let doubt = target.doubts.identity.as_ref().or(target.doubts.server.as_ref());
    doubt.map_or(Ok(()), |doubt| Err(doubt.clone()))
}

/// The walsender of exactly this standby, or why none is proved to be.
pub(crate) fn walsender(
    session: &mut Session,
    expected: &Expected,
    asker: &Asker,
    run: &mut Run<'_>,
) -> Result<std::result::Result<Own, String>> {
    let walsenders = catalog::walsenders()?;
    // Asked after the walsenders: a connection is then never older than the walreceiver that made it.
    let (walreceiver, _) = run.blocking(|_| session.walreceiver())?;
    Ok(streaming::find_walsender(&walsenders, expected, walreceiver.as_ref()).map(|own| seen(own, asker)))
}

fn seen(own: &Walsender, asker: &Asker) -> Own {
    // at the end of an older timeline nothing is left to be sent for an instant, too
    let is_own_timeline = own.sent.is_some_and(|sent| sent > asker.history.begin());
    Own {
        is_streaming: own.is_streaming() && is_own_timeline,
        position: own.flushed.or(own.sent),
        state: own.state.clone(),
    }
}
