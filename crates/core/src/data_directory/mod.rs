//! The target directory: the only code that writes one.
//!
//! Every access goes component by component from a directory that was opened once, following no
//! symbolic link, so that nothing in the target's content and nothing a sender says can lead outside.
//! The two places PostgreSQL itself links elsewhere, tablespaces and `pg_wal`, are judged by the host's policy
//! (`host::policy`) and known here as further roots (S12).

use std::collections::BTreeSet;
use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::error::{Error, Kind, Result};
use crate::manifest::path::RelPath;
use crate::sys::FileId;
use crate::sys::directory_lock::lock_directory;
use crate::sys::lock::lock;

use directories::{make_directories, open_directory, open_nearest, remove_made};

pub(crate) use directories::busy;
pub(crate) use remove::{Entries, is_mount_point};
pub(crate) use roots::{linked_wal, mounted};
pub(crate) use stat::{Stamp, Stat};

mod directories;
mod probe;
pub(crate) mod remove;
mod roots;
mod stat;
mod walk;
pub(crate) mod write;

#[cfg(test)]
mod tests;

/// How a file is opened to be compared and written.
const IN_PLACE: OFlags = OFlags::RDWR.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);

/// Suffix of a file that is being written and takes its name by rename.
const TEMPORARY: &str = ".pgpool_recovery.tmp";

/// The name under which a file is written before it takes its own. A process that dies in between leaves it behind.
pub(crate) fn temporary_name(name: &str) -> String {
    format!("{name}{TEMPORARY}")
}

/// An opened target directory: locked to be written, or a view that nothing can be written through.
pub(crate) struct DataDirectory {
    path: PathBuf,
    roots: Vec<Root>,
    is_view: bool,
    /// Who we are.
    user: u32,
    /// Directories made for this run, removed again unless it begins.
    made: Mutex<Vec<PathBuf>>,
    /// Directories whose entries changed and are not synced yet.
    dirty: Mutex<BTreeSet<String>>,
    /// The directory of the last file, open: files come directory by directory.
    last: Mutex<Option<(String, Arc<OwnedFd>)>>,
    /// Whether a directory is a mount point: then there are file systems beyond those of the roots.
    has_mounts: AtomicBool,
    /// Whether anything that was there has been removed, or a link made to lead elsewhere.
    has_replaced: AtomicBool,
}

/// A directory that accesses start from.
struct Root {
    /// Relative paths at or below this start here; empty for the data directory.
    prefix: String,
    fd: OwnedFd,
    device: u64,
    /// In a view: the directory is missing, and what is open is the one above it.
    is_missing: bool,
}

impl Root {
    fn new(prefix: &str, fd: OwnedFd) -> Result<Self, Errno> {
        let device = rustix::fs::fstat(&fd)?.st_dev;
        Ok(Self { prefix: prefix.to_owned(), fd, device, is_missing: false })
    }

    fn open_read_only(prefix: &str, directory: &Path) -> Result<Self> {
        let opened = open_nearest(directory)
            .and_then(|(fd, is_missing)| Ok(Self { is_missing, ..Self::new(prefix, fd)? }));
        opened.map_err(Error::on_path("open directory", &directory))
    }
}

impl DataDirectory {
    /// Opens and locks `path`, making it if it is missing. A second opener gets [`Kind::Locked`].
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let made = make_directories(path)?;
        let undo = |error| {
            remove_made(&made);
            error
        };
        let fd = open_directory(path).map_err(|error| {
            undo(if error.kind() == io::ErrorKind::NotADirectory {
                Error::new(Kind::TargetRefused, format!("\"{}\" is not a directory", path.display()))
                    .hint("Give the data directory of the standby.")
            } else {
                Error::at("open directory", path, &error)
            })
        })?;
        match lock_directory(&fd) {
            Ok(true) => {}
            Ok(false) => return Err(busy(path)),
            Err(error) => {
                return Err(undo(Error::at("lock directory", path, &error.into())));
            }
        }
        let root =
            Root::new("", fd).map_err(|error| undo(Error::at("stat directory", path, &error.into())))?;
        Ok(Self::with(path, root, made, false))
    }

    /// Opens `path` to look at it: nothing is locked, made or written. It may be missing.
    pub(crate) fn open_read_only(path: &Path) -> Result<Self> {
        Ok(Self::with(path, Root::open_read_only("", path)?, Vec::new(), true))
    }

    fn with(path: &Path, root: Root, made: Vec<PathBuf>, is_view: bool) -> Self {
        Self {
            path: path.to_owned(),
            roots: vec![root],
            is_view,
            user: rustix::process::geteuid().as_raw(),
            made: Mutex::new(made),
            dirty: Mutex::default(),
            last: Mutex::default(),
            has_mounts: AtomicBool::new(false),
            has_replaced: AtomicBool::new(false),
        }
    }

    /// Where the directory is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the directory was missing and was made for this run.
    pub(crate) fn was_made(&self) -> bool {
        lock(&self.made).contains(&self.path)
    }

    /// The directory itself.
    pub(crate) fn root(&self) -> impl AsFd {
        self.roots[0].fd.as_fd()
    }

    /// Fails if the path leads elsewhere by now than to the directory that was opened.
    pub(crate) fn demand_in_place(&self) -> Result<()> {
        let opened =
            rustix::fs::fstat(&self.roots[0].fd).map_err(Error::on_path("stat directory", &self.path))?;
        let is_it =
            std::fs::metadata(&self.path).is_ok_and(|there| FileId::from(&there) == FileId::from(&opened));
        if is_it {
            return Ok(());
        }
        let message = format!("\"{}\" was renamed or replaced during the recovery", self.path.display());
        Err(Error::new(Kind::TargetRefused, message)
            .detail("The path leads elsewhere than when the recovery began.")
            .hint("Run the recovery again when the directory is in its place."))
    }

    /// Fails if a link within the directory (pg_wal, a tablespace's) leads elsewhere by now than to what was opened.
    pub(crate) fn demand_links_in_place(&self) -> Result<()> {
        for root in &self.roots[1..] {
            let path = self.path.join(&root.prefix);
            let opened = rustix::fs::fstat(&root.fd).map_err(Error::on_path("stat directory", &path))?;
            let there = std::fs::metadata(&path).map_err(Error::on_path("stat directory", &path))?;
            if FileId::from(&there) != FileId::from(&opened) {
                let message = format!("\"{}\" leads elsewhere than when the recovery began", path.display());
                return Err(Error::new(Kind::InUse, message)
                    .detail("Something else works in the target's directory: it replaced the link, or the directory that it leads to.")
                    .hint("Stop what works there, and run the recovery again."));
            }
        }
        Ok(())
    }

    /// From now on the directories made stay, even if the run fails.
    pub(crate) fn keep(&self) -> Result<()> {
        let made = std::mem::take(&mut *lock(&self.made));
        for directory in made.iter().filter_map(|directory| directory.parent()) {
            let synced = open_directory(directory).and_then(|fd| rustix::fs::fsync(&fd).map_err(Into::into));
            synced.map_err(Error::on_path("sync directory", &directory))?;
        }
        Ok(())
    }

    /// The directories accesses start from, with their prefixes.
    pub(crate) fn roots(&self) -> impl Iterator<Item = (&str, impl AsFd)> {
        self.roots.iter().map(|root| (root.prefix.as_str(), root.fd.as_fd()))
    }

    /// Device and inode of each of them that is there.
    pub(crate) fn identities(&self) -> Result<Vec<FileId>> {
        let there = self.roots.iter().filter(|root| !root.is_missing);
        let identity = |root: &Root| rustix::fs::fstat(&root.fd).map(|stat| FileId::from(&stat));
        there.map(identity).collect::<Result<_, _>>().map_err(Error::on_path("stat directory", &self.path))
    }

    /// A directory on each file system that the target lies on.
    pub(crate) fn file_systems(&self) -> Result<Vec<OwnedFd>> {
        let mut devices = BTreeSet::new();
        let mut found = Vec::new();
        for root in &self.roots {
            if devices.insert(root.device) {
                let open = rustix::io::fcntl_dupfd_cloexec(&root.fd, 3);
                found.push(open.map_err(Error::on_path("open directory", &self.path))?);
            }
        }
        Ok(found)
    }

    /// Whether files lie on other file systems than [`DataDirectory::file_systems`] tells, as the directories made so
    /// far show.
    pub(crate) fn has_mounts(&self) -> bool {
        self.has_mounts.load(Ordering::Relaxed)
    }

    /// Whether anything that was there is gone, or may be: an entry, or a link as it was.
    pub(crate) fn has_replaced(&self) -> bool {
        self.has_replaced.load(Ordering::Relaxed)
    }

    /// Opens an existing regular file for reading; `None` if there is none. A symbolic link or a
    /// directory in its place counts as none.
    pub(crate) fn open_file(&self, path: &RelPath) -> Result<Option<File>> {
        let opened = self.parent(path).and_then(|parent| {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let fd = rustix::fs::openat(&parent, path.file_name(), flags, Mode::empty())?;
            let regular = FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode) == FileType::RegularFile;
            Ok(regular.then(|| File::from(fd)))
        });
        match opened {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NXIO) => Ok(None),
            other => other.map_err(Error::on_path("open file", self.shown(path))),
        }
    }

    /// Opens an existing file to be compared and written in place; `None` if what is there is no regular file with one
    /// name that may be written. The other name may be the primary's.
    pub(crate) fn open_in_place(&self, path: &RelPath) -> Result<Option<(File, Stat)>> {
        let opened = self.parent(path).and_then(|parent| self.open_own(&parent, path.file_name()));
        match opened {
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            other => other.map_err(Error::on_path("open file", self.shown(path))),
        }
    }

    /// A regular file with one name that may be written, if that is what `name` is.
    fn open_own(&self, parent: &OwnedFd, name: &str) -> Result<Option<(File, Stat)>, Errno> {
        match rustix::fs::openat(parent, name, IN_PLACE, Mode::empty()) {
            Ok(fd) => {
                let found = rustix::fs::fstat(&fd)?;
                let stat = Stat::of(&found);
                Ok(self.is_written_in_place(&stat).then(|| (File::from(fd), stat)))
            }
            // missing; a link, a directory, a device; a file without write permission
            Err(Errno::NOENT | Errno::LOOP | Errno::ISDIR | Errno::NXIO | Errno::ACCESS) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether it is a regular file with one name that is ours. Anything else is replaced.
    pub(crate) fn is_written_in_place(&self, stat: &Stat) -> bool {
        // only the owner may set its mode
        stat.kind == FileType::RegularFile && stat.names == 1 && stat.user == self.user
    }

    /// Makes an empty file, in the place of whatever is there.
    pub(crate) fn create(&self, path: &RelPath, mode: u32) -> Result<File> {
        self.remove(path)?;
        let create = IN_PLACE | OFlags::CREATE | OFlags::EXCL;
        let created = self.change(path, |parent| {
            rustix::fs::openat(parent, path.file_name(), create, Mode::from_raw_mode(mode | 0o600))
        });
        let fd = created.map_err(Error::on_path("write file", self.shown(path)))?;
        self.touch_parent(path);
        Ok(File::from(fd))
    }

    /// The number of the root that a path starts from, in the order of [`DataDirectory::roots`].
    pub(crate) fn root_of(&self, path: &RelPath) -> usize {
        self.split(path.as_str()).0
    }

    /// The device that a path's root lies on.
    pub(crate) fn device_of(&self, path: &RelPath) -> u64 {
        self.roots[self.root_of(path)].device
    }

    /// Makes a directory, or sets the mode of an existing one; whatever else is in its place goes.
    pub(crate) fn make_directory(&self, path: &RelPath, mode: u32) -> Result<()> {
        if self.roots.iter().any(|root| root.prefix == path.as_str()) {
            return Ok(());
        }
        let failed = |error: Errno| Error::at("make directory", self.shown(path), &error.into());
        let parent = self.parent_to_change(path).map_err(failed)?;
        let name = path.file_name();
        let fd = match remove::enter(&parent, name) {
            Ok(fd) => fd,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {
                self.remove(path)?;
                self.forget_last();
                self.change(path, |parent| rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(mode)))
                    .map_err(failed)?;
                self.touch_parent(path);
                remove::enter(&parent, name).map_err(failed)?
            }
            Err(error) => return Err(failed(error)),
        };
        let device = rustix::fs::fstat(&fd).map_err(failed)?.st_dev;
        if self.roots.iter().all(|root| root.device != device) {
            self.has_mounts.store(true, Ordering::Relaxed);
        }
        // an earlier, interrupted run may have changed its entries without making them durable
        lock(&self.dirty).insert(path.as_str().to_owned());
        rustix::fs::fchmod(&fd, Mode::from_raw_mode(mode)).map_err(failed)
    }

    /// Makes `pg_tblspc/OID` point to a tablespace's directory, durably: at every instant there is the old link or the
    /// new one.
    pub(crate) fn link(&self, path: &RelPath, destination: &str) -> Result<()> {
        let failed = |error: Errno| Error::at("make link", self.shown(path), &error.into());
        // the link itself lies in the data directory, although paths through it start elsewhere
        let parent = RelPath::parse(path.parent().unwrap_or("pg_tblspc"))?;
        let parent = self.writable().and_then(|()| self.directory(&parent)).map_err(failed)?;
        let name = path.file_name();
        if let Ok(current) = rustix::fs::readlinkat(&parent, name, Vec::new())
            && current.to_bytes() == destination.as_bytes()
        {
            return Ok(());
        }
        if !matches!(rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW), Err(Errno::NOENT)) {
            self.has_replaced.store(true, Ordering::Relaxed);
        }
        let temporary = temporary_name(name);
        remove::entry(&parent, temporary.as_str()).map_err(failed)?;
        rustix::fs::symlinkat(destination, &parent, temporary.as_str()).map_err(failed)?;
        self.make_way(&parent, name).map_err(failed)?;
        rustix::fs::renameat(&parent, temporary.as_str(), &parent, name)
            .and_then(|()| rustix::fs::fsync(&parent))
            .map_err(failed)
    }

    /// Removes a directory whose name a file or link is going to take by rename, which cannot replace a directory.
    fn make_way(&self, parent: &OwnedFd, name: &str) -> Result<(), Errno> {
        match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                self.forget_last();
                remove::entry(parent, name).map(drop)
            }
            _ => Ok(()),
        }
    }

    /// Replaces a small file as a whole and makes it durable: readers see the old or the new one.
    pub(crate) fn install(&self, path: &RelPath, content: &[u8], mode: u32) -> Result<()> {
        let failed = |error: io::Error| Error::at("write file", self.shown(path), &error);
        let failed_to = |error: Errno| failed(error.into());
        let temporary = temporary_name(path.file_name());
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = self.change(path, |parent| {
            remove::entry(parent, temporary.as_str())?;
            rustix::fs::openat(parent, temporary.as_str(), flags, Mode::from_raw_mode(mode))
        });
        let mut file = File::from(fd.map_err(failed_to)?);
        let parent = self.parent(path).map_err(failed_to)?;
        let installed = file.write_all(content).and_then(|()| file.sync_all()).and_then(|()| {
            self.make_way(&parent, path.file_name())?;
            rustix::fs::renameat(&parent, temporary.as_str(), &parent, path.file_name())?;
            Ok(rustix::fs::fsync(&parent)?)
        });
        if installed.is_err() {
            // gone already, if it was renamed
            let _ = remove::entry(&parent, temporary.as_str());
        }
        installed.map_err(failed)
    }

    /// Renames a file within its directory and makes that durable; false if there is no such file.
    pub(crate) fn rename(&self, from: &RelPath, to: &RelPath) -> Result<bool> {
        let renamed = self
            .change(from, |parent| rustix::fs::renameat(parent, from.file_name(), parent, to.file_name()));
        match renamed.and_then(|()| rustix::fs::fsync(self.parent(from)?)) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(Error::at("rename", self.shown(from), &error.into())),
        }
    }

    /// Removes whatever has this name, a directory with all it holds; links are removed, not followed.
    /// True if there was something.
    pub(crate) fn remove(&self, path: &RelPath) -> Result<bool> {
        self.forget_below(path);
        let removed = self.change(path, |parent| remove::entry(parent, path.file_name()));
        if !matches!(removed, Ok(false) | Err(Errno::NOENT | Errno::NOTDIR)) {
            // or some of what it holds, if that failed
            self.has_replaced.store(true, Ordering::Relaxed);
        }
        match removed {
            Ok(true) => {
                self.touch_parent(path);
                Ok(true)
            }
            Ok(false) | Err(Errno::NOENT | Errno::NOTDIR) => Ok(false),
            Err(Errno::XDEV) => Err(mounted(&self.shown(path))),
            Err(error) => Err(Error::at("remove", self.shown(path), &error.into())),
        }
    }

    /// Reads a small file; `None` if there is none. Longer than `limit` is an error.
    pub(crate) fn read(&self, path: &RelPath, limit: u64) -> Result<Option<Vec<u8>>> {
        let Some(file) = self.open_file(path)? else {
            return Ok(None);
        };
        let mut content = Vec::new();
        file.take(limit + 1)
            .read_to_end(&mut content)
            .map_err(Error::on_path("read file", self.shown(path)))?;
        if content.len() as u64 > limit {
            return Err(Error::new(
                Kind::Corrupt,
                format!("file \"{}\" is larger than {limit} bytes", self.shown(path)),
            ));
        }
        Ok(Some(content))
    }

    /// Type, size and mode of whatever has this name.
    pub(crate) fn stat(&self, path: &RelPath) -> Result<Option<Stat>> {
        let stat = self
            .parent(path)
            .and_then(|parent| rustix::fs::statat(&parent, path.file_name(), AtFlags::SYMLINK_NOFOLLOW));
        match stat {
            Ok(stat) => Ok(Some(Stat::of(&stat))),
            // what lies in a directory that cannot be entered is as good as missing
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::ACCESS) => Ok(None),
            Err(error) => Err(Error::at("stat file", self.shown(path), &error.into())),
        }
    }

    /// Removes an entry whose name is no [`RelPath`].
    pub(crate) fn remove_unnamed(&self, directory: Option<&RelPath>, name: &CStr) -> Result<()> {
        let parent = directory.map_or("", RelPath::as_str);
        let removed = self.writable().and_then(|()| {
            let parent = self.walk(parent)?;
            match remove::entry(&parent, name) {
                Err(Errno::ACCESS) => {
                    rustix::fs::fchmod(&parent, Mode::RWXU).map_err(|_| Errno::ACCESS)?;
                    remove::entry(&parent, name)
                }
                removed => removed,
            }
        });
        lock(&self.dirty).insert(parent.to_owned());
        removed
            .map(drop)
            .map_err(Error::on(format_args!("remove {name:?} in \"{}/{parent}\"", self.path.display())))
    }

    /// The entries of a directory (`None`: of the data directory) but for the files whose names are known: of millions
    /// nearly all are.
    pub(crate) fn entries_but(
        &self,
        directory: Option<&RelPath>,
        is_known: &dyn Fn(&str) -> bool,
    ) -> Result<Entries> {
        let listed = match directory {
            Some(path) => match self.directory(path).and_then(|fd| remove::entries_but(&fd, is_known)) {
                Err(Errno::NOENT | Errno::ACCESS) if self.is_view => Ok(Entries::default()),
                listed => listed,
            },
            None if self.roots[0].is_missing => Ok(Entries::default()),
            None => remove::entries_but(&self.roots[0].fd, is_known),
        };
        let shown = directory.map_or_else(|| self.path.display().to_string(), |path| self.shown(path));
        listed.map_err(Error::on_path("list directory", shown))
    }

    /// Makes a file durable.
    pub(crate) fn sync_file(&self, path: &RelPath) -> Result<()> {
        match self.open_file(path)? {
            Some(file) => file.sync_all().map_err(Error::on_path("sync file", self.shown(path))),
            None => Ok(()),
        }
    }

    /// Makes the entries of a directory durable.
    pub(crate) fn sync_directory(&self, path: &RelPath) -> Result<()> {
        let synced = self.directory(path).and_then(rustix::fs::fsync);
        synced.map_err(Error::on_path("sync directory", self.shown(path)))
    }

    /// Makes the entries of every changed directory durable.
    pub(crate) fn sync_directories(&self) -> Result<()> {
        let dirty = std::mem::take(&mut *lock(&self.dirty));
        for directory in dirty {
            let synced = match RelPath::parse(&directory) {
                Ok(path) => match self.directory(&path) {
                    Err(Errno::NOENT | Errno::NOTDIR) => continue,
                    fd => fd.and_then(rustix::fs::fsync),
                },
                Err(_) => rustix::fs::fsync(&self.roots[0].fd),
            };
            synced
                .map_err(Error::on(format_args!("sync directory \"{}/{directory}\"", self.path.display())))?;
        }
        for root in &self.roots {
            rustix::fs::fsync(&root.fd).map_err(Error::on_path("sync directory", &self.path))?;
        }
        Ok(())
    }

    fn touch_parent(&self, path: &RelPath) {
        lock(&self.dirty).insert(path.parent().unwrap_or_default().to_owned());
    }

    fn shown(&self, path: &RelPath) -> String {
        format!("{}/{path}", self.path.display())
    }
}

impl Drop for DataDirectory {
    fn drop(&mut self) {
        remove_made(&lock(&self.made));
        if !self.is_view {
            // Closing is not enough: a program that another thread is just starting has our files until it runs.
            for root in &self.roots {
                let _ = rustix::fs::flock(&root.fd, FlockOperation::Unlock);
            }
        }
    }
}
