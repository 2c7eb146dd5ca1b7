//! Removing whole trees, and listing directories, beneath an opened directory.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::path::Arg;

/// Removes the entry `name` of `parent` with everything below it; false if there is none. Symbolic
/// links are removed, never followed.
pub(super) fn entry(parent: impl AsFd, name: impl Arg + Copy) -> Result<bool, Errno> {
    match rustix::fs::unlinkat(&parent, name, AtFlags::empty()) {
        Ok(()) => return Ok(true),
        Err(Errno::NOENT) => return Ok(false),
        // PERM is what POSIX says of a directory, ISDIR is what Linux says
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory: OwnedFd = rustix::fs::openat(&parent, name, flags, Mode::empty())?;
    for (child, _) in entries(&directory)? {
        entry(&directory, child.as_str())?;
    }
    rustix::fs::unlinkat(&parent, name, AtFlags::REMOVEDIR)?;
    Ok(true)
}

/// Names and types of what a directory holds.
pub(super) fn entries(directory: impl AsFd) -> Result<Vec<(String, FileType)>, Errno> {
    let mut found = Vec::new();
    for entry in Dir::read_from(&directory)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().to_str() else {
            // PostgreSQL makes no such name; whoever did has to remove it
            return Err(Errno::ILSEQ);
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
        found.push((name.to_owned(), kind));
    }
    Ok(found)
}
