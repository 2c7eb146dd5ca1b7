//! This standby's own walreceiver. A message that it gets after the call began, by whatever clock, was sent by a server that lives, whatever comes of
//! the question to that server: a new connection may fail where an old one goes on.
//!
//! That it says it streams proves nothing: it says so for a minute after the primary's host has lost its power.

use std::time::{Duration, Instant};

use pgpool_recovery_core::error::Result;
use pgpool_recovery_core::wire::protocol::upstream::Told;

use crate::commands::clock::{Clock, LOOK};
use crate::pg::{catalog, threads};

/// How long a message may be on its way while WAL is streamed: as long as a walreceiver lets pass between two of its own
/// (wal_receiver_status_interval).
const PATIENCE: Duration = Duration::from_secs(10);

/// How long what a server has sent before it was stopped may be on its way, until the end of the stream follows it.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Whose messages are looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wait {
    /// Of a server that nobody has stopped: they may take a while.
    Unfenced,
    /// Of another one than the one that was stopped: those of that one come to an end.
    Fenced,
}

/// What is known of a server by them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// One has come.
    Lives,
    /// None has, in all the time that one may take.
    Silent,
    /// None has, in too little time.
    Unknown(String),
}

/// From when on messages count.
#[derive(Debug, Clone, Copy)]
pub(super) struct Heard {
    begin: Instant,
    /// When the last message before had come.
    last: Option<i64>,
}

impl Heard {
    pub(super) fn since_now() -> Result<Self> {
        Ok(Self { begin: Instant::now(), last: catalog::walreceiver()?.received })
    }

    /// Whether a message has come since. Waits for one only while WAL is streamed, and leaves `reserve` of the time.
    /// What standbys send does not count, by what the server that is followed has `told`.
    pub(super) fn verdict(
        &self,
        wait: Wait,
        told: &Told,
        clock: &Clock,
        reserve: Duration,
    ) -> Result<Verdict> {
        loop {
            let found = catalog::walreceiver()?;
            let is_standbys = found.sender.is_some_and(|sender| told.is_standbys(&sender));
            let Some(received) = found.received.filter(|_| !is_standbys) else { return Ok(Verdict::Silent) };
            let has_come = Some(received) != self.last;
            let patience = match (wait, has_come) {
                (Wait::Unfenced, true) => return Ok(Verdict::Lives),
                (Wait::Fenced, false) => return Ok(Verdict::Silent),
                (Wait::Unfenced, false) => PATIENCE,
                (Wait::Fenced, true) => LAST_WORDS,
            };
            let waited = self.begin.elapsed();
            let is_over = waited >= patience;
            if is_over || clock.left() <= reserve {
                return Ok(match has_come {
                    true => Verdict::Lives,
                    false if is_over => Verdict::Silent,
                    false => Verdict::Unknown(format!(
                        "this standby streams from it, and \"deadline\" leaves {:.1} s, not {} s, for a message of it",
                        waited.as_secs_f32(),
                        patience.as_secs()
                    )),
                });
            }
            threads::pause(LOOK);
        }
    }
}
