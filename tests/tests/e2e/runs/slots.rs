//! Replication slots: reserved when the backup starts, and no other slot of the node is forgotten.

use std::time::Duration;

use pgpool_recovery_e2e::background::Running;
use pgpool_recovery_e2e::cluster::Stop;
use pgpool_recovery_e2e::probe;
use pgpool_recovery_e2e::recovery::remote_start;
use pgpool_recovery_e2e::{Cluster, Host, Recovery, Scratch, workload};

/// A primary that lets a slot keep little, and makes no checkpoint of its own.
fn primary(scratch: &Scratch) -> Cluster {
    let primary = Cluster::place(scratch, &Host::here(), "primary")
        .with("max_slot_wal_keep_size", "64MB")
        .with("max_wal_size", "2GB")
        .with("checkpoint_timeout", "1h")
        .with("autovacuum", "off")
        .into_primary();
    workload::fill(&primary, 4);
    primary
}

/// So many MB of WAL that leave nothing behind.
fn write_wal(primary: &Cluster, megabytes: u32) {
    let mut client = primary.connect();
    for _ in 0..megabytes {
        let sql = "SELECT pg_logical_emit_message(false, 'e2e', repeat('w', 1024 * 1024))";
        client.batch_execute(sql).expect(sql);
    }
}

fn recovery(target: &Cluster, primary: &Cluster) -> Recovery {
    Recovery::of(target, primary).option("dest_port", target.port()).option("application_name", "target")
}

fn slot_lsn(primary: &Cluster, name: &str) -> i64 {
    let sql =
        "SELECT (restart_lsn - '0/0'::pg_lsn)::bigint FROM pg_replication_slots WHERE slot_name = $1::text";
    primary.get(sql, &[&name])
}

#[test]
fn wal_from_before_the_backup_is_not_asked_for() {
    let scratch = Scratch::new();
    let primary = primary(&scratch);
    let target = Cluster::place(&scratch, &Host::here(), "target");
    primary.execute("CHECKPOINT");
    write_wal(&primary, 100);
    recovery(&target, &primary).run(&primary);
    remote_start(&primary, "localhost", target.dir());
    primary.wait_for_standby("target");
}

/// A rebuilt standby, stopped, whose slot has fallen behind by so many MB.
fn behind(scratch: &Scratch, megabytes: u32) -> (Cluster, Cluster) {
    let primary = primary(scratch);
    let target = Cluster::place(scratch, &Host::here(), "target");
    recovery(&target, &primary).run(&primary);
    remote_start(&primary, "localhost", target.dir());
    primary.wait_for_standby("target");
    target.stop(Stop::Fast);
    write_wal(&primary, megabytes);
    (primary, target)
}

#[test]
fn a_slot_that_fell_behind_does_not_fail_the_run() {
    for megabytes in [50, 100] {
        let scratch = Scratch::new();
        let (primary, target) = behind(&scratch, megabytes);
        let running = Running::start(&primary, &recovery(&target, &primary).option("max_rate", 4000), "");
        // the server may write as much again as it lets a slot keep
        write_wal(&primary, 40);
        running.finish_within(Duration::from_secs(60)).expect("it succeeds");
        remote_start(&primary, "localhost", target.dir());
        primary.wait_for_standby("target");
    }
}

#[test]
fn a_refused_run_leaves_the_slot_as_it_was() {
    let scratch = Scratch::new();
    let (primary, target) = behind(&scratch, 20);
    let before = slot_lsn(&primary, "localhost");
    let tablespace = scratch.mkdir("space");
    primary.execute(&format!("CREATE TABLESPACE space LOCATION '{}'", tablespace.display()));
    let error = recovery(&target, &primary)
        .option("tablespace_mapping", format!("{}={}/base", tablespace.display(), target.dir()))
        .fail(&primary);
    error.expect("55000").says("overlaps");
    assert_eq!(slot_lsn(&primary, "localhost"), before);
    assert_eq!(probe::slots(&primary), ["localhost"]);
}

/// What an operator makes before the first recovery.
#[test]
fn a_slot_that_never_reserved_wal_is_used_and_outlives_a_refused_run() {
    let scratch = Scratch::new();
    let primary = primary(&scratch);
    let target = Cluster::place(&scratch, &Host::here(), "target");
    primary.execute("SELECT pg_create_physical_replication_slot('localhost')");
    let is_empty = || {
        let sql = "SELECT restart_lsn IS NULL FROM pg_replication_slots WHERE slot_name = 'localhost'";
        primary.get::<bool>(sql, &[])
    };
    // refused when the slot is held already: once the plan has come
    let tablespace = scratch.mkdir("space");
    primary.execute(&format!("CREATE TABLESPACE space LOCATION '{}'", tablespace.display()));
    let map = |to: &str| {
        recovery(&target, &primary).option("tablespace_mapping", format!("{}={to}", tablespace.display()))
    };
    map(&format!("{}/base", target.dir())).fail(&primary).expect("55000").says("overlaps");
    assert_eq!(probe::slots(&primary), ["localhost"]);
    assert!(is_empty(), "it keeps no WAL that it did not keep before");

    map(scratch.mkdir("own").to_str().expect("ASCII")).run(&primary);
    assert!(!is_empty());
    primary.kill();
    primary.start();
    assert!(!is_empty(), "it is on the disk");
    remote_start(&primary, "localhost", target.dir());
    primary.wait_for_standby("target");
}

#[test]
fn a_former_slot_of_the_node_is_named() {
    let scratch = Scratch::new();
    let primary = Cluster::primary(&scratch);
    let target = Cluster::place(&scratch, &Host::here(), "target");
    recovery(&target, &primary).run(&primary);
    let sql = "SELECT ok, concat_ws(' ', detail, hint) FROM pgpool_recovery_check($1, $2, $3) WHERE step = 'former_slot'";
    let former = |host: &str| {
        let port = i32::from(primary.port());
        let row = primary.connect().query_one(sql, &[&host, &target.dir(), &port]).expect(sql);
        (row.get::<_, bool>(0), row.get::<_, String>(1))
    };
    assert!(former("localhost").0);
    let (ok, said) = former("127.0.0.1");
    assert!(!ok && said.contains("pg_drop_replication_slot('localhost')"), "{said}");
    let report = Recovery::to("127.0.0.1", target.dir(), primary.port())
        .option("application_name", "target")
        .run(&primary);
    let warnings = report.at("/warnings").to_string();
    assert!(warnings.contains("pg_drop_replication_slot('localhost')"), "{warnings}");
    // another node may use it: an operator decides
    assert_eq!(probe::slots(&primary), ["127_0_0_1", "localhost"]);

    primary.execute("SELECT pg_drop_replication_slot('localhost')");
    let again = Recovery::to("127.0.0.1", target.dir(), primary.port()).run(&primary);
    assert!(!again.at("/warnings").to_string().contains("slot"), "{}", again.0);
}
