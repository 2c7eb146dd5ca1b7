//! `stop_target`: the server of a target is stopped only if nothing else is in the way of its recovery, as far as that can be
//! known while it runs.

use pgpool_recovery_e2e::stage::{Condition, Stage, Transport};
use pgpool_recovery_e2e::{Cluster, Host, Recovery, by_both_transports};
use serde_json::json;

use super::stop::ALLOWED;

/// What a check says of one question.
fn checked(stage: &Stage, transport: Transport, step: &str) -> (bool, String) {
    let sql = "SELECT ok, detail FROM pgpool_recovery_check('localhost', $1, $2, $3) WHERE step = $4";
    let options =
        json!({ "transport": transport.name(), "stop_target": true, "dest_port": stage.target.port() });
    let port = i32::from(stage.primary.port());
    let row =
        stage.primary.connect().query_one(sql, &[&stage.target.dir(), &port, &options, &step]).expect(sql);
    (row.get(0), row.get(1))
}

/// The slot of a standby that this extension built is in use as long as its server runs.
fn a_standby_with_a_slot_is_stopped_and_rebuilt(transport: Transport) {
    let stage = Stage::builder().with("max_wal_senders", 1).agent_with(ALLOWED).build();
    let recovery = stage.recovery_by(transport).option("start", true);
    recovery.run(&stage.primary);
    let running = stage.target.postmaster();
    recovery.fail(&stage.primary);
    for step in ["replication_slot", "wal_senders"] {
        let (ok, detail) = checked(&stage, transport, step);
        assert!(ok && detail.contains("is stopped first"), "{step}: {detail}");
    }
    assert_eq!(stage.target.postmaster(), running, "a check stops nothing");
    recovery.option("stop_target", true).run(&stage.primary);
    assert_ne!(stage.target.postmaster(), running);
    stage.target.wait_for_replay(&stage.primary);
}

/// Each of these recoveries cannot succeed, which is known while the target's server runs.
fn nothing_is_stopped_for_a_recovery_that_is_refused(transport: Transport) {
    let stage = Stage::builder().agent_with(ALLOWED).standby(Condition::Running).build();
    let running = stage.target.postmaster();
    // the slot that it would get is another standby's
    stage.primary.execute("SELECT pg_create_physical_replication_slot('taken')");
    let other = Cluster::place(&stage.scratch, &Host::here(), "other");
    Recovery::of(&other, &stage.primary)
        .option("slot_name", "taken")
        .option("application_name", "other")
        .option("dest_port", other.port())
        .option("transport", "local")
        .option("start", true)
        .run(&stage.primary);
    let recovery = || stage.recovery_by(transport).option("stop_target", true);
    recovery().option("slot_name", "taken").fail(&stage.primary).expect("55006").says("taken");
    recovery().option("replication_user", "nobody").fail(&stage.primary).expect("22023");
    // a configuration of its own that ends its recovery
    stage.target.append_conf("max_connections", 1);
    recovery().fail(&stage.primary).expect("55000").says("max_connections");
    assert_eq!(stage.target.postmaster(), running);
    stage.target.append_conf("max_connections", 50);
    // of another user: it cannot be removed
    let closed = stage.target.directory().join("closed");
    std::fs::create_dir(&closed).expect("a directory");
    std::fs::write(closed.join("file"), "").expect("a file");
    recovery().fail(&stage.primary).expect("55000").says("belongs to another user");
    std::fs::remove_dir_all(&closed).expect("removed");
    assert_eq!(stage.target.postmaster(), running);
    // a standby of a server that was promoted
    stage.target.promote();
    let ahead = Cluster::standby_by_basebackup(&stage.target, &Host::here(), "ahead");
    let refused = Recovery::of(&ahead, &stage.primary)
        .option("transport", "local")
        .option("slot_name", "")
        .option("dest_port", ahead.port())
        .option("stop_target", true);
    refused.fail(&stage.primary).expect("55000").says("ahead of this primary");
    assert!(ahead.postmaster().is_some());
}

/// The login for replication is tried when the server is stopped.
fn a_standby_that_was_stopped_in_vain_is_started_again(transport: Transport) {
    let stage = Stage::builder().agent_with(ALLOWED).standby(Condition::Running).build();
    let running = stage.target.postmaster();
    let mut recovery = stage.recovery_by(transport).option("stop_target", true);
    recovery.port = Some(1);
    recovery.fail(&stage.primary).expect("28000").says("was started again");
    assert_ne!(stage.target.postmaster(), running);
    stage.primary.wait_for_standby(stage.target.name());
    stage.target.wait_for_replay(&stage.primary);
}

by_both_transports!(
    a_standby_with_a_slot_is_stopped_and_rebuilt,
    nothing_is_stopped_for_a_recovery_that_is_refused,
    a_standby_that_was_stopped_in_vain_is_started_again,
);
