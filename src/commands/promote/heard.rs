//! This standby's own walreceiver. A message that it gets after the call began was sent by a server that lives, whatever comes of
//! the question to that server: a new connection may fail where an old one goes on.
//!
//! That it says it streams proves nothing: it says so for a minute after the primary's host has lost its power.

use std::time::{Duration, Instant};

use pgpool_recovery_core::error::Result;

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

/// From when on messages count.
#[derive(Debug, Clone, Copy)]
pub(super) struct Heard {
    begin: Instant,
    since: i64,
}

impl Heard {
    pub(super) fn since_now() -> Result<Self> {
        Ok(Self { begin: Instant::now(), since: catalog::walreceiver()?.now })
    }

    /// Whether a message has come since. Waits for one only while WAL is streamed, and leaves `reserve` of the time.
    pub(super) fn lives(&self, wait: Wait, clock: &Clock, reserve: Duration) -> Result<bool> {
        loop {
            let Some(received) = catalog::walreceiver()?.received else { return Ok(false) };
            let has_come = received > self.since;
            let patience = match (wait, has_come) {
                (Wait::Unfenced, true) => return Ok(true),
                (Wait::Fenced, false) => return Ok(false),
                (Wait::Unfenced, false) => PATIENCE,
                (Wait::Fenced, true) => LAST_WORDS,
            };
            if self.begin.elapsed() >= patience || clock.left() <= reserve {
                return Ok(has_come);
            }
            threads::pause(LOOK);
        }
    }
}
