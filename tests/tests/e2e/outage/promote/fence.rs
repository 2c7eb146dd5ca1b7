//! The old primary of a promotion: it does not live on beside the new one, and no other server is stopped in its place.

use pgpool_recovery_e2e::cluster::Stop;
use pgpool_recovery_e2e::ports::Port;
use pgpool_recovery_e2e::recovery::{SqlError, try_remote_start};
use pgpool_recovery_e2e::wait::{PATIENCE, until_true};
use pgpool_recovery_e2e::{Cluster, Scratch};
use postgres::types::ToSql;
use serde_json::{Value, json};

use super::{MARK, Trio, demand_following, mark, promote, with};

fn fenced(report: &Value) -> (&Value, &Value) {
    (&report["fenced"]["fenced"], &report["fenced"]["was_running"])
}

#[test]
fn an_old_primary_that_lives_is_stopped_and_rejoins_without_a_copy() {
    let trio = Trio::new();
    let (one, old) = (&trio.one, &trio.old);
    old.execute("CREATE TABLE kept AS SELECT generate_series(1, 1000) AS n");
    let report = promote(one, Some(old), &trio.nodes(&[&trio.two])).expect("promoted");
    assert_eq!(fenced(&report), (&json!(true), &json!(true)), "{report}");
    assert_eq!(report["fenced"]["mode"], "fast", "{report}");
    assert_eq!(old.postmaster(), None);
    assert_eq!(old.control("Database cluster state"), "shut down");
    assert!(mark(old)["lsn"].as_u64().is_some(), "{:?}", mark(old));
    // a clean end loses nothing, although nobody waited for the standby
    assert_eq!(one.get::<i64>("SELECT count(*) FROM kept", &[]), 1000);
    demand_following(one, &trio.two);
    // nothing of ours starts it as the primary that it was
    one.append_conf("pgpool_recovery.secret_file", trio.options["secret_file"].as_str().expect("a path"));
    one.use_agent(trio.agent.port());
    let refused = try_remote_start(one, "localhost", old.dir()).expect_err("refused");
    refused.expect("58000").says("was fenced").says(MARK);
    assert_eq!(old.postmaster(), None);
    let sql = "SELECT pgpool_recovery_follow('localhost', $1, $2, $3, $4, 0, $5)";
    let (port, own) = (i32::from(old.port()), i32::from(one.port()));
    let row = one.connect().query_one(sql, &[&old.dir(), &port, &one.host().address(), &own, &trio.options]);
    let report: Value = row.unwrap_or_else(|error| panic!("{:?}", SqlError::from(&error))).get(0);
    assert_eq!(report["result"], "rejoined", "{report}");
    assert!(!old.has(MARK));
    demand_following(one, old);
}

/// A connection pooler, for instance: it speaks with clients before the primary is stopped, and after that.
#[test]
fn what_else_speaks_where_the_primary_is_said_to_listen_is_no_refusal_once_that_is_stopped() {
    let (trio, scratch) = (Trio::new(), Scratch::new());
    let pooler = Cluster::place(&scratch, trio.old.host(), "pooler").into_primary();
    let sql = "SELECT pgpool_recovery_promote('127.0.0.1', $1, $2, $3)";
    let arguments: &[&(dyn ToSql + Sync)] =
        &[&trio.old.dir(), &i32::from(pooler.port()), &trio.nodes(&[&trio.two])];
    let row = trio.one.connect().query_one(sql, arguments);
    let report: Value = row.unwrap_or_else(|error| panic!("{:?}", SqlError::from(&error))).get(0);
    assert_eq!(fenced(&report), (&json!(true), &json!(true)), "{report}");
    assert!(trio.old.postmaster().is_none() && !trio.one.in_recovery());
}

#[test]
fn a_promotion_that_names_the_old_primary_among_the_nodes_turns_the_two_round() {
    let trio = Trio::new();
    trio.old.execute("CREATE TABLE kept AS SELECT generate_series(1, 1000) AS n");
    let report = promote(&trio.one, Some(&trio.old), &trio.nodes(&[&trio.old, &trio.two])).expect("promoted");
    assert_eq!(fenced(&report), (&json!(true), &json!(true)), "{report}");
    assert_eq!(report["nodes"][0]["result"], "rejoined", "{report}");
    assert_eq!(report["nodes"][1]["result"], "following", "{report}");
    for standby in [&trio.old, &trio.two] {
        demand_following(&trio.one, standby);
        assert_eq!(standby.get::<i64>("SELECT count(*) FROM kept", &[]), 1000);
    }
    assert!(!trio.old.has(MARK));
}

/// Its agent was reached, so its host lives, and what it knows of the server there it does not tell.
#[test]
fn an_old_primary_whose_agent_refuses_may_live() {
    let (trio, scratch) = (Trio::new(), Scratch::new());
    trio.kill_primary();
    let other = pgpool_recovery_e2e::agent::secret(&scratch, "other");
    let strange = with(&trio.options, "secret_file", other.to_str().expect("ASCII"));
    let error = promote(&trio.one, Some(&trio.old), &strange).expect_err("refused");
    error.expect("55000").says("cannot tell whether the primary lives").says("refused this server's secret");
    trio.demand_nothing_promoted();
    promote(&trio.one, Some(&trio.old), &trio.options).expect("promoted");
}

#[test]
fn without_the_fence_that_is_required_nothing_is_promoted() {
    let trio = Trio::new();
    trio.kill_primary();
    let nobody = Port::claim();
    let required = with(&trio.option("fence", "required"), "agent_port", nobody.number());
    let error = promote(&trio.one, Some(&trio.old), &required).expect_err("refused");
    error.expect("08001").says("could not be fenced").says("required");
    let error = promote(&trio.one, None, &trio.option("fence", "required")).expect_err("refused");
    error.expect("22023").says("no old primary is named");
    trio.demand_nothing_promoted();
    assert!(!trio.old.has(MARK));
    let report = promote(&trio.one, Some(&trio.old), &trio.option("fence", "required")).expect("promoted");
    assert_eq!(fenced(&report), (&json!(true), &json!(false)), "{report}");
}

#[test]
fn an_old_primary_of_which_nothing_answers_holds_up_nothing() {
    let trio = Trio::new();
    trio.kill_primary();
    let nobody = Port::claim();
    let options = trio.option("agent_port", nobody.number());
    let report = promote(&trio.one, Some(&trio.old), &options).expect("promoted");
    assert_eq!(report["fenced"]["fenced"], false, "{report}");
    assert!(
        report["fenced"]["error"].as_str().is_some_and(|error| error.contains("could not connect")),
        "{report}"
    );
    assert!(!trio.one.in_recovery() && !trio.old.has(MARK));
}

#[test]
fn nothing_is_promoted_beside_a_primary_that_lives() {
    let trio = Trio::with("");
    let lives = trio.old.postmaster();
    let nobody = Port::claim();
    // its agent may not stop it; there is no agent, but it answers; it is not to be fenced; it is not named
    for (old, options) in [
        (Some(&trio.old), trio.options.clone()),
        (Some(&trio.old), trio.option("agent_port", nobody.number())),
        (Some(&trio.old), trio.option("fence", "off")),
        (None, trio.options.clone()),
        (Some(&trio.two), trio.options.clone()),
    ] {
        let error = promote(&trio.one, old, &options).expect_err("refused");
        error.expect("55000").says("another primary is alive");
    }
    trio.demand_nothing_promoted();
    assert_eq!((trio.old.postmaster(), trio.old.has(MARK)), (lives, false));
    assert!(trio.two.postmaster().is_some() && !trio.two.has(MARK));
    // the agent alone tells it, too
    trio.without(&trio.one, || ());
    let error = promote(&trio.one, Some(&trio.old), &trio.options).expect_err("refused");
    error.expect("55000").says("runs as a primary").says("allow_stop");
    trio.demand_nothing_promoted();
}

#[test]
fn what_would_be_refused_after_the_fence_is_refused_before_it() {
    let trio = Trio::new();
    let lives = trio.old.postmaster();
    let error = promote(&trio.one, Some(&trio.old), &trio.option("deadline", 12)).expect_err("refused");
    error.expect("57014").says("too little time").says("deadline");
    trio.one.append_conf("recovery_min_apply_delay", "1h");
    trio.one.reload();
    trio.old.execute("CREATE TABLE delayed AS SELECT 1 AS n");
    trio.two.wait_for_replay(&trio.old);
    let error = promote(&trio.one, Some(&trio.old), &trio.option("deadline", 22)).expect_err("refused");
    error.expect("55000").says("has not replayed all").says("recovery_min_apply_delay");
    trio.demand_nothing_promoted();
    assert_eq!((trio.old.postmaster(), trio.old.has(MARK)), (lives, false));
}

#[test]
fn a_primary_that_lets_nobody_in_lives() {
    let trio = Trio::new();
    trio.one.wait_for_replay(&trio.old);
    trio.old.execute("CREATE ROLE other REPLICATION");
    let (host, port) = (trio.old.host().address(), trio.old.port());
    trio.one.append_conf("primary_conninfo", format!("host={host} port={port} user=other"));
    trio.one.reload();
    let is_read = "SELECT current_setting('primary_conninfo') LIKE '%user=other'";
    until_true("the new setting", PATIENCE, || trio.one.get(is_read, &[]));
    let nobody = Port::claim();
    let options = trio.option("agent_port", nobody.number());
    let error = promote(&trio.one, Some(&trio.old), &options).expect_err("refused");
    error.expect("55000").says("another primary is alive").says("not permitted to log in");
    trio.demand_nothing_promoted();
    // a fence proves more than that
    let report = promote(&trio.one, Some(&trio.old), &trio.options).expect("promoted");
    assert_eq!(fenced(&report), (&json!(true), &json!(true)), "{report}");
}

#[test]
fn a_standby_in_the_old_primarys_place_is_not_stopped() {
    let trio = Trio::new();
    trio.kill_primary();
    let running = trio.two.postmaster();
    let required = trio.option("fence", "required");
    promote(&trio.one, Some(&trio.two), &required).expect_err("refused").expect("55000").says("standby");
    let report = promote(&trio.one, Some(&trio.two), &trio.options).expect("promoted");
    assert_eq!(report["fenced"]["fenced"], false, "{report}");
    assert_eq!((trio.two.postmaster(), trio.two.has(MARK)), (running, false));
}

#[test]
fn a_primary_that_was_promoted_in_the_old_ones_place_is_not_stopped() {
    let trio = Trio::new();
    trio.kill_primary();
    trio.two.promote();
    let running = trio.two.postmaster();
    for fence in ["best_effort", "required", "off"] {
        let error = promote(&trio.one, Some(&trio.two), &trio.option("fence", fence)).expect_err("refused");
        error.expect("55000").says("another primary is alive");
    }
    // the same number, but not the same timeline
    trio.one.promote();
    let third = pgpool_recovery_e2e::Cluster::standby_by_basebackup(&trio.one, trio.one.host(), "third");
    trio.one.kill();
    let error = promote(&third, Some(&trio.two), &trio.options).expect_err("refused");
    error.expect("55000").says("another primary is alive");
    assert!(third.in_recovery());
    assert_eq!((trio.two.postmaster(), trio.two.has(MARK)), (running, false));
}

#[test]
fn a_fence_that_fails_leaves_no_mark() {
    let trio = Trio::with(&format!(
        "{}stop_command = [\"/bin/sh\", \"-c\", \"echo interactive authentication required; exit 4\"]\n",
        super::ALLOWED
    ));
    let lives = trio.old.postmaster();
    let error = promote(&trio.one, Some(&trio.old), &trio.options).expect_err("refused");
    error.expect("55000").says("another primary is alive").says("interactive authentication");
    trio.demand_nothing_promoted();
    assert_eq!((trio.old.postmaster(), trio.old.has(MARK)), (lives, false));
}

/// A trio in which this stops the old primary.
fn stopped_by(commands: &str) -> Trio {
    let command = format!("stop_command = ['/bin/sh', '-c', '{commands}']\n");
    Trio::with(&format!("{}{command}", super::ALLOWED))
}

#[test]
fn what_a_supervisor_starts_again_after_a_crash_is_stopped_again() {
    let trio = stopped_by(
        "cd $BIN; if [ -e $TWO/once ]; then until grep -q ready $OLD/postmaster.pid; do sleep 0.1; done; exec ./pg_ctl stop -D $OLD; fi; \
         touch $TWO/once; ./pg_ctl stop -m immediate -D $OLD; (sleep 0.3; ./pg_ctl start -W -l /dev/null -D $OLD) &",
    );
    let report = promote(&trio.one, Some(&trio.old), &trio.options).expect("promoted");
    assert_eq!(fenced(&report), (&json!(true), &json!(true)), "{report}");
    assert!(trio.two.has("once"));
    assert_eq!((trio.old.postmaster(), trio.old.has(MARK)), (None, true));
    assert_eq!(trio.old.control("Database cluster state"), "shut down");
}

#[test]
fn another_standby_that_is_promoted_meanwhile_is_seen() {
    let trio = stopped_by("cd $BIN; ./pg_ctl stop -D $OLD; ./pg_ctl promote -D $TWO");
    let options = trio.nodes(&[&trio.two]);
    let error = promote(&trio.one, Some(&trio.old), &options).expect_err("refused");
    error.expect("55000").says("runs as a primary already");
    assert!(trio.one.in_recovery() && !trio.two.in_recovery());
}

#[test]
fn a_rebuild_takes_the_mark_away() {
    let trio = Trio::new();
    promote(&trio.one, Some(&trio.old), &trio.options).expect("promoted");
    assert!(trio.old.has(MARK));
    let mut recovery = pgpool_recovery_e2e::Recovery::of(&trio.old, &trio.one).option("start", true);
    for (name, value) in trio.options.as_object().expect("options") {
        recovery = recovery.option(name, value.clone());
    }
    recovery.option("dest_port", trio.old.port()).run(&trio.one);
    assert!(!trio.old.has(MARK));
    demand_following(&trio.one, &trio.old);
    trio.old.stop(Stop::Fast);
}
