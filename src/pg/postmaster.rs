//! The process that all of the server's others are children of.

use pgrx::pg_sys;

unsafe extern "C" {
    // pgrx has no binding for it (storage/pmsignal.h)
    fn PostmasterIsAliveInternal() -> bool;
}

/// Asks the pipe whose other end the postmaster alone has open. The signal that tells of its death is no substitute: the
/// flag that it sets is for PostgreSQL's own waits, which reset it.
pub(super) fn lives() -> bool {
    // SAFETY: reads a variable of this process and, if there is a postmaster, what is in a pipe, without waiting. What
    // that raises, if the pipe is not one, is FATAL.
    unsafe { !pg_sys::IsUnderPostmaster || PostmasterIsAliveInternal() }
}

/// Whether the postmaster is process 1, as in a container without an init. The system then makes it the parent of every
/// orphan, and it takes one that ends with another status than 0 or 1 for a crashed session of its own: it ends them all
/// (`CleanupBackend` in postmaster.c).
pub(crate) fn is_process_1() -> bool {
    // SAFETY: reads a variable of this process that is set when it begins.
    unsafe { pg_sys::PostmasterPid == 1 }
}

/// Its process, which has the sockets that this server listens on.
pub(crate) fn process() -> u32 {
    // SAFETY: reads a variable of this process that is set when it begins.
    unsafe { pg_sys::PostmasterPid }.unsigned_abs()
}
