//! The directories that a target lies in besides the data directory: tablespaces, and a pg_wal that is a link.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::directories::{busy, make_directories, open_directory};
use super::{DataDirectory, Root};
use crate::error::{Error, Kind, Result};
use crate::manifest::path::RelPath;
use crate::sys::FileId;
use crate::sys::directory_lock::lock_directory;
use crate::sys::lock::lock;

/// Where a pg_wal that is a link leads.
pub(crate) struct LinkedWal {
    /// The directory, open.
    pub fd: OwnedFd,
    /// Its path.
    pub path: PathBuf,
    /// What directory that is.
    pub identity: FileId,
}

/// Where the pg_wal of an opened target leads.
pub(crate) struct OpenedWal {
    /// Its path.
    pub path: PathBuf,
    /// What directory that is.
    pub identity: FileId,
    /// A path to what was opened, even if another directory is in its place by now.
    pub look: PathBuf,
}

/// A directory that a target lies in besides the data directory.
pub(crate) struct Other {
    /// Its path.
    pub path: PathBuf,
    /// What directory that is.
    pub identity: FileId,
    /// Whether it is a tablespace's; else it is that of pg_wal.
    pub is_tablespace: bool,
}

/// Follows `pg_wal` of an opened data directory, which is shown as `shown`; `None` if it is no link. A link that leads
/// nowhere is an error: what it should lead to may just not be mounted.
pub(crate) fn linked_wal(directory: impl AsFd, shown: &Path) -> Result<Option<LinkedWal>> {
    let link = shown.join("pg_wal");
    let failed = |verb: &str, error: Errno| Error::at(verb, &link, &error.into());
    let leads_to = match rustix::fs::readlinkat(&directory, "pg_wal", Vec::new()) {
        Ok(leads_to) => leads_to,
        // no link, or nothing at all
        Err(Errno::INVAL | Errno::NOENT) => return Ok(None),
        Err(error) => return Err(failed("read link", error)),
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = match rustix::fs::openat(&directory, "pg_wal", flags, Mode::empty()) {
        Ok(fd) => fd,
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {
            return Err(Error::new(
                Kind::TargetRefused,
                format!("\"{}\" is a link that leads to no directory", link.display()),
            )
            .detail(format!("It leads to \"{}\".", leads_to.to_string_lossy()))
            .hint(
                "Mount the volume that it leads to, or remove the link: WAL then lies in the data directory.",
            ));
        }
        Err(error) => return Err(failed("open directory", error)),
    };
    let found = rustix::fs::fstat(&fd).map_err(|error| failed("stat", error))?;
    let path = opened(&fd)?;
    Ok(Some(LinkedWal { fd, path, identity: FileId::from(&found) }))
}

/// The path of a directory that is open.
pub(super) fn opened(fd: impl AsFd) -> Result<PathBuf> {
    fs::read_link(through(fd)).map_err(Error::on("find the path of an open directory"))
}

/// A path that leads to what is open, whatever its own path leads to by now.
pub(super) fn through(fd: impl AsFd) -> PathBuf {
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd()).into()
}

/// The refusal of what is mounted where something would have to be removed.
pub(crate) fn mounted(shown: &str) -> Error {
    Error::new(Kind::TargetRefused, format!("a file system is mounted at \"{shown}\""))
        .detail("A recovery would have to remove or rename what is there, and removes nothing across a mount point.")
        .hint("Unmount it, or mount it outside the target's directories.")
}

impl DataDirectory {
    /// Lets paths at or below `prefix` start in another directory, a tablespace, and locks that.
    pub(crate) fn add_root(&mut self, prefix: &RelPath, directory: &Path) -> Result<()> {
        if self.is_view {
            self.roots.push(Root::open_read_only(prefix.as_str(), directory)?);
            return Ok(());
        }
        let made = make_directories(directory)?;
        lock(&self.made).extend(made);
        let fd = open_directory(directory).map_err(Error::on_path("open directory", &directory))?;
        self.push_root(prefix, directory, fd)
    }

    /// Lets paths in pg_wal start where it leads, and locks that; returns the directory.
    pub(crate) fn follow_wal(&mut self) -> Result<Option<PathBuf>> {
        if self.roots[0].is_missing {
            return Ok(None);
        }
        let Some(wal) = linked_wal(&self.roots[0].fd, &self.path)? else {
            return Ok(None);
        };
        self.push_root(&RelPath::parse("pg_wal")?, &wal.path, wal.fd)?;
        Ok(Some(wal.path))
    }

    fn push_root(&mut self, prefix: &RelPath, directory: &Path, fd: OwnedFd) -> Result<()> {
        if !self.is_view {
            match lock_directory(&fd) {
                Ok(true) => {}
                Ok(false) => return Err(busy(directory)),
                Err(error) => {
                    return Err(Error::at("lock directory", directory, &error.into()));
                }
            }
        }
        let root = Root::new(prefix.as_str(), fd).map_err(Error::on_path("stat directory", &directory))?;
        self.roots.push(root);
        Ok(())
    }

    /// A path to the data directory that was opened, even if another one is in its place by now; `None` for a view of
    /// one that is missing.
    pub(crate) fn look(&self) -> Option<PathBuf> {
        (!self.roots[0].is_missing).then(|| through(&self.roots[0].fd))
    }

    /// A pg_wal that is a link.
    pub(crate) fn wal(&self) -> Result<Option<OpenedWal>> {
        let Some(root) = self.roots.iter().find(|root| root.prefix == "pg_wal") else {
            return Ok(None);
        };
        let found = rustix::fs::fstat(&root.fd)
            .map_err(Error::on_path("stat directory", self.path.join("pg_wal")))?;
        Ok(Some(OpenedWal {
            path: opened(&root.fd)?,
            identity: FileId::from(&found),
            look: through(&root.fd),
        }))
    }

    /// The directories besides the data directory that are there.
    pub(crate) fn others(&self) -> Result<Vec<Other>> {
        let there = self.roots.iter().skip(1).filter(|root| !root.is_missing);
        there
            .map(|root| {
                let found = rustix::fs::fstat(&root.fd)
                    .map_err(Error::on_path("stat directory", self.path.join(&root.prefix)))?;
                Ok(Other {
                    path: opened(&root.fd)?,
                    identity: FileId::from(&found),
                    is_tablespace: root.prefix != "pg_wal",
                })
            })
            .collect()
    }
}
