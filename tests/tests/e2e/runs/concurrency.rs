//! Recoveries that meet: one target has one run, two targets do not disturb each other.

use std::time::{Duration, Instant};

use pgpool_recovery_e2e::background::Running;
use pgpool_recovery_e2e::cluster::Stop;
use pgpool_recovery_e2e::recovery::remote_start;
use pgpool_recovery_e2e::{Cluster, Host, Recovery, Scratch, compare, workload};

/// A primary and, promoted, what was its standby: two that may claim the same target.
fn two_primaries(scratch: &Scratch) -> (Cluster, Cluster) {
    let one = Cluster::primary(scratch);
    workload::fill(&one, 20);
    let other = Cluster::standby_by_basebackup(&one, &Host::here(), "other");
    other.promote();
    (one, other)
}

fn recovery(target: &Cluster, primary: &Cluster) -> Recovery {
    Recovery::of(target, primary)
        .option("application_name", target.name())
        .option("slot_name", target.name())
        .option("dest_port", target.port())
}

/// The second of two claims on `target` is refused at once, the first goes on and is right.
#[track_caller]
fn assert_one_wins(target: &Cluster, first: &Cluster, second: &Cluster) {
    let running = Running::start(first, &recovery(target, first).option("max_rate", 8000), "");
    running.wait_for_bytes(first, 4 << 20);
    let start = Instant::now();
    let error = recovery(target, second).option("slot_name", "second").fail(second);
    assert!(start.elapsed() < Duration::from_secs(2), "refused after {:?}", start.elapsed());
    error.expect("55006").says("running");
    running.finish_within(Duration::from_secs(60)).expect("the first one goes on");
    remote_start(first, "localhost", target.dir());
}

#[test]
fn one_target_twice_from_one_primary() {
    let scratch = Scratch::new();
    let primary = Cluster::primary(&scratch);
    workload::fill(&primary, 20);
    let target = Cluster::place(&scratch, &Host::here(), "target");
    assert_one_wins(&target, &primary, &primary);
    compare::stop_and_compare(&primary, &target).assert_none();
}

#[test]
fn one_target_from_two_primaries() {
    let scratch = Scratch::new();
    let (one, other) = two_primaries(&scratch);
    let target = Cluster::place(&scratch, &Host::here(), "target");
    assert_one_wins(&target, &one, &other);
    target.stop(Stop::Fast);
    // later it is the other one's
    recovery(&target, &other).run(&other);
    remote_start(&other, "localhost", target.dir());
    compare::stop_and_compare(&other, &target).assert_none();
}

#[test]
fn two_targets_at_the_same_time() {
    let scratch = Scratch::new();
    let primary = Cluster::primary(&scratch);
    workload::fill(&primary, 20);
    let targets = ["left", "right"].map(|name| Cluster::place(&scratch, &Host::here(), name));
    let runs: Vec<Running> = targets
        .iter()
        .map(|target| Running::start(&primary, &recovery(target, &primary).option("max_rate", 20_000), ""))
        .collect();
    for run in &runs {
        run.wait_for_bytes(&primary, 4 << 20);
    }
    assert!(runs.iter().all(|run| !run.has_ended()), "they did not meet");
    for (run, target) in runs.into_iter().zip(&targets) {
        run.finish_within(Duration::from_secs(60)).expect("both succeed");
        remote_start(&primary, "localhost", target.dir());
    }
    for target in &targets {
        target.wait_for_replay(&primary);
        assert!(target.in_recovery());
    }
    targets[0].stop(Stop::Fast);
    compare::stop_and_compare(&primary, &targets[1]).assert_none();
}
