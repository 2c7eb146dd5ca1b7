//! The check before a recovery in native replication and snapshot isolation mode.

use std::collections::BTreeMap;

use pgpool_recovery_e2e::cluster::Stop;
use pgpool_recovery_e2e::stages::{self, FIRST, SECOND};
use pgpool_recovery_e2e::{Cluster, Scratch, SqlError, probe, wait};
use postgres::Client;
use serde_json::{Value, json};

type Answers = BTreeMap<String, (bool, String)>;

fn options(node: &Cluster, native: bool) -> Value {
    json!({ "native": native, "node_id": 1, "dest_port": node.port() })
}

fn try_check(client: &mut Client, node: &Cluster, options: &Value) -> Result<Answers, SqlError> {
    let sql = "SELECT step, ok, concat_ws(' ', detail, hint) \
               FROM pgpool_recovery_check('localhost', $1, current_setting('port')::integer, $2)";
    let rows = client.query(sql, &[&node.dir(), options]).map_err(|error| SqlError::from(&error))?;
    Ok(rows.iter().map(|row| (row.get(0), (row.get(1), row.get(2)))).collect())
}

fn check(main: &Cluster, node: &Cluster, native: bool) -> Answers {
    try_check(&mut main.connect(), node, &options(node, native)).expect("answers")
}

/// The steps that are not well.
fn bad(answers: &Answers) -> Vec<&str> {
    answers.iter().filter(|(_, (ok, _))| !ok).map(|(step, _)| step.as_str()).collect()
}

fn run(main: &Cluster, script: &str, node: &Cluster) {
    stages::call(&mut main.connect(), script, node).unwrap_or_else(|error| panic!("{script}: {error:?}"));
}

#[test]
fn what_is_usual_for_a_node_of_its_own_is_well() {
    let scratch = Scratch::new();
    let main = stages::node(&scratch, "main").with("max_prepared_transactions", 5).into_primary();
    let node = stages::node(&scratch, "node");
    assert_eq!(bad(&check(&main, &node, true)), [""; 0], "nothing is there yet");
    run(&main, FIRST, &node);
    // the standby that an earlier first stage has made
    let answers = check(&main, &node, true);
    assert_eq!(bad(&answers), [""; 0], "{answers:#?}");
    assert!(answers["target_stands"].1.contains("nothing is copied"), "{answers:#?}");
    assert!(bad(&check(&main, &node, false)).contains(&"target_stopped"));
    assert!(node.in_recovery() && probe::slots(&main) == ["server1"], "it changes nothing");
    run(&main, SECOND, &node);
    node.execute("CREATE TABLE own ()");
    // a server of its own, and then one that has failed
    assert!(bad(&check(&main, &node, true)).contains(&"target_stopped"));
    node.stop(Stop::Fast);
    let answers = check(&main, &node, true);
    assert_eq!(bad(&answers), [""; 0], "{answers:#?}");
    assert!(bad(&check(&main, &node, false)).contains(&"target_identity"), "in streaming replication it is");

    let dry = json!({ "native": true, "dry_run": true, "node_id": 1, "dest_port": node.port() });
    let sql = "SELECT pgpool_recovery_1st_stage('localhost', $1, current_setting('port')::integer, $2)";
    let report: Value = main.get(sql, &[&node.dir(), &dry]);
    assert_eq!(report["dry_run"], true, "{report}");
    // a first stage of that kind is Pgpool-II's to call
    let error = main.connect().query_one(sql, &[&node.dir(), &options(&node, true)]).expect_err("refused");
    SqlError::from(&error).expect("22023").says("native").says(FIRST);
    assert_eq!(probe::slots(&main), [""; 0]);
}

#[test]
fn what_a_second_stage_would_wait_for_is_named() {
    let scratch = Scratch::new();
    let main = stages::node(&scratch, "main")
        .with("max_prepared_transactions", 5)
        .with("max_worker_processes", 1)
        .with("max_logical_replication_workers", 0)
        .into_primary();
    let node = stages::node(&scratch, "node");
    assert_eq!(bad(&check(&main, &node, true)), [""; 0]);
    main.execute("CREATE TABLE written (); BEGIN; SELECT pg_current_xact_id(); PREPARE TRANSACTION 'held'");
    main.execute(
        "CREATE SUBSCRIPTION held CONNECTION 'host=/nonexistent' PUBLICATION none WITH (connect = false, slot_name = 'held'); \
         ALTER SUBSCRIPTION held ENABLE",
    );
    let answers = check(&main, &node, true);
    assert_eq!(bad(&answers), ["prepared_transactions", "subscriptions"], "{answers:#?}");
    assert!(answers["prepared_transactions"].1.contains("ROLLBACK PREPARED"), "{answers:#?}");
    assert_eq!(bad(&check(&main, &node, false)), [""; 0], "a standby needs none of that");
    main.execute("ROLLBACK PREPARED 'held'");
    main.execute("ALTER SUBSCRIPTION held DISABLE");

    // the launcher of logical replication has the only one
    main.append_conf("max_logical_replication_workers", 4);
    main.stop(Stop::Fast);
    main.start();
    let launcher =
        "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'logical replication launcher'";
    wait::until_true("the launcher", wait::PATIENCE, || main.get::<i64>(launcher, &[]) == 1);
    let answers = check(&main, &node, true);
    assert_eq!(bad(&answers), ["background_worker"], "{answers:#?}");
    assert!(answers["background_worker"].1.contains("max_worker_processes"), "{answers:#?}");
}

#[test]
fn it_is_for_superusers() {
    let scratch = Scratch::new();
    let main = stages::node(&scratch, "main").into_primary();
    let node = stages::node(&scratch, "node");
    main.execute(
        "CREATE ROLE caller LOGIN REPLICATION;
         GRANT EXECUTE ON FUNCTION pgpool_recovery_check(text, text, integer, jsonb) TO caller",
    );
    let mut client = main.connect();
    client.batch_execute("SET ROLE caller").expect("a role");
    let error = try_check(&mut client, &node, &options(&node, true)).expect_err("refused");
    error.expect("42501").says("only a superuser");
}
