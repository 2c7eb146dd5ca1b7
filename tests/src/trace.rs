//! What a process does to files, as the kernel was asked: recorded by strace, and replayed against what a power
//! cut would leave.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;

use crate::process::Daemon;
use crate::scratch::Scratch;
use crate::wait;

/// The calls that change files, names or what is durable. Nothing else is recorded.
const CALLS: &str = "openat,mkdirat,unlinkat,renameat,renameat2,symlinkat,linkat,ftruncate,fallocate,\
                     fchmod,pwrite64,pwritev,write,writev,ioctl,copy_file_range,fsync,fdatasync,syncfs";

/// strace on a running process and all its threads.
#[derive(Debug)]
pub struct Trace {
    strace: Daemon,
    log: PathBuf,
}

/// One system call that succeeded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    pub name: String,
    /// As strace shows them: each descriptor with its path.
    pub arguments: String,
    /// Lines of the log on which it began and ended: calls of several threads overlap.
    pub begin: usize,
    pub end: usize,
}

impl Trace {
    /// Attaches to `pid`.
    pub fn attach(scratch: &Scratch, pid: u32) -> Self {
        let log = scratch.join(format!("strace-{pid}.log"));
        let mut command = Command::new("strace");
        command.args(["-f", "-y", "-s", "0", "-e", &format!("trace={CALLS}"), "-o"]).arg(&log);
        command.args(["-p", &pid.to_string()]);
        Self { strace: attached(command, scratch, pid), log }
    }

    /// Detaches; what was recorded.
    pub fn finish(mut self) -> Vec<Call> {
        self.strace.stop();
        parse(&fs::read_to_string(&self.log).expect("strace's log"))
    }
}

/// How long a process is held up at most.
pub const HELD: Duration = Duration::from_secs(10);

/// A process that is held up when it comes to a certain call; it goes on when this is dropped.
#[derive(Debug)]
pub struct Hold {
    /// Where it ends, what it has traced goes on.
    _strace: Daemon,
}

impl Hold {
    /// Holds up `pid` when it makes this file durable, for [`HELD`] at most.
    pub fn at_fsync(path: &Path, scratch: &Scratch, pid: u32) -> Self {
        let calls = "fsync";
        let microseconds = HELD.as_micros();
        let mut command = Command::new("strace");
        command.args(["-f", "-e", &format!("trace={calls}")]);
        command.args(["-e", &format!("inject={calls}:delay_enter={microseconds}:when=1")]);
        command.arg("-P").arg(path).args(["-p", &pid.to_string()]);
        Self { _strace: attached(command, scratch, pid) }
    }
}

/// strace, once it has attached to a process.
fn attached(command: Command, scratch: &Scratch, pid: u32) -> Daemon {
    let mut strace = Daemon::spawn(command, &scratch.join(format!("strace-{pid}.err")), Signal::INT);
    wait::until_true("strace to attach", wait::PATIENCE, || {
        assert!(strace.ended().is_none(), "strace ended: {}", strace.log());
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.lines().any(|line| line.strip_prefix("TracerPid:").is_some_and(|pid| pid.trim() != "0"))
    });
    strace
}

fn parse(log: &str) -> Vec<Call> {
    let mut begun: BTreeMap<&str, (usize, String)> = BTreeMap::new();
    let mut calls = Vec::new();
    for (number, line) in log.lines().enumerate() {
        let Some((pid, rest)) = line.split_once(' ') else { continue };
        let rest = rest.trim_start();
        let (begin, text) = if let Some(text) = rest.strip_suffix(" <unfinished ...>") {
            begun.insert(pid, (number, text.to_owned()));
            continue;
        } else if let Some((_, tail)) = rest.split_once(" resumed>") {
            match begun.remove(pid) {
                Some((begin, text)) => (begin, text + tail),
                None => continue,
            }
        } else {
            (number, rest.to_owned())
        };
        // signals and exits have no result; a failed call changes nothing
        let Some((call, result)) = text.rsplit_once(" = ") else { continue };
        let Some((name, arguments)) = call.trim_end().split_once('(') else { continue };
        if result.starts_with('-') || result.starts_with('?') {
            continue;
        }
        let arguments = arguments.strip_suffix(')').unwrap_or(arguments);
        calls.push(Call { name: name.to_owned(), arguments: arguments.to_owned(), begin, end: number });
    }
    calls.sort_by_key(|call| call.end);
    calls
}

impl Call {
    /// The paths of the descriptors among the arguments, in their order: `12</some/path>`.
    fn descriptors(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut rest = self.arguments.as_str();
        while let Some((before, after)) = rest.split_once('<') {
            let Some((path, tail)) = after.split_once('>') else { break };
            if before.ends_with(|c: char| c.is_ascii_digit()) && path.starts_with('/') {
                found.push(PathBuf::from(path));
            }
            rest = tail;
        }
        found
    }

    /// The quoted arguments, in their order.
    pub fn names(&self) -> Vec<&str> {
        self.arguments.split('"').skip(1).step_by(2).collect()
    }

    /// The entry that the n-th descriptor and the n-th name stand for.
    fn entry(&self, n: usize) -> Option<PathBuf> {
        Some(self.descriptors().get(n)?.join(self.names().get(n)?))
    }
}

/// What of a directory tree is not durable yet, call by call.
///
/// As a pessimist sees it: whatever was not synced may be there after a power cut or not, content and names
/// alike, in any combination.
#[derive(Debug)]
pub struct Disk {
    root: PathBuf,
    /// Changes that may still be lost, by the file or the directory that has to be synced.
    unsynced: BTreeMap<PathBuf, Vec<Change>>,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// When it was complete.
    pub end: usize,
    /// What was changed.
    pub path: PathBuf,
    /// How.
    pub call: String,
}

impl Disk {
    /// A tree whose content is durable.
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), unsynced: BTreeMap::new() }
    }

    /// What may still be lost.
    pub fn unsynced(&self) -> impl Iterator<Item = &Change> {
        self.unsynced.values().flatten()
    }

    /// Takes a call into account. Returns the paths in the tree that it changed.
    pub fn apply(&mut self, call: &Call) -> Vec<PathBuf> {
        let mut changed = Vec::new();
        match call.name.as_str() {
            "openat" if call.arguments.contains("O_CREAT") => {
                let Some(path) = call.entry(0) else { return changed };
                self.change_entry(call, &path, &mut changed);
                self.change(call, &path, &path);
            }
            "mkdirat" | "symlinkat" => {
                // symlinkat names what the link says first
                let name = call.names().last().copied().unwrap_or_default().to_owned();
                let Some(directory) = call.descriptors().first().cloned() else { return changed };
                self.change_entry(call, &directory.join(name), &mut changed);
            }
            "unlinkat" => {
                let Some(path) = call.entry(0) else { return changed };
                // what is gone need not be durable
                self.unsynced.retain(|of, _| !of.starts_with(&path));
                self.change_entry(call, &path, &mut changed);
            }
            "renameat" | "renameat2" => {
                let (Some(from), Some(to)) = (call.entry(0), call.entry(1)) else { return changed };
                if let Some(changes) = self.unsynced.remove(&from) {
                    self.unsynced.insert(to.clone(), changes);
                }
                self.change_entry(call, &from, &mut changed);
                self.change_entry(call, &to, &mut changed);
            }
            "fsync" | "fdatasync" => {
                for path in call.descriptors() {
                    self.synced(call, |of| *of == path);
                }
            }
            "syncfs" => self.synced(call, |_| true),
            "ioctl" if !call.arguments.contains("FICLONE") => {}
            "openat" => {}
            // writes, truncations, modes, clones: of the first descriptor
            _ => {
                let Some(path) = call.descriptors().first().cloned() else { return changed };
                if path.starts_with(&self.root) {
                    self.change(call, &path, &path);
                    changed.push(path);
                }
            }
        }
        changed
    }

    /// A name came, went, or means something else.
    fn change_entry(&mut self, call: &Call, path: &Path, changed: &mut Vec<PathBuf>) {
        let Some(parent) = path.parent().filter(|parent| parent.starts_with(&self.root)) else { return };
        self.change(call, parent, path);
        changed.push(path.to_owned());
    }

    fn change(&mut self, call: &Call, to_be_synced: &Path, path: &Path) {
        if to_be_synced.starts_with(&self.root) {
            let change = Change { end: call.end, path: path.to_owned(), call: call.name.clone() };
            self.unsynced.entry(to_be_synced.to_owned()).or_default().push(change);
        }
    }

    /// A sync covers what was complete before it began.
    fn synced(&mut self, call: &Call, covers: impl Fn(&PathBuf) -> bool) {
        self.unsynced.retain(|of, changes| {
            if covers(of) {
                changes.retain(|change| change.end > call.begin);
            }
            !changes.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = r#"100 openat(5</t>, "a", O_RDWR|O_CREAT|O_EXCL, 0600) = 7</t/a>
101 fsync(7</t/a> <unfinished ...>
100 pwrite64(7</t/a>, ""..., 8192, 0) = 8192
101 <... fsync resumed>) = 0
100 openat(5</t>, "b", O_RDONLY) = -1 ENOENT (No such file or directory)
100 renameat(5</t>, "a", 5</t>, "c") = 0
100 fsync(5</t>) = 0
100 --- SIGINT {si_signo=SIGINT} ---
100 syncfs(5</t>) = 0
"#;

    #[test]
    fn a_sync_does_not_cover_what_was_written_while_it_ran() {
        let calls = parse(LOG);
        assert_eq!(calls.len(), 6, "{calls:?}");
        let mut disk = Disk::new(Path::new("/t"));
        let mut left = Vec::new();
        for call in &calls {
            disk.apply(call);
            left.push(disk.unsynced().map(|change| change.path.display().to_string()).collect::<Vec<_>>());
        }
        assert_eq!(left[0], ["/t/a", "/t/a"]);
        assert_eq!(left[1], ["/t/a", "/t/a", "/t/a"]);
        // the entry; the file's creation was complete when the sync began, the write was not
        assert_eq!(left[2], ["/t/a", "/t/a"]);
        assert_eq!(left[4], ["/t/a"], "the directory is synced, the file under its new name is not");
        assert!(left[5].is_empty());
    }
}
