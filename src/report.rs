//! From the project's errors to PostgreSQL's: the one table of SQLSTATEs.

use pgpool_recovery_core::error::{Error, Kind};
use pgrx::PgSqlErrorCode;
use pgrx::pg_sys::panic::ErrorReport;

use crate::pg::text::server_text;

/// The SQLSTATE of a kind of error.
pub(crate) fn sqlstate(kind: Kind) -> PgSqlErrorCode {
    use PgSqlErrorCode as Code;
    match kind {
        Kind::NullArgument => Code::ERRCODE_NULL_VALUE_NOT_ALLOWED,
        Kind::InvalidArgument => Code::ERRCODE_INVALID_PARAMETER_VALUE,
        Kind::InsufficientPrivilege => Code::ERRCODE_INSUFFICIENT_PRIVILEGE,
        Kind::WrongState | Kind::TargetRefused | Kind::SlotLost => {
            Code::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE
        }
        Kind::InUse => Code::ERRCODE_OBJECT_IN_USE,
        Kind::LimitExceeded => Code::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
        Kind::DiskFull => Code::ERRCODE_DISK_FULL,
        Kind::Unreachable => Code::ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION,
        Kind::ConnectionLost => Code::ERRCODE_CONNECTION_FAILURE,
        Kind::AuthenticationFailed => Code::ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION,
        Kind::ProtocolVersion => Code::ERRCODE_SQLSERVER_REJECTED_ESTABLISHMENT_OF_SQLCONNECTION,
        Kind::ProtocolViolation => Code::ERRCODE_PROTOCOL_VIOLATION,
        Kind::Corrupt => Code::ERRCODE_DATA_CORRUPTED,
        Kind::MissingFile => Code::ERRCODE_UNDEFINED_FILE,
        Kind::Io => Code::ERRCODE_IO_ERROR,
        Kind::StartFailed => Code::ERRCODE_SYSTEM_ERROR,
        Kind::ScriptFailed => Code::ERRCODE_EXTERNAL_ROUTINE_EXCEPTION,
        Kind::Canceled => Code::ERRCODE_QUERY_CANCELED,
        Kind::Unsupported => Code::ERRCODE_FEATURE_NOT_SUPPORTED,
        // A kind that a newer core knows and this table does not is a bug of ours, like Internal.
        _ => Code::ERRCODE_INTERNAL_ERROR,
    }
}

/// The SQLSTATE of a kind of error, as its five characters (MAKE_SQLSTATE in utils/elog.h).
pub(crate) fn sqlstate_text(kind: Kind) -> String {
    let packed = sqlstate(kind) as i32;
    (0..5).map(|place| char::from((packed >> (6 * place) & 0x3F) as u8 + b'0')).collect()
}

/// The error as PostgreSQL raises it.
#[track_caller]
pub(crate) fn report(error: Error) -> ErrorReport {
    let Error { kind, message, detail, hint } = error;
    let mut report = ErrorReport::new(sqlstate(kind), server_text(&message), "pgpool_recovery");
    if let Some(detail) = detail {
        report = report.set_detail(server_text(&detail));
    }
    if let Some(hint) = hint {
        report = report.set_hint(server_text(&hint));
    }
    report
}
