//! What became of the last first stage of each target.
//!
//! Pgpool-II throws away the text of an error from `pgpool_recovery`, but shows that of
//! `pgpool_remote_start`, which it may call in another session. So the cause is kept in a small file
//! beside the server's socket, where PostgreSQL itself keeps what belongs to one server and not into
//! its data directory (docs/decisions/).

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use pgpool_recovery_core::error::Error;
use pgpool_recovery_core::path::normalize_directory;
use rustix::fs::{FlockOperation, OFlags, flock};
use serde::{Deserialize, Serialize};

use crate::pg::catalog;

/// Most targets remembered; the oldest go first.
const MOST: usize = 100;

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

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Entry {
    /// Seconds since 1970.
    time: u64,
    outcome: Outcome,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Outcomes {
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

    /// What became of the last first stage of a target, if any is known.
    pub(crate) fn recall(&self, host: &str, directory: &str) -> Option<Outcome> {
        let key = key(host, directory);
        let outcomes = match self.open(false) {
            Some(mut file) => read(&mut file),
            None => SESSION.with_borrow(Clone::clone),
        };
        outcomes.targets.get(&key).map(|entry| entry.outcome.clone())
    }

    /// A first stage begins. What becomes of it is remembered even if an interrupt ends it.
    pub(crate) fn begin<'a>(&'a self, host: &str, directory: &str) -> Attempt<'a> {
        let pid = std::process::id();
        let other_runs = match self.recall(host, directory) {
            Some(Outcome::Running { pid: other }) => other != pid && is_alive(other),
            _ => false,
        };
        let attempt = Attempt { memory: self, key: key(host, directory), settled: other_runs };
        if !other_runs {
            self.remember(&attempt.key, Outcome::Running { pid });
        }
        attempt
    }

    /// Best effort: a recovery must not fail because its story cannot be written down.
    fn remember(&self, key: &str, outcome: Outcome) {
        let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        let add = |outcomes: &mut Outcomes| {
            outcomes.targets.insert(key.to_owned(), Entry { time, outcome });
            while outcomes.targets.len() > MOST {
                let oldest = outcomes.targets.iter().min_by_key(|(_, entry)| entry.time);
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
    key: String,
    settled: bool,
}

impl Attempt<'_> {
    /// It ended.
    pub(crate) fn settle(mut self, outcome: Result<(), Error>) {
        self.put(match outcome {
            Ok(()) => Outcome::Succeeded,
            Err(error) => Outcome::Failed { error },
        });
    }

    fn put(&mut self, outcome: Outcome) {
        // another session's run of the same target is what counts
        if !std::mem::replace(&mut self.settled, true) {
            self.memory.remember(&self.key, outcome);
        }
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        let error = Error::canceled()
            .detail("The session was canceled, ran into a timeout, or ended during the recovery.")
            .hint("Run the recovery again; it sends only what is missing.");
        self.put(Outcome::Failed { error });
    }
}

/// Whether the process of that number is a server process: the number may belong to somebody else by now.
pub(crate) fn is_alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/comm"))
        .is_ok_and(|name| matches!(name.trim_end(), "postgres" | "postmaster"))
}

fn key(host: &str, directory: &str) -> String {
    let directory = normalize_directory(directory)
        .map_or_else(|_| directory.to_owned(), |path| path.display().to_string());
    format!("{host}:{directory}")
}

/// A damaged file is an empty memory.
fn read(file: &mut File) -> Outcomes {
    let mut text = String::new();
    let _ = file.take(LARGEST).read_to_string(&mut text);
    serde_json::from_str(&text).unwrap_or_default()
}

fn write(file: &mut File, outcomes: &Outcomes) -> std::io::Result<()> {
    let text = serde_json::to_vec(outcomes)?;
    file.set_len(0)?;
    file.seek(SeekFrom::Start(0))?;
    file.write_all(&text)
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
        memory().begin("h", "/d/").settle(Err(error.clone()));
        assert_eq!(memory().recall("h", "/d"), Some(Outcome::Failed { error }));
        assert_eq!(memory().recall("h", "/e"), None);
        drop(memory().begin("h", "/d"));
        assert!(
            matches!(memory().recall("h", "/d"), Some(Outcome::Failed { error }) if error.kind == Kind::Canceled)
        );
        memory().begin("h", "/d").settle(Ok(()));
        assert_eq!(memory().recall("h", "/d"), Some(Outcome::Succeeded));
        let file = directory.join(".s.PGSQL.7.recovery.json");
        std::fs::write(&file, "{").expect("write");
        assert_eq!(memory().recall("h", "/d"), None);
        std::fs::remove_file(&file).expect("remove");
        std::os::unix::fs::symlink("/etc/passwd", &file).expect("link");
        assert_eq!(memory().recall("h", "/d"), None, "a link is not followed");
        std::fs::remove_dir_all(&directory).expect("clean");
    }
}
