//! What a run is going to move: the primary's directories and files as the scan found them.

use serde::{Deserialize, Serialize};

use crate::manifest::list::FileList;
use crate::manifest::path::RelPath;
use crate::sys::FileId;

/// A directory of the plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Directory {
    /// Where it lies.
    pub path: RelPath,
    /// Permission bits.
    pub mode: u32,
}

/// A regular file of the plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Where it lies.
    pub path: RelPath,
    /// Bytes, as the scan saw it; the file may have grown, shrunk or vanished since.
    pub size: u64,
    /// Permission bits.
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
    /// Device and inode of each of these directories.
    pub identities: Vec<FileId>,
    /// Files; the position is the file's number on the wire.
    pub files: FileList,
    /// Tablespaces outside the data directory.
    pub tablespaces: Vec<Tablespace>,
    /// What the scan left out unexpectedly.
    pub warnings: Vec<String>,
}

impl Plan {
    /// The bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files.bytes()
    }
}

/// Bytes of one piece of work: large enough that its overhead vanishes, small enough that it stays
/// in a core's cache between reading, hashing and sending, and that many streams need little memory.
pub const RANGE: u64 = 512 << 10;

/// Most ranges in one batch.
pub const BATCH_RANGES: usize = 256;

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

impl Range {
    /// The ranges of a batch, those of one file together.
    pub(crate) fn by_file(batch: &[Self]) -> impl Iterator<Item = &[Self]> {
        batch.chunk_by(|one, next| one.file == next.file)
    }

    /// Where they lie in their files, and how long they are.
    pub(crate) fn places(ranges: &[Self]) -> impl ExactSizeIterator<Item = (u64, usize)> {
        ranges.iter().map(|range| (range.offset, range.length as usize))
    }
}
