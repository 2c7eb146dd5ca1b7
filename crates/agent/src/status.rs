//! Asking a running agent how it is, and saying so.

use std::fmt::Write as _;
use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use humantime::{format_duration, format_rfc3339_seconds};
use pgpool_recovery_core::error::{Error, Kind, Result};
use pgpool_recovery_core::sys::cancel::Cancel;
use pgpool_recovery_core::sys::size;
use pgpool_recovery_core::wire::inquiry;
use pgpool_recovery_core::wire::link::Connector;
use pgpool_recovery_core::wire::link::dial::AgentConnector;
use pgpool_recovery_core::wire::protocol::status::{Account, Directory, Run, State, Status};
use pgpool_recovery_core::wire::secret::Secret;

use crate::config::Config;
use crate::serve::loopback;

/// Asks the agent that runs with this configuration, or the one of another host with the same port and
/// secret, and prints the answer.
pub(crate) fn print(config: &Config, host: Option<String>, json: bool) -> Result<()> {
    let connector = connector(config, host)?;
    let status = inquiry::status(&connector, &Cancel::new()).map_err(|error| match error.kind {
        Kind::Unreachable => error.hint(
            "Is it running? Start it, for instance with \"systemctl start pgpool-recovery-agent\"; its log says why \
             it ended. For another host see its firewall too.",
        ),
        _ => error,
    })?;
    let text = if json {
        let text = serde_json::to_string_pretty(&status);
        text.map_err(|error| Error::new(Kind::Internal, format!("could not encode the status: {error}")))?
            + "\n"
    } else {
        describe(&status, &connector.place())
    };
    std::io::stdout().write_all(text.as_bytes()).map_err(Error::on("write to standard output"))
}

/// The way to the agent that runs with this configuration, or to that of another host.
pub(crate) fn connector(config: &Config, host: Option<String>) -> Result<AgentConnector> {
    let host = host.unwrap_or_else(|| loopback(config.listen).ip().to_string());
    let secret = Secret::read(&config.secret_file)?;
    AgentConnector::new(&host, config.listen.port(), secret, Arc::default())
}

fn describe(status: &Status, place: &str) -> String {
    let mut text = format!("{}\n", heading(status, place));
    for directory in &status.directories {
        // a String takes everything
        let _ = describe_directory(directory, &mut text);
    }
    text
}

/// The agent itself.
pub(crate) fn heading(status: &Status, place: &str) -> String {
    let up = format_duration(Duration::from_secs(status.uptime));
    format!("{place}: version {}, up {up}, since {}", status.version, moment(status.started))
}

fn describe_directory(directory: &Directory, text: &mut String) -> std::fmt::Result {
    let Directory { data_directory, server, server_unknown, incomplete, marker, account } = directory;
    writeln!(text, "\n{}", data_directory.display())?;
    match (server, server_unknown) {
        (Some(process), _) => writeln!(text, "  server    running, process {process}")?,
        (None, Some(why)) => writeln!(text, "  server    unknown: {why}")?,
        (None, None) => writeln!(text, "  server    not running")?,
    }
    match (&account.running, incomplete) {
        (Some(run), _) => writeln!(text, "  recovery  in progress: {}", progress(run))?,
        (None, true) => {
            let began = marker
                .as_ref()
                .map_or_else(String::new, |marker| format!(" that began {}", moment(marker.started)));
            writeln!(
                text,
                "  recovery  incomplete: one{began} broke off, and the directory cannot be started"
            )?;
            writeln!(text, "            HINT: Run the recovery again; it sends only what is missing.")?;
        }
        (None, false) => writeln!(text, "  recovery  none in progress")?,
    }
    if let Some(run) = &account.last {
        writeln!(text, "  last      {}", outcome(run))?;
        if let Some(error) = &run.error {
            writeln!(text, "            {}", error.message)?;
            for (label, line) in [("DETAIL", &error.detail), ("HINT", &error.hint)] {
                if let Some(line) = line {
                    writeln!(text, "            {label}: {line}")?;
                }
            }
        }
    }
    let Account { succeeded, failed, given_up, moved, .. } = account;
    writeln!(
        text,
        "  so far    {succeeded} succeeded, {failed} failed, {given_up} given up by the primary; {} received",
        size::pretty(moved.received)
    )
}

/// The line of a run that goes on; the rate is that since its beginning.
fn progress(run: &Run) -> String {
    let step = match run.state {
        State::Wal => ", now WAL",
        State::Durable => ", now being made durable",
        _ => "",
    };
    let left_out =
        if run.known == 0 { String::new() } else { format!("{} left out, ", size::pretty(run.known)) };
    let rate = u128::from(run.moved.compared) * 1000 / u128::from(run.milliseconds.max(1));
    format!(
        "{} %, {} of {} compared, {left_out}{} received, {}/s{step}, for {}{}",
        run.percent(),
        size::pretty(run.moved.compared),
        size::pretty(run.bytes),
        size::pretty(run.moved.received),
        size::pretty(u64::try_from(rate).unwrap_or(u64::MAX)),
        took(run),
        origin(run)
    )
}

/// The line of a run that has ended.
pub(crate) fn outcome(run: &Run) -> String {
    let how = match run.state {
        State::Succeeded => "succeeded",
        State::GivenUp => "given up by the primary",
        _ => "failed",
    };
    format!(
        "{how} {} after {}{}: {} files, {} compared, {} received, {} written",
        moment(run.ended.unwrap_or(run.started)),
        took(run),
        origin(run),
        run.files,
        size::pretty(run.moved.compared),
        size::pretty(run.moved.received),
        size::pretty(run.moved.written)
    )
}

fn took(run: &Run) -> String {
    // tenths are enough, and all of a second
    let tenths = Duration::from_millis(run.milliseconds / 100 * 100);
    let shown =
        if tenths >= Duration::from_secs(10) { Duration::from_secs(tenths.as_secs()) } else { tenths };
    format_duration(shown).to_string()
}

fn origin(run: &Run) -> String {
    run.primary.map_or_else(String::new, |primary| format!(", from {primary}"))
}

/// A moment in UTC. A marker's may have been damaged.
fn moment(seconds: u64) -> String {
    /// The last second of the year 9999.
    const LAST: u64 = 253_402_300_799;
    format_rfc3339_seconds(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.min(LAST))).to_string()
}

#[cfg(test)]
pub(crate) mod tests {
    use pgpool_recovery_core::wire::protocol::message::Marker;
    use pgpool_recovery_core::wire::protocol::status::Moved;

    use super::*;

    fn status(directory: Directory) -> Status {
        Status {
            version: "2.0.0".to_owned(),
            started: 1_795_341_600,
            uptime: 3661,
            directories: vec![directory],
        }
    }

    pub(crate) fn run(state: State) -> Run {
        Run {
            state,
            primary: Some([10, 0, 0, 1].into()),
            started: 1_795_345_190,
            ended: None,
            milliseconds: 10_345,
            files: 963,
            bytes: 4 << 20,
            known: 0,
            moved: Moved { compared: 1 << 20, received: 512 << 10, written: 256 << 10 },
            wal: 64 << 10,
            streams: 4,
            error: None,
        }
    }

    /// An agent of whose three runs the last one failed.
    pub(crate) fn idle() -> Status {
        let error = Error::new(Kind::DiskFull, "no space").detail("None at all.").hint("Free space.");
        status(Directory {
            data_directory: "/srv/\"a\"".into(),
            server: Some(4711),
            server_unknown: None,
            incomplete: false,
            marker: None,
            account: Account {
                running: None,
                last: Some(Run { ended: Some(1_795_345_200), error: Some(error), ..run(State::Failed) }),
                succeeded: 2,
                failed: 1,
                given_up: 0,
                last_success: Some(1_795_345_200),
                moved: Moved { compared: 3_000_000, received: 2_000_000, written: 1_000_000 },
            },
        })
    }

    /// An agent in whose first run data files are being compared.
    pub(crate) fn running() -> Status {
        status(Directory {
            data_directory: "/srv/b".into(),
            server: None,
            server_unknown: None,
            incomplete: true,
            marker: Some(Marker {
                system_identifier: 7,
                timeline: 1,
                started: u64::MAX,
                ..Marker::default()
            }),
            account: Account { running: Some(run(State::Data)), ..Account::default() },
        })
    }

    #[test]
    fn the_last_run_is_told_with_its_error() {
        let text = describe(&idle(), "the agent at here:1");
        assert_eq!(
            text,
            "the agent at here:1: version 2.0.0, up 1h 1m 1s, since 2026-11-22T10:00:00Z\n\
             \n\
             /srv/\"a\"\n\
             \x20 server    running, process 4711\n\
             \x20 recovery  none in progress\n\
             \x20 last      failed 2026-11-22T11:00:00Z after 10s, from 10.0.0.1: 963 files, 1.0 MB compared, \
             512 kB received, 256 kB written\n\
             \x20           no space\n\
             \x20           DETAIL: None at all.\n\
             \x20           HINT: Free space.\n\
             \x20 so far    2 succeeded, 1 failed, 0 given up by the primary; 1.9 MB received\n"
        );
    }

    #[test]
    fn a_run_in_progress_has_percent_and_rate() {
        let mut status = running();
        let text = describe(&status, "x");
        let line = "  recovery  in progress: 25 %, 1.0 MB of 4.0 MB compared, 512 kB received, 99.0 kB/s, for 10s, \
                    from 10.0.0.1\n";
        assert!(text.contains(line), "{text}");
        status.directories[0].account.running = Some(Run { known: 2 << 20, ..run(State::Data) });
        let text = describe(&status, "x");
        assert!(text.contains("75 %, 1.0 MB of 4.0 MB compared, 2.0 MB left out, 512 kB received"), "{text}");
        status.directories[0].account.running =
            Some(Run { bytes: 0, milliseconds: 0, ..run(State::Durable) });
        let text = describe(&status, "x");
        assert!(text.contains("100 %") && text.contains("now being made durable"), "{text}");
    }

    #[test]
    fn a_server_that_cannot_be_told_is_unknown() {
        let mut status = running();
        status.directories[0].server_unknown = Some("\"/proc/7/cwd\" could not be read".to_owned());
        let text = describe(&status, "x");
        assert!(text.contains("  server    unknown: \"/proc/7/cwd\" could not be read\n"), "{text}");
    }

    #[test]
    fn a_broken_off_recovery_is_told_whatever_its_marker_says() {
        let mut status = running();
        status.directories[0].account.running = None;
        let text = describe(&status, "x");
        assert!(text.contains("one that began 9999-12-31T23:59:59Z broke off"), "{text}");
        status.directories[0].marker = None;
        assert!(describe(&status, "x").contains("incomplete: one broke off"), "{text}");
    }
}
