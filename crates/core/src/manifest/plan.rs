//! What a run is going to move: the primary's directories and files as the scan found them, and
//! how they are cut into pieces of work.

use serde::{Deserialize, Serialize};

use crate::manifest::exclude::relation_segment;
use crate::manifest::path::RelPath;

/// A directory of the plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Directory {
    /// Where it lies.
    #[serde(rename = "p")]
    pub path: RelPath,
    /// Permission bits.
    #[serde(rename = "m")]
    pub mode: u32,
}

/// A regular file of the plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    /// Where it lies.
    #[serde(rename = "p")]
    pub path: RelPath,
    /// Bytes, as the scan saw it; the file may have grown, shrunk or vanished since.
    #[serde(rename = "s")]
    pub size: u64,
    /// Permission bits.
    #[serde(rename = "m")]
    pub mode: u32,
}

/// A tablespace of the primary and where it goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tablespace {
    /// Its OID: the name of its link in `pg_tblspc`.
    pub oid: u32,
    /// Where it lies on the primary.
    pub source: String,
    /// Where it goes on the target.
    pub target: String,
}

/// The data directory of the primary, listed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Directories, parents before children.
    pub directories: Vec<Directory>,
    /// Files; the position is the file's number on the wire.
    pub files: Vec<File>,
    /// Tablespaces outside the data directory.
    pub tablespaces: Vec<Tablespace>,
    /// What the scan left out unexpectedly.
    pub warnings: Vec<String>,
}

impl Plan {
    /// The bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }
}

/// Bytes of one piece of work: large enough that its overhead vanishes, small enough that it stays
/// in a core's cache between reading, hashing and sending, and that many streams need little memory.
pub const RANGE: u64 = 512 << 10;

/// Most files in one batch of small ones.
pub const BATCH_FILES: usize = 256;

/// A part of one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// The file's number in the plan.
    pub file: u32,
    /// Where the part begins.
    pub offset: u64,
    /// Its length; 0 only for an empty file.
    pub length: u32,
}

/// Deals files out to streams as batches of ranges: one range of a large file, or many whole small files.
/// No batch holds more than [`RANGE`] bytes or [`BATCH_FILES`] ranges.
///
/// A stream keeps a large file to itself and goes through it in order: so both ends read it sequentially,
/// and no two streams write one file, for which they would wait on each other. When all files are dealt
/// out, a stream without work takes the second half of the longest rest of a relation: none is left working alone.
#[derive(Debug)]
pub struct Work {
    next_file: usize,
    end_file: usize,
    /// What each stream has left of the file it works on.
    rests: Vec<Option<Rest>>,
    /// Rows of files that are left out, the next one last.
    skipped: Vec<(u32, u32)>,
}

#[derive(Debug, Clone, Copy)]
struct Rest {
    file: usize,
    offset: u64,
    end: u64,
}

impl Rest {
    const fn bytes(self) -> u64 {
        self.end - self.offset
    }
}

impl Work {
    /// The files numbered `first..end`, for `streams` streams.
    pub fn new(first: usize, end: usize, streams: usize) -> Self {
        Self { next_file: first, end_file: end, rests: vec![None; streams], skipped: Vec::new() }
    }

    /// Leaves files out: the first and the last number of each row of neighbours, in order.
    #[must_use]
    pub fn without(mut self, rows: &[(u32, u32)]) -> Self {
        self.skipped = rows.iter().rev().copied().collect();
        self.skip();
        self
    }

    /// The next batch of a stream into `batch`; false when nothing is left for it.
    pub fn next(&mut self, stream: usize, files: &[File], batch: &mut Vec<Range>) -> bool {
        batch.clear();
        if self.rests[stream].is_none() {
            self.deal(files, batch);
            if !batch.is_empty() {
                return true;
            }
            self.rests[stream] = self.claim(files);
        }
        let Some(rest) = &mut self.rests[stream] else {
            return false;
        };
        let length = rest.bytes().min(RANGE);
        batch.push(range(rest.file, rest.offset, length));
        rest.offset += length;
        if rest.bytes() == 0 {
            self.rests[stream] = None;
        }
        true
    }

    /// Whole small files, as many as come next.
    fn deal(&mut self, files: &[File], batch: &mut Vec<Range>) {
        let mut room = RANGE;
        while self.next_file < self.end_file && batch.len() < BATCH_FILES {
            let size = files[self.next_file].size;
            if size > room {
                break;
            }
            room -= size;
            batch.push(range(self.next_file, 0, size));
            self.advance();
        }
    }

    fn advance(&mut self) {
        self.next_file += 1;
        self.skip();
    }

    fn skip(&mut self) {
        while let Some(&(first, last)) = self.skipped.last()
            && first as usize <= self.next_file
        {
            self.next_file = self.next_file.max(last as usize + 1);
            self.skipped.pop();
        }
    }

    /// The next file, a large one; or half of what another stream has before it, if it is a relation's: PostgreSQL never
    /// replaces such a file. Other files, an extension's, may be replaced by rename at any time. Only what is read
    /// through one open file, by one stream from start to end, is then one of the two and no mixture.
    fn claim(&mut self, files: &[File]) -> Option<Rest> {
        if self.next_file < self.end_file {
            let file = self.next_file;
            self.advance();
            return Some(Rest { file, offset: 0, end: files[file].size });
        }
        let shared = |rest: &&mut Rest| relation_segment(&files[rest.file].path).is_some();
        let longest = self.rests.iter_mut().flatten().filter(shared).max_by_key(|rest| rest.bytes())?;
        let kept = (longest.bytes() / 2).next_multiple_of(RANGE);
        if kept >= longest.bytes() {
            return None;
        }
        let taken = Rest { offset: longest.offset + kept, ..*longest };
        longest.end = taken.offset;
        Some(taken)
    }
}

fn range(file: usize, offset: u64, length: u64) -> Range {
    Range {
        file: u32::try_from(file).unwrap_or(u32::MAX),
        offset,
        length: u32::try_from(length).unwrap_or(u32::MAX),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_byte_is_dealt_once(
            sizes in prop::collection::vec(prop_oneof![0_u64..20_000, 0..12 * RANGE], 0..40),
            order in prop::collection::vec(0_usize..4, 1..50),
        ) {
            let files: Vec<File> = sizes
                .iter()
                .enumerate()
                .map(|(i, &size)| File { path: RelPath::parse(&format!("f{i}")).expect("valid"), size, mode: 0o600 })
                .collect();
            let mut dealt = vec![Vec::new(); files.len()];
            let mut work = Work::new(0, files.len(), 4);
            let mut batch = Vec::new();
            // streams come in some order, until one after the other has nothing left
            let mut streams = order.into_iter().cycle();
            let mut idle = 0;
            while idle < 5 {
                let stream = if idle == 0 { streams.next().unwrap_or(0) } else { idle - 1 };
                if !work.next(stream, &files, &mut batch) {
                    idle += 1;
                    continue;
                }
                idle = 0;
                prop_assert!(!batch.is_empty() && batch.len() <= BATCH_FILES);
                prop_assert!(batch.iter().map(|range| u64::from(range.length)).sum::<u64>() <= RANGE);
                for range in &batch {
                    dealt[range.file as usize].push((range.offset, u64::from(range.length)));
                }
            }
            for (ranges, size) in dealt.iter_mut().zip(sizes) {
                ranges.sort_unstable();
                let end = ranges.iter().try_fold(0, |end, &(offset, length)| (offset == end).then_some(end + length));
                prop_assert_eq!(end, Some(size));
                prop_assert!(size > 0 || ranges.len() == 1);
            }
        }
    }

    #[test]
    fn skipped_files_are_not_dealt() {
        let files: Vec<File> = (0..10)
            .map(|number| File {
                path: RelPath::parse(&format!("f{number}")).expect("valid"),
                size: if number % 2 == 0 { 10 } else { RANGE + 1 },
                mode: 0o600,
            })
            .collect();
        let mut work = Work::new(0, 10, 1).without(&[(0, 1), (3, 3), (8, 9)]);
        let (mut batch, mut dealt) = (Vec::new(), Vec::new());
        while work.next(0, &files, &mut batch) {
            dealt.extend(batch.iter().map(|range| range.file));
        }
        dealt.dedup();
        assert_eq!(dealt, [2, 4, 5, 6, 7]);
    }

    #[test]
    fn a_stream_keeps_its_file_and_the_last_one_is_shared() {
        let file =
            |name: &str| File { path: RelPath::parse(name).expect("valid"), size: 8 * RANGE, mode: 0o600 };
        let files = [file("base/5/16384"), file("pg_tblspc/16390/PG_15_202209061/5/16385_fsm.1")];
        let mut work = Work::new(0, 2, 2);
        let mut batch = Vec::new();
        let mut next =
            |stream| work.next(stream, &files, &mut batch).then(|| (batch[0].file, batch[0].offset / RANGE));
        assert_eq!(
            (next(0), next(1), next(0), next(1)),
            (Some((0, 0)), Some((1, 0)), Some((0, 1)), Some((1, 1)))
        );
        for offset in 2..8 {
            assert_eq!(next(0), Some((0, offset)));
        }
        // six ranges of the other file are left: three for each
        assert_eq!((next(0), next(1)), (Some((1, 5)), Some((1, 2))));
    }

    #[test]
    fn a_file_that_may_be_replaced_stays_with_one_stream() {
        for name in ["base/5/extension.dat", "pg_stat/16384", "16384", "base/5/pg_internal.16384"] {
            let files = [File { path: RelPath::parse(name).expect("valid"), size: 8 * RANGE, mode: 0o600 }];
            let mut work = Work::new(0, 1, 2);
            let mut batch = Vec::new();
            assert!(work.next(0, &files, &mut batch), "{name}");
            assert!(!work.next(1, &files, &mut batch), "{name}: two streams may open two files of this name");
            for number in 1..8 {
                assert!(work.next(0, &files, &mut batch), "{name}");
                assert_eq!(batch[0].offset, number * RANGE, "{name}");
            }
            assert!(!work.next(0, &files, &mut batch), "{name}");
        }
    }
}
