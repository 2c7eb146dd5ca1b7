//! Order and durability (S2, S10): what the receiver asks of the kernel is recorded, and at no point could a power
//! cut leave a directory that starts although it is not complete, whichever unsynced changes survive it.

use std::path::Path;

use pgpool_recovery_e2e::by_both_transports;
use pgpool_recovery_e2e::scratch::write_as_postgres;
use pgpool_recovery_e2e::trace::{Call, Disk, Trace};
use pgpool_recovery_e2e::{Stage, Transport, account, compare, workload};

/// The marker, and pg_control in all its forms: what may change while the directory could be started.
fn is_own(root: &Path, path: &Path) -> bool {
    let name = path.strip_prefix(root).ok().and_then(Path::to_str).unwrap_or_default();
    ["pgpool_recovery.incomplete", "global/pg_control"].iter().any(|own| name.starts_with(own))
        || name.is_empty()
}

/// What a power cut may leave of global/pg_control.
#[derive(Debug, PartialEq)]
enum Control {
    /// The old one.
    Old,
    /// The old one or none: it was moved away, and that is not durable yet.
    Leaving,
    /// None: nothing can be started.
    None,
    /// The new one or none, later the new one.
    New,
}

/// Walks through the calls of a run on `root`.
#[track_caller]
fn assert_a_power_cut_is_harmless(root: &Path, calls: &[Call], before: Control) {
    let path_of_control = root.join("global/pg_control");
    let mut disk = Disk::new(root);
    let mut control = before;
    let mut data_changes = 0;
    for call in calls {
        let changed = disk.apply(call);
        for path in changed.iter().filter(|path| !is_own(root, path)) {
            assert_eq!(control, Control::None, "{} changes: {call:?}", path.display());
            data_changes += 1;
        }
        if changed.contains(&path_of_control) {
            if call.names().first() == Some(&"pg_control") {
                assert_eq!(control, Control::Old, "{call:?}");
                control = Control::Leaving;
            } else {
                // From now on it may start: nothing may be lost but what makes it start.
                let lost: Vec<_> = disk.unsynced().filter(|change| !is_own(root, &change.path)).collect();
                assert!(lost.is_empty(), "pg_control is placed while these may be lost: {lost:?}");
                assert_eq!(control, Control::None, "{call:?}");
                control = Control::New;
            }
        }
        if control == Control::Leaving && disk.unsynced().all(|change| change.path != path_of_control) {
            control = Control::None;
        }
    }
    assert_eq!(control, Control::New, "pg_control was never placed");
    assert!(data_changes > 100, "recorded next to nothing: {data_changes} changes");
    let lost: Vec<_> = disk.unsynced().collect();
    assert!(lost.is_empty(), "the run ended while these may be lost: {lost:?}");
}

/// A full copy, then a refresh of the standby that was killed, which lacks much and has surplus files.
#[track_caller]
fn run_twice(stage: &Stage, mut recover: impl FnMut() -> Vec<Call>) {
    let calls = recover();
    assert_a_power_cut_is_harmless(stage.target.directory(), &calls, Control::None);
    stage.remote_start();
    stage.target.wait_for_replay(&stage.primary);
    stage.target.kill();
    workload::change_every(&mut stage.primary.connect(), 3);
    stage.primary.execute("DROP TABLE accounts; CREATE TABLE later AS SELECT 1 AS a; CHECKPOINT");
    let surplus = stage.target.directory().join("base/77");
    std::fs::create_dir(&surplus).expect("a surplus directory");
    account::give(&surplus);
    write_as_postgres(&surplus.join("1"), "x", 0o600);
    let calls = recover();
    assert_a_power_cut_is_harmless(stage.target.directory(), &calls, Control::Old);
    stage.remote_start();
    compare::stop_and_compare(&stage.primary, &stage.target).assert_none();
}

fn a_power_cut_at_any_moment(transport: Transport) {
    let stage = Stage::builder().filled(10).through(transport).build();
    run_twice(&stage, || {
        let mut client = stage.primary.connect();
        let writer = match transport {
            Transport::Agent => stage.agent().pid(),
            Transport::Local => {
                let backend: i32 =
                    client.query_one("SELECT pg_backend_pid()", &[]).expect("a backend").get(0);
                backend.unsigned_abs()
            }
        };
        let trace = Trace::attach(&stage.scratch, writer);
        stage.recovery().call(&mut client).expect("a recovery");
        trace.finish()
    });
}

by_both_transports!(a_power_cut_at_any_moment);
