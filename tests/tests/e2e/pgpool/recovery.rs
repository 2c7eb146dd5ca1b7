//! With a real Pgpool-II.

use std::time::Duration;

use pgpool_recovery_e2e::pgpool::Setup;
use pgpool_recovery_e2e::recovery::remote_start;
use pgpool_recovery_e2e::{Cluster, Host, Recovery, Scratch, compare, probe, wait, workload};

/// Two nodes on one host are told apart by the node id.
fn node(scratch: &Scratch, name: &str) -> Cluster {
    Cluster::place(scratch, &Host::here(), name)
        .with("pgpool_recovery.application_name", "server%n")
        .with("pgpool_recovery.slot_name", "server%n")
}

#[test]
fn a_dead_primary_comes_back_as_a_standby() {
    let scratch = Scratch::new();
    let first = node(&scratch, "node0").into_primary();
    workload::fill(&first, 10);
    let second = node(&scratch, "node1");
    let pgpool = Setup::new(&scratch, &Host::here(), &[&first, &second]).start();

    // A new node.
    pgpool.wait_for_node(0, "up", "primary", "");
    pgpool.wait_for_node(1, "down", "standby", "");
    pgpool.recover(1).unwrap_or_else(|error| panic!("{error}\n{}\n{}", first.log(), pgpool.log()));
    pgpool.wait_for_node(1, "up", "standby", "streaming");
    assert_eq!(probe::slots(&first), ["server1"]);

    // The primary dies.
    pgpool.connect().batch_execute("INSERT INTO accounts (note) VALUES ('before')").expect("a row");
    second.wait_for_replay(&first);
    first.kill();
    wait::until_true("the promotion", wait::PATIENCE, || !second.in_recovery());
    pgpool.wait_for_node(0, "down", "standby", "");
    pgpool.wait_for_node(1, "up", "primary", "");
    pgpool.connect().batch_execute("INSERT INTO accounts (note) VALUES ('while down')").expect("a row");

    // And comes back.
    pgpool.recover(0).unwrap_or_else(|error| panic!("{error}\n{}\n{}", second.log(), pgpool.log()));
    pgpool.wait_for_node(0, "up", "standby", "streaming");
    first.wait_for_replay(&second);
    let sql = "SELECT count(*) FROM accounts WHERE note IN ('before', 'while down')";
    assert_eq!(first.get::<i64>(sql, &[]), 2);
    let conninfo: String = first.get("SELECT conninfo FROM pg_stat_wal_receiver", &[]);
    assert!(conninfo.contains("application_name=server0"), "{conninfo}");
}

#[test]
fn a_failure_is_shown_with_its_cause() {
    let scratch = Scratch::new();
    let primary = node(&scratch, "node0").into_primary();
    // Another cluster where node 1 should be.
    let foreign = node(&scratch, "node1").init();
    let before = pgpool_recovery_e2e::snapshot::Snapshot::of(foreign.directory());
    let pgpool = Setup::new(&scratch, &Host::here(), &[&primary, &foreign]).start();
    pgpool.wait_for_node(1, "down", "standby", "");
    let shown = pgpool.recover(1).expect_err("another cluster");
    assert!(shown.contains("1st stage"), "{shown}");
    // Pgpool-II drops that ERROR's text; the server log has all of it.
    primary.wait_for_log("system identifier");
    before.assert_unchanged(foreign.directory());
    pgpool.wait_for_node(1, "down", "standby", "");
    assert_eq!(probe::slots(&primary), Vec::<String>::new());

    // An operator who goes on by hand with the second function is told the cause again.
    let error = pgpool_recovery_e2e::recovery::try_remote_start(&primary, "127.0.0.1", foreign.dir())
        .expect_err("nothing to start");
    assert!(error.text().contains("system identifier"), "{error:?}");
}

#[test]
fn a_failed_start_is_shown_to_the_operator() {
    let scratch = Scratch::new();
    let primary = node(&scratch, "node0").into_primary();
    let broken = Cluster::standby_by_basebackup(&primary, &Host::here(), "node1");
    broken.stop(pgpool_recovery_e2e::cluster::Stop::Fast);
    // Its own configuration, which is kept, keeps it from starting.
    broken.append_conf("max_connections", "no number");
    let pgpool = Setup::new(&scratch, &Host::here(), &[&primary, &broken]).start();
    pgpool.wait_for_node(1, "down", "standby", "");
    let shown = pgpool.recover(1).expect_err("it cannot start");
    // The standby's own words, through pgpool_remote_start.
    assert!(shown.contains("max_connections"), "{shown}");
}

#[test]
fn a_pgpool_that_dies_in_the_middle_leaves_no_run_behind() {
    let scratch = Scratch::new();
    let primary = probe::quiet(node(&scratch, "node0")).with("pgpool_recovery.max_rate", 4000).into_primary();
    workload::fill(&primary, 20);
    let second = node(&scratch, "node1");
    let pgpool = Setup::new(&scratch, &Host::here(), &[&primary, &second]).start();
    pgpool.wait_for_node(1, "down", "standby", "");
    std::thread::scope(|scope| {
        let call = scope.spawn(|| pgpool.recover(1));
        wait::until_true("the middle of the copy", wait::PATIENCE, || {
            let sql = "SELECT count(*) FROM pg_stat_progress_basebackup WHERE backup_streamed > 4 << 20";
            primary.get::<i64>(sql, &[]) == 1
        });
        pgpool.kill();
        call.join().expect("a call").expect_err("Pgpool-II is gone");
    });
    wait::until_true("the end of the run", Duration::from_secs(10), || {
        primary.get::<i64>("SELECT count(*) FROM pg_stat_progress_basebackup", &[]) == 0
    });
    probe::assert_nothing_left(&primary);
    assert!(!second.try_start().status.success(), "an incomplete target started");
    Recovery::of(&second, &primary)
        .option("node_id", 1)
        .option("dest_port", second.port())
        .option("max_rate", 0)
        .run(&primary);
    remote_start(&primary, "localhost", second.dir());
    compare::stop_and_compare(&primary, &second).assert_none();
}

#[test]
fn a_role_with_replication_and_execute_recovers_a_node() {
    let scratch = Scratch::new();
    let directories = scratch.path().display();
    let primary =
        node(&scratch, "node0").with("pgpool_recovery.local_directories", directories).into_primary();
    primary.execute("CREATE ROLE recovery LOGIN REPLICATION");
    for database in ["template1", "postgres"] {
        let grant = "GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO recovery";
        primary.connect_to(database).batch_execute(grant).expect(grant);
    }
    let second = node(&scratch, "node1");
    let pgpool =
        Setup::new(&scratch, &Host::here(), &[&primary, &second]).with("recovery_user", "recovery").start();
    pgpool.wait_for_node(1, "down", "standby", "");
    pgpool.recover(1).unwrap_or_else(|error| panic!("{error}\n{}\n{}", primary.log(), pgpool.log()));
    pgpool.wait_for_node(1, "up", "standby", "streaming");
    let conf = second.read("myrecovery.conf");
    assert!(conf.contains("user=recovery"), "{conf}");
}
