//! After the last page: every file gets its size and mode, and what the primary does not have goes.

use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::FileType;

use super::parallel::for_each;
use super::planned::PlannedFile;
use super::prune::{Fate, Pruning};
use super::run::Run;
use super::segments::end_forks;
use crate::data_directory::Entries;
use crate::error::{Error, Result};
use crate::manifest::list::FileIndex;
use crate::manifest::path::RelPath;
use crate::manifest::plan::Directory;
use crate::wire::protocol::message::PlanHeader;

/// What reconciling did.
#[derive(Debug, Default)]
pub(super) struct Reconciliation {
    pub(super) removed: u64,
    pub(super) changed: u64,
    pub(super) warnings: Vec<String>,
}

/// Reconciles the target with the plan, or counts what that would do.
pub(super) fn reconcile(
    run: &Run,
    directories: &[Directory],
    index: &FileIndex,
    keep: &[RelPath],
    header: &PlanHeader,
) -> Result<Reconciliation> {
    run.sink.demand_incomplete(run)?;
    let planned_files = run.planned_files();
    end_forks(planned_files);
    let (removed, changed) = (AtomicU64::new(0), AtomicU64::new(0));
    for_each(run, 0..planned_files.len(), |number| {
        let planned = &planned_files.file(number);
        let (counter, is_counted) = if planned.is_gone() {
            (&removed, run.sink.remove(&run.target, &planned.path)?)
        } else {
            (&changed, run.sink.fit(run, planned)?)
        };
        counter.fetch_add(is_counted.into(), Ordering::Relaxed);
        Ok(())
    })?;
    let reconciliation = Reconciliation {
        removed: removed.into_inner(),
        changed: changed.into_inner(),
        ..Reconciliation::default()
    };
    run.set_reconciled();
    let has_file = |path: &RelPath| {
        let number = index.find(planned_files.list(), path);
        number.is_some_and(|number| !planned_files.is_gone(number))
    };
    let pruning = Pruning::new(&run.target, directories, &has_file, keep, header, !run.sink.writes());
    let mut pruner = Pruner { run, pruning: &pruning, reconciliation };
    pruner.prune(None)?;
    for location in pruning.tablespaces() {
        pruner.prune(Some(&RelPath::parse(location)?))?;
    }
    Ok(pruner.reconciliation)
}

/// Empties pg_wal, and tells how much went: what a target has of WAL is of no use to what it becomes, and its room is wanted.
pub(super) fn empty_wal(run: &Run, keep: &[RelPath], header: &PlanHeader) -> Result<u64> {
    let pruning = Pruning::new(&run.target, &[], &|_| false, keep, header, false);
    let mut pruner = Pruner { run, pruning: &pruning, reconciliation: Reconciliation::default() };
    pruner.prune(Some(&RelPath::parse("pg_wal")?))?;
    Ok(pruner.reconciliation.removed)
}

/// Whether a file has the size and mode it must have, and its content is known. One that this run had to do with must
/// be as the run left it.
pub(super) fn is_fit(run: &Run, planned: &PlannedFile<'_>) -> Result<bool> {
    if planned.fits() {
        return Ok(true);
    }
    let size = planned.size();
    let found = run.target.stat(&planned.path)?;
    // Of a file that was neither compared nor written, because it cannot be opened, nothing is known: zeros that
    // the primary has are not sent to where nothing is.
    let is_known = size == 0 || planned.is_changed() || planned.is_found();
    let fits = found.is_some_and(|stat| {
        stat.kind == FileType::RegularFile
            && stat.names == 1
            && stat.size == size
            && stat.mode == planned.mode
    });
    let is_fit = fits && is_known;
    if run.sink.writes() && (is_fit || planned.is_found() || planned.is_changed()) {
        run.demand_unchanged(planned, found.as_ref())?;
    }
    Ok(is_fit)
}

/// Creates an empty file, cuts a longer one, sets the mode.
pub(super) fn fit(run: &Run, planned: &PlannedFile<'_>) -> Result<()> {
    if is_fit(run, planned)? {
        return Ok(());
    }
    let file = run.open_to_write(planned)?;
    planned.set_changed();
    file.set_len(planned.size())
        .and_then(|()| Ok(rustix::fs::fchmod(&file, rustix::fs::Mode::from_raw_mode(planned.mode))?))
        .map_err(Error::on(format_args!("set size and mode of \"{}\" of the target", planned.path)))?;
    run.note(planned, &file)
}

struct Pruner<'a> {
    run: &'a Run,
    pruning: &'a Pruning<'a>,
    reconciliation: Reconciliation,
}

impl Pruner<'_> {
    /// Removes from one directory what is neither planned nor protected.
    fn prune(&mut self, directory: Option<&RelPath>) -> Result<()> {
        self.run.cancel.check()?;
        let is_known = |name: &str| self.pruning.is_file_of(directory, name);
        let Entries { named, unnamed } = self.run.target.entries_but(directory, &is_known)?;
        for name in unnamed {
            self.run.sink.remove_unnamed(&self.run.target, directory, &name)?;
            self.reconciliation.removed += 1;
        }
        for (name, kind) in named.iter() {
            let path = match directory {
                Some(directory) => directory.join(name)?,
                None => RelPath::parse(name)?,
            };
            match self.pruning.judge(&path, kind)? {
                Fate::Stays => {}
                Fate::Entered => self.prune(Some(&path))?,
                // asked after the directory was listed: what has come since is not among its names
                Fate::Goes if self.run.wal().is_some_and(|wal| wal.sink().has(&path)) => {
                    if kind == FileType::Directory {
                        self.prune(Some(&path))?;
                    }
                }
                Fate::Goes => self.remove(&path, kind)?,
            }
        }
        Ok(())
    }

    fn remove(&mut self, path: &RelPath, kind: FileType) -> Result<()> {
        if kind == FileType::Symlink && path.parent() == Some("pg_tblspc") {
            self.reconciliation.warnings.push(format!(
                "tablespace link \"{path}\" is removed; the directory it points to is left as it is"
            ));
        }
        self.run.sink.remove(&self.run.target, path)?;
        self.reconciliation.removed += 1;
        Ok(())
    }
}
