//! Is a server running on a data directory?
//!
//! postmaster.pid alone does not tell: it is left behind by kill -9 and a reboot, and its process id
//! may belong to somebody else by now. What does tell is a process that works in the directory: every
//! process of a server has its data directory as its current directory.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use super::small_file;
use crate::error::{Error, Kind};

/// How long children may take to notice that their postmaster was killed.
const LINGER: Duration = Duration::from_secs(3);

/// The process that serves `data_directory`: the postmaster, or any other process of a server.
/// Waits a moment for the last children of a killed postmaster to leave.
pub fn server(data_directory: &Path) -> Option<u32> {
    let deadline = Instant::now() + LINGER;
    loop {
        let found = find(data_directory)?;
        let is_postmaster = postmaster_pid(data_directory) == Some(found);
        if is_postmaster || Instant::now() >= deadline {
            return Some(found);
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// The refusal of a directory that a server runs on.
pub fn refusal(data_directory: &Path, process: u32) -> Error {
    Error::new(Kind::InUse, format!("a server is running in \"{}\"", data_directory.display()))
        .detail(format!("Process {process} works in the directory."))
        .hint("Stop it first, for instance with \"pg_ctl stop\"; a running server is never replaced.")
}

/// The first line of postmaster.pid.
pub fn postmaster_pid(data_directory: &Path) -> Option<u32> {
    let text = small_file::text(&data_directory.join("postmaster.pid"))?;
    // negative: a standalone backend
    text.lines().next()?.trim().trim_start_matches('-').parse().ok()
}

/// The last line of postmaster.pid: `ready`, `standby`, `starting`, `stopping`
/// (src/include/utils/pidfile.h).
pub fn postmaster_status(data_directory: &Path) -> Option<String> {
    let text = small_file::text(&data_directory.join("postmaster.pid"))?;
    text.lines().nth(7).map(|line| line.trim().to_owned())
}

/// Whether a server refused to start because of a lock file whose process has ended but was not
/// reaped yet: PostgreSQL takes a zombie for a running server. It lasts until the zombie's parent, often
/// a container's process 1, looks after it.
pub fn zombie_holds_lock(log: &str) -> bool {
    log.contains("lock file")
        && log.split("PID ").skip(1).any(|text| {
            let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
            fs::read_to_string(format!("/proc/{digits}/stat")).is_ok_and(|stat| {
                stat.rsplit(')').next().is_some_and(|state| state.trim_start().starts_with('Z'))
            })
        })
}

/// The same without waiting.
pub(super) fn find(data_directory: &Path) -> Option<u32> {
    let wanted = fs::metadata(data_directory).ok()?;
    let postmaster = postmaster_pid(data_directory);
    let serves = |process: u32| {
        let at = |what: &str| format!("/proc/{process}/{what}");
        let there =
            fs::metadata(at("cwd")).is_ok_and(|cwd| (cwd.dev(), cwd.ino()) == (wanted.dev(), wanted.ino()));
        // a shell that happens to stand there is no server; "postmaster" is the program's older name
        let is_server = |name: String| matches!(name.trim_end(), "postgres" | "postmaster");
        there && (postmaster == Some(process) || fs::read_to_string(at("comm")).is_ok_and(is_server))
    };
    if let Some(process) = postmaster.filter(|&process| serves(process)) {
        return Some(process);
    }
    let processes = fs::read_dir("/proc").ok()?;
    processes
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .find(|&process| serves(process))
}

#[cfg(test)]
pub(super) mod tests {
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// What a server is, as far as can be told: a process that works there and that postmaster.pid names.
    pub(in crate::receiver) fn serve(data_directory: &Path) -> Child {
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
        assert_eq!(server(data.path()), None, "this test does not work in that directory");
        assert_eq!(server(Path::new("/does/not/exist")), None);
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

    #[test]
    fn status_is_the_eighth_line() {
        let data = tempfile::tempdir().expect("temporary directory");
        fs::write(data.path().join("postmaster.pid"), "1\n2\n3\n4\n5\n6\n7\nready   \n").expect("write");
        assert_eq!(postmaster_status(data.path()).as_deref(), Some("ready"));
    }
}
