//! The start of a standby's server, and what its caller is told of it before the server accepts connections.

use std::time::{Duration, Instant};

use pgdata::wal::Lsn;
use pgpool_recovery_core::error::Result;
use pgpool_recovery_core::sender::Session;
use pgpool_recovery_core::sys::size::pretty;
use pgpool_recovery_core::wire::protocol::describe::{HeldUp, Starting};

use crate::pg::{backup, log};
use crate::run::Run;

/// How often a NOTICE tells how far the standby has replayed.
const NOTICE: Duration = Duration::from_secs(5);

/// How often that is of a start that is given up after this time without progress: it is told at least once before.
pub(crate) fn interval(timeout: Duration) -> Duration {
    NOTICE.min(timeout / 2)
}

/// Starts the server and waits until it accepts connections, for as long as it makes progress. False if it ran already.
pub(crate) fn start(session: &mut Session, timeout: Duration, run: &mut Run<'_>) -> Result<bool> {
    let mut replay = Replay::default();
    run.blocking_told(
        |starting| replay.tell(&starting),
        |_, hear| session.start(timeout, interval(timeout), hear),
    )
}

/// How far replay was when it was told first.
#[derive(Default)]
struct Replay {
    first: Option<(Instant, Lsn)>,
}

impl Replay {
    fn tell(&mut self, starting: &Starting) {
        if let Some(HeldUp { why, hint }) = starting.stopped_startup.map(HeldUp::stopped) {
            let message = format!("pgpool_recovery: replay on the standby stands still: {why}");
            log::notice_detail(&message, None, Some(&hint));
            return;
        }
        log::notice(&format!("pgpool_recovery: {}", self.line(starting, backup::flushed(), Instant::now())));
    }

    /// The rate is that since the first line: a segment is replayed in a moment, or in minutes.
    fn line(&mut self, starting: &Starting, target: Lsn, now: Instant) -> String {
        // postmaster.pid says "starting" until the server accepts connections, whether it replays or still syncs its files
        let Some(replayed) = starting.replayed.filter(|_| starting.status.is_some()) else {
            return "the standby's server does not run yet".to_owned();
        };
        let (then, before) = *self.first.get_or_insert((now, replayed));
        let rate = match (now.saturating_duration_since(then), replayed.0.saturating_sub(before.0)) {
            (Duration::ZERO, _) => String::new(),
            (time, bytes) => format!(", {}/s", pretty((bytes as f64 / time.as_secs_f64()) as u64)),
        };
        format!(
            "the standby accepts no connections yet, it has replayed WAL up to {replayed} of {target}{rate}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_tell_how_far_a_start_is() {
        let mut replay = Replay::default();
        let begin = Instant::now();
        let mut line = |status: Option<&str>, replayed, seconds| {
            let starting = Starting {
                status: status.map(str::to_owned),
                replayed: Some(Lsn(replayed)),
                stopped_startup: None,
            };
            replay.line(&starting, Lsn(0x0900_0000), begin + Duration::from_secs(seconds))
        };
        assert!(line(None, 0, 0).contains("does not run yet"));
        let said = "the standby accepts no connections yet, it has replayed WAL up to";
        assert_eq!(line(Some("starting"), 0x0200_0000, 1), format!("{said} 0/2000000 of 0/9000000"));
        assert_eq!(
            line(Some("starting"), 0x0300_0000, 5),
            format!("{said} 0/3000000 of 0/9000000, 4.0 MB/s")
        );
        assert_eq!(
            line(Some("starting"), 0x0300_0000, 9),
            format!("{said} 0/3000000 of 0/9000000, 2.0 MB/s")
        );
    }

    #[test]
    fn a_start_is_told_before_it_is_given_up() {
        assert_eq!(interval(Duration::from_secs(60)), NOTICE);
        assert_eq!(interval(Duration::from_secs(2)), Duration::from_secs(1));
    }
}
