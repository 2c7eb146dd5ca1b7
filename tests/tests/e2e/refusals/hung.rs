//! File systems that answer nothing: a session that waits for one can be terminated, and an agent serves its other
//! directories.

use std::fs;

use pgpool_recovery_e2e::agent::{self, Agent};
use pgpool_recovery_e2e::background::Running;
use pgpool_recovery_e2e::mount::Hung;
use pgpool_recovery_e2e::process;
use pgpool_recovery_e2e::{Cluster, Host, Recovery, Scratch, Stage, wait};
use rustix::process::Signal;
use serde_json::json;

/// Terminates the session of a recovery that waits, which must end while what it waits for still answers nothing.
#[track_caller]
fn assert_terminable(primary: &Cluster, recovery: &Recovery, hung: &Hung) {
    let running = Running::start(primary, recovery, "");
    let backend = running.backend();
    hung.wait_until_asked();
    assert!(primary.get::<bool>("SELECT pg_terminate_backend($1)", &[&backend]));
    wait::until_true("the session to end", wait::PATIENCE, || running.has_ended());
    running.finish_within(wait::PATIENCE).expect_err("terminated");
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE pid = $1";
    wait::until_true("the backend to end", wait::PATIENCE, || primary.get::<i64>(sql, &[&backend]) == 0);
}

#[test]
fn a_session_that_waits_for_a_local_target_can_be_terminated() {
    let stage = Stage::builder().build();
    for (mount, directory) in [("one", "one"), ("two", "two/data")] {
        let hung = Hung::at(&stage.scratch, &stage.scratch.join(mount));
        let directory = stage.scratch.join(directory);
        let recovery = Recovery::to("localhost", &directory.to_string_lossy(), stage.primary.port());
        assert_terminable(&stage.primary, &recovery.option("transport", "local"), &hung);
    }
}

#[test]
fn a_session_that_waits_for_the_place_of_a_tablespace_can_be_terminated() {
    let stage = Stage::builder().build();
    let space = stage.scratch.mkdir("primary-space");
    stage.primary.execute(&format!("CREATE TABLESPACE far LOCATION '{}'", space.display()));
    let place = stage.scratch.join("hung");
    let hung = Hung::at(&stage.scratch, &place);
    let mapping = format!("{}={}", space.display(), place.join("far").display());
    let recovery = stage.recovery().option("tablespace_mapping", json!(mapping));
    assert_terminable(&stage.primary, &recovery.option("transport", "local"), &hung);
}

#[test]
fn an_agent_serves_its_other_directories() {
    let scratch = Scratch::new();
    let secret = agent::secret(&scratch, "secret");
    let target = Cluster::place(&scratch, &Host::here(), "target");
    let path = scratch.join("hung");
    let clusters = agent::cluster(&path.join("data")) + &agent::cluster(target.directory());
    let mut agent = Agent::start_with(&scratch, &Host::here(), &secret, &clusters);
    let primary = Cluster::place(&scratch, &Host::here(), "primary")
        .with("pgpool_recovery.secret_file", secret.display())
        .with("pgpool_recovery.agent_port", agent.port())
        .with("pgpool_recovery.transport", "agent")
        .into_primary();
    let recovery = Recovery::of(&target, &primary).option("dest_port", target.port());
    let hung = Hung::at(&scratch, &path);
    let recovers = || {
        let running = Running::start(&primary, &recovery, "");
        running.finish_within(wait::PATIENCE).expect("the other directory answers");
    };
    recovers();
    let mut status = Host::here().agent();
    status.args(["status", "--config"]).arg(agent.config());
    let told = process::run(status).ok();
    assert!(told.contains(target.dir()) && told.contains("does not answer"), "{told}");
    // it reads its configuration again while one of its directories does not answer, and when it is started so
    fs::write(agent.config(), fs::read_to_string(agent.config()).expect("read") + "# again\n")
        .expect("write");
    agent.signal(Signal::HUP);
    wait::until_true("the agent to reload", wait::PATIENCE, || agent.log().contains("reloaded: 2"));
    agent.kill();
    agent.restart();
    recovers();
    drop(hung);
}
