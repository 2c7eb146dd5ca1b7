//! A standby that replays for long before it accepts connections: its start is told how far it is, and what holds it up.

use std::time::{Duration, Instant};

use pgpool_recovery_e2e::cluster::Stop;
use pgpool_recovery_e2e::{Cluster, Stage, Transport, by_both_transports, process, wait};
use rustix::process::{Pid, Signal, kill_process};

use super::streaming::told_by_start;

by_both_transports!(a_start_tells_how_far_it_is, a_stopped_startup_process_is_named);

/// A stopped standby that is consistent only after it has replayed a dozen segments, each of which takes the archive a second.
fn inconsistent(transport: Transport) -> Stage {
    let stage = Stage::builder().through(transport).primary(|primary| {
        let archive = primary.scratch().mkdir("archive");
        primary
            .initdb_argument("--wal-segsize=1")
            .with("archive_mode", "on")
            .with("archive_command", format!("cp %p {}/%f", archive.display()))
            .with("pgpool_recovery.start_timeout", "5s")
    });
    let stage = stage.build();
    let archive = stage.scratch.join("archive");
    let slowly = format!("sleep 1; cp {}/%f %p", archive.display());
    stage.recovery().option("restore_command", slowly).run(&stage.primary);
    stage.remote_start();
    let mut client = stage.primary.connect();
    client.batch_execute("CREATE TABLE behind (n integer)").expect("a table");
    for _ in 0..12 {
        client.batch_execute("INSERT INTO behind VALUES (1); SELECT pg_switch_wal()").expect("a segment");
    }
    let last: String =
        client.query_one("SELECT pg_walfile_name(pg_switch_wal())", &[]).expect("the last segment").get(0);
    wait::until_true("the archive", wait::PATIENCE, || archive.join(&last).exists());
    stage.target.wait_for_replay(&stage.primary);
    // its end writes to pg_control up to where it must replay
    stage.target.stop(Stop::Fast);
    stage
}

/// The process of `cluster` that replays WAL, before a login is possible.
fn startup_process(cluster: &Cluster) -> Option<Pid> {
    let is_startup = |process: &u32| {
        let title = std::fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
        let title = String::from_utf8_lossy(&title);
        // most of the time it waits for the archive
        title.contains("startup recovering") || title.contains("startup waiting")
    };
    let process = process::children(cluster.postmaster()?).into_iter().find(is_startup)?;
    Pid::from_raw(process.cast_signed())
}

fn a_start_tells_how_far_it_is(transport: Transport) {
    let stage = inconsistent(transport);
    let start = Instant::now();
    let (notices, error) = told_by_start(&stage.primary, &stage.target);
    assert_eq!(error, None, "{notices}");
    assert!(start.elapsed() > Duration::from_secs(6), "it was not slow");
    let told: Vec<&str> =
        notices.lines().filter(|line| line.contains("accepts no connections yet")).collect();
    assert!(told.len() > 1, "{notices}");
    let last = told.last().expect("a line");
    assert!(last.contains("it has replayed WAL up to 0/") && last.contains(" of 0/"), "{notices}");
    assert!(last.ends_with("/s") && !last.contains(" 0 bytes/s"), "{notices}");
    assert!(!notices.contains("stands still"), "{notices}");
}

fn a_stopped_startup_process_is_named(transport: Transport) {
    let stage = inconsistent(transport);
    let (primary, target) = (&stage.primary, &stage.target);
    let (stopped, (notices, error)) = std::thread::scope(|scope| {
        let call = scope.spawn(|| told_by_start(primary, target));
        let startup = wait::until("its startup process", wait::PATIENCE, || startup_process(target));
        kill_process(startup, Signal::STOP).expect("it lives");
        (startup, call.join().expect("a call"))
    });
    let why = format!("its startup process ({}) is stopped by a signal", stopped.as_raw_nonzero());
    let error = error.expect("it stands still");
    assert!(error.contains("accepts no connections and made no progress for 5 s"), "{error}");
    assert!(error.ends_with(&why), "{error}");
    assert!(notices.contains(&format!("stands still: {why}")), "{notices}");
    kill_process(stopped, Signal::CONT).expect("it lives");
    let (notices, error) = told_by_start(primary, target);
    assert_eq!(error, None, "{notices}");
}
