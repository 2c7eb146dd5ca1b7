//! How much room a copy leaves a primary on whose own file system it lies.
//!
//! A primary that cannot write WAL stops with a PANIC, and a copy takes space as fast as the disk allows. So a copy is
//! refused where it would leave less than a reserve, and given up when less is left, whatever took it.

use std::collections::HashSet;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Kind, Result};
use crate::sys::size::pretty;

/// The share of a large file system stays a sensible amount, bytes.
const LARGEST_SHARE: u64 = 10 << 30;

/// Bytes that stay free on a file system of so many bytes that a primary lies on: what it may write until its next
/// checkpoints, and no less than 5 %, of which 10 GB are enough; no more than a quarter, for the small ones.
pub fn reserve(size: u64, max_wal_size: u64) -> u64 {
    max_wal_size.max((size / 20).min(LARGEST_SHARE)).min(size / 4)
}

/// A file system's size, and what an ordinary user may still write, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// All of it.
    pub size: u64,
    /// Without what is set aside for root.
    pub free: u64,
}

impl Space {
    /// Asks about an open file's.
    pub fn of(fd: impl std::os::fd::AsFd) -> rustix::io::Result<Self> {
        rustix::fs::fstatvfs(fd).map(Self::from)
    }
}

impl From<rustix::fs::StatVfs> for Space {
    fn from(stat: rustix::fs::StatVfs) -> Self {
        let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
        Self { size: bytes(stat.f_blocks), free: bytes(stat.f_bavail) }
    }
}

/// The file systems that a primary and a copy of it share.
#[derive(Debug, Default)]
pub struct SharedSpace {
    /// A directory of the primary on each, and the bytes below which a run is given up.
    places: Vec<(PathBuf, u64)>,
}

impl SharedSpace {
    /// Of the primary's directories those on a device that the copy is written to.
    pub fn new<'a>(
        directories: impl IntoIterator<Item = &'a Path>,
        written: &HashSet<u64>,
        max_wal_size: u64,
    ) -> Result<Self> {
        let (mut places, mut known) = (Vec::new(), HashSet::new());
        for directory in directories {
            let device = match directory.metadata() {
                Ok(metadata) => metadata.dev(),
                // a tablespace that was dropped meanwhile
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => {
                    return Err(Error::at("stat directory", directory, &error));
                }
            };
            if written.contains(&device) && known.insert(device) {
                let Space { size, free } = space(directory)?;
                // What the primary itself writes meanwhile is what the reserve is for.
                places.push((directory.to_owned(), reserve(size, max_wal_size).min(free) / 2));
            }
        }
        Ok(Self { places })
    }

    /// Fails where less than half of the reserve is left, or, where there was less to begin with, half of that.
    pub fn check(&self) -> Result<()> {
        for (directory, reserve) in &self.places {
            // a tablespace may be dropped meanwhile
            let free = match space(directory) {
                Err(error) if error.kind == Kind::MissingFile => continue,
                space => space?.free,
            };
            if free < *reserve {
                return Err(Error::new(Kind::DiskFull, "the primary's own file system is running full")
                    .detail(format!(
                        "The copy is on the file system of \"{}\", where {} are left; {} are kept for the primary.",
                        directory.display(),
                        pretty(free),
                        pretty(*reserve),
                    ))
                    .hint(
                        "Free space there, or put the standby on another file system, then run the recovery again. Until \
                         then the incomplete copy keeps its space; it may be removed.",
                    ));
            }
        }
        Ok(())
    }
}

fn space(directory: &Path) -> Result<Space> {
    let failed = |error: rustix::io::Errno| Error::at("ask for the free space of", directory, &error.into());
    rustix::fs::statvfs(directory).map(Space::from).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GB: u64 = 1 << 30;

    #[test]
    fn the_reserve_follows_max_wal_size_and_the_file_system() {
        assert_eq!(reserve(100 * GB, GB), 5 * GB, "5 %");
        assert_eq!(reserve(100 * GB, 8 * GB), 8 * GB, "max_wal_size");
        assert_eq!(reserve(5000 * GB, GB), 10 * GB, "5 % of a large one are more than any primary needs");
        assert_eq!(reserve(5000 * GB, 64 * GB), 64 * GB);
        assert_eq!(reserve(GB, GB), GB / 4, "a small one");
        assert_eq!(reserve(0, GB), 0);
    }

    #[test]
    fn only_shared_file_systems_are_watched() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let device = directory.path().metadata().expect("there").dev();
        let shared = |device, max_wal_size| {
            SharedSpace::new([directory.path(), directory.path()], &HashSet::from([device]), max_wal_size)
                .expect("there")
        };
        assert_eq!(shared(device, GB).places.len(), 1, "each once");
        assert!(shared(device + 1, GB).places.is_empty());
        assert_eq!(shared(device + 1, GB).check(), Ok(()));
        let mut full = shared(device, GB);
        full.places[0].1 = u64::MAX;
        let error = full.check().expect_err("less is left than the reserve");
        assert_eq!(error.kind, Kind::DiskFull);
        assert!(error.detail.is_some() && error.hint.is_some(), "{error:?}");
        full.places[0].1 = 0;
        assert_eq!(full.check(), Ok(()));
    }
}
