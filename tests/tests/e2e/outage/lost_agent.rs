//! The agent dies while something else than a recovery goes on. Nothing of that is tried again by itself, unlike a recovery: the call
//! says so, and the next one finishes it.

use pgpool_recovery_e2e::background::Running;
use pgpool_recovery_e2e::stage::{Condition, Stage};
use pgpool_recovery_e2e::stages::{self, FIRST, SECOND};
use pgpool_recovery_e2e::{Agent, Host, Scratch, Transport, agent, probe, process, wait};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use super::NO_REPLICATION;
use super::follow::{Trio, follow};
use super::stop::{ALLOWED, stop};

const REPLICATION: &str = "local all all trust\nhost all all all trust\nhost replication all all trust\n";

/// The shutdown goes on, and never becomes an immediate one.
#[test]
fn while_a_server_is_stopped() {
    let mut stage = Stage::builder().agent_with(ALLOWED).standby(Condition::Running).build();
    let (primary, target, agent) = stage.parts();
    // it makes the shutdown's restartpoint
    let sql = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'";
    let checkpointer = Pid::from_raw(target.get::<i32>(sql, &[])).expect("a process");
    let postmaster = target.postmaster().expect("a server");
    kill_process(checkpointer, Signal::STOP).expect("stopped");
    let options = json!({ "transport": "agent", "stop_timeout": 60 });
    let error = std::thread::scope(|scope| {
        let call = scope.spawn(|| stop(primary, target, &options).expect_err("nobody stops it"));
        wait::until_true("the shutdown to begin", wait::PATIENCE, || {
            target.read("postmaster.pid").lines().last().is_some_and(|status| status.trim() == "stopping")
        });
        agent.kill();
        call.join().expect("no panic")
    });
    error.expect("08006").says("agent");
    kill_process(checkpointer, Signal::CONT).expect("it runs on");
    wait::until_true("the end of the server", wait::PATIENCE, || !process::is_alive(postmaster));
    assert_eq!(target.control("Database cluster state"), "shut down in recovery");
    agent.restart();
    let report = stop(primary, target, &options).expect("nothing runs");
    assert_eq!(report["stopped"], false, "{report}");
}

#[test]
fn while_a_standby_is_told_to_follow() {
    let mut trio = Trio::new(Transport::Agent);
    trio.fail_over();
    trio.new.set_hba(NO_REPLICATION);
    trio.new.reload();
    let running = trio.third.postmaster();
    let options = trio.option("follow_timeout", 60);
    let (new, third, agent) = (&trio.new, &trio.third, &mut trio.agent);
    let error = std::thread::scope(|scope| {
        let call = scope.spawn(|| follow(new, third, &options).expect_err("nobody is asked"));
        wait::until_true("it to be told", wait::PATIENCE, || third.has("myrecovery.conf"));
        agent.kill();
        call.join().expect("no panic")
    });
    error.expect("08006").says("agent");
    assert_eq!(third.postmaster(), running, "it was not restarted");
    agent.restart();
    new.set_hba(REPLICATION);
    new.reload();
    let report = follow(new, third, &options).expect("follows");
    assert_eq!(report["result"], "following", "{report}");
    trio.demand_following(&trio.third);
}

/// That is a recovery: it goes on.
#[test]
fn while_a_server_that_has_diverged_is_rebuilt() {
    let mut trio = Trio::new(Transport::Agent);
    trio.without(&trio.new, || trio.old.execute("CREATE TABLE only_on_third ()"));
    trio.old.kill();
    trio.new.promote();
    trio.new.execute("CREATE TABLE more AS SELECT generate_series(1, 100000) AS n");
    let mut options = trio.option("on_diverged", "rebuild");
    options["retry_for"] = json!(60);
    options["max_rate"] = json!(1000);
    let (new, third, agent) = (&trio.new, &trio.third, &mut trio.agent);
    let sql = format!(
        "SELECT pgpool_recovery_follow('localhost', '{}', {}, '{}', {}, 2, '{options}')",
        third.dir(),
        third.port(),
        new.host().address(),
        new.port()
    );
    let running = Running::start_statement(new, "", sql);
    let status = |what: &str| {
        let sql = format!("SELECT count(*) FROM pgpool_recovery_status WHERE state = 'running' AND {what}");
        new.get::<i64>(&sql, &[]) == 1
    };
    wait::until_true("data to be sent", wait::PATIENCE, || status("sent_bytes > 1000000"));
    agent.kill();
    wait::until_true("the call to be tried again", wait::PATIENCE, || status("error IS NOT NULL"));
    agent.restart();
    wait::until_true("the end", wait::PATIENCE, || running.has_ended());
    let notices = running.notices();
    running.finish_within(wait::PATIENCE).expect("the same call goes on");
    assert!(notices.iter().any(|notice| notice.contains("is tried again: ")), "{notices:?}");
    trio.demand_following(&trio.third);
    let sql = "SELECT count(*) FROM pg_class WHERE relname = 'only_on_third'";
    assert_eq!(trio.third.get::<i64>(sql, &[]), 0);
}

/// Nothing was promoted, and the standby waits for another second stage.
#[test]
fn while_a_second_stage_waits_for_replay() {
    let scratch = Scratch::new();
    let main = stages::node(&scratch, "main").into_primary();
    stages::make_sequences(&main);
    let node = stages::node(&scratch, "node");
    let secret = agent::secret(&scratch, "secret");
    let mut agent = Agent::start(&scratch, &Host::here(), &secret, &[node.directory()]);
    main.append_conf("pgpool_recovery.secret_file", secret.display());
    main.append_conf("pgpool_recovery.deadline", "60s");
    main.use_agent(agent.port());
    let stage = |script: &str| stages::call(&mut main.connect(), script, &node);
    stage(FIRST).unwrap_or_else(|error| panic!("{error:?}"));
    node.execute("ALTER SYSTEM SET recovery_min_apply_delay = '1h'");
    node.reload();
    main.execute("CREATE TABLE late ()");
    let error = std::thread::scope(|scope| {
        let call = scope.spawn(|| stage(SECOND).expect_err("nobody tells how far it is"));
        wait::until_true("the restore point", wait::PATIENCE, || {
            main.log().contains("restore point \"pgpool_recovery_2nd_stage\" created")
        });
        agent.kill();
        call.join().expect("no panic")
    });
    error.expect("08006").says("agent");
    assert!(node.in_recovery() && node.has("pgpool_recovery.second_stage"));
    assert_eq!(probe::slots(&main), ["server1"]);
    agent.restart();
    node.execute("ALTER SYSTEM RESET recovery_min_apply_delay");
    node.reload();
    stage(SECOND).unwrap_or_else(|error| panic!("{error:?}"));
    assert!(!node.in_recovery());
    stages::assert_same(&main, &node);
}
