//! Removing whole trees, and listing directories, beneath an opened directory.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use rustix::path::Arg;

use crate::sys::blocks::{Blocks, Text};

/// Removes the entry `name` of `parent` with everything below it; false if there is none. Symbolic
/// links are removed, never followed; what is mounted stays, with [`Errno::XDEV`].
pub(super) fn entry(parent: impl AsFd, name: impl Arg + Copy) -> Result<bool, Errno> {
    let refused = match rustix::fs::unlinkat(&parent, name, AtFlags::empty()) {
        Ok(()) => return Ok(true),
        Err(Errno::NOENT) => return Ok(false),
        // PERM is what POSIX says of a directory, ISDIR is what Linux says
        Err(error @ (Errno::ISDIR | Errno::PERM)) => error,
        Err(error) => return Err(error),
    };
    if is_mount(&parent, name)? {
        return Err(Errno::XDEV);
    }
    // an empty one of another user's goes like this only
    match rustix::fs::unlinkat(&parent, name, AtFlags::REMOVEDIR) {
        Ok(()) => return Ok(true),
        Err(Errno::NOTEMPTY | Errno::EXIST) => {}
        // a file that may not be removed
        Err(Errno::NOTDIR) => return Err(refused),
        Err(error) => return Err(error),
    }
    let directory = enter(&parent, name)?;
    // one that may be read, but not changed; whether it helped is seen below
    let _ = rustix::fs::fchmod(&directory, Mode::RWXU);
    let Entries { named, unnamed } = entries(&directory)?;
    for (child, _) in named.iter() {
        entry(&directory, child)?;
    }
    for child in unnamed {
        entry(&directory, child.as_c_str())?;
    }
    rustix::fs::unlinkat(&parent, name, AtFlags::REMOVEDIR)?;
    Ok(true)
}

/// Whether another file system begins at `name`, or the same one is mounted there.
pub(super) fn is_mount(parent: impl AsFd, name: impl Arg + Copy) -> Result<bool, Errno> {
    match rustix::fs::statx(&parent, name, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BASIC_STATS) {
        Ok(found) if found.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT) => {
            return Ok(found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT));
        }
        // a kernel before 5.8, or a container that forbids the call
        Ok(_) | Err(Errno::NOSYS | Errno::PERM) => {}
        Err(error) => return Err(error),
    }
    let there = rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(there.st_dev != rustix::fs::fstat(&parent)?.st_dev)
}

/// Whether something is mounted at the path of what is there.
pub(crate) fn is_mount_point(path: &Path) -> std::io::Result<bool> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Errno::NOENT.into());
    };
    Ok(is_mount(super::open_directory(parent)?, name)?)
}

/// Opens the directory `name` of `parent`, following no link. One that its owner may not read is made readable: no
/// server could use it either.
pub(super) fn enter(parent: impl AsFd, name: impl Arg + Copy) -> Result<OwnedFd, Errno> {
    match open_directory(&parent, name) {
        Err(Errno::ACCESS) => {
            // chmod of a name would follow a link that has come there meanwhile
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let found = rustix::fs::openat(&parent, name, flags, Mode::empty())?;
            rustix::fs::chmod(format!("/proc/self/fd/{}", found.as_raw_fd()), Mode::RWXU)?;
            open_directory(&parent, name)
        }
        opened => opened,
    }
}

pub(super) fn open_directory(parent: impl AsFd, name: impl Arg) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}

/// What a directory holds, but for `.` and `..`.
#[derive(Debug, Default)]
pub(crate) struct Entries {
    /// Names and types.
    pub named: Names,
    /// Names that are not UTF-8: PostgreSQL makes none, and no plan can have them.
    pub unnamed: Vec<CString>,
}

/// Names and types of entries in little memory: a directory may have millions.
#[derive(Debug, Default)]
pub(crate) struct Names {
    /// Each name with a slash behind it, which none has in it.
    text: Text,
    kinds: Blocks<FileType>,
}

impl Names {
    fn push(&mut self, name: &str, kind: FileType) {
        let text = self.text.with_room(name.len() + 1);
        text.push_str(name);
        text.push('/');
        self.kinds.push(kind);
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.kinds.is_empty()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, FileType)> {
        self.text.iter().flat_map(|names| names.split_terminator('/')).zip(self.kinds.iter().copied())
    }
}

pub(super) fn entries(directory: impl AsFd) -> Result<Entries, Errno> {
    entries_but(directory, &|_| false)
}

/// Those of a directory but for the files whose names are known.
pub(super) fn entries_but(directory: impl AsFd, is_known: &dyn Fn(&str) -> bool) -> Result<Entries, Errno> {
    let mut found = Entries::default();
    for entry in Dir::read_from(&directory)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().to_str() else {
            found.unnamed.push(entry.file_name().to_owned());
            continue;
        };
        if matches!(name, "." | "..") {
            continue;
        }
        let kind = match entry.file_type() {
            FileType::Unknown => {
                let stat = rustix::fs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
                FileType::from_raw_mode(stat.st_mode)
            }
            known => known,
        };
        if kind != FileType::RegularFile || !is_known(name) {
            found.named.push(name, kind);
        }
    }
    Ok(found)
}
