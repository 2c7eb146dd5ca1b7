//! Which directories a cluster uses: its data directory, where its links lead, and what is a directory in these.
//!
//! A server may see other file systems than we do: one in a container, or of a unit that has mounts of its own. Its links are followed
//! as it follows them.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use super::major;
use crate::host::procfs::Proc;
use crate::sys::FileId;
use crate::sys::small_file;

/// How many links a path may have, as for the kernel.
const LINKS: u32 = 40;

/// A directory that another cluster uses.
pub(super) struct Used {
    /// Where it lies for us; `None` if only its identity says anything: it lies in one of the others, or elsewhere for us.
    pub(super) path: Option<PathBuf>,
    pub(super) identity: FileId,
    /// If it is a tablespace's, the cluster's major version, if that can be told.
    pub(super) version: Option<String>,
}

/// A cluster's view of the file system.
pub(super) enum View {
    /// Ours.
    Own,
    /// With this root directory.
    Below(OwnedFd),
}

/// Something that is there, under a path of ours.
struct Spot {
    place: PathBuf,
    /// What keeps the path valid.
    _file: Option<OwnedFd>,
}

impl View {
    /// The view of a server, and its working directory in that.
    pub(super) fn of(proc: &Proc, process: u32) -> io::Result<(Self, PathBuf)> {
        let link = |process, what| fs::read_link(proc.of(process, what));
        let own = std::process::id();
        let (root, cwd) = (link(process, "root")?, proc.of(process, "cwd"));
        if link(process, "ns/mnt")? == link(own, "ns/mnt")? && root == link(own, "root")? {
            return Ok((Self::Own, cwd));
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let view = Self::Below(rustix::fs::open(proc.of(process, "root"), flags, Mode::empty())?);
        let named = link(process, "cwd")?;
        let named = named.strip_prefix(&root).map(|below| Path::new("/").join(below)).unwrap_or(named);
        let found = fs::metadata(view.find(&named)?.place)?;
        if FileId::from(&found) != FileId::from(&fs::metadata(cwd)?) {
            return Err(io::Error::other(format!("its root directory has another \"{}\"", named.display())));
        }
        Ok((view, named))
    }

    fn find(&self, path: &Path) -> io::Result<Spot> {
        let Self::Below(root) = self else { return Ok(Spot { place: path.to_owned(), _file: None }) };
        let file = follow(root, path)?;
        Ok(Spot { place: format!("/proc/self/fd/{}", file.as_raw_fd()).into(), _file: Some(file) })
    }

    /// Where something that was found by a path is for us; `None` if it has no path here.
    fn real(&self, path: &Path, found: &Spot, identity: FileId) -> io::Result<Option<PathBuf>> {
        match self {
            Self::Own => path.canonicalize().map(Some),
            Self::Below(_) => {
                let path = fs::read_link(&found.place)?;
                let is_same = fs::metadata(&path).is_ok_and(|here| FileId::from(&here) == identity);
                Ok(is_same.then_some(path))
            }
        }
    }

    /// A data directory, where its pg_wal and tablespaces are, and what is a directory in these, down to those of the databases. What is
    /// missing is not used.
    pub(super) fn used_by(&self, directory: &Path) -> io::Result<Vec<Used>> {
        let mut used = Vec::new();
        self.add(&mut used, directory, None, false)?;
        self.add(&mut used, &directory.join("pg_wal"), None, false)?;
        let version = self.version(&directory.join("PG_VERSION"))?;
        for tablespace in self.directories_in(&directory.join("pg_tblspc"))? {
            self.add(&mut used, &tablespace, version.as_deref(), false)?;
            for content in self.directories_in(&tablespace)? {
                let name = content.file_name().and_then(OsStr::to_str).unwrap_or_default();
                if major(name).is_some_and(|major| version.as_deref().is_none_or(|version| version == major))
                {
                    self.add_with_its_directories(&mut used, &content)?;
                }
            }
        }
        for inner in self.directories_in(directory)? {
            if inner.file_name() == Some(OsStr::new("base")) {
                self.add_with_its_directories(&mut used, &inner)?;
            } else {
                self.add(&mut used, &inner, None, true)?;
            }
        }
        Ok(used)
    }

    /// A cluster's major version. What cannot be told may be any.
    fn version(&self, file: &Path) -> io::Result<Option<String>> {
        let Some(found) = unless_missing(self.find(file))? else { return Ok(None) };
        let version = small_file::text(&found.place).map(|text| text.trim().to_owned());
        Ok(version.filter(|version| version.bytes().next().is_some_and(|byte| byte.is_ascii_digit())))
    }

    fn add_with_its_directories(&self, used: &mut Vec<Used>, directory: &Path) -> io::Result<()> {
        self.add(used, directory, None, true)?;
        self.directories_in(directory)?.iter().try_for_each(|inner| self.add(used, inner, None, true))
    }

    fn add(
        &self,
        used: &mut Vec<Used>,
        path: &Path,
        version: Option<&str>,
        is_inner: bool,
    ) -> io::Result<()> {
        let look = || {
            let spot = self.find(path)?;
            let identity = FileId::from(&fs::metadata(&spot.place)?);
            let path = if is_inner { None } else { self.real(path, &spot, identity)? };
            Ok(Used { path, identity, version: version.map(str::to_owned) })
        };
        used.extend(unless_missing(look())?);
        Ok(())
    }

    /// What is a directory, or a link, in a directory; nothing if that is missing, or none.
    fn directories_in(&self, directory: &Path) -> io::Result<Vec<PathBuf>> {
        let listed = self.find(directory).and_then(|spot| fs::read_dir(spot.place));
        let entries = match listed {
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => return Ok(Vec::new()),
            listed => unless_missing(listed)?,
        };
        let mut found = Vec::new();
        for entry in entries.into_iter().flatten() {
            let entry = entry?;
            match unless_missing(entry.file_type())? {
                Some(kind) if kind.is_dir() || kind.is_symlink() => {
                    found.push(directory.join(entry.file_name()));
                }
                _ => {}
            }
        }
        Ok(found)
    }
}

/// Opens what a path leads to for a process with this root directory, where each absolute link begins, and from which no `..` leads out.
/// openat2(2) with RESOLVE_IN_ROOT does this from Linux 5.6 on, and RHEL 8 has an older one.
fn follow(root: &OwnedFd, path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut above = vec![root.try_clone()?];
    let mut left: Vec<OsString> = components(path).collect();
    let mut links = 0;
    while let Some(name) = left.pop() {
        match name.as_bytes() {
            b"/" => above.truncate(1),
            b".." => above.truncate((above.len() - 1).max(1)),
            _ => {
                let at = above.last().ok_or_else(|| io::Error::other("no root directory"))?;
                let found = rustix::fs::openat(at, &name, flags, Mode::empty())?;
                if !FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode).is_symlink() {
                    above.push(found);
                    continue;
                }
                links += 1;
                if links > LINKS {
                    return Err(Errno::LOOP.into());
                }
                let target = rustix::fs::readlinkat(&found, "", Vec::new())?;
                left.extend(components(Path::new(OsStr::from_bytes(target.as_bytes()))));
            }
        }
    }
    above.pop().ok_or_else(|| io::Error::other("no root directory"))
}

/// What a path consists of, the last part first.
fn components(path: &Path) -> impl Iterator<Item = OsString> {
    path.components().rev().filter(|part| *part != Component::CurDir).map(|part| part.as_os_str().to_owned())
}

fn unless_missing<T>(found: io::Result<T>) -> io::Result<Option<T>> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_are_followed_within_a_root_directory() {
        let top = tempfile::tempdir().expect("temporary directory");
        let inside = top.path().join("root");
        fs::create_dir_all(inside.join("a/b")).expect("make");
        fs::create_dir(top.path().join("outside")).expect("make");
        fs::write(inside.join("a/file"), "").expect("write");
        for (target, link) in [
            ("/a", "absolute"),
            ("b", "a/relative"),
            ("../../../..", "a/up"),
            ("absolute/b", "chain"),
            ("loop", "loop"),
            ("/outside", "gone"),
        ] {
            symlink(target, inside.join(link)).expect("link");
        }
        let root = OwnedFd::from(fs::File::open(&inside).expect("open"));
        let found = |path: &str| {
            let found = follow(&root, Path::new(path))?;
            fs::read_link(format!("/proc/self/fd/{}", found.as_raw_fd()))
        };
        let inside = inside.canonicalize().expect("real");
        for (path, leads_to) in [
            ("/", ""),
            ("/a/./b", "a/b"),
            ("/absolute/b", "a/b"),
            ("/a/relative", "a/b"),
            ("/chain/..", "a"),
            ("/a/up", ""),
            ("/a/up/a/file", "a/file"),
            ("/../a", "a"),
        ] {
            assert_eq!(found(path).expect(path), inside.join(leads_to), "{path}");
        }
        for (path, error) in [("/gone", Errno::NOENT), ("/loop", Errno::LOOP), ("/a/file/x", Errno::NOTDIR)] {
            assert_eq!(Errno::from_io_error(&found(path).expect_err(path)), Some(error), "{path}");
        }
    }
}
