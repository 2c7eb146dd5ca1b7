//! Messages to the server log and the client. Main thread only: from any other thread pgrx panics.

use pgrx::PgSqlErrorCode;
use pgrx::pg_sys::elog::PgLogLevel;
use pgrx::pg_sys::panic::ErrorReport;

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

fn emit(level: PgLogLevel, code: PgSqlErrorCode, message: &str, detail: Option<&str>, hint: Option<&str>) {
    let mut report = ErrorReport::new(code, server_text(message), "pgpool_recovery");
    if let Some(detail) = detail {
        report = report.set_detail(server_text(detail));
    }
    if let Some(hint) = hint {
        report = report.set_hint(server_text(hint));
    }
    report.report(level);
}
