//! Does the primary let a slot live as long as its standby needs it?
//!
//! While a run goes on, WAL is sent as it is flushed, and the slot follows what is durable on the target: at the end of each
//! segment, and every 16 MB. So a run needs a few segments, however long it takes. What a slot has to keep beyond that is written
//! before the link for WAL is there (the primary is listed), while the target is slower than the primary, and from the end of the
//! copy until the standby streams.

use serde::Deserialize;

use crate::error::{Error, Kind};
use crate::preflight::Finding;
use crate::sys::size::pretty;

/// The step of the check that this is.
const STEP: &str = "slot_limits";

/// Segments that are on their way to a target that keeps up: the one that is being written and the one before.
const ON_THEIR_WAY: u64 = 2;

/// How long a target may be behind, or a standby take until it streams, without losing its slot, seconds.
const PATIENCE: u64 = 300;

/// The shortest time that tells how much a server writes, seconds.
const TELLING: u64 = 30;

/// How long a slot that no standby uses should live, seconds.
const IDLE: u64 = 3600;

/// What limits the slots of a primary, and how much it writes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub struct Limits {
    /// `max_slot_wal_keep_size`, bytes; negative: there is no limit.
    pub keep: i64,
    /// `idle_replication_slot_timeout`, seconds; 0, or `None` of a server that does not know it: there is none.
    pub idle: Option<u64>,
    /// WAL since the redo point of the last checkpoint, bytes.
    pub written: u64,
    /// How long ago that was, seconds.
    pub within: u64,
}

/// Whether the slot of a standby will live. `segment`: bytes of a WAL segment.
pub fn finding(limits: Limits, segment: u64) -> Finding {
    let problems = too_little(limits, segment).into_iter().chain(too_soon(limits)).collect();
    let keep = u64::try_from(limits.keep).map_or_else(|_| "any amount".to_owned(), pretty);
    let idle = limits.idle.filter(|idle| *idle > 0);
    let idle = idle.map_or_else(String::new, |idle| format!(", and may be unused for {}", time(idle)));
    Finding::advice_of(STEP, format!("a slot may keep {keep} of WAL{idle}"), problems)
}

/// Why the limit of WAL is too small, if it is.
fn too_little(Limits { keep, written, within, .. }: Limits, segment: u64) -> Option<Error> {
    let keep = u64::try_from(keep).ok()?;
    // the server counts whole segments
    let segments = keep / segment.max(1);
    let shown = pretty(keep);
    if segments < ON_THEIR_WAY {
        return Some(
            Error::new(Kind::WrongState, format!("max_slot_wal_keep_size is {shown}, which is less than a run needs"))
                .detail(format!(
                    "The WAL that is on its way to the target takes {ON_THEIR_WAY} segments of {}. A slot that keeps less is lost at the \
                     next checkpoint, and the recovery with it.",
                    pretty(segment)
                ))
                .hint("Increase max_slot_wal_keep_size on the primary; no restart is needed."),
        );
    }
    let seconds = time_until(segments * segment, written, within).filter(|seconds| *seconds < PATIENCE)?;
    Some(
        Error::new(
            Kind::WrongState,
            format!("max_slot_wal_keep_size is {shown}, which this primary has lately written in {}", time(seconds)),
        )
        .detail(
            "A target that is slower than the primary for as long as that, or a standby that does not stream so soon after the copy, \
             loses its slot at the next checkpoint and has to be recovered again.",
        )
        .hint("Increase max_slot_wal_keep_size on the primary, as far as pg_wal has room; no restart is needed."),
    )
}

/// Why the limit of time is too short, if it is.
fn too_soon(limits: Limits) -> Option<Error> {
    let idle = limits.idle.filter(|idle| (1..IDLE).contains(idle))?;
    Some(
        Error::new(Kind::WrongState, format!("idle_replication_slot_timeout is {}", time(idle)))
            .detail("A recovery leaves a slot that nothing uses until the standby streams, and so does a standby that is stopped. One that is not used for that long is invalidated by the next checkpoint, and the standby has to be recovered again.")
            .hint("Set idle_replication_slot_timeout to a few hours or to 0 on the primary, or start the standby at once. No restart is needed."),
    )
}

/// How many seconds writing `bytes` takes, if `written` bytes took `within` seconds; `None`: not known, or for ever.
fn time_until(bytes: u64, written: u64, within: u64) -> Option<u64> {
    if within < TELLING || written == 0 {
        return None;
    }
    u64::try_from(u128::from(bytes) * u128::from(within) / u128::from(written)).ok()
}

fn time(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        _ => format!("{} h", seconds / 3600),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MB: u64 = 1 << 20;
    const SEGMENT: u64 = 16 * MB;

    fn limits(keep: i64) -> Limits {
        Limits { keep: keep * 1024 * 1024, ..Limits::default() }
    }

    fn told(limits: Limits) -> String {
        let finding = finding(limits, SEGMENT);
        assert!(finding.is_advice);
        let error = finding.answer.expect_err("too little");
        format!("{}\n{}\n{}", error.message, error.detail.expect("why"), error.hint.expect("what to do"))
    }

    #[test]
    fn without_limits_a_slot_lives() {
        for unlimited in [
            Limits { keep: -1, ..Limits::default() },
            Limits { keep: -1, idle: Some(0), written: 1 << 50, within: 60 },
        ] {
            assert_eq!(
                finding(unlimited, SEGMENT).answer,
                Ok("a slot may keep any amount of WAL".to_owned())
            );
        }
        let roomy = Limits { idle: Some(86_400), written: 100 * MB, within: 100, ..limits(1024) };
        let answer = finding(roomy, SEGMENT).answer;
        assert_eq!(answer, Ok("a slot may keep 1.0 GB of WAL, and may be unused for 24 h".to_owned()));
    }

    #[test]
    fn a_run_needs_the_segments_that_are_on_their_way() {
        for keep in [0, 1, 16, 31] {
            assert!(told(limits(keep)).contains("less than a run needs"), "{keep}");
        }
        assert!(finding(limits(32), SEGMENT).answer.is_ok());
        assert!(finding(limits(4), MB).answer.is_ok(), "of smaller segments");
    }

    #[test]
    fn a_limit_is_judged_by_what_the_server_writes() {
        // 64 MB take 40 s
        let busy = Limits { written: 96 * MB, within: 60, ..limits(64) };
        assert!(told(busy).starts_with(
            "max_slot_wal_keep_size is 64.0 MB, which this primary has lately written in 40 s\n"
        ));
        assert!(finding(Limits { within: 3600, ..busy }, SEGMENT).answer.is_ok());
        // a burst after a checkpoint, and a server that writes nothing, tell nothing
        assert!(finding(Limits { within: 29, ..busy }, SEGMENT).answer.is_ok());
        assert!(finding(Limits { written: 0, ..busy }, SEGMENT).answer.is_ok());
    }

    #[test]
    fn a_slot_that_is_not_used_must_live_for_a_while() {
        let unlimited = Limits { keep: -1, ..Limits::default() };
        assert!(
            told(Limits { idle: Some(60), ..unlimited })
                .starts_with("idle_replication_slot_timeout is 60 s\n")
        );
        assert!(finding(Limits { idle: Some(IDLE), ..unlimited }, SEGMENT).answer.is_ok());
        let both = told(Limits { idle: Some(600), ..limits(1) });
        assert!(both.contains("less than a run needs; idle_replication_slot_timeout is 10 min\n"), "{both}");
    }

    proptest! {
        #[test]
        fn more_is_never_worse(
            keep in 0i64..1 << 40, idle in 0u64..100_000, written in any::<u64>(), within in any::<u64>(), segment in 0u64..1 << 31,
        ) {
            let limits = Limits { keep, idle: Some(idle), written, within };
            if finding(limits, segment).answer.is_ok() {
                let more = [Limits { keep: keep * 2, ..limits }, Limits { keep: -1, ..limits }, Limits { idle: None, ..limits }];
                for more in more {
                    prop_assert!(finding(more, segment).answer.is_ok(), "{:?}", more);
                }
            }
        }
    }
}
