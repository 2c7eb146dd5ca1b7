//! What the server in a directory is.

use pgdata::control_file::ControlFile;
use pgdata::wal::Lsn;
use serde::{Deserialize, Serialize};

use crate::compare::wal_map::{Lineage, Past};
use crate::error::Result;
use crate::wire::protocol::second_stage::SecondStageMark;

/// A directory and its server, as its host sees them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// The process that runs on the directory.
    pub running: Option<u32>,
    /// Whether there is a `standby.signal`.
    pub has_standby_signal: bool,
    /// pg_control: system identifier, state, the latest checkpoint and its timeline. Of a running server it lags behind.
    pub control: ControlFile,
    /// The line `PG_VERSION` holds: `15`.
    pub major_version: Option<String>,
    /// The highest timeline of which there is WAL, or which pg_control tells, and what it has sprung from.
    pub history: Lineage,
    /// Records that tell its last timeline from another one of the same number.
    #[serde(default)]
    pub landmark: Option<Past>,
    /// What a running server says of itself, or why it says nothing: that is no answer.
    pub said: Option<Result<Said>>,
    /// Whether a promotion of the server is going on, or something else that its data directory is locked for.
    #[serde(default)]
    pub is_busy: bool,
    /// Who stopped the server for good, and when.
    pub fence: Option<FenceMark>,
    /// That it was made to be promoted beside its primary.
    #[serde(default)]
    pub second_stage: Option<SecondStageMark>,
    /// The process that replays WAL, if a signal has stopped it.
    #[serde(default)]
    pub stopped_startup: Option<u32>,
}

/// Why replay stands still, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldUp {
    /// Goes on after a colon.
    pub why: String,
    /// A sentence.
    pub hint: String,
}

impl HeldUp {
    /// A signal has stopped the process that replays WAL.
    pub fn stopped(process: u32) -> Self {
        Self {
            why: format!("its startup process ({process}) is stopped by a signal"),
            hint: format!("Let it go on: \"kill -CONT {process}\" on the standby's host."),
        }
    }

    fn of(stopped_startup: Option<u32>, said: Option<&Said>) -> Option<Self> {
        if let Some(process) = stopped_startup {
            return Some(Self::stopped(process));
        }
        let said = said.filter(|said| said.in_recovery)?;
        if said.is_paused {
            return Some(Self {
                why: "its replay is paused".to_owned(),
                hint: "Call pg_wal_replay_resume() on the standby.".to_owned(),
            });
        }
        let seconds = said.apply_delay.div_ceil(1000);
        (seconds > 0).then(|| Self {
            why: format!("recovery_min_apply_delay holds its replay back by {seconds} s"),
            hint: "Lower recovery_min_apply_delay on the standby until it streams, or wait for that long."
                .to_owned(),
        })
    }
}

impl Description {
    /// What holds replay up, if it is none of the things that only make it slow.
    pub fn held_up(&self) -> Option<HeldUp> {
        HeldUp::of(self.stopped_startup, self.said.as_ref().and_then(|said| said.as_ref().ok()))
    }
}

/// What a running server says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Said {
    /// Whether it is a standby: pg_is_in_recovery().
    pub in_recovery: bool,
    /// The timeline that it writes or replays now: IDENTIFY_SYSTEM.
    pub timeline: u32,
    /// How far it has written WAL. Of a standby how far it has replayed it, or has received it on that timeline.
    pub position: Lsn,
    /// How far a standby has received WAL since its server's start: pg_last_wal_receive_lsn().
    pub received: Option<Lsn>,
    /// How far it has replayed WAL: pg_last_wal_replay_lsn().
    pub replayed: Option<Lsn>,
    /// Whether its replay is paused, or is asked to pause.
    pub is_paused: bool,
    /// Its recovery_min_apply_delay, milliseconds.
    #[serde(default)]
    pub apply_delay: u64,
}

impl Said {
    /// How much WAL it has.
    pub fn reached(&self) -> Lsn {
        self.position.max(self.received.unwrap_or_default()).max(self.replayed.unwrap_or_default())
    }
}

/// How far a server is that accepts no connections yet, as its files and its processes' titles show it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Starting {
    /// The status in postmaster.pid: `starting` until it accepts connections; `None` if no server has written it.
    pub status: Option<String>,
    /// It has replayed WAL at least up to here: the beginning of the segment that its startup process works on, or the redo point
    /// in pg_control.
    pub replayed: Option<Lsn>,
    /// Its startup process, if a signal has stopped it.
    pub stopped_startup: Option<u32>,
}

/// Why a server was stopped for good: the file [`FENCED`](crate::manifest::exclude::FENCED) in its data directory, as JSON.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FenceMark {
    /// Says in plain words what the file means.
    #[serde(default)]
    pub note: String,
    /// When, seconds since 1970.
    pub fenced: u64,
    /// For which server.
    pub by: String,
    /// Why.
    pub why: String,
    /// Where its shutdown checkpoint begins, if it was shut down in order.
    #[serde(default)]
    pub lsn: Option<Lsn>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_standby_has_what_it_has_received_or_replayed() {
        let said = Said {
            in_recovery: true,
            timeline: 1,
            position: Lsn(20),
            received: Some(Lsn(30)),
            replayed: Some(Lsn(10)),
            is_paused: false,
            apply_delay: 0,
        };
        assert_eq!(said.reached(), Lsn(30));
        assert_eq!(Said { received: None, ..said }.reached(), Lsn(20));
        assert_eq!(Said { replayed: Some(Lsn(40)), ..said }.reached(), Lsn(40));
    }

    #[test]
    fn what_stands_still_is_told_from_what_is_slow() {
        let said = Said {
            in_recovery: true,
            timeline: 1,
            position: Lsn(20),
            received: None,
            replayed: Some(Lsn(10)),
            is_paused: false,
            apply_delay: 0,
        };
        let why = |stopped_startup, said| {
            let held_up = HeldUp::of(stopped_startup, Some(&said));
            held_up.map(|HeldUp { why, .. }| why)
        };
        assert_eq!(why(None, said), None, "it is slow");
        let delayed = Said { apply_delay: 3_600_000, ..said };
        let why_delayed = why(None, delayed).expect("delayed");
        assert_eq!(why_delayed, "recovery_min_apply_delay holds its replay back by 3600 s");
        assert_eq!(why(None, Said { in_recovery: false, ..delayed }), None, "a primary delays nothing");
        let paused = Said { is_paused: true, ..delayed };
        assert_eq!(why(None, paused).as_deref(), Some("its replay is paused"));
        assert_eq!(why(Some(7), paused).as_deref(), Some("its startup process (7) is stopped by a signal"));
    }
}
