//! Reading WAL on while its server writes it.
//!
//! The checkpoint at the start of a backup recycles the segments before it: what was written just before is gone when the start
//! is known. So it is read as it is written. A segment that is open can be read to its end whatever becomes of its name; what
//! is written over it fails the checks of its pages and records.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pgdata::wal::Lsn;
use pgdata::wal::directory::Directory;
use pgdata::wal::reader::Reader;

use super::block_map::BlockMap;
use super::coverage::behind_header;
use super::facts::ChainFacts;
use super::lineage::Lineage;
use super::walk::{Wal, each};
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
            reader: wal.reader(lineage, from, Lsn(u64::MAX)),
            facts: ChainFacts::new(lineage.clone(), from),
            map: BlockMap::default(),
        };
        // opens the segment before this returns
        reading.advance(&AtomicU64::new(NOTHING))?;
        let wanted = Arc::new(AtomicU64::new(UNKNOWN));
        let shared = Arc::clone(&wanted);
        let thread = std::thread::Builder::new()
            .name("wal-follower".to_owned())
            .spawn(move || reading.run(&shared))
            .map_err(|error| Error::no_thread(&error))?;
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
            self.advance(wanted)?;
            let is_reached = end != UNKNOWN && behind_header(self.facts.end) >= behind_header(Lsn(end));
            let is_late =
                end != UNKNOWN && since_known.get_or_insert_with(Instant::now).elapsed() >= PATIENCE;
            if is_reached || is_late {
                return Ok((self.facts, self.map));
            }
            std::thread::sleep(INTERVAL);
        }
    }

    /// Reads what is there now, but no more than is wanted: a busy server may write as fast as this reads.
    fn advance(&mut self, wanted: &AtomicU64) -> Result<()> {
        self.reader.resume();
        let Self { reader, facts, map } = self;
        let malformed = each(reader, |record| {
            facts.add(record, None);
            map.add_record(record);
            let is_enough = facts.end.0 > wanted.load(Ordering::Relaxed);
            Ok(if is_enough { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        // what follows such a record may be readable the next time
        facts.malformed = facts.malformed.take().or(malformed);
        facts.why = reader.end().map(|end| end.why.to_string()).unwrap_or_default();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use pgdata::control_file::{ControlFile, sample};
    use pgdata::wal::sample::Writer;
    use pgdata::wal::segment_name;

    use super::*;

    #[test]
    fn no_more_is_read_than_is_wanted() {
        const SEGMENT: u32 = 1 << 20;
        let mut writer = Writer::new(0xD110, SEGMENT, Lsn(3 << 20));
        let starts: Vec<Lsn> = (0..100).map(|_| writer.record(10, 0, &[], &[1; 100])).collect();
        let directory = tempfile::tempdir().expect("a directory");
        let segment = directory.path().join(segment_name(1, 3, SEGMENT));
        std::fs::write(segment, writer.finish().bytes).expect("write");
        let mut control = ControlFile::parse(&sample(42)).expect("a sample");
        control.wal_segment_size = SEGMENT;
        let (wal, lineage) = (Wal::new(directory.path(), &control), Lineage::new(1, &[]));
        let mut reading = Reading {
            reader: wal.reader(&lineage, starts[0], Lsn(u64::MAX)),
            facts: ChainFacts::new(lineage.clone(), starts[0]),
            map: BlockMap::default(),
        };
        let mut read_to = |wanted| {
            reading.advance(&AtomicU64::new(wanted)).expect("readable");
            starts.partition_point(|start| *start < reading.facts.end)
        };
        assert_eq!(read_to(NOTHING), 1);
        assert_eq!(read_to(starts[50].0), 51);
        assert_eq!(read_to(UNKNOWN), 100);
    }
}
