//! kill -9 of the postmaster alone. The system tells its children nothing that ends them: a backend that goes on keeps the
//! shared memory in use, so that the primary cannot be started again, and keeps the target locked.

use std::time::Duration;

use pgpool_recovery_e2e::background::Running;
use pgpool_recovery_e2e::process::{self, Daemon};
use pgpool_recovery_e2e::scratch::write_as_postgres;
use pgpool_recovery_e2e::{Stage, Transport, by_both_transports, probe, wait};
use rustix::process::Signal;

/// Three seconds for the threads of a run, and what a slow machine needs.
const NOTICED: Duration = Duration::from_secs(15);

by_both_transports!(in_the_middle_of_a_copy);

/// Kills the postmaster, of which all processes must end, and starts the primary again.
#[track_caller]
fn kill_and_start(stage: &Stage) {
    for process in stage.primary.kill_postmaster() {
        wait::until_true(&format!("the end of process {process}"), NOTICED, || process::is_reaped(process));
    }
    stage.primary.start();
}

fn in_the_middle_of_a_copy(transport: Transport) {
    let stage = Stage::builder().quiet().filled(16).through(transport).build();
    // for half a minute
    let slow = stage.recovery().option("max_rate", 512);
    let running = Running::start(&stage.primary, &slow, "");
    running.wait_for_bytes(&stage.primary, 1 << 20);
    kill_and_start(&stage);
    running.finish_within(NOTICED).expect_err("its session is gone");
    stage.target.await_release();
    assert!(stage.target.has("pgpool_recovery.incomplete"), "no marker");
    assert!(!stage.target.try_start().status.success(), "an incomplete target started");
    probe::assert_nothing_left(&stage.primary);
    stage.recovery().run_when_let_in(&stage.primary);
    stage.remote_start();
    assert!(stage.target.in_recovery());
}

#[test]
fn while_a_script_runs() {
    let stage = Stage::builder().with("pgpool_recovery.scripts", "run").build();
    let (script, pids) = (stage.primary.directory().join("forever"), stage.scratch.join("pids"));
    let text = format!(
        "#!/bin/sh\nsleep 300 &\necho $$ $! >'{0}.new' && mv '{0}.new' '{0}'\nwait\n",
        pids.display()
    );
    write_as_postgres(&script, &text, 0o700);
    let mut psql = stage.primary.host().pg("psql");
    psql.arg("-h").arg(stage.scratch.sockets()).args(["-p", &stage.primary.port().to_string()]);
    let call = format!("SELECT pgpool_recovery('forever', 'localhost', '{}', '1')", stage.target.dir());
    psql.args(["-U", "postgres", "-d", "postgres", "-X", "-c", &call]);
    let mut psql = Daemon::spawn(psql, &stage.scratch.join("psql.log"), Signal::TERM);
    let text = wait::until("the script", wait::PATIENCE, || std::fs::read_to_string(&pids).ok());
    let started: Vec<u32> = text.split_whitespace().map(|it| it.parse().expect("a process id")).collect();
    assert_eq!(started.len(), 2, "{text}");
    kill_and_start(&stage);
    for process in started {
        wait::until_true("the script's end", NOTICED, || process::is_reaped(process));
    }
    assert!(!psql.stop().success());
}
