//! `pgpool_recovery_stop` and `stop_target`: a standby, or a primary that a promotion has replaced, is stopped; the primary of a
//! history that goes on is not.

use pgpool_recovery_e2e::agent::{self, Agent};
use pgpool_recovery_e2e::by_both_transports;
use pgpool_recovery_e2e::cluster::Stop;
use pgpool_recovery_e2e::recovery::SqlError;
use pgpool_recovery_e2e::stage::{Condition, Stage, Transport};
use pgpool_recovery_e2e::{Cluster, Host, Recovery, Scratch};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

pub(super) const ALLOWED: &str = "allow_stop = true\n";

pub(super) fn stop(caller: &Cluster, target: &Cluster, options: &Value) -> Result<Value, SqlError> {
    let sql = "SELECT pgpool_recovery_stop('localhost', $1, $2)";
    let row = caller.connect().query_one(sql, &[&target.dir(), options]);
    row.map(|row| row.get(0)).map_err(|error| SqlError::from(&error))
}

/// An agent that may stop the servers of two directories, and the options that lead to it.
pub(super) fn agent_of(scratch: &Scratch, clusters: [&Cluster; 2]) -> (Agent, Value) {
    let secret = agent::secret(scratch, "outage-secret");
    let text: String = clusters.iter().map(|cluster| agent::cluster(cluster.directory()) + ALLOWED).collect();
    let agent = Agent::start_with(scratch, &Host::here(), &secret, &text);
    let options = json!({ "transport": "agent", "agent_port": agent.port(), "secret_file": secret.to_str() });
    (agent, options)
}

fn a_standby_is_stopped(transport: Transport) {
    let stage = Stage::builder().agent_with(ALLOWED).standby(Condition::Running).build();
    let options = json!({ "transport": transport.name() });
    let report = stop(&stage.primary, &stage.target, &options).expect("stopped");
    assert_eq!((&report["stopped"], &report["role"]), (&json!(true), &json!("standby")), "{report}");
    assert_eq!(report["mode"], "fast", "{report}");
    assert_eq!(stage.target.postmaster(), None);
    assert_eq!(stage.target.control("Database cluster state"), "shut down in recovery");
    let again = stop(&stage.primary, &stage.target, &options).expect("nothing runs");
    assert_eq!((&again["stopped"], &again["role"]), (&json!(false), &Value::Null), "{again}");
}

fn a_running_standby_is_stopped_and_rebuilt(transport: Transport) {
    let stage = Stage::builder().agent_with(ALLOWED).standby(Condition::Running).build();
    let running = stage.target.postmaster();
    stage.recovery_by(transport).fail(&stage.primary).expect("55006").says("a server is running");
    let sql =
        "SELECT ok, detail FROM pgpool_recovery_check('localhost', $1, $2, $3) WHERE step = 'target_stopped'";
    let check = |stops: bool| {
        let options = json!({ "transport": transport.name(), "stop_target": stops });
        let port = i32::from(stage.primary.port());
        let row = stage.primary.connect().query_one(sql, &[&stage.target.dir(), &port, &options]).expect(sql);
        (row.get::<_, bool>(0), row.get::<_, String>(1))
    };
    assert!(!check(false).0);
    let (ok, detail) = check(true);
    assert!(ok && detail.contains("a standby runs there"), "{detail}");
    assert_eq!(stage.target.postmaster(), running, "a check stops nothing");
    stage.recovery_by(transport).option("stop_target", true).option("start", true).run(&stage.primary);
    stage.primary.execute("CREATE TABLE later ()");
    stage.target.wait_for_replay(&stage.primary);
    assert_ne!(stage.target.postmaster(), running);
}

fn an_old_primary_that_still_runs_is_stopped_and_rebuilt(transport: Transport) {
    let scratch = Scratch::new();
    let old = Cluster::primary(&scratch);
    let new = Cluster::standby_by_basebackup(&old, &Host::here(), "new");
    old.execute("CREATE TABLE replicated ()");
    new.wait_for_replay(&old);
    new.promote();
    let (_agent, mut options) = agent_of(&scratch, [&old, &new]);
    options["transport"] = transport.name().into();
    old.execute("CREATE TABLE never_replicated ()");
    let recovery = |stops: bool| {
        let mut recovery = Recovery::of(&old, &new).option("start", true).option("stop_target", stops);
        for (name, value) in options.as_object().expect("options") {
            recovery = recovery.option(name, value.clone());
        }
        recovery
    };
    recovery(false).fail(&new).expect("55006").says("a server is running");
    assert!(old.postmaster().is_some());
    recovery(true).run(&new);
    old.wait_for_replay(&new);
    assert!(old.in_recovery());
}

by_both_transports!(
    a_standby_is_stopped,
    a_running_standby_is_stopped_and_rebuilt,
    an_old_primary_that_still_runs_is_stopped_and_rebuilt,
);

#[test]
fn the_primary_of_a_history_that_goes_on_is_never_stopped() {
    let scratch = Scratch::new();
    let one = Cluster::primary(&scratch);
    let other = Cluster::standby_by_basebackup(&one, &Host::here(), "other");
    let third = Cluster::standby_by_basebackup(&one, &Host::here(), "third");
    let (_agent, options) = agent_of(&scratch, [&one, &other]);
    for transport in Transport::BOTH {
        let mut options = options.clone();
        options["transport"] = transport.name().into();
        // a standby asks, of its primary
        stop(&other, &one, &options).expect_err("refused").expect("55000").says("own timeline");
        // a server asks, of itself
        stop(&one, &one, &options).expect_err("refused").expect("55000").says("asked to stop it");
        stop(&other, &other, &options).expect_err("refused").expect("55000").says("asked to stop it");
    }
    // two are promoted, and know nothing of each other; pg_control may not have noticed yet
    other.promote();
    third.promote();
    stop(&third, &other, &options).expect_err("refused").expect("55000").says("timeline 2");
    let recovery = Recovery::of(&other, &third)
        .option("transport", "local")
        .option("stop_target", true)
        .option("dest_port", other.port());
    recovery.fail(&third).expect("55000").says("must not be stopped");
    // one that went on to timeline 2 is not left behind by one that is on 1
    stop(&one, &other, &options).expect_err("refused").expect("55000").says("has not sprung");
    for cluster in [&one, &other, &third] {
        assert!(cluster.postmaster().is_some(), "{}", cluster.name());
    }
}

/// Two servers that are promoted at one position have the same history file, and neither is the other's past.
#[test]
fn a_primary_is_replaced_only_if_its_own_wal_is_the_others_past() {
    let scratch = Scratch::new();
    let one = Cluster::primary(&scratch);
    let twin = Cluster::standby_by_basebackup(&one, &Host::here(), "twin");
    let other = Cluster::standby_by_basebackup(&one, &Host::here(), "other");
    one.stop(Stop::Fast);
    twin.promote();
    other.promote();
    let history = "pg_wal/00000002.history";
    assert_eq!(twin.read(history), other.read(history));
    let next = Cluster::standby_by_basebackup(&other, &Host::here(), "next");
    other.execute("CREATE TABLE replicated ()");
    next.wait_for_replay(&other);
    next.promote();
    let (_agent, options) = agent_of(&scratch, [&twin, &other]);
    for transport in Transport::BOTH {
        let mut options = options.clone();
        options["transport"] = transport.name().into();
        stop(&next, &twin, &options).expect_err("refused").expect("55000").says("was replaced");
    }
    let recovery = Recovery::of(&twin, &next).option("transport", "local").option("stop_target", true);
    recovery.option("dest_port", twin.port()).fail(&next).expect("55000").says("was replaced");
    assert!(twin.postmaster().is_some());
    // it goes on, after it was replaced
    other.execute("CREATE TABLE never_replicated ()");
    let report = stop(&next, &other, &options).expect("stopped");
    assert_eq!(report["role"], "former_primary", "{report}");
    assert_eq!(other.postmaster(), None);
}

#[test]
fn a_role_that_may_recover_stops_nothing_unless_an_administrator_lets_it() {
    let stage = Stage::builder()
        .with("pgpool_recovery.transport", "agent")
        .agent_with(ALLOWED)
        .standby(Condition::Running)
        .build();
    stage.primary.execute(
        "CREATE ROLE operator LOGIN REPLICATION;
         GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO operator",
    );
    let ask = |options: &str| {
        let mut client = stage.primary.connect();
        client.batch_execute("SET SESSION AUTHORIZATION operator").expect("a role");
        let call = format!("SELECT pgpool_recovery_stop('localhost', '{}', '{options}')", stage.target.dir());
        client.simple_query(&call).map(drop).map_err(|error| SqlError::from(&error))
    };
    ask("{}").expect_err("refused").expect("42501").says("pgpool_recovery.stop_target");
    stage.primary.append_conf("pgpool_recovery.stop_target", "on");
    stage.primary.reload();
    ask("{\"stop_timeout\": 1}").expect_err("refused").expect("42501").says("stop_timeout");
    assert!(stage.target.postmaster().is_some());
    ask("{}").expect("stopped");
    assert_eq!(stage.target.postmaster(), None);
}

#[test]
fn a_server_of_another_system_is_never_stopped() {
    let scratch = Scratch::new();
    let primary = Cluster::primary(&scratch);
    let foreign =
        Cluster::place(&scratch, &Host::here(), "foreign").initdb_argument("--data-checksums").into_primary();
    let options = json!({ "transport": "local" });
    stop(&primary, &foreign, &options).expect_err("refused").expect("55000").says("system identifier");
    assert!(foreign.postmaster().is_some());
}

#[test]
fn an_agent_stops_nothing_unless_it_may() {
    let stage = Stage::builder().agent().standby(Condition::Running).build();
    let options = json!({ "transport": "agent" });
    let error = stop(&stage.primary, &stage.target, &options).expect_err("refused");
    error.expect("42501").says("allow_stop");
    let recovery = stage.recovery_by(Transport::Agent).option("stop_target", true);
    recovery.fail(&stage.primary).expect("42501").says("allow_stop");
    assert!(stage.target.postmaster().is_some());
}

#[test]
fn a_stop_command_that_fails_leaves_the_server_running() {
    let lines = format!(
        "{ALLOWED}stop_command = [\"/bin/sh\", \"-c\", \"echo interactive authentication required; exit 4\"]\n"
    );
    let stage = Stage::builder().agent_with(&lines).standby(Condition::Running).build();
    let error = stop(&stage.primary, &stage.target, &json!({ "transport": "agent" })).expect_err("failed");
    error.expect("55006").says("exited with code 4").says("interactive authentication");
    assert!(stage.target.postmaster().is_some());
}

/// The checkpointer makes the shutdown's restartpoint, so one that is stopped holds up a fast shutdown.
#[test]
fn a_server_that_does_not_shut_down_in_time_is_stopped_immediately() {
    let stage = Stage::builder().agent_with(ALLOWED).standby(Condition::Running).build();
    let sql = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'";
    let checkpointer = Pid::from_raw(stage.target.get::<i32>(sql, &[])).expect("a process");
    kill_process(checkpointer, Signal::STOP).expect("stopped");
    let options = json!({ "transport": "agent", "stop_timeout": 1 });
    let report = stop(&stage.primary, &stage.target, &options).expect("stopped");
    assert_eq!(report["mode"], "immediate", "{report}");
    assert!(report["seconds"].as_f64().is_some_and(|seconds| seconds >= 1.0), "{report}");
    assert_eq!(stage.target.postmaster(), None);
    stage.recovery().run(&stage.primary);
}

#[test]
fn arguments_are_checked() {
    let scratch = Scratch::new();
    let primary = Cluster::primary(&scratch);
    let mut client = primary.connect();
    for (arguments, sqlstate) in [
        ("NULL, '/srv/b'", "22004"),
        ("'localhost', NULL", "22004"),
        ("'localhost', '/srv/b', NULL", "22004"),
        ("'localhost', 'relative'", "22023"),
        ("'localhost', '/srv/b', '{\"unknown\": 1}'", "22023"),
        ("'localhost', '/srv/b', '{\"stop_timeout\": 0}'", "22023"),
    ] {
        let sql = format!("SELECT pgpool_recovery_stop({arguments})");
        let error = client.query_one(&sql, &[]).expect_err(&sql);
        SqlError::from(&error).expect(sqlstate);
    }
    client
        .batch_execute(
            "CREATE ROLE stranger; GRANT EXECUTE ON FUNCTION pgpool_recovery_stop TO stranger; SET ROLE stranger",
        )
        .expect("a role");
    let error =
        client.query_one("SELECT pgpool_recovery_stop('localhost', '/srv/b')", &[]).expect_err("no right");
    SqlError::from(&error).expect("42501").says("REPLICATION");
}
