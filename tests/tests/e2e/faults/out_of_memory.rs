//! Memory that cannot be had: the limit of an address space has malloc fail as strict accounting of memory
//! (`vm.overcommit_memory = 2`) does. The run fails and says so, and the server goes on.

use std::fs;

use pgpool_recovery_e2e::cluster::Stop;
use pgpool_recovery_e2e::probe::Witness;
use pgpool_recovery_e2e::{SqlError, Stage, Transport, by_both_transports, process};

by_both_transports!(a_limited_address_space);

/// From what a server can be started with to what a run has enough of, megabytes.
const LIMITS: std::ops::RangeInclusive<u32> = 160..=520;

/// What a run says for want of memory, of threads, and of nothing else.
const SQLSTATES: [&str; 2] = ["53200", "53000"];

fn a_limited_address_space(transport: Transport) {
    let stage = Stage::builder().filled(16).through(transport).build();
    stage.primary.stop(Stop::Fast);
    let (mut failed, mut succeeded) = (0, 0);
    let step = if transport == Transport::Local { 20 } else { 40 };
    for megabytes in LIMITS.step_by(step) {
        if !stage.primary.start_within(megabytes * 1024).status.success() {
            assert_eq!((failed, succeeded), (0, 0), "less was enough");
            continue;
        }
        let mut witness = Witness::on(&stage.primary);
        for jobs in [1, 4] {
            let call = stage.recovery().option("jobs", jobs).option("slot_name", "");
            match call.call(&mut stage.primary.connect()) {
                Ok(_) => succeeded += 1,
                Err(error) => {
                    let error = SqlError::from(&error);
                    assert!(
                        SQLSTATES.contains(&error.sqlstate.as_str()),
                        "{megabytes} MB, {jobs}: {error:?}"
                    );
                    eprintln!("{megabytes} MB, {jobs} jobs: {}", error.message);
                    failed += 1;
                }
            }
            witness.assert_served();
            let _ = fs::metadata(stage.target.directory()).map(|_| stage.target.await_release());
            let _ = fs::remove_dir_all(stage.target.directory());
        }
        drop(witness);
        stage.primary.stop(Stop::Fast);
    }
    let log = stage.primary.log();
    assert!(!log.contains("terminated by signal"), "{}", process::tail(&log, 40));
    assert!(failed > 0 && succeeded > 0, "{failed} failed, {succeeded} succeeded");
}
