//! Who calls a function of ours, and by what right.
#![expect(clippy::result_large_err, reason = "ErrorReport is what pgrx raises with SQLSTATE and HINT")]

use pgpool_recovery_core::error::{Error, Kind, Result};
use pgrx::pg_sys::panic::ErrorReport;

use crate::commands::check::CheckRow;
use crate::ereport::ereport;
use crate::pg::log::WithoutContext;
use crate::pg::privileges::{self, Elevated};
use crate::preflight::authority;
use crate::settings::Settings;
use crate::settings::request::shown;

/// Who called, as he was before the elevation.
pub(crate) struct Caller {
    name: String,
    is_superuser: bool,
    may_replicate: bool,
}

impl Caller {
    pub(crate) fn settings(&self) -> Result<Settings> {
        let mut settings = Settings { caller_is_superuser: self.is_superuser, ..Settings::current()? };
        if settings.replication_user.is_empty() {
            settings.replication_user.clone_from(&self.name);
        }
        Ok(settings)
    }

    /// The first row of a check: who comes here has the right to.
    pub(crate) fn row(&self) -> CheckRow {
        let why = if self.is_superuser {
            "a superuser"
        } else {
            "has EXECUTE and REPLICATION; some options, another primary's address, and local directories that \
             pgpool_recovery.local_directories does not list need a superuser"
        };
        CheckRow {
            step: "caller".to_owned(),
            ok: true,
            detail: format!("\"{}\": {why}", self.name),
            hint: None,
        }
    }

    /// EXECUTE is granted easily, to all functions of a schema for example. REPLICATION says already that a role may
    /// have a copy of everything. Like PostgreSQL's own checks of it, this one knows no membership.
    fn must_replicate(&self) -> Result<()> {
        if self.may_replicate {
            return Ok(());
        }
        Err(Error::new(Kind::InsufficientPrivilege, "permission denied to recover standbys")
            .detail(format!(
                "Besides EXECUTE the role that calls needs the REPLICATION attribute, or must be a superuser; role {} has neither.",
                shown(&self.name)
            ))
            .hint("Use ALTER ROLE ... REPLICATION. The attribute is not inherited from a role that one is a member of."))
    }

    pub(crate) fn must_be_superuser(&self, function: &str) -> Result<()> {
        authority::demand_superuser(self.is_superuser, function)
    }
}

/// Runs the body of a function that has to do with targets.
pub(crate) fn act<T>(body: impl FnOnce(&Caller) -> Result<T>) -> Result<T, ErrorReport> {
    call(|caller| {
        caller.must_replicate()?;
        body(caller)
    })
}

/// Runs the body of a function elevated.
pub(crate) fn call<T>(body: impl FnOnce(&Caller) -> Result<T>) -> Result<T, ErrorReport> {
    let run = || {
        let _without_context = WithoutContext::enter();
        let caller = Caller {
            name: privileges::caller_name()?,
            is_superuser: privileges::caller_is_superuser(),
            may_replicate: privileges::caller_may_replicate(),
        };
        let _elevated = Elevated::enter();
        body(&caller)
    };
    run().map_err(ereport)
}
