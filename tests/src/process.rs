//! Running programs: to their end, or beside the test until they are no longer wanted.

use std::fs::{self, File};
use std::io::{Read, Seek};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

use crate::wait;

/// What a program left behind.
#[derive(Debug)]
pub struct Finished {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Finished {
    /// The standard output; panics with everything it said if the program failed.
    #[track_caller]
    pub fn ok(self) -> String {
        assert!(self.status.success(), "{}\n{}{}", self.status, self.stdout, self.stderr);
        self.stdout
    }
}

/// Runs `command` to its end, at most a minute or so.
///
/// Output goes through files, not pipes: a server that the program starts may keep them open.
#[track_caller]
pub fn run(command: Command) -> Finished {
    run_within(command, 2 * wait::PATIENCE)
}

/// [`run`] with a limit of one's own.
#[track_caller]
pub fn run_within(mut command: Command, limit: Duration) -> Finished {
    let [mut out, mut err] = [(); 2].map(|()| memory_file().expect("a file in memory"));
    command.stdin(Stdio::null());
    command.stdout(out.try_clone().expect("a second handle"));
    command.stderr(err.try_clone().expect("a second handle"));
    let mut child = command.spawn().unwrap_or_else(|error| panic!("could not run {command:?}: {error}"));
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().expect("our own child") {
            break status;
        }
        if start.elapsed() > limit {
            let _ = child.kill();
            let _ = child.wait();
            panic!("{command:?} did not end within {limit:?}\n{}{}", text(&mut out), text(&mut err));
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    Finished { status, stdout: text(&mut out), stderr: text(&mut err) }
}

/// On a disk, each of the thousands of programs that run would take two inodes.
fn memory_file() -> rustix::io::Result<File> {
    rustix::fs::memfd_create("output", rustix::fs::MemfdFlags::CLOEXEC).map(File::from)
}

fn text(file: &mut File) -> String {
    let mut bytes = Vec::new();
    file.rewind().expect("a file");
    file.read_to_end(&mut bytes).expect("a file");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A program that runs beside the test, in a process group of its own; killed and reaped on drop.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    ended: Option<ExitStatus>,
    log: PathBuf,
    polite: Signal,
}

impl Daemon {
    /// Starts `command` with its output appended to `log`. `polite` is the signal that ends it orderly.
    pub fn spawn(mut command: Command, log: &Path, polite: Signal) -> Self {
        let output = File::options().create(true).append(true).open(log).expect("a log file");
        command.stdin(Stdio::null());
        command.stdout(output.try_clone().expect("a second handle"));
        command.stderr(output);
        command.process_group(0);
        let child = command.spawn().unwrap_or_else(|error| panic!("could not start {command:?}: {error}"));
        Self { child, ended: None, log: log.to_owned(), polite }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Its exit status, once it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().expect("our own child");
        }
        self.ended
    }

    /// Sends `signal` to the program alone.
    pub fn signal(&mut self, signal: Signal) {
        if self.ended().is_none() {
            // Not reaped yet, so the number still means this process.
            let _ = rustix::process::kill_process(pid(self.child.id()), signal);
        }
    }

    /// Asks it to end and waits.
    pub fn stop(&mut self) -> ExitStatus {
        self.signal(self.polite);
        wait::until(&format!("the end of {}", self.log.display()), wait::PATIENCE, || self.ended())
    }

    /// kill -9 of the whole process group, as a power cut would have it.
    pub fn kill(&mut self) -> ExitStatus {
        if self.ended().is_none() {
            let _ = rustix::process::kill_process_group(pid(self.child.id()), Signal::KILL);
        }
        let status = self.child.wait().expect("our own child");
        self.ended = Some(status);
        status
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- {} ---\n{}", self.log.display(), tail(&self.log(), 60));
        }
        if self.ended().is_some() {
            return;
        }
        self.signal(self.polite);
        let start = Instant::now();
        while self.ended().is_none() && start.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(20));
        }
        if self.ended().is_none() {
            self.kill();
        }
    }
}

/// A process id as the system calls want it.
pub fn pid(number: u32) -> Pid {
    Pid::from_raw(number.try_into().expect("a process id")).expect("not 0")
}

/// Whether a process with this id runs (a zombie does not).
pub fn is_alive(number: u32) -> bool {
    fs::read_to_string(format!("/proc/{number}/stat")).is_ok_and(|stat| {
        stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z') && !rest.starts_with('X'))
    })
}

/// From now on this process inherits the orphans below it, as an init would: pg_ctl leaves a server
/// behind as an orphan, and where the real init reaps late or never, a killed server stays a zombie,
/// which PostgreSQL takes for a running one.
pub fn adopt_orphans() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        rustix::process::set_child_subreaper(Some(pid(std::process::id()))).expect("prctl");
    });
}

/// Waits until a process is gone, reaping it if it is an adopted child.
pub fn reap(number: u32) {
    wait::until_true(&format!("the end of process {number}"), wait::PATIENCE, || is_reaped(number));
}

/// Reaps a process that has ended if it is an adopted child. Whether it is gone.
pub fn is_reaped(number: u32) -> bool {
    let options = rustix::process::WaitOptions::NOHANG;
    let _ = rustix::process::waitpid(Some(pid(number)), options);
    !Path::new(&format!("/proc/{number}")).exists()
}

/// The ids of the direct children of a process.
pub fn children(parent: u32) -> Vec<u32> {
    let path = format!("/proc/{parent}/task/{parent}/children");
    let list = fs::read_to_string(path).unwrap_or_default();
    list.split_whitespace().filter_map(|id| id.parse().ok()).collect()
}

/// Memory of a process's own (`RssAnon`), in kB.
pub fn anonymous_memory(number: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{number}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// The last lines of a text.
pub fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// Whether a program was ended by this signal.
pub fn ended_by(status: ExitStatus, signal: Signal) -> bool {
    status.signal() == Some(signal.as_raw())
}
