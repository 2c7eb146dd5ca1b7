//! What the links of one run share.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError, RwLock, RwLockReadGuard};

use rustix::fs::{Advice, FileType, fadvise};

use super::durable::Before;
use super::identity;
use super::ledger::Record;
use super::sink::Sink;
use crate::compare::digest::DigestKey;
use crate::data_directory::{DataDirectory, Stamp, Stat};
use crate::error::{Error, Kind, Result};
use crate::manifest::path::RelPath;
use crate::manifest::plan::File;
use crate::sys::cancel::Cancel;
use crate::sys::direct::DirectFile;
use crate::sys::lock::lock;

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
    planned_files: RwLock<Vec<PlannedFile>>,
    /// How many of them have been reconciled.
    reconciled: AtomicUsize,
}

impl Run {
    pub(super) fn new(
        target: DataDirectory,
        digest_key: DigestKey,
        cancel: Cancel,
        files: Vec<File>,
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
        files: Vec<File>,
        record: Record,
    ) -> Self {
        let planned_files = RwLock::new(files.into_iter().map(PlannedFile::new).collect());
        Self {
            record,
            target,
            digest_key,
            cancel,
            sink: Sink::Count,
            trusts_cache: true,
            marker: OnceLock::new(),
            planned_files,
            reconciled: AtomicUsize::new(0),
        }
    }

    /// All files of the plan; the position is the file's number on the wire.
    pub(super) fn planned_files(&self) -> RwLockReadGuard<'_, Vec<PlannedFile>> {
        self.planned_files.read().unwrap_or_else(PoisonError::into_inner)
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

    pub(super) fn reconciled(&self) -> usize {
        self.reconciled.load(Ordering::Relaxed)
    }

    pub(super) fn set_reconciled(&self, planned_files: usize) {
        self.reconciled.store(planned_files, Ordering::Relaxed);
    }

    /// Waits until what was there before is durable; false if that was not tried, or not for all of it.
    pub(super) fn is_synced(&self) -> Result<bool> {
        // what lies on a file system that is mounted within the target was not synced
        Ok(self.sink.is_synced()? && !self.target.has_mounts())
    }

    /// Opens what the target has of a file, to be compared.
    pub(super) fn open_present(&self, planned: &PlannedFile) -> Result<Option<DirectFile>> {
        let Some((file, stat)) = self.enter(planned, &mut lock(&planned.place))? else {
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
    pub(super) fn look(&self, planned: &PlannedFile) -> Result<Option<u64>> {
        const OWNER_MAY: u32 = 0o600;
        let mut place = lock(&planned.place);
        let found = self.target.stat(&planned.path)?.filter(|stat| {
            let own = rustix::process::geteuid().as_raw();
            let may_be_opened = stat.user == own && stat.mode & OWNER_MAY == OWNER_MAY;
            stat.kind == FileType::RegularFile && stat.names == 1 && may_be_opened
        });
        let Some(stat) = found else { return Ok(None) };
        match &*place {
            // an attempt to clone it may have opened it
            Place::Own(known) if known.is_same_file(&stat.stamp) => return Ok(Some(stat.size)),
            Place::Own(_) | Place::Unusable => return Ok(None),
            Place::Unknown => {}
        }
        planned.found(stat.size, stat.mode);
        *place = Place::Own(stat.stamp);
        Ok(Some(stat.size))
    }

    /// Opens a file to be written: the one that was compared, or a new one if there was none. From now on it counts as
    /// changed, and who writes it ends with [`Run::note`].
    pub(super) fn open_to_write(&self, planned: &PlannedFile) -> Result<std::fs::File> {
        self.open_own(planned, true)
    }

    /// Opens a file to become a clone, which may turn out to be impossible before it was changed.
    pub(super) fn open_to_clone(&self, planned: &PlannedFile) -> Result<std::fs::File> {
        self.open_own(planned, false)
    }

    fn open_own(&self, planned: &PlannedFile, is_changed: bool) -> Result<std::fs::File> {
        // several links may write ranges of one file: only the first makes it
        let mut place = lock(&planned.place);
        if let Some((file, _)) = self.enter(planned, &mut place)? {
            if is_changed {
                // before the first write and under the lock: the next writer expects another time of change
                planned.set_changed();
            }
            return Ok(file);
        }
        planned.set_changed();
        let file = self.target.create(&planned.path, planned.mode)?;
        *place = Place::Own(self.stamp(planned, &file)?);
        Ok(file)
    }

    /// Remembers when a file was changed, now that one of those who write it is done.
    ///
    /// Several links may write one file. Each looks under the lock and after its last write, so what stands in the end
    /// is from after the last write of all. What changes a file later is nothing of ours: syncing it does not change it.
    pub(super) fn note(&self, planned: &PlannedFile, file: &std::fs::File) -> Result<()> {
        let mut place = lock(&planned.place);
        let stamp = self.stamp(planned, file)?;
        match &*place {
            Place::Own(known) if !known.is_same_file(&stamp) => Err(identity::replaced(&planned.path)),
            _ => {
                *place = Place::Own(stamp);
                Ok(())
            }
        }
    }

    fn stamp(&self, planned: &PlannedFile, file: &std::fs::File) -> Result<Stamp> {
        let stat = Stat::of_file(file)
            .map_err(Error::on(format_args!("stat file \"{}\" of the target", planned.path)))?;
        Ok(stat.stamp)
    }

    /// Fails if what was found in a file's place is not what this run left there; remembers it if nothing is known yet.
    pub(super) fn demand_unchanged(&self, planned: &PlannedFile, found: Option<&Stat>) -> Result<()> {
        let mut place = lock(&planned.place);
        match (&*place, found) {
            (Place::Own(_), None) => Err(identity::replaced(&planned.path)),
            (Place::Own(known), Some(found)) => identity::demand_same(&planned.path, known, &found.stamp),
            // it is empty, and could not be opened to be written
            (Place::Unknown | Place::Unusable, Some(found)) => {
                *place = Place::Own(found.stamp);
                Ok(())
            }
            (Place::Unknown | Place::Unusable, None) => Err(identity::replaced(&planned.path)),
        }
    }

    /// Opens what is in a file's place, unless that was found to be of no use. What was found equal is never sent, so
    /// it must still be there when the rest is written.
    fn enter(&self, planned: &PlannedFile, place: &mut Place) -> Result<Option<(std::fs::File, Stat)>> {
        if let Place::Unusable = place {
            return Ok(None);
        }
        let found = self.target.open_in_place(&planned.path)?;
        match (&found, &*place) {
            (None, Place::Own(_)) => return Err(identity::replaced(&planned.path)),
            (Some((_, stat)), Place::Own(known)) if !known.is_same_file(&stat.stamp) => {
                return Err(identity::replaced(&planned.path));
            }
            // what this run is writing has another time of change whenever one looks
            (Some((_, stat)), Place::Own(known)) if !planned.is_changed() && self.sink.writes() => {
                identity::demand_same(&planned.path, known, &stat.stamp)?;
            }
            (Some(_), Place::Own(_)) => {}
            (Some((_, stat)), _) => *place = Place::Own(stat.stamp),
            (None, _) => *place = Place::Unusable,
        }
        Ok(found)
    }

    /// The plan goes on: WAL.
    pub(super) fn extend(&self, files: Vec<File>) {
        self.planned_files
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(files.into_iter().map(PlannedFile::new));
    }
}

/// One file of the plan and what has become of it.
pub(super) struct PlannedFile {
    pub(super) path: RelPath,
    pub(super) mode: u32,
    planned: u64,
    /// Where the primary's file turned out to end, if before the planned size.
    end: AtomicU64,
    gone: AtomicBool,
    changed: AtomicBool,
    /// Whether the target's file was found to have the planned size and mode.
    found: AtomicBool,
    /// Whether some of it was written past the page cache.
    direct: AtomicBool,
    place: Mutex<Place>,
}

/// What is in a file's place on the target.
enum Place {
    /// It was not looked at.
    Unknown,
    /// Nothing of use: the file is to be made.
    Unusable,
    /// The file that is compared and written, there before or made by this run, as it was when this run last had to do
    /// with it.
    Own(Stamp),
}

impl PlannedFile {
    pub(super) fn new(file: File) -> Self {
        Self {
            path: file.path,
            mode: file.mode,
            planned: file.size,
            end: AtomicU64::new(u64::MAX),
            gone: AtomicBool::new(false),
            changed: AtomicBool::new(false),
            found: AtomicBool::new(false),
            direct: AtomicBool::new(false),
            place: Mutex::new(Place::Unknown),
        }
    }

    /// The size the file must have. A file that shrank while it was read is cut at its shortest: what
    /// lies behind was truncated after the backup started, so replay restores whatever came back.
    pub(super) fn size(&self) -> u64 {
        self.planned.min(self.end.load(Ordering::Relaxed))
    }

    /// Whether the primary's file turned out to end before the planned size.
    pub(super) fn is_short(&self) -> bool {
        self.size() < self.planned
    }

    pub(super) fn ends_at(&self, size: u64) {
        self.end.fetch_min(size, Ordering::Relaxed);
    }

    pub(super) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }

    pub(super) fn set_gone(&self) {
        self.gone.store(true, Ordering::Relaxed);
    }

    /// Remembers that the target's file has this size and mode.
    pub(super) fn found(&self, size: u64, mode: u32) {
        self.found.store(size == self.planned && mode == self.mode, Ordering::Relaxed);
    }

    /// Whether the target's file was found to have the planned size and mode.
    pub(super) fn is_found(&self) -> bool {
        self.found.load(Ordering::Relaxed)
    }

    /// Whether the target's file is known to need nothing: neither written nor another size or mode.
    pub(super) fn fits(&self) -> bool {
        self.is_found() && !self.is_changed() && self.size() == self.planned
    }

    pub(super) fn is_changed(&self) -> bool {
        self.changed.load(Ordering::Relaxed)
    }

    pub(super) fn set_changed(&self) {
        self.changed.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_direct(&self) -> bool {
        self.direct.load(Ordering::Relaxed)
    }

    pub(super) fn set_direct(&self) {
        self.direct.store(true, Ordering::Relaxed);
    }

    /// Refuses content beyond what the plan announced.
    pub(super) fn check_end(&self, end: u64) -> Result<()> {
        if end <= self.planned {
            return Ok(());
        }
        Err(Error::new(Kind::ProtocolViolation, format!("content at {end} of \"{}\"", self.path))
            .detail(format!("The plan announced {} bytes.", self.planned)))
    }
}

/// The file with a number from the wire.
pub(super) fn planned_file(planned_files: &[PlannedFile], number: u32) -> Result<&PlannedFile> {
    planned_files.get(number as usize).ok_or_else(|| {
        Error::new(Kind::ProtocolViolation, format!("file number {number} is not in the plan"))
    })
}

/// The file with a number from the wire that something is going to be written to; a reconciled one stays as it is.
pub(super) fn writable_file<'a>(
    run: &Run,
    planned_files: &'a [PlannedFile],
    number: u32,
) -> Result<&'a PlannedFile> {
    if (number as usize) < run.reconciled() {
        return Err(Error::new(
            Kind::ProtocolViolation,
            format!("file number {number} was reconciled already"),
        ));
    }
    planned_file(planned_files, number)
}

/// A run whose plan is one file of a page.
#[cfg(test)]
pub(super) fn of_one_page(directory: &std::path::Path, file: &str) -> Run {
    let file = File { path: RelPath::parse(file).expect("valid"), size: 8192, mode: 0o600 };
    let record = std::sync::Arc::new(super::ledger::Ledger::new()).unlisted(&[]);
    let (target, key) = (DataDirectory::open(directory).expect("open"), DigestKey::random().expect("random"));
    Run::new(target, key, Cancel::new(), vec![file], true, record).expect("begins")
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const FILE: &str = "16384";

    #[test]
    fn what_was_compared_is_never_replaced_by_an_empty_file() {
        for is_linked in [true, false] {
            let data = tempfile::tempdir().expect("temporary directory");
            let path = data.path().join(FILE);
            fs::write(&path, "compared").expect("write");
            let run = of_one_page(data.path(), FILE);
            let planned = &run.planned_files()[0];
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
        let planned = &run.planned_files()[0];
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
        let planned = &run.planned_files()[0];
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
            let planned = &run.planned_files()[0];
            assert_eq!(run.look(planned).expect("looks"), None, "{mode:o}");
            assert!(!planned.is_found(), "{mode:o}");
            run.open_to_write(planned).expect("opened, or made");
        }
    }
}
