//! What a run is going to move: the primary's directories and files as the scan found them, and
//! how they are cut into pieces of work.

use serde::{Deserialize, Serialize};

use crate::path::RelPath;

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
    /// What the scan left out although nobody would expect it.
    pub warnings: Vec<String>,
}

impl Plan {
    /// The bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }
}

/// Bytes of one piece of work: large enough that its overhead vanishes, small enough that it stays
/// in a core's cache between reading, hashing and sending.
pub const RANGE: u64 = 1 << 20;

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

/// Cuts files into batches of ranges, in plan order: one range of a large file, or many whole small
/// files. No batch holds more than [`RANGE`] bytes or [`BATCH_FILES`] ranges.
#[derive(Debug)]
pub struct Batches {
    next_file: usize,
    next_offset: u64,
    end_file: usize,
}

impl Batches {
    /// Batches of the files numbered `first..end`.
    pub const fn new(first: usize, end: usize) -> Self {
        Self { next_file: first, next_offset: 0, end_file: end }
    }

    /// The next batch into `batch`; false when nothing is left.
    pub fn next(&mut self, files: &[File], batch: &mut Vec<Range>) -> bool {
        batch.clear();
        let mut room = RANGE;
        while self.next_file < self.end_file && batch.len() < BATCH_FILES {
            let left = files[self.next_file].size - self.next_offset;
            let length = left.min(RANGE);
            if length > room {
                break;
            }
            room -= length;
            batch.push(Range {
                file: u32::try_from(self.next_file).unwrap_or(u32::MAX),
                offset: self.next_offset,
                length: u32::try_from(length).unwrap_or(u32::MAX),
            });
            if length == left {
                self.next_file += 1;
                self.next_offset = 0;
            } else {
                self.next_offset += length;
            }
        }
        !batch.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn batches_cover_every_byte_once(sizes in prop::collection::vec(0_u64..3 * RANGE, 0..40)) {
            let files: Vec<File> = sizes
                .iter()
                .enumerate()
                .map(|(i, &size)| File { path: RelPath::parse(&format!("f{i}")).expect("valid"), size, mode: 0o600 })
                .collect();
            let mut covered = vec![0_u64; files.len()];
            let mut seen = vec![false; files.len()];
            let mut batches = Batches::new(0, files.len());
            let mut batch = Vec::new();
            while batches.next(&files, &mut batch) {
                prop_assert!(batch.len() <= BATCH_FILES);
                prop_assert!(batch.iter().map(|range| u64::from(range.length)).sum::<u64>() <= RANGE);
                for range in &batch {
                    let file = range.file as usize;
                    prop_assert_eq!(range.offset, covered[file]);
                    covered[file] += u64::from(range.length);
                    seen[file] = true;
                }
            }
            prop_assert_eq!(covered, sizes);
            prop_assert!(seen.into_iter().all(|seen| seen));
        }
    }
}
