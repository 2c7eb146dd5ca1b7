//! Starting the standby.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::OFlags;

use super::patience::Patience;
use super::policy::Cluster;
use super::server_log::{Logs, START_LOG};
use super::starting::Tell;
use super::{configured, fence, running, walreceiver};
use crate::error::{Error, Kind, Result};
use crate::manifest::exclude::MARKER;
use crate::sys::cancel::Cancel;
use crate::sys::process;
use crate::wire::protocol::describe::HeldUp;

/// How long pg_ctl waits, seconds: longer than we do, who see whether the server makes progress.
const PG_CTL_TIMEOUT: &str = "10000000";

/// How long a start command of the operator's may go on after the server's time is over.
const GRACE: Duration = Duration::from_secs(5);

/// How long a server may be away before it counts as stopped: while a supervisor starts it again, or before it has
/// written postmaster.pid.
const GONE: Duration = Duration::from_secs(2);

/// What makes a server start as a standby.
pub(super) const STANDBY_SIGNAL: &str = "standby.signal";

/// Starts the server and waits until it accepts connections, for as long as it makes progress, which is told. False if it ran
/// already.
pub fn start(cluster: &Cluster, timeout: Duration, tell: Option<Tell<'_>>, cancel: &Cancel) -> Result<bool> {
    let directory = &cluster.data_directory;
    // what cannot be told forbids the start
    let is_incomplete = directory
        .join(MARKER)
        .symlink_metadata()
        .map(|_| true)
        .or_else(|error| if error.kind() == std::io::ErrorKind::NotFound { Ok(false) } else { Err(error) })
        .map_err(Error::on_path("stat file", directory.join(MARKER)))?;
    if is_incomplete {
        return Err(Error::new(Kind::StartFailed, format!("\"{}\" is not complete", directory.display()))
            .detail("A recovery of this directory was interrupted.")
            .hint("Run the recovery again; it sends only what is missing."));
    }
    fence::demand_none(directory)?;
    // a server keeps the file until it is promoted
    if !directory.join(STANDBY_SIGNAL).exists() {
        return Err(no_standby(directory));
    }
    let mut patience = Patience::new(directory, timeout).telling(tell);
    let mut logs = Logs::now(cluster);
    let mut launched = running::server(directory)?.is_none();
    if launched {
        demand_reaper(cluster.orphans_go_to_primary)?;
        if let Some(elsewhere) = configured::elsewhere(cluster, cancel)? {
            return Err(configured::refusal(Kind::StartFailed, directory, &elsewhere));
        }
        configured::demand_no_end(cluster)?;
        while let Err(error) = launch(cluster, &mut patience, &logs, cancel) {
            let tail = logs.tail();
            let is_zombie = running::zombie_holds_lock(&tail);
            // a supervisor, or another call, may have been faster: what counts is the server that runs
            if !is_zombie && appears(directory, &tail, cancel)? {
                launched = false;
                break;
            }
            if !is_zombie || patience.is_over() {
                return Err(error);
            }
            pause(Duration::from_millis(500), cancel)?;
            logs = Logs::now(cluster);
        }
    }
    let mut gone: Option<Instant> = None;
    loop {
        let last_words = || {
            let lines = logs.tail();
            let why = cause(&lines).map_or_else(String::new, |cause| format!(": {cause}"));
            (lines, why)
        };
        let is_running = runs(directory)?;
        match running::postmaster_status(directory).as_deref() {
            Some("ready") if is_running => {
                // promoted meanwhile, or started by something that made a primary of it
                if !directory.join(STANDBY_SIGNAL).exists() {
                    return Err(no_standby(directory));
                }
                return Ok(launched);
            }
            _ if !is_running && gone.get_or_insert_with(Instant::now).elapsed() >= GONE => {
                let (lines, why) = last_words();
                return Err(Error::new(Kind::StartFailed, format!("standby stopped while starting{why}"))
                    .detail(lines)
                    .hint("The log lines above are the standby's own."));
            }
            status if patience.is_over() => {
                let stopped = walreceiver::stopped_startup(directory).map(HeldUp::stopped);
                let hint = if let Some(HeldUp { hint, .. }) = &stopped {
                    hint
                } else if status == Some("standby") {
                    "The server runs but accepts no connections: is hot_standby off, or does it lack WAL?"
                } else {
                    "See the standby's log; pgpool_recovery.start_timeout is the time it has without progress."
                };
                let (lines, cause) = last_words();
                let why = stopped.as_ref().map_or(cause, |stopped| format!(": {}", stopped.why));
                let seconds = timeout.as_secs();
                let message =
                    format!("standby accepts no connections and made no progress for {seconds} s{why}");
                return Err(Error::new(Kind::StartFailed, message).detail(lines).hint(hint));
            }
            _ => {}
        }
        if is_running {
            gone = None;
        }
        pause(Duration::from_millis(50), cancel)?;
    }
}

/// Refuses to start a server whose processes would become children of the primary's postmaster: one that is killed there
/// would end all sessions of the primary (S1).
pub fn demand_reaper(orphans_go_to_primary: bool) -> Result<()> {
    if !orphans_go_to_primary {
        return Ok(());
    }
    Err(Error::new(Kind::WrongState, "no standby can be started beside this primary: its postmaster is process 1")
        .detail("Process 1 becomes the parent of the standby's processes. When one of them is killed, the primary's postmaster takes it for a crashed session of its own and restarts.")
        .hint("Run the primary's container with an init (docker run --init), or the standby and an agent in a container of their own."))
}

/// Whether the process that postmaster.pid names serves the directory.
fn runs(directory: &Path) -> Result<bool> {
    let found = running::find(directory)?;
    Ok(found.is_some() && found == running::postmaster_pid(directory))
}

/// Whether a server that was started by something else runs in the directory. If the log says that its lock file was in
/// the way, it may need a moment.
fn appears(directory: &Path, log: &str, cancel: &Cancel) -> Result<bool> {
    let end = Instant::now() + if log.contains("postmaster.pid") { GONE } else { Duration::ZERO };
    loop {
        if runs(directory)? {
            return Ok(true);
        }
        if Instant::now() >= end {
            return Ok(false);
        }
        pause(Duration::from_millis(50), cancel)?;
    }
}

fn no_standby(directory: &Path) -> Error {
    Error::new(Kind::StartFailed, format!("\"{}\" is no standby", directory.display()))
        .detail(format!(
            "It has no {STANDBY_SIGNAL}: its server is a primary, or would start as a second one."
        ))
        .hint("Run pgpool_recovery_1st_stage for it first.")
}

fn pause(duration: Duration, cancel: &Cancel) -> Result<()> {
    std::thread::sleep(duration);
    cancel.check()
}

fn launch(cluster: &Cluster, patience: &mut Patience<'_>, logs: &Logs, cancel: &Cancel) -> Result<()> {
    let directory = &cluster.data_directory;
    let (command, output) = match &cluster.start_command {
        Some(words) => (process::configured("start_command", words)?, process::anonymous_file()?),
        None => {
            // pg_ctl passes -D, -l and -o through a shell: the directory goes by PGDATA instead, and the
            // log is what pg_ctl itself writes to
            let mut command = process::command(
                &cluster.bin_directory.join("pg_ctl"),
                ["start", "-w", "-t", PG_CTL_TIMEOUT],
            );
            command.env("PGDATA", directory);
            if let Some(file) = &cluster.config_file {
                command.arg("-o").arg(format!("-c config_file={}", shell_quoted(&file.to_string_lossy())));
            }
            (command, start_log(directory)?)
        }
    };
    let grace = if cluster.start_command.is_some() { GRACE } else { Duration::ZERO };
    let mut over: Option<Instant> = None;
    let mut goes_on = || !patience.is_over() || over.get_or_insert_with(Instant::now).elapsed() < grace;
    let Some(outcome) = process::run_while(command, output, &mut goes_on, cancel)? else {
        if runs(directory)? {
            // it goes on without pg_ctl, which has a session of its own; the caller says what it lacks
            return Ok(());
        }
        return Err(Error::new(Kind::StartFailed, "the start command did not end")
            .detail(format!(
                "The server in \"{}\" made no progress. Log:\n{}",
                directory.display(),
                logs.tail()
            ))
            .hint("pgpool_recovery.start_timeout is the time that it has without progress."));
    };
    if outcome.status.success() {
        return Ok(());
    }
    let said = if cluster.start_command.is_some() { outcome.said() } else { String::new() };
    let lines = [said, logs.tail()].join("\n");
    // Pgpool-II cuts what it shows of an error after some 200 characters: the cause comes first
    let cause = cause(&lines).unwrap_or_else(|| format!("the start command {}", outcome.describe()));
    Err(Error::new(Kind::StartFailed, format!("standby could not be started: {cause}"))
        .detail(format!(
            "The start command for \"{}\" {}. Log:\n{}",
            directory.display(),
            outcome.describe(),
            lines.trim()
        ))
        .hint("The log lines above are the standby's own."))
}

/// What a server's log says about why it stopped: its first FATAL or PANIC message, or, where that only
/// points to a faulty configuration, the message before it.
pub fn cause(lines: &str) -> Option<String> {
    let message = |line: &str| {
        let levels = ["FATAL:  ", "PANIC:  ", "LOG:  ", "ERROR:  "];
        levels.iter().find_map(|level| line.split_once(level)).map(|(_, message)| message.trim().to_owned())
    };
    let lines: Vec<&str> = lines.lines().collect();
    let last = lines.iter().position(|line| line.contains("FATAL:  ") || line.contains("PANIC:  "))?;
    let about_configuration = lines[last].contains("contains errors");
    let before =
        about_configuration.then(|| lines[..last].iter().rev().find_map(|line| message(line))).flatten();
    before.or_else(|| message(lines[last]))
}

/// The file that gets what pg_ctl and the server say before the server's own logging begins. Through a link in its place
/// that would be appended to another file, and the last lines of that file would be shown to the one who starts the server.
fn start_log(directory: &Path) -> Result<fs::File> {
    let path = directory.join(START_LOG);
    let open = || {
        if let Some(parent) = path.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
        }
        let no_follow = i32::try_from(OFlags::NOFOLLOW.bits()).map_err(std::io::Error::other)?;
        let mut options = fs::OpenOptions::new();
        options.read(true).append(true).create(true).mode(0o600).custom_flags(no_follow).open(&path)
    };
    open().map_err(Error::on_path("open log file", &path))
}

/// pg_ctl passes `-o` through a shell.
fn shell_quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::exclude::FENCED;
    use crate::wire::protocol::describe::FenceMark;

    /// A cluster whose server is a `sleep` that postmaster.pid names, started by `start` in the data directory. As
    /// `postgres -C data_directory` says, its configuration leads to `configured`.
    fn fake(data: &Path, configured: &str, start: &str) -> (Cluster, tempfile::TempDir) {
        let programs = configured::tests::programs(&format!("echo '{configured}'"));
        fs::write(data.join(STANDBY_SIGNAL), "").expect("write");
        let serve = "sleep 60 >/dev/null 2>&1 & pid=$!; is() { printf '%s\\n2\\n3\\n4\\n5\\n6\\n7\\n%s\\n' $pid $1 >new; mv new postmaster.pid; }";
        let script = format!("cd '{}'; touch started; {serve}; {start}", data.display());
        let cluster = Cluster {
            bin_directory: programs.path().to_owned(),
            start_command: Some(vec!["/bin/sh".to_owned(), "-c".to_owned(), script]),
            ..in_directory(data)
        };
        (cluster, programs)
    }

    #[test]
    fn what_a_start_says_goes_through_no_link() {
        let data = tempfile::tempdir().expect("temporary directory");
        let (log, secret) = (data.path().join(START_LOG), data.path().join("secret"));
        start_log(data.path()).expect("made");
        fs::write(&secret, "a secret\n").expect("write");
        fs::remove_file(&log).and_then(|()| std::os::unix::fs::symlink(&secret, &log)).expect("a link");
        let error = start_log(data.path()).expect_err("a link");
        assert!(error.message.contains("open log file"), "{error:?}");
        assert_eq!(fs::read_to_string(&secret).expect("read"), "a secret\n");
    }

    fn end(data: &Path) {
        let process = running::postmaster_pid(data).and_then(|process| i32::try_from(process).ok());
        let process = process.and_then(rustix::process::Pid::from_raw).expect("a server");
        rustix::process::kill_process(process, rustix::process::Signal::KILL).expect("ended");
    }

    #[test]
    fn a_start_that_fails_because_another_was_faster_succeeds() {
        let data = tempfile::tempdir().expect("temporary directory");
        let place = data.path().canonicalize().expect("real path");
        let (cluster, _programs) = fake(&place, &place.display().to_string(), "is ready; exit 1");
        let started = start(&cluster, Duration::from_secs(30), None, &Cancel::new());
        end(&place);
        assert_eq!(started, Ok(false), "not by us");
    }

    #[test]
    fn a_start_takes_as_long_as_it_comes_forward() {
        let data = tempfile::tempdir().expect("temporary directory");
        let place = data.path().canonicalize().expect("real path");
        let steps = "for word in one two three ready; do sleep 1; is $word; done";
        let (cluster, _programs) = fake(&place, &place.display().to_string(), steps);
        let started = start(&cluster, Duration::from_secs(3), None, &Cancel::new());
        end(&place);
        assert_eq!(started, Ok(true));
    }

    #[test]
    fn a_server_that_does_not_come_forward_is_given_up() {
        let data = tempfile::tempdir().expect("temporary directory");
        let place = data.path().canonicalize().expect("real path");
        let (cluster, _programs) = fake(&place, &place.display().to_string(), "is standby");
        let error = start(&cluster, Duration::from_secs(1), None, &Cancel::new()).expect_err("given up");
        end(&place);
        assert!(error.message.contains("no progress for 1 s"), "{error}");
        assert!(error.hint.is_some_and(|hint| hint.contains("hot_standby")));
    }

    #[test]
    fn what_a_configuration_of_another_directory_would_start_is_not_started() {
        let data = tempfile::tempdir().expect("temporary directory");
        let (cluster, _programs) = fake(data.path(), "/tmp", "is ready");
        let error = start(&cluster, Duration::from_secs(5), None, &Cancel::new()).expect_err("refused");
        assert!(error.message.contains("belongs to another directory"), "{error}");
        assert!(!data.path().join("started").exists());
    }

    #[test]
    fn a_server_that_lost_its_signal_file_is_no_success() {
        let data = tempfile::tempdir().expect("temporary directory");
        let place = data.path().canonicalize().expect("real path");
        let (cluster, _programs) = fake(&place, &place.display().to_string(), "rm standby.signal; is ready");
        let error = start(&cluster, Duration::from_secs(5), None, &Cancel::new()).expect_err("promoted");
        end(&place);
        assert!(error.message.contains("is no standby"), "{error}");
    }

    fn in_directory(directory: &Path) -> Cluster {
        Cluster::new(directory.to_owned(), "/nonexistent".into())
    }

    #[test]
    fn the_cause_is_found_in_the_log() {
        let log = "x LOG:  starting PostgreSQL\nx FATAL:  could not create lock file\nx LOG:  shut down";
        assert_eq!(cause(log).as_deref(), Some("could not create lock file"));
        let log = "LOG:  invalid value for parameter \"port\": \"x\"\nFATAL:  configuration file \"f\" contains errors";
        assert_eq!(cause(log).as_deref(), Some("invalid value for parameter \"port\": \"x\""));
        assert_eq!(cause("waiting for server to start"), None);
    }

    #[test]
    fn what_was_fenced_is_not_started() {
        let data = tempfile::tempdir().expect("temporary directory");
        let refused = || {
            start(&in_directory(data.path()), Duration::from_secs(1), None, &Cancel::new())
                .expect_err("refused")
        };
        let mark = FenceMark { by: "node 1".to_owned(), ..FenceMark::default() };
        fence::write(data.path(), &mark).expect("writes");
        let error = refused();
        assert!(error.message.contains("was fenced") && error.hint.is_some(), "{error:?}");
        assert!(error.detail.is_some_and(|it| it.contains("node 1") && it.contains(FENCED)));
        fs::write(data.path().join(FENCED), "nonsense").expect("write");
        assert!(refused().message.contains("cannot be understood"));
        fs::write(data.path().join(STANDBY_SIGNAL), "").expect("write");
        assert!(!refused().message.contains("cannot be understood"), "a standby may always start");
        assert_eq!(fence::remove(data.path()), Ok(true));
        assert_eq!(fence::remove(data.path()), Ok(false));
        assert!(!refused().message.contains("fenced"));
    }

    #[test]
    fn an_incomplete_directory_is_not_started() {
        let data = tempfile::tempdir().expect("temporary directory");
        fs::write(data.path().join(MARKER), "{}").expect("write");
        let cluster = in_directory(data.path());
        let refused =
            || start(&cluster, Duration::from_secs(1), None, &Cancel::new()).expect_err("refused").message;
        assert!(refused().contains("not complete"));
        fs::remove_file(data.path().join(MARKER)).expect("remove");
        assert!(refused().contains("is no standby"), "it would be a second primary");
        let mut server = running::tests::serve(data.path());
        let running = refused();
        server.kill().and_then(|()| server.wait()).expect("ended");
        assert!(running.contains("is no standby"), "it is one");
    }
}
