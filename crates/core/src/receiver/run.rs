//! What the links of one run share.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{Advice, fadvise};

use super::durable::Before;
use super::identity;
use super::ledger::Record;
use super::planned::{LockedPlace, Place, PlannedFile, PlannedFiles};
use super::sink::Sink;
use super::wal_link::Wal;
use crate::compare::digest::DigestKey;
use crate::data_directory::{DataDirectory, Stamp, Stat};
use crate::error::{Error, Result};
use crate::manifest::list::FileList;
use crate::sys::cancel::Cancel;
use crate::sys::direct::DirectFile;

/// A run that has begun.
pub(super) struct Run {
    /// Closed when the run is dropped, and before the target is let go of: it stands first.
    pub(super) record: Record,
    pub(super) target: DataDirectory,
    pub(super) digest_key: DigestKey,
    /// Ends all links of the run.
    pub(super) cancel: Cancel,
    /// What becomes of what arrives.
    pub(super) sink: Sink,
    /// Whether what the page cache has of the target is surely on the disk, once it is synced.
    trusts_cache: bool,
    /// What was written into the marker.
    marker: OnceLock<String>,
    planned_files: PlannedFiles,
    /// Its WAL, once the target cannot be started.
    wal: OnceLock<Wal>,
    /// Whether its files are as they are going to be.
    is_reconciled: AtomicBool,
}

impl Run {
    pub(super) fn new(
        target: DataDirectory,
        digest_key: DigestKey,
        cancel: Cancel,
        files: FileList,
        trusts_cache: bool,
        record: Record,
    ) -> Result<Self> {
        let before = Before::new(&target).inspect_err(|error| record.fail(error))?;
        Ok(Self {
            sink: Sink::Write(before),
            trusts_cache,
            ..Self::dry_run(target, digest_key, cancel, files, record)
        })
    }

    /// A run that only tells what another one would do.
    pub(super) fn dry_run(
        target: DataDirectory,
        digest_key: DigestKey,
        cancel: Cancel,
        files: FileList,
        record: Record,
    ) -> Self {
        let planned_files = PlannedFiles::new(files);
        Self {
            record,
            target,
            digest_key,
            cancel,
            sink: Sink::Count,
            trusts_cache: true,
            marker: OnceLock::new(),
            planned_files,
            wal: OnceLock::new(),
            is_reconciled: AtomicBool::new(false),
        }
    }

    /// All files of the plan; the position is the file's number on the wire.
    pub(super) const fn planned_files(&self) -> &PlannedFiles {
        &self.planned_files
    }

    /// Its WAL; `None` before the target cannot be started, and in a dry run.
    pub(super) fn wal(&self) -> Option<&Wal> {
        self.wal.get()
    }

    /// From now on WAL may come.
    pub(super) fn set_wal(&self, wal: Wal) {
        // a run begins once
        let _ = self.wal.set(wal);
    }

    /// What was written into the marker.
    pub(super) fn marker(&self) -> Option<&str> {
        self.marker.get().map(String::as_str)
    }

    /// Remembers what was written into the marker.
    pub(super) fn set_marker(&self, text: String) {
        // a run begins once
        let _ = self.marker.set(text);
    }

    pub(super) fn is_reconciled(&self) -> bool {
        self.is_reconciled.load(Ordering::Relaxed)
    }

    pub(super) fn set_reconciled(&self) {
        self.is_reconciled.store(true, Ordering::Relaxed);
    }

    /// Waits until what was there before is durable; false if that was not tried, or not for all of it.
    pub(super) fn is_synced(&self) -> Result<bool> {
        // what lies on a file system that is mounted within the target was not synced
        Ok(self.sink.is_synced()? && !self.target.has_mounts())
    }

    /// Opens what the target has of a file, to be compared.
    pub(super) fn open_present(&self, planned: &PlannedFile<'_>) -> Result<Option<DirectFile>> {
        let Some((file, stat)) = self.enter(planned, &mut planned.lock_place())? else {
            return Ok(None);
        };
        planned.found(stat.size, stat.mode);
        if !self.trusts_cache {
            // After a write that failed the kernel keeps the page as if it had been written. What is compared must
            // come from the disk.
            if !self.is_synced()? {
                file.sync_data()
                    .map_err(Error::on(format_args!("sync file \"{}\" of the target", planned.path)))?;
            }
            // a file system without a disk does not take it
            let _ = fadvise(&file, 0, None, Advice::DontNeed);
        }
        Ok(Some(DirectFile::new(file)))
    }

    /// Looks at what is in a file's place without opening it: its size, if it can be compared and written in place. Of what
    /// could not be opened later nothing is remembered: it will be replaced.
    pub(super) fn look(&self, planned: &PlannedFile<'_>) -> Result<Option<u64>> {
        const OWNER_MAY: u32 = 0o600;
        let mut place = planned.lock_place();
        let found = self
            .target
            .stat(&planned.path)?
            .filter(|stat| self.target.is_written_in_place(stat) && stat.mode & OWNER_MAY == OWNER_MAY);
        let Some(stat) = found else { return Ok(None) };
        match place.get() {
            // an attempt to clone it may have opened it
            Place::Own(known) if known.is_same_file(&stat.stamp) => return Ok(Some(stat.size)),
            Place::Own(_) | Place::Unusable => return Ok(None),
            Place::Unknown => {}
        }
        planned.found(stat.size, stat.mode);
        place.set_own(stat.stamp);
        Ok(Some(stat.size))
    }

    /// Opens a file to be written: the one that was compared, or a new one if there was none. From now on it counts as
    /// changed, and who writes it ends with [`Run::note`].
    pub(super) fn open_to_write(&self, planned: &PlannedFile<'_>) -> Result<std::fs::File> {
        self.open_own(planned, true)
    }

    /// Opens a file to become a clone, which may turn out to be impossible before it was changed.
    pub(super) fn open_to_clone(&self, planned: &PlannedFile<'_>) -> Result<std::fs::File> {
        self.open_own(planned, false)
    }

    fn open_own(&self, planned: &PlannedFile<'_>, is_changed: bool) -> Result<std::fs::File> {
        // several links may write ranges of one file: only the first makes it
        let mut place = planned.lock_place();
        if let Some((file, _)) = self.enter(planned, &mut place)? {
            if is_changed {
                // before the first write and under the lock: the next writer expects another time of change
                planned.set_changed();
            }
            return Ok(file);
        }
        planned.set_changed();
        let file = self.target.create(&planned.path, planned.mode)?;
        place.set_own(self.stamp(planned, &file)?);
        Ok(file)
    }

    /// Remembers when a file was changed, now that one of those who write it is done.
    ///
    /// Several links may write one file. Each looks under the lock and after its last write, so what stands in the end
    /// is from after the last write of all. What changes a file later is nothing of ours: syncing it does not change it.
    pub(super) fn note(&self, planned: &PlannedFile<'_>, file: &std::fs::File) -> Result<()> {
        let mut place = planned.lock_place();
        let stamp = self.stamp(planned, file)?;
        match place.get() {
            Place::Own(known) if !known.is_same_file(&stamp) => Err(identity::replaced(&planned.path)),
            _ => {
                place.set_own(stamp);
                Ok(())
            }
        }
    }

    fn stamp(&self, planned: &PlannedFile<'_>, file: &std::fs::File) -> Result<Stamp> {
        let stat = Stat::of_file(file)
            .map_err(Error::on(format_args!("stat file \"{}\" of the target", planned.path)))?;
        Ok(stat.stamp)
    }

    /// Fails if what was found in a file's place is not what this run left there; remembers it if nothing is known yet.
    pub(super) fn demand_unchanged(&self, planned: &PlannedFile<'_>, found: Option<&Stat>) -> Result<()> {
        let mut place = planned.lock_place();
        match (place.get(), found) {
            (Place::Own(_), None) => Err(identity::replaced(&planned.path)),
            (Place::Own(known), Some(found)) => identity::demand_same(&planned.path, &known, &found.stamp),
            // it is empty, and could not be opened to be written
            (Place::Unknown | Place::Unusable, Some(found)) => {
                place.set_own(found.stamp);
                Ok(())
            }
            (Place::Unknown | Place::Unusable, None) => Err(identity::replaced(&planned.path)),
        }
    }

    /// Opens what is in a file's place, unless that was found to be of no use. What was found equal is never sent, so
    /// it must still be there when the rest is written.
    fn enter(
        &self,
        planned: &PlannedFile<'_>,
        place: &mut LockedPlace<'_>,
    ) -> Result<Option<(std::fs::File, Stat)>> {
        if place.get() == Place::Unusable {
            return Ok(None);
        }
        let found = self.target.open_in_place(&planned.path)?;
        match (&found, place.get()) {
            (None, Place::Own(_)) => return Err(identity::replaced(&planned.path)),
            (Some((_, stat)), Place::Own(known)) if !known.is_same_file(&stat.stamp) => {
                return Err(identity::replaced(&planned.path));
            }
            // what this run is writing has another time of change whenever one looks
            (Some((_, stat)), Place::Own(known)) if !planned.is_changed() && self.sink.writes() => {
                identity::demand_same(&planned.path, &known, &stat.stamp)?;
            }
            (Some(_), Place::Own(_)) => {}
            (Some((_, stat)), _) => place.set_own(stat.stamp),
            (None, _) => place.set_unusable(),
        }
        Ok(found)
    }
}

/// A run whose plan is one file of a page.
#[cfg(test)]
pub(super) fn of_one_page(directory: &std::path::Path, file: &str) -> Run {
    let path = crate::manifest::path::RelPath::parse(file).expect("valid");
    let file = crate::manifest::plan::File { path, size: 8192, mode: 0o600 };
    let record = std::sync::Arc::new(super::ledger::Ledger::new()).unlisted(&FileList::default());
    let (target, key) = (DataDirectory::open(directory).expect("open"), DigestKey::random().expect("random"));
    Run::new(target, key, Cancel::new(), [file].into_iter().collect(), true, record).expect("begins")
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::error::Kind;

    const FILE: &str = "16384";

    #[test]
    fn what_was_compared_is_never_replaced_by_an_empty_file() {
        for is_linked in [true, false] {
            let data = tempfile::tempdir().expect("temporary directory");
            let path = data.path().join(FILE);
            fs::write(&path, "compared").expect("write");
            let run = of_one_page(data.path(), FILE);
            let planned_files = run.planned_files();
            let planned = &planned_files.file(0);
            assert!(run.open_present(planned).expect("opens").is_some());
            if is_linked {
                fs::hard_link(&path, data.path().join("kept")).expect("link");
            } else {
                fs::remove_file(&path).expect("remove");
            }
            assert_eq!(run.open_to_write(planned).expect_err("not that file").kind, Kind::InUse);
            assert_eq!(path.exists(), is_linked);
        }
    }

    #[test]
    fn what_this_run_made_is_never_made_again() {
        let data = tempfile::tempdir().expect("temporary directory");
        let run = of_one_page(data.path(), FILE);
        let planned_files = run.planned_files();
        let planned = &planned_files.file(0);
        run.open_to_write(planned).expect("made");
        run.open_to_write(planned).expect("opened");
        fs::hard_link(data.path().join(FILE), data.path().join("kept")).expect("link");
        assert_eq!(run.open_to_write(planned).expect_err("linked").kind, Kind::InUse);
    }

    #[test]
    fn what_was_no_use_at_first_stays_so() {
        let data = tempfile::tempdir().expect("temporary directory");
        let (path, other) = (data.path().join(FILE), data.path().join("other"));
        fs::write(&path, "not compared").expect("write");
        fs::hard_link(&path, &other).expect("link");
        let run = of_one_page(data.path(), FILE);
        let planned_files = run.planned_files();
        let planned = &planned_files.file(0);
        assert!(run.open_present(planned).expect("looks").is_none());
        fs::remove_file(&other).expect("one name is left");
        assert!(run.open_present(planned).expect("looks").is_none(), "zeros were not sent");
        run.open_to_write(planned).expect("made");
        assert_eq!(fs::read(&path).expect("read"), b"");
    }

    #[test]
    fn a_file_that_may_not_be_opened_is_not_taken_for_one_that_is_compared() {
        for mode in [0o000, 0o200, 0o400, 0o077] {
            let data = tempfile::tempdir().expect("temporary directory");
            let path = data.path().join(FILE);
            fs::write(&path, [1; 8192]).expect("write");
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("chmod");
            let run = of_one_page(data.path(), FILE);
            let planned_files = run.planned_files();
            let planned = &planned_files.file(0);
            assert_eq!(run.look(planned).expect("looks"), None, "{mode:o}");
            assert!(!planned.is_found(), "{mode:o}");
            run.open_to_write(planned).expect("opened, or made");
        }
    }
}
