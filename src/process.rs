//! Running a program of the operator's while the backend stays answerable.
//!
//! The program gets no shell, no standard input, none of the backend's file descriptors, and a process
//! group of its own, so that a terminal-style signal to the backend does not reach it and we can end
//! it with everything it started. What it writes goes to the server log line by line, and the last of
//! it into the error.

use std::collections::VecDeque;
use std::io::{self, PipeReader, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use pgpool_recovery_core::error::{Error, Kind, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, getpid, kill_process_group, set_child_subreaper, waitid,
};

use crate::pg::interrupts::{self, ClientWatch};
use crate::pg::{horizon, log, postmaster};

/// How much of the output an error repeats, in bytes.
const TAIL: usize = 8192;

/// Longest line written to the server log, in bytes; longer ones are broken.
const MAX_LINE: usize = 4096;

/// How long a program has to clean up between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(1);

/// Sleep between two looks at interrupts.
const TURN: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

/// Variables of the postmaster's environment that are not meant for programs it runs.
const PRIVATE_ENVIRONMENT: [&str; 8] = [
    "PG_GRANDPARENT_PID",
    "PG_OOM_ADJUST_FILE",
    "PG_OOM_ADJUST_VALUE",
    "NOTIFY_SOCKET",
    "LISTEN_FDS",
    "LISTEN_PID",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
];

/// Runs `command` to its end; `name` is what messages call it. A cancel, a termination, a timeout or a
/// client that goes away kills it.
pub(crate) fn run(name: &str, mut command: Command) -> Result<()> {
    let (output, input) = io::pipe().map_err(Error::on("make a pipe"))?;
    let errors = input.try_clone().map_err(Error::on("duplicate a pipe"))?;
    isolate(&mut command);
    command.stdout(input).stderr(errors);
    let mut group = Group::spawn(name, command)?;
    let mut output = Output::new(name, output)?;

    let _let_go = horizon::let_go();
    let mut client = ClientWatch::new();
    let status = loop {
        output.wait_and_read()?;
        if let Some(status) = group.finished()? {
            break status;
        }
        if interrupts::terminating() {
            // The next check does not return, and runs no destructor.
            group.kill();
        }
        interrupts::check();
        client.check()?;
    };
    // What it wrote is in the pipe. Something it left running in the background may hold the pipe open,
    // so there is no waiting for its end.
    output.read_available()?;
    let tail = output.finish();
    if status.success() { Ok(()) } else { Err(failed(name, status, &tail)) }
}

/// Starts `command` and leaves it alone: no output, no waiting. It outlives the session.
pub(crate) fn detach(name: &str, mut command: Command) -> Result<()> {
    isolate(&mut command);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let child = command.spawn().map_err(|error| not_started(name, &error))?;
    log::log(&format!("{name}: started as PID {}", child.id()));
    Ok(())
}

/// Cuts the ties between the program and this backend.
fn isolate(command: &mut Command) {
    // Before PostgreSQL 16 the server's own descriptors (client socket, WAL, relations) are inherited
    // across exec. A backend never execs, so marking them changes nothing for it.
    close_fds::set_fds_cloexec(3, &[]);
    command.stdin(Stdio::null()).process_group(0);
    for variable in PRIVATE_ENVIRONMENT {
        command.env_remove(variable);
    }
    if std::env::var_os("PATH").is_none() {
        command.env("PATH", "/usr/local/bin:/usr/bin:/bin");
    }
}

/// A running program and all it started; killed when dropped unless it ended by itself.
struct Group {
    child: Child,
    leader: Pid,
    ended: bool,
    _adoption: Option<Adoption>,
}

/// While it lives, orphans of the programs that this process starts become its children instead of process 1's.
struct Adoption;

impl Adoption {
    /// Where process 1 is the postmaster, which a killed orphan would have restart all sessions. Elsewhere there is an
    /// init for them.
    fn where_needed() -> Option<Self> {
        let adopts = postmaster::is_process_1() && set_child_subreaper(Some(getpid())).is_ok();
        adopts.then_some(Self)
    }
}

impl Drop for Adoption {
    fn drop(&mut self) {
        let _ = set_child_subreaper(None);
    }
}

impl Group {
    fn spawn(name: &str, mut command: Command) -> Result<Self> {
        let adoption = Adoption::where_needed();
        let child = command.spawn().map_err(|error| not_started(name, &error))?;
        // Closes our ends of the pipe: only the program holds it open for writing.
        drop(command);
        let leader = Pid::from_child(&child);
        Ok(Self { child, leader, ended: false, _adoption: adoption })
    }

    fn finished(&mut self) -> Result<Option<ExitStatus>> {
        let status = self.child.try_wait().map_err(Error::on("wait for a program"))?;
        self.ended |= status.is_some();
        Ok(status)
    }

    /// Asks the group to end, then makes it. The leader is not reaped before: as long as it is a zombie its
    /// number, the group's, cannot be given to another process.
    fn kill(&mut self) {
        if std::mem::replace(&mut self.ended, true) {
            self.reap(Duration::ZERO);
            return;
        }
        // A group that is gone already is what is wanted: results do not matter here.
        let _ = kill_process_group(self.leader, Signal::TERM);
        let deadline = Instant::now() + GRACE;
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        while Instant::now() < deadline && matches!(waitid(WaitId::Pid(self.leader), look), Ok(None)) {
            sleep(Duration::from_millis(20));
        }
        let _ = kill_process_group(self.leader, Signal::KILL);
        self.reap(GRACE);
        let _ = self.child.wait();
    }

    /// Reaps what has ended of the group and is a child of this process by now, waiting at most so long for the rest.
    fn reap(&self, time: Duration) {
        let deadline = Instant::now() + time;
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        loop {
            match waitid(WaitId::Pgid(Some(self.leader)), look) {
                Ok(Some(_)) | Err(rustix::io::Errno::INTR) => {}
                Ok(None) if Instant::now() < deadline => sleep(Duration::from_millis(5)),
                // none is left that is a child, or what is left goes on
                Ok(None) | Err(_) => return,
            }
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What the program writes.
struct Output<'a> {
    name: &'a str,
    pipe: PipeReader,
    open: bool,
    line: Vec<u8>,
    tail: VecDeque<u8>,
}

impl<'a> Output<'a> {
    fn new(name: &'a str, pipe: PipeReader) -> Result<Self> {
        let nonblocking = fcntl_getfl(&pipe).and_then(|flags| fcntl_setfl(&pipe, flags | OFlags::NONBLOCK));
        nonblocking.map_err(Error::on("make a pipe non-blocking"))?;
        Ok(Self { name, pipe, open: true, line: Vec::new(), tail: VecDeque::new() })
    }

    /// Waits one turn for output, and reads it.
    fn wait_and_read(&mut self) -> Result<()> {
        if !self.open {
            sleep(Duration::from_millis(20));
            return Ok(());
        }
        let mut fds = [PollFd::new(&self.pipe, PollFlags::IN)];
        match poll(&mut fds, Some(&TURN)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => Ok(()),
            Ok(_) => self.read_available(),
            Err(error) => Err(Error::io("wait for a program's output", &error.into())),
        }
    }

    /// Reads what is there, but no more than a bounded amount, so that a program that writes without
    /// end cannot keep interrupts away.
    fn read_available(&mut self) -> Result<()> {
        let mut buffer = [0; 8192];
        for _ in 0..64 {
            match self.pipe.read(&mut buffer) {
                Ok(0) => {
                    self.open = false;
                    break;
                }
                Ok(read) => self.take(&buffer[..read]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::io("read a program's output", &error)),
            }
        }
        Ok(())
    }

    fn take(&mut self, bytes: &[u8]) {
        self.tail.extend(bytes);
        let excess = self.tail.len().saturating_sub(TAIL);
        self.tail.drain(..excess);
        for &byte in bytes {
            if byte == b'\n' || self.line.len() == MAX_LINE {
                self.log_line();
            }
            if byte != b'\n' {
                self.line.push(byte);
            }
        }
    }

    fn log_line(&mut self) {
        let line = std::mem::take(&mut self.line);
        log::log(&format!("{}: {}", self.name, String::from_utf8_lossy(&line).trim_end()));
    }

    fn finish(mut self) -> String {
        if !self.line.is_empty() {
            self.log_line();
        }
        String::from_utf8_lossy(self.tail.make_contiguous()).trim().to_owned()
    }
}

fn not_started(name: &str, error: &io::Error) -> Error {
    let (kind, hint) = match error.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
        Some(rustix::io::Errno::NOEXEC) => (
            Kind::ScriptFailed,
            "Begin the script with a line that names its interpreter, such as \"#!/bin/bash\".",
        ),
        Some(rustix::io::Errno::ACCESS) => (
            Kind::ScriptFailed,
            "Make it executable for the server's OS user (chmod u+x), on a file system mounted without noexec.",
        ),
        Some(rustix::io::Errno::NOENT) => {
            (Kind::MissingFile, "Check the file, and the interpreter named in its first line.")
        }
        _ => (Kind::Io, "See the server log for more."),
    };
    Error::new(kind, format!("could not run {name}: {error}")).hint(hint)
}

fn failed(name: &str, status: ExitStatus, tail: &str) -> Error {
    let how = match (status.code(), status.signal()) {
        (Some(code), _) => format!("failed with exit code {code}"),
        (None, Some(signal)) => format!("was terminated by signal {signal}"),
        (None, None) => format!("failed: {status}"),
    };
    let detail =
        if tail.is_empty() { "It wrote no output.".to_owned() } else { format!("Its last output: {tail}") };
    Error::new(Kind::ScriptFailed, format!("{name} {how}"))
        .detail(detail)
        .hint("The server log has all of its output.")
}

/// Whether `path` is a file that can be run, before trying; `hint` is for one that is missing.
pub(crate) fn check_program(name: &str, path: &std::path::Path, hint: &str) -> Result<()> {
    let metadata = std::fs::metadata(path)
        .map_err(|error| Error::io(format!("find {name} (\"{}\")", path.display()), &error).hint(hint))?;
    if metadata.is_file() {
        return Ok(());
    }
    Err(Error::new(Kind::InvalidArgument, format!("{name} (\"{}\") is not a file", path.display()))
        .hint("Pass the name of an executable file."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_are_told_apart() {
        let exit = failed("script \"x\"", ExitStatus::from_raw(3 << 8), "no space");
        assert_eq!(exit.message, "script \"x\" failed with exit code 3");
        assert_eq!(exit.detail.as_deref(), Some("Its last output: no space"));
        let signal = failed("script \"x\"", ExitStatus::from_raw(9), "");
        assert_eq!(signal.message, "script \"x\" was terminated by signal 9");
        assert_eq!(signal.detail.as_deref(), Some("It wrote no output."));
    }

    #[test]
    fn a_script_that_cannot_run_says_why() {
        let error = |code| not_started("x", &io::Error::from_raw_os_error(code));
        assert!(error(libc::ENOEXEC).hint.expect("hint").contains("#!"));
        assert!(error(libc::EACCES).hint.expect("hint").contains("chmod"));
        assert_eq!(error(libc::ENOENT).kind, Kind::MissingFile);
    }
}
