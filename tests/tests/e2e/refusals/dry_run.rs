//! What would be sent is told without anything being touched.

use pgpool_recovery_e2e::snapshot::Snapshot;
use pgpool_recovery_e2e::stage::Condition;
use pgpool_recovery_e2e::{Cluster, Host, Recovery, Scratch, SqlError, Stage, Transport, probe, workload};

/// A primary at rest, a stopped standby that is behind, and an agent for it.
fn stage() -> Stage {
    let stage =
        Stage::builder().quiet().filled(20).standby(Condition::Killed).through(Transport::Agent).build();
    workload::change_every(&mut stage.primary.connect(), 10);
    // what a checkpoint of the run itself would write
    workload::settle(&stage.primary);
    stage
}

#[test]
fn the_figures_are_those_of_the_run_that_follows() {
    let stage = stage();
    let (primary, standby) = (&stage.primary, &stage.target);
    let pristine = Snapshot::of(standby.directory());
    for transport in Transport::BOTH {
        let recovery = stage.recovery_by(transport).option("replication_user", "postgres");
        let dry = recovery.clone().option("dry_run", true).run(primary);
        pristine.assert_unchanged(standby.directory());
        probe::assert_nothing_left(primary);
        assert_eq!(dry.at("/dry_run"), &true, "{}", dry.0);
        assert_eq!(dry.at("/source/start_lsn"), &serde_json::Value::Null);
        assert_eq!((dry.text("/strategy"), dry.text("/target/transport")), ("delta", transport.name()));
        assert!(dry.number("/bytes/sent") > 1 << 20, "{}", dry.0);
        assert!(dry.number("/bytes/sent") < dry.number("/bytes/total") / 2, "{}", dry.0);
        assert!(dry.number("/bytes/wire") < dry.number("/bytes/total") / 50, "only digests: {}", dry.0);
        assert_eq!(dry.number("/bytes/compared"), dry.number("/bytes/total"));
    }
    let recovery = stage.recovery_by(Transport::Local);
    let dry = recovery.clone().option("dry_run", true).run(primary);
    let run = recovery.run(primary);
    // the run's own checkpoint, and the catalogs that its queries touch
    let near = |pointer: &str, slack: u64| {
        let (dry, run) = (dry.number(pointer), run.number(pointer));
        assert!(dry.abs_diff(run) <= slack, "{pointer}: {dry} and {run}");
    };
    near("/bytes/total", 1 << 20);
    near("/bytes/sent", 1 << 20);
    near("/files/changed", 20);
    near("/files/removed", 3);
    assert_eq!(run.at("/dry_run"), &false);
}

#[test]
fn a_missing_directory_is_not_made() {
    let scratch = Scratch::new();
    let primary = probe::quiet(Cluster::place(&scratch, &Host::here(), "primary")).into_primary();
    let target = Cluster::place(&scratch, &Host::here(), "target");
    let dry = Recovery::of(&target, &primary).option("dry_run", true).run(&primary);
    assert_eq!(dry.text("/strategy"), "full");
    // pages of zeros are not sent
    assert!(dry.number("/bytes/sent") > dry.number("/bytes/total") / 2, "{}", dry.0);
    assert!(!target.directory().exists());
    let warnings = dry.at("/warnings").to_string();
    assert!(warnings.contains("is in use on the target's host"), "the primary's port: {warnings}");
}

#[test]
fn what_a_run_refuses_a_dry_run_refuses() {
    let scratch = Scratch::new();
    let primary = Cluster::primary(&scratch);
    let standby = Cluster::standby_by_basebackup(&primary, &Host::here(), "standby");
    let recovery = Recovery::of(&standby, &primary).option("dry_run", true);
    recovery.fail(&primary).expect("55006").says("running");
    recovery.clone().option("start", true).fail(&primary).expect("22023");
    let sql = "SELECT count(*) FROM pgpool_recovery_status";
    assert_eq!(primary.get::<i64>(sql, &[]), 0, "it is no recovery");
    let mut other = Recovery::to("localhost", primary.dir(), primary.port());
    other = other.option("dry_run", true);
    let error: SqlError = other.fail(&primary).expect("55000");
    assert!(error.message.contains("primary itself"), "{error:?}");
}
