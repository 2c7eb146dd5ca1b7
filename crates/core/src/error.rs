//! The one error type that crosses module, process and host boundaries.
//!
//! An error says what was found ([`Error::message`], PostgreSQL style: lower case, no full stop),
//! what was expected ([`Error::detail`]) and what to do ([`Error::hint`]), both full sentences.
//! The agent sends its errors to the primary as they are, so a person at psql reads the words of
//! the host where it went wrong.

use std::fmt;
use std::io;
use std::path::Path;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

mod permissions;

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
    /// The caller, a database role, lacks the right.
    InsufficientPrivilege,
    /// The primary is not in the state the operation needs: a standby, `wal_level = minimal`.
    WrongState,
    /// The target must not be replaced: another cluster, no cluster, the primary itself.
    TargetRefused,
    /// Something else holds the target or the slot: a running server, a file that another program changes.
    InUse,
    /// Another recovery has locked the target.
    Locked,
    /// No walsender or replication slot left.
    LimitExceeded,
    /// The target has not enough space.
    DiskFull,
    /// The operating system refused an operation for want of a permission, or on a read-only file system.
    PermissionDenied,
    /// Out of file descriptors.
    OutOfResources,
    /// Out of memory.
    OutOfMemory,
    /// Nothing answers at the agent's address.
    Unreachable,
    /// What is to be asked was not: the name service of this host, or its own network, failed. That says nothing of the other one.
    NotAsked,
    /// The connection to the agent broke.
    ConnectionLost,
    /// The client of the session is gone.
    ClientLost,
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
            Self::InsufficientPrivilege | Self::PermissionDenied => "42501",
            Self::WrongState | Self::TargetRefused | Self::SlotLost => "55000",
            Self::InUse | Self::Locked => "55006",
            Self::LimitExceeded => "53400",
            Self::DiskFull => "53100",
            Self::OutOfResources => "53000",
            Self::OutOfMemory => "53200",
            Self::Unreachable | Self::NotAsked => "08001",
            Self::ConnectionLost | Self::ClientLost => "08006",
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

    /// Whether the same call may succeed a little later, with nothing changed for it: the network comes back, a host or
    /// an agent has started again, the other end of a broken connection has noticed and let go of the target.
    pub const fn may_pass(self) -> bool {
        match self {
            Self::Unreachable | Self::NotAsked | Self::ConnectionLost | Self::Locked => true,
            Self::NullArgument
            | Self::InvalidArgument
            | Self::InsufficientPrivilege
            | Self::WrongState
            | Self::TargetRefused
            | Self::InUse
            | Self::LimitExceeded
            | Self::DiskFull
            | Self::PermissionDenied
            | Self::OutOfResources
            | Self::OutOfMemory
            | Self::ClientLost
            | Self::AuthenticationFailed
            | Self::ProtocolVersion
            | Self::ProtocolViolation
            | Self::Corrupt
            | Self::MissingFile
            | Self::Io
            | Self::SlotLost
            | Self::StartFailed
            | Self::ScriptFailed
            | Self::Canceled
            | Self::Unsupported
            | Self::Internal => false,
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
        let (kind, hint) = meaning(error);
        let failed = Self::new(kind, format!("could not {what}: {error}"));
        match hint {
            Some(hint) => failed.hint(hint),
            None => failed,
        }
    }

    /// An operating-system error while doing something with a file or directory: `could not <verb> "<path>"`. One for
    /// want of a permission says who owns it, its mode, and whose process this is.
    pub fn at(verb: &str, path: impl AsRef<Path>, error: &io::Error) -> Self {
        let path = path.as_ref();
        Self::io(format_args!("{verb} \"{}\"", path.display()), error).with_owner(path)
    }

    /// A thread could not be started. The system says no more than that a resource is temporarily unavailable.
    pub fn no_thread(error: &io::Error) -> Self {
        Self::new(Kind::OutOfResources, format!("could not start a thread: {error}"))
            .detail("The system has no memory for its stack, or a limit of the number of tasks is reached.")
            .hint("Raise the limits of memory and of tasks (ulimit -v and -u; LimitAS, LimitNPROC and TasksMax of the unit), or set pgpool_recovery.jobs lower.")
    }

    /// A closure for `map_err`, see [`Error::io`].
    pub fn on<E: Into<io::Error>>(what: impl fmt::Display) -> impl FnOnce(E) -> Self {
        move |error| Self::io(what, &error.into())
    }

    /// A closure for `map_err`, see [`Error::at`].
    pub fn on_path<E: Into<io::Error>>(verb: &str, path: impl AsRef<Path>) -> impl FnOnce(E) -> Self {
        move |error| Self::at(verb, path, &error.into())
    }

    /// For want of a permission: whose the file is, its mode, and whose process this is.
    #[must_use]
    pub fn with_owner(self, path: &Path) -> Self {
        if self.kind != Kind::PermissionDenied || self.hint.is_some() {
            return self;
        }
        match permissions::describe(path) {
            Some(detail) => self.detail(detail).hint("Give that user the permission, with chown or chmod."),
            None => self,
        }
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

    /// Adds a sentence to the DETAIL.
    #[must_use]
    pub fn add_detail(self, sentence: &str) -> Self {
        let before = self.detail.as_ref().map_or_else(String::new, |detail| format!("{detail} "));
        self.detail(before + sentence)
    }

    /// Sets the HINT.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// What an error of the operating system means, and what to do about it where that is the same everywhere. The kinds are
/// those of PostgreSQL's `errcode_for_file_access` (src/backend/utils/error/elog.c) where they help an operator.
fn meaning(error: &io::Error) -> (Kind, Option<&'static str>) {
    match (error.kind(), error.raw_os_error().map(Errno::from_raw_os_error)) {
        (_, Some(Errno::MFILE | Errno::NFILE)) => (
            Kind::OutOfResources,
            Some(
                "Raise the limit of open files (LimitNOFILE of the unit, ulimit -n), or set pgpool_recovery.jobs lower.",
            ),
        ),
        (_, Some(Errno::ROFS)) => (
            Kind::PermissionDenied,
            Some(
                "A systemd unit allows writing to its ReadWritePaths only; a file system is made read-only after an error of its disk.",
            ),
        ),
        (io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded, _) => {
            (Kind::DiskFull, Some("Free space on that file system and repeat it."))
        }
        (io::ErrorKind::PermissionDenied, _) => (Kind::PermissionDenied, None),
        (io::ErrorKind::NotFound, _) => (Kind::MissingFile, None),
        (io::ErrorKind::OutOfMemory, _) => (Kind::OutOfMemory, None),
        _ => (Kind::Io, None),
    }
}

impl From<pgdata::control_file::Invalid> for Error {
    fn from(invalid: pgdata::control_file::Invalid) -> Self {
        use pgdata::control_file::Invalid;
        match invalid {
            Invalid::Damaged(what) => Self::new(Kind::Corrupt, format!("invalid pg_control file: {what}")),
            Invalid::UnknownVersion(version) => {
                Self::new(Kind::Unsupported, format!("unknown pg_control version {version}"))
                    .detail("Known are 1300 (PostgreSQL 13 to 16), 1700, 1800 and 1905 (PostgreSQL 19).")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_system_says_has_the_sqlstate_that_postgresql_gives_it() {
        for (errno, sqlstate, has_hint) in [
            (Errno::ACCESS, "42501", false),
            (Errno::PERM, "42501", false),
            (Errno::ROFS, "42501", true),
            (Errno::NOENT, "58P01", false),
            (Errno::NOSPC, "53100", true),
            (Errno::DQUOT, "53100", true),
            (Errno::MFILE, "53000", true),
            (Errno::NFILE, "53000", true),
            (Errno::NOMEM, "53200", false),
            (Errno::IO, "58030", false),
        ] {
            let error = Error::io("open it", &errno.into());
            assert_eq!(error.kind.sqlstate(), sqlstate, "{errno}");
            assert_eq!(error.hint.is_some(), has_hint, "{errno}");
        }
    }

    #[test]
    fn only_what_may_mend_is_waited_for() {
        assert!(Kind::Unreachable.may_pass() && Kind::ConnectionLost.may_pass() && Kind::Locked.may_pass());
        assert!(!Kind::Internal.may_pass() && !Kind::AuthenticationFailed.may_pass());
    }

    #[test]
    fn a_missing_permission_is_told_with_owner_mode_and_user() {
        let error = Error::at("open file", "/etc/shadow", &Errno::ACCESS.into());
        let detail = error.detail.expect("whose it is");
        assert!(detail.contains("\"/etc/shadow\" belongs to user root and has mode 0"), "{detail}");
        assert!(error.hint.is_some_and(|hint| hint.contains("chown")));
        let error = Error::at("open file", "/etc/shadow", &Errno::IO.into());
        assert_eq!((error.detail, error.hint), (None, None), "no question of permissions");
    }
}
