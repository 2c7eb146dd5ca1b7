//! Directories that a target starts from: made where they are missing, opened, or only looked at.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use crate::error::{Error, Kind, Result};

/// Another recovery works on the directory.
pub(crate) fn busy(path: &Path) -> Error {
    Error::new(Kind::Locked, format!("another recovery of \"{}\" is running", path.display()))
        .hint("Wait until it ends; pg_stat_progress_basebackup on its primary shows it.")
}

/// Makes `path` and what is missing above it, for the PostgreSQL OS user only; returns what was made.
pub(super) fn make_directories(path: &Path) -> Result<Vec<PathBuf>> {
    let mut missing: Vec<&Path> = path.ancestors().take_while(|ancestor| !ancestor.exists()).collect();
    missing.reverse();
    let mut made = Vec::new();
    for directory in missing {
        match fs::DirBuilder::new().mode(0o700).create(directory) {
            Ok(()) => made.push(directory.to_owned()),
            // another process makes the same path
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => {
                remove_made(&made);
                return Err(Error::at("make directory", directory, &error)
                    .hint("Make the parent directory, owned by the PostgreSQL OS user."));
            }
        }
    }
    Ok(made)
}

pub(super) fn remove_made(made: &[PathBuf]) {
    for directory in made.iter().rev() {
        // not empty any more: it is in use
        let _ = fs::remove_dir(directory);
    }
}

pub(super) fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// Opens a directory, or what is above it if it is missing; true if it is.
pub(super) fn open_nearest(path: &Path) -> io::Result<(OwnedFd, bool)> {
    for ancestor in path.ancestors() {
        match open_directory(ancestor) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            opened => return Ok((opened?, ancestor != path)),
        }
    }
    Err(io::ErrorKind::NotFound.into())
}
