//! Running a program of PostgreSQL's without a shell, without leaking anything into it.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::error::{Error, Kind, Result};
use crate::sys::cancel::Cancel;

/// The variables a child inherits. Others could redirect it: PGDATA, PGPORT, PGOPTIONS, LD_PRELOAD.
const INHERITED: &[&str] = &["PATH", "HOME", "LANG", "LANGUAGE", "TZ", "USER", "LOGNAME"];

/// Most of each output of a program that is kept, bytes: its end.
const OUTPUT: u64 = 8 << 10;

/// How a program ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// Its exit status.
    pub status: ExitStatus,
    /// The end of its standard output: the only place to look for an answer. With [`run_while`], where both
    /// outputs are one file, the end of that.
    pub stdout: String,
    /// The end of its standard error: warnings of the program, of its libraries and of the loader may stand there
    /// although it succeeded.
    pub stderr: String,
}

impl Outcome {
    /// All that it wrote, for an error to show.
    pub(crate) fn said(&self) -> String {
        [self.stderr.as_str(), &self.stdout].join("\n").trim().to_owned()
    }

    /// "exited with code 1" or "was killed by signal 9".
    pub(crate) fn describe(&self) -> String {
        match (self.status.code(), self.status.signal()) {
            (Some(code), _) => format!("exited with code {code}"),
            (None, Some(signal)) => format!("was killed by signal {signal}"),
            (None, None) => "ended in an unknown way".to_owned(),
        }
    }
}

/// The command of a key in agent.toml: a program and its arguments.
pub(crate) fn configured(key: &str, words: &[String]) -> Result<Command> {
    let (program, arguments) = words
        .split_first()
        .ok_or_else(|| Error::new(Kind::InvalidArgument, format!("{key} in agent.toml is empty")))?;
    Ok(command(Path::new(program), arguments))
}

/// A command with a cleared environment, null input, its own process group and none of our files.
pub(crate) fn command<I: AsRef<OsStr>>(program: &Path, arguments: impl IntoIterator<Item = I>) -> Command {
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
pub(crate) fn run(mut command: Command, deadline: Duration, cancel: &Cancel) -> Result<Outcome> {
    let (status, stdout, stderr) = run_until(&mut command, deadline, cancel)?;
    let Some(status) = status else {
        let program = command.get_program().to_string_lossy();
        let error = Error::new(Kind::Io, format!("\"{program}\" did not end in {} s", deadline.as_secs()));
        let said = [stderr, stdout].join("\n").trim().to_owned();
        return Err(if said.is_empty() { error } else { error.detail(said) });
    };
    Ok(Outcome { status, stdout, stderr })
}

/// Like [`run`], where a program that does not end in time is no error: `None`.
pub(crate) fn run_for(mut command: Command, time: Duration, cancel: &Cancel) -> Result<Option<Outcome>> {
    let (status, stdout, stderr) = run_until(&mut command, time, cancel)?;
    Ok(status.map(|status| Outcome { status, stdout, stderr }))
}

/// How the program ended, if it did in time, and the ends of its outputs.
fn run_until(
    command: &mut Command,
    time: Duration,
    cancel: &Cancel,
) -> Result<(Option<ExitStatus>, String, String)> {
    let (mut stdout, mut stderr) = (anonymous_file()?, anonymous_file()?);
    let end = Instant::now() + time;
    let status = finish(command, &stdout, &stderr, &mut || Instant::now() < end, cancel)?;
    Ok((status, tail(&mut stdout)?, tail(&mut stderr)?))
}

/// Like [`run`], for as long as `goes_on` says so; it is asked many times a second. Both outputs go to `output`.
/// `None`: the process group of the command was killed before its end.
pub(crate) fn run_while(
    mut command: Command,
    mut output: File,
    goes_on: &mut dyn FnMut() -> bool,
    cancel: &Cancel,
) -> Result<Option<Outcome>> {
    let status = finish(&mut command, &output, &output, goes_on, cancel)?;
    let stdout = tail(&mut output)?;
    Ok(status.map(|status| Outcome { status, stdout, stderr: String::new() }))
}

fn finish(
    command: &mut Command,
    stdout: &File,
    stderr: &File,
    goes_on: &mut dyn FnMut() -> bool,
    cancel: &Cancel,
) -> Result<Option<ExitStatus>> {
    let program = command.get_program().to_string_lossy().into_owned();
    let failed = |error: std::io::Error| Error::at("run", &program, &error);
    command.stdout(stdout.try_clone().map_err(failed)?).stderr(stderr.try_clone().map_err(failed)?);
    close_fds::set_fds_cloexec(3, &[]);
    let mut child = command.spawn().map_err(failed)?;
    loop {
        if let Some(status) = child.try_wait().map_err(failed)? {
            return Ok(Some(status));
        }
        if cancel.is_tripped() || !goes_on() {
            kill_group(&mut child);
            cancel.check()?;
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn kill_group(child: &mut Child) {
    if let Some(group) = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw) {
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    }
    let _ = child.wait();
}

/// A file in memory, for what a program writes or reads.
pub(crate) fn anonymous_file() -> Result<File> {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let file = rustix::fs::memfd_create("pgpool_recovery_output", flags);
    Ok(file.map_err(Error::on("make a temporary file"))?.into())
}

fn tail(output: &mut File) -> Result<String> {
    let mut read = || -> std::io::Result<String> {
        let length = output.metadata()?.len();
        output.seek(SeekFrom::Start(length.saturating_sub(OUTPUT)))?;
        let mut bytes = Vec::new();
        output.by_ref().take(OUTPUT).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
    };
    read().map_err(Error::on("read a program's output"))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A program made of shell commands. A child that another test forks at this moment may hold the file open
    /// until its own exec; until then the program cannot be run.
    pub(crate) fn script(path: &Path, text: &str) {
        // the trial below is not to do what the script does, to the root directory for want of a PGDATA
        let text = format!("#!/bin/sh\n[ -z \"$TRIAL\" ] || exit 0\n{text}\n");
        std::fs::write(path, text).expect("write");
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).expect("set mode");
        let busy = || {
            let run = Command::new(path).env("TRIAL", "1").stdin(Stdio::null()).output();
            run.is_err_and(|error| error.kind() == std::io::ErrorKind::ExecutableFileBusy)
        };
        while busy() {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn sh(script: &str) -> Command {
        command(Path::new("/bin/sh"), ["-c", script])
    }

    #[test]
    fn tells_outputs_apart_and_the_exit_code() {
        let outcome = run(sh("echo out; echo err >&2; exit 3"), Duration::from_secs(10), &Cancel::new());
        let outcome = outcome.expect("ran");
        assert_eq!((outcome.stdout.as_str(), outcome.stderr.as_str()), ("out", "err"));
        assert_eq!(outcome.said(), "err\nout");
        assert_eq!(outcome.describe(), "exited with code 3");
    }

    #[test]
    fn a_file_of_the_callers_gets_both_outputs() {
        let file = anonymous_file().expect("made");
        let outcome = run_while(sh("echo out; echo err >&2"), file, &mut || true, &Cancel::new());
        assert_eq!(outcome.expect("ran").expect("ended").said(), "out\nerr");
        let file = anonymous_file().expect("made");
        let ended = run_while(sh("sleep 30"), file, &mut || false, &Cancel::new()).expect("ran");
        assert!(ended.is_none(), "it was killed");
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
        let script = "echo words >&2; sleep 30 & wait";
        let error = run(sh(script), Duration::from_millis(500), &Cancel::new()).expect_err("killed");
        assert!(error.message.contains("did not end"), "{error}");
        assert_eq!(error.detail.as_deref(), Some("words"));
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
        assert!(!outcome.stdout.contains("CARGO"), "{}", outcome.stdout);
    }
}
