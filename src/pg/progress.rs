//! `pg_stat_progress_basebackup`, the server's own view, fed by a backend that is no walsender.

use pgpool_recovery_core::progress::{Phase, Progress};
use pgrx::pg_sys;

use super::{cleanup, compat};

/// The row of this run in the view; dropping it removes the row.
pub(crate) struct ProgressReport {
    phase: i64,
    total: i64,
    streamed: i64,
}

impl ProgressReport {
    /// Shows the run: initializing, total unknown.
    pub(crate) fn start() -> Self {
        // SAFETY: writes this backend's own status entry.
        unsafe {
            pg_sys::pgstat_progress_start_command(
                pg_sys::ProgressCommandType::PROGRESS_COMMAND_BASEBACKUP,
                pg_sys::InvalidOid,
            );
        }
        // The view shows -1 as NULL: not known yet.
        set(pg_sys::PROGRESS_BASEBACKUP_BACKUP_TOTAL, -1);
        if let Some((parameter, full)) = compat::FULL_BACKUP {
            set(parameter, full.into());
        }
        Self { phase: 0, total: -1, streamed: 0 }
    }

    /// Enters a phase; never goes back to an earlier one.
    pub(crate) fn enter(&mut self, phase: Phase) {
        raise(pg_sys::PROGRESS_BASEBACKUP_PHASE, &mut self.phase, phase as i64);
    }

    /// The number of tablespaces, the default one included.
    pub(crate) fn tablespaces(&self, total: usize) {
        set(pg_sys::PROGRESS_BASEBACKUP_TBLSPC_TOTAL, i64::try_from(total).unwrap_or(i64::MAX));
    }

    /// All tablespaces are through.
    pub(crate) fn tablespaces_streamed(&self, streamed: usize) {
        set(pg_sys::PROGRESS_BASEBACKUP_TBLSPC_STREAMED, i64::try_from(streamed).unwrap_or(i64::MAX));
    }

    /// Shows the counters of a run: bytes compared (equal or sent) of the bytes in the plan.
    pub(crate) fn show(&mut self, progress: &Progress) {
        self.enter(progress.phase());
        let bytes = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        if progress.phase() >= Phase::Stream {
            // pg_basebackup lets the total grow with what is streamed, so that it is never exceeded.
            let total = bytes(progress.total().max(progress.done()));
            raise(pg_sys::PROGRESS_BASEBACKUP_BACKUP_TOTAL, &mut self.total, total);
        }
        raise(pg_sys::PROGRESS_BASEBACKUP_BACKUP_STREAMED, &mut self.streamed, bytes(progress.done()));
    }
}

impl Drop for ProgressReport {
    fn drop(&mut self) {
        cleanup::quietly("end the progress report", || {
            // SAFETY: writes this backend's own status entry.
            unsafe { pg_sys::pgstat_progress_end_command() }
        });
    }
}

/// Writes a counter that only grows.
fn raise(parameter: u32, shown: &mut i64, value: i64) {
    if value > *shown {
        *shown = value;
        set(parameter, value);
    }
}

fn set(parameter: u32, value: i64) {
    // SAFETY: writes this backend's own status entry; the parameters of this command are 0 to 5.
    unsafe { pg_sys::pgstat_progress_update_param(parameter as i32, value) }
}
