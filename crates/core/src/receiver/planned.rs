//! The files of a run's plan, and what has become of each.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard};

use super::run::Run;
use crate::data_directory::Stamp;
use crate::error::{Error, Kind, Result};
use crate::manifest::list::FileList;
use crate::manifest::path::RelPath;
use crate::manifest::plan::File;
use crate::sys::blocks::Blocks;
use crate::sys::lock::lock;

/// Locks over the files' places. Neighbours have different ones, because they are worked on at the same time.
const STRIPES: usize = 256;

/// The file is gone on the primary.
const GONE: u8 = 1;
/// The run has changed the target's file, or is about to.
const CHANGED: u8 = 2;
/// The target's file was found to have the planned size and mode.
const FOUND: u8 = 4;
/// Some of it was written past the page cache.
const DIRECT: u8 = 8;
/// The primary's file turned out to end before the planned size.
const SHORT: u8 = 16;
/// [`Place::Unusable`]. This one and the next change under the lock of the file's stripe only.
const UNUSABLE: u8 = 32;
/// [`Place::Own`].
const OWN: u8 = 64;

/// All files of a plan. Besides the list, 17 bytes for each: there may be millions.
#[derive(Default)]
pub(super) struct PlannedFiles {
    list: FileList,
    flags: Blocks<AtomicU8>,
    /// The file of number `n` has its place in stripe `n % STRIPES`.
    stripes: Vec<Mutex<Blocks<Stamp>>>,
    /// Where the few end that are [`SHORT`].
    ends: Mutex<HashMap<u32, u64>>,
}

impl PlannedFiles {
    pub(super) fn new(list: FileList) -> Self {
        let mut flags = Blocks::default();
        flags.extend_to(list.len(), AtomicU8::default);
        let stripe = || {
            let mut stripe = Blocks::default();
            stripe.extend_to(list.len().div_ceil(STRIPES), Stamp::default);
            Mutex::new(stripe)
        };
        let stripes = (0..STRIPES).map(|_| stripe()).collect();
        Self { list, flags, stripes, ends: Mutex::default() }
    }

    /// What the plan says of them.
    pub(super) const fn list(&self) -> &FileList {
        &self.list
    }

    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    /// The file of this number, which must be one of the plan.
    pub(super) fn file(&self, number: usize) -> PlannedFile<'_> {
        let File { path, size: planned, mode } = self.list.file(number);
        PlannedFile { files: self, number, path, mode, planned }
    }

    /// The file with a number from the wire.
    pub(super) fn planned_file(&self, number: u32) -> Result<PlannedFile<'_>> {
        if (number as usize) < self.len() {
            return Ok(self.file(number as usize));
        }
        Err(Error::new(Kind::ProtocolViolation, format!("file number {number} is not in the plan")))
    }

    /// The file with a number from the wire that something is going to be written to; a reconciled one stays as it is.
    pub(super) fn writable_file(&self, run: &Run, number: u32) -> Result<PlannedFile<'_>> {
        let planned = self.planned_file(number)?;
        if run.is_reconciled() {
            return Err(Error::new(
                Kind::ProtocolViolation,
                format!("file number {number} was reconciled already"),
            ));
        }
        Ok(planned)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = PlannedFile<'_>> {
        (0..self.len()).map(|number| self.file(number))
    }

    /// Whether the file of this number is gone on the primary.
    pub(super) fn is_gone(&self, number: usize) -> bool {
        self.has(number, GONE)
    }

    /// Whether the file of this number was changed.
    pub(super) fn is_changed(&self, number: usize) -> bool {
        self.has(number, CHANGED)
    }

    /// Whether the primary's file of this number turned out to end before the planned size.
    pub(super) fn is_short(&self, number: usize) -> bool {
        self.has(number, SHORT)
    }

    fn has(&self, number: usize, flag: u8) -> bool {
        self.flags[number].load(Ordering::Relaxed) & flag != 0
    }

    fn set(&self, number: usize, flag: u8) {
        self.flags[number].fetch_or(flag, Ordering::Relaxed);
    }

    fn unset(&self, number: usize, flag: u8) {
        self.flags[number].fetch_and(!flag, Ordering::Relaxed);
    }
}

/// One file of the plan.
pub(super) struct PlannedFile<'a> {
    files: &'a PlannedFiles,
    number: usize,
    pub(super) path: RelPath,
    pub(super) mode: u32,
    planned: u64,
}

/// What is in a file's place on the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// It was not looked at.
    Unknown,
    /// Nothing of use: the file is to be made.
    Unusable,
    /// The file that is compared and written, there before or made by this run, as it was when this run last had to do
    /// with it.
    Own(Stamp),
}

/// The place of one file, locked: all who work on the file look at it and change it one after the other.
pub(super) struct LockedPlace<'a> {
    files: &'a PlannedFiles,
    number: usize,
    stripe: MutexGuard<'a, Blocks<Stamp>>,
}

impl LockedPlace<'_> {
    pub(super) fn get(&self) -> Place {
        if self.files.has(self.number, OWN) {
            Place::Own(self.stripe[self.number / STRIPES])
        } else if self.files.has(self.number, UNUSABLE) {
            Place::Unusable
        } else {
            Place::Unknown
        }
    }

    pub(super) fn set_unusable(&self) {
        self.files.unset(self.number, OWN);
        self.files.set(self.number, UNUSABLE);
    }

    pub(super) fn set_own(&mut self, stamp: Stamp) {
        self.stripe[self.number / STRIPES] = stamp;
        self.files.unset(self.number, UNUSABLE);
        self.files.set(self.number, OWN);
    }
}

impl<'a> PlannedFile<'a> {
    /// What is in its place. Of the others none may be locked by the same thread: they share locks.
    pub(super) fn lock_place(&self) -> LockedPlace<'a> {
        let Self { files, number, .. } = *self;
        LockedPlace { files, number, stripe: lock(&files.stripes[number % STRIPES]) }
    }

    /// The size the file must have. A file that shrank while it was read is cut at its shortest: what
    /// lies behind was truncated after the backup started, so replay restores whatever came back.
    pub(super) fn size(&self) -> u64 {
        if !self.is_short() {
            return self.planned;
        }
        let end =
            u32::try_from(self.number).ok().and_then(|number| lock(&self.files.ends).get(&number).copied());
        end.map_or(self.planned, |end| end.min(self.planned))
    }

    /// Whether the primary's file turned out to end before the planned size.
    pub(super) fn is_short(&self) -> bool {
        self.files.is_short(self.number)
    }

    pub(super) fn ends_at(&self, size: u64) {
        if size < self.planned
            && let Ok(number) = u32::try_from(self.number)
        {
            let mut ends = lock(&self.files.ends);
            let end = ends.entry(number).or_insert(size);
            *end = size.min(*end);
            self.files.set(self.number, SHORT);
        }
    }

    pub(super) fn is_gone(&self) -> bool {
        self.files.is_gone(self.number)
    }

    pub(super) fn set_gone(&self) {
        self.files.set(self.number, GONE);
    }

    /// Remembers whether the target's file has the planned size and mode.
    pub(super) fn found(&self, size: u64, mode: u32) {
        if size == self.planned && mode == self.mode {
            self.files.set(self.number, FOUND);
        } else {
            self.files.unset(self.number, FOUND);
        }
    }

    /// Whether the target's file was found to have the planned size and mode.
    pub(super) fn is_found(&self) -> bool {
        self.files.has(self.number, FOUND)
    }

    /// Whether the target's file is known to need nothing: neither written nor another size or mode.
    pub(super) fn fits(&self) -> bool {
        self.is_found() && !self.is_changed() && !self.is_short()
    }

    pub(super) fn is_changed(&self) -> bool {
        self.files.is_changed(self.number)
    }

    pub(super) fn set_changed(&self) {
        self.files.set(self.number, CHANGED);
    }

    pub(super) fn is_direct(&self) -> bool {
        self.files.has(self.number, DIRECT)
    }

    pub(super) fn set_direct(&self) {
        self.files.set(self.number, DIRECT);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(count: usize) -> PlannedFiles {
        let file = |number| File {
            path: RelPath::parse(&format!("base/5/{number}")).expect("valid"),
            size: 8192,
            mode: 0o600,
        };
        PlannedFiles::new((0..count).map(file).collect())
    }

    #[test]
    fn a_file_takes_seventeen_bytes_besides_the_list() {
        const COUNT: usize = 1_000_000;
        let files = planned(COUNT);
        let places: usize = files.stripes.iter().map(|stripe| lock(stripe).bytes()).sum();
        let bytes = places + files.flags.bytes();
        // and what the last blocks have left
        assert!(bytes <= COUNT * 17 + STRIPES * size_of::<Stamp>() + (64 << 10), "{bytes} bytes");
        assert!(lock(&files.ends).is_empty());
    }

    #[test]
    fn what_becomes_of_a_file_does_not_become_of_others() {
        let files = planned(3 * STRIPES + 2);
        files.file(STRIPES).ends_at(100);
        files.file(STRIPES).ends_at(200);
        files.file(STRIPES).ends_at(8192);
        files.file(2 * STRIPES).set_gone();
        files.file(1).found(8192, 0o600);
        files.file(2).found(8192, 0o640);
        files.file(0).lock_place().set_unusable();
        let stamp = Stamp::default();
        files.file(3 * STRIPES).lock_place().set_own(stamp);
        for file in files.iter() {
            let number = file.number;
            assert_eq!(file.size(), if number == STRIPES { 100 } else { 8192 });
            assert_eq!((file.is_short(), file.is_gone()), (number == STRIPES, number == 2 * STRIPES));
            assert_eq!((file.is_found(), file.fits()), (number == 1, number == 1));
            let expected = match number {
                0 => Place::Unusable,
                number if number == 3 * STRIPES => Place::Own(stamp),
                _ => Place::Unknown,
            };
            assert_eq!(file.lock_place().get(), expected);
        }
        files.file(1).set_changed();
        assert!(!files.file(1).fits() && files.file(1).is_changed() && !files.file(2).is_changed());
        files.file(1).found(8191, 0o600);
        assert!(!files.file(1).is_found());
    }
}
