//! What became of the last first stage of each target.
//!
//! Pgpool-II throws away the text of an error from `pgpool_recovery`, but shows that of
//! `pgpool_remote_start`, which it may call in another session. So the cause is kept in a small file
//! beside the server's socket, where PostgreSQL itself keeps what belongs to one server and not into
//! its data directory (docs/decisions/). `pgpool_recovery_status` shows what is remembered, and a running
//! recovery tells there how far it is.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use pgpool_recovery_core::error::Error;
use pgpool_recovery_core::path::normalize_directory;
use pgpool_recovery_core::progress::{Phase, Progress};
use rustix::fs::{FlockOperation, OFlags, flock};
use serde::{Deserialize, Serialize};

use crate::pg::catalog;

/// Most targets remembered; the oldest go first.
const MOST: usize = 100;

/// How often a running recovery writes down how far it is.
const SHOW: Duration = Duration::from_secs(1);

/// Largest file read, bytes.
const LARGEST: u64 = 1 << 20;

thread_local! {
    /// What this session knows, where there is no place for a file. Main thread only.
    static SESSION: RefCell<Outcomes> = RefCell::default();
}

/// How a first stage ended, or that it has not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub(crate) enum Outcome {
    /// A backend works on it, or died doing so.
    Running { pid: u32 },
    /// It failed, and this is why.
    Failed { error: Error },
    /// The target is complete.
    Succeeded,
}

/// A recovery of one target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) host: String,
    pub(crate) directory: String,
    /// Milliseconds since 1970.
    pub(crate) started: u64,
    /// When it was last heard of, milliseconds since 1970.
    pub(crate) updated: u64,
    pub(crate) outcome: Outcome,
    /// As the report calls them, once they are known.
    pub(crate) transport: Option<String>,
    pub(crate) strategy: Option<String>,
    pub(crate) figures: Option<Figures>,
}

/// How far it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Figures {
    pub(crate) phase: String,
    pub(crate) streams: u32,
    /// Since when data streams, milliseconds since 1970.
    pub(crate) streaming_since: Option<u64>,
    pub(crate) total: u64,
    pub(crate) compared: u64,
    pub(crate) sent: u64,
    pub(crate) cloned: u64,
    pub(crate) wal: u64,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Outcomes {
    /// By host and directory.
    targets: BTreeMap<String, Entry>,
}

/// The memory of one server.
pub(crate) struct Memory {
    file: Option<PathBuf>,
}

impl Memory {
    /// The memory of this server.
    pub(crate) fn of_this_server() -> Result<Self, Error> {
        let directories = catalog::setting("unix_socket_directories")?.unwrap_or_default();
        let port = catalog::setting("port")?.and_then(|port| port.parse().ok()).unwrap_or(0);
        Ok(Self::of(&directories, port))
    }

    /// The memory of the server with these socket directories and this port.
    fn of(unix_socket_directories: &str, port: u16) -> Self {
        let directory =
            unix_socket_directories.split(',').map(|directory| directory.trim().trim_matches('"'));
        let directory = directory.into_iter().find(|directory| directory.starts_with('/'));
        Self {
            file: directory
                .map(|directory| Path::new(directory).join(format!(".s.PGSQL.{port}.recovery.json"))),
        }
    }

    /// Everything that is remembered.
    pub(crate) fn all(&self) -> Vec<Entry> {
        let outcomes = match self.open(false) {
            Some(mut file) => read(&mut file),
            None => SESSION.with_borrow(Clone::clone),
        };
        outcomes.targets.into_values().collect()
    }

    /// What became of the last first stage of a target, if any is known.
    pub(crate) fn recall(&self, host: &str, directory: &str) -> Option<Outcome> {
        let directory = normal(directory);
        let is_meant = |entry: &Entry| entry.host == host && entry.directory == directory;
        self.all().into_iter().find(is_meant).map(|entry| entry.outcome)
    }

    /// A first stage begins. What becomes of it is remembered even if an interrupt ends it.
    pub(crate) fn begin<'a>(&'a self, host: &str, directory: &str, progress: Arc<Progress>) -> Attempt<'a> {
        let pid = std::process::id();
        let other_runs = match self.recall(host, directory) {
            Some(Outcome::Running { pid: other }) => other != pid && is_alive(other),
            _ => false,
        };
        let entry = Entry {
            host: host.to_owned(),
            directory: normal(directory),
            started: now(),
            updated: now(),
            outcome: Outcome::Running { pid },
            transport: None,
            strategy: None,
            figures: None,
        };
        if !other_runs {
            self.remember(&entry);
        }
        Attempt {
            memory: self,
            progress,
            entry: RefCell::new(entry),
            shown: Cell::new(Instant::now()),
            is_settled: Cell::new(other_runs),
        }
    }

    /// Best effort: a recovery must not fail because its story cannot be written down.
    fn remember(&self, entry: &Entry) {
        let add = |outcomes: &mut Outcomes| {
            outcomes.targets.insert(format!("{}:{}", entry.host, entry.directory), entry.clone());
            while outcomes.targets.len() > MOST {
                let oldest = outcomes.targets.iter().min_by_key(|(_, entry)| entry.updated);
                let Some(oldest) = oldest.map(|(key, _)| key.clone()) else { break };
                outcomes.targets.remove(&oldest);
            }
        };
        match self.open(true) {
            Some(mut file) => {
                let mut outcomes = read(&mut file);
                add(&mut outcomes);
                let _ = write(&mut file, &outcomes);
            }
            None => SESSION.with_borrow_mut(add),
        }
    }

    /// The file, locked against other sessions; `None` if it cannot be had or is not ours (the socket
    /// directory may be /tmp).
    fn open(&self, create: bool) -> Option<File> {
        let flags = i32::try_from((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits()).ok()?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(create)
            .truncate(false)
            .mode(0o600)
            .custom_flags(flags)
            .open(self.file.as_ref()?)
            .ok()?;
        let metadata = file.metadata().ok()?;
        let ours = metadata.is_file()
            && metadata.uid() == rustix::process::geteuid().as_raw()
            && metadata.nlink() == 1
            && metadata.mode() & 0o022 == 0;
        if !ours {
            return None;
        }
        flock(&file, FlockOperation::LockExclusive).ok()?;
        Some(file)
    }
}

/// A first stage in progress. Dropped without a word it counts as broken off: an ERROR raised by an
/// interrupt unwinds past everything else.
pub(crate) struct Attempt<'a> {
    memory: &'a Memory,
    progress: Arc<Progress>,
    entry: RefCell<Entry>,
    /// When it was last written down.
    shown: Cell<Instant>,
    /// Nothing more is to be said, or another session's run of the same target is what counts.
    is_settled: Cell<bool>,
}

impl Attempt<'_> {
    /// How the target is going to be filled, as the report calls it.
    pub(crate) fn goes(&self, transport: &str, strategy: &str) {
        let mut entry = self.entry.borrow_mut();
        entry.transport = Some(transport.to_owned());
        entry.strategy = Some(strategy.to_owned());
    }

    /// Writes down how far it is, now and then.
    pub(crate) fn show(&self) {
        if self.shown.get().elapsed() >= SHOW {
            self.shown.set(Instant::now());
            self.put(None);
        }
    }

    /// It ended.
    pub(crate) fn settle(self, outcome: Result<(), Error>) {
        self.put(Some(match outcome {
            Ok(()) => Outcome::Succeeded,
            Err(error) => Outcome::Failed { error },
        }));
    }

    /// Writes the story down; `end`: it goes no further.
    fn put(&self, end: Option<Outcome>) {
        if self.is_settled.get() {
            return;
        }
        let mut entry = self.entry.borrow_mut();
        entry.updated = now();
        let since = entry.figures.as_ref().and_then(|figures| figures.streaming_since);
        entry.figures = Some(figures(&self.progress, since));
        if let Some(outcome) = end {
            entry.outcome = outcome;
            self.is_settled.set(true);
        }
        self.memory.remember(&entry);
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        let error = Error::canceled()
            .detail("The session was canceled, ran into a timeout, or ended during the recovery.")
            .hint("Run the recovery again; it sends only what is missing.");
        self.put(Some(Outcome::Failed { error }));
    }
}

fn figures(progress: &Progress, streaming_since: Option<u64>) -> Figures {
    let phase = progress.phase();
    Figures {
        phase: phase.name().to_owned(),
        streams: progress.streams(),
        streaming_since: streaming_since.or_else(|| (phase >= Phase::Stream).then(now)),
        total: progress.total(),
        compared: progress.compared(),
        sent: progress.sent(),
        cloned: progress.cloned(),
        wal: progress.wal(),
    }
}

/// Milliseconds since 1970.
pub(crate) use pgpool_recovery_core::receiver::inspect::clock as now;

/// Whether the process of that number is a server process: the number may belong to somebody else by now.
pub(crate) fn is_alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/comm"))
        .is_ok_and(|name| matches!(name.trim_end(), "postgres" | "postmaster"))
}

/// A directory may be written in several ways.
fn normal(directory: &str) -> String {
    normalize_directory(directory).map_or_else(|_| directory.to_owned(), |path| path.display().to_string())
}

/// A damaged file is an empty memory.
fn read(file: &mut File) -> Outcomes {
    let mut text = String::new();
    let _ = file.take(LARGEST).read_to_string(&mut text);
    // whoever died while writing may have left the end of a longer text behind
    let first = serde_json::Deserializer::from_str(&text).into_iter().next();
    first.and_then(|outcomes| outcomes.ok()).unwrap_or_default()
}

fn write(file: &mut File, outcomes: &Outcomes) -> std::io::Result<()> {
    let text = serde_json::to_vec(outcomes)?;
    file.seek(SeekFrom::Start(0))?;
    file.write_all(&text)?;
    file.set_len(text.len() as u64)
}

#[cfg(test)]
mod tests {
    use pgpool_recovery_core::error::Kind;

    use super::*;

    #[test]
    fn survives_the_session_and_forgets_damage() {
        let directory = std::env::temp_dir().join(format!("pgpool_recovery_outcomes_{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("make");
        let memory = || Memory::of(&format!("{}, /other", directory.display()), 7);
        let error = Error::new(Kind::DiskFull, "full").hint("Free some.");
        memory().begin("h", "/d/", Arc::default()).settle(Err(error.clone()));
        assert_eq!(memory().recall("h", "/d"), Some(Outcome::Failed { error }));
        assert_eq!(memory().recall("h", "/e"), None);
        drop(memory().begin("h", "/d", Arc::default()));
        assert!(
            matches!(memory().recall("h", "/d"), Some(Outcome::Failed { error }) if error.kind == Kind::Canceled)
        );
        memory().begin("h", "/d", Arc::default()).settle(Ok(()));
        assert_eq!(memory().recall("h", "/d"), Some(Outcome::Succeeded));
        let file = directory.join(".s.PGSQL.7.recovery.json");
        let text = std::fs::read_to_string(&file).expect("read");
        std::fs::write(&file, text + "the rest of a longer one").expect("write");
        assert_eq!(memory().recall("h", "/d"), Some(Outcome::Succeeded));
        std::fs::write(&file, "{").expect("write");
        assert_eq!(memory().recall("h", "/d"), None);
        std::fs::remove_file(&file).expect("remove");
        std::os::unix::fs::symlink("/etc/passwd", &file).expect("link");
        assert_eq!(memory().recall("h", "/d"), None, "a link is not followed");
        std::fs::remove_dir_all(&directory).expect("clean");
    }
}
