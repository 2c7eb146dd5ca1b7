//! What would stand in the way of a change, looked at without changing anything.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Access, AtFlags, FileType, StatVfsMountFlags, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use rustix::path::Arg;

use super::{DataDirectory, Entries, Root, mounted, remove};
use crate::error::{Error, Kind, Result};
use crate::manifest::path::RelPath;
use crate::sys::FileId;

/// Where something cannot be removed, entered or written, and why.
#[derive(Debug)]
pub(crate) struct Obstacle {
    path: String,
    why: Why,
}

#[derive(Debug, Clone, Copy)]
enum Why {
    /// Another file system, or a part of this one, is mounted there.
    Mounted,
    /// It is a file on which another one is mounted.
    MountedFile,
    /// Its file system is mounted read-only.
    ReadOnly,
    /// It belongs to this user.
    Foreign(u32),
    /// Its attributes forbid any change.
    Fixed,
}

impl Obstacle {
    fn new(path: impl Into<String>, why: Why) -> Self {
        Self { path: path.into(), why }
    }

    /// The refusal of the target.
    pub(crate) fn refusal(&self) -> Error {
        let path = &self.path;
        let user = rustix::process::geteuid().as_raw();
        match self.why {
            Why::Mounted => mounted(path),
            Why::MountedFile => {
                Error::new(Kind::TargetRefused, format!("\"{path}\" is a mount point and cannot be replaced"))
                    .detail(
                        "Where a file is mounted it can only be written in place, which takes a regular file of this \
                         process's user with one name, mounted read-write.",
                    )
                    .hint("Unmount it, or list it in pgpool_recovery.keep_files if the standby is to keep it.")
            }
            Why::ReadOnly => {
                Error::new(Kind::TargetRefused, format!("the file system of \"{path}\" is mounted read-only"))
                    .detail("A recovery would have to change what lies there.")
                    .hint(
                        "Mount it read-write (the kernel's log says why, if it was an error of the disk), or list what the \
                         standby is to keep of it in pgpool_recovery.keep_files.",
                    )
            }
            Why::Foreign(owner) => {
                Error::new(Kind::TargetRefused, format!("\"{path}\" belongs to another user and is in the way"))
                    .detail(format!(
                        "A recovery would have to change or remove it. Its owner has user id {owner}, this process {user}."
                    ))
                    .hint("Give it and what it holds to the PostgreSQL OS user (chown -R), or remove it.")
            }
            Why::Fixed => Error::new(Kind::TargetRefused, format!("\"{path}\" may not be changed or removed"))
                .detail("It is immutable or append-only.")
                .hint("Take these attributes away (chattr -R -i -a)."),
        }
    }
}

/// An entry as it is.
struct Probe {
    kind: FileType,
    user: u32,
    mode: u32,
    identity: FileId,
    names: u64,
    /// Bytes that go with its last name.
    frees: u64,
    is_mount: bool,
    is_fixed: bool,
}

fn probe(parent: impl AsFd, name: impl Arg + Copy) -> Result<Option<Probe>, Errno> {
    let parent = parent.as_fd();
    let stat = match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(error),
    };
    let is_fixed = match rustix::fs::statx(parent, name, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BASIC_STATS) {
        Ok(found) => found.stx_attributes.intersects(StatxAttributes::IMMUTABLE | StatxAttributes::APPEND),
        Err(Errno::NOENT) => return Ok(None),
        // an old kernel, or a container that forbids the call: seen when it comes to that
        Err(_) => false,
    };
    let blocks = u64::try_from(stat.st_blocks).unwrap_or(0);
    Ok(Some(Probe {
        kind: FileType::from_raw_mode(stat.st_mode),
        user: stat.st_uid,
        mode: stat.st_mode,
        identity: FileId::from(&stat),
        names: stat.st_nlink,
        frees: if stat.st_nlink == 1 { blocks.saturating_mul(512) } else { 0 },
        is_mount: remove::is_mount(parent, name)?,
        is_fixed,
    }))
}

/// Whether nothing can be changed where an open directory lies.
fn is_read_only(directory: impl AsFd) -> Result<bool, Errno> {
    Ok(rustix::fs::fstatvfs(directory)?.f_flag.contains(StatVfsMountFlags::RDONLY))
}

impl DataDirectory {
    /// A directory that paths start from, on a file system where nothing can be changed.
    pub(crate) fn read_only_root(&self) -> Result<Option<Obstacle>> {
        for root in &self.roots {
            if is_read_only(&root.fd).map_err(Error::on_path("stat file system of", &self.path))? {
                let path = super::roots::opened(&root.fd)?;
                return Ok(Some(Obstacle::new(path.display().to_string(), Why::ReadOnly)));
            }
        }
        Ok(None)
    }

    /// Whether something is mounted there.
    pub(crate) fn is_mount(&self, path: &RelPath) -> Result<bool> {
        let found = self.parent(path).and_then(|parent| remove::is_mount(&parent, path.file_name()));
        found.map_err(Error::on_path("stat file", self.shown(path)))
    }

    /// Opens a directory to ask about its file system.
    pub(crate) fn enter(&self, path: &RelPath) -> Result<OwnedFd> {
        self.walk(path.as_str()).map_err(Error::on_path("open directory", self.shown(path)))
    }

    /// What keeps a directory from being entered and changed, and its device.
    pub(crate) fn entrance(&self, path: &RelPath) -> Result<(Option<Obstacle>, Option<FileId>)> {
        let failed = |error: Errno| Error::at("stat file", self.shown(path), &error.into());
        if let Some(root) = self.roots.iter().find(|root| root.prefix == path.as_str()) {
            let identity = rustix::fs::fstat(&root.fd).map_err(failed)?;
            return Ok((self.root_obstacle(root)?, Some(FileId::from(&identity))));
        }
        let parent = self.parent(path).map_err(failed)?;
        let Some(found) = probe(&parent, path.file_name()).map_err(failed)? else {
            return Ok((None, None));
        };
        let is_closed = || match remove::open_directory(&parent, path.file_name()).and_then(is_read_only) {
            // it belongs to another user, or is opened by the run; or it has gone meanwhile
            Err(Errno::ACCESS | Errno::NOENT | Errno::NOTDIR) => Ok(false),
            asked => asked.map_err(failed),
        };
        let why = if found.is_fixed {
            Some(Why::Fixed)
        } else if found.is_mount && is_closed()? {
            Some(Why::ReadOnly)
        } else if found.user != self.user && self.user != 0 {
            Some(Why::Foreign(found.user))
        } else {
            None
        };
        Ok((why.map(|why| Obstacle::new(self.shown(path), why)), Some(found.identity)))
    }

    /// What keeps anything from being made in a directory that paths start from.
    fn root_obstacle(&self, root: &Root) -> Result<Option<Obstacle>> {
        let path = super::roots::opened(&root.fd)?;
        let found = rustix::fs::fstat(&root.fd).map_err(Error::on_path("stat directory", &path))?;
        // one of another user's that may be written serves, too
        let is_open = self.may_change(&root.fd, found.st_uid, found.st_mode);
        Ok((!is_open).then(|| Obstacle::new(path.display().to_string(), Why::Foreign(found.st_uid))))
    }

    /// What keeps a tablespace's directory, `pg_tblspc/OID/PG_...`, from being made or entered, and its device and inode.
    pub(crate) fn tablespace_obstacle(&self, path: &RelPath) -> Result<(Option<Obstacle>, Option<FileId>)> {
        let root = &self.roots[self.root_of(path)];
        let found = if root.is_missing { None } else { probe(&root.fd, path.file_name()).ok().flatten() };
        // what is there already need not be made
        if found.is_some_and(|found| found.kind == FileType::Directory) {
            return self.entrance(path);
        }
        Ok((self.root_obstacle(root)?, None))
    }

    /// What keeps a file from being written in place or replaced: attributes that hold even for its owner, or a mount.
    pub(crate) fn file_obstacle(&self, path: &RelPath) -> Result<Option<Obstacle>> {
        let name = path.file_name();
        let why = self.parent(path).and_then(|parent| {
            Ok(match probe(&parent, name)? {
                Some(found) if found.is_fixed => Some(Why::Fixed),
                Some(found) if found.is_mount && !self.is_opened_in_place(&parent, name, &found) => {
                    Some(Why::MountedFile)
                }
                _ => None,
            })
        });
        let why = why.map_err(Error::on_path("stat file", self.shown(path)))?;
        Ok(why.map(|why| Obstacle::new(self.shown(path), why)))
    }

    /// What keeps a file from being renamed.
    pub(crate) fn rename_obstacle(&self, path: &RelPath) -> Result<Option<Obstacle>> {
        let found = match self.parent(path).and_then(|parent| probe(&parent, path.file_name())) {
            // what lies in a directory that cannot be entered is seen when the run opens that
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::ACCESS) => None,
            found => found.map_err(Error::on_path("stat file", self.shown(path)))?,
        };
        let is_mount = found.is_some_and(|found| found.is_mount);
        Ok(is_mount.then(|| Obstacle::new(self.shown(path), Why::Mounted)))
    }

    /// Whether [`DataDirectory::open_in_place`] opens it.
    fn is_opened_in_place(&self, parent: &OwnedFd, name: &str, found: &Probe) -> bool {
        found.kind == FileType::RegularFile
            && found.names == 1
            && found.user == self.user
            && rustix::fs::accessat(parent, name, Access::READ_OK | Access::WRITE_OK, AtFlags::empty())
                .is_ok()
    }

    /// What keeps an entry from being removed with all that it holds. Adds up what that would free, by device.
    pub(crate) fn removal_obstacle(
        &self,
        directory: Option<&RelPath>,
        name: impl Arg + Copy,
        freed: &mut HashMap<u64, u64>,
    ) -> Result<Option<Obstacle>> {
        let above =
            directory.map_or_else(|| self.path.display().to_string(), |directory| self.shown(directory));
        let found = self.walk(directory.map_or("", RelPath::as_str)).and_then(|parent| {
            let found = rustix::fs::fstat(&parent)?;
            if !self.may_change(&parent, found.st_uid, found.st_mode) {
                return Ok(Some(Obstacle::new(above.as_str(), Why::Foreign(found.st_uid))));
            }
            if is_read_only(&parent)? {
                return Ok(Some(Obstacle::new(above.as_str(), Why::ReadOnly)));
            }
            self.removal(&parent, name, &above, freed)
        });
        found.map_err(Error::on_path("read directory", above))
    }

    fn removal(
        &self,
        parent: &OwnedFd,
        name: impl Arg + Copy,
        above: &str,
        freed: &mut HashMap<u64, u64>,
    ) -> Result<Option<Obstacle>, Errno> {
        let path = format!("{above}/{}", name.to_string_lossy());
        let Some(found) = probe(parent, name)? else { return Ok(None) };
        if found.is_mount {
            let is_directory = found.kind == FileType::Directory;
            return Ok(Some(Obstacle::new(path, if is_directory { Why::Mounted } else { Why::MountedFile })));
        }
        if found.is_fixed {
            return Ok(Some(Obstacle::new(path, Why::Fixed)));
        }
        if found.kind != FileType::Directory {
            let freed = freed.entry(found.identity.device).or_default();
            *freed = freed.saturating_add(found.frees);
            return Ok(None);
        }
        let foreign = || Some(Obstacle::new(path.clone(), Why::Foreign(found.user)));
        let entries = match remove::open_directory(parent, name) {
            Ok(directory) => remove::entries(&directory).map(|entries| (directory, entries)),
            Err(error) => Err(error),
        };
        let (directory, Entries { named, unnamed }) = match entries {
            Ok(entries) => entries,
            // it is opened when the time comes; what is in it cannot be known before
            Err(Errno::ACCESS) if found.user == self.user => return Ok(None),
            Err(Errno::ACCESS) => return Ok(foreign()),
            Err(error) => return Err(error),
        };
        let is_empty = named.is_empty() && unnamed.is_empty();
        if !is_empty && !self.may_change(&directory, found.user, found.mode) {
            return Ok(foreign());
        }
        for (child, _) in named.iter() {
            if let Some(obstacle) = self.removal(&directory, child, &path, freed)? {
                return Ok(Some(obstacle));
            }
        }
        for child in unnamed {
            if let Some(obstacle) = self.removal(&directory, child.as_c_str(), &path, freed)? {
                return Ok(Some(obstacle));
            }
        }
        Ok(None)
    }

    /// Whether entries of a directory may be made and removed by us: in one of our own, whatever its mode, because that
    /// can be set.
    fn may_change(&self, directory: impl AsFd, owner: u32, mode: u32) -> bool {
        /// Only the owner of an entry may remove it.
        const STICKY: u32 = 0o1000;
        let wanted = Access::WRITE_OK | Access::EXEC_OK;
        owner == self.user
            || self.user == 0
            || (mode & STICKY == 0 && rustix::fs::accessat(directory, ".", wanted, AtFlags::empty()).is_ok())
    }

    /// The same as [`Self::entries_but`], unless the directory may not be listed as it is.
    pub(crate) fn listing_but(
        &self,
        directory: Option<&RelPath>,
        is_known: &dyn Fn(&str) -> bool,
    ) -> Result<Option<Entries>> {
        if self.roots[0].is_missing {
            return Ok(None);
        }
        let opened = self.walk(directory.map_or("", RelPath::as_str));
        let listed = opened.and_then(|fd| remove::entries_but(&fd, is_known));
        match listed {
            Ok(entries) => Ok(Some(entries)),
            Err(Errno::ACCESS | Errno::NOENT) => Ok(None),
            Err(error) => {
                let shown =
                    directory.map_or_else(|| self.path.display().to_string(), |path| self.shown(path));
                Err(Error::at("list directory", shown, &error.into()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn rel(path: &str) -> RelPath {
        RelPath::parse(path).expect("valid")
    }

    #[test]
    fn what_belongs_to_another_user_is_an_obstacle() {
        let data = tempfile::tempdir().expect("temporary directory");
        fs::create_dir_all(data.path().join("base/5/empty")).expect("make");
        fs::write(data.path().join("base/5/1"), [1; 5000]).expect("write");
        let mut freed = HashMap::new();
        let mut target = DataDirectory::open(data.path()).expect("open");
        assert!(target.entrance(&rel("base/5")).expect("looks").0.is_none());
        assert!(target.removal_obstacle(None, "base", &mut freed).expect("looks").is_none());
        assert!(freed.values().sum::<u64>() >= 5000, "{freed:?}");
        assert!(target.removal_obstacle(None, "none", &mut freed).expect("looks").is_none());

        // as another user who may not write there sees it
        target.user += 4711;
        fs::set_permissions(data.path().join("base/5"), fs::Permissions::from_mode(0o1777)).expect("chmod");
        let obstacle = target.entrance(&rel("base/5")).expect("looks").0.expect("foreign");
        let refusal = obstacle.refusal();
        assert!(refusal.message.contains("base/5\" belongs") && refusal.hint.is_some(), "{refusal}");
        let (base, five) = (rel("base"), rel("base/5"));
        assert!(target.removal_obstacle(Some(&five), "1", &mut freed).expect("looks").is_some(), "sticky");
        fs::set_permissions(data.path().join("base/5"), fs::Permissions::from_mode(0o777)).expect("chmod");
        assert!(target.removal_obstacle(Some(&five), "1", &mut freed).expect("looks").is_none(), "open");
        fs::set_permissions(data.path().join("base"), fs::Permissions::from_mode(0o1777)).expect("chmod");
        assert!(target.removal_obstacle(Some(&base), "5", &mut freed).expect("looks").is_some(), "sticky");
    }
}
