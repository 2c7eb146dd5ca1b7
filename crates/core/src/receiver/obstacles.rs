//! Can a run end well? What it will have to remove, enter and write is looked at before anything changes, in the way in
//! which it will go.

use std::collections::HashMap;

use pgdata::control_file::PG_CONTROL;
use rustix::fs::FileType;

use super::prune::{Fate, Pruning};
use crate::data_directory::{DataDirectory, Entries};
use crate::error::{Error, Kind, Result};
use crate::manifest::exclude::{CONTROL_ASIDE, MARKER, holds_relations};
use crate::manifest::list::{FileIndex, FileList};
use crate::manifest::path::RelPath;
use crate::manifest::plan::Directory;
use crate::sys::FileId;
use crate::wire::protocol::message::PlanHeader;

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// The first thing that stands in the way.
    pub(super) obstacle: Option<Error>,
    /// Bytes that the target's WAL takes, by device: a run removes it first.
    pub(super) freed: HashMap<u64, u64>,
    /// Directories on which another file system than that of its root begins, and that one's device.
    pub(super) mounts: Vec<(RelPath, u64)>,
    /// The directories that a run enters: one may be mounted there, of the same file system, too.
    pub(super) entered: Vec<(RelPath, FileId)>,
}

/// Looks at all of the target that a run would.
pub(super) fn search(
    target: &DataDirectory,
    directories: &[Directory],
    files: &FileList,
    index: &FileIndex,
    keep: &[RelPath],
    header: &PlanHeader,
) -> Result<Found> {
    let has_file = |path: &RelPath| index.find(files, path).is_some();
    let pruning = Pruning::new(target, directories, &has_file, keep, header, true);
    let mut search = Search { target, pruning: &pruning, found: Found::default() };
    let obstacle = target.read_only_root()?;
    search.meet(obstacle.map(|obstacle| obstacle.refusal()));
    search.global()?;
    search.directory(None)?;
    for location in pruning.tablespaces() {
        let location = RelPath::parse(location)?;
        let (obstacle, identity) = target.tablespace_obstacle(&location)?;
        search.found.entered.extend(identity.map(|identity| (location.clone(), identity)));
        search.meet(obstacle.map(|obstacle| obstacle.refusal()));
        search.directory(Some(&location))?;
    }
    Ok(search.found)
}

struct Search<'a> {
    target: &'a DataDirectory,
    pruning: &'a Pruning<'a>,
    found: Found,
}

impl Search<'_> {
    fn meet(&mut self, obstacle: Option<Error>) {
        if self.found.obstacle.is_none() {
            self.found.obstacle = obstacle;
        }
    }

    /// pg_control is put aside first of all, and never through a link.
    fn global(&mut self) -> Result<()> {
        let global = RelPath::parse("global")?;
        if self.target.stat(&global)?.is_some_and(|found| found.kind == FileType::Symlink) {
            let path = self.target.path().join(&global);
            let message = format!("\"{}\" is a symbolic link", path.display());
            self.meet(Some(
                Error::new(Kind::TargetRefused, message)
                    .detail("pg_control lies there, and a recovery follows no link but those of pg_wal and tablespaces.")
                    .hint("Move what it leads to into its place, or remove the link."),
            ));
        }
        for name in [PG_CONTROL, CONTROL_ASIDE, MARKER] {
            let obstacle = self.target.rename_obstacle(&RelPath::parse(name)?)?;
            self.meet(obstacle.map(|obstacle| obstacle.refusal()));
        }
        Ok(())
    }

    fn directory(&mut self, directory: Option<&RelPath>) -> Result<()> {
        // PostgreSQL's own files by the million have no attributes
        let mut freed = HashMap::new();
        let is_few = !directory.is_some_and(|directory| holds_relations(directory.as_str()));
        let is_known = |name: &str| !is_few && self.pruning.is_file_of(directory, name);
        // one that may not be listed is opened by the run if it is ours
        let Some(Entries { named, unnamed }) = self.target.listing_but(directory, &is_known)? else {
            return Ok(());
        };
        for name in unnamed {
            let obstacle = self.target.removal_obstacle(directory, name.as_c_str(), &mut freed)?;
            self.meet(obstacle.map(|obstacle| obstacle.refusal()));
        }
        for (name, kind) in named.iter() {
            let path = match directory {
                Some(directory) => directory.join(name)?,
                None => RelPath::parse(name)?,
            };
            match self.pruning.judge(&path, kind)? {
                Fate::Entered => {
                    let (obstacle, identity) = self.target.entrance(&path)?;
                    self.found.entered.extend(identity.map(|identity| (path.clone(), identity)));
                    let device =
                        identity.map_or_else(|| self.target.device_of(&path), |identity| identity.device);
                    // one that is entered only because it holds what is kept stays as it is
                    if self.pruning.is_directory(&path) {
                        self.meet(obstacle.map(|obstacle| obstacle.refusal()));
                    }
                    if device != self.target.device_of(&path) {
                        self.found.mounts.push((path.clone(), device));
                    }
                    self.directory(Some(&path))?;
                }
                Fate::Goes => {
                    let obstacle = self.target.removal_obstacle(directory, name, &mut freed)?;
                    self.meet(obstacle.map(|obstacle| obstacle.refusal()));
                }
                Fate::Stays if is_few && self.pruning.is_file(&path) => {
                    let obstacle = self.target.file_obstacle(&path)?;
                    self.meet(obstacle.map(|obstacle| obstacle.refusal()));
                }
                Fate::Stays => {}
            }
        }
        if directory.is_some_and(|directory| directory.as_str() == "pg_wal") {
            self.found.freed = freed;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn look(target: &DataDirectory, directories: &[&str]) -> Result<Found> {
        let directory = |path: &&str| Directory { path: RelPath::parse(path).expect("valid"), mode: 0o700 };
        let directories: Vec<Directory> = directories.iter().map(directory).collect();
        search(target, &directories, &FileList::default(), &FileIndex::default(), &[], &header())
    }

    fn header() -> PlanHeader {
        PlanHeader {
            tablespaces: Vec::new(),
            tablespace_version_directory: "PG_15_1".to_owned(),
            host_directories: Vec::new(),
            reserve: 0,
            mode: 0o700,
            primary_space: None,
        }
    }

    #[test]
    fn an_ordinary_target_has_no_obstacles_and_its_wal_is_counted() {
        let data = tempfile::tempdir().expect("temporary directory");
        for surplus in ["base/5/old", "pg_wal/archive_status"] {
            fs::create_dir_all(data.path().join(surplus)).expect("make");
            fs::write(data.path().join(surplus).join("1"), [1; 100_000]).expect("write");
        }
        for target in [
            DataDirectory::open_read_only(data.path()).expect("look"),
            DataDirectory::open(data.path()).expect("open"),
        ] {
            let found = look(&target, &["base", "base/5", "pg_wal"]).expect("looks");
            assert!(found.obstacle.is_none() && found.mounts.is_empty(), "{found:?}");
            let freed: u64 = found.freed.values().sum();
            assert!((100_000..200_000).contains(&freed), "{freed}");
        }
        assert!(data.path().join("base/5/old/1").exists());
    }

    #[test]
    fn a_linked_global_is_refused_and_a_missing_target_is_fine() {
        let data = tempfile::tempdir().expect("temporary directory");
        symlink("/elsewhere", data.path().join("global")).expect("link");
        let target = DataDirectory::open_read_only(data.path()).expect("look");
        let found = look(&target, &["global"]).expect("looks");
        let refusal = found.obstacle.expect("a link");
        assert!(refusal.kind == Kind::TargetRefused && refusal.hint.is_some(), "{refusal}");
        let missing = DataDirectory::open_read_only(&data.path().join("none")).expect("look");
        assert!(look(&missing, &["global"]).expect("looks").obstacle.is_none());
    }
}
