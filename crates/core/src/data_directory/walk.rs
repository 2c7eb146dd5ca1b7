//! The ways into a target: opened component by component, following no link.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::Mode;
use rustix::io::Errno;

use super::{DataDirectory, Root, remove};
use crate::manifest::path::RelPath;
use crate::sys::lock::lock;

impl DataDirectory {
    /// Nothing is written through a view.
    pub(super) fn writable(&self) -> Result<(), Errno> {
        if self.is_view { Err(Errno::ROFS) } else { Ok(()) }
    }

    /// The directory that holds what is to be changed; one that is closed is opened.
    pub(super) fn parent_to_change(&self, path: &RelPath) -> Result<Arc<OwnedFd>, Errno> {
        self.writable()?;
        match self.parent(path) {
            Err(Errno::ACCESS) => self
                .walk_by(path.parent().unwrap_or_default(), |from, name| remove::enter(from, name))
                .map(Arc::new),
            opened => opened,
        }
    }

    /// Changes an entry of the directory that holds `path`. A directory of ours that may not be written is made
    /// writable: no server could use it either.
    pub(super) fn change<T>(
        &self,
        path: &RelPath,
        change: impl Fn(&OwnedFd) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let parent = self.parent_to_change(path)?;
        match change(&parent) {
            Err(Errno::ACCESS) => {
                rustix::fs::fchmod(&parent, Mode::RWXU).map_err(|_| Errno::ACCESS)?;
                change(&parent)
            }
            changed => changed,
        }
    }

    pub(super) fn parent(&self, path: &RelPath) -> Result<Arc<OwnedFd>, Errno> {
        let parent = path.parent().unwrap_or_default();
        if let Some((last, fd)) = &*lock(&self.last)
            && last == parent
        {
            return Ok(Arc::clone(fd));
        }
        let fd = Arc::new(self.walk(parent)?);
        *lock(&self.last) = Some((parent.to_owned(), Arc::clone(&fd)));
        Ok(fd)
    }

    /// To be called where a directory may go or give way to another one of its name.
    pub(crate) fn forget_last(&self) {
        *lock(&self.last) = None;
    }

    /// The same, where what goes is at this path.
    pub(super) fn forget_below(&self, path: &RelPath) {
        let mut last = lock(&self.last);
        let is_below = |last: &str| {
            last.strip_prefix(path.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        if last.as_ref().is_some_and(|(last, _)| is_below(last)) {
            *last = None;
        }
    }

    pub(super) fn directory(&self, path: &RelPath) -> Result<OwnedFd, Errno> {
        self.walk(path.as_str())
    }

    pub(super) fn walk(&self, path: &str) -> Result<OwnedFd, Errno> {
        self.walk_by(path, |from, name| remove::open_directory(from, name))
    }

    /// Opens a directory, component by component, from the root it belongs to.
    fn walk_by(
        &self,
        path: &str,
        open: fn(&OwnedFd, &str) -> Result<OwnedFd, Errno>,
    ) -> Result<OwnedFd, Errno> {
        let (number, rest) = self.split(path);
        let root = &self.roots[number];
        if root.is_missing {
            return Err(Errno::NOENT);
        }
        let mut current: Option<OwnedFd> = None;
        for part in rest.split('/').filter(|part| !part.is_empty()) {
            let from = current.as_ref().unwrap_or(&root.fd);
            current = Some(open(from, part)?);
        }
        current.map_or_else(|| rustix::io::fcntl_dupfd_cloexec(&root.fd, 3), Ok)
    }

    /// The root that a path starts from, and what follows that root's prefix.
    pub(super) fn split<'a>(&self, path: &'a str) -> (usize, &'a str) {
        let rest = |(number, root): (usize, &Root)| {
            let rest = path.strip_prefix(root.prefix.as_str())?;
            (rest.is_empty() || rest.starts_with('/')).then_some((number, rest))
        };
        self.roots.iter().enumerate().skip(1).find_map(rest).unwrap_or((0, path))
    }
}
