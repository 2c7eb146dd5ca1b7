//! The small file beside the server's socket: replaced as a whole, so readers need no lock.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Result, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, OFlags, flock};

use super::Outcomes;

/// Largest file, bytes; the oldest entries go first.
const LARGEST: usize = 1 << 20;

/// How often a lock is tried that another session holds.
const TRY: Duration = Duration::from_millis(10);

/// It lies where the server's socket is: PostgreSQL itself keeps there what belongs to one server and not into its data
/// directory.
pub(super) struct OutcomesFile {
    path: PathBuf,
}

impl OutcomesFile {
    /// In the first directory of `unix_socket_directories` that is one.
    pub(super) fn beside_socket(unix_socket_directories: &str, port: u16) -> Option<Self> {
        let directory = unix_socket_directories
            .split(',')
            .map(|directory| directory.trim().trim_matches('"'))
            .find(|directory| directory.starts_with('/'))?;
        Some(Self { path: Path::new(directory).join(format!(".s.PGSQL.{port}.recovery.json")) })
    }

    /// What it holds; a damaged one holds nothing. `None` if there is none, or it is not ours (the socket directory
    /// may be /tmp).
    pub(super) fn read(&self) -> Option<Outcomes> {
        let mut text = String::new();
        let file = open_ours(&self.path, OpenOptions::new().read(true)).ok()?;
        let _ = file.take(LARGEST as u64).read_to_string(&mut text);
        Some(serde_json::from_str(&text).unwrap_or_default())
    }

    /// Changes it, waiting at most so long for other sessions that do, and not at all once `is_ending`.
    pub(super) fn change(
        &self,
        patience: Duration,
        is_ending: fn() -> bool,
        unwritten: Unwritten,
        change: impl FnOnce(&mut Outcomes),
    ) -> Result<()> {
        let writing = || OpenOptions::new().write(true).create(true).mode(0o600).clone();
        let lock = open_ours(&self.path.with_extension("lock"), &writing())?;
        let deadline = Instant::now() + patience;
        while let Err(error) = flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            if Instant::now() >= deadline || is_ending() {
                return Err(error.into());
            }
            std::thread::sleep(TRY);
        }
        let mut outcomes = self.read().unwrap_or_default();
        change(&mut outcomes);
        let mut text = serde_json::to_vec(&outcomes)?;
        while text.len() > LARGEST {
            outcomes.forget_one();
            text = serde_json::to_vec(&outcomes)?;
        }
        // a new one: nothing that is there already is written to
        let new = self.path.with_extension("new");
        let _ = std::fs::remove_file(&new);
        let replaced = open_ours(&new, writing().create_new(true))
            .and_then(|mut file| file.write_all(&text))
            .and_then(|()| std::fs::rename(&new, &self.path));
        if replaced.is_err() {
            let _ = std::fs::remove_file(&new);
            if matches!(unwritten, Unwritten::Removes) && self.read().is_some() {
                let _ = std::fs::remove_file(&self.path);
            }
        }
        replaced
    }
}

/// What a change that cannot be written makes of the file as it was.
#[derive(Debug, Clone, Copy)]
pub(super) enum Unwritten {
    Keeps,
    /// Better no file than what is true no longer.
    Removes,
}

/// Opens a file that no other user can have put there or may write to.
fn open_ours(path: &Path, options: &OpenOptions) -> Result<File> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits();
    let file = options.clone().custom_flags(flags.cast_signed()).open(path)?;
    let metadata = file.metadata()?;
    let is_ours = metadata.is_file()
        && metadata.uid() == rustix::process::geteuid().as_raw()
        && metadata.nlink() == 1
        && metadata.mode() & 0o022 == 0;
    if is_ours { Ok(file) } else { Err(ErrorKind::PermissionDenied.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_holds_the_lock_is_not_waited_for_long() {
        let directory = std::env::temp_dir().join(format!("pgpool_recovery_lock_{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("make");
        let file =
            OutcomesFile::beside_socket(&format!("relative, {}", directory.display()), 7).expect("a place");
        file.change(Duration::ZERO, || false, Unwritten::Keeps, |_| ()).expect("nobody has it");
        let holder = File::open(directory.join(".s.PGSQL.7.recovery.lock")).expect("the lock");
        flock(&holder, FlockOperation::LockExclusive).expect("nobody has it");
        let start = Instant::now();
        assert!(file.change(Duration::from_millis(50), || false, Unwritten::Removes, |_| ()).is_err());
        assert!(file.change(Duration::from_secs(60), || true, Unwritten::Removes, |_| ()).is_err());
        assert!(file.read().is_some(), "it needs no lock to be read, but to be removed");
        assert!(start.elapsed() < Duration::from_secs(30));
        std::fs::remove_dir_all(&directory).expect("clean");
    }

    #[test]
    fn no_directory_is_no_place() {
        assert!(OutcomesFile::beside_socket("", 7).is_none());
        assert!(OutcomesFile::beside_socket("@abstract", 7).is_none());
    }
}
