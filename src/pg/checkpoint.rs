//! Checkpoints, which remove WAL that nothing needs any more.

use std::ffi::c_int;

use pgrx::pg_sys;

use super::{cleanup, compat};

unsafe extern "C-unwind" {
    // pgrx has no binding for it (postmaster/bgwriter.h)
    fn RequestCheckpoint(flags: c_int);
}

/// Asks the checkpointer for a checkpoint at once, and does not wait for it.
#[expect(ffi_unwind_calls, reason = "inside the guard that pgrx's own wrappers use")]
pub(super) fn request() {
    let flags = compat::CHECKPOINT_FAST | pg_sys::CHECKPOINT_FORCE;
    cleanup::quietly("request a checkpoint", || {
        // SAFETY: the server's function, of the same signature from PostgreSQL 13 to 19. The closure owns nothing that an ERROR,
        // which jumps from it to the guard, would skip.
        unsafe { pg_sys::ffi::pg_guard_ffi_boundary(|| RequestCheckpoint(flags as c_int)) }
    });
}
