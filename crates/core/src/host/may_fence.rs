//! May a server be stopped for good, so that the standby that asks can be promoted? Only that standby's own primary, or one
//! before it (S11): what its WAL shows is decided by [`super::may_stop::demand_past`].

use std::path::Path;

use super::may_stop::Running;
use crate::error::{Error, Kind, Result};
use crate::wire::protocol::stop::{Asker, Role};

/// What the server that runs in a directory is to a standby that is going to be promoted.
pub(super) fn running(asker: &Asker, found: &Running, directory: &Path) -> Result<Role> {
    may_fence(asker, found, true, directory)
}

/// The same of one that has ended.
pub(super) fn stopped(asker: &Asker, found: &Running, directory: &Path) -> Result<Role> {
    may_fence(asker, found, false, directory)
}

fn may_fence(asker: &Asker, found: &Running, is_running: bool, directory: &Path) -> Result<Role> {
    let refused = |detail: String| {
        let message = format!("the server in \"{}\" must not be fenced", directory.display());
        Error::new(Kind::TargetRefused, message).detail(detail).hint(
            "Only the primary that the standby has followed is stopped for its promotion. Check the directory that was named, and see what runs there.",
        )
    };
    if let Some(why) = found.why_no_kin(asker, "It is the server that is going to be promoted.") {
        return Err(refused(why));
    }
    let is_standby = if is_running {
        found.has_signal && !found.writes()
    } else {
        found.has_signal || found.control.is_in_archive_recovery()
    };
    if is_standby {
        return Err(refused("It is a standby: it has been rebuilt, or it never was the primary.".to_owned()));
    }
    let (timeline, own) = (found.history.timeline(), asker.history.timeline());
    let Some(known) = asker.history.up_to(timeline) else {
        return Err(refused(format!(
            "It is a primary on timeline {timeline}, which is not in the history of this server's timeline {own}: another server has been promoted there."
        )));
    };
    if known != found.history {
        return Err(refused(format!(
            "It is a primary on timeline {timeline}, but not on the one that this server, on timeline {own}, knows: the histories of the two differ."
        )));
    }
    Ok(if timeline == own { Role::OwnPrimary } else { Role::FormerPrimary })
}

#[cfg(test)]
mod tests {
    use pgdata::control_file::{ControlFile, State, sample};
    use pgdata::history::Ancestor;
    use pgdata::wal::Lsn;

    use super::*;
    use crate::compare::wal_map::Lineage;
    use crate::sys::FileId;

    const ANCESTORS: [Ancestor; 2] =
        [Ancestor { timeline: 1, end: Lsn(1 << 24) }, Ancestor { timeline: 3, end: Lsn(1 << 25) }];

    /// A standby on timeline 5, which has sprung from 3, and that from 1.
    fn asker() -> Asker {
        Asker {
            system_identifier: 42,
            history: Lineage::new(5, &ANCESTORS),
            pasts: Vec::new(),
            identity: FileId { device: 1, inode: 1 },
            boot_id: Some("boot".to_owned()),
        }
    }

    fn found(state: State, timeline: u32, has_signal: bool) -> Running {
        let mut control = ControlFile::parse(&sample(42)).expect("a sample");
        control.state = state;
        let known = asker().history.up_to(timeline);
        Running {
            control,
            history: known.unwrap_or_else(|| Lineage::new(timeline, &ANCESTORS[..1])),
            has_signal,
            identity: FileId { device: 1, inode: 2 },
            boot_id: Some("boot".to_owned()),
        }
    }

    fn judge(found: &Running, is_running: bool) -> std::result::Result<Role, String> {
        may_fence(&asker(), found, is_running, Path::new("/srv/a")).map_err(|error| {
            assert_eq!(error.kind, Kind::TargetRefused);
            error.detail.unwrap_or_default()
        })
    }

    #[test]
    fn the_own_primary_and_those_before_it_are_fenced() {
        for (timeline, role) in [(5, Role::OwnPrimary), (3, Role::FormerPrimary), (1, Role::FormerPrimary)] {
            for state in [State::InProduction, State::ShuttingDown, State::InCrashRecovery] {
                assert_eq!(judge(&found(state, timeline, false), true), Ok(role), "{state:?}");
            }
            // one that was killed, one that was shut down in order, and one that was stopped before it had recovered
            for state in [State::InProduction, State::ShutDown, State::ShutDownInRecovery] {
                let mut ended = found(state, timeline, false);
                ended.control.recovery.min_recovery_point = Lsn(0);
                assert_eq!(judge(&ended, false), Ok(role), "{state:?}");
            }
        }
        let signal = found(State::InProduction, 5, true);
        assert_eq!(judge(&signal, true), Ok(Role::OwnPrimary), "its next start makes a standby of it");
    }

    #[test]
    fn a_standby_is_never_fenced() {
        for timeline in [1, 5, 9] {
            for is_running in [true, false] {
                let standby = found(State::InArchiveRecovery, timeline, true);
                assert!(judge(&standby, is_running).expect_err("refused").contains("standby"));
            }
            // with a signal file it starts as one, whatever it was
            let rewound = found(State::InProduction, timeline, true);
            assert!(judge(&rewound, false).expect_err("refused").contains("standby"));
            let without = found(State::ShutDownInRecovery, timeline, false);
            assert!(judge(&without, false).expect_err("refused").contains("standby"));
        }
    }

    #[test]
    fn a_primary_of_another_or_a_later_timeline_is_never_fenced() {
        for timeline in [2, 6] {
            for is_running in [true, false] {
                let later =
                    judge(&found(State::InProduction, timeline, false), is_running).expect_err("refused");
                assert!(later.contains("has been promoted there"), "{later}");
            }
        }
        let mut other = found(State::InProduction, 5, false);
        other.history = Lineage::new(5, &ANCESTORS[..1]);
        assert!(judge(&other, true).expect_err("refused").contains("histories of the two differ"));
    }

    #[test]
    fn another_system_and_the_asker_itself_are_refused() {
        let mut other = found(State::InProduction, 5, false);
        other.control.system_identifier = 7;
        assert!(
            judge(&other, true).expect_err("refused").contains("system identifier is 7, this server's is 42")
        );
        let mut own = found(State::InProduction, 5, false);
        own.identity = asker().identity;
        assert!(judge(&own, true).expect_err("refused").contains("going to be promoted"));
        own.boot_id = Some("another".to_owned());
        assert!(judge(&own, true).is_ok(), "the same numbers on another machine");
    }
}
