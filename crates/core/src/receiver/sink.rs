//! What a run does with what arrives: it is written, or only counted.

use std::ffi::CStr;

use super::durable::Before;
use super::identity;
use super::planned::PlannedFile;
use super::reconcile::{fit, is_fit};
use super::run::Run;
use crate::data_directory::DataDirectory;
use crate::error::Result;
use crate::manifest::path::RelPath;
use crate::wire::protocol::data::{CONTENT, DIFFERS, PAGES};

pub(super) enum Sink {
    /// The target becomes what the primary is. What was there before is made durable meanwhile.
    Write(Before),
    /// Nothing changes: what a run would do is counted.
    Count,
}

impl Sink {
    /// Whether frames of this kind may come.
    pub(super) const fn takes(&self, kind: u8) -> bool {
        match self {
            Self::Write(_) => kind != DIFFERS,
            Self::Count => !matches!(kind, PAGES | CONTENT),
        }
    }

    /// Whether what is there already stays as it is, but for what the run itself writes.
    pub(super) const fn writes(&self) -> bool {
        matches!(self, Self::Write(_))
    }

    /// Begins to make durable what was there before.
    pub(super) fn begin_sync(&self) {
        if let Self::Write(before) = self {
            before.begin();
        }
    }

    /// Waits until what was there before is durable; false if that was not tried.
    pub(super) fn is_synced(&self) -> Result<bool> {
        match self {
            Self::Write(before) => before.end(),
            Self::Count => Ok(false),
        }
    }

    /// Fails if the target can be started although it is being written: as surplus, what made that possible would be removed
    /// without a word.
    pub(super) fn demand_incomplete(&self, run: &Run) -> Result<()> {
        match self {
            Self::Write(_) => identity::demand_incomplete(run),
            Self::Count => Ok(()),
        }
    }

    /// Gives a file its size and mode; returns whether the run changes it.
    pub(super) fn fit(&self, run: &Run, planned: &PlannedFile<'_>) -> Result<bool> {
        match self {
            Self::Write(_) => fit(run, planned).map(|()| planned.is_changed()),
            Self::Count => Ok(planned.is_changed() || !is_fit(run, planned)?),
        }
    }

    /// Removes what the primary does not have; returns whether it was there.
    pub(super) fn remove(&self, target: &DataDirectory, path: &RelPath) -> Result<bool> {
        match self {
            Self::Write(_) => target.remove(path),
            Self::Count => Ok(target.stat(path)?.is_some()),
        }
    }

    /// Removes an entry whose name is no path of a plan.
    pub(super) fn remove_unnamed(
        &self,
        target: &DataDirectory,
        directory: Option<&RelPath>,
        name: &CStr,
    ) -> Result<()> {
        match self {
            Self::Write(_) => target.remove_unnamed(directory, name),
            Self::Count => Ok(()),
        }
    }
}
