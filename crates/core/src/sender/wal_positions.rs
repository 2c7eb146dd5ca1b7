//! How far the WAL of a run is: flushed on the primary, sent, durable on the target.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use pgdata::wal::Lsn;

use crate::error::{Error, Kind, Result};
use crate::sys::cancel::Cancel;
use crate::sys::lock::lock;

/// The positions, shared by the main thread of a backend, which knows what is flushed and holds the slot, and the threads that
/// send WAL and hear what is durable. None of them goes back.
#[derive(Debug, Default)]
pub struct WalPositions {
    now: Mutex<Now>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Now {
    flushed: Lsn,
    sent: Lsn,
    durable: Lsn,
    /// Where the run's WAL ends, once that is known.
    end: Option<Lsn>,
}

impl Now {
    fn has_ended(&self) -> bool {
        self.end.is_some_and(|end| self.durable >= end)
    }
}

impl WalPositions {
    /// The server has flushed its WAL so far. What it writes after the end of the backup is left to the standby.
    pub fn set_flushed(&self, position: Lsn) {
        let mut now = lock(&self.now);
        if position > now.flushed && now.end.is_none() {
            now.flushed = position;
            self.changed.notify_all();
        }
    }

    /// The WAL that the target needs is flushed, and ends here: at the end of a segment, beyond which none was told to be flushed.
    pub(super) fn end_at(&self, end: Lsn) {
        let mut now = lock(&self.now);
        now.end = Some(end);
        now.flushed = end;
        self.changed.notify_all();
    }

    /// The target has nothing before `start`, and goes on there.
    pub(super) fn begin(&self, start: Lsn, durable: Lsn) -> Result<()> {
        if durable != start {
            return Err(claimed(durable).detail(format!("Nothing was sent yet, and WAL begins at {start}.")));
        }
        let mut now = lock(&self.now);
        (now.sent, now.durable) = (durable, durable);
        Ok(())
    }

    pub(super) fn set_sent(&self, position: Lsn) {
        lock(&self.now).sent = position;
    }

    /// Fails if the receiver claims what it cannot have.
    pub(super) fn set_durable(&self, position: Lsn) -> Result<()> {
        let mut now = lock(&self.now);
        // a frame may be answered before the thread that sent it comes to say so
        let most = now.flushed.max(now.sent);
        if position < now.durable || position > most {
            return Err(claimed(position)
                .detail(format!("It was durable up to {} and is flushed up to {most}.", now.durable)));
        }
        now.durable = position;
        self.changed.notify_all();
        Ok(())
    }

    /// How far WAL is sent, or going to be: what the server has flushed, and not beyond the end of the run's WAL.
    pub fn flushed(&self) -> Lsn {
        lock(&self.now).flushed
    }

    /// All WAL before this position is durable on the target; 0 before any is.
    pub fn durable(&self) -> Lsn {
        lock(&self.now).durable
    }

    /// Bytes that the server has flushed and that are not durable on the target yet; 0 before the target has said where it begins.
    pub fn behind(&self) -> u64 {
        let now = lock(&self.now);
        if now.durable.0 == 0 { 0 } else { now.flushed.0.saturating_sub(now.durable.0) }
    }

    /// Whether all of the run's WAL is durable.
    pub(super) fn has_ended(&self) -> bool {
        lock(&self.now).has_ended()
    }

    /// Waits until WAL beyond a position is flushed; returns how far, or `None` at the end.
    pub(super) fn await_beyond(&self, position: Lsn, cancel: &Cancel) -> Result<Option<Lsn>> {
        let now = self.wait(cancel, |now| now.flushed > position || now.end.is_some())?;
        Ok((now.flushed > position).then_some(now.flushed))
    }

    /// Waits until all of the run's WAL is durable; returns where it ends.
    pub(super) fn await_end(&self, cancel: &Cancel) -> Result<Lsn> {
        self.wait(cancel, Now::has_ended).map(|now| now.durable)
    }

    fn wait(&self, cancel: &Cancel, is_over: impl Fn(&Now) -> bool) -> Result<MutexGuard<'_, Now>> {
        let mut now = lock(&self.now);
        loop {
            if is_over(&now) {
                return Ok(now);
            }
            cancel.check()?;
            now = self.changed.wait(now).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Has those who wait look at their cancel.
    pub(super) fn wake(&self) {
        // one that has just looked waits before this is heard
        let _now = lock(&self.now);
        self.changed.notify_all();
    }
}

fn claimed(position: Lsn) -> Error {
    Error::new(Kind::ProtocolViolation, format!("WAL is said to be durable up to {position}"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn nothing_goes_back_and_nothing_is_durable_that_was_not_flushed() {
        let positions = WalPositions::default();
        positions.set_flushed(Lsn(50));
        assert_eq!(positions.behind(), 0, "the target has not begun");
        positions.begin(Lsn(100), Lsn(100)).expect("nothing is there");
        positions.set_flushed(Lsn(500));
        positions.set_flushed(Lsn(400));
        assert_eq!(positions.behind(), 400);
        positions.set_durable(Lsn(300)).expect("it was flushed");
        for wrong in [299, 501] {
            let error = positions.set_durable(Lsn(wrong)).expect_err("a lie");
            assert_eq!(error.kind, Kind::ProtocolViolation);
        }
        assert_eq!((positions.durable(), positions.behind()), (Lsn(300), 200));
    }

    #[test]
    fn nothing_is_durable_before_anything_was_sent() {
        let positions = WalPositions::default();
        for wrong in [99, 101, u64::MAX] {
            let error = positions.begin(Lsn(100), Lsn(wrong)).expect_err("a lie");
            assert_eq!((error.kind, positions.durable()), (Kind::ProtocolViolation, Lsn(0)));
        }
    }

    #[test]
    fn what_is_flushed_after_the_end_does_not_count() {
        let (positions, cancel) = (WalPositions::default(), Cancel::new());
        positions.begin(Lsn(100), Lsn(100)).expect("nothing is there");
        positions.set_flushed(Lsn(200));
        assert_eq!(positions.await_beyond(Lsn(150), &cancel), Ok(Some(Lsn(200))));
        positions.end_at(Lsn(300));
        positions.set_flushed(Lsn(900));
        assert_eq!(positions.await_beyond(Lsn(200), &cancel), Ok(Some(Lsn(300))));
        assert_eq!(positions.await_beyond(Lsn(300), &cancel), Ok(None));
        assert!(!positions.has_ended());
        positions.set_durable(Lsn(300)).expect("it was flushed");
        assert!(positions.has_ended());
        assert_eq!(positions.await_end(&cancel), Ok(Lsn(300)));
    }

    #[test]
    fn a_cancel_wakes_those_who_wait() {
        let (positions, cancel) = (Arc::new(WalPositions::default()), Cancel::new());
        let wake = Arc::clone(&positions);
        cancel.on_trip(Box::new(move || wake.wake()));
        let waits = {
            let (positions, cancel) = (Arc::clone(&positions), cancel.clone());
            std::thread::spawn(move || positions.await_beyond(Lsn(1), &cancel))
        };
        cancel.trip_with(Error::new(Kind::DiskFull, "full"));
        assert_eq!(waits.join().expect("no panic").expect_err("canceled").kind, Kind::DiskFull);
    }
}
