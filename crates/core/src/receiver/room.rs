//! Is there room for a plan? Every file system the target lies on is asked.

use std::collections::HashMap;
use std::os::fd::AsFd;

use crate::error::{Error, Kind, Result};
use crate::plan::File;
use crate::target::Target;

/// Room a file system must have beyond what is going to be written, bytes.
const SLACK: u64 = 16 << 20;

/// Fails if the files, which may be there in part, and `wal_bytes` of WAL do not fit.
pub(super) fn check(target: &Target, files: &[File], wal_bytes: u64) -> Result<()> {
    // sizes are the peer's
    let whole = files.iter().fold(wal_bytes.saturating_add(SLACK), |sum, file| sum.saturating_add(file.size));
    if target.roots().all(|(_, fd)| free(fd).is_ok_and(|free| free >= whole)) {
        // every file system has room for all of it: what is there already need not be looked at
        return Ok(());
    }
    let needed = growth(target, files)?;
    let wal_root = if target.roots().any(|(prefix, _)| prefix == "pg_wal") { "pg_wal" } else { "" };
    for (prefix, fd) in target.roots() {
        let device = rustix::fs::fstat(&fd).map_err(Error::on("look at the target"))?.st_dev;
        let wal = if prefix == wal_root { wal_bytes } else { 0 };
        let needed = needed.get(&device).copied().unwrap_or(0).saturating_add(wal).saturating_add(SLACK);
        let free = free(&fd)?;
        if free < needed {
            let shown = if prefix.is_empty() { "the data directory" } else { prefix };
            return Err(Error::new(Kind::DiskFull, format!("not enough space for {shown} on the target"))
                .detail(format!("{} MB are needed, {} MB are free.", needed >> 20, free >> 20))
                .hint(
                    "Free space on the target's file system, or move tablespaces with tablespace_mapping.",
                ));
        }
    }
    Ok(())
}

/// Bytes that may still be written to a file system.
fn free(fd: impl AsFd) -> Result<u64> {
    let stat = rustix::fs::fstatvfs(fd).map_err(Error::on("ask for the target's free space"))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
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
