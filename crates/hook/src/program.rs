//! Runs a program for a limited time.

use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use crate::failure::{Failure, Result};

/// Most bytes of output that are kept.
const MAX_OUTPUT: u64 = 1 << 20;

/// How often it is looked whether it has ended.
const TURN: Duration = Duration::from_millis(10);

/// What a program said.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs it with this input. At `end` it is killed, with the programs that it has started, and `None` comes back.
pub(crate) fn run(mut command: Command, input: &str, end: Instant) -> Result<Option<Finished>> {
    let name = command.get_program().to_string_lossy().into_owned();
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn().map_err(|error| {
        Failure::new(format!("could not run \"{name}\": {error}"))
            .hint("Install it, or add its directory to PATH in Pgpool-II's environment.")
    })?;
    if let Some(mut stdin) = child.stdin.take() {
        let input = input.to_owned();
        // a program that does not read its input says why
        thread::spawn(move || stdin.write_all(input.as_bytes()));
    }
    let read = |pipe: Option<Box<dyn Read + Send>>| {
        thread::spawn(move || {
            let mut text = Vec::new();
            if let Some(pipe) = pipe {
                // what can be read is worth having
                let _ = pipe.take(MAX_OUTPUT).read_to_end(&mut text);
            }
            String::from_utf8_lossy(&text).into_owned()
        })
    };
    let stdout = read(child.stdout.take().map(|pipe| Box::new(pipe) as Box<dyn Read + Send>));
    let stderr = read(child.stderr.take().map(|pipe| Box::new(pipe) as Box<dyn Read + Send>));
    loop {
        let ended = child
            .try_wait()
            .map_err(|error| Failure::new(format!("could not wait for \"{name}\": {error}")))?;
        if let Some(status) = ended {
            let text = |reader: thread::JoinHandle<String>| reader.join().unwrap_or_default();
            return Ok(Some(Finished { status, stdout: text(stdout), stderr: text(stderr) }));
        }
        if Instant::now() >= end {
            let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
            if let Some(group) = group {
                // it may just have ended
                let _ = kill_process_group(group, Signal::KILL);
            }
            let _ = child.wait();
            return Ok(None);
        }
        thread::sleep(TURN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, limit: Duration) -> Result<Option<Finished>> {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        run(command, "from stdin\n", Instant::now() + limit)
    }

    #[test]
    fn output_and_status_come_back() {
        let finished =
            shell("cat; echo no >&2; exit 3", Duration::from_secs(60)).expect("ran").expect("ended");
        assert_eq!((finished.stdout.as_str(), finished.stderr.as_str()), ("from stdin\n", "no\n"));
        assert_eq!(finished.status.code(), Some(3));
        let missing = run(Command::new("/nowhere/psql"), "", Instant::now()).expect_err("missing");
        assert!(missing.message.contains("/nowhere/psql") && missing.hint.is_some());
    }

    #[test]
    fn what_takes_too_long_is_killed_with_its_children() {
        let started = Instant::now();
        assert!(shell("sleep 100 & sleep 100", Duration::from_millis(200)).expect("ran").is_none());
        assert!(started.elapsed() < Duration::from_secs(20));
    }
}
