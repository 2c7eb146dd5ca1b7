//! A postmaster that is process 1, as in a container without an init. It takes every orphan for a child of its own: one that
//! is ended by a signal has it end all sessions.

use std::time::Duration;

use pgpool_recovery_e2e::cluster::Stop;
use pgpool_recovery_e2e::probe::Witness;
use pgpool_recovery_e2e::recovery::try_remote_start;
use pgpool_recovery_e2e::scratch::write_as_postgres;
use pgpool_recovery_e2e::{SqlError, Stage};

/// Time for the postmaster to act on what became its child.
const ACTS: Duration = Duration::from_secs(2);

#[test]
fn a_cancelled_script_leaves_no_orphans_to_the_postmaster() {
    let stage = Stage::builder().with("pgpool_recovery.scripts", "run").build();
    // a child in the background, one whose parent is gone, and one that ignores SIGTERM
    let text = "#!/bin/bash\nsleep 300 & (sleep 301 &)\n(trap '' TERM; sleep 302) &\nsleep 303\n";
    write_as_postgres(&stage.primary.directory().join("forever"), text, 0o700);
    stage.primary.stop(Stop::Fast);
    let _server = stage.primary.start_as_process_1();
    let mut witness = Witness::on(&stage.primary);
    let call = format!("SELECT pgpool_recovery('forever', 'localhost', '{}', '1')", stage.target.dir());
    let mut client = stage.primary.connect();
    client.batch_execute("SET statement_timeout = '1s'").expect("SET");
    let error = client.batch_execute(&call).expect_err("the timeout");
    assert_eq!(SqlError::from(&error).sqlstate, "57014");
    // what the session had would be the postmaster's when it ends
    drop(client);
    std::thread::sleep(ACTS);
    witness.assert_served();
    assert!(!stage.primary.log().contains("terminated by signal"), "{}", stage.primary.log());
}

#[test]
fn no_local_standby_is_started() {
    let stage = Stage::builder().build();
    stage.primary.stop(Stop::Fast);
    let _server = stage.primary.start_as_process_1();
    let mut witness = Witness::on(&stage.primary);
    let refused = |error: SqlError| {
        error.expect("55000").says("process 1").says("docker run --init").says("an agent");
    };
    refused(stage.recovery().option("start", true).fail(&stage.primary));
    assert!(!stage.target.directory().exists(), "it was refused before anything changed");
    // a copy is harmless
    stage.recovery().run(&stage.primary);
    refused(try_remote_start(&stage.primary, "localhost", stage.target.dir()).expect_err("refused"));
    assert!(stage.target.postmaster().is_none() && !stage.target.has("postmaster.pid"));
    witness.assert_served();
    // and the standby is one
    stage.target.start();
    assert!(stage.target.in_recovery());
}
