//! Calls of `pgpool_recovery_promote`: what is asked of a primary, two at once, arguments, rights.

use pgpool_recovery_e2e::recovery::SqlError;
use pgpool_recovery_e2e::scratch::write_as_postgres;
use serde_json::json;

use super::{MARK, Trio, demand_following, promote, with};

#[test]
fn a_primary_is_promoted_already() {
    let trio = Trio::new();
    let lives = trio.old.postmaster();
    // nothing is promoted or stopped, whatever is named; the nodes follow
    let report = promote(&trio.old, Some(&trio.two), &trio.nodes(&[&trio.one])).expect("success");
    assert_eq!(
        (&report["result"], &report["already_primary"]),
        (&json!("already_primary"), &json!(true)),
        "{report}"
    );
    assert_eq!(
        (&report["timeline"], &report["nodes"][0]["result"]),
        (&json!(1), &json!("following")),
        "{report}"
    );
    let unused = "SELECT count(*) FROM pg_replication_slots WHERE NOT active";
    assert_eq!(trio.old.get::<i64>(unused, &[]), 0, "it keeps no WAL for nobody");
    trio.demand_nothing_promoted();
    assert_eq!((trio.old.postmaster(), trio.two.has(MARK)), (lives, false));
}

/// On a primary it is of a fence that is at work; on a standby it would keep the next primary from being started.
#[test]
fn the_mark_of_an_earlier_fence_goes_from_a_standby_only() {
    let trio = Trio::new();
    let text = json!({ "fenced": 1, "by": "a test", "why": "It was going to be promoted." }).to_string();
    for server in [&trio.old, &trio.one] {
        write_as_postgres(&server.directory().join(MARK), &text, 0o600);
    }
    promote(&trio.old, None, &trio.nodes(&[&trio.two])).expect("a primary already");
    assert!(trio.old.has(MARK));
    trio.kill_primary();
    promote(&trio.one, None, &trio.options).expect("promoted");
    assert!(!trio.one.has(MARK));
}

#[test]
fn a_call_on_a_primary_leads_the_nodes_that_an_earlier_one_has_left() {
    let trio = Trio::new();
    trio.kill_primary();
    promote(&trio.one, Some(&trio.old), &trio.options).expect("promoted");
    let report = promote(&trio.one, Some(&trio.old), &trio.nodes(&[&trio.two])).expect("success");
    assert_eq!(report["result"], "already_primary", "{report}");
    assert_eq!(report["nodes"][0]["result"], "following", "{report}");
    demand_following(&trio.one, &trio.two);
}

#[test]
fn of_two_calls_at_once_one_promotes_and_the_other_finds_a_primary() {
    let trio = Trio::new();
    trio.kill_primary();
    let options = trio.nodes(&[&trio.two]);
    let reports = std::thread::scope(|scope| {
        let call = || promote(&trio.one, Some(&trio.old), &options).expect("success");
        let calls = [scope.spawn(call), scope.spawn(call)];
        calls.map(|call| call.join().expect("no panic"))
    });
    let mut results = reports.map(|report| report["result"].as_str().unwrap_or_default().to_owned());
    results.sort();
    assert_eq!(results, ["already_primary", "promoted"]);
    let timeline = "SELECT substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)";
    assert_eq!(trio.one.get::<String>(timeline, &[]), "00000002", "promoted once");
}

#[test]
fn of_two_standbys_that_are_promoted_at_once_one_becomes_the_primary() {
    for _ in 0..3 {
        let trio = Trio::new();
        trio.kill_primary();
        let results = std::thread::scope(|scope| {
            let calls = [(&trio.one, &trio.two), (&trio.two, &trio.one)].map(|(standby, other)| {
                scope.spawn(|| promote(standby, Some(&trio.old), &trio.nodes(&[other])))
            });
            calls.map(|call| call.join().expect("no panic"))
        });
        let primaries = [&trio.one, &trio.two].map(|node| !node.in_recovery());
        assert_eq!(primaries.iter().filter(|is| **is).count(), 1, "{results:?}");
        for (result, is_primary) in results.into_iter().zip(primaries) {
            match result {
                Ok(report) => assert!(is_primary && report["result"] == "promoted", "{report}"),
                Err(error) => {
                    assert!(!is_primary);
                    error.expect("55000").says("as a primary already");
                }
            }
        }
    }
}

#[test]
fn arguments_are_checked_and_change_nothing() {
    let trio = Trio::new();
    let mut client = trio.one.connect();
    for (arguments, sqlstate) in [
        ("NULL, '/srv/b', 5432", "22004"),
        ("'localhost', NULL, 5432", "22004"),
        ("'localhost', '/srv/b', NULL", "22004"),
        ("NULL, NULL, NULL, NULL", "22004"),
        ("'local host', '/srv/b', 5432", "22023"),
        ("'localhost', 'relative', 5432", "22023"),
        ("'localhost', '/srv/b', 0", "22023"),
        ("NULL, NULL, NULL, '{\"unknown\": 1}'", "22023"),
        ("NULL, NULL, NULL, '{\"fence\": \"perhaps\"}'", "22023"),
        ("NULL, NULL, NULL, '{\"fence\": true}'", "22023"),
        ("NULL, NULL, NULL, '{\"deadline\": 0}'", "22023"),
        ("NULL, NULL, NULL, '{\"nodes\": {}}'", "22023"),
        ("NULL, NULL, NULL, '{\"nodes\": [{\"host\": \"x\"}]}'", "22023"),
        ("NULL, NULL, NULL, '[]'", "22023"),
    ] {
        let sql = format!("SELECT pgpool_recovery_promote({arguments})");
        let error = client.query_one(&sql, &[]).expect_err(&sql);
        SqlError::from(&error).expect(sqlstate);
    }
    trio.demand_nothing_promoted();
}

#[test]
fn a_role_that_may_promote_fences_the_primary_of_this_standby_alone() {
    let trio = Trio::new();
    trio.old.execute(
        "CREATE ROLE stranger LOGIN; CREATE ROLE operator LOGIN REPLICATION;
         GRANT EXECUTE ON FUNCTION pgpool_recovery_promote, pgpool_recovery_stop TO stranger, operator",
    );
    trio.one.wait_for_replay(&trio.old);
    let secret = trio.options["secret_file"].as_str().expect("a path");
    trio.one.append_conf("pgpool_recovery.secret_file", secret);
    trio.one.use_agent(trio.agent.port());
    let call = |role: &str, sql: &str| {
        let mut client = trio.one.connect();
        client.batch_execute(&format!("SET SESSION AUTHORIZATION {role}")).expect("a role");
        client.simple_query(sql).map(drop).map_err(|error| SqlError::from(&error))
    };
    let named = |options: &str| {
        let (dir, port) = (trio.old.dir(), trio.old.port());
        format!("SELECT pgpool_recovery_promote('localhost', '{dir}', {port}, '{options}')")
    };
    call("stranger", &named("{}")).expect_err("refused").expect("42501").says("REPLICATION");
    call("operator", &named("{\"fence\": \"off\"}")).expect_err("refused").expect("42501").says("weaker");
    call("operator", &named("{\"agent_port\": 1}")).expect_err("refused").expect("42501");
    let stop = format!("SELECT pgpool_recovery_stop('localhost', '{}')", trio.old.dir());
    call("operator", &stop).expect_err("refused").expect("42501").says("stop_target");
    trio.demand_nothing_promoted();
    assert!(trio.old.postmaster().is_some());
    call("operator", &named("{\"fence\": \"required\"}")).expect("promoted");
    assert!(!trio.one.in_recovery() && trio.old.has(MARK));
}

#[test]
fn templates_that_make_no_names_are_refused_before_anything_is_stopped() {
    let trio = Trio::new();
    let lives = trio.old.postmaster();
    let options = trio.nodes(&[&trio.two]);
    let long = "a".repeat(64);
    for (name, template, said) in [
        ("slot_name", "node%x", "invalid template"),
        ("slot_name", &long, "invalid replication slot name"),
        ("application_name", "%", "invalid template"),
    ] {
        let options = with(&options, name, template);
        let error = promote(&trio.one, Some(&trio.old), &options).expect_err("refused");
        error.expect("22023").says(said);
        assert_eq!((trio.old.postmaster(), trio.old.has(MARK)), (lives, false));
        trio.demand_nothing_promoted();
    }
}
