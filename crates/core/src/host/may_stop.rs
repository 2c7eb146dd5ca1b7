//! May a running server be stopped? A standby may, and an old primary that was replaced; never the primary of a history that
//! goes on (S11).
//!
//! That a primary was replaced is decided in two steps: the numbers and switch points of both histories ([`may_stop`]), and
//! then the WAL of both ([`demand_past`]), because two servers that were promoted may have the same numbers.

use std::path::Path;

use pgdata::control_file::{ControlFile, State};

use crate::compare::wal_map::{Lineage, Wal};
use crate::error::{Error, Kind, Result};
use crate::sys::FileId;
use crate::sys::cancel::Cancel;
use crate::sys::machine;
use crate::wire::protocol::stop::{Asker, Role};

/// The server that would be stopped, as its host sees it.
#[derive(Debug, Clone)]
pub(super) struct Running {
    /// Its pg_control.
    pub(super) control: ControlFile,
    /// The history of the latest timeline of which there is WAL, or which pg_control tells: pg_control lags behind a
    /// promotion.
    pub(super) history: Lineage,
    /// Whether there is a standby.signal.
    pub(super) has_signal: bool,
    /// What directory that is.
    pub(super) identity: FileId,
    /// The boot of the machine it runs on.
    pub(super) boot_id: Option<String>,
}

impl Running {
    /// Why it is not another server of the asker's system; `itself` is what to say of the asker.
    pub(super) fn why_no_kin(&self, asker: &Asker, itself: &str) -> Option<String> {
        let one_machine = machine::may_be_one(asker.boot_id.as_deref(), self.boot_id.as_deref());
        if one_machine && asker.identity == self.identity {
            return Some(itself.to_owned());
        }
        let (theirs, ours) = (self.control.system_identifier, asker.system_identifier);
        (theirs != ours).then(|| format!("Its system identifier is {theirs}, this server's is {ours}."))
    }

    /// Whether pg_control says that it writes. A standby.signal that was put into a running primary's directory makes no standby
    /// of it.
    pub(super) const fn writes(&self) -> bool {
        matches!(self.control.state, State::InProduction | State::ShuttingDown)
    }
}

/// What the server in a directory is, if it may be stopped.
pub(super) fn may_stop(asker: &Asker, running: &Running, directory: &Path) -> Result<Role> {
    let refused = |detail: String| {
        let message = format!("the server in \"{}\" must not be stopped", directory.display());
        Error::new(Kind::TargetRefused, message).detail(detail).hint(
            "Only a standby of this system, or a primary that a promotion has replaced, is stopped. Stop any other server on its own host.",
        )
    };
    if let Some(why) = running.why_no_kin(asker, "It is the server that was asked to stop it.") {
        return Err(refused(why));
    }
    if running.has_signal && !running.writes() {
        return Ok(Role::Standby);
    }
    let (timeline, own) = (running.history.timeline(), asker.history.timeline());
    let Some(left) = asker.history.up_to(timeline) else {
        return Err(refused(format!(
            "It is a primary on timeline {timeline}, from which this server's timeline {own} has not sprung."
        )));
    };
    if timeline == own {
        return Err(refused(format!(
            "It is a primary on timeline {timeline}, which is this server's own timeline."
        )));
    }
    if left != running.history {
        return Err(refused(format!(
            "It is a primary on timeline {timeline}, but not on the one from which this server's timeline {own} has sprung: the histories of the two differ."
        )));
    }
    Ok(Role::FormerPrimary)
}

/// What the proof of a primary that was replaced is about, and what to do without it.
pub(super) const REPLACED: (&str, &str) = ("was replaced", "If it was, stop it on its own host.");

/// Refuses a primary whose WAL does not show that it is the one whose timeline the asker's history has left, or is on.
pub(super) fn demand_past(
    asker: &Asker,
    running: &Running,
    directory: &Path,
    (question, hint): (&str, &str),
    cancel: &Cancel,
) -> Result<()> {
    let timeline = running.history.timeline();
    let refused = |detail: String| {
        let message = format!("cannot tell whether the primary in \"{}\" {question}", directory.display());
        Error::new(Kind::TargetRefused, message).detail(detail).hint(hint)
    };
    let Some(past) = asker.pasts.iter().find(|past| past.timeline == timeline) else {
        return Err(refused(format!(
            "This server has no WAL of the end of timeline {timeline} any more, or none with a commit or checkpoint, that the other server's could be compared with."
        )));
    };
    let wal = directory.join("pg_wal");
    if Wal::new(&wal, &running.control).has_past(&running.history, past, cancel)? {
        return Ok(());
    }
    Err(refused(format!(
        "Its WAL of timeline {timeline} from {} to {} is not the same as this server's, or not there any more.",
        past.from, past.to
    )))
}

#[cfg(test)]
mod tests {
    use pgdata::control_file::sample;
    use pgdata::history::Ancestor;
    use pgdata::wal::Lsn;

    use super::*;
    use crate::compare::wal_map::Past;

    fn ancestor(timeline: u32, end: u64) -> Ancestor {
        Ancestor { timeline, end: Lsn(end) }
    }

    /// On timeline 5, which has sprung from 3, and that from 1.
    fn asker() -> Asker {
        Asker {
            system_identifier: 42,
            history: Lineage::new(5, &[ancestor(1, 1 << 24), ancestor(3, 1 << 25)]),
            pasts: Vec::new(),
            identity: FileId { device: 1, inode: 1 },
            boot_id: Some("boot".to_owned()),
        }
    }

    fn running(state: State, timeline: u32, has_signal: bool) -> Running {
        let history = asker()
            .history
            .up_to(timeline)
            .unwrap_or_else(|| Lineage::new(timeline, &[ancestor(1, 1 << 24)]));
        of_history(state, history, has_signal)
    }

    fn of_history(state: State, history: Lineage, has_signal: bool) -> Running {
        let mut control = ControlFile::parse(&sample(42)).expect("a sample");
        control.state = state;
        Running {
            control,
            history,
            has_signal,
            identity: FileId { device: 1, inode: 2 },
            boot_id: Some("boot".to_owned()),
        }
    }

    fn judge(running: &Running) -> std::result::Result<Role, String> {
        may_stop(&asker(), running, Path::new("/srv/b")).map_err(|error| error.detail.unwrap_or_default())
    }

    #[test]
    fn standbys_and_replaced_primaries_may_be_stopped() {
        for timeline in [1, 2, 3, 5, 9] {
            let standby = running(State::InArchiveRecovery, timeline, true);
            assert_eq!(judge(&standby), Ok(Role::Standby), "wherever it is");
        }
        for state in [State::InProduction, State::InCrashRecovery, State::ShuttingDown] {
            for timeline in [1, 3] {
                assert_eq!(judge(&running(state, timeline, false)), Ok(Role::FormerPrimary), "{state:?}");
            }
        }
    }

    #[test]
    fn the_primary_of_a_history_that_goes_on_is_never_stopped() {
        for (timeline, why) in [(5, "own timeline"), (2, "has not sprung"), (6, "has not sprung")] {
            for state in [State::InProduction, State::InCrashRecovery] {
                let detail = judge(&running(state, timeline, false)).expect_err("refused");
                assert!(detail.contains(why), "{detail}");
            }
        }
        let signal =
            judge(&running(State::InProduction, 5, true)).expect_err("its next start makes a standby of it");
        assert!(signal.contains("own timeline"), "{signal}");
        let point_in_time =
            judge(&running(State::InArchiveRecovery, 5, false)).expect_err("it will be a primary");
        assert!(point_in_time.contains("own timeline"), "{point_in_time}");
    }

    #[test]
    fn a_timeline_of_the_same_number_with_another_history_is_another_one() {
        for ancestors in [&[ancestor(1, 1 << 20)][..], &[], &[ancestor(2, 1 << 24)]] {
            let other = of_history(State::InProduction, Lineage::new(3, ancestors), false);
            let detail = judge(&other).expect_err("refused");
            assert!(detail.contains("the histories of the two differ"), "{detail}");
        }
    }

    #[test]
    fn without_the_wal_of_both_it_cannot_be_told() {
        let data = tempfile::tempdir().expect("temporary directory");
        std::fs::create_dir(data.path().join("pg_wal")).expect("make");
        let former = running(State::InProduction, 3, false);
        let demand = |pasts| {
            let asker = Asker { pasts, ..asker() };
            demand_past(&asker, &former, data.path(), REPLACED, &Cancel::new()).expect_err("refused")
        };
        let past = |timeline| Past { timeline, from: Lsn(1 << 24), to: Lsn(1 << 25), digest: [0; 16] };
        for (pasts, why) in
            [(vec![], "no WAL"), (vec![past(1)], "no WAL"), (vec![past(3)], "0/1000000 to 0/2000000")]
        {
            let error = demand(pasts);
            assert_eq!(error.kind, Kind::TargetRefused);
            assert!(error.detail.as_ref().is_some_and(|detail| detail.contains(why)), "{error:?}");
        }
    }

    #[test]
    fn another_system_and_the_asker_itself_are_refused() {
        let mut other = running(State::InArchiveRecovery, 1, true);
        other.control.system_identifier = 7;
        assert!(judge(&other).expect_err("refused").contains("system identifier is 7"));
        let mut own = running(State::InArchiveRecovery, 1, true);
        own.identity = asker().identity;
        assert!(judge(&own).expect_err("refused").contains("asked to stop it"));
        own.boot_id = Some("another".to_owned());
        assert_eq!(judge(&own), Ok(Role::Standby), "the same numbers on another machine");
    }
}
