//! A server that starts in the very moment in which a recovery begins.

use std::time::Duration;

use pgpool_recovery_e2e::background::Running;
use pgpool_recovery_e2e::cluster::Stop;
use pgpool_recovery_e2e::stage::Condition;
use pgpool_recovery_e2e::{SqlError, Stage};

/// A look from before the server's start is not enough: a running server is never replaced, and none starts
/// while its files are.
#[test]
fn a_server_that_starts_while_a_recovery_begins() {
    let stage = Stage::builder().quiet().filled(10).standby(Condition::Stopped).build();
    let (primary, standby) = (&stage.primary, &stage.target);
    let mut refused = 0;
    // milliseconds, from before the target is looked at until after the run has begun; None: when it has, on a busy machine, too
    let delays = [0, 20, 40, 80, 120, 160, 240, 320, 480, 720, 1080, 1620];
    for delay in delays.into_iter().map(Some).chain([None]) {
        // a second of data
        primary.execute("UPDATE bulk SET id = id");
        primary.execute("CHECKPOINT");
        let recovery = stage.recovery().option("max_rate", 8000);
        let running = Running::start(primary, &recovery, "");
        match delay {
            Some(delay) => std::thread::sleep(Duration::from_millis(delay)),
            None => running.wait_for_bytes(primary, 1),
        }
        let started = standby.try_start().status.success();
        match running.finish_within(Duration::from_secs(60)) {
            Ok(_) => assert!(!started, "after {delay:?} ms the server started, and its files were replaced"),
            Err(error) => {
                SqlError::from(&error).expect("55006");
                if !started {
                    // each was in the other's way, but the target is as it was
                    standby.start();
                }
                assert!(standby.in_recovery());
                standby.stop(Stop::Fast);
                refused += 1;
            }
        }
        primary.execute("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots");
    }
    assert!((1..=delays.len()).contains(&refused), "{refused} were refused, and the last one was not to be");
}
