//! Reading WAL on while its server writes it.
//!
//! The checkpoint at the start of a backup recycles the segments before it: what was written just before is gone when the start
//! is known. So it is read as it is written. A segment that is open can be read to its end whatever becomes of its name; what
//! is written over it fails the checks of its pages and records.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pgdata::wal::Lsn;
use pgdata::wal::directory::Directory;
use pgdata::wal::reader::{ReadError, Reader};

use super::block_map::BlockMap;
use super::coverage::behind_header;
use super::facts::ChainFacts;
use super::lineage::Lineage;
use super::walk::Wal;
use crate::error::{Error, Kind, Result};

/// How often it looks for more: much less often than a checkpoint takes.
const INTERVAL: Duration = Duration::from_millis(10);

/// How long the last records may take to appear once it is known where they end: they are on the disk by then.
const PATIENCE: Duration = Duration::from_secs(10);

/// The end is not known yet.
const UNKNOWN: u64 = u64::MAX;

/// Nothing more is wanted.
const NOTHING: u64 = 0;

/// A thread that reads a primary's WAL on.
#[derive(Debug)]
pub struct Follower {
    thread: Option<JoinHandle<Result<(ChainFacts, BlockMap)>>>,
    /// To where it is to be read.
    wanted: Arc<AtomicU64>,
}

impl Follower {
    /// Begins at `from`, where a record ends. To be called where signals are blocked: the thread inherits that.
    pub fn start(wal: &Wal<'_>, lineage: &Lineage, from: Lsn) -> Result<Self> {
        let mut reading = Reading {
            reader: wal.reader_from(lineage, from),
            facts: ChainFacts::new(lineage.clone(), from),
            map: BlockMap::default(),
        };
        // opens the segment before this returns
        reading.advance()?;
        let wanted = Arc::new(AtomicU64::new(UNKNOWN));
        let shared = Arc::clone(&wanted);
        let thread = std::thread::Builder::new()
            .name("wal-follower".to_owned())
            .spawn(move || reading.run(&shared))
            .map_err(Error::on("start a thread"))?;
        Ok(Self { thread: Some(thread), wanted })
    }

    /// Reads on to `end`, where a record ends, and returns what the WAL tells. If that is not reached, the facts say so.
    pub fn finish(mut self, end: Lsn) -> Result<(ChainFacts, BlockMap)> {
        self.wanted.store(end.0, Ordering::Release);
        let Some(thread) = self.thread.take() else {
            return Err(Error::new(Kind::Internal, "the WAL was read already"));
        };
        let panicked = |_| Err(Error::new(Kind::Internal, "the thread that reads WAL panicked"));
        thread.join().unwrap_or_else(panicked)
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.wanted.store(NOTHING, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            // it ends within its interval
            let _ = thread.join();
        }
    }
}

struct Reading {
    reader: Reader<Directory>,
    facts: ChainFacts,
    map: BlockMap,
}

impl Reading {
    fn run(mut self, wanted: &AtomicU64) -> Result<(ChainFacts, BlockMap)> {
        let mut since_known = None;
        loop {
            let end = wanted.load(Ordering::Acquire);
            self.advance()?;
            let is_reached = end != UNKNOWN && behind_header(self.facts.end) >= behind_header(Lsn(end));
            let is_late =
                end != UNKNOWN && since_known.get_or_insert_with(Instant::now).elapsed() >= PATIENCE;
            if is_reached || is_late {
                return Ok((self.facts, self.map));
            }
            std::thread::sleep(INTERVAL);
        }
    }

    /// Reads what is there now.
    fn advance(&mut self) -> Result<()> {
        self.reader.resume();
        loop {
            match self.reader.next_record() {
                Ok(Some(record)) => {
                    self.facts.add(&record, None);
                    self.map.add_record(&record);
                }
                Ok(None) => {
                    self.facts.why = self.reader.end().map(|end| end.why.to_string()).unwrap_or_default();
                    return Ok(());
                }
                Err(ReadError::Malformed { at, source }) => {
                    self.facts.malformed = Some(format!("{source}, at {at}"));
                    return Ok(());
                }
                Err(ReadError::Io(error)) => return Err(Error::io("read WAL", &error)),
            }
        }
    }
}
