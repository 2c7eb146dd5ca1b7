//! WAL travels while data does: the primary keeps little of it, however long the copy takes.

use std::time::Duration;

use pgpool_recovery_e2e::background::Running;
use pgpool_recovery_e2e::ext4::Ext4;
use pgpool_recovery_e2e::{SqlError, Stage, Transport, by_both_transports, probe, wait};

/// What a slot may keep, MB; a segment has one.
const KEPT: u32 = 4;

/// A primary whose slots keep little, and whose checkpoints leave nothing that no slot keeps.
fn stage(transport: Transport) -> Stage {
    Stage::builder()
        .through(transport)
        .filled(4)
        .primary(|cluster| cluster.initdb_argument("--wal-segsize=1"))
        .with("max_slot_wal_keep_size", format!("{KEPT}MB"))
        .with("wal_keep_size", 0)
        .with("min_wal_size", "2MB")
        .with("max_wal_size", "1GB")
        .with("checkpoint_timeout", "1h")
        .with("autovacuum", "off")
        .build()
}

/// Writes so many MB of WAL and a row; returns the name of the segment in which it ends.
fn write_wal(stage: &Stage, megabytes: u32) -> String {
    let mut client = stage.primary.connect();
    for _ in 0..megabytes {
        let sql = "SELECT pg_logical_emit_message(false, 'e2e', repeat('w', 1024 * 1024))";
        client.batch_execute(sql).expect(sql);
    }
    // a commit flushes it
    client.batch_execute("INSERT INTO accounts (note) VALUES ('meanwhile')").expect("a row");
    stage.primary.get("SELECT pg_walfile_name(pg_current_wal_flush_lsn())", &[])
}

/// Writes ten times as much WAL as a slot may keep, never faster than the target takes it, with checkpoints that remove what is
/// not kept.
fn write_much(stage: &Stage, running: &Running) {
    for _ in 0..40 {
        let segment = write_wal(stage, KEPT / 4);
        let there = stage.target.directory().join("pg_wal").join(&segment);
        wait::until_true(&format!("segment {segment} on the target"), wait::PATIENCE, || {
            assert!(!running.has_ended(), "it ended before: {}", stage.primary.log());
            there.exists()
        });
        stage.primary.execute("CHECKPOINT");
    }
}

fn assert_follows(stage: &Stage) {
    stage.remote_start();
    stage.primary.wait_for_standby(stage.target.name());
    let sql = "SELECT count(*) FROM accounts WHERE note = 'meanwhile'";
    assert_eq!(stage.target.get::<i64>(sql, &[]), 40);
}

fn much_more_than_a_slot_may_keep_is_written_during_a_slow_copy(transport: Transport) {
    let stage = stage(transport);
    let running = Running::start(&stage.primary, &stage.recovery().option("max_rate", 1000), "");
    running.wait_for_bytes(&stage.primary, 1 << 20);
    write_much(&stage, &running);
    wait::until_true("a slot that keeps a segment or two", wait::PATIENCE, || {
        let sql =
            "SELECT bool_and(pg_current_wal_flush_lsn() - restart_lsn < 2 << 20) FROM pg_replication_slots";
        stage.primary.get(sql, &[])
    });
    assert!(!running.has_ended(), "data still comes");
    let report = running.finish_within(Duration::from_secs(120)).expect("it succeeds");
    let wal = report.at("/bytes/wal").as_u64().expect("a number");
    assert!(wal > (10 * u64::from(KEPT)) << 20, "{wal} bytes of WAL");
    assert_follows(&stage);
}

fn without_a_slot_nothing_need_be_kept(transport: Transport) {
    let stage = stage(transport);
    let recovery = stage.recovery().option("max_rate", 1000).option("slot_name", "");
    let running = Running::start(&stage.primary, &recovery, "");
    running.wait_for_bytes(&stage.primary, 1 << 20);
    write_much(&stage, &running);
    assert_eq!(probe::slots(&stage.primary), Vec::<String>::new());
    running.finish_within(Duration::from_secs(120)).expect("it succeeds");
    assert_follows(&stage);
}

by_both_transports!(
    much_more_than_a_slot_may_keep_is_written_during_a_slow_copy,
    without_a_slot_nothing_need_be_kept,
);

/// The disk of the target's pg_wal takes nothing, and the server removes WAL that was not sent.
#[test]
fn wal_that_is_removed_before_it_was_sent_is_told_as_what_it_is() {
    let stage = stage(Transport::Agent);
    let target = stage.scratch.mkdir(stage.target.directory());
    let disk = Ext4::empty(&stage.scratch, &target.join("pg_wal"), 256);
    let recovery = stage.recovery().option("max_rate", 1000).option("compression", "off");
    let running = Running::start(&stage.primary, &recovery, "");
    running.wait_for_bytes(&stage.primary, 1 << 20);
    disk.freeze();
    // More than a link holds on its way. The run may end at once where that is a little more than it seemed.
    for _ in 0..3 {
        write_wal(&stage, 16);
        // otherwise a checkpoint would end the session that holds it
        wait::until_true("a slot that keeps no more than it may", wait::PATIENCE, || {
            let sql = "SELECT coalesce(bool_and(wal_status IN ('reserved', 'extended')), true) FROM pg_replication_slots";
            stage.primary.get(sql, &[])
        });
        stage.primary.execute("CHECKPOINT");
    }
    disk.thaw();
    let error = running.finish_within(Duration::from_secs(60)).expect_err("the WAL is gone");
    let error = SqlError::from(&error);
    error.expect("55000").says("was removed on the primary before it was sent").says("wal_keep_size");
    assert_eq!(probe::slots(&stage.primary), Vec::<String>::new());
    assert!(!stage.primary.log().contains("administrator command"), "{}", stage.primary.log());
    assert!(!stage.target.try_start().status.success(), "an incomplete target started");
    stage.recovery().run_when_let_in(&stage.primary);
    stage.remote_start();
    stage.primary.wait_for_standby(stage.target.name());
}
