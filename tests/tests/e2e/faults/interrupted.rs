//! Recoveries that break off: the primary goes on, the target does not start, the next run completes.

use std::path::PathBuf;
use std::time::Duration;

use pgpool_recovery_e2e::agent::{self, Agent};
use pgpool_recovery_e2e::background::Running;
use pgpool_recovery_e2e::cluster::Stop;
use pgpool_recovery_e2e::probe::{self, Witness};
use pgpool_recovery_e2e::recovery::{remote_start, try_remote_start};
use pgpool_recovery_e2e::{Cluster, Host, Recovery, Scratch, SqlError, compare, server, wait, workload};

const MEGABYTES: u32 = 40;
/// Slow enough to be caught in the middle of that.
const KILOBYTES_PER_SECOND: u32 = 5000;
const MIDDLE: i64 = 8 << 20;

struct Stage {
    primary: Cluster,
    target: Cluster,
    witness: Witness,
    secret: PathBuf,
    scratch: Scratch,
}

impl Stage {
    /// The target differs from the primary everywhere, so that a run has something to send to its end.
    fn new() -> Self {
        let scratch = Scratch::new();
        let secret = agent::secret(&scratch, "secret");
        let primary = probe::quiet(Cluster::place(&scratch, &Host::here(), "primary"))
            .with("pgpool_recovery.secret_file", secret.display())
            .into_primary();
        workload::fill(&primary, MEGABYTES);
        let target = Cluster::standby_by_basebackup(&primary, &Host::here(), "target");
        target.stop(Stop::Fast);
        workload::change_every(&mut primary.connect(), 1);
        let witness = Witness::on(&primary);
        Self { primary, target, witness, secret, scratch }
    }

    fn slow(&self) -> Recovery {
        Recovery::of(&self.target, &self.primary).option("max_rate", KILOBYTES_PER_SECOND)
    }

    /// Nothing is left on the primary and the target is out of use.
    fn assert_broken_off(&mut self) {
        self.witness.assert_served();
        probe::assert_nothing_left(&self.primary);
        assert!(self.target.has("pgpool_recovery.incomplete"));
        let start = self.target.try_start();
        assert!(!start.status.success(), "an incomplete target started");
        let _ = try_remote_start(&self.primary, "localhost", self.target.dir())
            .expect_err("an incomplete target was started");
        assert!(self.target.postmaster().is_none());
    }

    /// The next run completes, sending only what the broken one did not.
    fn assert_next_run_completes(&self) {
        let report = Recovery::of(&self.target, &self.primary).run(&self.primary);
        let (sent, total) = (report.number("/bytes/sent"), report.number("/bytes/total"));
        let spared = u64::try_from(MIDDLE).expect("positive") / 2;
        assert!(sent + spared < total, "all over again: {sent} of {total}");
        remote_start(&self.primary, "localhost", self.target.dir());
        assert!(!self.target.has("pgpool_recovery.incomplete"));
        compare::stop_and_compare(&self.primary, &self.target).assert_none();
    }
}

#[test]
fn a_cancel() {
    let mut stage = Stage::new();
    let running = Running::start(&stage.primary, &stage.slow(), "");
    running.wait_for_bytes(&stage.primary, MIDDLE);
    running.cancel();
    let error = running.finish_within(Duration::from_secs(5)).expect_err("it was cancelled");
    assert_eq!(SqlError::from(&error).sqlstate, "57014");
    stage.assert_broken_off();
    stage.assert_next_run_completes();
}

#[test]
fn a_cancelled_session_can_go_on() {
    let stage = Stage::new();
    let mut client = stage.primary.connect();
    client.batch_execute("SET statement_timeout = '2s'").expect("SET");
    let error = stage.slow().call(&mut client).expect_err("the timeout");
    assert_eq!(SqlError::from(&error).sqlstate, "57014");
    client.batch_execute("SET statement_timeout = 0").expect("SET");
    // No backup is in progress in this very session either.
    let stop = format!("SELECT {}", server::backup_stop());
    let error = client.batch_execute(&stop).expect_err("no backup in progress");
    assert_eq!(SqlError::from(&error).sqlstate, "55000");
    Recovery::of(&stage.target, &stage.primary).call(&mut client).expect("the next run, same session");
    remote_start(&stage.primary, "localhost", stage.target.dir());
    assert!(stage.target.in_recovery());
}

#[test]
fn a_statement_timeout() {
    let mut stage = Stage::new();
    let running = Running::start(&stage.primary, &stage.slow(), "SET statement_timeout = '4s'");
    let error = running.finish_within(Duration::from_secs(20)).expect_err("the timeout");
    assert_eq!(SqlError::from(&error).sqlstate, "57014");
    stage.assert_broken_off();
    stage.assert_next_run_completes();
}

#[test]
fn a_terminated_backend() {
    let mut stage = Stage::new();
    let running = Running::start(&stage.primary, &stage.slow(), "");
    running.wait_for_bytes(&stage.primary, MIDDLE);
    let backend = running.backend();
    stage.primary.execute(&format!("SELECT pg_terminate_backend({backend})"));
    running.finish_within(Duration::from_secs(15)).expect_err("it was terminated");
    stage.primary.wait_for_log("terminating connection due to administrator command");
    wait::until_true("the backend's end", Duration::from_secs(15), || {
        !pgpool_recovery_e2e::process::is_alive(backend.unsigned_abs())
    });
    stage.assert_broken_off();
    stage.assert_next_run_completes();
}

#[test]
fn a_primary_that_is_killed() {
    let mut stage = Stage::new();
    let running = Running::start(&stage.primary, &stage.slow(), "");
    running.wait_for_bytes(&stage.primary, MIDDLE);
    stage.primary.kill();
    running.finish_within(Duration::from_secs(15)).expect_err("its server is gone");
    stage.primary.start();
    stage.witness = Witness::on(&stage.primary);
    stage.assert_broken_off();
    stage.assert_next_run_completes();
}

#[test]
fn a_shutdown_is_not_held_up() {
    let stage = Stage::new();
    let running = Running::start(&stage.primary, &stage.slow(), "");
    running.wait_for_bytes(&stage.primary, MIDDLE);
    stage.primary.stop(Stop::Fast);
    running.finish_within(Duration::from_secs(15)).expect_err("its server was shut down");
    stage.primary.start();
    probe::assert_nothing_left(&stage.primary);
}

#[test]
fn an_agent_that_is_killed() {
    let mut stage = Stage::new();
    let directories = [stage.target.directory()];
    let mut agent = Agent::start(&stage.scratch, &Host::here(), &stage.secret, &directories);
    let recovery = stage.slow().option("transport", "agent").option("agent_port", agent.port());
    let running = Running::start(&stage.primary, &recovery, "");
    running.wait_for_bytes(&stage.primary, MIDDLE);
    agent.kill();
    let error = running.finish_within(Duration::from_secs(15)).expect_err("the agent is gone");
    assert!(SqlError::from(&error).expect("08006").text().contains("agent"));
    stage.assert_broken_off();

    agent.restart();
    let again = Recovery::of(&stage.target, &stage.primary)
        .option("transport", "agent")
        .option("agent_port", agent.port())
        .option("start", true);
    let report = again.run(&stage.primary);
    assert!(report.number("/bytes/sent") < report.number("/bytes/total"), "{}", report.0);
    compare::stop_and_compare(&stage.primary, &stage.target).assert_none();
}

#[test]
fn an_agent_that_is_stopped_gracefully() {
    let mut stage = Stage::new();
    let directories = [stage.target.directory()];
    let mut agent = Agent::start(&stage.scratch, &Host::here(), &stage.secret, &directories);
    let recovery = stage.slow().option("transport", "agent").option("agent_port", agent.port());
    let running = Running::start(&stage.primary, &recovery, "");
    running.wait_for_bytes(&stage.primary, MIDDLE);
    assert!(agent.stop().success(), "{}", agent.log());
    running.finish_within(Duration::from_secs(20)).expect_err("the agent is gone");
    stage.assert_broken_off();
}

#[test]
fn a_backend_terminated_while_an_agent_receives_lets_the_next_run_in() {
    let mut stage = Stage::new();
    let directories = [stage.target.directory()];
    let agent = Agent::start(&stage.scratch, &Host::here(), &stage.secret, &directories);
    let recovery = stage.slow().option("transport", "agent").option("agent_port", agent.port());
    let running = Running::start(&stage.primary, &recovery, "");
    running.wait_for_bytes(&stage.primary, MIDDLE);
    stage.primary.execute(&format!("SELECT pg_terminate_backend({})", running.backend()));
    running.finish_within(Duration::from_secs(15)).expect_err("it was terminated");
    stage.assert_broken_off();
    // The agent sees the end of the connection soon and gives the directory free.
    let next = Recovery::of(&stage.target, &stage.primary)
        .option("transport", "agent")
        .option("agent_port", agent.port())
        .option("start", true);
    next.run_when_let_in(&stage.primary);
    compare::stop_and_compare(&stage.primary, &stage.target).assert_none();
}

#[test]
fn a_slot_that_was_there_before_survives_a_failed_run() {
    let stage = Stage::new();
    stage.primary.execute("SELECT pg_create_physical_replication_slot('localhost', true)");
    let running = Running::start(&stage.primary, &stage.slow(), "");
    running.wait_for_bytes(&stage.primary, MIDDLE);
    running.cancel();
    running.finish_within(Duration::from_secs(5)).expect_err("it was cancelled");
    assert_eq!(probe::slots(&stage.primary), ["localhost"]);
    Recovery::of(&stage.target, &stage.primary).run(&stage.primary);
    assert_eq!(probe::slots(&stage.primary), ["localhost"]);
}
