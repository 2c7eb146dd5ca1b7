//! The other nodes of a promotion: nothing that one of them has is lost, and all follow.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;

use pgpool_recovery_e2e::cluster::Stop;
use pgpool_recovery_e2e::{Cluster, Host, wait};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::{MARK, Trio, demand_following, mark, promote, with};
use crate::outage::NO_REPLICATION;

#[test]
fn the_primary_is_killed_and_all_follow_with_all_rows() {
    let trio = Trio::new();
    trio.kill_primary();
    let running = trio.two.postmaster();
    let report = promote(&trio.one, Some(&trio.old), &trio.nodes(&[&trio.two])).expect("promoted");
    assert_eq!((&report["result"], &report["timeline"]), (&json!("promoted"), &json!(2)), "{report}");
    assert_eq!(report["fenced"]["fenced"], true, "{report}");
    assert_eq!(report["fenced"]["was_running"], false, "{report}");
    assert_eq!(report["nodes"][0]["result"], "following", "{report}");
    assert_eq!(report["nodes"][0]["node_id"], 2, "{report}");
    assert_eq!(report["nodes"][0]["error"], json!(null), "{report}");
    assert!(report["seconds"].as_f64().is_some_and(|seconds| seconds < 20.0), "{report}");
    assert!(!trio.one.in_recovery());
    for cluster in [&trio.one, &trio.two] {
        assert_eq!(cluster.get::<i64>("SELECT count(*) FROM kept", &[]), 1000);
    }
    demand_following(&trio.one, &trio.two);
    assert_eq!(trio.two.postmaster(), running, "it was told, not restarted");
    let slot = format!("node_{}", trio.two.port());
    let sql = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = $1 AND active";
    assert_eq!(trio.one.get::<i64>(sql, &[&slot]), 1);
    let mark = mark(&trio.old);
    assert!(mark["by"].as_str().is_some_and(|by| by.contains(trio.one.dir())), "{mark:?}");
    assert_eq!(mark["lsn"], json!(null), "it was killed");
}

#[test]
fn no_standby_is_promoted_before_one_that_has_received_more() {
    let trio = Trio::new();
    let name = format!("localhost:{}", trio.two.port());
    trio.without(&trio.one, || {
        trio.old.execute("CREATE TABLE seen_by_two AS SELECT 1 AS n");
        trio.two.wait_for_replay(&trio.old);
    });
    let lives = trio.old.postmaster();
    let error = promote(&trio.one, Some(&trio.old), &trio.nodes(&[&trio.two])).expect_err("refused");
    error.expect("55000").says("has received more").says(&name);
    assert_eq!(
        (trio.old.postmaster(), trio.old.has(MARK)),
        (lives, false),
        "asked before anything is stopped"
    );
    trio.old.kill();
    let error = promote(&trio.one, Some(&trio.old), &trio.nodes(&[&trio.two])).expect_err("refused");
    error.expect("55000").says("has received more").says(&name);
    trio.demand_nothing_promoted();
    // the one that was named is the right one
    let report = promote(&trio.two, Some(&trio.old), &trio.nodes(&[&trio.one])).expect("promoted");
    assert_eq!(report["nodes"][0]["result"], "following", "{report}");
    assert_eq!(trio.two.get::<i32>("SELECT n FROM seen_by_two", &[]), 1);
    demand_following(&trio.two, &trio.one);
}

#[test]
fn no_standby_is_promoted_beside_a_node_that_is_a_primary_already() {
    let trio = Trio::new();
    trio.kill_primary();
    trio.two.promote();
    let running = trio.two.postmaster();
    for old in [Some(&trio.old), None] {
        let error = promote(&trio.one, old, &trio.nodes(&[&trio.two])).expect_err("refused");
        error.expect("55000").says("runs as a primary already").says("timeline 2");
    }
    assert!(trio.one.in_recovery());
    assert_eq!(trio.two.postmaster(), running);
    // a standby of that primary tells of it, too
    let third = Cluster::standby_by_basebackup(&trio.two, trio.two.host(), "third");
    let options = with(&trio.nodes(&[&third]), "transport", "local");
    promote(&trio.one, None, &options).expect_err("refused").expect("55000").says("timeline 2");
    assert!(trio.one.in_recovery());
}

#[test]
fn a_node_that_cannot_follow_is_no_error_of_the_promotion() {
    let trio = Trio::new();
    trio.kill_primary();
    let two = trio.two.directory().to_owned();
    trio.two.stop(Stop::Fast);
    let mut options = trio.nodes(&[&trio.two]);
    let nodes = options["nodes"].as_array_mut().expect("nodes");
    nodes.push(json!({ "node_id": 7, "host": "localhost", "port": 1, "directory": "/nonexistent/data" }));
    let report = promote(&trio.one, Some(&trio.old), &options).expect("promoted");
    assert_eq!(report["result"], "promoted", "{report}");
    assert!(!trio.one.in_recovery());
    let error = |node: usize| report["nodes"][node]["error"].as_str().unwrap_or_default().to_owned();
    assert!(error(0).contains(two.to_str().expect("ASCII")), "{report}");
    assert!(error(1).contains("does not serve"), "{report}");
    // its slot keeps the WAL for it
    let sql = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = $1 AND restart_lsn IS NOT NULL";
    assert_eq!(trio.one.get::<i64>(sql, &[&format!("node_{}", trio.two.port())]), 1);
}

#[test]
fn paused_replay_is_not_resumed() {
    let trio = Trio::new();
    trio.one.execute("SELECT pg_wal_replay_pause()");
    let lives = trio.old.postmaster();
    let error = promote(&trio.one, Some(&trio.old), &trio.nodes(&[&trio.two])).expect_err("refused");
    error.expect("55000").says("replay on this standby is paused").says("pg_wal_replay_resume");
    assert_eq!((trio.old.postmaster(), trio.old.has(MARK)), (lives, false));
    assert!(trio.one.get::<bool>("SELECT pg_is_wal_replay_paused()", &[]));
    trio.demand_nothing_promoted();
    trio.kill_primary_while_paused();
    trio.one.execute("SELECT pg_wal_replay_resume()");
    promote(&trio.one, Some(&trio.old), &trio.options).expect("promoted");
}

/// Its promotion would wait for a signal, and whoever is promoted meanwhile would have company then.
#[test]
fn a_standby_whose_replay_is_stopped_is_not_promoted() {
    let trio = Trio::new();
    trio.kill_primary();
    let startup = trio.one.get::<i32>("SELECT pid FROM pg_stat_activity WHERE backend_type = 'startup'", &[]);
    let startup = Pid::from_raw(startup).expect("a process");
    kill_process(startup, Signal::STOP).expect("stopped");
    let error = promote(&trio.one, Some(&trio.old), &trio.nodes(&[&trio.two])).expect_err("refused");
    kill_process(startup, Signal::CONT).expect("it goes on");
    error.expect("55000").says("stands still").says("stopped by a signal").says("kill -CONT");
    trio.demand_nothing_promoted();
    assert!(!trio.old.has(MARK));
    promote(&trio.one, Some(&trio.old), &trio.nodes(&[&trio.two])).expect("promoted");
}

impl Trio {
    fn kill_primary_while_paused(&self) {
        self.old.execute("CREATE TABLE received_but_not_replayed AS SELECT 1 AS n");
        self.two.wait_for_replay(&self.old);
        self.old.kill();
        let error = promote(&self.one, Some(&self.old), &self.options).expect_err("refused");
        error.expect("55000").says("is paused");
    }
}

/// Nothing answers where the standby itself connects to, but a node knows better.
#[test]
fn no_standby_is_promoted_beside_the_primary_that_a_node_follows() {
    let trio = Trio::new();
    // else the other one may receive more, which is told first: what sessions left, and what runs, every 15 s
    let sql = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'background writer'";
    let writer = Pid::from_raw(trio.old.get(sql, &[])).expect("a process");
    kill_process(writer, Signal::STOP).expect("stopped");
    trio.one.wait_for_replay(&trio.old);
    trio.without(&trio.one, || ());
    let conninfo: String = trio.two.get("SELECT current_setting('primary_conninfo')", &[]);
    for fence in ["off", "best_effort"] {
        let options = with(&trio.nodes(&[&trio.two]), "fence", fence);
        let error = promote(&trio.one, None, &options).expect_err("refused");
        error.expect("55000").says("another primary is alive").says("node 2").says("answers as a primary");
    }
    trio.demand_nothing_promoted();
    assert_eq!(trio.two.get::<String>("SELECT current_setting('primary_conninfo')", &[]), conninfo);
    // its end ends that
    trio.old.kill();
    promote(&trio.one, None, &trio.nodes(&[&trio.two])).expect("promoted");
    demand_following(&trio.one, &trio.two);
}

#[test]
fn a_standby_below_a_standby_is_promoted_only_if_that_one_is_asked() {
    let trio = Trio::new();
    let below = Cluster::standby_by_basebackup(&trio.two, &Host::here(), "below");
    let error = promote(&below, None, &trio.options).expect_err("refused");
    error.expect("55000").says("follows another standby").says("nodes");
    let error = promote(&below, None, &trio.nodes(&[&trio.two])).expect_err("refused");
    error.expect("55000").says("another primary is alive").says("node 2");
    trio.demand_nothing_promoted();
    assert!(below.in_recovery());
    below.wait_for_replay(&trio.old);
    trio.old.kill();
    promote(&below, None, &trio.nodes(&[&trio.two])).expect("promoted");
    demand_following(&below, &trio.two);
}

/// The promotion has happened, so that it is no error of the call's.
#[test]
fn an_agent_that_dies_while_a_node_is_waited_for_is_told() {
    let mut trio = Trio::new();
    trio.kill_primary();
    let replication = trio.one.read("pg_hba.conf");
    trio.one.set_hba(NO_REPLICATION);
    trio.one.reload();
    let options = trio.nodes(&[&trio.two]);
    let (one, two, agent) = (&trio.one, &trio.two, &mut trio.agent);
    let report = std::thread::scope(|scope| {
        let call = scope.spawn(|| promote(one, None, &options).expect("promoted"));
        wait::until_true("the node to be told", wait::PATIENCE, || two.has("myrecovery.conf"));
        agent.kill();
        call.join().expect("no panic")
    });
    assert_eq!(report["result"], "promoted", "{report}");
    assert_eq!(report["nodes"][0]["sqlstate"], "08006", "{report}");
    assert!(!one.in_recovery());
    agent.restart();
    one.set_hba(&replication);
    one.reload();
    let report = promote(one, None, &options).expect("a primary already");
    assert_eq!(report["nodes"][0]["result"], "following", "{report}");
    demand_following(&trio.one, &trio.two);
}

/// PostgreSQL raises its ERROR while it holds a lock of all slots: neither the second node's slot, nor a checkpoint, nor the end
/// of the server may wait for it.
#[test]
fn a_slot_that_cannot_be_made_leaves_a_server_that_works() {
    let trio = Trio::new();
    trio.kill_primary();
    let slots = trio.one.directory().join("pg_replslot");
    let allow = |mode| std::fs::set_permissions(&slots, Permissions::from_mode(mode)).expect("chmod");
    allow(0o500);
    let mut options = trio.nodes(&[&trio.two]);
    let nodes = options["nodes"].as_array_mut().expect("nodes");
    nodes.push(json!({ "node_id": 7, "host": "localhost", "port": 1, "directory": "/nonexistent/data" }));
    let mut client = trio.one.connect();
    // named: else a node of which its agent knows nothing keeps the promotion from happening
    let sql = "SELECT pgpool_recovery_promote('localhost', $1, $2, $3)";
    let (dir, port) = (trio.old.dir(), i32::from(trio.old.port()));
    let report = std::thread::scope(|scope| {
        let called = scope.spawn(|| client.query_one(sql, &[&dir, &port, &options]));
        if !wait::try_until(wait::PATIENCE, || called.is_finished()) {
            // it waits for itself, and no signal but this one ends that
            trio.one.kill();
        }
        called.join().expect("no panic").expect("promoted").get::<_, Value>(0)
    });
    assert_eq!(report["result"], "promoted", "{report}");
    for node in 0..2 {
        let error = report["nodes"][node]["error"].as_str().unwrap_or_default();
        assert!(error.contains("could not create directory"), "{report}");
        assert_eq!(report["nodes"][node]["sqlstate"], "42501", "{report}");
    }
    allow(0o700);
    // the session, which is there still, holds nothing
    trio.one.execute("SET statement_timeout = '20s'; CHECKPOINT");
    trio.one
        .execute("SELECT pg_create_physical_replication_slot('other'), pg_drop_replication_slot('other')");
    client.batch_execute("CHECKPOINT").expect("a checkpoint");
    let report = promote(&trio.one, None, &trio.nodes(&[&trio.two])).expect("a primary already");
    assert_eq!(report["nodes"][0]["result"], "following", "{report}");
    trio.one.stop(Stop::Fast);
}
