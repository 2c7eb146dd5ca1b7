//! Running a program of PostgreSQL's without a shell, without leaking anything into it.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::cancel::Cancel;
use crate::error::{Error, Kind, Result};

/// The variables a child inherits. Others could redirect it: PGDATA, PGPORT, PGOPTIONS, LD_PRELOAD.
const INHERITED: &[&str] = &["PATH", "HOME", "LANG", "LANGUAGE", "TZ", "USER", "LOGNAME"];

/// Most of a program's output that is kept, bytes: its end.
const OUTPUT: u64 = 8 << 10;

/// How a program ended.
#[derive(Debug)]
pub struct Outcome {
    /// Its exit status.
    pub status: ExitStatus,
    /// The end of what it wrote to both of its outputs.
    pub output: String,
}

impl Outcome {
    /// "exited with code 1" or "was killed by signal 9".
    pub fn describe(&self) -> String {
        match (self.status.code(), self.status.signal()) {
            (Some(code), _) => format!("exited with code {code}"),
            (None, Some(signal)) => format!("was killed by signal {signal}"),
            (None, None) => "ended in an unknown way".to_owned(),
        }
    }
}

/// A command with a cleared environment, null input, its own process group and none of our files.
pub fn command<I: AsRef<OsStr>>(program: &Path, arguments: impl IntoIterator<Item = I>) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).process_group(0).env_clear().current_dir("/");
    for (name, value) in std::env::vars_os() {
        let inherited =
            name.to_str().is_some_and(|name| INHERITED.contains(&name) || name.starts_with("LC_"));
        if inherited {
            command.env(name, value);
        }
    }
    command
}

/// Runs a command to its end, or kills its process group at the deadline or on cancel.
///
/// Output goes through a file, not a pipe: a server that the program leaves behind may hold its
/// outputs open for years, and waiting for a pipe to close would hang.
pub fn run(command: Command, deadline: Duration, cancel: &Cancel) -> Result<Outcome> {
    let output = anonymous_file().map_err(Error::on("make a temporary file"))?;
    run_into(command, output, deadline, cancel)
}

/// Like [`run`], with both outputs going to a file of the caller's.
pub fn run_into(
    mut command: Command,
    mut output: File,
    deadline: Duration,
    cancel: &Cancel,
) -> Result<Outcome> {
    let program = command.get_program().to_string_lossy().into_owned();
    let failed = |error: std::io::Error| Error::io(format_args!("run \"{program}\""), &error);
    command.stdout(output.try_clone().map_err(failed)?).stderr(output.try_clone().map_err(failed)?);
    close_fds::set_fds_cloexec(3, &[]);
    let mut child = command.spawn().map_err(failed)?;
    let end = Instant::now() + deadline;
    let status = loop {
        if let Some(status) = child.try_wait().map_err(failed)? {
            break status;
        }
        if cancel.is_tripped() || Instant::now() >= end {
            kill_group(&mut child);
            cancel.check()?;
            return Err(Error::new(
                Kind::Io,
                format!("\"{program}\" did not end in {} s", deadline.as_secs()),
            )
            .detail(tail(&mut output).map_err(failed)?));
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    Ok(Outcome { status, output: tail(&mut output).map_err(failed)? })
}

fn kill_group(child: &mut Child) {
    if let Some(group) = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw) {
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    }
    let _ = child.wait();
}

fn anonymous_file() -> std::io::Result<File> {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    Ok(rustix::fs::memfd_create("pgpool_recovery_output", flags)?.into())
}

fn tail(output: &mut File) -> std::io::Result<String> {
    let length = output.metadata()?.len();
    output.seek(SeekFrom::Start(length.saturating_sub(OUTPUT)))?;
    let mut bytes = Vec::new();
    output.take(OUTPUT).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Command {
        command(Path::new("/bin/sh"), ["-c", script])
    }

    #[test]
    fn tells_output_and_exit_code() {
        let outcome = run(sh("echo out; echo err >&2; exit 3"), Duration::from_secs(10), &Cancel::new());
        let outcome = outcome.expect("ran");
        assert_eq!(outcome.output, "out\nerr");
        assert_eq!(outcome.describe(), "exited with code 3");
    }

    #[test]
    fn a_daemon_left_behind_does_not_hang_us() {
        let started = Instant::now();
        run(sh("sleep 5 & echo done"), Duration::from_secs(10), &Cancel::new()).expect("ran");
        assert!(started.elapsed() < Duration::from_secs(4));
    }

    #[test]
    fn is_killed_with_its_children() {
        let started = Instant::now();
        let error =
            run(sh("sleep 30 & wait"), Duration::from_millis(200), &Cancel::new()).expect_err("killed");
        assert!(error.message.contains("did not end"), "{error}");
        let cancel = Cancel::new();
        cancel.trip();
        assert_eq!(
            run(sh("sleep 30"), Duration::from_secs(30), &cancel).expect_err("killed").kind,
            Kind::Canceled
        );
        assert!(started.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn the_environment_does_not_leak() {
        let outcome = run(sh("env"), Duration::from_secs(10), &Cancel::new()).expect("ran");
        assert!(!outcome.output.contains("CARGO"), "{}", outcome.output);
    }
}
