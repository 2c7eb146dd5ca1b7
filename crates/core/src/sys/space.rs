//! How much room a run leaves the primary on the primary's own file systems.
//!
//! A primary that cannot write WAL stops with a PANIC. The slot of a run keeps WAL for as long as the run takes, and a copy
//! on the primary's own file system takes space as fast as the disk allows. So a copy is refused where it would leave less
//! than a reserve, and any run is given up when less is left, whatever took it.

use std::collections::HashSet;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

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

/// A file system that may share its space with others of the same host: a subvolume of Btrfs, or a dataset of ZFS. Each of
/// them has a device number of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// Which file system it is (`f_type` of statfs(2)).
    pub kind: u64,
    /// Bytes.
    pub size: u64,
    /// Bytes, at the moment when it was asked.
    pub free: u64,
}

impl Pool {
    /// BTRFS_SUPER_MAGIC in linux/magic.h.
    pub const BTRFS: u64 = 0x9123_683E;
    /// ZFS_SUPER_MAGIC in OpenZFS.
    pub const ZFS: u64 = 0x2FC1_2FC1;

    /// Asks about an open file's; `None` if it is of another kind.
    pub fn of(fd: impl std::os::fd::AsFd) -> rustix::io::Result<Option<Self>> {
        let kind = u64::try_from(rustix::fs::fstatfs(&fd)?.f_type).unwrap_or(0);
        if ![Self::BTRFS, Self::ZFS].contains(&kind) {
            return Ok(None);
        }
        let Space { size, free } = Space::of(fd)?;
        Ok(Some(Self { kind, size, free }))
    }

    /// Whether two of one host may have the same space: what is free is equal but for `slack` bytes that were written in
    /// between. Of Btrfs the size is, too; that of a dataset of ZFS is what it holds and what is free.
    pub fn may_be(&self, other: &Self, slack: u64) -> bool {
        let of_one_size = self.kind == Self::ZFS || self.size == other.size;
        self.kind == other.kind && of_one_size && self.free.abs_diff(other.free) <= slack
    }
}

/// The primary's file systems that a run may fill: that of its WAL, and those that it shares with the copy.
#[derive(Debug, Default)]
pub struct WatchedSpace {
    places: Vec<Place>,
}

/// One of them.
#[derive(Debug)]
struct Place {
    /// A directory of the primary there.
    directory: PathBuf,
    device: u64,
    /// Bytes below which a run is given up.
    least: u64,
    /// Whether the copy is there, too.
    has_copy: bool,
}

impl Place {
    /// `None` if the directory is a tablespace that was dropped meanwhile.
    fn of(directory: &Path, max_wal_size: u64, has_copy: bool) -> Result<Option<Self>> {
        let device = match directory.metadata() {
            Ok(metadata) => metadata.dev(),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::at("stat directory", directory, &error)),
        };
        let Space { size, free } = space(directory)?;
        // What the primary itself writes meanwhile is what the reserve is for.
        let least = reserve(size, max_wal_size).min(free) / 2;
        Ok(Some(Self { directory: directory.to_owned(), device, least, has_copy }))
    }

    fn check(&self) -> Result<()> {
        // a tablespace may be dropped meanwhile
        let free = match space(&self.directory) {
            Err(error) if error.kind == Kind::MissingFile => return Ok(()),
            space => space?.free,
        };
        if free >= self.least {
            return Ok(());
        }
        let shown = self.directory.display();
        let (free, least) = (pretty(free), pretty(self.least));
        Err(if self.has_copy {
            Error::new(Kind::DiskFull, "the primary's own file system is running full")
                .detail(format!(
                    "The copy is on the file system of \"{shown}\", where {free} are left; {least} are kept for the primary."
                ))
                .hint(
                    "Free space there, or put the standby on another file system, then run the recovery again. Until then the \
                     incomplete copy keeps its space; it may be removed.",
                )
        } else {
            Error::new(Kind::DiskFull, "the file system of the primary's WAL is running full")
                .detail(format!("In \"{shown}\" {free} are left; {least} are kept for the primary."))
                .hint(
                    "Free space there, or run the recovery when the primary writes less WAL or without max_rate: it sends only \
                     what still differs. A replication slot that the run made is dropped and keeps no WAL any more; one that \
                     was there before does, until it is dropped or its standby follows.",
                )
        })
    }
}

impl WatchedSpace {
    /// The file system that the primary's WAL is written to.
    pub fn of_wal(directory: &Path, max_wal_size: u64) -> Result<Self> {
        Ok(Self { places: Place::of(directory, max_wal_size, false)?.into_iter().collect() })
    }

    /// Of the primary's directories those on a device that the copy is written to.
    pub fn shared<'a>(
        directories: impl IntoIterator<Item = &'a Path>,
        written: &HashSet<u64>,
        max_wal_size: u64,
    ) -> Result<Self> {
        let mut places: Vec<Place> = Vec::new();
        for directory in directories {
            let Some(place) = Place::of(directory, max_wal_size, true)? else { continue };
            if written.contains(&place.device) && places.iter().all(|known| known.device != place.device) {
                places.push(place);
            }
        }
        Ok(Self { places })
    }

    /// Watches these, too. One that is watched already keeps its limit: that is from before the run took anything.
    pub fn add(&mut self, other: Self) {
        for place in other.places {
            match self.places.iter_mut().find(|known| known.device == place.device) {
                Some(known) => known.has_copy |= place.has_copy,
                None => self.places.push(place),
            }
        }
    }

    /// Fails where less than half of the reserve is left, or, where there was less to begin with, half of that.
    pub fn check(&self) -> Result<()> {
        self.places.iter().try_for_each(Place::check)
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
    fn subvolumes_and_datasets_are_known_by_what_is_free() {
        let pool = |kind, size, free| Pool { kind, size, free };
        let btrfs = pool(Pool::BTRFS, 100, 50);
        assert!(btrfs.may_be(&btrfs, 0) && btrfs.may_be(&pool(Pool::BTRFS, 100, 40), 10));
        assert!(
            !btrfs.may_be(&pool(Pool::BTRFS, 100, 39), 10) && !btrfs.may_be(&pool(Pool::BTRFS, 101, 50), 10)
        );
        assert!(!btrfs.may_be(&pool(Pool::ZFS, 100, 50), 10));
        assert!(pool(Pool::ZFS, 60, 50).may_be(&pool(Pool::ZFS, 90, 50), 0), "they hold different amounts");
        let directory = std::fs::File::open("/proc").expect("there");
        assert_eq!(Pool::of(directory), Ok(None), "neither");
    }

    fn device_of(directory: &Path) -> u64 {
        directory.metadata().expect("there").dev()
    }

    #[test]
    fn only_shared_file_systems_are_watched_for_the_copy() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let device = device_of(directory.path());
        let shared = |device, max_wal_size| {
            let directories = [directory.path(), directory.path(), Path::new("/no such tablespace")];
            WatchedSpace::shared(directories, &HashSet::from([device]), max_wal_size).expect("there")
        };
        assert_eq!(shared(device, GB).places.len(), 1, "each once");
        assert!(shared(device + 1, GB).places.is_empty());
        assert_eq!(shared(device + 1, GB).check(), Ok(()));
        let mut full = shared(device, GB);
        full.places[0].least = u64::MAX;
        let error = full.check().expect_err("less is left than the reserve");
        assert_eq!(error.kind, Kind::DiskFull);
        assert!(error.detail.is_some_and(|detail| detail.starts_with("The copy")) && error.hint.is_some());
        full.places[0].least = 0;
        assert_eq!(full.check(), Ok(()));
    }

    #[test]
    fn the_file_system_of_the_wal_is_watched_wherever_the_copy_is() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let space = space(directory.path()).expect("asked");
        let mut watched = WatchedSpace::of_wal(directory.path(), GB).expect("there");
        assert!(watched.places[0].least <= reserve(space.size, GB) / 2 && watched.places[0].least > 0);
        assert_eq!(watched.check(), Ok(()));
        watched.places[0].least = u64::MAX;
        let message = |watched: &WatchedSpace| watched.check().expect_err("full").message;
        assert!(message(&watched).contains("of the primary's WAL"));

        // the limit stays, whatever the copy has taken by then
        let written = HashSet::from([device_of(directory.path())]);
        watched.add(WatchedSpace::shared([directory.path()], &written, GB).expect("there"));
        assert_eq!((watched.places.len(), watched.places[0].least), (1, u64::MAX));
        assert!(!message(&watched).contains("WAL"), "the copy's message");
        let elsewhere = Place { directory: directory.path().to_owned(), device: 0, least: 0, has_copy: true };
        watched.add(WatchedSpace { places: vec![elsewhere] });
        assert_eq!(watched.places.len(), 2);
    }
}
