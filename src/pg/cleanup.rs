//! Running clean-up code from `Drop`, whatever state the server is in.

use std::io::Write;
use std::panic::AssertUnwindSafe;

use pgrx::{PgTryBuilder, pg_sys};

/// Runs `act` if it is dropped by an ERROR that unwinds, so that an interrupted run leaves its line in the
/// server log, too.
pub(crate) fn while_unwinding<F: FnMut()>(what: &'static str, act: F) -> WhileUnwinding<F> {
    WhileUnwinding { what, act }
}

/// See [`while_unwinding`].
pub(crate) struct WhileUnwinding<F: FnMut()> {
    what: &'static str,
    act: F,
}

impl<F: FnMut()> Drop for WhileUnwinding<F> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            quietly(self.what, &mut self.act);
        }
    }
}

/// Runs `undo` so that nothing it raises escapes: a panic in `Drop` during unwinding would abort
/// the process, and with it every session of the server. What it raised is logged as `what`.
pub(super) fn quietly(what: &str, undo: impl FnOnce()) {
    if std::thread::panicking() {
        // SAFETY: on an ERROR the frame that failed may have left lightweight locks behind, which the
        // (sub)transaction's abort releases as one of its first acts. That abort is still to come, and
        // `undo` may want one of them; a lock is not re-entrant. Releasing them now is the same act earlier.
        unsafe { pg_sys::LWLockReleaseAll() };
    }
    let failure = PgTryBuilder::new(AssertUnwindSafe(|| {
        undo();
        None
    }))
    .catch_others(|error| Some(format!("{error:?}")))
    .catch_rust_panic(|error| Some(format!("{error:?}")))
    .execute();
    if let Some(failure) = failure {
        // not eprintln!, which panics if the log's pipe is closed or its disk is full
        let _ = writeln!(std::io::stderr(), "pgpool_recovery: could not {what}: {failure}");
    }
}
