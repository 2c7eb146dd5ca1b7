//! What a cancel leaves alone: the session that called, and a slot that was there before.

use std::time::Duration;

use pgpool_recovery_e2e::background::Running;
use pgpool_recovery_e2e::stage::Condition;
use pgpool_recovery_e2e::{SqlError, Stage, probe, server, workload};

/// With a target that differs from the primary everywhere, so that a run has something to send to its end.
fn stage() -> Stage {
    let stage = Stage::builder().quiet().filled(16).standby(Condition::Stopped).build();
    workload::change_every(&mut stage.primary.connect(), 1);
    stage
}

/// Slow enough to be caught in the middle.
const KILOBYTES_PER_SECOND: u32 = 4000;

#[test]
fn a_cancelled_session_can_go_on() {
    let stage = stage();
    let mut client = stage.primary.connect();
    client.batch_execute("SET statement_timeout = '2s'").expect("SET");
    let slow = stage.recovery().option("max_rate", KILOBYTES_PER_SECOND);
    let error = slow.call(&mut client).expect_err("the timeout");
    assert_eq!(SqlError::from(&error).sqlstate, "57014");
    client.batch_execute("SET statement_timeout = 0").expect("SET");
    // No backup is in progress in this very session either.
    let stop = format!("SELECT {}", server::backup_stop());
    let error = client.batch_execute(&stop).expect_err("no backup in progress");
    assert_eq!(SqlError::from(&error).sqlstate, "55000");
    stage.recovery().call(&mut client).expect("the next run, same session");
    stage.remote_start();
    assert!(stage.target.in_recovery());
}

#[test]
fn a_slot_that_was_there_before_survives_a_failed_run() {
    let stage = stage();
    stage.primary.execute("SELECT pg_create_physical_replication_slot('localhost', true)");
    let slow = stage.recovery().option("max_rate", KILOBYTES_PER_SECOND);
    let running = Running::start(&stage.primary, &slow, "");
    running.wait_for_bytes(&stage.primary, 4 << 20);
    running.cancel();
    let error = running.finish_within(Duration::from_secs(5)).expect_err("it was cancelled");
    assert_eq!(SqlError::from(&error).sqlstate, "57014");
    assert_eq!(probe::slots(&stage.primary), ["localhost"]);
    stage.recovery().run(&stage.primary);
    assert_eq!(probe::slots(&stage.primary), ["localhost"]);
}
