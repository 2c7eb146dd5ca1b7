//! The metrics: what [`Status`] tells, in Prometheus' text format and by its naming rules.

use pgpool_recovery_core::error::{Error, Kind, Result};
use pgpool_recovery_core::wire::protocol::status::{Moved, Run, State, Status};
use prometheus::core::{AtomicU64, Collector, GenericCounterVec, GenericGaugeVec};
use prometheus::{Opts, Registry, TextEncoder};

/// The only label besides `outcome` and `version`: a directory's name.
const DIRECTORY: &str = "data_directory";

/// The page. `connections` are open now, `refused` have been turned away since the start.
pub(crate) fn page(status: &Status, connections: usize, refused: u64) -> Result<String> {
    // made for each answer: the counters are kept elsewhere, in one place
    render(status, connections as u64, refused)
        .map_err(|error| Error::new(Kind::Internal, format!("could not render metrics: {error}")))
}

fn render(status: &Status, connections: u64, refused: u64) -> prometheus::Result<String> {
    let page = Page(Registry::new());
    page.gauge("info", "The agent's version; always 1.", &["version"])?
        .with_label_values(&[&status.version])
        .set(1);
    page.gauge("start_timestamp_seconds", "When the agent started, since 1970.", &[])?.one(status.started);
    page.gauge(
        "open_connections",
        "Connections that are open, also those without proof of the secret.",
        &[],
    )?
    .one(connections);
    page.counter(
        "refused_connections_total",
        "Connections refused: too many, or no proof of the secret.",
        &[],
    )?
    .one(refused);

    let runs = page.counter("runs_total", "Recoveries that ended, by outcome.", &[DIRECTORY, "outcome"])?;
    let compared = page.counter(
        "compared_bytes_total",
        "Bytes of data files compared with the primary's.",
        &[DIRECTORY],
    )?;
    let received =
        page.counter("received_bytes_total", "Bytes of content received, before compression.", &[DIRECTORY])?;
    let written = page.counter("written_bytes_total", "Bytes of content written to files.", &[DIRECTORY])?;
    let running = page.gauge("run_in_progress", "Whether a recovery is in progress.", &[DIRECTORY])?;
    let planned = page.gauge(
        "run_planned_bytes",
        "Data files of the recovery in progress, in bytes; 0 if none is.",
        &[DIRECTORY],
    )?;
    let done = page.gauge(
        "run_compared_bytes",
        "Bytes of data files that the recovery in progress has compared; 0 if none is.",
        &[DIRECTORY],
    )?;
    let left_out = page.gauge(
        "run_known_bytes",
        "Bytes of data files that it does not compare, because WAL proves them equal; 0 if none is.",
        &[DIRECTORY],
    )?;
    let wal = page.gauge(
        "run_wal_bytes",
        "Bytes of WAL that the recovery in progress has received, before compression; 0 if none is.",
        &[DIRECTORY],
    )?;
    let streams =
        page.gauge("run_streams", "Data links of the recovery in progress; 0 if none is.", &[DIRECTORY])?;
    let incomplete = page.gauge(
        "directory_incomplete",
        "Whether the directory cannot be started: a recovery is in progress or broke off.",
        &[DIRECTORY],
    )?;
    let server = page.gauge(
        "server_running",
        "Whether a server runs on the directory; absent if that cannot be told.",
        &[DIRECTORY],
    )?;
    let success = page.gauge(
        "last_success_timestamp_seconds",
        "When the last recovery succeeded, since 1970; absent if none has since the agent's start.",
        &[DIRECTORY],
    )?;
    let ended = page.gauge(
        "last_run_end_timestamp_seconds",
        "When the last recovery ended, since 1970, by its outcome; absent if none has since the agent's start.",
        &[DIRECTORY, "outcome"],
    )?;
    for directory in &status.directories {
        let name = directory.data_directory.to_string_lossy();
        let name = &[name.as_ref()];
        let account = &directory.account;
        for (state, count) in [
            (State::Succeeded, account.succeeded),
            (State::Failed, account.failed),
            (State::GivenUp, account.given_up),
        ] {
            runs.with_label_values(&[name[0], outcome(state)]).inc_by(count);
        }
        let Moved { compared: bytes_compared, received: bytes_received, written: bytes_written } =
            account.moved;
        compared.with_label_values(name).inc_by(bytes_compared);
        received.with_label_values(name).inc_by(bytes_received);
        written.with_label_values(name).inc_by(bytes_written);
        let run = account.running.as_ref();
        let of_run = |value: fn(&Run) -> u64| run.map_or(0, value);
        running.with_label_values(name).set(of_run(|_| 1));
        planned.with_label_values(name).set(of_run(|run| run.bytes));
        done.with_label_values(name).set(of_run(|run| run.moved.compared));
        left_out.with_label_values(name).set(of_run(|run| run.known));
        wal.with_label_values(name).set(of_run(|run| run.wal));
        streams.with_label_values(name).set(of_run(|run| run.streams.into()));
        incomplete.with_label_values(name).set(directory.incomplete.into());
        // no sample rather than a wrong one
        if directory.server_unknown.is_none() {
            server.with_label_values(name).set(directory.server.is_some().into());
        }
        if let Some(moment) = account.last_success {
            success.with_label_values(name).set(moment);
        }
        if let Some(run) = &account.last {
            ended.with_label_values(&[name[0], outcome(run.state)]).set(run.ended.unwrap_or(run.started));
        }
    }
    TextEncoder::new().encode_to_string(&page.0.gather())
}

/// The label of a run that has ended.
fn outcome(state: State) -> &'static str {
    match state {
        State::Succeeded => "succeeded",
        State::GivenUp => "given_up",
        _ => "failed",
    }
}

struct Page(Registry);

impl Page {
    fn gauge(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> prometheus::Result<GenericGaugeVec<AtomicU64>> {
        self.add(GenericGaugeVec::new(options(name, help), labels)?)
    }

    fn counter(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> prometheus::Result<GenericCounterVec<AtomicU64>> {
        self.add(GenericCounterVec::new(options(name, help), labels)?)
    }

    fn add<T: Collector + Clone + 'static>(&self, metric: T) -> prometheus::Result<T> {
        self.0.register(Box::new(metric.clone()))?;
        Ok(metric)
    }
}

fn options(name: &str, help: &str) -> Opts {
    Opts::new(name, help).namespace("pgpool_recovery_agent")
}

/// A metric without labels.
trait One {
    fn one(&self, value: u64);
}

impl One for GenericGaugeVec<AtomicU64> {
    fn one(&self, value: u64) {
        self.with_label_values::<&str>(&[]).set(value);
    }
}

impl One for GenericCounterVec<AtomicU64> {
    fn one(&self, value: u64) {
        self.with_label_values::<&str>(&[]).inc_by(value);
    }
}

#[cfg(test)]
mod monitoring;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::tests::{idle, run, running};

    #[test]
    fn every_metric_is_there_with_help_and_type() {
        let text = page(&idle(), 3, 2).expect("a page");
        for line in [
            "# TYPE pgpool_recovery_agent_info gauge",
            "pgpool_recovery_agent_info{version=\"2.0.0\"} 1",
            "pgpool_recovery_agent_start_timestamp_seconds 1795341600",
            "pgpool_recovery_agent_open_connections 3",
            "# TYPE pgpool_recovery_agent_refused_connections_total counter",
            "pgpool_recovery_agent_refused_connections_total 2",
            "# TYPE pgpool_recovery_agent_runs_total counter",
            "pgpool_recovery_agent_runs_total{data_directory=\"/srv/\\\"a\\\"\",outcome=\"succeeded\"} 2",
            "pgpool_recovery_agent_runs_total{data_directory=\"/srv/\\\"a\\\"\",outcome=\"failed\"} 1",
            "pgpool_recovery_agent_runs_total{data_directory=\"/srv/\\\"a\\\"\",outcome=\"given_up\"} 0",
            "pgpool_recovery_agent_compared_bytes_total{data_directory=\"/srv/\\\"a\\\"\"} 3000000",
            "pgpool_recovery_agent_received_bytes_total{data_directory=\"/srv/\\\"a\\\"\"} 2000000",
            "pgpool_recovery_agent_written_bytes_total{data_directory=\"/srv/\\\"a\\\"\"} 1000000",
            "pgpool_recovery_agent_run_in_progress{data_directory=\"/srv/\\\"a\\\"\"} 0",
            "pgpool_recovery_agent_server_running{data_directory=\"/srv/\\\"a\\\"\"} 1",
            "pgpool_recovery_agent_directory_incomplete{data_directory=\"/srv/\\\"a\\\"\"} 0",
            "pgpool_recovery_agent_last_success_timestamp_seconds{data_directory=\"/srv/\\\"a\\\"\"} 1795345200",
            "pgpool_recovery_agent_last_run_end_timestamp_seconds{data_directory=\"/srv/\\\"a\\\"\",outcome=\"failed\"} 1795345200",
        ] {
            assert!(text.lines().any(|found| found == line), "no {line} in\n{text}");
        }
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        let of_which = |comment: &str| text.lines().filter(|line| line.starts_with(comment)).count();
        assert_eq!((of_which("# HELP"), of_which("# TYPE")), (18, 18));
        assert_eq!(samples.count(), 20, "outcomes are three");
    }

    #[test]
    fn a_run_in_progress_is_seen_and_no_success_is_no_date() {
        let text = page(&running(), 0, 0).expect("a page");
        for line in [
            "pgpool_recovery_agent_run_in_progress{data_directory=\"/srv/b\"} 1",
            "pgpool_recovery_agent_run_planned_bytes{data_directory=\"/srv/b\"} 4194304",
            "pgpool_recovery_agent_run_compared_bytes{data_directory=\"/srv/b\"} 1048576",
            "pgpool_recovery_agent_run_known_bytes{data_directory=\"/srv/b\"} 0",
            "pgpool_recovery_agent_run_wal_bytes{data_directory=\"/srv/b\"} 65536",
            "pgpool_recovery_agent_run_streams{data_directory=\"/srv/b\"} 4",
            "pgpool_recovery_agent_directory_incomplete{data_directory=\"/srv/b\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "no {line} in\n{text}");
        }
        assert!(!text.contains("last_success") && !text.contains("last_run_end"), "{text}");
        let mut status = running();
        status.directories[0].server_unknown = Some("why".to_owned());
        let text = page(&status, 0, 0).expect("a page");
        assert!(!text.contains("server_running{"), "it may run: {text}");
    }

    #[test]
    fn the_last_run_has_one_outcome() {
        for (state, outcome) in
            [(State::Succeeded, "succeeded"), (State::Failed, "failed"), (State::GivenUp, "given_up")]
        {
            let mut status = running();
            status.directories[0].account.last = Some(Run { ended: Some(1_795_345_300), ..run(state) });
            let text = page(&status, 0, 0).expect("a page");
            let name = "pgpool_recovery_agent_last_run_end_timestamp_seconds{";
            let found: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix(name)).collect();
            let expected = format!("data_directory=\"/srv/b\",outcome=\"{outcome}\"}} 1795345300");
            assert_eq!(found, [expected], "with a run in progress, too");
        }
    }
}
