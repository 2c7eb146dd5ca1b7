//! The recovery of this server: whether it goes on, and how far it has come.

use pgdata::wal::Lsn;
use pgrx::pg_sys;

/// Whether this server is a standby, or not yet at the end of its recovery.
pub(crate) fn goes_on() -> bool {
    // SAFETY: reads shared memory.
    unsafe { pg_sys::RecoveryInProgress() }
}

/// The timeline of the last record that was replayed, and where the record ends.
pub(crate) fn replayed() -> (u32, Lsn) {
    let mut timeline = 0;
    // SAFETY: reads shared memory under its spinlock and writes the timeline to where it is told.
    let position = unsafe { pg_sys::GetXLogReplayRecPtr(&raw mut timeline) };
    (timeline, Lsn(position))
}
