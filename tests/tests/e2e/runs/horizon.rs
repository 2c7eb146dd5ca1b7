//! What VACUUM may remove while a run waits: everything, if the run is a plain call, and else what was dead when it began.

use std::sync::mpsc::channel;
use std::time::Duration;

use pgpool_recovery_e2e::background::Running;
use pgpool_recovery_e2e::recovery::Report;
use pgpool_recovery_e2e::scratch::write_as_postgres;
use pgpool_recovery_e2e::stage::Builder;
use pgpool_recovery_e2e::{Recovery, SqlError, Stage, Transport, by_both_transports, server, wait};
use postgres::Client;
use serde_json::Value;

/// Slow enough to be looked at while data comes.
const KILOBYTES_PER_SECOND: u32 = 6000;

const LIMIT: Duration = Duration::from_secs(120);

/// A primary in which nothing but the run holds a row, and one table whose rows are going to die.
fn stage(transport: Transport) -> Stage {
    stage_with(Stage::builder().through(transport))
}

fn stage_with(builder: Builder) -> Stage {
    let stage = builder.with("autovacuum", "off").build();
    stage.primary.execute(
        "CREATE TABLE dying AS SELECT i FROM generate_series(1, 100) i;
         CREATE FUNCTION nested(host text, directory text, port integer, options jsonb) RETURNS jsonb LANGUAGE plpgsql
         AS $$ BEGIN RETURN pgpool_recovery_1st_stage(host, directory, port, options); END $$;
         CREATE FUNCTION stable(host text, directory text, port integer, options jsonb) RETURNS jsonb STABLE LANGUAGE plpgsql
         AS $$ BEGIN RETURN pgpool_recovery_1st_stage(host, directory, port, options); END $$;",
    );
    stage
}

fn slow(stage: &Stage) -> Recovery {
    stage.recovery().option("max_rate", KILOBYTES_PER_SECOND)
}

/// Whether VACUUM removes a row that dies now: it gives the table's pages back then.
fn a_dead_row_goes(client: &mut Client) -> bool {
    client.batch_execute("DELETE FROM dying").expect("DELETE");
    client.batch_execute("VACUUM dying").expect("VACUUM");
    let size: i64 = client.query_one("SELECT pg_relation_size('dying')", &[]).expect("a size").get(0);
    client.batch_execute("INSERT INTO dying SELECT i FROM generate_series(1, 100) i").expect("INSERT");
    size == 0
}

fn has_xmin(client: &mut Client, backend: i32) -> bool {
    let sql = "SELECT backend_xmin IS NOT NULL FROM pg_stat_activity WHERE pid = $1";
    client.query_one(sql, &[&backend]).expect("a session").get(0)
}

/// Whether a run in the middle of its copy has a snapshot, which VACUUM must agree with.
#[track_caller]
fn holds(stage: &Stage, running: &Running) -> bool {
    running.wait_for_bytes(&stage.primary, 1 << 20);
    let mut client = stage.primary.connect();
    let (has_xmin, goes) = (has_xmin(&mut client, running.backend()), a_dead_row_goes(&mut client));
    assert!(!running.has_ended(), "it ended before: {}", stage.primary.log());
    assert_eq!(has_xmin, !goes, "xmin is one thing, VACUUM another");
    has_xmin
}

/// It ends well, and the standby follows.
#[track_caller]
fn finish(stage: &Stage, running: Running) -> Report {
    let report = running.finish_within(LIMIT).expect("it succeeds");
    stage.remote_start();
    stage.target.wait_for_replay(&stage.primary);
    assert_eq!(stage.target.get::<i64>("SELECT count(*) FROM dying", &[]), 100);
    report
}

#[track_caller]
fn assert_lets_go(stage: &Stage, running: Running) -> Report {
    assert!(!holds(stage, &running), "the run holds the horizon");
    finish(stage, running)
}

/// A statement that is more than the call keeps its snapshot, and does what it did.
#[track_caller]
fn assert_holds(before: &str, statement: impl Fn(&str) -> String) {
    let stage = stage(Transport::Local);
    let statement = statement(slow(&stage).sql().strip_prefix("SELECT ").expect("a SELECT"));
    let running = Running::start_statement(&stage.primary, before, statement.clone());
    assert!(holds(&stage, &running), "not held: {statement}");
    finish(&stage, running);
}

// --- calls that let go ---

fn with_parameters(transport: Transport) {
    let stage = stage(transport);
    let running = Running::start(&stage.primary, &slow(&stage), "");
    let report = assert_lets_go(&stage, running);
    assert!(report.number("/bytes/total") > 0, "the report is whole: {}", report.0);
}

/// A plan for any parameters: they are none of the plan's constants.
fn prepared(transport: Transport) {
    let stage = stage(transport);
    let running = Running::start(&stage.primary, &slow(&stage), "SET plan_cache_mode = force_generic_plan");
    let report = assert_lets_go(&stage, running);
    assert!(report.number("/bytes/total") > 0, "the report is whole: {}", report.0);
}

fn as_text(transport: Transport) {
    let stage = stage(transport);
    let running = Running::start_statement(&stage.primary, "", slow(&stage).sql());
    assert_lets_go(&stage, running);
}

/// To the letter what Pgpool-II sends.
fn as_pgpool_ii_calls(transport: Transport) {
    let stage = stage(transport);
    let statement = format!(
        "SELECT pgpool_recovery('pgpool_recovery_1st_stage', 'localhost', '{}', '{}', 0, '{}', 'localhost')",
        stage.target.dir(),
        stage.primary.port(),
        stage.target.port(),
    );
    let before = format!(
        "SET pgpool_recovery.max_rate = {KILOBYTES_PER_SECOND}; SET pgpool_recovery.application_name = '{}'",
        stage.target.name()
    );
    let running = Running::start_statement(&stage.primary, &before, statement);
    assert_lets_go(&stage, running);
}

by_both_transports!(with_parameters, prepared, as_text, as_pgpool_ii_calls);

/// Others run in the executor, too, and the call is compiled.
#[test]
fn beside_hooks_of_the_executor() {
    if !server::has_contrib() {
        return;
    }
    let hooks = "auto_explain, pg_stat_statements";
    let stage = stage_with(Stage::builder().with("shared_preload_libraries", hooks));
    let before = "SET auto_explain.log_min_duration = 0; SET auto_explain.log_analyze = on;
                  SET auto_explain.log_nested_statements = on; SET jit = on; SET jit_above_cost = 0";
    let running = Running::start(&stage.primary, &slow(&stage), before);
    assert_lets_go(&stage, running);
    stage.primary.wait_for_log("Query Text: SELECT pgpool_recovery_1st_stage");
}

#[test]
fn the_wait_for_a_standby_that_does_not_stream() {
    let stage = stage(Transport::Local);
    stage.recovery().run(&stage.primary);
    stage.primary.append_conf("pgpool_recovery.start_timeout", "20s");
    stage.primary.set_hba("local all all trust\nhost all all 0.0.0.0/0 trust\nhost all all ::0/0 trust\n");
    stage.primary.reload();
    let statement = format!("SELECT pgpool_remote_start('localhost', '{}')", stage.target.dir());
    let running = Running::start_statement(&stage.primary, "", statement);
    stage.target.wait_for_log("no pg_hba.conf entry");
    let mut client = stage.primary.connect();
    // between two looks at the walsenders it has one for a moment
    wait::until_true("a dead row to go", Duration::from_secs(5), || a_dead_row_goes(&mut client));
    assert!(!running.has_ended(), "it waits no more: {}", stage.primary.log());
    let error = running.finish_within(LIMIT).expect_err("it does not stream");
    SqlError::from(&error).expect("58000").says("does not stream from this primary");
}

#[test]
fn a_script_of_the_operators() {
    let stage = stage(Transport::Local);
    let script = stage.primary.directory().join("slow_script");
    let text = "#!/bin/sh\nwhile [ ! -e \"$(dirname \"$0\")/go_on\" ]; do sleep 0.1; done\n";
    write_as_postgres(&script, text, 0o700);
    let statement = format!("SELECT pgpool_recovery('slow_script', 'localhost', '{}')", stage.target.dir());
    let before = "SET pgpool_recovery.scripts = 'run'";
    let running = Running::start_statement(&stage.primary, before, statement);
    // before that nothing may be held because nothing has begun
    stage.primary.wait_for_log("script \"slow_script\": running");
    let mut client = stage.primary.connect();
    let mut lets_go = || !has_xmin(&mut client, running.backend()) && a_dead_row_goes(&mut client);
    wait::until_true("a dead row to go", Duration::from_secs(5), &mut lets_go);
    assert!(!running.has_ended(), "it waits no more: {}", stage.primary.log());
    write_as_postgres(&stage.primary.directory().join("go_on"), "", 0o600);
    running.finish_within(LIMIT).expect("the script succeeds");
}

// --- statements that hold ---

#[test]
fn a_transaction_block() {
    assert_holds("BEGIN", |call| format!("SELECT {call}"));
}

#[test]
fn several_statements_at_once() {
    assert_holds("", |call| format!("SELECT {call}; SELECT 1"));
}

#[test]
fn one_snapshot_for_a_transaction() {
    assert_holds("SET default_transaction_isolation = 'repeatable read'", |call| format!("SELECT {call}"));
}

#[test]
fn a_function_of_the_users() {
    assert_holds("", |call| format!("SELECT {}", call.replace("pgpool_recovery_1st_stage", "nested")));
}

/// PL/pgSQL takes no snapshot of its own for it.
#[test]
fn a_stable_function_of_the_users() {
    assert_holds("", |call| format!("SELECT {}", call.replace("pgpool_recovery_1st_stage", "stable")));
}

#[test]
fn an_anonymous_block() {
    assert_holds("", |call| format!("DO $do$ BEGIN PERFORM {call}; END $do$"));
}

#[test]
fn a_table_to_select_from() {
    assert_holds("", |call| format!("SELECT {call} FROM (SELECT count(*) FROM dying) AS counted"));
}

#[test]
fn a_function_to_select_from() {
    assert_holds("", |call| format!("SELECT * FROM {call}"));
}

#[test]
fn a_subquery() {
    assert_holds("", |call| format!("SELECT (SELECT {call})"));
}

#[test]
fn a_second_column() {
    assert_holds("", |call| format!("SELECT {call}, (SELECT count(*) FROM dying)"));
}

#[test]
fn a_cursor_that_is_held() {
    assert_holds("", |call| format!("DECLARE held CURSOR WITH HOLD FOR SELECT {call}"));
}

// --- after a run that failed ---

/// The same session, after a cancel and a refusal: a transaction of its own holds what it must, and a run lets go again.
#[test]
fn the_session_afterwards() {
    let stage = stage(Transport::Local);
    let (recovery, refused) = (slow(&stage), Recovery::of(&stage.primary, &stage.primary));
    let ((is_open, opened), (go_on, goes_on)) = (channel(), channel());
    let running = Running::start_by(&stage.primary, "", move |client| {
        let error = recovery.call(client).expect_err("it is cancelled");
        assert_eq!(SqlError::from(&error).sqlstate, "57014");
        refused.call(client).expect_err("the primary itself");
        client.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM dying")?;
        is_open.send(()).expect("the test waits");
        goes_on.recv().expect("the test goes on");
        let rows: i64 = client.query_one("SELECT count(*) FROM dying", &[])?.get(0);
        assert_eq!(rows, 100, "it sees what it saw");
        client.batch_execute("COMMIT")?;
        recovery.call(client)
    });
    assert!(!holds(&stage, &running), "the run holds the horizon");
    running.cancel();
    opened.recv_timeout(LIMIT).expect("a transaction");
    let mut client = stage.primary.connect();
    assert!(has_xmin(&mut client, running.backend()));
    assert!(!a_dead_row_goes(&mut client), "a row that a snapshot sees");
    go_on.send(()).expect("the session waits");
    let report = assert_lets_go(&stage, running);
    assert_ne!(report.0, Value::Null);
}
