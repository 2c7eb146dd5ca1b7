//! Records that a crash has cut off, in segments that are shorter than they are.

use std::fs;

use pgdata::wal::{Lsn, segment_name};
use pgpool_recovery_e2e::stage::{Condition, Stage};
use pgpool_recovery_e2e::{Cluster, process, workload};

use super::failover::{change_alone, cut_off, promote_and_change, recovery};
use super::{durable, lagging, rebuild};

const SEGMENT: u64 = 1 << 20;

fn in_short_segments(cluster: Cluster) -> Cluster {
    durable(cluster).initdb_argument("--wal-segsize=1")
}

/// A server loses power within a record that lies in four segments, and starts again.
fn lose_power_within_a_record(server: &Cluster) {
    let insert = || -> i64 { server.get("SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint", &[]) };
    let begin = insert().unsigned_abs();
    server.execute("SELECT pg_logical_emit_message(false, 'e2e', repeat('w', 3 << 20))");
    let lost = begin / SEGMENT + 2;
    server.kill();
    for segment in lost..lost + 10 {
        let name = segment_name(1, segment, SEGMENT as u32);
        let _ = fs::remove_file(server.directory().join("pg_wal").join(name));
    }
    server.start();
    server.execute("SELECT pg_switch_wal()");
    let mut dump = server.host().pg("pg_waldump");
    dump.args(["-n", "1", "-s", &Lsn(lost * SEGMENT).to_string(), "-p"]);
    dump.arg(server.directory().join("pg_wal"));
    let first = process::run(dump).stdout;
    assert!(first.contains("OVERWRITE_CONTRECORD"), "{first}");
}

#[test]
fn the_primary_has_crashed_within_a_record_since_the_target_was_away() {
    let builder = Stage::builder().primary(in_short_segments).filled(20);
    let stage = lagging::standby(builder, Condition::Killed);
    workload::change_every(&mut stage.primary.connect(), 500);
    lose_power_within_a_record(&stage.primary);
    workload::change_every(&mut stage.primary.connect(), 700);
    rebuild(&stage.recovery(), &stage.target, &stage.primary, "H0");
}

#[test]
fn an_old_primary_has_crashed_within_a_record_since_they_parted() {
    let builder = Stage::builder().primary(in_short_segments).with("wal_log_hints", "on").filled(20);
    let stage = builder.standby(Condition::Running).build();
    let (old, new) = (&stage.primary, &stage.target);
    old.execute("CHECKPOINT");
    old.execute("INSERT INTO accounts (note) VALUES ('a transaction')");
    new.wait_for_replay(old);
    cut_off(old);
    lose_power_within_a_record(old);
    change_alone(old);
    // and now within another one, which nothing follows
    old.execute("SELECT pg_logical_emit_message(false, 'e2e', repeat('w', 3 << 20))");
    old.kill();
    promote_and_change(new);
    rebuild(&recovery(old, new), old, new, "H2");
}
