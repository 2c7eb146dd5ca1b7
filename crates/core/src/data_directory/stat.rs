//! What a name in the target stands for.

use std::fs::File;

use rustix::fs::FileType;
use rustix::io::Errno;

/// What [`DataDirectory::stat`] tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stat {
    /// What it is.
    pub kind: FileType,
    /// Bytes.
    pub size: u64,
    /// Bytes that its file system has set aside for it.
    pub allocated: u64,
    /// Permission bits.
    pub mode: u32,
    /// Its owner.
    pub user: u32,
    /// How many names the file has.
    pub names: u64,
    /// Which file it is, and when it was last changed.
    pub stamp: Stamp,
}

/// What tells whether a name still stands for the same file, and whether that was changed since.
///
/// Every planned file of a run keeps one in memory: 16 bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// Inode and device in one number. Inode numbers seldom need its upper bits, where the device's are.
    file: u64,
    /// When content, mode, owner or links were last changed (ctime), nanoseconds since 1970. No program can set it.
    changed: i64,
}

impl Stamp {
    fn of(stat: &rustix::fs::Stat) -> Self {
        Self {
            file: stat.st_ino ^ stat.st_dev.rotate_right(20),
            changed: stat
                .st_ctime
                .wrapping_mul(1_000_000_000)
                .wrapping_add(i64::try_from(stat.st_ctime_nsec).unwrap_or(0)),
        }
    }

    /// Whether both are of one file, changed meanwhile or not.
    pub(crate) const fn is_same_file(&self, other: &Self) -> bool {
        self.file == other.file
    }
}

impl Stat {
    pub(crate) fn of(stat: &rustix::fs::Stat) -> Self {
        Self {
            kind: FileType::from_raw_mode(stat.st_mode),
            size: u64::try_from(stat.st_size).unwrap_or(0),
            // in units of 512 bytes, whatever the block size (stat(2))
            allocated: u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512),
            mode: stat.st_mode & 0o7777,
            user: stat.st_uid,
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
        assert_eq!(size_of::<Stamp>(), 16);
    }
}
