//! `pgpool_recovery_status`: the running and the last recovery of each target.

use std::cmp::Reverse;

use pgpool_recovery_core::error::{Error, Kind, Result};

use crate::history::{Entry, Figures, History, Outcome, Worker};
use crate::pg::text::server_text;

/// Most seconds that are said to be left: make_interval() refuses what no interval can hold.
const LONGEST: f64 = 1e9;

/// How a recovery stands.
struct Status {
    /// The target, and when it began and was last heard of.
    entry: Entry,
    /// `running`, `succeeded`, `promoted` by a second stage, `failed`, or `interrupted`: its session is gone.
    state: &'static str,
    /// The backend that works on it.
    pid: Option<u32>,
    /// What is known of the bytes, once they have been counted.
    figures: Option<Figures>,
    bytes_per_second: Option<f64>,
    seconds_left: Option<f64>,
    /// WAL that the target does not have yet, bytes, while it is sent.
    wal_behind: Option<u64>,
    sqlstate: Option<String>,
    error: Option<Error>,
}

/// A row of the view, with the columns' names and types.
pub(crate) struct StatusRow {
    pub(crate) host: String,
    pub(crate) directory: String,
    pub(crate) state: String,
    pub(crate) phase: Option<String>,
    pub(crate) percent: Option<i32>,
    pub(crate) bytes_per_second: Option<i64>,
    pub(crate) seconds_left: Option<f64>,
    pub(crate) wal_behind_bytes: Option<i64>,
    pub(crate) streams: Option<i32>,
    pub(crate) total_bytes: Option<i64>,
    pub(crate) compared_bytes: Option<i64>,
    pub(crate) sent_bytes: Option<i64>,
    pub(crate) cloned_bytes: Option<i64>,
    pub(crate) known_bytes: Option<i64>,
    pub(crate) wal_bytes: Option<i64>,
    pub(crate) transport: Option<String>,
    pub(crate) strategy: Option<String>,
    pub(crate) pid: Option<i32>,
    /// Seconds since 1970.
    pub(crate) started: f64,
    /// Seconds since 1970.
    pub(crate) ended: Option<f64>,
    pub(crate) sqlstate: Option<String>,
    pub(crate) error: Option<String>,
    pub(crate) detail: Option<String>,
    pub(crate) hint: Option<String>,
}

impl From<Status> for StatusRow {
    fn from(status: Status) -> Self {
        let text = |text: String| server_text(&text);
        let signed = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        let small = |number: u32| i32::try_from(number).unwrap_or(i32::MAX);
        let seconds = |milliseconds: u64| milliseconds as f64 / 1000.0;
        let Status { entry, figures, error, .. } = status;
        let bytes = |of: fn(&Figures) -> u64| figures.as_ref().map(of).map(signed);
        let (error, detail, hint) = match error {
            Some(Error { message, detail, hint, .. }) => (Some(message), detail, hint),
            None => (None, None, None),
        };
        Self {
            host: text(entry.host),
            directory: text(entry.directory),
            state: status.state.to_owned(),
            phase: entry.figures.map(|figures| figures.phase),
            percent: figures.as_ref().map(percent),
            bytes_per_second: status.bytes_per_second.map(|rate| rate as i64),
            seconds_left: status.seconds_left,
            wal_behind_bytes: status.wal_behind.map(signed),
            streams: figures.as_ref().map(|figures| small(figures.streams)),
            total_bytes: bytes(|figures| figures.total),
            compared_bytes: bytes(|figures| figures.compared),
            sent_bytes: bytes(|figures| figures.sent),
            cloned_bytes: bytes(|figures| figures.cloned),
            known_bytes: bytes(|figures| figures.known),
            wal_bytes: bytes(|figures| figures.wal),
            transport: entry.transport,
            strategy: entry.strategy,
            pid: status.pid.map(small),
            started: seconds(entry.started),
            ended: status.pid.is_none().then(|| seconds(entry.updated)),
            sqlstate: status.sqlstate,
            error: error.map(text),
            detail: detail.map(text),
            hint: hint.map(text),
        }
    }
}

/// The rows of the view, the newest recovery first.
pub(crate) fn rows() -> Result<Vec<StatusRow>> {
    Ok(all()?.into_iter().map(StatusRow::from).collect())
}

/// All that is remembered, the newest first.
fn all() -> Result<Vec<Status>> {
    let mut entries = History::of_this_server()?.all();
    entries.sort_by_key(|entry| Reverse(entry.started));
    Ok(entries.into_iter().map(|entry| status(entry, Worker::is_alive)).collect())
}

fn status(entry: Entry, is_alive: impl Fn(&Worker) -> bool) -> Status {
    let mut raised = None;
    let (state, pid, error) = match &entry.outcome {
        Outcome::Running(worker) if is_alive(worker) => ("running", Some(worker.pid), entry.lost.clone()),
        Outcome::Running(_) => ("interrupted", None, None),
        Outcome::Failed { error, sqlstate } => {
            raised.clone_from(sqlstate);
            let state = if error.kind == Kind::Canceled { "interrupted" } else { "failed" };
            (state, None, Some(error.clone()))
        }
        Outcome::Succeeded => ("succeeded", None, None),
        Outcome::Promoted { .. } => ("promoted", None, None),
    };
    let figures = entry.figures.clone().filter(|figures| figures.total > 0);
    let rate = figures.as_ref().and_then(rate);
    let left = |figures: &Figures, rate: f64| {
        (figures.total.saturating_sub(figures.done()) as f64 / rate).min(LONGEST)
    };
    Status {
        state,
        pid,
        seconds_left: figures.as_ref().zip(rate).filter(|_| pid.is_some()).map(|(f, rate)| left(f, rate)),
        bytes_per_second: rate,
        wal_behind: figures.as_ref().filter(|_| pid.is_some()).map(|figures| figures.wal_behind),
        figures,
        sqlstate: raised.or_else(|| error.as_ref().map(|error| error.kind.sqlstate().to_owned())),
        error,
        entry,
    }
}

/// Bytes compared or left out a second while data streamed; `None` before there are any.
fn rate(figures: &Figures) -> Option<f64> {
    let milliseconds = figures.streaming?.max(1);
    (figures.done() > 0).then(|| figures.done() as f64 * 1000.0 / milliseconds as f64)
}

/// How much of the plan has been compared or left out.
fn percent(figures: &Figures) -> i32 {
    let percent = figures.done().min(figures.total).saturating_mul(100) / figures.total.max(1);
    i32::try_from(percent).unwrap_or(100)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Stage;

    fn entry(outcome: Outcome) -> Entry {
        Entry {
            host: "h".to_owned(),
            directory: "/d".to_owned(),
            stage: Stage::First,
            started: 1_000,
            updated: 9_000,
            outcome,
            transport: None,
            strategy: None,
            figures: Some(Figures {
                streaming: Some(2_000),
                total: 1_000,
                compared: 400,
                ..Figures::default()
            }),
            is_contradicted: false,
            lost: None,
        }
    }

    #[test]
    fn a_running_one_has_a_rate_and_an_end() {
        let begun = || entry(Outcome::Running(Worker::this()));
        let status = status(begun(), |_| true);
        assert_eq!((status.state, status.pid), ("running", Some(std::process::id())));
        assert_eq!((status.bytes_per_second, status.seconds_left), (Some(200.0), Some(3.0)));
        assert_eq!(status.figures.as_ref().map(percent), Some(40));
        let slow = Figures { streaming: Some(u64::MAX), total: u64::MAX, compared: 1, ..Figures::default() };
        let slow = super::status(Entry { figures: Some(slow), ..begun() }, |_| true);
        assert_eq!(slow.seconds_left, Some(LONGEST));
    }

    #[test]
    fn one_that_is_tried_again_says_why() {
        let lost = Some(Error::new(Kind::ConnectionLost, "cut"));
        let status = status(Entry { lost, ..entry(Outcome::Running(Worker::this())) }, |_| true);
        assert_eq!((status.state, status.sqlstate.as_deref()), ("running", Some("08006")));
        assert_eq!(status.error.map(|error| error.message).as_deref(), Some("cut"));
    }

    #[test]
    fn wal_is_behind_only_while_it_is_sent() {
        let behind = |outcome| {
            let figures = Figures { total: 1, wal_behind: 7, ..Figures::default() };
            let entry = Entry { figures: Some(figures), ..entry(outcome) };
            status(entry, |_| true).wal_behind
        };
        assert_eq!(behind(Outcome::Running(Worker::this())), Some(7));
        assert_eq!(behind(Outcome::Succeeded), None);
    }

    #[test]
    fn one_whose_backend_is_gone_was_interrupted() {
        let status = status(entry(Outcome::Running(Worker::this())), |_| false);
        assert_eq!((status.state, status.pid, status.seconds_left), ("interrupted", None, None));
        assert_eq!(status.bytes_per_second, Some(200.0), "until it was last heard of");
    }

    #[test]
    fn one_that_was_promoted_is_more_than_complete() {
        let status = status(entry(Outcome::Promoted { timeline: 2 }), |_| true);
        assert_eq!((status.state, status.pid, status.error), ("promoted", None, None));
    }

    #[test]
    fn a_failed_one_says_why() {
        let error = Error::new(Kind::DiskFull, "full");
        let by = |error| entry(Outcome::Failed { error, sqlstate: None });
        let failed = status(by(error), |_| true);
        assert_eq!((failed.state, failed.sqlstate.as_deref()), ("failed", Some("53100")));
        let canceled = status(by(Error::canceled()), |_| true);
        assert_eq!((canceled.state, canceled.sqlstate.as_deref()), ("interrupted", Some("57014")));
        let error = Error::new(Kind::Internal, "canceling statement due to lock timeout");
        let raised = Outcome::Failed { error, sqlstate: Some("55P03".to_owned()) };
        let raised = status(entry(raised), |_| true);
        assert_eq!((raised.state, raised.sqlstate.as_deref()), ("failed", Some("55P03")));
    }
}
