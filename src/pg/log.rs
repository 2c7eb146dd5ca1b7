//! Messages to the server log and the client. Main thread only: from any other thread pgrx panics.

use pgrx::pg_sys::elog::PgLogLevel;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::{PgSqlErrorCode, pg_sys};

use super::text::server_text;

/// A line for the server log.
pub(crate) fn log(message: &str) {
    emit(PgLogLevel::LOG, PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION, message, None, None);
}

/// A line for the server log, with more to say.
pub(crate) fn log_detail(message: &str, detail: Option<&str>, hint: Option<&str>) {
    emit(PgLogLevel::LOG, PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION, message, detail, hint);
}

/// A line for the client (and the log, if `log_min_messages` says so).
pub(crate) fn notice(message: &str) {
    emit(PgLogLevel::NOTICE, PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION, message, None, None);
}

/// A line for the client, with more to say.
pub(crate) fn notice_detail(message: &str, detail: Option<&str>, hint: Option<&str>) {
    emit(PgLogLevel::NOTICE, PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION, message, detail, hint);
}

fn emit(level: PgLogLevel, code: PgSqlErrorCode, message: &str, detail: Option<&str>, hint: Option<&str>) {
    let mut report = ErrorReport::new(code, server_text(message), "pgpool_recovery");
    if let Some(detail) = detail {
        report = report.set_detail(server_text(detail));
    }
    if let Some(hint) = hint {
        report = report.set_hint(server_text(hint));
    }
    // pgrx raises this without a guard, and the server looks for interrupts when it has logged: a cancel
    // would jump over our frames, with threads running and a backup in progress
    let _held = HeldInterrupts::hold();
    report.report(level);
}

/// Keeps interrupts pending while it lives (HOLD_INTERRUPTS in miscadmin.h).
struct HeldInterrupts;

impl HeldInterrupts {
    fn hold() -> Self {
        // SAFETY: a counter of this process, changed by its main thread only.
        unsafe { pg_sys::InterruptHoldoffCount += 1 };
        Self
    }
}

impl Drop for HeldInterrupts {
    fn drop(&mut self) {
        // SAFETY: as above; an ERROR in between has set it to zero.
        unsafe { pg_sys::InterruptHoldoffCount = pg_sys::InterruptHoldoffCount.saturating_sub(1) };
    }
}
