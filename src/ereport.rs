//! Errors as PostgreSQL raises them.

use pgpool_recovery_core::error::{Error, Kind};
use pgrx::PgSqlErrorCode;
use pgrx::pg_sys::panic::ErrorReport;

use crate::pg::text::server_text;

/// The code that PostgreSQL packs the SQLSTATE of this kind of error into (MAKE_SQLSTATE in utils/elog.h).
pub(crate) fn error_code(kind: Kind) -> PgSqlErrorCode {
    let packed = kind
        .sqlstate()
        .bytes()
        .enumerate()
        .map(|(place, character)| (i32::from(character - b'0') & 0x3F) << (6 * place));
    PgSqlErrorCode::from(packed.sum::<i32>())
}

/// The error as PostgreSQL raises it.
#[track_caller]
pub(crate) fn ereport(error: Error) -> ErrorReport {
    let Error { kind, message, detail, hint } = error;
    let mut report = ErrorReport::new(error_code(kind), server_text(&message), "pgpool_recovery");
    if let Some(detail) = detail {
        report = report.set_detail(server_text(&detail));
    }
    if let Some(hint) = hint {
        report = report.set_hint(server_text(&hint));
    }
    report
}
