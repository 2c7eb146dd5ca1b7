//! What a run has done so far, written by worker threads and read where it is shown.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::sys::lock::lock;

/// The phases of PostgreSQL's `pg_stat_progress_basebackup`, in its order and with its numbers
/// (src/include/commands/progress.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Phase {
    /// Before the backup: settling arguments, looking at the target.
    Initializing = 0,
    /// `pg_backup_start` waits for its checkpoint.
    WaitCheckpoint = 1,
    /// The data directory is listed.
    EstimateSize = 2,
    /// Data files are compared and sent.
    Stream = 3,
    /// `pg_backup_stop`.
    WaitWalArchive = 4,
    /// WAL and the last files are sent, the target is made durable.
    TransferWal = 5,
}

impl Phase {
    /// As `pg_stat_progress_basebackup` calls it (system_views.sql).
    pub const fn name(self) -> &'static str {
        match self {
            Self::Initializing => "initializing",
            Self::WaitCheckpoint => "waiting for checkpoint to finish",
            Self::EstimateSize => "estimating backup size",
            Self::Stream => "streaming database files",
            Self::WaitWalArchive => "waiting for wal archiving to finish",
            Self::TransferWal => "transferring wal files",
        }
    }

    const fn from_u8(value: u8) -> Self {
        match value {
            0 => Self::Initializing,
            1 => Self::WaitCheckpoint,
            2 => Self::EstimateSize,
            3 => Self::Stream,
            4 => Self::WaitWalArchive,
            _ => Self::TransferWal,
        }
    }
}

/// Counters of one run. All only grow, but for those that [`Progress::start_again`] and [`Progress::next_attempt`] reset, and the
/// WAL that is behind.
#[derive(Debug, Default)]
pub struct Progress {
    phase: AtomicU8,
    total: AtomicU64,
    compared: AtomicU64,
    sent: AtomicU64,
    cloned: AtomicU64,
    known: AtomicU64,
    wal: AtomicU64,
    wal_behind: AtomicU64,
    streams: AtomicU32,
    streaming: Mutex<Streaming>,
}

/// When data began to stream, and when it had.
#[derive(Debug, Default)]
struct Streaming {
    began: Option<Instant>,
    ended: Option<Instant>,
}

impl Progress {
    /// Enters a phase; an earlier phase than the current one is ignored.
    pub fn enter(&self, phase: Phase) {
        self.phase.fetch_max(phase as u8, Ordering::Relaxed);
        let mut streaming = lock(&self.streaming);
        if phase == Phase::Stream {
            streaming.began.get_or_insert_with(Instant::now);
        } else if phase > Phase::Stream {
            streaming.ended.get_or_insert_with(Instant::now);
        }
    }

    /// How long data streams, or did; `None` before it does.
    pub fn streaming(&self) -> Option<Duration> {
        let streaming = lock(&self.streaming);
        let ended = streaming.ended.unwrap_or_else(Instant::now);
        streaming.began.map(|began| ended.saturating_duration_since(began))
    }

    /// The current phase.
    pub fn phase(&self) -> Phase {
        Phase::from_u8(self.phase.load(Ordering::Relaxed))
    }

    /// Sets how many streams move the data.
    pub fn set_streams(&self, streams: u32) {
        self.streams.fetch_max(streams, Ordering::Relaxed);
    }

    /// How many streams move the data; 0 before there are any.
    pub fn streams(&self) -> u32 {
        self.streams.load(Ordering::Relaxed)
    }

    /// Sets the bytes of data files the plan holds.
    pub fn set_total(&self, bytes: u64) {
        self.total.fetch_max(bytes, Ordering::Relaxed);
    }

    /// Bytes of data files in the plan.
    pub fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    /// Adds bytes read on the primary and compared: equal or sent.
    pub fn add_compared(&self, bytes: u64) {
        self.compared.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes of data files read and compared.
    pub fn compared(&self) -> u64 {
        self.compared.load(Ordering::Relaxed)
    }

    /// Bytes of data files that need no more looking at: compared or left out.
    pub fn done(&self) -> u64 {
        self.compared().saturating_add(self.known())
    }

    /// What was compared and left out does not count: all of it is compared again. What was sent stays sent.
    pub fn start_again(&self) {
        self.compared.store(0, Ordering::Relaxed);
        self.known.store(0, Ordering::Relaxed);
    }

    /// The run is tried again from its first phase on. What was sent stays sent.
    pub fn next_attempt(&self) {
        self.start_again();
        self.phase.store(Phase::Initializing as u8, Ordering::Relaxed);
        self.total.store(0, Ordering::Relaxed);
        self.wal_behind.store(0, Ordering::Relaxed);
        *lock(&self.streaming) = Streaming::default();
    }

    /// Adds bytes of data files sent, before compression.
    pub fn add_sent(&self, bytes: u64) {
        self.sent.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes of data files sent, before compression.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Adds bytes of data files that were cloned on one file system, not sent.
    pub fn add_cloned(&self, bytes: u64) {
        self.cloned.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes of data files that were cloned.
    pub fn cloned(&self) -> u64 {
        self.cloned.load(Ordering::Relaxed)
    }

    /// Adds bytes of data files that were left out because WAL proves them equal: they are read on neither side.
    pub fn add_known(&self, bytes: u64) {
        self.known.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes of data files that were left out because WAL proves them equal.
    pub fn known(&self) -> u64 {
        self.known.load(Ordering::Relaxed)
    }

    /// Adds bytes of WAL sent, before compression.
    pub fn add_wal(&self, bytes: u64) {
        self.wal.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes of WAL sent, before compression.
    pub fn wal(&self) -> u64 {
        self.wal.load(Ordering::Relaxed)
    }

    /// Sets how much of the WAL that the primary has flushed is not durable on the target yet.
    pub fn set_wal_behind(&self, bytes: u64) {
        self.wal_behind.store(bytes, Ordering::Relaxed);
    }

    /// Bytes of WAL that the primary has flushed and that are not durable on the target yet; 0 before any is sent.
    pub fn wal_behind(&self) -> u64 {
        self.wal_behind.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_never_go_back() {
        let progress = Progress::default();
        progress.enter(Phase::Stream);
        progress.enter(Phase::EstimateSize);
        assert_eq!(progress.phase(), Phase::Stream);
    }

    #[test]
    fn another_attempt_begins_anew_and_keeps_what_was_sent() {
        let progress = Progress::default();
        progress.enter(Phase::TransferWal);
        progress.set_total(90);
        progress.add_compared(50);
        progress.add_sent(20);
        progress.next_attempt();
        assert_eq!((progress.phase(), progress.total(), progress.done()), (Phase::Initializing, 0, 0));
        assert_eq!((progress.sent(), progress.streaming()), (20, None));
    }

    #[test]
    fn streaming_has_a_beginning_and_an_end() {
        let progress = Progress::default();
        assert_eq!(progress.streaming(), None);
        progress.enter(Phase::Stream);
        let first = progress.streaming().expect("it streams");
        std::thread::sleep(Duration::from_millis(2));
        assert!(progress.streaming().expect("it streams") > first);
        progress.enter(Phase::WaitWalArchive);
        let whole = progress.streaming();
        std::thread::sleep(Duration::from_millis(2));
        progress.enter(Phase::TransferWal);
        assert_eq!(progress.streaming(), whole);
    }
}
