//! Starting the standby.

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::policy::Cluster;
use super::running;
use crate::cancel::Cancel;
use crate::error::{Error, Kind, Result};
use crate::exclude::MARKER;
use crate::process;

/// Most of the standby's log that an error carries, bytes.
const LOG_TAIL: u64 = 4 << 10;

/// What makes a server start as a standby.
const STANDBY_SIGNAL: &str = "standby.signal";

/// Where the standby's first words go, within its data directory.
const START_LOG: &str = "log/pgpool_remote_start.log";

/// Starts the server and waits until it accepts connections. False if it ran already.
pub fn start(cluster: &Cluster, timeout: Duration, cancel: &Cancel) -> Result<bool> {
    let directory = &cluster.data_directory;
    if directory.join(MARKER).exists() {
        return Err(Error::new(Kind::StartFailed, format!("\"{}\" is not complete", directory.display()))
            .detail("A recovery of this directory was broken off.")
            .hint("Run the recovery again; it sends only what is missing."));
    }
    let deadline = Instant::now() + timeout;
    let launched = running::server(directory).is_none();
    // a server keeps the file until it is promoted
    if !directory.join(STANDBY_SIGNAL).exists() {
        return Err(Error::new(Kind::StartFailed, format!("\"{}\" is no standby", directory.display()))
            .detail(format!(
                "It has no {STANDBY_SIGNAL}: its server is a primary, or would start as a second one."
            ))
            .hint("Run pgpool_recovery_1st_stage for it first."));
    }
    let mut logs = Logs::now(cluster);
    if launched {
        while let Err(error) =
            launch(cluster, deadline.saturating_duration_since(Instant::now()), &logs, cancel)
        {
            if Instant::now() >= deadline || !running::zombie_holds_lock(&logs.tail()) {
                return Err(error);
            }
            pause(Duration::from_millis(500), cancel)?;
            logs = Logs::now(cluster);
        }
    }
    loop {
        let last_words = || {
            let lines = logs.tail();
            let why = cause(&lines).map_or_else(String::new, |cause| format!(": {cause}"));
            (lines, why)
        };
        match running::postmaster_status(directory).as_deref() {
            Some("ready") => return Ok(launched),
            None if running::server(directory).is_none() => {
                let (lines, why) = last_words();
                return Err(Error::new(Kind::StartFailed, format!("standby stopped while starting{why}"))
                    .detail(lines)
                    .hint("The log lines above are the standby's own."));
            }
            status if Instant::now() >= deadline => {
                let hint = if status == Some("standby") {
                    "The server runs but accepts no connections: is hot_standby off, or does it lack WAL?"
                } else {
                    "See the standby's log; pgpool_recovery.start_timeout is the time it has."
                };
                let (lines, why) = last_words();
                let seconds = timeout.as_secs();
                let message = format!("standby did not accept connections within {seconds} s{why}");
                return Err(Error::new(Kind::StartFailed, message).detail(lines).hint(hint));
            }
            _ => {}
        }
        pause(Duration::from_millis(50), cancel)?;
    }
}

fn pause(duration: Duration, cancel: &Cancel) -> Result<()> {
    std::thread::sleep(duration);
    cancel.check()
}

/// The last lines of the server's log, whenever they were written.
pub fn log_tail(cluster: &Cluster) -> String {
    Logs { cluster: cluster.clone(), before: Vec::new() }.tail()
}

fn launch(cluster: &Cluster, timeout: Duration, logs: &Logs, cancel: &Cancel) -> Result<()> {
    let directory = &cluster.data_directory;
    let seconds = timeout.as_secs().max(1).to_string();
    let (command, output) = match &cluster.start_command {
        Some(words) => {
            let (program, arguments) = words
                .split_first()
                .ok_or_else(|| Error::new(Kind::InvalidArgument, "start_command in agent.toml is empty"))?;
            (process::command(Path::new(program), arguments), None)
        }
        None => {
            // pg_ctl passes -D, -l and -o through a shell: the directory goes by PGDATA instead, and the
            // log is what pg_ctl itself writes to
            let mut command =
                process::command(&cluster.bin_directory.join("pg_ctl"), ["start", "-w", "-t", &seconds]);
            command.env("PGDATA", directory);
            if let Some(file) = &cluster.config_file {
                command.arg("-o").arg(format!("-c config_file={}", shell_quoted(&file.to_string_lossy())));
            }
            (command, Some(start_log(directory)?))
        }
    };
    let deadline = timeout + Duration::from_secs(5);
    let outcome = match output {
        Some(log) => process::run_into(command, log, deadline, cancel)?,
        None => process::run(command, deadline, cancel)?,
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
fn cause(lines: &str) -> Option<String> {
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

/// The file that gets what pg_ctl and the server say before the server's own logging begins.
fn start_log(directory: &Path) -> Result<fs::File> {
    let path = directory.join(START_LOG);
    let open = || {
        if let Some(parent) = path.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
        }
        fs::OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(&path)
    };
    open().map_err(Error::on(format_args!("open log file \"{}\"", path.display())))
}

/// pg_ctl passes `-o` through a shell.
fn shell_quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// The log files of a standby, and how long they were before it started.
struct Logs {
    cluster: Cluster,
    before: Vec<(PathBuf, u64)>,
}

impl Logs {
    fn now(cluster: &Cluster) -> Self {
        let before = log_files(cluster)
            .into_iter()
            .map(|path| (path.clone(), fs::metadata(&path).map_or(0, |metadata| metadata.len())))
            .collect();
        Self { cluster: cluster.clone(), before }
    }

    /// The last lines written since.
    fn tail(&self) -> String {
        let mut text = String::new();
        for path in log_files(&self.cluster) {
            let start = self.before.iter().find(|(known, _)| *known == path).map_or(0, |(_, length)| *length);
            let Ok(mut file) = fs::File::open(&path) else {
                continue;
            };
            let length = file.metadata().map_or(0, |metadata| metadata.len());
            let from = start.max(length.saturating_sub(LOG_TAIL));
            let mut bytes = Vec::new();
            if file.seek(SeekFrom::Start(from)).is_ok() && file.take(LOG_TAIL).read_to_end(&mut bytes).is_ok()
            {
                text.push_str(&String::from_utf8_lossy(&bytes));
            }
        }
        let lines: Vec<&str> = text.trim().lines().collect();
        let last = lines[lines.len().saturating_sub(20)..].join("\n");
        if last.is_empty() { "The standby's log has no new lines.".to_owned() } else { last }
    }
}

/// The start log, the newest file of the standby's own log directory, and the log outside it.
fn log_files(cluster: &Cluster) -> Vec<PathBuf> {
    let directory = &cluster.data_directory;
    let mut files = vec![directory.join(START_LOG)];
    for name in ["log", "pg_log"] {
        let newest = fs::read_dir(directory.join(name))
            .into_iter()
            .flatten()
            .filter_map(|entry| {
                let entry = entry.ok()?;
                let metadata = entry.metadata().ok()?;
                let is_other = metadata.is_file() && entry.path() != files[0];
                is_other.then(|| (metadata.modified().ok(), entry.path()))
            })
            .max();
        files.extend(newest.map(|(_, path)| path));
    }
    files.extend(cluster.log_file.clone());
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_directory(directory: &Path) -> Cluster {
        Cluster {
            data_directory: directory.to_owned(),
            bin_directory: "/nonexistent".into(),
            config_file: None,
            start_command: None,
            log_file: None,
            tablespace_roots: Vec::new(),
        }
    }

    #[test]
    fn only_new_log_lines_are_shown() {
        let data = tempfile::tempdir().expect("temporary directory");
        let log = data.path().join("log");
        fs::create_dir(&log).expect("make");
        fs::write(log.join("postgresql-Mon.log"), "old line\n").expect("write");
        let outside = data.path().join("postgresql-15-main.log");
        fs::write(&outside, "line of yesterday\n").expect("write");
        let cluster = Cluster { log_file: Some(outside.clone()), ..in_directory(data.path()) };
        let logs = Logs::now(&cluster);
        assert_eq!(logs.tail(), "The standby's log has no new lines.");
        fs::write(log.join("postgresql-Mon.log"), "old line\nFATAL:  new line\n").expect("write");
        fs::write(data.path().join(START_LOG), "first words\n").expect("write");
        assert_eq!(logs.tail(), "first words\nFATAL:  new line");
        fs::write(&outside, "line of yesterday\nLOG:  line of today\n").expect("write");
        assert_eq!(logs.tail(), "first words\nFATAL:  new line\nLOG:  line of today");
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
    fn an_incomplete_directory_is_not_started() {
        let data = tempfile::tempdir().expect("temporary directory");
        fs::write(data.path().join(MARKER), "{}").expect("write");
        let cluster = in_directory(data.path());
        let refused =
            || start(&cluster, Duration::from_secs(1), &Cancel::new()).expect_err("refused").message;
        assert!(refused().contains("not complete"));
        fs::remove_file(data.path().join(MARKER)).expect("remove");
        assert!(refused().contains("is no standby"), "it would be a second primary");
        let mut server = running::tests::serve(data.path());
        let running = refused();
        server.kill().and_then(|()| server.wait()).expect("ended");
        assert!(running.contains("is no standby"), "it is one");
    }
}
