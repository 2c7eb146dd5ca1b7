//! An ERROR that unwinds through a command, for what outlives the command.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use pgpool_recovery_core::error::{Error, Kind, Result};
use pgrx::PgSqlErrorCode;
use pgrx::pg_sys::panic::{CaughtError, ErrorReportWithLevel};

use super::subtransaction;
use super::threads::panic_text;

/// What an ERROR of PostgreSQL's, or a panic, says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Raised {
    pub(crate) sqlstate: String,
    message: String,
    detail: Option<String>,
    hint: Option<String>,
}

/// Runs `act`. An ERROR goes on its way; before that, `note` is told what it says and must raise nothing.
pub(crate) fn noting<T>(act: impl FnOnce() -> T, note: impl FnOnce(Raised)) -> T {
    catch_unwind(AssertUnwindSafe(act)).unwrap_or_else(|payload| {
        note(Raised::of(&*payload));
        resume_unwind(payload)
    })
}

/// Runs `act`, of which an ERROR is an error like any other, and leaves nothing behind: see [`subtransaction`]. A cancel or a
/// termination goes on its way.
pub(crate) fn caught<T>(act: impl FnOnce() -> Result<T>) -> Result<T> {
    subtransaction::run(act).unwrap_or_else(|payload| {
        let error = Raised::of(&*payload).error();
        if error.kind == Kind::Canceled { resume_unwind(payload) } else { Err(error) }
    })
}

/// The kinds of errors that a server has in common with us. Those about a connection mean another one there.
const KINDS: [Kind; 12] = [
    Kind::InvalidArgument,
    Kind::InsufficientPrivilege,
    Kind::WrongState,
    Kind::InUse,
    Kind::LimitExceeded,
    Kind::DiskFull,
    Kind::OutOfResources,
    Kind::OutOfMemory,
    Kind::Io,
    Kind::MissingFile,
    Kind::Corrupt,
    Kind::Unsupported,
];

impl Raised {
    fn of(payload: &(dyn Any + Send)) -> Self {
        let caught = payload.downcast_ref::<CaughtError>().map(|caught| match caught {
            CaughtError::PostgresError(report)
            | CaughtError::ErrorReport(report)
            | CaughtError::RustPanic { ereport: report, .. } => report,
        });
        caught.or_else(|| payload.downcast_ref::<ErrorReportWithLevel>()).map_or_else(
            || Self {
                sqlstate: Kind::Internal.sqlstate().to_owned(),
                message: panic_text(payload),
                detail: None,
                hint: None,
            },
            |report| Self {
                sqlstate: sqlstate(report.sql_error_code()),
                message: report.message().to_owned(),
                detail: report.detail().map(str::to_owned),
                hint: report.hint().map(str::to_owned),
            },
        )
    }

    /// As an error of ours: its kind is the one that has this SQLSTATE, or else [`Kind::Internal`].
    pub(crate) fn error(&self) -> Error {
        let Self { sqlstate, message, detail, hint } = self;
        if sqlstate == Kind::Canceled.sqlstate() {
            return interrupted();
        }
        let kind = KINDS.into_iter().find(|kind| kind.sqlstate() == sqlstate).unwrap_or(Kind::Internal);
        Error { kind, message: message.clone(), detail: detail.clone(), hint: hint.clone() }
    }
}

/// A cancel, or a timeout.
pub(crate) fn interrupted() -> Error {
    Error::canceled()
        .detail("The session was canceled, ran into a timeout, or ended during the recovery.")
        .hint("Run the recovery again; it sends only what is missing.")
}

/// What PostgreSQL packed into the code (MAKE_SQLSTATE in utils/elog.h): five characters, six bits each.
fn sqlstate(code: PgSqlErrorCode) -> String {
    let code = code as i32;
    (0..5).map(|place| char::from(b'0' + (code >> (6 * place) & 0x3F) as u8)).collect()
}

#[cfg(test)]
impl Raised {
    pub(crate) fn example(sqlstate: &str, message: &str) -> Self {
        Self { sqlstate: sqlstate.to_owned(), message: message.to_owned(), detail: None, hint: None }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn codes_become_text() {
        for (code, text) in [
            (PgSqlErrorCode::ERRCODE_QUERY_CANCELED, "57014"),
            (PgSqlErrorCode::ERRCODE_ADMIN_SHUTDOWN, "57P01"),
            (PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE, "55P03"),
            (PgSqlErrorCode::ERRCODE_INTERNAL_ERROR, "XX000"),
        ] {
            assert_eq!(sqlstate(code), text);
        }
    }

    #[test]
    fn a_cancel_is_told_from_other_errors() {
        let error = |sqlstate: &str| Raised::example(sqlstate, "the server's").error();
        assert_eq!(error("57014").kind, Kind::Canceled);
        for (sqlstate, kind) in
            [("57P01", Kind::Internal), ("53100", Kind::DiskFull), ("55P03", Kind::Internal)]
        {
            let error = error(sqlstate);
            assert_eq!((error.kind, error.message.as_str()), (kind, "the server's"), "{sqlstate}");
        }
    }

    #[test]
    fn a_panic_is_noted_and_goes_on() {
        let noted = RefCell::new(None);
        let panic = catch_unwind(AssertUnwindSafe(|| {
            noting(|| panic!("it was {}", 7), |raised| drop(noted.replace(Some(raised))));
        }));
        assert_eq!(panic_text(&*panic.expect_err("goes on")), "it was 7");
        let noted = noted.take().expect("noted");
        assert_eq!((noted.sqlstate.as_str(), noted.message.as_str()), ("XX000", "it was 7"));
        assert_eq!(noting(|| 7, |_| unreachable!("nothing was raised")), 7);
    }
}
