//! Making the target's files durable.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::sync::Mutex;
use std::thread::JoinHandle;

use super::parallel::for_each;
use super::planned::PlannedFile;
use super::run::Run;
use crate::data_directory::DataDirectory;
use crate::error::{Error, Kind, Result};
use crate::sys::blocks::Blocks;
use crate::sys::lock::lock;

/// From so many files on the whole file system is synced at once: each sync of a file makes the disk empty its
/// cache.
const MANY: usize = 1000;

/// What was on the target's file systems before the run is being made durable while the run goes on.
///
/// Pages that an interrupted run wrote, or a server that was killed, compare equal although they may be in the
/// page cache only.
pub(super) struct Before(Mutex<Syncs>);

struct Syncs {
    /// What is synced once it begins.
    file_systems: Vec<OwnedFd>,
    running: Vec<JoinHandle<Result<()>>>,
    /// Whether anything is synced, and that what has ended went well.
    outcome: Result<bool>,
}

impl Before {
    /// Gets ready; where the kernel does not tell whether a sync succeeded it is left to [`sync_files`].
    pub(super) fn new(target: &DataDirectory) -> Result<Self> {
        let file_systems = if syncfs_tells_errors() { target.file_systems()? } else { Vec::new() };
        Ok(Self(Mutex::new(Syncs { file_systems, running: Vec::new(), outcome: Ok(false) })))
    }

    /// Begins. Where a thread cannot be started, what it would have done is left to [`sync_files`] as well.
    pub(super) fn begin(&self) {
        let mut syncs = lock(&self.0);
        let file_systems = std::mem::take(&mut syncs.file_systems);
        let mut is_begun = !file_systems.is_empty();
        for fd in file_systems {
            let work = move || sync_file_system(&fd);
            match std::thread::Builder::new().name("target-sync".to_owned()).spawn(work) {
                Ok(thread) => syncs.running.push(thread),
                Err(_) => is_begun = false,
            }
        }
        syncs.outcome = Ok(is_begun);
    }

    /// Waits; false if nothing was synced. Every caller hears of a failure.
    pub(super) fn end(&self) -> Result<bool> {
        // others wait here
        let mut syncs = lock(&self.0);
        let panicked = |_| Err(Error::new(Kind::Internal, "a thread that syncs the target panicked"));
        let join = |thread: JoinHandle<Result<()>>| thread.join().unwrap_or_else(panicked);
        if let Err(error) = syncs.running.drain(..).map(join).fold(Ok(()), Result::and) {
            syncs.outcome = Err(error);
        }
        syncs.outcome.clone()
    }
}

impl Drop for Before {
    fn drop(&mut self) {
        // no thread outlives the run; a run that fails does not care what a sync said
        let _ = self.end();
    }
}

/// Makes every file of the plan durable: those that this run changed, and if [`Before`] could not, all.
pub(super) fn sync_files(run: &Run) -> Result<()> {
    let before = run.is_synced()?;
    let planned_files = run.planned_files();
    let files = || (0..planned_files.len()).filter(|number| !planned_files.is_gone(*number));
    let changed = || files().filter(|number| planned_files.is_changed(*number) || !before);
    let are_many = before && changed().nth(MANY - 1).is_some();
    if are_many {
        run.target.file_systems()?.iter().try_for_each(sync_file_system)?;
    }
    let is_left = |number: &usize| !are_many || needs_own_sync(&planned_files.file(*number));
    let mut wanted: Blocks<usize> = changed().filter(is_left).collect();
    if before {
        // XFS leaves the disk's own cache as it is in a syncfs that finds its journal written, but not in a sync
        // of a file: one on each disk.
        let device = |number: usize| run.target.device_of(&planned_files.list().path(number));
        let mut disks: BTreeSet<u64> = wanted.iter().map(|number| device(*number)).collect();
        files().filter(|number| disks.insert(device(*number))).for_each(|number| wanted.push(number));
    }
    for_each(run, 0..wanted.len(), |place| run.target.sync_file(&planned_files.list().path(wanted[place])))
}

/// Whether the sync of its file system does not tell of everything that went wrong with a file.
///
/// Where something else has the page cache hold a part of a file that is being written past it, the kernel may not be able
/// to drop that page, and what was written is lost behind it. It notes that (dio_warn_stale_pagecache in mm/filemap.c) as
/// an error of the file alone: fsync tells, syncfs asks the file system. Only long writes go past the page cache, so the
/// many small files of a cluster need none of this.
fn needs_own_sync(planned: &PlannedFile<'_>) -> bool {
    planned.is_direct()
}

fn sync_file_system(fd: &OwnedFd) -> Result<()> {
    rustix::fs::syncfs(fd).map_err(Error::on("sync the target's file system"))
}

/// Before Linux 5.8 syncfs succeeds whatever the disk says (syncfs(2)), and on XFS before 5.17 whatever its journal
/// says.
pub(super) fn syncfs_tells_errors() -> bool {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    is_at_least_5_17(&release)
}

fn is_at_least_5_17(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap_or(0));
    let version: (u32, u32) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    version >= (5, 17)
}

#[cfg(test)]
mod tests {
    use super::super::planned::PlannedFiles;
    use super::*;
    use crate::manifest::path::RelPath;
    use crate::manifest::plan::File;

    #[test]
    fn what_went_past_the_page_cache_is_synced_by_itself() {
        let file = File { path: RelPath::parse("base/5/1").expect("valid"), size: 8192, mode: 0o600 };
        let planned_files = PlannedFiles::new([file].into_iter().collect());
        let planned = planned_files.file(0);
        planned.set_changed();
        assert!(!needs_own_sync(&planned));
        planned.set_direct();
        assert!(needs_own_sync(&planned));
    }

    #[test]
    fn kernel_releases_are_compared_as_numbers() {
        for (release, is_new) in [
            ("6.1.0-13-amd64", true),
            ("5.17.0", true),
            ("5.17", true),
            ("5.16.19", false),
            ("5.2", false),
            ("4.18.0-553.el8", false),
        ] {
            assert_eq!(is_at_least_5_17(release), is_new, "{release}");
        }
        assert!(!is_at_least_5_17(""));
    }
}
