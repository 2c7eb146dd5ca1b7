//! Was what cannot be found on the primary dropped meanwhile?
//!
//! It was if what names it has gone as well: the entry of a file or of a database's directory, the link of a tablespace. A link that
//! leads nowhere, or to a directory that is not the tablespace's, is a file system that is not mounted: the standby has its
//! files, and must not lose them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::error::{Error, Kind, Result};
use crate::manifest::Side;
use crate::manifest::path::RelPath;
use crate::manifest::plan::Plan;
use crate::manifest::scan::unreadable;
use crate::sys::FileId;

/// How long a DROP TABLESPACE may take from the directory to its link (`destroy_tablespace_directories` in
/// src/backend/commands/tablespace.c): it does nothing in between.
const PATIENCE: Duration = Duration::from_secs(1);

/// How often that is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// What became of a path.
enum Seen {
    Dropped,
    There,
    /// It is named, and cannot be found.
    Lost(Error),
}

/// Whether a path of the primary that could not be found was dropped. False if it is there again. What is named and cannot be
/// found is an error.
pub fn is_dropped(data_directory: &Path, path: &RelPath) -> Result<bool> {
    let end = Instant::now() + PATIENCE;
    loop {
        match look(data_directory, path)? {
            Seen::Dropped => return Ok(true),
            Seen::There => return Ok(false),
            Seen::Lost(error) if Instant::now() >= end => return Err(error),
            Seen::Lost(_) => std::thread::sleep(LOOK),
        }
    }
}

/// Whether a path is PostgreSQL's own: what lies there is not an operator's to leave out.
pub(crate) fn is_of_postgresql(path: &RelPath) -> bool {
    let top = path.components().next().unwrap_or_default();
    matches!(top, "base" | "global" | "PG_VERSION") || top.starts_with("pg_")
}

fn look(data_directory: &Path, path: &RelPath) -> Result<Seen> {
    let mut place = data_directory.to_owned();
    let is_in_tablespace = path.is_at_or_below("pg_tblspc");
    for (depth, component) in path.components().enumerate() {
        place.push(component);
        match fs::symlink_metadata(&place) {
            Ok(found) if !found.is_symlink() => {}
            Ok(_) => match fs::metadata(&place) {
                Ok(_) => {}
                Err(error) if leads_nowhere(&error) => return Ok(Seen::Lost(lost_link(&place))),
                Err(error) => return Err(unreadable(&place, Side::Primary, &error)),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(if is_in_tablespace && depth == 2 && component.starts_with("PG_") {
                    Seen::Lost(lost_tablespace(&place))
                } else if depth == 0 && is_of_postgresql(path) {
                    // these are made by initdb, and never dropped
                    Seen::Lost(lost(&place))
                } else {
                    Seen::Dropped
                });
            }
            Err(error) => return Err(unreadable(&place, Side::Primary, &error)),
        }
    }
    Ok(Seen::There)
}

fn leads_nowhere(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn lost_link(place: &Path) -> Error {
    let leads_to = fs::read_link(place).map_or_else(
        |_| "It leads to nothing that is there.".to_owned(),
        |leads_to| format!("It leads to {leads_to:?}, which does not exist."),
    );
    Error::new(
        Kind::MissingFile,
        format!("symbolic link \"{}\" on the primary leads nowhere", place.display()),
    )
    .detail(format!("{leads_to} The standby's copy of what it led to would be removed."))
    .hint(MOUNT)
}

fn lost_tablespace(place: &Path) -> Error {
    let link = place.parent().unwrap_or(place);
    let leads_to = fs::read_link(link).map_or_else(
        |_| format!("\"{}\" is a tablespace.", link.display()),
        |leads_to| format!("\"{}\" leads to {leads_to:?}.", link.display()),
    );
    Error::new(Kind::MissingFile, format!("tablespace directory \"{}\" is missing on the primary", place.display()))
        .detail(format!(
            "{leads_to} A tablespace has this directory from its creation until it is dropped. The standby's copy of it would be \
             removed."
        ))
        .hint(MOUNT)
}

fn lost(place: &Path) -> Error {
    Error::new(Kind::MissingFile, format!("\"{}\" is missing on the primary", place.display()))
        .detail("A data directory has it as long as it exists. The standby's copy of it would be removed.")
        .hint(MOUNT)
}

const MOUNT: &str = "Mount the file system that it lies on, and repeat the recovery. If the primary's files are lost, promote a standby that has them.";

/// The primary's directories, each as the scan found it.
#[derive(Debug, Clone)]
pub struct Directories {
    data_directory: PathBuf,
    seen: Vec<(RelPath, FileId)>,
}

impl Directories {
    /// Those of a plan.
    pub fn of(data_directory: &Path, plan: &Plan) -> Self {
        let paths = plan.directories.iter().map(|directory| directory.path.clone());
        Self {
            data_directory: data_directory.to_owned(),
            seen: paths.zip(plan.identities.iter().copied()).collect(),
        }
    }

    /// Paths, devices and inodes.
    pub fn iter(&self) -> impl Iterator<Item = (&RelPath, FileId)> {
        self.seen.iter().map(|(path, identity)| (path, *identity))
    }

    /// Fails if one of PostgreSQL's own is on another file system by now, or is lost: what was read there, or not found there,
    /// is not the primary's. Only the device is compared: an overlay may give a directory another inode.
    pub fn demand_mounted(&self) -> Result<()> {
        for (path, identity) in self.seen.iter().filter(|(path, _)| is_of_postgresql(path)) {
            let place = self.data_directory.join(path);
            match fs::metadata(&place) {
                Ok(found) if FileId::from(&found).device == identity.device => {}
                Ok(_) => return Err(replaced(&place)),
                Err(error) if leads_nowhere(&error) => {
                    if !is_dropped(&self.data_directory, path)? {
                        return Err(replaced(&place));
                    }
                }
                Err(error) => return Err(unreadable(&place, Side::Primary, &error)),
            }
        }
        Ok(())
    }
}

pub(crate) fn replaced(place: &Path) -> Error {
    Error::new(
        Kind::InUse,
        format!("directory \"{}\" on the primary was replaced during the recovery", place.display()),
    )
    .detail("It is another directory than when the primary's files were listed: a file system was mounted there, or unmounted.")
    .hint("Mount what the primary needs, and run the recovery again.")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn dropped(top: &Path, path: &str) -> Result<bool> {
        is_dropped(top, &RelPath::parse(path).expect("valid"))
    }

    #[test]
    fn only_what_nothing_names_any_more_was_dropped() {
        let top = tempfile::tempdir().expect("temporary directory");
        let at = |name: &str| top.path().join(name);
        for directory in ["base/5", "pg_tblspc", "space/PG_15_1/5", "empty"] {
            fs::create_dir_all(at(directory)).expect("make");
        }
        symlink(at("space"), at("pg_tblspc/16")).expect("link");
        symlink(at("empty"), at("pg_tblspc/17")).expect("link");
        symlink(at("gone"), at("pg_tblspc/18")).expect("link");
        symlink(at("gone"), at("base/6")).expect("link");
        for path in ["base/7", "base/7/1", "base/5/1", "pg_tblspc/19/PG_15_1/5/1", "pg_tblspc/16/PG_15_1/6/1"]
        {
            assert_eq!(dropped(top.path(), path), Ok(true), "{path}");
        }
        for path in ["base/5", "pg_tblspc/16/PG_15_1/5"] {
            assert_eq!(dropped(top.path(), path), Ok(false), "{path}");
        }
        let lost = &|path: &str| {
            let error = dropped(top.path(), path).expect_err(path);
            assert_eq!(error.kind, Kind::MissingFile, "{path}: {error}");
            assert!(error.detail.is_some() && error.hint.is_some(), "{path}: {error}");
        };
        // each waits for a DROP TABLESPACE
        std::thread::scope(|scope| {
            let within = ["pg_tblspc/17/PG_15_1", "pg_tblspc/17/PG_15_1/5/1", "pg_tblspc/18/PG_15_1"];
            for path in ["base/6", "base/6/1", "global"].into_iter().chain(within) {
                scope.spawn(move || lost(path));
            }
        });
    }

    #[test]
    fn a_tablespace_is_dropped_before_its_link() {
        let top = tempfile::tempdir().expect("temporary directory");
        let link = top.path().join("pg_tblspc/16");
        fs::create_dir_all(top.path().join("pg_tblspc")).expect("make");
        symlink(top.path(), &link).expect("link");
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(PATIENCE / 5);
                fs::remove_file(&link).expect("remove");
            });
            assert_eq!(dropped(top.path(), "pg_tblspc/16/PG_15_1"), Ok(true));
        });
    }
}
