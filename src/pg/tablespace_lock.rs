//! A moment at which no session is making or dropping a tablespace.

use pgrx::pg_sys;

/// Looks at something while no such command goes on; `None` if one does. It takes a lock on pg_tablespace before it touches a file,
/// and keeps it until its transaction has ended: what it does is in the WAL by then.
pub(crate) fn while_tablespaces_stand<T>(look: impl FnOnce() -> T) -> Option<T> {
    let (catalog, mode) = (pg_sys::TableSpaceRelationId, pg_sys::ShareLock as pg_sys::LOCKMODE);
    // SAFETY: plain values; the wrapper turns an ERROR into a panic.
    if !unsafe { pg_sys::ConditionalLockRelationOid(catalog, mode) } {
        return None;
    }
    // if this panics, the end of the transaction lets go of the lock
    let seen = look();
    // SAFETY: the lock was taken above, and nothing in between lets go of it.
    unsafe { pg_sys::UnlockRelationOid(catalog, mode) };
    Some(seen)
}
