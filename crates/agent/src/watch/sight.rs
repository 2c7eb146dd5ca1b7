//! What is seen of each directory: a run that moves, or words.

use std::collections::VecDeque;
use std::time::Duration;

use humantime::format_duration;
use pgpool_recovery_core::sys::size::pretty;
use pgpool_recovery_core::wire::protocol::status::{Directory, Run, State, Status};

use crate::status::outcome;

/// How far back the rate looks, milliseconds.
const WINDOW: u64 = 10_000;

/// No estimate is longer: a century is as good as no end.
const LONGEST: u64 = 100 * 365 * 86_400;

/// One directory as it is shown.
pub(super) struct Sight {
    pub(super) name: String,
    pub(super) state: Shown,
    pace: Pace,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Shown {
    Running {
        /// What the run does.
        phase: &'static str,
        /// Bytes of data files that are done with.
        done: u64,
        total: u64,
        percent: u64,
        facts: String,
    },
    Words(String),
}

impl Sight {
    /// Both in one line.
    pub(super) fn line(&self) -> String {
        match &self.state {
            Shown::Running { phase, percent, facts, .. } => format!("{phase}, {percent} %, {facts}"),
            Shown::Words(words) => words.clone(),
        }
    }
}

/// All directories, in the order of the agent's configuration.
#[derive(Default)]
pub(super) struct Sights(Vec<Sight>);

impl Sights {
    pub(super) fn all(&self) -> &[Sight] {
        &self.0
    }

    /// The agent told how it is.
    pub(super) fn take(&mut self, status: &Status) {
        let mut before = std::mem::take(&mut self.0);
        for directory in &status.directories {
            let name = printable(&directory.data_directory.to_string_lossy());
            let known = before.iter().position(|sight| sight.name == name);
            let mut pace = known.map(|at| before.swap_remove(at).pace).unwrap_or_default();
            let state = match &directory.account.running {
                Some(run) => running(run, pace.rate(run)),
                None => Shown::Words(printable(&words(directory))),
            };
            self.0.push(Sight { name, state, pace });
        }
    }

    /// The agent does not answer.
    pub(super) fn lose(&mut self) {
        for sight in &mut self.0 {
            sight.state = Shown::Words("unknown, while the agent does not answer".to_owned());
            sight.pace = Pace::default();
        }
    }
}

fn running(run: &Run, rate: u64) -> Shown {
    let done = run.moved.compared.saturating_add(run.known).min(run.bytes);
    let (phase, pace) = match run.state {
        State::Wal => ("WAL", String::new()),
        State::Durable => ("durable", String::new()),
        _ => ("data", format!("{}/s, {}, ", pretty(rate), left(run.bytes - done, rate))),
    };
    let streams = match run.streams {
        1 => "1 stream".to_owned(),
        streams => format!("{streams} streams"),
    };
    Shown::Running {
        phase,
        done,
        total: run.bytes,
        percent: run.percent(),
        facts: format!("{pace}{} of WAL received, {streams}", pretty(run.wal)),
    }
}

fn left(bytes: u64, rate: u64) -> String {
    bytes.checked_div(rate).map_or_else(
        || "no end in sight".to_owned(),
        |seconds| format!("{} left", format_duration(Duration::from_secs(seconds.min(LONGEST)))),
    )
}

/// A directory in which nothing moves.
fn words(directory: &Directory) -> String {
    let Directory { server, incomplete, account, .. } = directory;
    let last = account.last.as_ref().map(|run| {
        let why = run.error.as_ref().map_or_else(String::new, |error| format!("; {}", error.message));
        outcome(run) + &why
    });
    let then = match (incomplete, server) {
        (true, _) => "; the directory cannot be started",
        (false, Some(_)) => "; its server runs",
        (false, None) => "; no server runs",
    };
    last.unwrap_or_else(|| "no recovery in progress".to_owned()) + then
}

/// Of paths and errors, nothing that moves a cursor.
fn printable(text: &str) -> String {
    text.chars().map(|char| if char.is_control() { ' ' } else { char }).collect()
}

/// How fast a run is of late.
#[derive(Default)]
struct Pace {
    started: u64,
    /// Milliseconds since the run began and bytes compared by then, the oldest first.
    samples: VecDeque<(u64, u64)>,
}

impl Pace {
    /// Bytes a second, of the last seconds; of the whole run when it is seen for the first time.
    fn rate(&mut self, run: &Run) -> u64 {
        let now = (run.milliseconds, run.moved.compared);
        let goes_on = |last: &(u64, u64)| last.0 <= now.0 && last.1 <= now.1;
        if self.started != run.started || !self.samples.back().is_none_or(goes_on) {
            self.samples.clear();
            self.started = run.started;
        }
        self.samples.push_back(now);
        // two are kept, however long ago the last one was
        while self.samples.len() > 2 && self.samples.front().is_some_and(|first| now.0 - first.0 > WINDOW) {
            self.samples.pop_front();
        }
        let (since, from) = self.samples.front().copied().filter(|first| first.0 < now.0).unwrap_or_default();
        let rate = u128::from(now.1 - from) * 1000 / u128::from((now.0 - since).max(1));
        u64::try_from(rate).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::tests::{idle, run, running as in_progress};

    fn lines(sights: &Sights) -> Vec<String> {
        sights.all().iter().map(Sight::line).collect()
    }

    #[test]
    fn a_run_has_phase_percent_rate_time_left_wal_and_streams() {
        let mut sights = Sights::default();
        sights.take(&in_progress());
        let expected = "data, 25 %, 99.0 kB/s, 31s left, 64.0 kB of WAL received, 4 streams";
        assert_eq!(lines(&sights), [expected]);
        let shown =
            |run: Run| Sight { name: String::new(), state: running(&run, 0), pace: Pace::default() }.line();
        let one = Run { streams: 1, ..run(State::Data) };
        assert_eq!(shown(one), "data, 25 %, 0 bytes/s, no end in sight, 64.0 kB of WAL received, 1 stream");
        assert_eq!(shown(run(State::Wal)), "WAL, 25 %, 64.0 kB of WAL received, 4 streams");
    }

    #[test]
    fn the_rate_is_that_of_the_last_seconds() {
        let mut pace = Pace::default();
        let mut at = |seconds: u64, compared: u64| {
            let mut run = run(State::Data);
            (run.milliseconds, run.moved.compared) = (seconds * 1000, compared);
            pace.rate(&run)
        };
        assert_eq!(at(10, 1000), 100, "since the beginning");
        assert_eq!(at(11, 1500), 500);
        assert_eq!(at(16, 1500), 83, "it slows down");
        assert_eq!(at(30, 1500), 0, "it stands still");
        assert_eq!(at(2, 30), 15, "another run");
    }

    #[test]
    fn what_ended_or_does_not_answer_is_told() {
        let mut sights = Sights::default();
        let mut status = idle();
        sights.take(&status);
        let line = &lines(&sights)[0];
        assert!(
            line.starts_with("failed 2026-11-22T11:00:00Z after 10s, from 10.0.0.1: 963 files"),
            "{line}"
        );
        assert!(line.ends_with("; no space; its server runs"), "{line}");
        (status.directories[0].incomplete, status.directories[0].account.last) = (true, None);
        sights.take(&status);
        assert_eq!(lines(&sights), ["no recovery in progress; the directory cannot be started"]);
        sights.lose();
        assert_eq!(lines(&sights), ["unknown, while the agent does not answer"]);
        status.directories[0].data_directory = "/srv/\x1b[2Jc".into();
        sights.take(&status);
        assert_eq!(sights.all()[0].name, "/srv/ [2Jc");
    }
}
