//! The one error type that crosses module, process and host boundaries.
//!
//! An error says what was found ([`Error::message`], PostgreSQL style: lower case, no full stop),
//! what was expected ([`Error::detail`]) and what to do ([`Error::hint`]), both full sentences.
//! The agent sends its errors to the primary as they are, so a person at psql reads the words of
//! the host where it went wrong.

use std::fmt;
use std::io;

use serde::{Deserialize, Serialize};

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What kind of failure this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A required argument is NULL.
    NullArgument,
    /// An argument, option or setting has an unusable value.
    InvalidArgument,
    /// The caller lacks the right.
    InsufficientPrivilege,
    /// The primary is not in the state the operation needs: a standby, `wal_level = minimal`.
    WrongState,
    /// The target must not be replaced: another cluster, no cluster, the primary itself.
    TargetRefused,
    /// Something else holds the target or the slot: a running server, a second recovery.
    InUse,
    /// No walsender or replication slot left.
    LimitExceeded,
    /// The target has not enough space.
    DiskFull,
    /// Nothing answers at the agent's address.
    Unreachable,
    /// The connection to the agent broke.
    ConnectionLost,
    /// The other end could not prove the shared secret, or a login was refused.
    AuthenticationFailed,
    /// The other end speaks another version of the protocol.
    ProtocolVersion,
    /// The other end broke the protocol.
    ProtocolViolation,
    /// Data on disk is damaged.
    Corrupt,
    /// A file the operation needs is not there.
    MissingFile,
    /// The operating system refused an operation.
    Io,
    /// The replication slot lost WAL that the standby needs.
    SlotLost,
    /// The standby could not be started, or does not stream.
    StartFailed,
    /// A script of the operator's failed.
    ScriptFailed,
    /// The operation was cancelled.
    Canceled,
    /// The version or platform lacks something.
    Unsupported,
    /// An invariant of this software was broken: a bug.
    Internal,
}

impl Kind {
    /// The SQLSTATE, as PostgreSQL's errcodes.txt lists them.
    pub const fn sqlstate(self) -> &'static str {
        match self {
            Self::NullArgument => "22004",
            Self::InvalidArgument => "22023",
            Self::InsufficientPrivilege => "42501",
            Self::WrongState | Self::TargetRefused | Self::SlotLost => "55000",
            Self::InUse => "55006",
            Self::LimitExceeded => "53400",
            Self::DiskFull => "53100",
            Self::Unreachable => "08001",
            Self::ConnectionLost => "08006",
            Self::AuthenticationFailed => "28000",
            Self::ProtocolVersion => "08004",
            Self::ProtocolViolation => "08P01",
            Self::Corrupt => "XX001",
            Self::MissingFile => "58P01",
            Self::Io => "58030",
            Self::StartFailed => "58000",
            Self::ScriptFailed => "38000",
            Self::Canceled => "57014",
            Self::Unsupported => "0A000",
            Self::Internal => "XX000",
        }
    }
}

/// A failure, told so that an operator can act on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub struct Error {
    /// Selects the SQLSTATE.
    pub kind: Kind,
    /// What was found: lower case, no full stop.
    pub message: String,
    /// What was expected, or what the system said: full sentences.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// What to do: a full sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl Error {
    /// An error without DETAIL and HINT.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), detail: None, hint: None }
    }

    /// An operating-system error while doing `what` (present tense: `open file "base/1/2"`).
    pub fn io(what: impl fmt::Display, error: &io::Error) -> Self {
        let kind = match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Kind::DiskFull,
            io::ErrorKind::NotFound => Kind::MissingFile,
            _ => Kind::Io,
        };
        let failed = Self::new(kind, format!("could not {what}: {error}"));
        if kind == Kind::DiskFull {
            return failed.hint("Free space on that file system and repeat it.");
        }
        failed
    }

    /// A closure for `map_err`, see [`Error::io`].
    pub fn on<E: Into<io::Error>>(what: impl fmt::Display) -> impl FnOnce(E) -> Self {
        move |error| Self::io(what, &error.into())
    }

    /// The operation was cancelled from outside.
    pub fn canceled() -> Self {
        Self::new(Kind::Canceled, "recovery was canceled")
    }

    /// Sets the DETAIL.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// Sets the HINT.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl From<pgdata::control_file::Invalid> for Error {
    fn from(invalid: pgdata::control_file::Invalid) -> Self {
        use pgdata::control_file::Invalid;
        match invalid {
            Invalid::Damaged(what) => Self::new(Kind::Corrupt, format!("invalid pg_control file: {what}")),
            Invalid::UnknownVersion(version) => {
                Self::new(Kind::Unsupported, format!("unknown pg_control version {version}"))
                    .detail("Known are 1300 (PostgreSQL 13 to 16), 1700 and 1800.")
                    .hint("Install a version of pgpool_recovery that knows this PostgreSQL.")
            }
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if let Some(detail) = &self.detail {
            write!(f, "; {detail}")?;
        }
        Ok(())
    }
}
