//! What a name in the target stands for.

use std::fs::File;

use rustix::fs::FileType;
use rustix::io::Errno;

/// What [`Target::stat`] tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// What it is.
    pub kind: FileType,
    /// Bytes.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
    /// How many names the file has.
    pub names: u64,
    /// Which file it is, and when it was last changed.
    pub stamp: Stamp,
}

/// What tells whether a name still stands for the same file, and whether that was changed since.
///
/// Every planned file of a run keeps one in memory, so it has 24 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// The device. Numbers that Linux gives fit.
    device: u32,
    inode: u64,
    /// When content, mode, owner or links were last changed (ctime), nanoseconds since 1970. No program can set it.
    changed: i64,
}

impl Stamp {
    fn of(stat: &rustix::fs::Stat) -> Self {
        let device = stat.st_dev ^ stat.st_dev >> 32;
        Self {
            device: u32::try_from(device & u64::from(u32::MAX)).unwrap_or(u32::MAX),
            inode: stat.st_ino,
            changed: stat
                .st_ctime
                .wrapping_mul(1_000_000_000)
                .wrapping_add(i64::try_from(stat.st_ctime_nsec).unwrap_or(0)),
        }
    }

    /// Whether both are of one file, changed meanwhile or not.
    pub fn is_same_file(&self, other: &Self) -> bool {
        (self.device, self.inode) == (other.device, other.inode)
    }
}

impl Stat {
    pub(crate) fn of(stat: &rustix::fs::Stat) -> Self {
        Self {
            kind: FileType::from_raw_mode(stat.st_mode),
            size: u64::try_from(stat.st_size).unwrap_or(0),
            mode: stat.st_mode & 0o7777,
            names: stat.st_nlink,
            stamp: Stamp::of(stat),
        }
    }

    /// Of an open file.
    pub(crate) fn of_file(file: &File) -> Result<Self, Errno> {
        rustix::fs::fstat(file).map(|stat| Self::of(&stat))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_small() {
        assert_eq!(size_of::<Stamp>(), 24);
    }
}
