//! Is a server running on a data directory?
//!
//! postmaster.pid alone does not tell: it is left behind by kill -9 and a reboot, and its process id
//! may belong to another process by now. What does tell is a process that works in the directory: every
//! process of a server has its data directory as its current directory.
//!
//! The kernel does not show that directory to everybody: a program with file capabilities, one that its user may
//! not read, or a security module hides it. A server that might be this one is then no "none" but an error.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};

use super::procfs::{PidFile, Proc, is_gone};
use crate::error::{Error, Kind, Result};
use crate::sys::FileId;

/// How long children may take to notice that their postmaster was killed.
const LINGER: Duration = Duration::from_secs(3);

/// The process that serves `data_directory`: the postmaster, or any other process of a server.
/// Waits a moment for the last children of a killed postmaster to leave.
pub(crate) fn server(data_directory: &Path) -> Result<Option<u32>> {
    server_at(data_directory, data_directory)
}

/// The same of a directory that is looked at by another path than it is shown by.
pub(crate) fn server_at(data_directory: &Path, shown: &Path) -> Result<Option<u32>> {
    let deadline = Instant::now() + LINGER;
    loop {
        let found = find_at(data_directory, shown);
        let is_certain = match &found {
            Ok(None) => true,
            Ok(Some(process)) => postmaster_pid(data_directory) == Some(*process),
            Err(_) => false,
        };
        if is_certain || Instant::now() >= deadline {
            return found;
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// The refusal of a directory that a server runs on.
pub(crate) fn refusal(data_directory: &Path, process: u32) -> Error {
    Error::new(Kind::InUse, format!("a server is running in \"{}\"", data_directory.display()))
        .detail(format!("Process {process} works in the directory."))
        .hint("Stop it first, for instance with \"pg_ctl stop\"; a running server is never replaced.")
}

/// The first line of postmaster.pid.
pub(crate) fn postmaster_pid(data_directory: &Path) -> Option<u32> {
    PidFile::read(data_directory).ok().flatten().map(|file| file.process)
}

/// The last line of postmaster.pid: `ready`, `standby`, `starting`, `stopping`
/// (src/include/utils/pidfile.h).
pub(crate) fn postmaster_status(data_directory: &Path) -> Option<String> {
    PidFile::read(data_directory).ok().flatten()?.status
}

/// Has the postmaster read its configuration again, and its children, too.
pub(crate) fn reload(postmaster: u32) -> Result<()> {
    let process = i32::try_from(postmaster).ok().and_then(Pid::from_raw);
    let process = process.ok_or_else(|| Error::new(Kind::Internal, "a process id that is none"))?;
    kill_process(process, Signal::HUP).map_err(Error::on("signal the server"))
}

/// Whether a server refused to start because of a lock file whose process has ended but was not
/// reaped yet: PostgreSQL takes a zombie for a running server. It lasts until the zombie's parent, often
/// a container's process 1, looks after it.
pub(crate) fn zombie_holds_lock(log: &str) -> bool {
    log.contains("lock file")
        && log.split("PID ").skip(1).any(|text| {
            let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
            fs::read_to_string(format!("/proc/{digits}/stat")).is_ok_and(|stat| {
                stat.rsplit(')').next().is_some_and(|state| state.trim_start().starts_with('Z'))
            })
        })
}

/// [`server`] without waiting.
pub(crate) fn find(data_directory: &Path) -> Result<Option<u32>> {
    find_at(data_directory, data_directory)
}

/// [`server_at`] without waiting.
pub(crate) fn find_at(data_directory: &Path, shown: &Path) -> Result<Option<u32>> {
    search(&Proc::here(), data_directory, shown)
}

fn search(proc: &Proc, data_directory: &Path, shown: &Path) -> Result<Option<u32>> {
    let wanted = match fs::metadata(data_directory) {
        Ok(wanted) => wanted,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unknown(shown, &shown.display().to_string(), &error)),
    };
    let file = PidFile::read(data_directory)
        .map_err(|error| unknown(shown, &shown.join("postmaster.pid").display().to_string(), &error))?;
    let search = Search { proc, wanted: FileId::from(&wanted), owner: wanted.uid(), file };
    if let Some(process) = search.file.as_ref().map(|file| file.process) {
        match search.named(process) {
            Verdict::Serves => return Ok(Some(process)),
            Verdict::Unknown(what, error) => return Err(unknown_process(shown, process, &what, &error)),
            Verdict::Other => {}
        }
    }
    let mut doubt = None;
    for process in proc.processes().map_err(|error| cannot_tell(shown, error.message))? {
        match search.judge(process) {
            Verdict::Serves => return Ok(Some(process)),
            Verdict::Unknown(what, error) => {
                doubt.get_or_insert_with(|| unknown_process(shown, process, &what, &error));
            }
            Verdict::Other => {}
        }
    }
    doubt.map_or(Ok(None), Err)
}

/// One look for the server of one directory.
struct Search<'a> {
    proc: &'a Proc,
    /// What directory that is.
    wanted: FileId,
    /// The directory's user: a server starts in no other's.
    owner: u32,
    file: Option<PidFile>,
}

/// What one process is to the directory.
enum Verdict {
    /// A process of its server.
    Serves,
    /// Something else, or gone.
    Other,
    /// This could not be read, and might have told that it is a server's.
    Unknown(String, io::Error),
}

impl Search<'_> {
    /// Judges the process that postmaster.pid names: it may be hidden from /proc altogether.
    fn named(&self, process: u32) -> Verdict {
        let verdict = self.judge(process);
        let place = self.proc.of(process, "");
        let is_hidden = |place: &Path| fs::metadata(place).is_err_and(|error| is_gone(&error));
        // Looked at twice: a process may end in between. A signal is refused by another user's process only, which
        // serves no directory of ours.
        if matches!(verdict, Verdict::Other) && is_hidden(&place) && is_alive(process) && is_hidden(&place) {
            let error =
                io::Error::new(io::ErrorKind::NotFound, "the process runs, but /proc does not show it");
            return Verdict::Unknown(place.display().to_string(), error);
        }
        verdict
    }

    fn judge(&self, process: u32) -> Verdict {
        let at = |what: &str| self.proc.of(process, what);
        let unknown = |what: &str, error| Verdict::Unknown(at(what).display().to_string(), error);
        let is_named = self.file.as_ref().is_some_and(|file| file.process == process);
        let hidden = match fs::metadata(at("cwd")) {
            Ok(cwd) if FileId::from(&cwd) != self.wanted => return Verdict::Other,
            Ok(_) if is_named => return Verdict::Serves,
            // a shell that happens to stand there is no server
            Ok(_) => {
                return match self.proc.look(process) {
                    Ok(Some(found)) if found.is_server() => Verdict::Serves,
                    Ok(_) => Verdict::Other,
                    Err(error) => unknown("status", error),
                };
            }
            Err(error) if is_gone(&error) => return Verdict::Other,
            Err(error) => error,
        };
        let found = match self.proc.look(process) {
            Ok(Some(found)) => found,
            Ok(None) => return Verdict::Other,
            // even its user is hidden; that of its directory in /proc is not
            Err(error) => {
                return match fs::metadata(at("")) {
                    Ok(place) if place.uid() != self.owner => Verdict::Other,
                    Err(error) if is_gone(&error) => Verdict::Other,
                    _ => unknown("status", error),
                };
            }
        };
        let is_of_file = self.file.as_ref().is_some_and(|file| self.proc.is_named_by(file, process));
        if found.user != self.owner {
            Verdict::Other
        } else if is_of_file {
            Verdict::Serves
        } else if !found.is_server() || self.serves_another(process, found.parent) {
            Verdict::Other
        } else {
            unknown("cwd", hidden)
        }
    }

    /// Whether a server that hides its directory is known to work in another one: see [`hidden_directory`].
    fn serves_another(&self, process: u32, parent: u32) -> bool {
        hidden_directory(self.proc, process, parent).is_some_and(|directory| {
            fs::metadata(directory).is_ok_and(|found| FileId::from(&found) != self.wanted)
        })
    }
}

/// The data directory of a server that hides its current one, if its command line and postmaster.pid agree about it. A
/// child has no such command line, but its postmaster has.
pub(crate) fn hidden_directory(proc: &Proc, process: u32, parent: u32) -> Option<PathBuf> {
    [process, parent].into_iter().find_map(|postmaster| {
        let directory = proc.directory_argument(postmaster)?;
        let file = PidFile::read(&directory).ok().flatten()?;
        proc.is_named_by(&file, postmaster).then_some(directory)
    })
}

/// Whether a process of this user has this number.
fn is_alive(process: u32) -> bool {
    let pid = i32::try_from(process).ok().and_then(Pid::from_raw);
    pid.is_some_and(|pid| test_kill_process(pid).is_ok())
}

fn cannot_tell(shown: &Path, detail: impl Into<String>) -> Error {
    let message = format!("cannot tell whether a server is running in \"{}\"", shown.display());
    Error::new(Kind::InUse, message).detail(detail).hint(
        "Stop the server if one runs there. Else let the receiver see the servers of its host: as the same OS user, \
         without file capabilities on the program \"postgres\", with a /proc that hides nothing from it.",
    )
}

fn unknown(shown: &Path, what: &str, error: &io::Error) -> Error {
    cannot_tell(shown, format!("\"{what}\" could not be read: {error}."))
}

fn unknown_process(shown: &Path, process: u32, what: &str, error: &io::Error) -> Error {
    cannot_tell(shown, format!("\"{what}\" could not be read: {error}. Process {process} may be the server."))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::unix::fs::symlink;
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// What a server is, as far as can be told: a process that works there and that postmaster.pid names.
    pub(crate) fn serve(data_directory: &Path) -> Child {
        let mut server = Command::new("sleep");
        server.arg("60").current_dir(data_directory).stdin(Stdio::null()).stdout(Stdio::null());
        let server = server.spawn().expect("spawn");
        fs::write(data_directory.join("postmaster.pid"), format!("{}\n", server.id())).expect("write");
        server
    }

    #[test]
    fn a_left_over_pid_file_is_no_server() {
        let data = tempfile::tempdir().expect("temporary directory");
        fs::write(data.path().join("postmaster.pid"), format!("{}\n", std::process::id())).expect("write");
        assert_eq!(server(data.path()), Ok(None), "this test does not work in that directory");
        assert_eq!(server(Path::new("/does/not/exist")), Ok(None));
    }

    #[test]
    fn a_zombie_is_told_from_a_living_process() {
        let mut child = std::process::Command::new("/bin/true").spawn().expect("spawn");
        let says = |pid| {
            format!("FATAL: lock file \"x\" already exists\nHINT: Is another postmaster (PID {pid}) ...?")
        };
        let deadline = Instant::now() + LINGER;
        while !zombie_holds_lock(&says(child.id())) {
            assert!(Instant::now() < deadline, "it ended, and nobody has waited for it");
            thread::sleep(Duration::from_millis(10));
        }
        assert!(!zombie_holds_lock(&says(std::process::id())));
        child.wait().expect("reap");
        assert!(!zombie_holds_lock(&says(child.id())));
    }

    /// A /proc in which this process and a few made up ones are.
    struct Table(tempfile::TempDir);

    impl Table {
        fn new() -> Self {
            let table = Self(tempfile::tempdir().expect("temporary directory"));
            symlink(std::process::id().to_string(), table.0.path().join("self")).expect("link");
            fs::write(table.0.path().join("stat"), "cpu 1 2 3\nbtime 1000\n").expect("write");
            table
        }

        fn proc(&self) -> Proc {
            Proc::at(self.0.path())
        }

        /// A process of the directory's user, started at second 1500, whose current directory is hidden.
        fn hidden(&self, process: u32, name: &str, parent: u32, line: &str) {
            let user = rustix::process::geteuid().as_raw();
            let at = |what: &str| self.proc().of(process, what);
            fs::create_dir(at("")).expect("make");
            let status = format!("Name:\t{name}\nPPid:\t{parent}\nUid:\t{user}\t{user}\t{user}\t{user}\n");
            fs::write(at("status"), status).expect("write");
            let zeros = "0 ".repeat(18);
            fs::write(at("stat"), format!("{process} ({name}) S {zeros}50000 0\n")).expect("write");
            fs::write(at("cmdline"), line).expect("write");
            // what a link that leads to itself gives is an error, and not "gone"
            symlink("cwd", at("cwd")).expect("link");
        }
    }

    fn pid_file(directory: &Path, process: u32, started: u64) {
        let text = format!("{process}\n{}\n{started}\n5432\n", directory.display());
        fs::write(directory.join("postmaster.pid"), text).expect("write");
    }

    #[test]
    fn a_hidden_server_is_running_or_cannot_be_told() {
        let (data, table) = (tempfile::tempdir().expect("temporary directory"), Table::new());
        let search = || search(&table.proc(), data.path(), Path::new("/shown"));
        assert_eq!(search(), Ok(None));
        table.hidden(4_000_001, "sshd", 1, "");
        assert_eq!(search(), Ok(None), "no server");
        table.hidden(4_000_002, "postgres", 1, "postgres\0-D\0relative\0");
        let error = search().expect_err("it may be the one");
        assert!(error.message.contains("cannot tell") && error.message.contains("\"/shown\""), "{error}");
        let detail = error.detail.expect("a detail");
        assert!(detail.contains("cwd\" could not be read") && detail.contains("4000002"), "{detail}");

        pid_file(data.path(), 4_000_002, 1502);
        assert_eq!(search(), Ok(Some(4_000_002)), "the file is about this process");
        pid_file(data.path(), 4_000_002, 900);
        assert!(search().is_err(), "the file is about an earlier one, but a server hides there");
    }

    #[test]
    fn a_server_that_is_known_to_work_elsewhere_is_not_this_one() {
        let (data, other) =
            (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("another"));
        let table = Table::new();
        let line = format!("postgres\0-D\0{}\0", other.path().display());
        table.hidden(4_000_001, "postgres", 1, &line);
        table.hidden(4_000_002, "postgres", 4_000_001, "postgres: checkpointer \0");
        let search = |directory: &Path| search(&table.proc(), directory, directory);
        assert!(search(data.path()).is_err(), "a command line alone proves nothing");
        pid_file(other.path(), 4_000_001, 1502);
        assert_eq!(search(data.path()), Ok(None));
        assert_eq!(search(other.path()), Ok(Some(4_000_001)));
        pid_file(other.path(), 4_000_001, 900);
        assert!(search(data.path()).is_err(), "the file is left over from an earlier process");
    }

    #[test]
    fn a_stale_file_is_stale_whatever_has_its_number_now() {
        let (data, table) = (tempfile::tempdir().expect("temporary directory"), Table::new());
        table.hidden(4_000_001, "gpg-agent", 1, "");
        pid_file(data.path(), 4_000_001, 900);
        assert_eq!(search(&table.proc(), data.path(), data.path()), Ok(None), "no server");
        table.hidden(4_000_002, "postgres", 1, "");
        let status = "Name:\tpostgres\nPPid:\t1\nUid:\t99\t99\t99\t99\n";
        fs::write(table.proc().of(4_000_002, "status"), status).expect("write");
        pid_file(data.path(), 4_000_002, 1500);
        assert_eq!(search(&table.proc(), data.path(), data.path()), Ok(None), "another user's");
    }

    #[test]
    fn a_named_process_that_proc_does_not_show_cannot_be_told() {
        let (data, table) = (tempfile::tempdir().expect("temporary directory"), Table::new());
        // it runs, and that /proc does not show it
        pid_file(data.path(), std::process::id(), 1500);
        let error = search(&table.proc(), data.path(), data.path()).expect_err("hidden");
        assert!(error.detail.expect("a detail").contains("/proc does not show it"));
        let mut child = std::process::Command::new("/bin/true").spawn().expect("spawn");
        child.wait().expect("reap");
        pid_file(data.path(), child.id(), 1500);
        assert_eq!(search(&table.proc(), data.path(), data.path()), Ok(None), "it is gone");
    }

    #[test]
    fn what_cannot_be_looked_at_is_no_answer() {
        let top = tempfile::tempdir().expect("temporary directory");
        symlink("loop", top.path().join("loop")).expect("link");
        assert!(find(&top.path().join("loop")).is_err(), "the directory");
        symlink("postmaster.pid", top.path().join("postmaster.pid")).expect("link");
        assert!(find(top.path()).is_err(), "the file");
        fs::remove_file(top.path().join("postmaster.pid")).expect("remove");
        let nothing = Proc::at(top.path());
        assert!(search(&nothing, top.path(), top.path()).is_err(), "/proc");
    }
}
