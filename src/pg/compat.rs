//! What is compiled differently for PostgreSQL 13 to 19. Nothing else in the extension is.
//!
//! The newest version is the default branch everywhere: what an older one lacks is listed. So a version that this file
//! does not name gets a compile error where a signature has changed, and never an empty function.

use std::ffi::CStr;

use pgrx::pg_sys;

/// Starts a non-exclusive backup: label, fast checkpoint.
#[cfg(any(feature = "pg13", feature = "pg14"))]
pub(super) const BACKUP_START: &str = "SELECT pg_catalog.pg_start_backup($1, $2, false)::text";
/// Starts a non-exclusive backup: label, fast checkpoint.
#[cfg(not(any(feature = "pg13", feature = "pg14")))]
pub(super) const BACKUP_START: &str = "SELECT pg_catalog.pg_backup_start($1, $2)::text";

/// Ends a non-exclusive backup without waiting for the archiver.
#[cfg(any(feature = "pg13", feature = "pg14"))]
pub(super) const BACKUP_STOP: &str =
    "SELECT lsn::text, labelfile, spcmapfile FROM pg_catalog.pg_stop_backup(false, false)";
/// Ends a non-exclusive backup without waiting for the archiver.
#[cfg(not(any(feature = "pg13", feature = "pg14")))]
pub(super) const BACKUP_STOP: &str =
    "SELECT lsn::text, labelfile, spcmapfile FROM pg_catalog.pg_backup_stop(false)";

/// What ends a backup.
pub(super) const BACKUP_STOP_NAME: &str =
    if cfg!(any(feature = "pg13", feature = "pg14")) { "pg_stop_backup" } else { "pg_backup_stop" };

/// The version that the default collation of the database `d` has on this server. Up to 14 a database has no default collation but
/// the C library's, and none is recorded.
pub(super) const DATABASE_COLLATION_VERSION: &str = if cfg!(any(feature = "pg13", feature = "pg14")) {
    "NULL::text"
} else {
    "pg_catalog.pg_database_collation_actual_version(d.oid)"
};

/// Makes undefined settings of this prefix an error, as PostgreSQL 15 and later can.
pub(crate) fn reserve_setting_prefix(prefix: &'static CStr) {
    // SAFETY: a NUL-terminated string of static lifetime; called from _PG_init.
    #[cfg(not(any(feature = "pg13", feature = "pg14")))]
    unsafe {
        pg_sys::MarkGUCPrefixReserved(prefix.as_ptr());
    }
    // SAFETY: as above; the older name only warns.
    #[cfg(any(feature = "pg13", feature = "pg14"))]
    unsafe {
        pg_sys::EmitWarningsOnPlaceholders(prefix.as_ptr());
    }
}

/// Whether libpq knows `require_auth`: the standby's, whose major version is this server's.
pub(crate) const LIBPQ_HAS_REQUIRE_AUTH: bool =
    !cfg!(any(feature = "pg13", feature = "pg14", feature = "pg15"));

/// Creates a physical slot and makes it this session's: `ReplicationSlotCreate`.
///
/// # Safety
/// The session must hold no slot, and `name` must be a valid slot name.
pub(super) unsafe fn create_ephemeral_slot(name: &CStr) {
    let ephemeral = pg_sys::ReplicationSlotPersistency::RS_EPHEMERAL;
    // SAFETY: passed on to the caller.
    #[cfg(feature = "pg13")]
    unsafe {
        pg_sys::ReplicationSlotCreate(name.as_ptr(), false, ephemeral);
    }
    // SAFETY: as above; without two-phase commits, which are for logical slots.
    #[cfg(any(feature = "pg14", feature = "pg15", feature = "pg16"))]
    unsafe {
        pg_sys::ReplicationSlotCreate(name.as_ptr(), false, ephemeral, false);
    }
    // SAFETY: as above; neither a failover slot nor one synchronised from a primary.
    #[cfg(any(feature = "pg17", feature = "pg18"))]
    unsafe {
        pg_sys::ReplicationSlotCreate(name.as_ptr(), false, ephemeral, false, false, false);
    }
    // SAFETY: as above; nor one of REPACK, the parameter before these.
    #[cfg(not(any(
        feature = "pg13",
        feature = "pg14",
        feature = "pg15",
        feature = "pg16",
        feature = "pg17",
        feature = "pg18"
    )))]
    unsafe {
        pg_sys::ReplicationSlotCreate(name.as_ptr(), false, ephemeral, false, false, false, false);
    }
}

use renewed_in_19::die;
#[cfg(any(test, feature = "pg_test"))]
pub(super) use renewed_in_19::new_tranche;
pub(super) use renewed_in_19::{CHECKPOINT_FAST, FULL_BACKUP, check_slot_requirements};
pub(super) use renewed_in_19::{ERRORS_STAY, raise_again};

#[cfg(not(any(
    feature = "pg13",
    feature = "pg14",
    feature = "pg15",
    feature = "pg16",
    feature = "pg17",
    feature = "pg18"
)))]
mod renewed_in_19 {
    use pgrx::pg_sys;

    /// Whether pgrx leaves an ERROR that it has caught on the server's stack of them.
    pub(in crate::pg) const ERRORS_STAY: bool = true;

    /// Raises a copy of an ERROR.
    ///
    /// # Safety
    /// It must be one that was copied from there.
    pub(in crate::pg) unsafe fn raise_again(error: *mut pg_sys::ErrorData) {
        // SAFETY: passed on to the caller.
        unsafe { pg_sys::ReThrowError(error) }
    }

    /// A checkpoint that does not take its time.
    pub(in crate::pg) const CHECKPOINT_FAST: u32 = pg_sys::CHECKPOINT_FAST;

    /// What pg_stat_progress_basebackup shows as the type of the backup: which parameter it is, and "full".
    pub(in crate::pg) const FULL_BACKUP: Option<(u32, u32)> =
        Some((pg_sys::PROGRESS_BASEBACKUP_BACKUP_TYPE, pg_sys::PROGRESS_BASEBACKUP_BACKUP_TYPE_FULL));

    /// Raises an ERROR if the server's wal_level or max_replication_slots rules slots out.
    pub(in crate::pg) fn check_slot_requirements() {
        // SAFETY: reads settings; slots that are kept for REPACK are of no use to us.
        unsafe { pg_sys::CheckSlotRequirements(false) };
    }

    /// A tranche of lightweight locks: each is made with its name.
    #[cfg(any(test, feature = "pg_test"))]
    pub(in crate::pg) fn new_tranche() -> std::ffi::c_int {
        // SAFETY: the name is copied.
        unsafe { pg_sys::LWLockNewTrancheId(c"pgpool_recovery".as_ptr()) }
    }

    unsafe extern "C-unwind" {
        // the server's handler itself: pgrx has a wrapper of it, which is no handler (tcop/tcopprot.h)
        pub(super) fn die(signal: std::ffi::c_int, sender: *const pg_sys::pg_signal_info);
    }
}

#[cfg(any(
    feature = "pg13",
    feature = "pg14",
    feature = "pg15",
    feature = "pg16",
    feature = "pg17",
    feature = "pg18"
))]
mod renewed_in_19 {
    use pgrx::pg_sys;

    pub(in crate::pg) const ERRORS_STAY: bool = false;

    /// Nothing has to be.
    pub(in crate::pg) unsafe fn raise_again(_: *mut pg_sys::ErrorData) {}

    pub(in crate::pg) const CHECKPOINT_FAST: u32 = pg_sys::CHECKPOINT_IMMEDIATE;

    // the view has no such column
    pub(in crate::pg) const FULL_BACKUP: Option<(u32, u32)> = None;

    pub(in crate::pg) fn check_slot_requirements() {
        // SAFETY: reads settings.
        unsafe { pg_sys::CheckSlotRequirements() };
    }

    #[cfg(any(test, feature = "pg_test"))]
    pub(in crate::pg) fn new_tranche() -> std::ffi::c_int {
        // SAFETY: draws a number.
        unsafe { pg_sys::LWLockNewTrancheId() }
    }

    unsafe extern "C-unwind" {
        // it is not told who sent the signal
        pub(super) fn die(signal: std::ffi::c_int);
    }
}

/// Makes an existing slot this session's, raising an ERROR if another session holds it.
///
/// # Safety
/// The session must hold no slot.
pub(super) unsafe fn acquire_slot(name: &CStr) {
    // SAFETY: passed on to the caller.
    #[cfg(feature = "pg13")]
    unsafe {
        pg_sys::ReplicationSlotAcquire(name.as_ptr(), pg_sys::SlotAcquireBehavior::SAB_Error);
    }
    // SAFETY: as above.
    #[cfg(any(feature = "pg14", feature = "pg15", feature = "pg16", feature = "pg17"))]
    unsafe {
        pg_sys::ReplicationSlotAcquire(name.as_ptr(), true);
    }
    // SAFETY: as above; an invalidated slot is an ERROR.
    #[cfg(not(any(
        feature = "pg13",
        feature = "pg14",
        feature = "pg15",
        feature = "pg16",
        feature = "pg17"
    )))]
    unsafe {
        pg_sys::ReplicationSlotAcquire(name.as_ptr(), true, true);
    }
}

/// How far the WAL of a primary is durable.
pub(super) fn flushed() -> pg_sys::XLogRecPtr {
    // SAFETY: reads shared memory under the server's own lock.
    #[cfg(any(feature = "pg13", feature = "pg14"))]
    unsafe {
        pg_sys::GetFlushRecPtr()
    }
    // SAFETY: as above; it may be asked for the timeline, too.
    #[cfg(not(any(feature = "pg13", feature = "pg14")))]
    unsafe {
        pg_sys::GetFlushRecPtr(std::ptr::null_mut())
    }
}

/// The argument of `do_pg_abort_backup` for "a running backup, say nothing": before PostgreSQL 16 it
/// asks for a warning; from 16 on it says that the start itself failed, and the warning always comes.
pub(super) fn abort_backup_argument() -> pg_sys::Datum {
    pg_sys::Datum::from(false)
}

/// Ends what an ERROR has interrupted of the reading or writing of a buffer, as AbortSubTransaction() does after it has released
/// the lightweight locks (xact.c).
///
/// # Safety
/// The frames that read or wrote are gone, or will not go on.
#[cfg_attr(
    not(any(feature = "pg13", feature = "pg14", feature = "pg15", feature = "pg16", feature = "pg17")),
    expect(ffi_unwind_calls, reason = "inside the guard that pgrx's own wrappers use")
)]
pub(super) unsafe fn abandon_io() {
    // SAFETY: passed on to the caller. 16 and 17 leave it to the resource owner.
    #[cfg(any(feature = "pg13", feature = "pg14", feature = "pg15"))]
    unsafe {
        pg_sys::AbortBufferIO();
    }
    #[cfg(not(any(
        feature = "pg13",
        feature = "pg14",
        feature = "pg15",
        feature = "pg16",
        feature = "pg17"
    )))]
    {
        unsafe extern "C-unwind" {
            // pgrx has no binding for it (storage/aio.h)
            fn pgaio_error_cleanup();
        }
        // SAFETY: passed on to the caller. The closure owns nothing that an ERROR would skip.
        unsafe { pg_sys::ffi::pg_guard_ffi_boundary(|| pgaio_error_cleanup()) };
    }
}

/// Has SIGTERM remembered until the process next looks at interrupts, as in a backend.
///
/// # Safety
/// The process must look at interrupts.
pub(super) unsafe fn remember_sigterm() {
    let signal = pg_sys::SIGTERM as std::ffi::c_int;
    // SAFETY: installs the server's own handler, which only sets flags and a latch.
    #[cfg(any(feature = "pg13", feature = "pg14", feature = "pg15", feature = "pg16", feature = "pg17"))]
    unsafe {
        pg_sys::pqsignal(signal, Some(die));
    }
    // SAFETY: as above; the backend's function has a name of its own.
    #[cfg(not(any(
        feature = "pg13",
        feature = "pg14",
        feature = "pg15",
        feature = "pg16",
        feature = "pg17"
    )))]
    unsafe {
        pg_sys::pqsignal_be(signal, Some(die));
    }
}

/// The socket of the session's client; `None` in a process that serves none.
pub(super) fn client_socket() -> Option<i32> {
    // SAFETY: MyProcPort is null in background processes, else it points to the session's Port for the
    // life of the process. pgrx has no binding for the struct; the socket, a C int, is its first field in
    // every version from 13 to 19 (libpq-be.h).
    let socket = unsafe {
        let port = pg_sys::MyProcPort;
        if port.is_null() {
            return None;
        }
        *port.cast::<std::ffi::c_int>()
    };
    (socket >= 0).then_some(socket)
}

/// The timeout that would end the session in the middle of a recovery: Pgpool-II switches statement_timeout
/// off before its call, and does not know this one. PostgreSQL 17 and later have it.
pub(super) const TRANSACTION_TIMEOUT: Option<&CStr> =
    if cfg!(any(feature = "pg13", feature = "pg14", feature = "pg15", feature = "pg16")) {
        None
    } else {
        Some(c"transaction_timeout")
    };
