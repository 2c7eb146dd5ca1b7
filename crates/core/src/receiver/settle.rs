//! After the last page: every file gets its size and mode, and what the primary does not have goes.

use rustix::fs::FileType;
use rustix::io::Errno;

use super::prune::{Fate, Pruning};
use super::run::{Run, Slot};
use super::segments::end_forks;
use crate::data_directory::Entries;
use crate::error::{Error, Kind, Result};
use crate::manifest::path::RelPath;
use crate::manifest::plan::Directory;
use crate::wire::protocol::message::Terms;

/// What settling did.
#[derive(Debug, Default)]
pub(super) struct Settled {
    pub(super) removed: u64,
    pub(super) changed: u64,
    pub(super) warnings: Vec<String>,
}

/// Settles the target, or counts what that would do.
pub(super) fn settle(
    run: &Run,
    directories: &[Directory],
    keep: &[RelPath],
    terms: &Terms,
) -> Result<Settled> {
    run.sink.demand_incomplete(run)?;
    let slots = run.slots();
    end_forks(&slots);
    let mut settled = Settled::default();
    for (number, slot) in slots.iter().enumerate() {
        if number.is_multiple_of(1024) {
            run.cancel.check()?;
        }
        if slot.is_gone() {
            settled.removed += u64::from(run.sink.remove(&run.target, &slot.path)?);
        } else {
            settled.changed += u64::from(run.sink.fit(run, slot)?);
        }
    }
    run.set_settled(slots.len());
    let files = slots.iter().filter(|slot| !slot.is_gone()).map(|slot| slot.path.as_str());
    let pruning = Pruning::new(&run.target, directories, files, keep, terms, !run.sink.writes());
    let mut pruner = Pruner { run, pruning: &pruning, settled };
    pruner.prune(None)?;
    for location in pruning.tablespaces() {
        pruner.prune(Some(&RelPath::parse(location)?))?;
    }
    Ok(pruner.settled)
}

/// Gives the files that came after settling, WAL, their size. Their blocks are allocated: the server
/// recycles these files and relies on their space.
pub(super) fn settle_wal(run: &Run) -> Result<()> {
    for slot in &run.slots()[run.settled()..] {
        if slot.is_gone() {
            return Err(Error::new(
                Kind::SlotLost,
                format!("WAL file \"{}\" was removed on the primary", slot.path),
            )
            .detail("The standby needs it to reach consistency.")
            .hint("Use a replication slot (pgpool_recovery.slot_name), or increase wal_keep_size."));
        }
        fit(run, slot)?;
        if slot.size() > 0 {
            let file = run.open_to_write(slot)?;
            match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, slot.size()) {
                // not every file system can
                Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
                Err(error) => {
                    return Err(Error::io(
                        format_args!("allocate \"{}\" on the target", slot.path),
                        &error.into(),
                    ));
                }
            }
            run.note(slot, &file)?;
        }
    }
    Ok(())
}

/// Whether a file has the size and mode it must have, and its content is known. One that this run had to do with must
/// be as the run left it.
pub(super) fn is_fit(run: &Run, slot: &Slot) -> Result<bool> {
    if slot.fits() {
        return Ok(true);
    }
    let size = slot.size();
    let found = run.target.stat(&slot.path)?;
    // Of a file that was neither compared nor written, because it cannot be opened, nothing is known: zeros that
    // the primary has are not sent to where nothing is.
    let is_known = size == 0 || slot.is_changed() || slot.is_found();
    let fits = found.is_some_and(|stat| {
        stat.kind == FileType::RegularFile && stat.names == 1 && stat.size == size && stat.mode == slot.mode
    });
    let is_fit = fits && is_known;
    if run.sink.writes() && (is_fit || slot.is_found() || slot.is_changed()) {
        run.demand_unchanged(slot, found.as_ref())?;
    }
    Ok(is_fit)
}

/// Creates an empty file, cuts a longer one, sets the mode.
pub(super) fn fit(run: &Run, slot: &Slot) -> Result<()> {
    if is_fit(run, slot)? {
        return Ok(());
    }
    let file = run.open_to_write(slot)?;
    slot.set_changed();
    file.set_len(slot.size())
        .and_then(|()| Ok(rustix::fs::fchmod(&file, rustix::fs::Mode::from_raw_mode(slot.mode))?))
        .map_err(Error::on(format_args!("set size and mode of \"{}\" of the target", slot.path)))?;
    run.note(slot, &file)
}

struct Pruner<'a> {
    run: &'a Run,
    pruning: &'a Pruning<'a>,
    settled: Settled,
}

impl Pruner<'_> {
    /// Removes from one directory what is neither planned nor protected.
    fn prune(&mut self, directory: Option<&RelPath>) -> Result<()> {
        self.run.cancel.check()?;
        let Entries { named, unnamed } = self.run.target.entries(directory)?;
        for name in unnamed {
            self.run.sink.remove_unnamed(&self.run.target, directory, &name)?;
            self.settled.removed += 1;
        }
        for (name, kind) in named {
            let path = match directory {
                Some(directory) => directory.join(&name)?,
                None => RelPath::parse(&name)?,
            };
            match self.pruning.judge(&path, kind)? {
                Fate::Stays => {}
                Fate::Entered => self.prune(Some(&path))?,
                Fate::Goes => self.remove(&path, kind)?,
            }
        }
        Ok(())
    }

    fn remove(&mut self, path: &RelPath, kind: FileType) -> Result<()> {
        if kind == FileType::Symlink && path.parent() == Some("pg_tblspc") {
            self.settled.warnings.push(format!(
                "tablespace link \"{path}\" is removed; the directory it points to is left as it is"
            ));
        }
        self.run.sink.remove(&self.run.target, path)?;
        self.settled.removed += 1;
        Ok(())
    }
}
