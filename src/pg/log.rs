//! Messages to the server log and the client: the one place for everything below ERROR. Main thread only: from any
//! other thread pgrx panics.
//!
//! `errfinish` can raise an ERROR even for a LOG: a cancel that is pending, a text that the client's encoding lacks, a
//! hook of another extension, no memory. pgrx's `ErrorReport::report` calls it without a guard, so that ERROR would jump
//! over our frames, with threads running on a stack that is gone. Here it unwinds like any other. Nothing holds
//! interrupts: a backend that waits for its client can be terminated.

use std::ffi::{CStr, CString, c_char, c_int};
use std::ptr;

use pgrx::{PgSqlErrorCode, pg_sys};

use super::interrupts;
use super::text::{client_text, server_text};

/// Most bytes of a message's primary text and of its HINT that a client gets, and of its DETAIL. With what the session
/// may have left in its buffer of 8 kB this fits into any socket that poll(2) calls writable.
const TEXT: usize = 1024;
const DETAIL: usize = 4096;

// What elog.h's ereport() expands to; pgrx keeps its declarations of these to itself.
unsafe extern "C-unwind" {
    fn errstart(level: c_int, domain: *const c_char) -> bool;
    fn errcode(sqlstate: c_int) -> c_int;
    fn errmsg_internal(format: *const c_char, ...) -> c_int;
    fn errdetail_internal(format: *const c_char, ...) -> c_int;
    fn errhint(format: *const c_char, ...) -> c_int;
    fn errhidestmt(hide: bool) -> c_int;
    fn errfinish(file: *const c_char, line: c_int, function: *const c_char);
}

/// A line for the server log. The client never gets it, whatever `client_min_messages` says.
pub(crate) fn log(message: &str) {
    log_detail(message, None, None);
}

/// A line for the server log, with more to say.
pub(crate) fn log_detail(message: &str, detail: Option<&str>, hint: Option<&str>) {
    emit(pg_sys::LOG_SERVER_ONLY, server_text(message), detail.map(server_text), hint.map(server_text));
}

/// A line for the client (and the log, if `log_min_messages` says so). A client that does not read misses it.
pub(crate) fn notice(message: &str) {
    notice_detail(message, None, None);
}

/// A line for the client, with more to say.
pub(crate) fn notice_detail(message: &str, detail: Option<&str>, hint: Option<&str>) {
    if interrupts::terminating() || !interrupts::client_reads() {
        return;
    }
    let text = |text: &str, most| client_text(&shortened(text, most));
    emit(
        pg_sys::NOTICE,
        text(message, TEXT),
        detail.map(|detail| text(detail, DETAIL)),
        hint.map(|hint| text(hint, TEXT)),
    );
}

/// A warning, for the client and for the log. A client that does not read misses it.
pub(crate) fn warning(message: &str) {
    if interrupts::terminating() || !interrupts::client_reads() {
        return log(message);
    }
    emit(pg_sys::WARNING, client_text(&shortened(message, TEXT)), None, None);
}

/// While it lives PostgreSQL adds no CONTEXT to a message: not the names of functions that called us, which the
/// client's encoding may lack, and not their statements, which may be megabytes and would keep a terminated backend
/// waiting for a client that does not read. An error that leaves the function gets its CONTEXT when it is raised.
pub(crate) struct WithoutContext(*mut pg_sys::ErrorContextCallback);

impl WithoutContext {
    pub(crate) fn enter() -> Self {
        // SAFETY: a variable of this process; NULL is an empty stack (elog.c).
        unsafe {
            let before = pg_sys::error_context_stack;
            pg_sys::error_context_stack = ptr::null_mut();
            Self(before)
        }
    }
}

impl Drop for WithoutContext {
    fn drop(&mut self) {
        // SAFETY: what `enter` found; its entries are on the stack below our function, which has not returned.
        unsafe { pg_sys::error_context_stack = self.0 };
    }
}

/// Raises a message below ERROR. An ERROR that comes of it unwinds from here: the caller's transaction aborts, as
/// after any other, and nothing needs a subtransaction.
#[expect(ffi_unwind_calls, reason = "inside the guard that pgrx's own wrappers use")]
fn emit(level: u32, message: String, detail: Option<String>, hint: Option<String>) {
    // no NUL is in them, see server_text
    let c_string = |text: String| CString::new(text).unwrap_or_default();
    let (message, detail, hint) = (c_string(message), detail.map(c_string), hint.map(c_string));
    let pointer = |text: &Option<CString>| text.as_deref().map_or(ptr::null(), CStr::as_ptr);
    let (message, detail, hint) = (message.as_ptr(), pointer(&detail), pointer(&hint));
    let format = c"%s".as_ptr();
    // SAFETY: the order is that of ereport(); errstart() says whether anyone gets the message. The strings live
    // until the end of this function, and PostgreSQL copies them. The closure owns nothing that would need a drop:
    // an ERROR jumps from it to the guard, which restores the memory context, the exception stack and the context
    // stack, empties PostgreSQL's stack of errors (FlushErrorState) and panics. FATAL does not return.
    unsafe {
        pg_sys::ffi::pg_guard_ffi_boundary(move || {
            pg_sys::error_context_stack = ptr::null_mut();
            if errstart(level as c_int, ptr::null()) {
                errmsg_internal(format, message);
                if !detail.is_null() {
                    errdetail_internal(format, detail);
                }
                if !hint.is_null() {
                    errhint(format, hint);
                }
                errhidestmt(true);
                errfinish(ptr::null(), 0, ptr::null());
            }
        });
    }
}

/// Ends the session for want of memory, without allocating any of this library's: PostgreSQL has set some aside for its
/// errors. FATAL unwinds nothing.
#[expect(ffi_unwind_calls, reason = "what is raised here does not unwind")]
pub(super) fn end_for_want_of_memory() -> ! {
    // SAFETY: the order is that of ereport(). FATAL ends in proc_exit(), and so does any error on the way there: errstart()
    // raises its level to that of the message that is being worked on.
    unsafe {
        pg_sys::error_context_stack = ptr::null_mut();
        errstart(pg_sys::FATAL as c_int, ptr::null());
        errcode(PgSqlErrorCode::ERRCODE_OUT_OF_MEMORY as c_int);
        errmsg_internal(c"out of memory".as_ptr());
        errdetail_internal(c"The session ends, because pgpool_recovery cannot go on without it.".as_ptr());
        errhint(
            c"Set pgpool_recovery.jobs lower, or raise the limits of the server's memory, and repeat it."
                .as_ptr(),
        );
        errhidestmt(true);
        errfinish(ptr::null(), 0, ptr::null());
    }
    std::process::abort()
}

/// A long text without its middle: the end of a program's output says more than what came before.
fn shortened(text: &str, most: usize) -> String {
    if text.len() <= most {
        return text.to_owned();
    }
    let is_boundary = |at: &usize| text.is_char_boundary(*at);
    let head = (0..=most / 4).rev().find(is_boundary).unwrap_or(0);
    let tail = (text.len() - most / 2..=text.len()).find(is_boundary).unwrap_or(text.len());
    format!("{} ... {}", &text[..head], &text[tail..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_lose_their_middle() {
        assert_eq!(shortened("short", 8), "short");
        let long = format!("begin{}end", "\u{fc}".repeat(5000));
        let short = shortened(&long, 100);
        assert!(short.len() <= 100 && short.starts_with("begin") && short.ends_with("end"), "{short}");
    }
}
