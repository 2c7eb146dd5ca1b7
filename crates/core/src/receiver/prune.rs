//! What becomes of the entries of a target that are there: the same answers before a run, where they tell what stands in
//! its way, and at its end, where they are carried out.

use std::collections::HashSet;

use pgdata::control_file::PG_CONTROL;
use rustix::fs::FileType;

use crate::data_directory::DataDirectory;
use crate::error::Result;
use crate::manifest::exclude::{CONTROL_ASIDE, FENCED, MARKER, Rules};
use crate::manifest::path::RelPath;
use crate::manifest::plan::Directory;
use crate::wire::protocol::message::PlanHeader;

/// What becomes of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It stays, whatever it holds.
    Stays,
    /// It stays, and what it holds is looked at.
    Entered,
    /// It goes.
    Goes,
}

/// The rules for one target and one plan.
pub(super) struct Pruning<'a> {
    target: &'a DataDirectory,
    directories: HashSet<&'a str>,
    /// Whether the plan has a file of this name.
    has_file: &'a dyn Fn(&RelPath) -> bool,
    /// The cluster's directory in each tablespace.
    tablespaces: Vec<String>,
    /// The links to the tablespaces.
    links: HashSet<String>,
    keep: &'a [RelPath],
    rules: Rules,
    /// Whether pg_control is in its place still: a run puts it aside.
    has_control: bool,
}

impl<'a> Pruning<'a> {
    pub(super) fn new(
        target: &'a DataDirectory,
        directories: &'a [Directory],
        has_file: &'a dyn Fn(&RelPath) -> bool,
        keep: &'a [RelPath],
        header: &PlanHeader,
        has_control: bool,
    ) -> Self {
        let (tablespaces, links) = header
            .tablespaces
            .iter()
            .map(|tablespace| {
                let link = format!("pg_tblspc/{}", tablespace.oid);
                (format!("{link}/{}", header.tablespace_version_directory), link)
            })
            .unzip();
        Self {
            target,
            directories: directories.iter().map(|directory| directory.path.as_str()).collect(),
            has_file,
            tablespaces,
            links,
            keep,
            rules: Rules { host_directories: header.host_directories.clone(), private_files: Vec::new() },
            has_control,
        }
    }

    /// The cluster's directory in each tablespace: they are looked at on their own.
    pub(super) fn tablespaces(&self) -> &[String] {
        &self.tablespaces
    }

    /// Whether the plan has a directory of this name.
    pub(super) fn is_directory(&self, path: &RelPath) -> bool {
        self.directories.contains(path.as_str()) && !self.is_file(path)
    }

    /// Whether the plan has a file of this name.
    pub(super) fn is_file(&self, path: &RelPath) -> bool {
        (self.has_file)(path)
    }

    /// Whether the plan has a file of this name in a directory: a file there stays.
    pub(super) fn is_file_of(&self, directory: Option<&RelPath>, name: &str) -> bool {
        let path = match directory {
            Some(directory) => directory.join(name),
            None => RelPath::parse(name),
        };
        path.is_ok_and(|path| self.is_file(&path))
    }

    pub(super) fn judge(&self, path: &RelPath, kind: FileType) -> Result<Fate> {
        if self.is_protected(path)? || self.links.contains(path.as_str()) {
            return Ok(Fate::Stays);
        }
        let is_root = || self.target.roots().any(|(prefix, _)| prefix == path.as_str());
        Ok(match kind {
            FileType::RegularFile if self.is_file(path) => Fate::Stays,
            _ if self.is_directory(path) && (kind == FileType::Directory || is_root()) => Fate::Entered,
            _ if kind == FileType::Directory && self.holds_kept(path) => Fate::Entered,
            _ => Fate::Goes,
        })
    }

    fn is_protected(&self, path: &RelPath) -> Result<bool> {
        Ok(self.keep.iter().any(|kept| path.is_at_or_below(kept.as_str()))
            || self.rules.is_host_directory(path)
            || matches!(path.as_str(), MARKER | CONTROL_ASIDE | FENCED)
            || self.has_control && path.as_str() == PG_CONTROL
            || self.is_of_a_file_system(path)?)
    }

    /// What mkfs puts at the root of a file system, which a tablespace, pg_wal or another directory may be.
    fn is_of_a_file_system(&self, path: &RelPath) -> Result<bool> {
        let Some(parent) = path.parent().filter(|_| path.file_name() == "lost+found") else {
            return Ok(false);
        };
        let is_root = self.target.roots().any(|(prefix, _)| prefix == parent);
        Ok(is_root || self.target.is_mount(&RelPath::parse(parent)?)?)
    }

    fn holds_kept(&self, directory: &RelPath) -> bool {
        self.keep.iter().any(|kept| kept.is_at_or_below(directory.as_str()))
    }
}
