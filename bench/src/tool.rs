//! Running a peer's program.

use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use pgpool_recovery_e2e::process;
use rustix::process::Signal;

use crate::interrupt::{self, Outcome, failed};
use crate::memory::{Side, Watch};

/// What a program has said, and how it ended.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) status: ExitStatus,
    pub(crate) output: String,
    pub(crate) errors: String,
}

/// Runs a program to its end and gives its standard output. Its memory counts for `watch`, if given.
pub(crate) fn run(mut command: Command, watch: Option<(&Watch, Side)>) -> Outcome<String> {
    command.stdin(Stdio::null());
    let name = format!("{command:?}");
    let Said { status, output, errors } = outcome(command, watch)?;
    if status.success() { Ok(output) } else { failed(format!("{name}: {status}\n{output}{errors}")) }
}

/// Runs a program to its end, or until the bench is interrupted.
///
/// It gets a process group of its own: Ctrl-C is ours to hand on.
pub(crate) fn outcome(command: Command, watch: Option<(&Watch, Side)>) -> Outcome<Said> {
    wait(command, watch, interrupt::check)
}

/// The same, and an interrupt does not end it.
pub(crate) fn outcome_in_any_case(command: Command) -> Outcome<Said> {
    wait(command, None, || Ok(()))
}

fn wait(
    mut command: Command,
    watch: Option<(&Watch, Side)>,
    check: impl Fn() -> Outcome<()>,
) -> Outcome<Said> {
    let mut out = tempfile::tempfile().expect("a temporary file");
    let mut err = tempfile::tempfile().expect("a temporary file");
    command.stdout(out.try_clone().expect("a second handle"));
    command.stderr(err.try_clone().expect("a second handle"));
    command.process_group(0);
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => return failed(format!("could not run {command:?}: {error}")),
    };
    if let Some((watch, side)) = watch {
        watch.add(child.id(), side);
    }
    let status = loop {
        if let Some(status) = child.try_wait().expect("our own child") {
            break status;
        }
        if let Err(stop) = check() {
            let _ = rustix::process::kill_process_group(process::pid(child.id()), Signal::TERM);
            let _ = child.wait();
            return Err(stop);
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    if let Some((watch, _)) = watch {
        watch.remove(child.id());
    }
    Ok(Said { status, output: text(&mut out), errors: text(&mut err) })
}

fn text(file: &mut File) -> String {
    let mut bytes = Vec::new();
    file.rewind().expect("a file");
    file.read_to_end(&mut bytes).expect("a file");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The first line of what a program says about its version; None: it is not installed.
pub(crate) fn version(program: &str, argument: &str) -> Option<String> {
    let output = Command::new(program).arg(argument).output().ok()?;
    // Pgpool-II uses standard error.
    let said = [output.stdout, output.stderr].concat();
    Some(String::from_utf8_lossy(&said).lines().next().unwrap_or_default().trim().to_owned())
}
