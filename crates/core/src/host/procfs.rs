//! What /proc tells about processes. "Could not be read" is told from "is gone": only the latter is an answer.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::error::{Error, Kind, Result};
use crate::sys::small_file;

/// By how much the start of a process may seem to differ from what postmaster.pid says, seconds.
const CLOCKS: u64 = 10;

/// In what /proc counts time, whatever the kernel's own clock is (asm-generic/param.h).
const USER_HZ: u64 = 100;

/// A mounted /proc.
pub(crate) struct Proc {
    root: PathBuf,
}

/// What everybody may read about a process.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Process {
    /// The name of its program, cut to 15 bytes.
    pub(crate) name: String,
    /// The first word of its command line: the program as it was called, or the title that a server's process gives itself.
    pub(crate) title: String,
    /// Its effective user.
    pub(crate) user: u32,
    /// The process that started it, or inherited it.
    pub(crate) parent: u32,
}

impl Process {
    /// "postmaster" is the program's older name. A program that is wrapped has another one (".postgres-wrapped"), but is called by
    /// that of its wrapper.
    pub(crate) fn is_server(&self) -> bool {
        let called = self.title.rsplit('/').next().unwrap_or_default();
        [self.name.as_str(), called].iter().any(|name| matches!(*name, "postgres" | "postmaster"))
            || self.title.starts_with("postgres: ")
    }
}

/// Whether an error says that a process is not there any more.
pub(crate) fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || Errno::from_io_error(error) == Some(Errno::SRCH)
}

impl Proc {
    /// This host's.
    pub(crate) fn here() -> Self {
        Self { root: "/proc".into() }
    }

    /// One that lies elsewhere, for tests.
    #[cfg(test)]
    pub(crate) fn at(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// `cwd`, `fd` and the like of a process.
    pub(crate) fn of(&self, process: u32, what: &str) -> PathBuf {
        self.root.join(process.to_string()).join(what)
    }

    /// All processes. An error where this is not the /proc of the system that we run in: it would show others, or none.
    pub(crate) fn processes(&self) -> Result<Vec<u32>> {
        let own = self.root.join("self");
        let shown = fs::read_link(&own).map_err(Error::on_path("read", &own))?;
        if shown.to_str().and_then(|id| id.parse().ok()) != Some(std::process::id()) {
            return Err(Error::new(
                Kind::Io,
                format!("\"{}\" does not show the processes of this system", self.root.display()),
            )
            .detail("It belongs to another process namespace.")
            .hint("Mount /proc where the receiver runs."));
        }
        let failed = |error| Error::at("list", &self.root, &error);
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.root).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            found.extend(name.to_str().and_then(|name| name.parse::<u32>().ok()));
        }
        Ok(found)
    }

    /// `None`: there is no such process, or it has ended and only waits to be reaped.
    pub(crate) fn look(&self, process: u32) -> io::Result<Option<Process>> {
        let text = match fs::read(self.of(process, "status")) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) if is_gone(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        let field = |name: &str| {
            text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
        };
        let number = |text: Option<&str>| text.and_then(|text| text.parse().ok());
        // what such a process was allowed to do hides its directory as if it still had one
        if field("State").is_some_and(|state| state.starts_with(['Z', 'X'])) {
            return Ok(None);
        }
        let (name, user, parent) = (
            field("Name"),
            // real, effective, saved, file system
            number(field("Uid").and_then(|ids| ids.split_whitespace().nth(1))),
            number(field("PPid")),
        );
        match (name, user, parent) {
            (Some(name), Some(user), Some(parent)) => {
                let title = self.title(process)?;
                Ok(Some(Process { name: name.to_owned(), title, user, parent }))
            }
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "it lacks Name, Uid or PPid")),
        }
    }

    /// The first word of a process's command line; empty if it has none any more.
    fn title(&self, process: u32) -> io::Result<String> {
        match fs::read(self.of(process, "cmdline")) {
            Ok(line) => {
                let first = line.split(|byte| *byte == 0).next().unwrap_or_default();
                Ok(String::from_utf8_lossy(first).into_owned())
            }
            Err(error) if is_gone(&error) => Ok(String::new()),
            Err(error) => Err(error),
        }
    }

    /// When a process started, seconds since 1970.
    pub(crate) fn started(&self, process: u32) -> Option<u64> {
        let stat = fs::read_to_string(self.of(process, "stat")).ok()?;
        // the name, in parentheses, may hold blanks and parentheses; the 22nd field is the start in ticks since boot
        let ticks: u64 = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()?;
        let boot = fs::read_to_string(self.root.join("stat")).ok()?;
        let boot: u64 = boot.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
        Some(boot + ticks / USER_HZ)
    }

    /// The directory that a server's command line names. Absolute, or not at all.
    pub(crate) fn directory_argument(&self, process: u32) -> Option<PathBuf> {
        let line = fs::read(self.of(process, "cmdline")).ok()?;
        let words: Vec<&str> =
            line.split(|byte| *byte == 0).map(str::from_utf8).collect::<Result<_, _>>().ok()?;
        let position = words.iter().position(|word| word.starts_with("-D"))?;
        let directory = match words[position].strip_prefix("-D") {
            Some("") => words.get(position + 1).copied()?,
            directory => directory?,
        };
        Path::new(directory).is_absolute().then(|| directory.into())
    }

    /// Whether a server's postmaster.pid is about this very process, not about an earlier one with its number.
    pub(crate) fn is_named_by(&self, file: &PidFile, process: u32) -> bool {
        let agree =
            |started: u64| self.started(process).is_some_and(|process| process.abs_diff(started) <= CLOCKS);
        file.process == process && file.started.is_some_and(agree)
    }
}

/// postmaster.pid (src/include/utils/pidfile.h).
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct PidFile {
    /// The postmaster, or a standalone backend.
    pub(crate) process: u32,
    /// When it started, seconds since 1970.
    pub(crate) started: Option<u64>,
    /// The port, if it listens.
    pub(crate) port: Option<u16>,
    /// Its first socket directory, if it has one.
    pub(crate) socket_directory: Option<String>,
    /// The first address that it listens on, as `listen_addresses` has it.
    pub(crate) listen_address: Option<String>,
    /// `ready`, `standby`, `starting`, `stopping`.
    pub(crate) status: Option<String>,
}

impl PidFile {
    /// That of a data directory; `None` if there is none, or no process in it.
    pub(crate) fn read(data_directory: &Path) -> io::Result<Option<Self>> {
        let Some(text) = small_file::read(&data_directory.join("postmaster.pid"), 1 << 16)? else {
            return Ok(None);
        };
        let text = String::from_utf8_lossy(&text);
        let line = |number: usize| text.lines().nth(number).map(str::trim);
        let filled = |number| line(number).filter(|line| !line.is_empty()).map(str::to_owned);
        // negative: a standalone backend
        let process = line(0).and_then(|line| line.trim_start_matches('-').parse().ok());
        Ok(process.filter(|process| *process > 0).map(|process| Self {
            process,
            started: line(2).and_then(|line| line.parse().ok()),
            port: line(3).and_then(|line| line.parse().ok()),
            socket_directory: filled(4),
            listen_address: filled(5),
            status: line(7).map(str::to_owned),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_known() {
        let (proc, own) = (Proc::here(), std::process::id());
        assert!(proc.processes().expect("list").contains(&own));
        let process = proc.look(own).expect("read").expect("alive");
        assert_eq!(process.user, rustix::process::geteuid().as_raw());
        assert_eq!(process.parent, std::os::unix::process::parent_id());
        assert!(!process.is_server());
        let now = crate::sys::clock::now() / 1000;
        let started = proc.started(own).expect("known");
        assert!(started <= now + CLOCKS && now - started < 24 * 3600, "{started} {now}");
        let file = |process, started| PidFile { process, started, ..PidFile::default() };
        assert!(proc.is_named_by(&file(own, Some(started)), own));
        for other in [file(own, Some(started - 3600)), file(own, None), file(1, Some(started))] {
            assert!(!proc.is_named_by(&other, own), "{other:?}");
        }
    }

    #[test]
    fn a_server_is_known_by_its_program_or_by_its_title() {
        let is = |name: &str, title: &str| {
            Process { name: name.to_owned(), title: title.to_owned(), user: 0, parent: 1 }.is_server()
        };
        assert!(is("postgres", "/usr/lib/postgresql/15/bin/postgres") && is("postmaster", ""));
        assert!(is(".postgres-wrapp", "/nix/store/x/bin/postgres"));
        assert!(is(".postgres-wrapp", "postgres: main: walwriter "));
        assert!(
            !is("bash", "/srv/postgres/run.sh")
                && !is("psql", "psql")
                && !is("pgpool-recovery", "postgres-agent")
        );
    }

    #[test]
    fn a_process_that_only_waits_to_be_reaped_is_gone() {
        let mut child = std::process::Command::new("/bin/true").spawn().expect("spawn");
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while Proc::here().look(child.id()).expect("read").is_some() {
            assert!(std::time::Instant::now() < deadline, "it has ended");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        assert!(Path::new(&format!("/proc/{}", child.id())).exists(), "it was not reaped");
        child.wait().expect("reap");
    }

    #[test]
    fn a_foreign_proc_is_no_answer() {
        let empty = tempfile::tempdir().expect("temporary directory");
        let proc = Proc::at(empty.path());
        assert!(proc.processes().is_err(), "not mounted");
        std::os::unix::fs::symlink("1", empty.path().join("self")).expect("link");
        let error = proc.processes().expect_err("of another namespace");
        assert!(error.message.contains("does not show"), "{error}");
    }

    #[test]
    fn command_lines_name_a_directory_or_none() {
        let root = tempfile::tempdir().expect("temporary directory");
        let proc = Proc::at(root.path());
        fs::create_dir(root.path().join("7")).expect("make");
        for (line, directory) in [
            ("postgres\0-D\0/srv/a\0-c\0x=y\0", Some("/srv/a")),
            ("/usr/bin/postgres\0-D/srv/b\0", Some("/srv/b")),
            ("postgres\0-D\0data\0", None),
            ("postgres\0-D", None),
            ("postgres: checkpointer \0\0", None),
        ] {
            fs::write(proc.of(7, "cmdline"), line).expect("write");
            assert_eq!(proc.directory_argument(7).as_deref(), directory.map(Path::new), "{line:?}");
        }
    }

    #[test]
    fn what_a_pid_file_says() {
        let data = tempfile::tempdir().expect("temporary directory");
        assert_eq!(PidFile::read(data.path()).expect("none"), None);
        for (text, process) in
            [("", None), ("x", None), ("0\n", None), ("-17\n", Some(17)), ("4294967296", None)]
        {
            fs::write(data.path().join("postmaster.pid"), text).expect("write");
            let found = PidFile::read(data.path()).expect("read").map(|file| file.process);
            assert_eq!(found, process, "{text:?}");
        }
        fs::write(data.path().join("postmaster.pid"), "1\n2\n3\n4\n5\n6\n7\nready   \n").expect("write");
        let file = PidFile {
            process: 1,
            started: Some(3),
            port: Some(4),
            socket_directory: Some("5".to_owned()),
            listen_address: Some("6".to_owned()),
            status: Some("ready".to_owned()),
        };
        assert_eq!(PidFile::read(data.path()).expect("read"), Some(file));
    }
}
