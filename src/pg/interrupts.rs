//! Cancel, terminate, a postmaster that died, and clients that went away.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use pgpool_recovery_core::error::{Error, Kind, Result};
use pgrx::pg_sys;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{cleanup, compat, log, postmaster};

/// How often the client's connection is looked at.
const CLIENT_CHECK: Duration = Duration::from_secs(1);

/// Lets PostgreSQL act on cancel (ERROR: unwinds from here), terminate (FATAL: does not return and
/// unwinds nothing), timeouts, and barriers. Call at least every 100 ms.
///
/// If the postmaster has died this ends the process, as PostgreSQL's own waits do (`WL_EXIT_ON_PM_DEATH`): the shared
/// memory that a backend keeps in use prevents the next start of the server.
pub(crate) fn check() {
    if !postmaster::lives() {
        let message = "terminating connection due to unexpected postmaster exit";
        cleanup::quietly("log the end of the session", || log::log(message));
        // SAFETY: what WaitEventSetWait() calls. Like a FATAL error it runs what is registered for a backend's exit and
        // unwinds nothing.
        unsafe { pg_sys::proc_exit(1) };
    }
    pgrx::check_for_interrupts!();
}

/// A background worker's first act: from here on signals reach it, and it must [`check`].
///
/// A worker that sets no handler of its own has `bgworker_die()` (bgworker.c), which raises FATAL inside the signal handler,
/// wherever the process is: in the middle of a COMMIT that is a PANIC, which ends every session of the server.
pub(super) fn worker_begins() {
    // SAFETY: called once, when a background worker begins. The order is that of worker_spi.c.
    unsafe {
        compat::remember_sigterm();
        pg_sys::BackgroundWorkerUnblockSignals();
    }
}

/// Whether the next [`check`] will end the process. What must not outlive it is stopped before.
pub(crate) fn terminating() -> bool {
    // SAFETY: reads a flag that a signal handler sets (sig_atomic_t); a stale value is corrected by
    // the next call.
    let is_asked_to = unsafe { (&raw const pg_sys::ProcDiePending).read_volatile() != 0 };
    is_asked_to || !postmaster::lives()
}

/// Answers a barrier, and acts on nothing else: for where no ERROR may be raised. A DROP DATABASE in any session waits
/// until every backend has closed the files that it had open (PROCSIGNAL_BARRIER_SMGRRELEASE, PostgreSQL 15 and later).
pub(super) fn answer_barrier() {
    // SAFETY: reads variables of this process; a signal handler sets the first one (sig_atomic_t), and a stale value is
    // corrected by the next call. The conditions are those of ProcessInterrupts() in postgres.c.
    let is_due = unsafe {
        (&raw const pg_sys::ProcSignalBarrierPending).read_volatile() != 0
            && pg_sys::InterruptHoldoffCount == 0
            && pg_sys::CritSectionCount == 0
    };
    if is_due {
        // SAFETY: what ProcessInterrupts() calls. It closes files that are opened again when they are wanted; after an
        // ERROR it remembers the barrier for the next call (procsignal.c).
        cleanup::quietly("answer a barrier", || unsafe { pg_sys::ProcessProcSignalBarrier() });
    }
}

/// Notices that the client closed its connection. PostgreSQL itself looks only when it reads or writes
/// (or by `client_connection_check_interval`, off by default), and Pgpool-II sends nothing for hours.
pub(crate) struct ClientWatch {
    last: Instant,
}

impl ClientWatch {
    /// A watch that looks at most once a second.
    pub(crate) fn new() -> Self {
        Self { last: Instant::now() }
    }

    /// Fails if the client is gone.
    pub(crate) fn check(&mut self) -> Result<()> {
        if self.last.elapsed() < CLIENT_CHECK {
            return Ok(());
        }
        self.last = Instant::now();
        if client_gone() {
            return Err(Error::new(Kind::ClientLost, "connection to client lost")
                .detail("The client that called the function is gone, so the recovery was ended.")
                .hint("Run the recovery again; it sends only what is missing."));
        }
        Ok(())
    }
}

/// Whether a small message can be sent without waiting for the client: its socket has room for more. Linux says so of
/// a unix socket while three quarters of its buffer are free, of TCP while a third is.
pub(super) fn client_reads() -> bool {
    client_is(PollFlags::OUT).is_none_or(|ready| ready.contains(PollFlags::OUT))
}

/// Whether the client's socket was closed by its peer. Sessions without a client never are.
fn client_gone() -> bool {
    let gone = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
    client_is(PollFlags::RDHUP).is_some_and(|ready| ready.intersects(gone))
}

/// What the client's socket is ready for, of what is asked; `None` where there is no client.
fn client_is(asked: PollFlags) -> Option<PollFlags> {
    let socket = compat::client_socket()?;
    // SAFETY: open as long as the session lives; proc_exit leaves it to the kernel to close.
    let socket = unsafe { BorrowedFd::borrow_raw(socket) };
    let mut fds = [PollFd::from_borrowed_fd(socket, asked)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    // An interrupted poll says nothing; the next look will.
    let looked = poll(&mut fds, Some(&now)).is_ok();
    Some(if looked { fds[0].revents() } else { PollFlags::empty() })
}
