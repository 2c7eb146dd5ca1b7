//! Who calls, and acting as the bootstrap superuser on his behalf.

use std::ffi::CStr;

use pgpool_recovery_core::error::{Error, Kind, Result};
use pgrx::pg_sys;

use super::{cleanup, compat};

/// Whether the current user is a superuser. Ask before [`Elevated::enter`].
pub(crate) fn caller_is_superuser() -> bool {
    // SAFETY: reads the session's user and the role catalogs.
    unsafe { pg_sys::superuser() }
}

/// Whether the current user has the REPLICATION attribute, or is a superuser. Ask before [`Elevated::enter`].
pub(crate) fn caller_may_replicate() -> bool {
    // up to 15 the second looks at the attribute alone
    // SAFETY: reads the session's user and the role catalogs.
    caller_is_superuser() || unsafe { pg_sys::has_rolreplication(pg_sys::GetUserId()) }
}

/// The current user's name. Ask before [`Elevated::enter`].
pub(crate) fn caller_name() -> Result<String> {
    // SAFETY: the name is a palloc'd C string, copied at once; an unknown role raises an ERROR.
    let name = unsafe {
        let name = pg_sys::GetUserNameFromId(pg_sys::GetUserId(), false);
        CStr::from_ptr(name).to_bytes().to_vec()
    };
    String::from_utf8(name)
        .map_err(|_| Error::new(Kind::InvalidArgument, "the name of the calling role is not valid UTF-8"))
}

/// While it lives, catalog queries run as the bootstrap superuser, as in a SECURITY DEFINER function:
/// a role that may execute our functions need not be granted pg_monitor, pg_read_all_settings and so on.
/// The search path is fixed, so that no object of the caller's is found. transaction_timeout is off: a
/// recovery takes as long as it takes, and Pgpool-II switches off statement_timeout only.
pub(crate) struct Elevated {
    user: pg_sys::Oid,
    context: i32,
    nest_level: i32,
}

impl Elevated {
    /// Changes the user, for this session's code only.
    pub(crate) fn enter() -> Self {
        let mut user = pg_sys::InvalidOid;
        let mut context = 0;
        // SAFETY: the pattern of fmgr_security_definer() in fmgr.c: save, set, restore; what we do not
        // get to restore, the abort of the (sub)transaction does.
        unsafe {
            pg_sys::GetUserIdAndSecContext(&mut user, &mut context);
            let nest_level = pg_sys::NewGUCNestLevel();
            let elevated = Self { user, context, nest_level };
            pg_sys::SetUserIdAndSecContext(
                pg_sys::Oid::from(pg_sys::BOOTSTRAP_SUPERUSERID),
                context
                    | (pg_sys::SECURITY_LOCAL_USERID_CHANGE | pg_sys::SECURITY_RESTRICTED_OPERATION) as i32,
            );
            set(c"search_path", c"pg_catalog, pg_temp");
            if let Some(timeout) = compat::TRANSACTION_TIMEOUT {
                // Takes effect at once, also on a timer that runs (assign_transaction_timeout() in proc.c).
                set(timeout, c"0");
            }
            elevated
        }
    }
}

/// Changes a setting until the innermost nest level ends.
///
/// # Safety
/// A nest level of the caller's must be open.
unsafe fn set(name: &CStr, value: &CStr) {
    // SAFETY: both are NUL-terminated and copied; GUC_ACTION_SAVE belongs to the nest level.
    unsafe {
        pg_sys::set_config_option(
            name.as_ptr(),
            value.as_ptr(),
            pg_sys::GucContext::PGC_USERSET,
            pg_sys::GucSource::PGC_S_SESSION,
            pg_sys::GucAction::GUC_ACTION_SAVE,
            true,
            0,
            false,
        );
    }
}

impl Drop for Elevated {
    fn drop(&mut self) {
        cleanup::quietly("restore the caller's identity", || {
            // SAFETY: restores what `enter` saved; the nest level is the innermost open one, because guards
            // are dropped in the reverse order of their making.
            unsafe {
                pg_sys::AtEOXact_GUC(false, self.nest_level);
                pg_sys::SetUserIdAndSecContext(self.user, self.context);
            }
        });
    }
}
