//! Making the target's files durable.

use std::os::fd::OwnedFd;
use std::sync::Mutex;
use std::thread::JoinHandle;

use super::crew;
use super::run::Run;
use crate::error::{Error, Kind, Result};
use crate::lock::lock;
use crate::path::RelPath;
use crate::target::Target;

/// From so many files on the whole file system is synced at once: each sync of a file makes the disk empty its
/// cache.
const MANY: usize = 1000;

/// What was on the target's file systems before the run is being made durable while the run goes on.
///
/// Pages that a broken-off run wrote, or a server that was killed, compare equal although they may be in the
/// page cache only.
pub(super) struct Before(Mutex<Option<Vec<JoinHandle<Result<()>>>>>);

impl Before {
    /// Begins; where the kernel does not tell whether that succeeded it is left to [`sync_files`].
    pub(super) fn begin(target: &Target) -> Result<Self> {
        if !syncfs_tells_errors() {
            return Ok(Self(Mutex::new(None)));
        }
        let spawn = |fd: OwnedFd| {
            let work = move || sync_file_system(&fd);
            let started = std::thread::Builder::new().name("target-sync".to_owned()).spawn(work);
            started.map_err(Error::on("start a thread"))
        };
        let threads = target.file_systems()?.into_iter().map(spawn).collect::<Result<_>>()?;
        Ok(Self(Mutex::new(Some(threads))))
    }

    /// Waits; false if nothing was synced.
    fn end(&self) -> Result<bool> {
        let Some(threads) = lock(&self.0).replace(Vec::new()) else {
            return Ok(false);
        };
        for thread in threads {
            let panicked = |_| Err(Error::new(Kind::Internal, "a thread that syncs the target panicked"));
            thread.join().unwrap_or_else(panicked)?;
        }
        Ok(true)
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
    // what lies on a file system that is mounted within the target was not synced
    let before = run.before.end()? && !run.target.has_mounts();
    let slots = run.slots();
    let wanted = slots.iter().filter(|slot| (slot.is_changed() || !before) && !slot.is_gone());
    let files: Vec<&RelPath> = wanted.map(|slot| &slot.path).collect();
    if files.len() >= MANY && before {
        return run.target.file_systems()?.iter().try_for_each(sync_file_system);
    }
    crew::each(run, &files, |_, path| run.target.sync_file(path))
}

fn sync_file_system(fd: &OwnedFd) -> Result<()> {
    rustix::fs::syncfs(fd).map_err(Error::on("sync the target's file system"))
}

/// Before Linux 5.8 syncfs succeeds whatever the disk says (syncfs(2)).
fn syncfs_tells_errors() -> bool {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    is_at_least_5_8(&release)
}

fn is_at_least_5_8(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap_or(0));
    let version: (u32, u32) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    version >= (5, 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_releases_are_compared_as_numbers() {
        for (release, is_new) in [
            ("6.1.0-13-amd64", true),
            ("5.8.0", true),
            ("5.10", true),
            ("5.7.19", false),
            ("4.18.0-553.el8", false),
        ] {
            assert_eq!(is_at_least_5_8(release), is_new, "{release}");
        }
        assert!(!is_at_least_5_8(""));
    }
}
