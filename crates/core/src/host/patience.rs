//! How long a start may take: counted from the last sign that the server makes progress.

use std::collections::HashSet;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use pgdata::control_file::{PG_CONTROL, PG_CONTROL_FILE_SIZE};

use super::starting::Tell;
use super::{running, walreceiver};
use crate::sys::small_file;

/// How often signs are looked for.
const LOOK: Duration = Duration::from_millis(200);

/// A deadline that moves with the server.
///
/// A sign counts when it was never seen before: the status in postmaster.pid, the segment that the startup process
/// names in its title, a file that it works on (it syncs all of them, millions perhaps, before it replays), the content
/// of pg_control. A server that waits for WAL in vain goes through the same titles and files again and again, which
/// is no progress.
pub(crate) struct Patience<'a> {
    directory: PathBuf,
    timeout: Duration,
    deadline: Instant,
    next_look: Instant,
    seen: HashSet<u64>,
    /// The first startup process that was seen. One that is started again and again goes through new files each time.
    startup: Option<u32>,
    /// Who is told how far the server is.
    tell: Option<Tell<'a>>,
}

impl<'a> Patience<'a> {
    pub(crate) fn new(directory: &Path, timeout: Duration) -> Self {
        let now = Instant::now();
        let mut patience = Self {
            directory: directory.to_owned(),
            timeout,
            deadline: now + timeout,
            next_look: now + LOOK,
            seen: HashSet::new(),
            startup: None,
            tell: None,
        };
        // what an earlier server left is no progress
        patience.sees_new();
        patience
    }

    /// Reports how far the server is while it is waited for.
    pub(crate) fn telling(self, tell: Option<Tell<'a>>) -> Self {
        Self { tell, ..self }
    }

    /// Whether nothing has moved for the whole time. Asked again and again, it also tells how far the server is.
    pub(crate) fn is_over(&mut self) -> bool {
        if let Some(tell) = &mut self.tell {
            tell.look(&self.directory);
        }
        let now = Instant::now();
        if now >= self.next_look {
            self.next_look = now + LOOK;
            if self.sees_new() {
                self.deadline = now + self.timeout;
            }
        }
        now >= self.deadline
    }

    fn sees_new(&mut self) -> bool {
        let status = running::postmaster_status(&self.directory);
        let startup = walreceiver::startup(&self.directory);
        let control = small_file::head(&self.directory.join(PG_CONTROL), PG_CONTROL_FILE_SIZE);
        let mut signs =
            vec![hash(("status", status)), hash(("startup", startup)), hash(("control", control))];
        if let Some((process, files)) = walreceiver::startup_files(&self.directory)
            && *self.startup.get_or_insert(process) == process
        {
            signs.extend(files.iter().map(|file| hash(("file", file))));
        }
        // all of them, not only up to the first new one
        signs.into_iter().filter(|sign| self.seen.insert(*sign)).count() > 0
    }
}

fn hash(sign: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    sign.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn only_what_is_new_counts() {
        let data = tempfile::tempdir().expect("temporary directory");
        let status = |word: &str| {
            fs::write(data.path().join("postmaster.pid"), format!("1\n2\n3\n4\n5\n6\n7\n{word}\n"))
                .expect("write");
        };
        status("starting");
        let mut patience = Patience::new(data.path(), Duration::ZERO);
        assert!(!patience.sees_new());
        status("standby");
        assert!(patience.sees_new());
        status("starting");
        assert!(!patience.sees_new(), "back again");
        fs::create_dir(data.path().join("global")).expect("make");
        for content in ["a", "b"] {
            fs::write(data.path().join(PG_CONTROL), content).expect("write");
            assert!(patience.sees_new(), "{content}");
            assert!(!patience.sees_new());
        }
        assert!(patience.is_over());
    }

    #[test]
    fn a_startup_process_that_goes_through_its_files_comes_forward() {
        use crate::host::walreceiver::tests::{Starting, await_file};
        let data = tempfile::tempdir().expect("temporary directory");
        let place = data.path().canonicalize().expect("real path");
        let server = Starting::new(&place);
        await_file(&place, "one");
        let mut patience = Patience::new(&place, Duration::ZERO);
        while patience.sees_new() {}
        fs::write(place.join("next"), "").expect("write");
        await_file(&place, "two");
        assert!(patience.sees_new(), "another file");
        assert!(!patience.sees_new(), "the same");
        // one that is started again and again is no progress
        drop(server);
        fs::remove_file(place.join("next")).expect("remove");
        let _server = Starting::new(&place);
        await_file(&place, "one");
        while patience.sees_new() {}
        fs::rename(place.join("two"), place.join("three")).expect("rename");
        std::os::unix::fs::symlink("three", place.join("two")).expect("link");
        fs::write(place.join("next"), "").expect("write");
        await_file(&place, "three");
        assert!(!patience.sees_new(), "of another process");
    }

    #[test]
    fn progress_moves_the_deadline() {
        let data = tempfile::tempdir().expect("temporary directory");
        let mut patience = Patience::new(data.path(), Duration::from_secs(3600));
        patience.deadline = Instant::now();
        assert!(patience.is_over());
        fs::write(data.path().join("postmaster.pid"), "1\n2\n3\n4\n5\n6\n7\nready\n").expect("write");
        patience.next_look = Instant::now();
        assert!(!patience.is_over(), "it has an hour more");
    }
}
