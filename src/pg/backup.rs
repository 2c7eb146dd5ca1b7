//! A non-exclusive base backup in this session.

use pgdata::wal::Lsn;
use pgpool_recovery_core::error::{Error, Kind, Result};
use pgrx::pg_sys;

use super::{cleanup, compat, query};

/// A backup that runs until it is stopped; dropping it aborts it.
///
/// If the backend is terminated PostgreSQL aborts the backup itself: `pg_backup_start` registers
/// `do_pg_abort_backup` to run at exit (xlogfuncs.c).
#[derive(Debug)]
pub(crate) struct Backup {
    /// Where replay must start, the redo pointer of the backup's checkpoint.
    pub(crate) start_lsn: Lsn,
}

/// What `pg_backup_stop` returned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BackupStop {
    /// The copy is consistent once replay reached this position.
    pub(crate) stop_lsn: Lsn,
    /// Contents of `backup_label`.
    pub(crate) label_file: Vec<u8>,
}

impl Backup {
    /// Starts a backup; `fast`: with an immediate checkpoint instead of a spread one. Waits for the
    /// checkpoint and can be cancelled meanwhile.
    pub(crate) fn start(label: &str, fast: bool) -> Result<Self> {
        if is_running() {
            return Err(Error::new(Kind::WrongState, "a backup is already in progress in this session")
                .detail("A session runs one backup at a time, and this one started it itself.")
                .hint(format!("End it with {}(), or call from another session.", compat::BACKUP_STOP_NAME)));
        }
        // From here a backup of this session is ours, so the guard exists before the backup does: none
        // can be left behind if something fails between its start and our seeing the result.
        let mut backup = Self { start_lsn: Lsn(0) };
        let lsn = query::row(compat::BACKUP_START, &[label.into(), fast.into()])?.string("the start LSN")?;
        backup.start_lsn = parse_lsn(lsn.as_deref())?;
        Ok(backup)
    }

    /// Ends the backup. Does not wait for the archiver: the caller copies the WAL itself.
    pub(crate) fn stop(self) -> Result<BackupStop> {
        let mut row = query::row(compat::BACKUP_STOP, &[])?;
        let stop_lsn = parse_lsn(row.string("the stop LSN")?.as_deref())?;
        Ok(BackupStop { stop_lsn, label_file: row.bytes().unwrap_or_default() })
    }
}

impl Drop for Backup {
    fn drop(&mut self) {
        if !is_running() {
            return;
        }
        cleanup::quietly("abort the backup", || {
            // SAFETY: the session runs a backup, as checked just now; this is what the server calls itself
            // when a session that runs one ends.
            unsafe { pg_sys::do_pg_abort_backup(0, compat::abort_backup_argument()) }
        });
    }
}

/// How far this primary's WAL is durable. Cheap enough to be asked many times a second.
pub(crate) fn flushed() -> Lsn {
    Lsn(compat::flushed())
}

/// Whether this session runs a backup.
pub(crate) fn is_running() -> bool {
    // SAFETY: reads a variable of this process.
    unsafe { pg_sys::get_backup_status() != pg_sys::SessionBackupState::SESSION_BACKUP_NONE }
}

/// What a `pg_lsn` shows as text.
fn parse_lsn(text: Option<&str>) -> Result<Lsn> {
    text.and_then(|text| text.parse().ok()).ok_or_else(|| {
        Error::new(Kind::Internal, "the server returned no valid LSN")
            .detail(format!("It returned {text:?}."))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lsn() {
        assert_eq!(parse_lsn(Some("16/B374D848")), Ok(Lsn(0x16_B374_D848)));
        assert_eq!(parse_lsn(Some("FFFFFFFF/FFFFFFFF")), Ok(Lsn(u64::MAX)));
        for bad in [None, Some(""), Some("16"), Some("16/"), Some("x/1"), Some("1/123456789")] {
            assert!(parse_lsn(bad).is_err(), "{bad:?}");
        }
    }
}
