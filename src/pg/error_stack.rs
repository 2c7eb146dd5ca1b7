//! The ERRORs that the server has not done with: `errordata` in elog.c, with room for five. One more is a PANIC of the server.
//!
//! pgrx 0.19 (PostgreSQL 19) leaves an ERROR there when it turns it into a panic, and has the server raise that very one again where
//! the panic leaves Rust. So whoever catches one and goes on takes it off; and as that takes off all of them, whoever does so while
//! another one unwinds sets that one aside first, or its place is empty when it is raised again. pgrx 0.18 takes each off itself.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::null_mut;

use pgrx::pg_sys;
use pgrx::pg_sys::panic::CaughtError;

use super::compat;

/// Takes an ERROR off that was caught. What is returned is raised again by what it says, if it is.
pub(super) fn take(payload: Box<dyn Any + Send>) -> Box<dyn Any + Send> {
    match payload.downcast::<CaughtError>() {
        Ok(caught) => match *caught {
            CaughtError::PostgresError(report) => {
                flush();
                Box::new(CaughtError::ErrorReport(report))
            }
            other => Box::new(other),
        },
        Err(payload) => payload,
    }
}

/// Takes off what is there.
pub(super) fn flush() {
    // SAFETY: the main thread; nobody holds pointers to it.
    unsafe { pg_sys::FlushErrorState() };
}

/// The ERROR that unwinds, if one does, until this is dropped.
pub(super) struct Aside(*mut pg_sys::ErrorData);

pub(super) fn set_aside() -> Aside {
    if !compat::ERRORS_STAY || !std::thread::panicking() {
        return Aside(null_mut());
    }
    // SAFETY: the main thread. The copy is to outlive whatever is rolled back meanwhile. If nothing is there, as when a panic unwinds,
    // to copy it is an ERROR, which is caught, taken off, and must not let go of held interrupts.
    unsafe {
        let (context, held) = (pg_sys::CurrentMemoryContext, pg_sys::InterruptHoldoffCount);
        pg_sys::CurrentMemoryContext = pg_sys::TopMemoryContext;
        let copy = catch_unwind(|| pg_sys::CopyErrorData()).unwrap_or(null_mut());
        flush();
        pg_sys::CurrentMemoryContext = context;
        pg_sys::InterruptHoldoffCount = held;
        Aside(copy)
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        if self.0.is_null() {
            return;
        }
        // SAFETY: the main thread; the copy is ours. It is raised to be caught, which leaves it where it was.
        unsafe {
            let _ = catch_unwind(AssertUnwindSafe(|| compat::raise_again(self.0)));
            pg_sys::FreeErrorData(self.0);
        }
    }
}
