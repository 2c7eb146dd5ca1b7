//! The target's disk takes nothing for longer than a host may be silent: the path to it fails over, and it is there again.

use std::time::Duration;

use pgpool_recovery_e2e::background::Running;
use pgpool_recovery_e2e::xfs::Xfs;
use pgpool_recovery_e2e::{Scratch, Stage, Transport, compare, wait};

/// Much more than the buffers of a connection hold.
const MEGABYTES: u32 = 64;

#[test]
fn a_disk_that_is_held_up() {
    let scratch = Scratch::new();
    let disk = Xfs::new(&scratch, 600).unwrap_or_else(|reason| panic!("no XFS: {reason}"));
    let directory = scratch.mkdir(disk.path().join("target"));
    let builder = Stage::on(&scratch).target(move |target| target.at(directory));
    let stage = builder.quiet().filled(MEGABYTES).settled().through(Transport::Agent).build();
    let recovery = stage.recovery().option("compression", "off").option("max_rate", 20_000);
    let running = Running::start(&stage.primary, &recovery, "");
    running.wait_for_bytes(&stage.primary, 1 << 20);
    disk.freeze();
    let is_over = wait::try_until(Duration::from_secs(45), || running.has_ended());
    disk.thaw();
    assert!(!is_over, "it ended: {}", stage.primary.log());
    running.finish_within(wait::PATIENCE).expect("the run goes on");
    stage.remote_start();
    compare::running(&stage.primary, &stage.target).assert_none();
}
