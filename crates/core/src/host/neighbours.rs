//! Does another server use a directory that lies outside the data directory?
//!
//! A pg_wal or tablespace link says where a standby's files are, and may be wrong: a copy of a data directory has the
//! links of its original. Who uses the directory as well is told by the servers that run, by the files they have open
//! and the links in their own data directories, and by the links of the clusters that are listed beside this one.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::procfs::{Proc, Process, is_gone};
use super::running;
use crate::error::{Error, Kind, Result};
use crate::manifest::path::overlap;
use crate::sys::FileId;
use crate::sys::timely;

mod used;

use used::{Used, View};

#[cfg(test)]
mod tests;

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

    /// Whether both write there if the two are one directory. Clusters of different major versions may have their
    /// tablespaces in one, where each has a directory of its own: pg_upgrade leaves them so.
    fn shares(&self, used: &Used) -> bool {
        let version = self.within.as_deref().and_then(major);
        version.is_none() || used.version.is_none() || version == used.version.as_deref()
    }
}

/// Directories that are about to be written, of which there may be as many as databases.
struct Asked<'w> {
    wanted: &'w [Wanted],
    /// Two links may lead to one directory.
    by_identity: HashMap<FileId, Vec<&'w Wanted>>,
    linked: Vec<&'w Wanted>,
}

impl<'w> Asked<'w> {
    fn new(wanted: &'w [Wanted]) -> Self {
        let mut by_identity: HashMap<_, Vec<_>> = HashMap::new();
        for wanted in wanted {
            by_identity.entry(wanted.identity).or_default().push(wanted);
        }
        Self { wanted, by_identity, linked: wanted.iter().filter(|wanted| wanted.is_linked).collect() }
    }

    /// The one that is a directory of another cluster's, lies in it, or around it.
    fn colliding(&self, used: &Used) -> Option<&'w Wanted> {
        match self.by_identity.get(&used.identity) {
            Some(same) => same.iter().find(|wanted| wanted.shares(used)).copied(),
            None => {
                let path = used.path.as_ref()?;
                self.linked.iter().find(|wanted| overlap(&wanted.path, path)).copied()
            }
        }
    }

    /// The one in which a file lies: by its path, or by what the directory above it is.
    fn holding(&self, file: &Path, above: Option<FileId>) -> Option<&'w Wanted> {
        let by_name = self.linked.iter().find(|wanted| file.starts_with(wanted.content())).copied();
        let same = || self.by_identity.get(&above?)?.iter().find(|wanted| wanted.within.is_none()).copied();
        by_name.or_else(same)
    }
}

/// The major version in a name such as `PG_15_202209061`.
fn major(within: &str) -> Option<&str> {
    within.strip_prefix("PG_")?.split_once('_').map(|(major, _)| major)
}

/// The directories in which the processes that were looked at have files open: of each mount namespace, by their paths there. What
/// each is, `None` if it is none that a server can have opened, or why that cannot be told.
type Opened = HashMap<(PathBuf, PathBuf), Result<Option<FileId>, String>>;

impl<'a> Neighbours<'a> {
    pub(crate) fn new(own: Option<FileId>, listed: &'a [PathBuf]) -> Self {
        Self { proc: Proc::here(), own, listed }
    }

    /// Refuses directories that another server uses, or may use.
    pub(crate) fn demand_unused(&self, wanted: &[Wanted]) -> Result<()> {
        if wanted.is_empty() {
            return Ok(());
        }
        let asked = Asked::new(wanted);
        for directory in self.listed {
            let whose = format!("The cluster in \"{}\" uses it.", directory.display());
            let place = directory.clone();
            let used = timely::ask(directory, move || View::Own.used_by(&place)).unwrap_or_else(|| {
                Err(io::Error::new(io::ErrorKind::TimedOut, "its file system does not answer"))
            });
            self.compare(directory, used, &asked, &whose)?;
        }
        self.running(&asked)
    }

    /// Compares with what a data directory and its links lead to.
    fn compare(
        &self,
        directory: &Path,
        used: io::Result<Vec<Used>>,
        asked: &Asked<'_>,
        whose: &str,
    ) -> Result<()> {
        let used = match used {
            Ok(used) => used,
            Err(error) => {
                let why = format!("What \"{}\" uses could not be read: {error}.", directory.display());
                return unless_certain(asked.wanted, cannot_tell(&asked.wanted[0].path, why));
            }
        };
        if used.first().is_some_and(|found| Some(found.identity) == self.own) {
            return Ok(());
        }
        for found in &used {
            if let Some(wanted) = asked.colliding(found) {
                return Err(in_use(wanted, whose));
            }
        }
        Ok(())
    }

    /// Compares with what the running servers have.
    fn running(&self, asked: &Asked<'_>) -> Result<()> {
        let wanted = asked.wanted;
        let user = rustix::process::geteuid().as_raw();
        let (mut seen, mut opened) = (HashSet::new(), Opened::new());
        let processes = match self.proc.processes() {
            Ok(processes) => processes,
            Err(error) => return unless_certain(wanted, cannot_tell(&wanted[0].path, error.message)),
        };
        // a recovery within a server has its own target open
        for process in processes.into_iter().filter(|process| *process != std::process::id()) {
            match self.proc.look(process) {
                Ok(Some(found)) if found.is_server() => {
                    self.demand_unused_by(process, &found, (&mut seen, &mut opened), asked)?;
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

    /// Compares with what one server has. `seen`: the data directories that were compared already, `opened`: what is known of
    /// those in which files are open.
    fn demand_unused_by(
        &self,
        process: u32,
        found: &Process,
        (seen, opened): (&mut HashSet<FileId>, &mut Opened),
        asked: &Asked<'_>,
    ) -> Result<()> {
        let wanted = asked.wanted;
        let whose = format!("Process {process} of another server uses it.");
        let cwd = self.proc.of(process, "cwd");
        let identity = match fs::metadata(&cwd) {
            Ok(place) => FileId::from(&place),
            Err(error) if is_gone(&error) || found.user != rustix::process::geteuid().as_raw() => {
                return Ok(());
            }
            Err(error) => {
                let hidden = self.hidden(process, found.parent, asked, &whose);
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
                let used = || View::of(&self.proc, process).and_then(|(view, cwd)| view.used_by(&cwd));
                if is_new { self.compare(&cwd, used(), asked, &whose()) } else { Ok(()) }
            });
        if looked.is_err() && fs::metadata(&cwd).is_err_and(|error| is_gone(&error)) {
            // it ended between two looks
            seen.remove(&identity);
            return Ok(());
        }
        looked?;
        match self.open_below(process, opened, asked) {
            Ok(None) => Ok(()),
            Ok(Some(wanted)) => Err(in_use(wanted, &whose)),
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
    fn hidden(&self, process: u32, parent: u32, asked: &Asked<'_>, whose: &str) -> Option<Result<()>> {
        // it may have ended between two looks
        if matches!(self.proc.look(process), Ok(None)) {
            return Some(Ok(()));
        }
        let directory = running::hidden_directory(&self.proc, process, parent)?;
        Some(self.compare(&directory, View::Own.used_by(&directory), asked, whose))
    }

    /// Which of the directories a process has files open in.
    fn open_below<'w>(
        &self,
        process: u32,
        opened: &mut Opened,
        asked: &Asked<'w>,
    ) -> io::Result<Option<&'w Wanted>> {
        // if it cannot be read, no two processes are known to share one
        let namespace = fs::read_link(self.proc.of(process, "ns/mnt"))
            .unwrap_or_else(|_| PathBuf::from(process.to_string()));
        let mut unknown = None;
        for entry in fs::read_dir(self.proc.of(process, "fd"))? {
            let read = entry.and_then(|entry| Ok((entry.path(), fs::read_link(entry.path())?)));
            let (place, leads_to) = match read {
                Ok(read) => read,
                Err(error) if is_gone(&error) => continue,
                Err(error) => return Err(error),
            };
            // a pipe, a socket, memory
            let Some(above) = leads_to.parent().filter(|_| leads_to.is_absolute()) else { continue };
            let identity = opened
                .entry((namespace.clone(), above.to_owned()))
                .or_insert_with(|| self.identity_within(process, above));
            let identity = identity.as_ref().map_or_else(
                |why| {
                    unknown = Some(format!("\"{}\": {why}", above.display()));
                    None
                },
                |identity| *identity,
            );
            let Some(found) = asked.holding(&leads_to, identity) else { continue };
            // a server has files open; a recovery that just ends has the directory
            match fs::metadata(&place) {
                Ok(open) if open.is_dir() => {}
                Err(error) if is_gone(&error) => {}
                _ => return Ok(Some(found)),
            }
        }
        unknown.map_or(Ok(None), |why| Err(io::Error::other(why)))
    }

    /// What a directory is that a process has a file open in, by its path: it may see other mounts.
    fn identity_within(&self, process: u32, directory: &Path) -> Result<Option<FileId>, String> {
        let Ok(below) = directory.strip_prefix("/") else { return Ok(None) };
        let place = self.proc.of(process, "root").join(below);
        let asked = place.clone();
        match timely::ask(&place, move || fs::metadata(asked)) {
            Some(Ok(found)) => Ok(Some(FileId::from(&found))),
            Some(Err(error)) if is_gone(&error) => Ok(None),
            // who started the server has opened what is where the server itself may not go, such as its standard output
            Some(Err(error)) if error.kind() == io::ErrorKind::PermissionDenied => Ok(None),
            Some(Err(error)) => Err(error.to_string()),
            None => Err("its file system does not answer".to_owned()),
        }
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

fn in_use(wanted: &Wanted, whose: &str) -> Error {
    let message = format!("another server uses directory \"{}\"", wanted.path.display());
    let hint = if wanted.is_linked {
        "Let the link in the target's pg_wal or pg_tblspc, or tablespace_mapping, lead to a directory of the standby's own."
    } else {
        "A mount leads there: unmount it, and give the standby a directory of its own."
    };
    Error::new(Kind::InUse, message).detail(whose).hint(hint)
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
