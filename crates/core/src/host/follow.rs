//! May the server in a directory be made to follow the primary that asks? What its files tell must still be true when they are
//! about to be written.

use pgdata::control_file::State;

use super::launch::STANDBY_SIGNAL;
use super::policy::Cluster;
use super::{fence, running, stop};
use crate::error::{Error, Kind, Result};
use crate::manifest::exclude::MARKER;
use crate::wire::protocol::stop::Asker;

/// Refuses what is not a running standby of the asker's system, or, if it `rejoins`, a stopped primary that was shut down in order
/// and all of whose WAL is in the asker's history. Returns the postmaster that runs.
pub(crate) fn demand_follower(cluster: &Cluster, asker: &Asker, rejoins: bool) -> Result<Option<u32>> {
    let directory = &cluster.data_directory;
    let refused = |detail: String| {
        let message = format!("the server in \"{}\" must not be made to follow", directory.display());
        Error::new(Kind::TargetRefused, message)
            .detail(detail)
            .hint("See what runs there; pgpool_recovery_1st_stage makes a standby of a directory whatever it holds.")
    };
    let marker = directory.join(MARKER);
    if marker.try_exists().map_err(Error::on_path("stat file", &marker))? {
        return Err(refused("A recovery of the directory was interrupted.".to_owned()));
    }
    let process = running::server(directory)?;
    let found = stop::look(directory)?;
    if let Some(why) = found.why_no_kin(asker, "It is the server that was asked to have it follow.") {
        return Err(refused(why));
    }
    if !rejoins {
        let postmaster = process.filter(|process| running::postmaster_pid(directory) == Some(*process));
        if postmaster.is_none() || !found.has_signal || found.writes() {
            return Err(refused(format!("No standby runs there, with a {STANDBY_SIGNAL}.")));
        }
        return Ok(postmaster);
    }
    if let Some(process) = process {
        return Err(running::refusal(directory, process));
    }
    // a mark that cannot be read is an error, not a missing mark
    fence::read(directory)?;
    let (timeline, checkpoint) = (found.control.timeline, found.control.recovery.checkpoint_at);
    let end =
        asker.history.range(timeline).filter(|_| timeline != asker.history.timeline()).map(|(_, end)| end);
    let is_past =
        asker.history.up_to(timeline).is_some_and(|left| Some(left) == found.history.up_to(timeline))
            && end.is_some_and(|end| checkpoint < end);
    if found.control.state != State::ShutDown || !is_past {
        return Err(refused(format!(
            "Its shutdown checkpoint, on timeline {timeline} at {checkpoint}, is not in this server's history, or it was not shut down in order."
        )));
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use pgdata::history::Ancestor;
    use pgdata::wal::Lsn;

    use super::*;
    use crate::compare::wal_map::Lineage;
    use crate::sys::FileId;
    use crate::sys::machine;

    const DB_SHUTDOWNED: u32 = 1;
    const DB_IN_ARCHIVE_RECOVERY: u32 = 5;
    const DB_IN_PRODUCTION: u32 = 6;

    /// A directory of a server on the timeline of [`pgdata::control_file::sample`].
    fn directory(state: u32) -> (tempfile::TempDir, Cluster) {
        let data = tempfile::tempdir().expect("temporary directory");
        let place = data.path().canonicalize().expect("real path");
        for directory in ["global", "pg_wal"] {
            fs::create_dir_all(place.join(directory)).expect("make");
        }
        let control = pgdata::control_file::sample_in_state(42, state);
        fs::write(place.join("global/pg_control"), control).expect("write");
        // which the sample's pg_control names as well
        fs::write(place.join("pg_wal/00000004.history"), "3\t0/7000000\t\n").expect("write");
        (data, Cluster::new(place.clone(), place))
    }

    /// A primary whose history left the directory's timeline there.
    fn asker(data: &Cluster, left: impl Fn(Lsn) -> Lsn) -> Asker {
        let found = stop::look(&data.data_directory).expect("a directory");
        let end = left(found.control.recovery.checkpoint_at);
        let timeline = found.control.timeline;
        Asker {
            system_identifier: 42,
            history: Lineage::new(timeline + 1, &[Ancestor { timeline, end }]),
            pasts: Vec::new(),
            identity: FileId { device: 0, inode: 0 },
            boot_id: None,
        }
    }

    #[test]
    fn a_former_primary_rejoins_only_if_its_last_record_is_in_the_history() {
        let (_data, cluster) = directory(DB_SHUTDOWNED);
        let later = asker(&cluster, |checkpoint| Lsn(checkpoint.0 + 1));
        assert_eq!(demand_follower(&cluster, &later, true), Ok(None));
        let before = asker(&cluster, |checkpoint| checkpoint);
        let refused = demand_follower(&cluster, &before, true).expect_err("it has a record too many");
        assert!(refused.detail.is_some_and(|detail| detail.contains("not in this server's history")));
        let other = Asker { system_identifier: 43, ..later.clone() };
        assert_eq!(demand_follower(&cluster, &other, true).expect_err("other").kind, Kind::TargetRefused);
        let own = Asker { history: Lineage::new(3, &[]), ..later.clone() };
        assert!(demand_follower(&cluster, &own, true).is_err(), "the asker's own timeline");
        fs::write(cluster.data_directory.join(MARKER), "{}").expect("write");
        assert!(demand_follower(&cluster, &later, true).is_err(), "incomplete");
        let (_data, unclean) = directory(DB_IN_PRODUCTION);
        let later = asker(&unclean, |checkpoint| Lsn(checkpoint.0 + 1));
        assert!(demand_follower(&unclean, &later, true).is_err(), "it crashed");
    }

    #[test]
    fn only_a_standby_that_runs_follows() {
        let (_data, cluster) = directory(DB_IN_ARCHIVE_RECOVERY);
        let asker = asker(&cluster, |checkpoint| checkpoint);
        let judge = || demand_follower(&cluster, &asker, false);
        assert!(judge().is_err(), "nothing runs");
        let mut server = running::tests::serve(&cluster.data_directory);
        let unsigned = judge();
        fs::write(cluster.data_directory.join(STANDBY_SIGNAL), "").expect("write");
        let (found, rejoins) = (judge(), demand_follower(&cluster, &asker, true));
        let itself = FileId::from(&fs::metadata(&cluster.data_directory).expect("there"));
        let itself = Asker { identity: itself, boot_id: machine::boot_id(), ..asker.clone() };
        let itself = demand_follower(&cluster, &itself, false);
        let control = pgdata::control_file::sample_in_state(42, DB_IN_PRODUCTION);
        fs::write(cluster.data_directory.join("global/pg_control"), control).expect("write");
        let primary = judge();
        let process = server.id();
        server.kill().and_then(|()| server.wait()).expect("ended");
        assert!(unsigned.is_err(), "no standby.signal");
        assert_eq!(found, Ok(Some(process)));
        assert_eq!(rejoins.expect_err("it runs").kind, Kind::InUse);
        assert!(itself.expect_err("itself").detail.is_some_and(|detail| detail.contains("asked to have it")));
        assert!(primary.is_err(), "a signal file makes no standby of a running primary");
    }
}
