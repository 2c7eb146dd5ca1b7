//! Running clean-up code from `Drop`, whatever state the server is in.

use std::io::Write;
use std::panic::AssertUnwindSafe;

use pgrx::PgTryBuilder;

use super::error_stack;
use super::subtransaction::abandon;

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
///
/// Not in a subtransaction: most of what is undone (a snapshot, a nest level of settings) belongs to the one that is open. What
/// needs none of that and may fail is better run by [`super::raised::caught`].
pub(super) fn quietly(what: &str, undo: impl FnOnce()) {
    let _aside = error_stack::set_aside();
    if std::thread::panicking() {
        // The frame that failed may have left lightweight locks and more behind. The abort of the (sub)transaction, which lets go
        // of them, is still to come, and `undo` may want one of them; a lock is not re-entrant.
        abandon();
    }
    let failure = PgTryBuilder::new(AssertUnwindSafe(|| {
        undo();
        None
    }))
    .catch_others(|error| Some(format!("{error:?}")))
    .catch_rust_panic(|error| Some(format!("{error:?}")))
    .execute();
    if let Some(failure) = failure {
        // of this one nobody hears, and perhaps no abort follows
        abandon();
        // not eprintln!, which panics if the log's pipe is closed or its disk is full
        let _ = writeln!(std::io::stderr(), "pgpool_recovery: could not {what}: {failure}");
    }
}
