//! Stopping a run from outside.
//!
//! A run consists of threads that mostly block in reads and writes. To stop them, one
//! trips the shared [`Cancel`]; everything that can block registers how to be woken.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::sys::lock::lock;

/// Wakes something that blocks (shuts a socket down, closes a queue).
pub type Waker = Box<dyn FnOnce() + Send>;

/// A one-way switch shared by all threads of one run. Clones share the switch.
#[derive(Clone, Default)]
pub struct Cancel(Arc<Inner>);

#[derive(Default)]
struct Inner {
    tripped: AtomicBool,
    wakers: Mutex<Vec<Waker>>,
    reason: Mutex<Option<Error>>,
}

impl Cancel {
    /// A switch that is not tripped.
    pub fn new() -> Self {
        Self::default()
    }

    /// A switch that trips with this one, and that can trip without it.
    pub fn child(&self) -> Self {
        let child = Self::new();
        // a strong reference would keep the parent by its own list
        let (parent, switch) = (Arc::downgrade(&self.0), child.clone());
        self.on_trip(Box::new(move || {
            if !switch.is_tripped() {
                let cause = parent.upgrade().and_then(|parent| lock(&parent.reason).clone());
                switch.trip_with(cause.unwrap_or_else(Error::canceled));
            }
        }));
        child
    }

    /// Trips the switch and wakes everything that registered. Tripping twice is harmless.
    pub fn trip(&self) {
        self.0.tripped.store(true, Ordering::SeqCst);
        let wakers = std::mem::take(&mut *lock(&self.0.wakers));
        for wake in wakers {
            wake();
        }
    }

    /// Trips the switch and keeps the first cause, so that every thread of the run fails with it
    /// instead of with the broken pipe that follows.
    pub fn trip_with(&self, cause: Error) {
        lock(&self.0.reason).get_or_insert(cause);
        self.trip();
    }

    /// Whether the switch was tripped.
    pub fn is_tripped(&self) -> bool {
        self.0.tripped.load(Ordering::SeqCst)
    }

    /// The error of a tripped switch: the cause given, or "canceled".
    pub fn cause(&self) -> Option<Error> {
        self.is_tripped().then(|| lock(&self.0.reason).clone().unwrap_or_else(Error::canceled))
    }

    /// Fails if the switch was tripped.
    pub fn check(&self) -> Result<()> {
        self.cause().map_or(Ok(()), Err)
    }

    /// Sleeps; fails as soon as the switch trips.
    pub fn sleep(&self, duration: Duration) -> Result<()> {
        let (wake, woken) = channel();
        self.on_trip(Box::new(move || {
            let _ = wake.send(());
        }));
        match woken.recv_timeout(duration) {
            Err(RecvTimeoutError::Timeout) => Ok(()),
            Ok(()) | Err(RecvTimeoutError::Disconnected) => self.check(),
        }
    }

    /// Runs `wake` when the switch trips; at once if it has.
    pub fn on_trip(&self, wake: Waker) {
        let mut wakers = lock(&self.0.wakers);
        if self.is_tripped() {
            drop(wakers);
            wake();
        } else {
            wakers.push(wake);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    #[test]
    fn a_child_trips_with_its_parent_and_not_the_other_way_round() {
        let (parent, cause) = (Cancel::new(), Error::new(Kind::DiskFull, "full"));
        let (ended, child) = (parent.child(), parent.child());
        ended.trip();
        assert!(!parent.is_tripped() && !child.is_tripped());
        parent.trip_with(cause.clone());
        assert_eq!(child.cause(), Some(cause.clone()));
        assert_eq!(parent.child().cause(), Some(cause), "one that is made too late");
        assert_eq!(ended.cause(), Some(Error::canceled()), "its own end came first");
    }

    #[test]
    fn who_sleeps_wakes_when_it_trips() {
        let cancel = Cancel::new();
        assert_eq!(cancel.sleep(Duration::from_millis(1)), Ok(()));
        let sleeper = {
            let cancel = cancel.clone();
            std::thread::spawn(move || cancel.sleep(Duration::from_secs(600)))
        };
        cancel.trip();
        assert_eq!(sleeper.join().expect("no panic"), Err(Error::canceled()));
        assert_eq!(cancel.sleep(Duration::from_secs(600)), Err(Error::canceled()), "it has tripped");
    }

    #[test]
    fn wakes_once_and_late_registrants_at_once() {
        let cancel = Cancel::new();
        let woken = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&woken);
        cancel.on_trip(Box::new(move || flag.store(true, Ordering::SeqCst)));
        assert!(cancel.check().is_ok());
        cancel.trip();
        assert!(woken.swap(false, Ordering::SeqCst));
        cancel.trip();
        assert!(!woken.load(Ordering::SeqCst));
        let flag = Arc::clone(&woken);
        cancel.on_trip(Box::new(move || flag.store(true, Ordering::SeqCst)));
        assert!(woken.load(Ordering::SeqCst));
    }

    #[test]
    fn keeps_the_first_cause() {
        let cancel = Cancel::new();
        cancel.trip_with(Error::new(Kind::DiskFull, "first"));
        cancel.trip_with(Error::new(Kind::Io, "second"));
        assert_eq!(cancel.check().expect_err("tripped").message, "first");
    }
}
