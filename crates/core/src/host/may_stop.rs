//! May a running server be stopped? A standby may, and an old primary that was replaced; never the primary of a history that
//! goes on (S11).

use std::path::Path;

use pgdata::control_file::{ControlFile, State};

use crate::error::{Error, Kind, Result};
use crate::sys::FileId;
use crate::sys::machine;
use crate::wire::protocol::stop::{Asker, Role};

/// The server that would be stopped, as its host sees it.
#[derive(Debug, Clone)]
pub(super) struct Running {
    /// Its pg_control.
    pub(super) control: ControlFile,
    /// The latest timeline of which there is WAL, or which pg_control tells: pg_control lags behind a promotion.
    pub(super) timeline: u32,
    /// Whether there is a standby.signal.
    pub(super) has_signal: bool,
    /// What directory that is.
    pub(super) identity: FileId,
    /// The boot of the machine it runs on.
    pub(super) boot_id: Option<String>,
}

/// What the server in a directory is, if it may be stopped.
pub(super) fn may_stop(asker: &Asker, running: &Running, directory: &Path) -> Result<Role> {
    let refused = |detail: String| {
        let message = format!("the server in \"{}\" must not be stopped", directory.display());
        Error::new(Kind::TargetRefused, message).detail(detail).hint(
            "Only a standby of this system, or a primary that a promotion has replaced, is stopped. Stop any other server on its own host.",
        )
    };
    let one_machine = machine::may_be_one(asker.boot_id.as_deref(), running.boot_id.as_deref());
    if one_machine && asker.identity == running.identity {
        return Err(refused("It is the server that was asked to stop it.".to_owned()));
    }
    let (theirs, ours) = (running.control.system_identifier, asker.system_identifier);
    if theirs != ours {
        return Err(refused(format!("Its system identifier is {theirs}, this server's is {ours}.")));
    }
    // a standby.signal that was put into a running primary's directory makes no standby of it
    let is_primary = matches!(running.control.state, State::InProduction | State::ShuttingDown);
    if running.has_signal && !is_primary {
        return Ok(Role::Standby);
    }
    let (timeline, own) = (running.timeline, asker.history.timeline());
    match asker.history.range(timeline) {
        Some(_) if timeline != own => Ok(Role::FormerPrimary),
        Some(_) => Err(refused(format!(
            "It is a primary on timeline {timeline}, which is this server's own timeline."
        ))),
        None => Err(refused(format!(
            "It is a primary on timeline {timeline}, from which this server's timeline {own} has not sprung."
        ))),
    }
}

#[cfg(test)]
mod tests {
    use pgdata::control_file::sample;
    use pgdata::history::Ancestor;
    use pgdata::wal::Lsn;

    use super::*;
    use crate::compare::wal_map::Lineage;

    /// On timeline 3, which has sprung from 1.
    fn asker() -> Asker {
        Asker {
            system_identifier: 42,
            history: Lineage::new(3, &[Ancestor { timeline: 1, end: Lsn(1 << 24) }]),
            identity: FileId { device: 1, inode: 1 },
            boot_id: Some("boot".to_owned()),
        }
    }

    fn running(state: State, timeline: u32, has_signal: bool) -> Running {
        let mut control = ControlFile::parse(&sample(42)).expect("a sample");
        control.state = state;
        Running {
            control,
            timeline,
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
        for timeline in [1, 2, 3, 9] {
            let standby = running(State::InArchiveRecovery, timeline, true);
            assert_eq!(judge(&standby), Ok(Role::Standby), "wherever it is");
        }
        for state in [State::InProduction, State::InCrashRecovery, State::ShuttingDown] {
            assert_eq!(judge(&running(state, 1, false)), Ok(Role::FormerPrimary), "{state:?}");
        }
    }

    #[test]
    fn the_primary_of_a_history_that_goes_on_is_never_stopped() {
        for (timeline, why) in [(3, "own timeline"), (2, "has not sprung"), (4, "has not sprung")] {
            for state in [State::InProduction, State::InCrashRecovery] {
                let detail = judge(&running(state, timeline, false)).expect_err("refused");
                assert!(detail.contains(why), "{detail}");
            }
        }
        let signal =
            judge(&running(State::InProduction, 3, true)).expect_err("its next start makes a standby of it");
        assert!(signal.contains("own timeline"), "{signal}");
        let point_in_time =
            judge(&running(State::InArchiveRecovery, 3, false)).expect_err("it will be a primary");
        assert!(point_in_time.contains("own timeline"), "{point_in_time}");
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
