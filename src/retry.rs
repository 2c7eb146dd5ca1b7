//! A call that has lost its target's host tries again: Pgpool-II makes each call only once.

use std::time::{Duration, Instant};

use pgpool_recovery_core::error::Error;

use crate::pg::log;

/// The first pause before another attempt; each further one takes twice as long.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// The longest.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Decides after each attempt whether there is another one.
///
/// What counts is the time without a connection, since an attempt last got further than all before it. So a link that breaks
/// now and then does not end a long run, and one that always breaks at the same place does.
pub(crate) struct Retry {
    /// How long it may be without a connection; 0: there is one attempt.
    patience: Duration,
    spent: Duration,
    pause: Duration,
    /// Most bytes that an attempt has compared.
    furthest: u64,
    /// Why the last attempt ended that had reached the target.
    lost: Option<Error>,
    times: u32,
    /// When the attempt began, or is going to.
    begin: Instant,
}

impl Retry {
    /// The first attempt begins.
    pub(crate) fn new(patience: Duration) -> Self {
        Self {
            patience,
            spent: Duration::ZERO,
            pause: FIRST_PAUSE,
            furthest: 0,
            lost: None,
            times: 0,
            begin: Instant::now(),
        }
    }

    /// How many attempts had reached the target, and why the last of them ended.
    pub(crate) fn lost(&self) -> Option<(u32, &Error)> {
        self.lost.as_ref().map(|lost| (self.times, lost))
    }

    /// An attempt has failed, which had reached the target or not, and compared so many bytes. Returns the pause before the next
    /// one; if there is none, the error that ends the run. The first attempt must have reached the target: a wrong name
    /// or an agent that does not run is told at once.
    pub(crate) fn after(
        &mut self,
        error: &Error,
        is_reached: bool,
        compared: u64,
    ) -> Result<Duration, Error> {
        if is_reached {
            self.times += 1;
        } else {
            self.spent += self.begin.elapsed();
        }
        if !error.kind.may_pass() || self.patience.is_zero() || self.times == 0 {
            return Err(self.told(error.clone()));
        }
        if compared > self.furthest {
            self.furthest = compared;
            self.spent = Duration::ZERO;
        }
        if is_reached {
            self.pause = FIRST_PAUSE;
        }
        let left = self.patience.saturating_sub(self.spent);
        if left.is_zero() {
            return Err(self.told(error.clone()));
        }
        if is_reached {
            self.lost = Some(error.clone());
        }
        let pause = self.pause.min(left);
        self.spent += pause;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        self.begin = Instant::now() + pause;
        Ok(pause)
    }

    /// The error that ends the run, with what it was tried again for.
    fn told(&self, error: Error) -> Error {
        match &self.lost {
            None => error,
            Some(lost) if lost.message == error.message => {
                error.add_detail(&format!("It was tried again; connections that were lost: {}.", self.times))
            }
            Some(lost) => error.add_detail(&format!("Tried again because of: {}.", lost.message)),
        }
    }
}

/// Says that `what` is tried again: to the client each time, to the log when the target was lost.
pub(crate) fn tell(what: &str, error: &Error, is_lost: bool) {
    let message = format!("pgpool_recovery: {what} is tried again: {}", error.message);
    if is_lost {
        log::log_detail(&message, error.detail.as_deref(), error.hint.as_deref());
    }
    log::notice(&message);
}

#[cfg(test)]
mod tests {
    use pgpool_recovery_core::error::Kind;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    fn error(kind: Kind) -> Error {
        Error::new(kind, "it failed")
    }

    /// The pauses after so many attempts that reach nothing, until there is no other one.
    fn pauses(retry: &mut Retry) -> Vec<u64> {
        std::iter::from_fn(|| retry.after(&error(Kind::Unreachable), false, 0).ok())
            .map(|pause| (pause + Duration::from_millis(500)).as_secs())
            .collect()
    }

    #[test]
    fn what_never_was_reached_is_tried_once() {
        for kind in [Kind::Unreachable, Kind::ConnectionLost, Kind::Locked] {
            let refused = Retry::new(PATIENCE).after(&error(kind), false, 0).expect_err("at once");
            assert_eq!(refused, error(kind), "in its own words");
        }
    }

    #[test]
    fn what_was_reached_is_tried_again_in_growing_pauses_for_as_long_as_was_said() {
        let mut retry = Retry::new(PATIENCE);
        assert_eq!(retry.after(&error(Kind::ConnectionLost), true, 5), Ok(FIRST_PAUSE));
        assert_eq!(pauses(&mut retry), [2, 4, 8, 5]);
        assert_eq!(retry.lost(), Some((1, &error(Kind::ConnectionLost))));
        let ended = retry.after(&error(Kind::DiskFull), false, 0).expect_err("no time is left");
        assert!(ended.kind == Kind::DiskFull && ended.detail.is_some(), "{ended}");
    }

    #[test]
    fn what_a_retry_cannot_mend_ends_it_at_once() {
        for kind in [Kind::DiskFull, Kind::InUse, Kind::Canceled, Kind::ClientLost, Kind::ProtocolViolation] {
            let mut retry = Retry::new(PATIENCE);
            assert_eq!(retry.after(&error(kind), true, 5), Err(error(kind)), "its first attempt");
            let mut retry = Retry::new(PATIENCE);
            retry.after(&Error::new(Kind::ConnectionLost, "cut"), true, 5).expect("another");
            let ended = retry.after(&error(kind), false, 0).expect_err("it is there, and says no");
            assert!(ended.kind == kind && ended.detail.is_some_and(|detail| detail.contains("cut")));
        }
        assert!(Retry::new(Duration::ZERO).after(&error(Kind::ConnectionLost), true, 5).is_err());
    }

    #[test]
    fn a_link_that_breaks_now_and_then_is_no_end_while_it_gets_further() {
        let mut retry = Retry::new(Duration::from_secs(3));
        for compared in 1..100 {
            assert_eq!(retry.after(&error(Kind::ConnectionLost), true, compared), Ok(FIRST_PAUSE));
        }
        for _ in 1..3 {
            retry.after(&error(Kind::ConnectionLost), true, 7).expect("some patience is left");
        }
        let ended = retry.after(&error(Kind::ConnectionLost), true, 99).expect_err("never further");
        assert!(ended.detail.expect("how often").contains("lost: 102."));
    }
}
