//! Showing a run while it goes on: the progress view, NOTICEs, and whether the slot still holds and the
//! primary has room.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pgpool_recovery_core::error::Result;
use pgpool_recovery_core::progress::{Phase, Progress};
use pgpool_recovery_core::sender::WalPositions;
use pgpool_recovery_core::sys::size::pretty;
use pgpool_recovery_core::sys::space::WatchedSpace;

use crate::history::Recording;
use crate::pg::backup;
use crate::pg::log;
use crate::pg::progress::ProgressReport;
use crate::pg::slot::Slot;

/// How often a NOTICE tells how far the run is.
const NOTICE: Duration = Duration::from_secs(5);

/// How often the slot is looked at: the checkpointer, which would terminate us, must not be faster.
const SLOT: Duration = Duration::from_millis(100);

/// How often the primary's file systems are asked.
const SPACE: Duration = Duration::from_millis(100);

/// The watch over one run; its `tick` is called many times a second.
pub(crate) struct Watch<'a> {
    progress: Arc<Progress>,
    /// Where the story is written down; a dry run has none.
    recording: Option<&'a Recording<'a>>,
    report: ProgressReport,
    last_notice: Instant,
    last_slot: Instant,
    space: WatchedSpace,
    last_space: Instant,
    /// The WAL that is being sent.
    wal: Option<Arc<WalPositions>>,
}

impl<'a> Watch<'a> {
    pub(crate) fn start(progress: Arc<Progress>, recording: Option<&'a Recording<'a>>) -> Self {
        let now = Instant::now();
        Self {
            progress,
            recording,
            report: ProgressReport::start(),
            last_notice: now,
            last_slot: now,
            space: WatchedSpace::default(),
            last_space: now,
            wal: None,
        }
    }

    /// The watch over the next attempt of the same run.
    pub(crate) fn next_attempt(self) -> Self {
        let Self { progress, recording, report, .. } = self;
        // before the next one begins: both are the one entry of this backend
        drop(report);
        Self::start(progress, recording)
    }

    /// From now on a run that leaves the primary too little room there fails.
    pub(crate) fn guard(&mut self, space: WatchedSpace) {
        self.space.add(space);
    }

    /// From now on WAL is sent as it is flushed, and the slot keeps only what the target does not have yet.
    pub(crate) fn send_wal(&mut self, positions: Arc<WalPositions>) {
        self.wal = Some(positions);
    }

    /// Enters a phase and shows it at once.
    pub(crate) fn enter(&mut self, phase: Phase) {
        self.progress.enter(phase);
        self.report.show(&self.progress);
        if let Some(recording) = self.recording {
            recording.show_now();
        }
    }

    /// The number of tablespaces, the default one included.
    pub(crate) fn tablespaces(&self, total: usize) {
        self.report.tablespaces(total);
    }

    /// All tablespaces are through.
    pub(crate) fn tablespaces_streamed(&self, streamed: usize) {
        self.report.tablespaces_streamed(streamed);
    }

    /// Shows what changed and has new WAL sent; fails if the slot lost WAL or the primary's file system runs full.
    pub(crate) fn tick(&mut self, slot: Option<&Slot>) -> Result<()> {
        if let Some(wal) = &self.wal {
            wal.set_flushed(backup::flushed());
            self.progress.set_wal_behind(wal.behind());
        }
        self.look_after(slot)?;
        self.report.show(&self.progress);
        if let Some(recording) = self.recording {
            recording.show();
        }
        if self.last_notice.elapsed() >= NOTICE {
            self.last_notice = Instant::now();
            log::notice(&self.line());
        }
        if self.last_space.elapsed() >= SPACE {
            self.last_space = Instant::now();
            if let Err(error) = self.space.check() {
                // not when the threads have ended, which may wait for the target's disk
                if let Some(slot) = slot {
                    slot.give_up();
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// Has the slot keep what the target needs; fails if it does not.
    fn look_after(&mut self, slot: Option<&Slot>) -> Result<()> {
        match (slot, &self.wal) {
            (Some(slot), Some(wal)) => slot.follow(wal.durable(), wal.flushed()),
            (Some(slot), None) if self.last_slot.elapsed() >= SLOT => {
                self.last_slot = Instant::now();
                slot.check_wal_reserved()
            }
            _ => Ok(()),
        }
    }

    /// Tells that the data is through, whatever the last NOTICE said.
    pub(crate) fn data_done(&mut self) {
        self.report.show(&self.progress);
        self.last_notice = Instant::now();
        log::notice(&self.line());
    }

    fn line(&self) -> String {
        match self.progress.phase() {
            Phase::Stream => stream_line(&self.progress, self.progress.streaming().unwrap_or_default()),
            Phase::TransferWal => format!(
                "pgpool_recovery: 100 %, making the standby durable, {} of WAL sent",
                pretty(self.progress.wal())
            ),
            phase => format!("pgpool_recovery: 0 %, {}", waiting_for(phase)),
        }
    }
}

fn waiting_for(phase: Phase) -> &'static str {
    match phase {
        Phase::WaitCheckpoint => "waiting for the checkpoint",
        Phase::EstimateSize => "listing the data directory",
        Phase::WaitWalArchive => "ending the backup",
        _ => "looking at the target",
    }
}

fn stream_line(progress: &Progress, elapsed: Duration) -> String {
    let (done, total) = (progress.done(), progress.total());
    let percent = (done.min(total) * 100).checked_div(total).unwrap_or(100);
    let rate = done as f64 / elapsed.as_secs_f64().max(0.001);
    let left = total.saturating_sub(done) as f64 / rate.max(1.0);
    let cloned = match progress.cloned() {
        0 => String::new(),
        cloned => format!("{} cloned, ", pretty(cloned)),
    };
    format!(
        "pgpool_recovery: {percent} %, {} of {} compared, {cloned}{} sent, {}/s, {} left",
        pretty(done),
        pretty(total),
        pretty(progress.sent()),
        pretty(rate as u64),
        duration(Duration::from_secs_f64(left.min(1e9))),
    )
}

fn duration(left: Duration) -> String {
    let seconds = left.as_secs();
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds} s"),
        (0, minutes, seconds) => format!("{minutes} min {seconds} s"),
        (hours, minutes, _) => format!("{hours} h {minutes} min"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_for_people() {
        let progress = Progress::default();
        progress.set_total(10 << 20);
        progress.add_compared(5 << 20);
        progress.add_sent(1 << 10);
        let line = stream_line(&progress, Duration::from_secs(5));
        assert_eq!(
            line,
            "pgpool_recovery: 50 %, 5.0 MB of 10.0 MB compared, 1.0 kB sent, 1.0 MB/s, 5 s left"
        );
        progress.add_cloned(5 << 20);
        let line = stream_line(&progress, Duration::from_secs(5));
        assert!(line.contains("5.0 MB cloned, 1.0 kB sent"), "{line}");
        assert_eq!(duration(Duration::from_secs(3700)), "1 h 1 min");
    }
}
