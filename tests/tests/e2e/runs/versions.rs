//! What only some versions of PostgreSQL have.

use std::fs;
use std::time::Duration;

use pgpool_recovery_e2e::background::Running;
use pgpool_recovery_e2e::recovery::remote_start;
use pgpool_recovery_e2e::{Cluster, Host, Recovery, Scratch, compare, server, wait, workload};

fn place(scratch: &Scratch) -> Cluster {
    Cluster::place(scratch, &Host::here(), "primary")
}

/// Says why a test has nothing to test.
fn is_before(major: u32, what: &str) -> bool {
    let before = server::major() < major;
    if before {
        eprintln!("PostgreSQL {} has no {what}", server::major());
    }
    before
}

/// Pgpool-II switches off statement_timeout, and knows no transaction_timeout: it must not end the call.
#[test]
fn transaction_timeout_does_not_end_a_recovery() {
    if is_before(17, "transaction_timeout") {
        return;
    }
    let scratch = Scratch::new();
    let primary = place(&scratch).with("pgpool_recovery.max_rate", 8000).into_primary();
    workload::fill(&primary, 20);
    let target = Cluster::place(&scratch, &Host::here(), "target");
    let recovery = Recovery::of(&target, &primary).option("dest_port", target.port());
    primary.execute("ALTER DATABASE postgres SET transaction_timeout = '1s'");
    let running = Running::start(&primary, &recovery, "SELECT 1");
    let report = running.finish_within(Duration::from_secs(60));
    let report = report.unwrap_or_else(|error| panic!("{error:?}\n{}", primary.log()));
    assert!(report.number("/durations_ms/total") > 1500, "too quick to tell: {}", report.0);

    // It is the session's again afterwards.
    let mut client = primary.connect();
    Recovery::of(&target, &primary).option("max_rate", 0).call(&mut client).expect("a quick one");
    let shown: String = client.query_one("SHOW transaction_timeout", &[]).expect("SHOW").get(0);
    assert_eq!(shown, "1s");
    client.batch_execute("SELECT pg_sleep(10)").expect_err("the timeout");
}

/// Summaries of WAL that a standby never had would be of no use to it; the directory must be there.
#[test]
fn summaries_of_wal_stay_on_the_primary() {
    if is_before(17, "WAL summaries") {
        return;
    }
    let scratch = Scratch::new();
    let primary = place(&scratch).with("summarize_wal", "on").into_primary();
    let summaries = primary.directory().join("pg_wal/summaries");
    let listed = |directory| fs::read_dir(directory).expect("a directory").count();
    primary.execute("CREATE TABLE t AS SELECT 1 AS one; CHECKPOINT");
    wait::until_true("a summary", wait::PATIENCE, || listed(&summaries) > 0);
    let target = Cluster::place(&scratch, &Host::here(), "target");
    Recovery::of(&target, &primary).option("dest_port", target.port()).run(&primary);
    let theirs = target.directory().join("pg_wal/summaries");
    assert_eq!(listed(&theirs), 0);
    remote_start(&primary, "localhost", target.dir());
    assert!(target.in_recovery());
    primary.execute("CHECKPOINT");
    target.execute("CHECKPOINT");
    wait::until_true("a summary of the standby's own", wait::PATIENCE, || listed(&theirs) > 0);
}

#[test]
fn every_io_method_is_fine() {
    if is_before(18, "io_method") {
        return;
    }
    for method in ["sync", "worker", "io_uring"] {
        let scratch = Scratch::new();
        let primary = place(&scratch).with("io_method", method).init();
        if method == "io_uring" && !primary.try_start().status.success() {
            eprintln!("this PostgreSQL, or this kernel, has no io_uring:\n{}", primary.log());
            continue;
        }
        if primary.postmaster().is_none() {
            primary.start();
        }
        primary.create_extension();
        workload::fill(&primary, 5);
        let target = Cluster::place(&scratch, &Host::here(), "target");
        let recovery = Recovery::of(&target, &primary).option("dest_port", target.port());
        recovery.clone().option("start", true).run(&primary);
        compare::stop_and_compare(&primary, &target).assert_none();
        primary.start();
        workload::change_every(&mut primary.connect(), 10);
        let report = recovery.option("start", true).run(&primary);
        assert_eq!(report.text("/strategy"), "delta");
        compare::stop_and_compare(&primary, &target).assert_none();
    }
}

/// The standby has what the primary has, and both say so.
#[test]
fn checksums_are_as_the_primary_has_them() {
    for (argument, expected) in [("--data-checksums", "on"), ("", "off")] {
        let scratch = Scratch::new();
        let primary = place(&scratch);
        let primary = if argument.is_empty() { primary } else { primary.initdb_argument(argument) };
        let primary = primary.into_primary();
        workload::fill(&primary, 5);
        let target = Cluster::place(&scratch, &Host::here(), "target");
        Recovery::of(&target, &primary)
            .option("dest_port", target.port())
            .option("start", true)
            .run(&primary);
        for cluster in [&primary, &target] {
            assert_eq!(cluster.get::<String>("SHOW data_checksums", &[]), expected);
        }
        compare::stop_and_compare(&primary, &target).assert_none();
    }
}
