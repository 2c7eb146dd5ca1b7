//! Does another server use a directory that lies outside the data directory?
//!
//! A pg_wal or tablespace link says where a standby's files are, and may be wrong: a copy of a data directory has the
//! links of its original. Who uses the directory as well is told by the servers that run, by the files they have open
//! and the links in their own data directories, and by the links of the clusters that are listed beside this one.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::procfs::{Proc, Process, is_gone};
use super::running;
use crate::error::{Error, Kind, Result};
use crate::manifest::path::overlap;
use crate::sys::FileId;
use crate::sys::small_file;
use crate::sys::timely;

/// The other servers and clusters of this host.
pub(crate) struct Neighbours<'a> {
    proc: Proc,
    /// Device and inode of the data directory itself.
    own: Option<FileId>,
    /// Data directories of other clusters.
    listed: &'a [PathBuf],
}

/// A directory that is about to be written.
pub(crate) struct Wanted {
    /// Without symbolic links.
    pub(crate) path: PathBuf,
    /// Device and inode.
    pub(crate) identity: FileId,
    /// Whether a link leads to it, perhaps into what another one uses, or around that. Of a directory that was named itself only
    /// the identity counts.
    pub(crate) is_linked: bool,
    /// If it is a tablespace's, the directory in it that is the cluster's: `PG_15_202209061`.
    pub(crate) within: Option<String>,
}

impl Wanted {
    /// The part of it that is written.
    fn content(&self) -> PathBuf {
        self.within.as_ref().map_or_else(|| self.path.clone(), |within| self.path.join(within))
    }

    /// Whether the two are one, or one lies in the other. Clusters of different major versions may have their
    /// tablespaces in one directory, where each has a directory of its own: pg_upgrade leaves them so.
    fn collides(&self, used: &Used) -> bool {
        if self.identity == used.identity {
            let version = self.within.as_deref().and_then(major);
            return version.is_none() || used.version.is_none() || version == used.version.as_deref();
        }
        self.is_linked && overlap(&self.path, &used.path)
    }
}

/// The major version in a name such as `PG_15_202209061`.
fn major(within: &str) -> Option<&str> {
    within.strip_prefix("PG_")?.split_once('_').map(|(major, _)| major)
}

/// A directory that another cluster uses.
struct Used {
    path: PathBuf,
    identity: FileId,
    /// If it is a tablespace's, the cluster's major version, if that can be told.
    version: Option<String>,
}

impl<'a> Neighbours<'a> {
    pub(crate) fn new(own: Option<FileId>, listed: &'a [PathBuf]) -> Self {
        Self { proc: Proc::here(), own, listed }
    }

    /// Refuses directories that another server uses, or may use.
    pub(crate) fn demand_unused(&self, wanted: &[Wanted]) -> Result<()> {
        if wanted.is_empty() {
            return Ok(());
        }
        for directory in self.listed {
            let whose = format!("The cluster in \"{}\" uses it.", directory.display());
            let asked = directory.clone();
            let used = timely::ask(directory, move || used_by(&asked)).unwrap_or_else(|| {
                Err(io::Error::new(io::ErrorKind::TimedOut, "its file system does not answer"))
            });
            self.compare(directory, used, wanted, &whose)?;
        }
        self.running(wanted)
    }

    /// Compares with what a data directory and its links lead to.
    fn compare(
        &self,
        directory: &Path,
        used: io::Result<Vec<Used>>,
        wanted: &[Wanted],
        whose: &str,
    ) -> Result<()> {
        let used = match used {
            Ok(used) => used,
            Err(error) => {
                let why = format!("What \"{}\" uses could not be read: {error}.", directory.display());
                return unless_certain(wanted, cannot_tell(&wanted[0].path, why));
            }
        };
        if used.first().is_some_and(|found| Some(found.identity) == self.own) {
            return Ok(());
        }
        for found in &used {
            if let Some(wanted) = wanted.iter().find(|wanted| wanted.collides(found)) {
                return Err(in_use(&wanted.path, whose));
            }
        }
        Ok(())
    }

    /// Compares with what the running servers have.
    fn running(&self, wanted: &[Wanted]) -> Result<()> {
        let user = rustix::process::geteuid().as_raw();
        let mut seen = HashSet::new();
        let processes = match self.proc.processes() {
            Ok(processes) => processes,
            Err(error) => return unless_certain(wanted, cannot_tell(&wanted[0].path, error.message)),
        };
        // a recovery within a server has its own target open
        for process in processes.into_iter().filter(|process| *process != std::process::id()) {
            match self.proc.look(process) {
                Ok(Some(found)) if found.is_server() => {
                    self.demand_unused_by(process, &found, &mut seen, wanted)?;
                }
                Ok(_) => {}
                // it is hidden; as it is where one searches for the target's own server
                Err(error) => match fs::metadata(self.proc.of(process, "")) {
                    Ok(place) if place.uid() == user => {
                        self.unreadable(process, "status", &error, wanted)?;
                    }
                    _ => {}
                },
            }
        }
        Ok(())
    }

    /// Compares with what one server has. `seen`: the data directories that were compared already.
    fn demand_unused_by(
        &self,
        process: u32,
        found: &Process,
        seen: &mut HashSet<FileId>,
        wanted: &[Wanted],
    ) -> Result<()> {
        let whose = format!("Process {process} of another server uses it.");
        let cwd = self.proc.of(process, "cwd");
        let identity = match fs::metadata(&cwd) {
            Ok(place) => FileId::from(&place),
            Err(error) if is_gone(&error) || found.user != rustix::process::geteuid().as_raw() => {
                return Ok(());
            }
            Err(error) => {
                let hidden = self.hidden(process, found.parent, wanted, &whose);
                return hidden.unwrap_or_else(|| self.unreadable(process, "cwd", &error, wanted));
            }
        };
        if Some(identity) == self.own {
            return Ok(());
        }
        // one that is starting, or only asked for its version, is elsewhere
        let looked = is_data_directory(&cwd)
            .or_else(|error| self.unreadable(process, "cwd", &error, wanted).map(|()| false))
            .and_then(|works| {
                let is_new = works && seen.insert(identity);
                let whose = || in_directory(process, &cwd).unwrap_or_else(|| whose.clone());
                if is_new { self.compare(&cwd, used_by(&cwd), wanted, &whose()) } else { Ok(()) }
            });
        if looked.is_err() && fs::metadata(&cwd).is_err_and(|error| is_gone(&error)) {
            // it ended between two looks
            seen.remove(&identity);
            return Ok(());
        }
        looked?;
        match self.open_below(process, wanted) {
            Ok(None) => Ok(()),
            Ok(Some(wanted)) => Err(in_use(&wanted.path, &whose)),
            Err(error) if is_gone(&error) => Ok(()),
            // Only their owner can read another user's files, and that user's server writes none of ours. A process
            // that hides its files hides its directory as well: one that shows the directory alone is just
            // ending, its memory is gone and its files are being closed.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
            Err(error) => self.unreadable(process, "fd", &error, wanted),
        }
    }

    /// The refusal where something of a server cannot be read.
    fn unreadable(&self, process: u32, what: &str, error: &io::Error, wanted: &[Wanted]) -> Result<()> {
        let place = self.proc.of(process, what);
        let why = format!("\"{}\" of a server could not be read: {error}.", place.display());
        unless_certain(wanted, cannot_tell(&wanted[0].path, why))
    }

    /// Of a server that cannot be looked at: what is known of it otherwise. `None`: nothing.
    fn hidden(&self, process: u32, parent: u32, wanted: &[Wanted], whose: &str) -> Option<Result<()>> {
        // it may have ended between two looks
        if matches!(self.proc.look(process), Ok(None)) {
            return Some(Ok(()));
        }
        let directory = running::hidden_directory(&self.proc, process, parent)?;
        Some(self.compare(&directory, used_by(&directory), wanted, whose))
    }

    /// Which of the directories a process has files open in.
    fn open_below<'w>(&self, process: u32, wanted: &'w [Wanted]) -> io::Result<Option<&'w Wanted>> {
        for entry in fs::read_dir(self.proc.of(process, "fd"))? {
            let read = entry.and_then(|entry| Ok((entry.path(), fs::read_link(entry.path())?)));
            let (place, leads_to) = match read {
                Ok(read) => read,
                Err(error) if is_gone(&error) => continue,
                Err(error) => return Err(error),
            };
            let Some(found) = wanted.iter().find(|wanted| leads_to.starts_with(wanted.content())) else {
                continue;
            };
            // a server has files open; a recovery that just ends has the directory
            match fs::metadata(&place) {
                Ok(open) if open.is_dir() => {}
                Err(error) if is_gone(&error) => {}
                _ => return Ok(Some(found)),
            }
        }
        Ok(None)
    }
}

/// Who uses a directory, by the link to the server's own; `None` where that cannot be read.
fn in_directory(process: u32, cwd: &Path) -> Option<String> {
    let directory = fs::read_link(cwd).ok()?;
    Some(format!("Process {process} of the server in \"{}\" uses it.", directory.display()))
}

/// Whether a directory has anything of a data directory.
fn is_data_directory(directory: &Path) -> io::Result<bool> {
    for name in ["PG_VERSION", "global", "postmaster.pid"] {
        match fs::symlink_metadata(directory.join(name)) {
            Ok(_) => return Ok(true),
            Err(error) if is_gone(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

/// A data directory, and where its pg_wal and tablespaces are. What is missing is not used.
fn used_by(directory: &Path) -> io::Result<Vec<Used>> {
    let mut used = Vec::new();
    let mut add = |path: PathBuf, version: Option<&String>| -> io::Result<()> {
        match fs::metadata(&path).and_then(|found| Ok((found, path.canonicalize()?))) {
            Ok((found, path)) => {
                let identity = FileId::from(&found);
                used.push(Used { path, identity, version: version.cloned() });
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        Ok(())
    };
    add(directory.to_owned(), None)?;
    add(directory.join("pg_wal"), None)?;
    // what cannot be told may be any
    let version = small_file::text(&directory.join("PG_VERSION")).map(|text| text.trim().to_owned());
    let version = version.filter(|version| version.bytes().next().is_some_and(|byte| byte.is_ascii_digit()));
    match fs::read_dir(directory.join("pg_tblspc")) {
        Ok(entries) => {
            for entry in entries {
                add(entry?.path(), version.as_ref())?;
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    Ok(used)
}

fn in_use(directory: &Path, whose: &str) -> Error {
    let message = format!("another server uses directory \"{}\"", directory.display());
    Error::new(Kind::InUse, message)
        .detail(whose)
        .hint("Let the link in the target's pg_wal or pg_tblspc, or tablespace_mapping, lead to a directory of the standby's own.")
}

/// What cannot be told is a refusal, where a link leads out of the target's own directory. In that itself another server has its files
/// only by its own link, or by a mount: of a server that is not seen at all, as in a container, that is not known either.
fn unless_certain(wanted: &[Wanted], unknown: Error) -> Result<()> {
    if wanted.iter().any(|wanted| wanted.is_linked) { Err(unknown) } else { Ok(()) }
}

fn cannot_tell(directory: &Path, why: impl Into<String>) -> Error {
    let message = format!("cannot tell whether another server uses directory \"{}\"", directory.display());
    Error::new(Kind::InUse, message)
        .detail(why)
        .hint("Stop the other servers of this host, or let the receiver see them: as the same OS user, without file capabilities on the program \"postgres\".")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn wanted(path: &Path) -> Vec<Wanted> {
        let path = path.canonicalize().expect("there");
        let found = fs::metadata(&path).expect("stat");
        vec![Wanted { identity: FileId::from(&found), path, is_linked: true, within: None }]
    }

    /// Two data directories, the second of which has a pg_wal and a tablespace elsewhere.
    fn stage() -> (tempfile::TempDir, PathBuf, PathBuf) {
        let top = tempfile::tempdir().expect("temporary directory");
        let (one, other) = (top.path().join("one"), top.path().join("other"));
        for made in ["one", "other/pg_tblspc", "wal", "space/PG_15_1", "free"] {
            fs::create_dir_all(top.path().join(made)).expect("make");
        }
        symlink(top.path().join("wal"), other.join("pg_wal")).expect("link");
        symlink(top.path().join("space"), other.join("pg_tblspc/16400")).expect("link");
        (top, one, other)
    }

    #[test]
    fn what_a_listed_cluster_uses_is_not_taken() {
        let (top, one, other) = stage();
        let identity = fs::metadata(&one).map(|found| FileId::from(&found)).ok();
        let listed = [other.clone(), top.path().join("not/made/yet")];
        let neighbours = Neighbours::new(identity, &listed);
        neighbours.demand_unused(&wanted(&top.path().join("free"))).expect("nobody uses it");
        for used in ["wal", "space", "space/PG_15_1", "other", "."] {
            let error = neighbours.demand_unused(&wanted(&top.path().join(used))).expect_err(used);
            assert!(error.kind == Kind::InUse && error.detail.is_some_and(|detail| detail.contains("other")));
        }
        fs::remove_file(other.join("pg_wal"))
            .and_then(|()| symlink("pg_wal", other.join("pg_wal")))
            .expect("loop");
        let error = neighbours.demand_unused(&wanted(&top.path().join("free"))).expect_err("cannot tell");
        assert!(error.message.contains("cannot tell"), "{error}");
    }

    #[test]
    fn clusters_of_two_major_versions_may_share_a_tablespaces_directory() {
        let (top, one, other) = stage();
        let root = tempfile::tempdir().expect("temporary directory");
        let proc = || Proc::at(root.path());
        symlink(std::process::id().to_string(), root.path().join("self")).expect("link");
        let user = rustix::process::geteuid().as_raw();
        fs::create_dir_all(proc().of(7, "fd")).expect("make");
        let status = format!("Name:\tpostgres\nPPid:\t1\nUid:\t{user}\t{user}\t{user}\t{user}\n");
        fs::write(proc().of(7, "status"), status).expect("write");
        symlink(&other, proc().of(7, "cwd")).expect("link");
        fs::create_dir(other.join("global")).expect("make");
        let space = top.path().canonicalize().expect("real").join("space");
        let file = |within: &str| {
            let file = space.join(within).join("file");
            fs::create_dir_all(file.parent().expect("parent"))
                .and_then(|()| fs::write(&file, ""))
                .expect("write");
            let _ = fs::remove_file(proc().of(7, "fd/3"));
            symlink(file, proc().of(7, "fd/3")).expect("link");
        };
        let identity = fs::metadata(&one).map(|found| FileId::from(&found)).ok();
        let listed = [other.clone()];
        let asked = |path: &Path, within: &str, listed: &[PathBuf]| {
            let mut wanted = wanted(path);
            wanted[0].within = Some(within.to_owned());
            Neighbours { proc: proc(), own: identity, listed }.demand_unused(&wanted)
        };
        file("PG_15_202209061");
        for listed in [&listed[..], &[]] {
            asked(&space, "PG_16_202307071", listed).expect_err("its version is unknown");
            fs::write(other.join("PG_VERSION"), "15\n").expect("write");
            asked(&space, "PG_16_202307071", listed).expect("another version's");
            asked(&space, "PG_15_202209061", listed).expect_err("its own");
            asked(&space, "PG_15_202209062", listed).expect_err("the same version, before its release");
            asked(&space.join("PG_15_1"), "PG_16_202307071", listed).expect_err("within");
            asked(&top.path().join("wal"), "PG_16_202307071", listed).expect_err("its pg_wal");
            fs::remove_file(other.join("PG_VERSION")).expect("remove");
        }
        fs::write(other.join("PG_VERSION"), "15\n").expect("write");
        file("PG_16_202307071");
        asked(&space, "PG_16_202307071", &[]).expect_err("it has a file open there");
    }

    #[test]
    fn the_clusters_own_links_are_its_own() {
        let (top, _, other) = stage();
        let identity = fs::metadata(&other).map(|found| FileId::from(&found)).ok();
        let listed = [other];
        Neighbours::new(identity, &listed).demand_unused(&wanted(&top.path().join("wal"))).expect("its own");
    }

    #[test]
    fn what_a_running_server_has_open_is_not_taken() {
        let (top, one, other) = stage();
        let root = tempfile::tempdir().expect("temporary directory");
        let proc = || Proc::at(root.path());
        symlink(std::process::id().to_string(), root.path().join("self")).expect("link");
        let user = rustix::process::geteuid().as_raw();
        fs::create_dir_all(proc().of(7, "fd")).expect("make");
        let status = format!("Name:\tpostgres\nPPid:\t1\nUid:\t{user}\t{user}\t{user}\t{user}\n");
        fs::write(proc().of(7, "status"), status).expect("write");
        symlink(&one, proc().of(7, "cwd")).expect("link");
        let segment = top.path().canonicalize().expect("real").join("free/segment");
        fs::write(&segment, "WAL").expect("write");
        symlink(segment, proc().of(7, "fd/3")).expect("link");
        let identity = fs::metadata(&other).map(|found| FileId::from(&found)).ok();
        let neighbours = Neighbours { proc: proc(), own: identity, listed: &[] };
        neighbours.demand_unused(&wanted(&top.path().join("wal"))).expect("nobody else uses it");
        let error = neighbours.demand_unused(&wanted(&top.path().join("free"))).expect_err("open");
        assert!(error.detail.as_deref().is_some_and(|detail| detail.contains("Process 7")), "{error}");
        // its links, although nothing there is open
        fs::write(one.join("PG_VERSION"), "15").expect("write");
        symlink(top.path().join("wal"), one.join("pg_wal")).expect("link");
        neighbours.demand_unused(&wanted(&top.path().join("wal"))).expect_err("linked");

        fs::remove_file(proc().of(7, "cwd")).and_then(|()| symlink("/", proc().of(7, "cwd"))).expect("link");
        neighbours.demand_unused(&wanted(&top.path().join("wal"))).expect("it is only starting");
        fs::remove_file(proc().of(7, "cwd"))
            .and_then(|()| symlink("cwd", proc().of(7, "cwd")))
            .expect("hidden");
        let error = neighbours.demand_unused(&wanted(&top.path().join("space"))).expect_err("hidden");
        assert!(error.message.contains("cannot tell"), "{error}");
    }
}
