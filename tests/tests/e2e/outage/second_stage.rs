//! The second stage of native replication and snapshot isolation mode, called as Pgpool-II calls it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pgpool_recovery_e2e::cluster::Stop;
use pgpool_recovery_e2e::recovery::{remote_start, try_remote_start};
use pgpool_recovery_e2e::stages::{self, FIRST, SECOND};
use pgpool_recovery_e2e::{Agent, Cluster, Host, Recovery, Scratch, SqlError, agent, probe, wait};

/// The file that says for what a standby was made.
const MARK: &str = "pgpool_recovery.second_stage";

fn main_node(scratch: &Scratch) -> Cluster {
    let main = stages::node(scratch, "main").with("max_prepared_transactions", 5).into_primary();
    stages::make_sequences(&main);
    main
}

/// Calls a stage with settings of the session's own.
fn stage_with(main: &Cluster, settings: &str, script: &str, node: &Cluster) -> Result<(), SqlError> {
    let mut client = main.connect();
    client.batch_execute(settings).expect(settings);
    stages::call(&mut client, script, node)
}

fn stage(main: &Cluster, script: &str, node: &Cluster) -> Result<(), SqlError> {
    stages::call(&mut main.connect(), script, node)
}

#[track_caller]
fn run(main: &Cluster, script: &str, node: &Cluster) {
    stage(main, script, node).unwrap_or_else(|error| panic!("{script}: {error:?}\n{}", main.log()));
}

/// Stops a standby, and waits until its slot is free.
fn stop_standby(main: &Cluster, node: &Cluster) {
    node.stop(Stop::Fast);
    let sql = "SELECT count(*) FROM pg_stat_replication";
    wait::until_true("the walsender's end", wait::PATIENCE, || main.get::<i64>(sql, &[]) == 0);
}

/// Still a standby that its primary serves, and as it was made.
#[track_caller]
fn assert_waits(main: &Cluster, node: &Cluster) {
    assert!(node.in_recovery() && node.has(MARK));
    main.wait_for_standby("server1");
    assert_eq!(probe::slots(main), ["server1"]);
}

#[track_caller]
fn assert_independent(main: &Cluster, node: &Cluster) {
    assert!(!node.in_recovery() && !node.has(MARK) && !node.has("standby.signal"));
    assert_eq!(probe::slots(main), Vec::<String>::new(), "the slot is dropped");
    assert_eq!(node.get::<String>("SELECT current_setting('primary_conninfo')", &[]), "");
    remote_start(main, "localhost", node.dir());
    stages::assert_same(main, node);
    node.execute("CREATE TABLE own (); DROP TABLE own");
    let state: String = main.get("SELECT state FROM pgpool_recovery_status", &[]);
    assert_eq!(state, "promoted");
}

#[test]
fn two_stages_make_a_server_of_its_own_again_and_again() {
    let scratch = Scratch::new();
    let main = main_node(&scratch);
    let node = stages::node(&scratch, "node");
    let secret = agent::secret(&scratch, "secret");
    let agent = Agent::start(&scratch, &Host::here(), &secret, &[node.directory()]);
    main.append_conf("pgpool_recovery.secret_file", secret.display());
    main.reload();
    for through_agent in [false, true] {
        if through_agent {
            main.use_agent(agent.port());
        }
        run(&main, FIRST, &node);
        assert_waits(&main, &node);
        stages::use_sequences(&main);
        run(&main, SECOND, &node);
        assert_independent(&main, &node);

        // wrong order: it is no standby any more, and goes on
        let error = stage(&main, SECOND, &node).expect_err("a second time");
        error.expect("55000").says("no standby");
        assert!(!node.in_recovery());

        // dead, it is no standby that could be started; made anew it is, on the timeline that it had before
        node.stop(Stop::Immediate);
        let error = try_remote_start(&main, "localhost", node.dir()).expect_err("it was stopped");
        assert!(error.text().contains("second stage"), "{error:?}");
        main.execute("CREATE TABLE IF NOT EXISTS more AS SELECT generate_series(1, 1000) AS n");
    }
}

#[test]
fn what_no_first_stage_has_made_for_it_is_not_promoted() {
    let scratch = Scratch::new();
    let main = main_node(&scratch);
    let node = stages::node(&scratch, "node");
    let error = stage(&main, SECOND, &node).expect_err("nothing is there");
    error.expect("55000").says("first stage");
    assert!(!node.directory().exists());

    // the standby of a streaming replication, whatever was there before: its promotion would be a second primary
    run(&main, FIRST, &node);
    stop_standby(&main, &node);
    Recovery::of(&node, &main).option("node_id", 1).option("dest_port", node.port()).run(&main);
    remote_start(&main, "localhost", node.dir());
    let error = stage(&main, SECOND, &node).expect_err("made by another first stage");
    error.says(MARK);
    assert!(node.in_recovery() && !node.has(MARK));
    main.wait_for_standby("server1");

    // nor is it made anew while it runs
    let error = stage(&main, FIRST, &node).expect_err("it runs");
    error.expect("55006").says("Stop the standby");
    main.wait_for_standby("server1");

    // one that follows another main node
    stop_standby(&main, &node);
    run(&main, FIRST, &node);
    run(&main, SECOND, &node);
    let third = stages::node(&scratch, "third");
    run(&main, FIRST, &third);
    let error = stage(&node, SECOND, &third).expect_err("main's standby");
    error.says("timeline");
    assert!(third.in_recovery() && third.has(MARK));
    let error = stage(&third, SECOND, &node).expect_err("called on a standby");
    error.expect("55000").says("standby");
}

#[test]
fn a_standby_that_lags_is_not_promoted_and_not_copied_again() {
    let scratch = Scratch::new();
    let main = main_node(&scratch);
    let node = stages::node(&scratch, "node");
    run(&main, FIRST, &node);

    node.execute("SELECT pg_wal_replay_pause()");
    let error = stage(&main, SECOND, &node).expect_err("paused");
    error.expect("55000").says("paused");
    assert_waits(&main, &node);
    node.execute("SELECT pg_wal_replay_resume()");

    node.execute("ALTER SYSTEM SET recovery_min_apply_delay = '1h'");
    node.reload();
    main.execute("CREATE TABLE late ()");
    stages::use_sequences(&main);
    let error = stage_with(&main, "SET pgpool_recovery.deadline = 3", SECOND, &node).expect_err("it lags");
    error.expect("55000").says("has not replayed all");
    assert_waits(&main, &node);

    let error =
        stage_with(&main, "SET pgpool_recovery.start_timeout = 3", FIRST, &node).expect_err("it lags");
    error.says("does not catch up");
    node.execute("ALTER SYSTEM RESET recovery_min_apply_delay");
    node.reload();

    let made = node.read(MARK);
    run(&main, FIRST, &node);
    assert_eq!(node.read(MARK), made, "it was copied again");
    run(&main, SECOND, &node);
    assert_independent(&main, &node);
}

#[test]
fn nothing_is_promoted_while_transactions_go_on() {
    let scratch = Scratch::new();
    let main = main_node(&scratch);
    let node = stages::node(&scratch, "node");
    run(&main, FIRST, &node);
    main.execute("CREATE TABLE written (n int)");
    let refused = || {
        let error =
            stage_with(&main, "SET pgpool_recovery.deadline = 2", SECOND, &node).expect_err("refused");
        assert_waits(&main, &node);
        error.expect("55000")
    };

    let mut client = main.connect();
    client.batch_execute("BEGIN; INSERT INTO written VALUES (1)").expect("open");
    refused().says("has an open transaction");
    client.batch_execute("PREPARE TRANSACTION 'held'").expect("prepared");
    refused().says("\"held\" is prepared");
    client.batch_execute("COMMIT PREPARED 'held'").expect("ended");

    // the second value has no transaction id, because WAL is ahead
    client.batch_execute("SELECT nextval('plain')").expect("a value");
    client.batch_execute("BEGIN; SELECT nextval('plain')").expect("a value");
    refused().says("database \"postgres\"").says("lock timeout");
    client.batch_execute("COMMIT").expect("ended");

    let ends = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut client = main.connect();
                while !ends.load(Ordering::Relaxed) {
                    client.batch_execute("INSERT INTO written VALUES (2)").expect("a row");
                }
            });
        }
        let error = std::panic::catch_unwind(std::panic::AssertUnwindSafe(refused));
        ends.store(true, Ordering::Relaxed);
        error.unwrap_or_else(|panic| std::panic::resume_unwind(panic)).says("transactions go on");
    });

    run(&main, SECOND, &node);
    assert_independent(&main, &node);
    assert_eq!(
        node.get::<i64>("SELECT count(*) FROM written", &[]),
        main.get::<i64>("SELECT count(*) FROM written", &[])
    );
}

#[test]
fn what_is_lacking_is_said_before_anything_changes() {
    let scratch = Scratch::new();
    let main = main_node(&scratch);
    let node = stages::node(&scratch, "node");
    main.execute(
        "CREATE ROLE operator LOGIN REPLICATION; GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO operator",
    );
    // who may rebuild the target may not make a server of its own of it
    main.append_conf("pgpool_recovery.local_directories", scratch.path().display());
    main.reload();
    let as_operator = "SET SESSION AUTHORIZATION operator";
    let denied = "permission denied to use pgpool_recovery_";
    stage_with(&main, as_operator, FIRST, &node).expect_err("no superuser").expect("42501").says(denied);
    assert!(!node.directory().exists());

    // no slot is left
    main.append_conf("max_replication_slots", 1);
    main.stop(Stop::Fast);
    main.start();
    main.execute("SELECT pg_create_physical_replication_slot('taken')");
    stage(&main, FIRST, &node).expect_err("no slot").expect("53400").says("max_replication_slots");
    assert!(!node.directory().exists());
    main.execute("SELECT pg_drop_replication_slot('taken')");
    run(&main, FIRST, &node);

    stage_with(&main, as_operator, SECOND, &node).expect_err("no superuser").expect("42501").says(denied);
    assert_waits(&main, &node);

    // no background worker is left
    main.append_conf("max_worker_processes", 0);
    main.stop(Stop::Fast);
    main.start();
    main.wait_for_standby("server1");
    stage(&main, SECOND, &node).expect_err("no worker").expect("53400").says("max_worker_processes");
    assert_waits(&main, &node);
    // what has failed is said again
    let error: String = main.get("SELECT error FROM pgpool_recovery_status", &[]);
    assert!(error.contains("background worker"), "{error}");
}

/// What shows that the second stage waits for a sequence that is locked.
const FOR_A_SEQUENCE: &str = "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'relation'";

/// A second stage that succeeds; `happens` while it waits, which this query tells.
#[track_caller]
fn while_it_waits(main: &Cluster, node: &Cluster, waits: &str, happens: impl FnOnce()) {
    std::thread::scope(|scope| {
        let stage = scope.spawn(|| stage(main, SECOND, node));
        wait::until_true("the second stage to wait", wait::PATIENCE, || main.get::<i64>(waits, &[]) > 0);
        happens();
        stage.join().expect("no panic").unwrap_or_else(|error| panic!("{error:?}"));
    });
}

#[test]
fn the_owner_of_a_schema_gets_nothing_run_by_a_superuser() {
    let scratch = Scratch::new();
    let main = main_node(&scratch);
    let node = stages::node(&scratch, "node");
    main.execute("CREATE ROLE mallory");
    main.execute("CREATE DATABASE own OWNER mallory");
    let as_mallory = |statements: &str| {
        let mut client = main.connect_to("own");
        client.batch_execute("SET SESSION AUTHORIZATION mallory").expect("a role");
        client.batch_execute(statements).expect(statements);
        client
    };
    as_mallory(
        "CREATE SCHEMA own; CREATE SEQUENCE own.first; CREATE SEQUENCE own.second;
         SELECT nextval('own.second')",
    );
    run(&main, FIRST, &node);
    // nothing has to be flushed of the first, which is locked without a transaction id
    let mut holder = as_mallory("SELECT setval('own.first', 7)");
    holder.batch_execute("BEGIN; SELECT currval('own.first')").expect("a value");
    while_it_waits(&main, &node, FOR_A_SEQUENCE, || {
        as_mallory(
            "BEGIN; ALTER SCHEMA own RENAME TO other; CREATE SCHEMA own;
             CREATE FUNCTION own.grab() RETURNS bigint LANGUAGE plpgsql
                 AS 'BEGIN ALTER ROLE mallory SUPERUSER; RETURN 1; END';
             CREATE VIEW own.first AS SELECT 1::bigint AS last_value, own.grab() AS log_cnt, true AS is_called;
             CREATE VIEW own.second AS TABLE own.first;
             COMMIT",
        );
        holder.batch_execute("COMMIT").expect("ended");
    });
    assert!(!main.get::<bool>("SELECT rolsuper FROM pg_roles WHERE rolname = 'mallory'", &[]));
    let ahead =
        main.connect_to("own").query_one("SELECT log_cnt FROM other.second", &[]).expect("a sequence");
    assert_eq!(ahead.get::<_, i64>(0), 0, "it was flushed all the same");
}

#[test]
fn sequences_of_a_database_that_was_made_while_it_waits_are_flushed() {
    let scratch = Scratch::new();
    let main = main_node(&scratch);
    let node = stages::node(&scratch, "node");
    run(&main, FIRST, &node);
    let mut holder = main.connect();
    holder.batch_execute("BEGIN; CREATE TABLE held ()").expect("open");
    let for_a_transaction = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%2nd_stage%' AND state = 'active' AND pid <> pg_backend_pid()";
    while_it_waits(&main, &node, for_a_transaction, || {
        main.execute("CREATE DATABASE third");
        let mut third = main.connect_to("third");
        third.batch_execute("CREATE SEQUENCE late").expect("a sequence");
        third.batch_execute("SELECT nextval('late')").expect("a value");
        holder.batch_execute("COMMIT").expect("ended");
    });
    let value = |server: &Cluster| -> i64 {
        server.connect_to("third").query_one("SELECT last_value FROM late", &[]).expect("a sequence").get(0)
    };
    assert_eq!((value(&main), value(&node)), (1, 1));
}

#[test]
fn a_sequence_that_is_used_after_its_turn_is_flushed_again() {
    let scratch = Scratch::new();
    let main = main_node(&scratch);
    let node = stages::node(&scratch, "node");
    run(&main, FIRST, &node);
    // databases have their turns in the order in which they were made; this lock has no transaction id
    let mut holder = main.connect_to("second");
    holder.batch_execute("SELECT setval('fresh', 7)").expect("a value");
    holder.batch_execute("BEGIN; SELECT currval('fresh')").expect("a value");
    while_it_waits(&main, &node, FOR_A_SEQUENCE, || {
        main.execute("SELECT nextval('plain')");
        holder.batch_execute("COMMIT").expect("ended");
    });
    assert_independent(&main, &node);
}

/// The background worker that flushes the sequences of the first database.
const WORKER: &str = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'pgpool_recovery sequences' AND datname = 'postgres'";

/// Each COMMIT of the worker takes a tenth of a second, of which most is no place to end a process in.
#[test]
fn a_second_stage_that_is_ended_while_it_flushes_ends_nothing_else() {
    let scratch = Scratch::new();
    let main = stages::node(&scratch, "main").with("fsync", "on").with("commit_siblings", 0);
    let main = main.with("commit_delay", 100_000).with("max_locks_per_transaction", 500).into_primary();
    main.execute(
        "DO $$ BEGIN FOR n IN 1..800 LOOP EXECUTE format('CREATE SEQUENCE many_%s', n); END LOOP; END $$",
    );
    let node = stages::node(&scratch, "node");
    run(&main, FIRST, &node);
    let use_all = "SELECT count(nextval(oid::regclass)) FROM pg_class WHERE relkind = 'S'";
    let works = |wanted: bool| {
        wait::until_true("the worker", wait::PATIENCE, || (main.get::<i64>(WORKER, &[]) > 0) == wanted);
    };
    let ended_by = |end: &dyn Fn()| {
        main.execute(use_all);
        let error = std::thread::scope(|scope| {
            let stage = scope.spawn(|| stages::try_call(&mut main.connect(), SECOND, &node));
            works(true);
            end();
            stage.join().expect("no panic").expect_err("ended")
        });
        assert!(!main.log().contains("PANIC"), "{}", main.log());
        error
    };
    let running = main.postmaster();
    for turn in 0..5 {
        let error = ended_by(&|| {
            std::thread::sleep(Duration::from_millis(turn * 30));
            main.execute(
                "SELECT pg_cancel_backend(pid) FROM pg_stat_activity
                 WHERE query LIKE '%2nd_stage%' AND pid <> pg_backend_pid()",
            );
        });
        assert_eq!(SqlError::from(&error).sqlstate, "57014", "{error:?}");
        works(false);
        assert_waits(&main, &node);
    }
    assert_eq!(main.postmaster(), running);

    // the server may be gone before its last words are read
    ended_by(&|| main.stop(Stop::Fast));
    main.start();
    assert!(!main.log().contains("not properly shut down"), "{}", main.log());
    assert_waits(&main, &node);
    run(&main, SECOND, &node);
    assert!(!node.in_recovery());
}
