//! Is there room for a plan? Every file system the target lies on is asked.

use std::collections::HashMap;
use std::os::fd::AsFd;

use super::obstacles::Found;
use crate::error::{Error, Kind, Result};
use crate::path::RelPath;
use crate::plan::File;
use crate::target::Target;

/// Room a file system must have beyond what is going to be written, bytes.
const SLACK: u64 = 16 << 20;

/// One file system of the target.
struct FileSystem {
    device: u64,
    /// As a message calls it.
    shown: String,
    free: u64,
}

/// Fails if the files, which may be there in part, and `wal_bytes` of WAL do not fit. WAL comes when the surplus that was
/// `found` is gone, data before.
pub(super) fn check(target: &Target, files: &[File], wal_bytes: u64, found: &Found) -> Result<()> {
    // sizes are the peer's
    let whole = files.iter().fold(wal_bytes.saturating_add(SLACK), |sum, file| sum.saturating_add(file.size));
    let has_room = || target.roots().all(|(_, fd)| free(fd).is_ok_and(|free| free >= whole));
    if found.mounts.is_empty() && has_room() {
        // every file system has room for all of it: what is there already need not be looked at
        return Ok(());
    }
    let needed = growth(target, files, found)?;
    let file_systems = file_systems(target, found)?;
    let wal_device = device_of(target, &RelPath::parse("pg_wal/x")?, found);
    let data_device = file_systems.first().map(|first| first.device);
    for FileSystem { device, shown, free } in &file_systems {
        let data = needed.get(device).copied().unwrap_or(0);
        let wal = if *device == wal_device { wal_bytes } else { 0 };
        if data > 0 || Some(*device) == data_device {
            demand(shown, data.saturating_add(SLACK), *free)?;
        }
        if wal > 0 {
            let freed = found.freed.get(device).copied().unwrap_or(0);
            demand(shown, data.saturating_add(wal).saturating_add(SLACK), free.saturating_add(freed))?;
        }
    }
    Ok(())
}

fn demand(shown: &str, needed: u64, free: u64) -> Result<()> {
    if free >= needed {
        return Ok(());
    }
    Err(Error::new(Kind::DiskFull, format!("not enough space for {shown} on the target"))
        .detail(format!("{} MB are needed, {} MB are free.", needed >> 20, free >> 20))
        .hint("Free space on the target's file system, or move tablespaces with tablespace_mapping."))
}

/// Every file system once, that of the data directory first.
fn file_systems(target: &Target, found: &Found) -> Result<Vec<FileSystem>> {
    let mut all: Vec<FileSystem> = Vec::new();
    let mut add = |device, shown: &str, free: Result<u64>| -> Result<()> {
        if all.iter().all(|known| known.device != device) {
            all.push(FileSystem { device, shown: shown.to_owned(), free: free? });
        }
        Ok(())
    };
    for (prefix, fd) in target.roots() {
        let device = rustix::fs::fstat(&fd).map_err(Error::on("look at the target"))?.st_dev;
        let shown = if prefix.is_empty() { "the data directory" } else { prefix };
        add(device, shown, free(&fd))?;
    }
    for (path, device) in &found.mounts {
        add(*device, path.as_str(), target.enter(path).and_then(free))?;
    }
    Ok(all)
}

/// Bytes that may still be written to a file system.
fn free(fd: impl AsFd) -> Result<u64> {
    let stat = rustix::fs::fstatvfs(fd).map_err(Error::on("ask for the target's free space"))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// The device that a path lies on: of the deepest directory above it on which a file system begins.
fn device_of(target: &Target, path: &RelPath, found: &Found) -> u64 {
    let above = found.mounts.iter().filter(|(mount, _)| path.is_at_or_below(mount.as_str()));
    let deepest = above.max_by_key(|(mount, _)| mount.as_str().len());
    deepest.map_or_else(|| target.device_of(path), |(_, device)| *device)
}

/// By how many bytes the files will grow, by device.
fn growth(target: &Target, files: &[File], found: &Found) -> Result<HashMap<u64, u64>> {
    let mut needed: HashMap<u64, u64> = HashMap::new();
    for file in files {
        let there = target.stat(&file.path)?.map_or(0, |stat| stat.size.min(file.size));
        let needed = needed.entry(device_of(target, &file.path, found)).or_default();
        *needed = needed.saturating_add(file.size - there);
    }
    Ok(needed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wal_has_the_room_of_what_is_removed_before_and_data_has_not() {
        const MUCH: u64 = 4 << 30;
        let data = tempfile::tempdir().expect("temporary directory");
        let target = Target::open(data.path()).expect("open");
        let device = target.device_of(&RelPath::parse("x").expect("valid"));
        let free = free(target.root()).expect("asked");
        let found = |freed| Found { freed: HashMap::from([(device, freed)]), ..Found::default() };
        let file = File { path: RelPath::parse("base/5/1").expect("valid"), size: free + MUCH, mode: 0o600 };
        let refused = |files: &[File], wal, freed| {
            check(&target, files, wal, &found(freed)).map_err(|error| error.kind) == Err(Kind::DiskFull)
        };
        assert!(refused(&[], free + MUCH, 0));
        assert!(!refused(&[], free + MUCH, 2 * MUCH));
        assert!(refused(&[file], 0, 2 * MUCH), "data comes first");
    }

    #[test]
    fn a_mounted_directory_is_a_file_system_of_its_own() {
        let data = tempfile::tempdir().expect("temporary directory");
        let target = Target::open(data.path()).expect("open");
        let rel = |path: &str| RelPath::parse(path).expect("valid");
        let found = Found { mounts: vec![(rel("base"), 1), (rel("base/5"), 2)], ..Found::default() };
        assert_eq!(device_of(&target, &rel("base/1/2"), &found), 1);
        assert_eq!(device_of(&target, &rel("base/5/2"), &found), 2);
        assert_eq!(device_of(&target, &rel("base5"), &found), target.device_of(&rel("base5")));
    }
}
