//! Data checksums that were switched on or off by pg_checksums, which writes no WAL.

use pgpool_recovery_e2e::cluster::Stop;
use pgpool_recovery_e2e::stage::Stage;
use pgpool_recovery_e2e::{Cluster, Scratch, process, workload};

use super::failover::{change_alone, parted, promote_and_change, recovery};
use super::{durable, rebuild, rebuilt_by_hash};

/// Of a server that was shut down.
#[track_caller]
fn pg_checksums(server: &Cluster, what: &str) {
    let mut command = server.host().pg("pg_checksums");
    command.arg(what).arg("-D").arg(server.directory());
    process::run(command).ok();
}

/// The same of a server that runs, and goes on afterwards.
fn switch(server: &Cluster, what: &str) {
    server.stop(Stop::Fast);
    pg_checksums(server, what);
    server.start();
}

/// A standby that was shut down.
fn lagging(initdb: Option<&'static str>) -> Stage {
    let builder = Stage::builder().primary(durable);
    let builder = builder.primary(move |place| match initdb {
        Some(argument) => place.initdb_argument(argument),
        None => place,
    });
    super::lagging::standby(builder.filled(20), pgpool_recovery_e2e::stage::Condition::Stopped)
}

#[test]
fn on_one_side_only() {
    for (initdb, what) in [(None, "--enable"), (Some("--data-checksums"), "--disable")] {
        for is_primary in [true, false] {
            let stage = lagging(initdb);
            if is_primary {
                switch(&stage.primary, what)
            } else {
                pg_checksums(&stage.target, what)
            }
            workload::change_every(&mut stage.primary.connect(), 300);
            let why = rebuilt_by_hash(&stage.recovery(), &stage.target, &stage.primary);
            assert!(why.contains("data checksums"), "{why}");
            if (what == "--enable") == is_primary {
                pg_checksums(&stage.target, "--check");
            }
        }
    }
}

#[test]
fn on_both_sides() {
    let stage = lagging(None);
    pg_checksums(&stage.target, "--enable");
    switch(&stage.primary, "--enable");
    workload::change_every(&mut stage.primary.connect(), 300);
    rebuild(&stage.recovery(), &stage.target, &stage.primary, "H0");
    pg_checksums(&stage.target, "--check");
}

/// Both have them now, but hints of transactions that the primary does not know came before.
#[test]
fn after_an_old_primary_was_shut_down() {
    let scratch = Scratch::new();
    let (old, new) = parted(&scratch, &[]);
    change_alone(&old);
    old.stop(Stop::Fast);
    pg_checksums(&old, "--enable");
    promote_and_change(&new);
    switch(&new, "--enable");
    let why = rebuilt_by_hash(&recovery(&old, &new), &old, &new);
    assert!(why.contains("does not show that it logged hint bits"), "{why}");
}
