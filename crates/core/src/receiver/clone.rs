//! Cloning the primary's files, where they lie on the target's own file system and that can let two files
//! share their blocks (XFS, Btrfs and others): nothing is read, nothing is written.

use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{fstat, ioctl_ficlone};
use rustix::io::Errno;

use super::parallel::for_each;
use super::planned::PlannedFile;
use super::run::Run;
use crate::error::{Error, Result};

/// Clones every file of the plan that can be cloned from `origin`, the primary's data directory. Returns
/// which ones, by number; the others are left to be sent. Where a root of the target cannot, only its first
/// file is tried.
pub(super) fn clone(run: &Run, origin: &Path) -> Result<Vec<bool>> {
    let planned_files = run.planned_files();
    let cloned: Vec<AtomicBool> = (0..planned_files.len()).map(|_| AtomicBool::new(false)).collect();
    let cannot = run.target.roots().map(|_| AtomicBool::new(false)).collect();
    let cloner = Cloner { run, origin, cannot };
    for_each(run, 0..planned_files.len(), |number| {
        cloned[number].store(cloner.clone(&planned_files.file(number))?, Ordering::Relaxed);
        Ok(())
    })?;
    Ok(cloned.into_iter().map(AtomicBool::into_inner).collect())
}

struct Cloner<'a> {
    run: &'a Run,
    origin: &'a Path,
    /// Of which of the target's roots is known that nothing can be cloned there.
    cannot: Vec<AtomicBool>,
}

impl Cloner<'_> {
    fn clone(&self, planned: &PlannedFile<'_>) -> Result<bool> {
        let cannot = &self.cannot[self.run.target.root_of(&planned.path)];
        if cannot.load(Ordering::Relaxed) {
            return Ok(false);
        }
        // whatever is wrong with the primary's file, sending it says so
        let Ok(source) = File::open(self.origin.join(&planned.path)) else {
            return Ok(false);
        };
        let Ok(before) = fstat(&source) else {
            return Ok(false);
        };
        let file = self.run.open_to_clone(planned)?;
        match ioctl_ficlone(&file, &source) {
            Ok(()) => self.changed(planned, &file)?,
            Err(Errno::OPNOTSUPP | Errno::XDEV | Errno::NOTTY | Errno::NOSYS) => {
                cannot.store(true, Ordering::Relaxed);
                return Ok(false);
            }
            // sending it would fail as well
            Err(error @ (Errno::IO | Errno::NOSPC | Errno::DQUOT | Errno::ROFS)) => {
                return Err(Error::io(format_args!("clone file \"{}\"", planned.path), &error.into()));
            }
            // this file only, and maybe in part: it is sent
            Err(_) => {
                self.changed(planned, &file)?;
                return Ok(false);
            }
        }
        // The file may have grown or shrunk meanwhile: the shorter is what was surely cloned, and what lies
        // behind was written or truncated after the backup started, so replay restores it.
        let after = fstat(&source).map_or(before.st_size, |after| after.st_size);
        planned.ends_at(u64::try_from(before.st_size.min(after)).unwrap_or(0));
        Ok(true)
    }

    fn changed(&self, planned: &PlannedFile<'_>, file: &File) -> Result<()> {
        planned.set_changed();
        self.run.note(planned, file)
    }
}
