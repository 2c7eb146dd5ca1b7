//! The time that a promotion has, with all that belongs to it.

use std::time::{Duration, Instant};

use pgpool_recovery_core::error::{Error, Kind, Result};

use crate::pg::threads;

/// How often a state is looked at that is waited for.
pub(super) const LOOK: Duration = Duration::from_millis(50);

/// The time that all of it has.
pub(crate) struct Clock {
    begin: Instant,
    deadline: Duration,
}

impl Clock {
    pub(super) fn new(deadline: Duration) -> Self {
        Self { begin: Instant::now(), deadline }
    }

    /// The same, with so much time from now on at least.
    pub(super) fn with_at_least(&self, time: Duration) -> Self {
        Self { begin: self.begin, deadline: self.deadline.max(self.elapsed() + time) }
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.begin.elapsed()
    }

    pub(crate) fn left(&self) -> Duration {
        self.deadline.saturating_sub(self.begin.elapsed())
    }

    /// How long it is in all, seconds.
    pub(super) const fn seconds(&self) -> u64 {
        self.deadline.as_secs()
    }

    pub(super) fn over(&self, what: &str) -> Error {
        Error::new(Kind::Canceled, format!("{what} took too long"))
            .detail(format!("The promotion has {} s for all of it.", self.deadline.as_secs()))
            .hint("Option \"deadline\" gives it more.")
    }

    /// Waits a moment for something; fails when the time is over.
    pub(super) fn wait(&self, what: &str) -> Result<()> {
        if self.left().is_zero() {
            return Err(self.over(what));
        }
        threads::pause(LOOK);
        Ok(())
    }
}
