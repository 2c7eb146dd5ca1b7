//! Cloning the primary's files, where they lie on the target's own file system and that can let two files
//! share their blocks (XFS, Btrfs and others): nothing is read, nothing is written.

use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rustix::fs::{fstat, ioctl_ficlone};
use rustix::io::Errno;

use super::run::{Run, Slot};
use crate::error::{Error, Kind, Result};

/// Threads that clone: the file system works on many files at once.
const THREADS: usize = 8;

/// Clones every file of the plan that can be cloned from `origin`, the primary's data directory. Returns
/// which ones, by number; the others are left to be sent. A directory that
/// lies where that cannot be done is asked once.
pub(super) fn clone(run: &Run, origin: &Path) -> Result<Vec<bool>> {
    let slots = run.slots();
    let cloned: Vec<AtomicBool> = slots.iter().map(|_| AtomicBool::new(false)).collect();
    let next = AtomicUsize::new(0);
    let cannot = run.target.roots().map(|_| AtomicBool::new(false)).collect();
    let cloner = Cloner { run, origin, cannot };
    let work = || {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(slot) = slots.get(number) else {
                return Ok(());
            };
            run.cancel.check()?;
            cloned[number].store(cloner.clone(slot)?, Ordering::Relaxed);
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..THREADS.min(slots.len())).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| {
            worker
                .join()
                .unwrap_or_else(|_| Err(Error::new(Kind::Internal, "a thread that clones files panicked")))
        })
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
    fn clone(&self, slot: &Slot) -> Result<bool> {
        let cannot = &self.cannot[self.run.target.root_of(&slot.path)];
        if cannot.load(Ordering::Relaxed) {
            return Ok(false);
        }
        // whatever is wrong with the primary's file, sending it says so
        let Ok(source) = File::open(self.origin.join(&slot.path)) else {
            return Ok(false);
        };
        let Ok(before) = fstat(&source) else {
            return Ok(false);
        };
        let file = match self.run.target.open_in_place(&slot.path)? {
            Some((file, _)) => file,
            None => {
                slot.set_changed();
                self.run.target.open_for_write(&slot.path, slot.mode)?
            }
        };
        match ioctl_ficlone(&file, &source) {
            Ok(()) => slot.set_changed(),
            Err(Errno::OPNOTSUPP | Errno::XDEV | Errno::INVAL | Errno::NOTTY | Errno::NOSYS) => {
                cannot.store(true, Ordering::Relaxed);
                return Ok(false);
            }
            Err(error) => {
                return Err(Error::io(
                    format_args!("clone file \"{}\" of the primary", slot.path),
                    &error.into(),
                ));
            }
        }
        // The file may have grown or shrunk meanwhile: the shorter is what was surely cloned, and what lies
        // behind was written or truncated after the backup started, so replay restores it.
        let after = fstat(&source).map_or(before.st_size, |after| after.st_size);
        slot.ends_at(u64::try_from(before.st_size.min(after)).unwrap_or(0));
        Ok(true)
    }
}
