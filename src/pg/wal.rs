//! The end of this server's WAL, and whether transactions go on.

use pgdata::wal::Lsn;
use pgpool_recovery_core::error::{Error, Kind, Result};
use pgrx::pg_sys;

use super::query;

/// Number of the next transaction that writes: as long as it stays the same, none begins to.
pub(crate) fn next_transaction() -> u64 {
    // SAFETY: reads shared memory under the server's own lock.
    unsafe { pg_sys::ReadNextFullTransactionId() }.value
}

/// Writes a restore point and makes the WAL durable up to its end, which is returned: a position at which a record ends, which
/// replay therefore reaches. What has committed before, asynchronously perhaps, lies before it.
pub(crate) fn flush_to_restore_point(name: &str) -> Result<Lsn> {
    let sql = "SELECT (pg_catalog.pg_create_restore_point($1) - '0/0'::pg_lsn)::text";
    let end = query::row(sql, &[name.into()])?.string("a position")?.and_then(|lsn| lsn.parse().ok());
    let end = end.ok_or_else(|| Error::new(Kind::Internal, "the server returned no valid LSN"))?;
    // SAFETY: a position up to which WAL has been written by the call above; raises an ERROR if it cannot be flushed.
    unsafe { pg_sys::XLogFlush(end) };
    Ok(Lsn(end))
}
