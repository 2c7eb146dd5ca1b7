//! Is there room for a plan? Every file system the target lies on is asked.

use std::collections::HashMap;
use std::os::fd::AsFd;

use super::inspect;

use crate::error::{Error, Kind, Result};
use crate::plan::File;
use crate::protocol::message::{PrimarySpace, Terms};
use crate::space::{Space, reserve};
use crate::target::Target;

/// Room a file system must have beyond what is going to be written, bytes.
const SLACK: u64 = 16 << 20;

/// Fails if the files, which may be there in part, and the WAL that comes besides them do not fit, or leave too
/// little for a primary on the same file system.
pub(super) fn check(target: &Target, files: &[File], terms: &Terms) -> Result<()> {
    // sizes are the peer's
    let whole = files.iter().fold(terms.reserve, |sum, file| sum.saturating_add(file.size));
    let kept = Kept::on_this_host(terms.primary_space.as_ref(), inspect::boot_id().as_deref());
    let has_room = |(free, kept): (u64, u64)| free >= whole.saturating_add(kept);
    if target.roots().all(|(_, fd)| room(fd, &kept).is_ok_and(has_room)) {
        // every file system has room for all of it: what is there already need not be looked at
        return Ok(());
    }
    let needed = growth(target, files)?;
    let wal_root = if target.roots().any(|(prefix, _)| prefix == "pg_wal") { "pg_wal" } else { "" };
    for (prefix, fd) in target.roots() {
        let wal = if prefix == wal_root { terms.reserve } else { 0 };
        let needed = needed.get(&device(&fd)?).copied().unwrap_or(0).saturating_add(wal);
        let (free, kept) = room(&fd, &kept)?;
        if free < needed.saturating_add(kept) {
            let shown = if prefix.is_empty() { "the data directory" } else { prefix };
            let megabytes = |bytes: u64| bytes >> 20;
            let detail = if kept > SLACK {
                format!(
                    "{} MB are needed, {} MB are free, of which {} MB stay free for the primary, which uses the same file system.",
                    megabytes(needed),
                    megabytes(free),
                    megabytes(kept)
                )
            } else {
                format!(
                    "{} MB are needed, {} MB are free.",
                    megabytes(needed.saturating_add(kept)),
                    megabytes(free)
                )
            };
            return Err(Error::new(Kind::DiskFull, format!("not enough space for {shown} on the target"))
                .detail(detail)
                .hint(
                    "Free space on the target's file system, or move tablespaces with tablespace_mapping.",
                ));
        }
    }
    Ok(())
}

/// What stays free for a primary on this host.
struct Kept<'a>(Option<&'a PrimarySpace>);

impl<'a> Kept<'a> {
    /// Device numbers mean the same on one host. Where a kernel does not tell which it is, it may be the same one.
    fn on_this_host(primary: Option<&'a PrimarySpace>, boot_id: Option<&str>) -> Self {
        Self(primary.filter(|primary| {
            primary.boot_id.as_deref().zip(boot_id).is_none_or(|(theirs, ours)| theirs == ours)
        }))
    }

    /// Bytes that must stay free on a file system.
    fn bytes(&self, device: u64, size: u64) -> u64 {
        let primary = self.0.filter(|primary| primary.devices.contains(&device));
        primary.map_or(SLACK, |primary| reserve(size, primary.max_wal_size).max(SLACK))
    }
}

/// Bytes that are free on a root's file system, and that must stay so.
fn room(fd: impl AsFd, kept: &Kept<'_>) -> Result<(u64, u64)> {
    let space = Space::of(&fd).map_err(Error::on("ask for the target's free space"))?;
    Ok((space.free, kept.bytes(device(fd)?, space.size)))
}

fn device(fd: impl AsFd) -> Result<u64> {
    Ok(rustix::fs::fstat(fd).map_err(Error::on("look at the target"))?.st_dev)
}

/// By how many bytes the files will grow, by device.
fn growth(target: &Target, files: &[File]) -> Result<HashMap<u64, u64>> {
    let mut needed: HashMap<u64, u64> = HashMap::new();
    for file in files {
        let there = target.stat(&file.path)?.map_or(0, |stat| stat.size.min(file.size));
        let needed = needed.entry(target.device_of(&file.path)).or_default();
        *needed = needed.saturating_add(file.size - there);
    }
    Ok(needed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_primary_on_the_same_file_system_keeps_its_reserve() {
        let primary =
            PrimarySpace { boot_id: Some("this".to_owned()), devices: vec![7, 8], max_wal_size: 100 << 20 };
        let kept = |boot_id, device, size| Kept::on_this_host(Some(&primary), boot_id).bytes(device, size);
        assert_eq!(kept(Some("this"), 8, 1 << 30), 100 << 20);
        assert_eq!(kept(Some("this"), 9, 1 << 30), SLACK, "another file system");
        assert_eq!(kept(Some("that"), 8, 1 << 30), SLACK, "another host");
        assert_eq!(kept(None, 8, 1 << 30), 100 << 20, "nobody knows which host");
        assert_eq!(kept(Some("this"), 8, 1 << 20), SLACK);
        assert_eq!(Kept::on_this_host(None, Some("this")).bytes(8, 1 << 30), SLACK);
    }
}
