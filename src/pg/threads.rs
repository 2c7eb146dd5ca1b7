//! Running work beside the backend's main thread.
//!
//! PostgreSQL's code belongs to the main thread alone. Work that blocks runs on another thread that
//! touches no PostgreSQL symbol, while the main thread keeps answering interrupts.

use std::any::Any;
use std::mem::MaybeUninit;
use std::ops::{Deref, DerefMut};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::{Builder, scope};
use std::time::{Duration, Instant};

use pgpool_recovery_core::error::{Error, Kind, Result};
use pgpool_recovery_core::sys::cancel::Cancel;

use super::interrupts::{self, ClientWatch};
use super::{cleanup, horizon, memory};

/// How long the main thread sleeps at most between two looks at interrupts.
const TURN: Duration = Duration::from_millis(50);

/// How long a backend that is terminated, or whose postmaster died, waits for its threads before it exits under them.
const LAST_WAIT: Duration = Duration::from_secs(3);

/// Runs `job` on a thread of its own and returns what it returns.
///
/// Meanwhile this thread calls `tick` at least every 100 ms, acts on interrupts and notices a client
/// that went away. If any of these fails, or an interrupt raises an ERROR, `cancel` is tripped and the
/// thread is joined before the failure goes on its way: `job` must return soon after that, and may
/// borrow from the caller. The statement's snapshot is given back meanwhile where that may be done: `tick` looks nothing up in
/// the catalogs. Should `job` not return (a disk that answers no more), the session can still be
/// terminated. All signals are blocked in the thread and in those it makes.
pub(crate) fn wait<T: Send>(
    cancel: &Cancel,
    tick: &mut dyn FnMut() -> Result<()>,
    job: impl FnOnce() -> Result<T> + Send,
) -> Result<T> {
    memory::set_aside()?;
    // dropped after the threads have ended, and before anything else is looked up
    let _let_go = horizon::let_go();
    scope(|scope| {
        // Never sent to: the receiver wakes when the thread drops its end.
        let (running, finished) = channel::<()>();
        // Declared inside the scope: acts when this closure unwinds, before the scope joins.
        let finished = StopOnUnwind { cancel, finished };
        let thread = {
            let _blocked = BlockedSignals::all();
            Builder::new()
                .name("pgpool_recovery".to_owned())
                .spawn_scoped(scope, move || {
                    let _running = running;
                    catch_unwind(AssertUnwindSafe(job))
                })
                .map_err(|error| Error::no_thread(&error))?
        };

        let mut client = ClientWatch::new();
        let (mut failure, mut in_vain) = (None, None);
        while runs(&finished.finished, TURN) {
            if interrupts::terminating() {
                cancel.trip();
                runs(&finished.finished, LAST_WAIT);
            }
            interrupts::check();
            // asked in any case: threads wait for this
            let has_memory = memory::check();
            if failure.is_none()
                && let Err(error) = has_memory.and_then(|()| client.check()).and_then(|()| tick())
            {
                cancel.trip_with(error.clone());
                failure = Some(error);
            }
            memory::end_if_in_vain(&mut in_vain);
        }
        let outcome = thread.join().unwrap_or_else(Err);
        // what arrived meanwhile is acted on here, not wherever the server looks next
        interrupts::check();
        match (failure, outcome) {
            (Some(error), _) => Err(error),
            (None, Ok(result)) => result,
            (None, Err(panic)) => Err(Error::new(Kind::Internal, "a worker thread panicked")
                .detail(format!("The panic says: {}.", panic_text(&*panic)))
                .hint("This is a bug in pgpool_recovery; please report it with the server log.")),
        }
    })
}

/// Runs a step, as [`wait`] does, that takes what was owned and returns what it has after. Neither is dropped by this
/// thread, whatever happens.
pub(crate) fn step<A: Send + 'static, B: Send + 'static, T: Send>(
    owned: DropAside<A>,
    cancel: &Cancel,
    tick: &mut dyn FnMut() -> Result<()>,
    job: impl FnOnce(A) -> Result<(B, T)> + Send,
) -> Result<(DropAside<B>, T)> {
    let mut next = DropAside::new(None);
    let slot: &mut Option<B> = &mut next;
    let told = wait(cancel, tick, move || {
        let (after, told) = job(owned.into_inner())?;
        *slot = Some(after);
        Ok(told)
    })?;
    let next = next.into_inner().ok_or_else(|| Error::new(Kind::Internal, "a step left nothing behind"))?;
    Ok((DropAside::new(next), told))
}

/// Sleeps, answering interrupts.
pub(crate) fn pause(duration: Duration) {
    let end = Instant::now() + duration;
    loop {
        interrupts::check();
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        std::thread::sleep(left.min(TURN));
    }
}

/// Owns something whose drop joins threads, and drops it on a thread of its own: the session stays
/// terminable should they not end.
pub(crate) struct DropAside<T: Send + 'static>(Option<T>);

impl<T: Send> DropAside<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(Some(value))
    }

    /// Gives up what it owns.
    pub(crate) fn into_inner(mut self) -> T {
        self.0.take().expect("taken by drop only")
    }
}

impl<T: Send> Deref for DropAside<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_ref().expect("taken by drop only")
    }
}

impl<T: Send> DerefMut for DropAside<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.0.as_mut().expect("taken by drop only")
    }
}

impl<T: Send + 'static> Drop for DropAside<T> {
    fn drop(&mut self) {
        let Some(value) = self.0.take() else { return };
        let (running, finished) = channel::<()>();
        let blocked = BlockedSignals::all();
        // where no thread can be made, the value is dropped here
        let thread = Builder::new().name("pgpool_recovery".to_owned()).spawn(move || {
            let _running = running;
            drop(value);
        });
        drop(blocked);
        wait_terminably(&finished);
        let _ = thread.map(std::thread::JoinHandle::join);
    }
}

/// Stops the thread that holds the channel's other end, and waits for it, if it is dropped by an ERROR
/// that unwinds.
struct StopOnUnwind<'a> {
    cancel: &'a Cancel,
    finished: Receiver<()>,
}

impl Drop for StopOnUnwind<'_> {
    fn drop(&mut self) {
        // On the way out of a normal return the thread is joined and tripping would spoil a switch
        // that the caller goes on using.
        if std::thread::panicking() {
            self.cancel.trip();
            wait_terminably(&self.finished);
        }
    }
}

/// Whether the thread that holds the channel's other end still runs after this time.
fn runs(finished: &Receiver<()>, time: Duration) -> bool {
    finished.recv_timeout(time) == Err(RecvTimeoutError::Timeout)
}

/// Waits for a thread where no ERROR may be raised. A session that is terminated meanwhile, or loses its postmaster, exits
/// under it; other sessions need not wait for this one.
fn wait_terminably(finished: &Receiver<()>) {
    let mut in_vain = None;
    while runs(finished, TURN) {
        interrupts::answer_barrier();
        // the thread has been told to end: what failed is known to be of no use
        memory::forget();
        memory::end_if_in_vain(&mut in_vain);
        if interrupts::terminating() && runs(finished, LAST_WAIT) {
            // a pending termination goes before a cancel: this does not return
            cleanup::quietly("end the session", interrupts::check);
        }
    }
}

pub(super) fn panic_text(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "(no text)".to_owned())
}

/// Keeps signals away from threads made while it lives: PostgreSQL's handlers must run in the main
/// thread, and a thread inherits the mask of its maker.
struct BlockedSignals(libc::sigset_t);

impl BlockedSignals {
    fn all() -> Self {
        let mut all = MaybeUninit::uninit();
        let mut before = MaybeUninit::uninit();
        // SAFETY: both sets are initialised by the calls that get their addresses; blocking signals for
        // the few instructions of a thread's creation delays PostgreSQL's handlers, nothing else.
        unsafe {
            libc::sigfillset(all.as_mut_ptr());
            libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
            Self(before.assume_init())
        }
    }
}

impl Drop for BlockedSignals {
    fn drop(&mut self) {
        // SAFETY: restores the mask that `all` saved.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.0, std::ptr::null_mut()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_made_under_the_guard_has_every_signal_blocked() {
        let blocked = |signal| {
            let mut mask = MaybeUninit::uninit();
            // SAFETY: a null new mask only reads the current one.
            unsafe {
                libc::pthread_sigmask(libc::SIG_SETMASK, std::ptr::null(), mask.as_mut_ptr());
                libc::sigismember(mask.as_ptr(), signal) == 1
            }
        };
        let guard = BlockedSignals::all();
        let inside = std::thread::spawn(move || blocked(libc::SIGTERM) && blocked(libc::SIGUSR1));
        drop(guard);
        assert!(inside.join().expect("thread"));
        assert!(!blocked(libc::SIGTERM));
    }

    #[test]
    fn panics_become_text() {
        let panic = catch_unwind(|| panic!("it was {}", 7)).expect_err("panics");
        assert_eq!(panic_text(&*panic), "it was 7");
    }
}
