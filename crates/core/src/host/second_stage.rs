//! Promoting a standby beside its primary, which lives on (S11): for Pgpool-II's native replication and snapshot isolation
//! modes, in which every node is a server of its own.
//!
//! That this is wanted the directory itself must say: the mark that only `pgpool_recovery_1st_stage_native` leaves there.

use std::path::Path;
use std::time::Duration;

use pgdata::wal::Lsn;

use super::describe::describe;
use super::policy::Cluster;
use super::{running, stop};
use crate::data_directory::DataDirectory;
use crate::error::{Error, Kind, Result};
use crate::manifest::exclude::{MYRECOVERY_CONF, SECOND_STAGE};
use crate::manifest::path::RelPath;
use crate::sys::cancel::Cancel;
use crate::sys::{process, small_file};
use crate::wire::protocol::describe::{Description, Said};
use crate::wire::protocol::second_stage::{Promote, Promoted, SecondStageMark};
use crate::wire::protocol::stop::Asker;

/// Longest mark that is read, bytes.
const MAX_MARK: usize = 1 << 16;

/// How much longer than the promotion pg_ctl itself may take.
const GRACE: Duration = Duration::from_secs(5);

/// What a server that was promoted has in the place of what made it a standby.
const PROMOTED_CONF: &str =
    "# written by pgpool_recovery: a second stage has made this a server of its own\n";

/// The mark in a data directory, if there is one. One that cannot be read is an error.
pub fn read(directory: &Path) -> Result<Option<SecondStageMark>> {
    let path = directory.join(SECOND_STAGE);
    let Some(text) = small_file::read(&path, MAX_MARK).map_err(Error::on_path("read file", &path))? else {
        return Ok(None);
    };
    serde_json::from_slice(&text).map(Some).map_err(|error| {
        Error::new(Kind::TargetRefused, format!("\"{}\" cannot be understood", path.display()))
            .detail(format!(
                "It should say for which primary the standby was made; the parser says: {error}."
            ))
            .hint("Stop the standby, and run the recovery again from its first stage.")
    })
}

/// Refuses what is not a standby that was made to be promoted beside the asker, or has not replayed WAL up to `replayed`.
pub fn demand_promotable(found: &Description, asker: &Asker, replayed: Lsn, directory: &Path) -> Result<()> {
    let shown = directory.display();
    let refused = |detail: String| {
        Error::new(Kind::TargetRefused, format!("the server in \"{shown}\" must not be promoted"))
            .detail(detail)
            .hint("Only a running standby that pgpool_recovery_1st_stage_native has made from this primary is: run the recovery from its first stage.")
    };
    let theirs = found.control.system_identifier;
    if theirs != asker.system_identifier {
        let ours = asker.system_identifier;
        return Err(refused(format!("Its system identifier is {theirs}, this server's is {ours}.")));
    }
    let Said { in_recovery, timeline, replayed: reached, is_paused, .. } = match &found.said {
        None => return Err(refused("No server is running there.".to_owned())),
        Some(Err(error)) => return Err(error.clone()),
        Some(Ok(said)) => *said,
    };
    if !in_recovery || !found.has_standby_signal {
        return Err(refused("It is no standby.".to_owned()));
    }
    let Some(mark) = &found.second_stage else {
        return Err(refused(format!("It has no {SECOND_STAGE}: no first stage has made it for this.")));
    };
    let own = asker.history.timeline();
    if (mark.system_identifier, mark.timeline) != (asker.system_identifier, own) || timeline != own {
        return Err(refused(format!(
            "It was made from a primary on timeline {}, and is on timeline {timeline}; this server is on timeline {own}.",
            mark.timeline
        )));
    }
    if is_paused {
        let message = format!("replay on the standby in \"{shown}\" is paused: it is not promoted");
        return Err(Error::new(Kind::WrongState, message)
            .detail("A promotion would end the pause, and with it what it was made for.")
            .hint("Call pg_wal_replay_resume() there, then run the recovery again."));
    }
    let reached = reached.unwrap_or_default();
    if reached < replayed {
        let message = format!("the standby in \"{shown}\" has not replayed all of this primary's WAL");
        return Err(Error::new(Kind::WrongState, message)
            .detail(format!("It has replayed up to {reached}, and must have replayed up to {replayed}."))
            .hint("A query there, or recovery_min_apply_delay, can hold replay up. Run the recovery again; pgpool_recovery.deadline is how long it waits."));
    }
    Ok(())
}

/// Promotes the standby in a directory, which nothing else of ours may work on meanwhile.
///
/// The mark is used up before the promotion is asked for: whatever becomes of that, no later call rests on it.
pub(crate) fn promote(cluster: &Cluster, wanted: &Promote, cancel: &Cancel) -> Result<Promoted> {
    let directory = &cluster.data_directory;
    let target = DataDirectory::open(directory)?;
    if let Some(why) = stop::look(directory)?
        .why_no_kin(&wanted.asker, "It is the server that was asked to have it promoted.")
    {
        let message = format!("the server in \"{}\" must not be promoted", directory.display());
        return Err(Error::new(Kind::TargetRefused, message)
            .detail(why)
            .hint("Check host and directory: they must be those of the node that is recovered."));
    }
    demand_promotable(&describe(cluster, cancel)?, &wanted.asker, wanted.replayed, directory)?;
    cancel.check()?;
    target.remove(&RelPath::parse(SECOND_STAGE)?)?;
    target.sync_directories()?;
    let timeline = run_promotion(cluster, wanted.timeout, cancel)?;
    let mut warnings = Vec::new();
    if let Err(error) = forget_primary(&target, directory) {
        warnings.push(format!(
            "the server in \"{}\" was promoted, but keeps the settings of a standby in {MYRECOVERY_CONF}: {}",
            directory.display(),
            error.message
        ));
    }
    Ok(Promoted { timeline, warnings })
}

/// Has pg_ctl end the recovery. Returns the timeline that the server writes by its own word.
fn run_promotion(cluster: &Cluster, seconds: u32, cancel: &Cancel) -> Result<u32> {
    let directory = &cluster.data_directory;
    let limit = seconds.to_string();
    // the directory goes by PGDATA, as for a start
    let mut command =
        process::command(&cluster.bin_directory.join("pg_ctl"), ["promote", "-w", "-t", limit.as_str()]);
    command.env("PGDATA", directory);
    let ended = process::run(command, Duration::from_secs(seconds.into()) + GRACE, cancel)?;
    // what counts is what the server says; it may have needed a moment more
    let said = describe(cluster, cancel)?.said.transpose()?;
    match said {
        Some(Said { in_recovery: false, timeline, .. }) => Ok(timeline),
        _ => {
            let message =
                format!("the standby in \"{}\" was not promoted in {seconds} s", directory.display());
            Err(Error::new(Kind::StartFailed, message)
                .detail(format!("pg_ctl promote {}. {}", ended.describe(), ended.said()))
                .hint("See the log of that server. It may still become a server of its own: stop it, then run the recovery again from its first stage."))
        }
    }
}

/// Takes from a server that is no standby any more what made it one.
fn forget_primary(target: &DataDirectory, directory: &Path) -> Result<()> {
    let path = RelPath::parse(MYRECOVERY_CONF)?;
    let Some(stat) = target.stat(&path)? else { return Ok(()) };
    target.install(&path, PROMOTED_CONF.as_bytes(), stat.mode)?;
    target.sync_directories()?;
    running::postmaster_pid(directory).map_or(Ok(()), running::reload)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use pgdata::control_file::{ControlFile, sample};

    use super::*;
    use crate::compare::wal_map::Lineage;
    use crate::sys::FileId;
    use crate::sys::process::tests::script;

    fn asker() -> Asker {
        Asker {
            system_identifier: 42,
            history: Lineage::new(4, &[]),
            pasts: Vec::new(),
            identity: FileId { device: 0, inode: 0 },
            boot_id: None,
        }
    }

    fn said() -> Said {
        Said {
            in_recovery: true,
            timeline: 4,
            position: Lsn(0x100),
            received: Some(Lsn(0x100)),
            replayed: Some(Lsn(0x100)),
            is_paused: false,
            apply_delay: 0,
        }
    }

    fn standby() -> Description {
        Description {
            stopped_startup: None,
            running: Some(7),
            has_standby_signal: true,
            control: ControlFile::parse(&sample(42)).expect("valid"),
            major_version: Some("15".to_owned()),
            history: Lineage::new(4, &[]),
            said: Some(Ok(said())),
            landmark: None,
            is_busy: false,
            fence: None,
            second_stage: Some(SecondStageMark {
                note: String::new(),
                made: 1,
                system_identifier: 42,
                timeline: 4,
            }),
        }
    }

    #[test]
    fn only_a_standby_that_was_made_for_it_and_has_all_is_promoted() {
        let judge = |found: &Description| demand_promotable(found, &asker(), Lsn(0x100), Path::new("/d"));
        assert_eq!(judge(&standby()), Ok(()));
        let mark = standby().second_stage.expect("a mark");
        let with = |said: Said| Description { said: Some(Ok(said)), ..standby() };
        let other = ControlFile::parse(&sample(43)).expect("valid");
        for (found, why) in [
            (Description { second_stage: None, ..standby() }, "has no pgpool_recovery.second_stage"),
            (Description { said: None, running: None, ..standby() }, "No server is running"),
            (Description { has_standby_signal: false, ..standby() }, "no standby"),
            (Description { control: other, ..standby() }, "identifier is 43"),
            (
                Description {
                    second_stage: Some(SecondStageMark { timeline: 3, ..mark.clone() }),
                    ..standby()
                },
                "on timeline 3",
            ),
            (
                Description {
                    second_stage: Some(SecondStageMark { system_identifier: 1, ..mark }),
                    ..standby()
                },
                "was made from a primary",
            ),
            (with(Said { in_recovery: false, ..said() }), "no standby"),
            (with(Said { timeline: 5, ..said() }), "is on timeline 5"),
        ] {
            let error = judge(&found).expect_err(why);
            assert_eq!(error.kind, Kind::TargetRefused, "{error:?}");
            assert!(error.detail.as_ref().is_some_and(|detail| detail.contains(why)), "{why}: {error:?}");
        }
        for (found, why) in [
            (with(Said { is_paused: true, ..said() }), "is paused"),
            (with(Said { replayed: Some(Lsn(0xFF)), ..said() }), "has not replayed all"),
            (with(Said { replayed: None, ..said() }), "has not replayed all"),
        ] {
            let error = judge(&found).expect_err(why);
            assert_eq!(error.kind, Kind::WrongState, "{error:?}");
            assert!(error.message.contains(why), "{error:?}");
        }
        let silent = Error::new(Kind::StartFailed, "it does not tell");
        let found = Description { said: Some(Err(silent.clone())), ..standby() };
        assert_eq!(judge(&found), Err(silent), "an error is no answer");
    }

    /// Has a standby promoted that has replayed up to 0/100 and whose pg_ctl does this. What becomes of it, of its mark, and of
    /// myrecovery.conf.
    fn promoted(pg_ctl: &str, replayed: u64) -> (Result<Promoted>, bool, String) {
        const DB_IN_ARCHIVE_RECOVERY: u32 = 5;
        let data = tempfile::tempdir().expect("temporary directory");
        let place = data.path().canonicalize().expect("real path");
        for directory in ["global", "pg_wal"] {
            fs::create_dir_all(place.join(directory)).expect("make");
        }
        let control = pgdata::control_file::sample_in_state(42, DB_IN_ARCHIVE_RECOVERY);
        fs::write(place.join("global/pg_control"), control).expect("write");
        fs::write(place.join("pg_wal/00000004.history"), "3\t0/7000000\t\n").expect("write");
        let history = stop::look(&place).expect("a directory").history;
        let timeline = history.timeline();
        let mark = format!(r#"{{"made": 7, "system_identifier": 42, "timeline": {timeline}}}"#);
        for (name, text) in [
            ("standby.signal", ""),
            ("PG_VERSION", "15\n"),
            (MYRECOVERY_CONF, "primary_conninfo = 'host=main'\n"),
            (SECOND_STAGE, &mark),
        ] {
            fs::write(place.join(name), text).expect("write");
        }
        let psql = format!(
            "[ -e $(dirname $0)/done ] && {{ echo '42|{}|0/100|'; echo 'said|f|||f|0'; exit; }}; \
             echo '42|{timeline}|0/100|'; echo 'said|t|0/100|0/100|f|0'",
            timeline + 1
        );
        script(&place.join("psql"), &psql);
        script(&place.join("pg_ctl"), pg_ctl);
        let mut server = running::tests::serve(&place);
        fs::write(place.join("postmaster.pid"), format!("{}\n/x\n77\n5433\n/tmp\n\n", server.id()))
            .expect("write");
        let wanted = Promote { asker: Asker { history, ..asker() }, replayed: Lsn(replayed), timeout: 10 };
        let cluster = Cluster::new(place.clone(), place.clone());
        let done = promote(&cluster, &wanted, &Cancel::new());
        let _ = server.kill().and_then(|()| server.wait());
        let done = done.map(|done| Promoted { timeline: done.timeline - timeline, ..done });
        let conf = fs::read_to_string(place.join(MYRECOVERY_CONF)).expect("read");
        (done, place.join(SECOND_STAGE).exists(), conf)
    }

    #[test]
    fn a_mark_is_good_for_one_attempt() {
        let (done, is_marked, conf) = promoted("touch $PGDATA/done", 0x100);
        assert_eq!(done, Ok(Promoted { timeline: 1, warnings: Vec::new() }));
        assert!(!is_marked && !conf.contains("primary_conninfo"), "{conf}");
        let (failed, is_marked, conf) = promoted("echo 'no permission' >&2; exit 1", 0x100);
        let failed = failed.expect_err("it was not promoted");
        assert_eq!(failed.kind, Kind::StartFailed);
        assert!(failed.detail.is_some_and(|detail| detail.contains("no permission")));
        assert!(!is_marked && conf.contains("primary_conninfo"), "{conf}");
        let (refused, is_marked, _) = promoted("touch $PGDATA/done", 0x101);
        assert_eq!(refused.expect_err("it lacks WAL").kind, Kind::WrongState);
        assert!(is_marked, "nothing was attempted");
    }

    #[test]
    fn a_mark_that_cannot_be_read_is_no_missing_one() {
        let data = tempfile::tempdir().expect("temporary directory");
        assert_eq!(read(data.path()), Ok(None));
        fs::write(data.path().join(SECOND_STAGE), "nonsense").expect("write");
        assert_eq!(read(data.path()).expect_err("unreadable").kind, Kind::TargetRefused);
        let mark = r#"{"made": 7, "system_identifier": 42, "timeline": 3}"#;
        fs::write(data.path().join(SECOND_STAGE), mark).expect("write");
        assert_eq!(read(data.path()).expect("read").map(|mark| mark.timeline), Some(3));
    }
}
