//! Recoveries that leave out what the WAL of both sides proves equal (`skip_unchanged`).

mod checksums;
mod crashes;
mod failover;
mod files;
mod hints;
mod histories;
mod killed;
mod lagging;
mod records;
mod rejected;
mod scenarios;

use pgpool_recovery_e2e::recovery::Report;
use pgpool_recovery_e2e::{Cluster, Recovery, compare, dump};

/// Runs statements one by one: some may not be in a transaction with others.
fn each(client: &mut postgres::Client, statements: &[&str]) {
    for sql in statements {
        client.batch_execute(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
    }
}

/// What such a recovery needs of the servers: a disk that is trusted, and WAL from before they part.
fn durable(cluster: Cluster) -> Cluster {
    cluster.with("fsync", "on").with("autovacuum", "off").with("wal_keep_size", "256MB")
}

/// Watches the proof first, comparing everything; then rebuilds and starts the target with it, and compares the whole result.
/// Returns the report.
#[track_caller]
fn rebuild(recovery: &Recovery, old: &Cluster, new: &Cluster, hint_rule: &str) -> Report {
    let recovery = recovery.clone().option("skip_unchanged", "shadow");
    // without a backup only what the primary has written can be looked at
    new.execute("CHECKPOINT");
    let watched = recovery.clone().option("dry_run", true).run(new);
    assert_eq!(watched.at("/skip/mode"), "shadow", "{}", watched.0);
    assert!(watched.0.pointer("/skip/hint_rule").is_some_and(|rule| rule == hint_rule), "{}", watched.0);
    assert_eq!(watched.number("/skip/refuted"), 0, "{}", watched.0);
    assert!(watched.number("/skip/looked_at") > 0, "{}", watched.0);
    let report = recovery.option("skip_unchanged", "on").option("start", true).run(new);
    assert_eq!(report.text("/skip/rule"), "wal_map", "{}", report.0);
    assert_eq!(report.text("/skip/hint_rule"), hint_rule, "{}", report.0);
    assert!(report.number("/bytes/known") > 0, "{}", report.0);
    old.wait_for_replay(new);
    dump::assert_equal(new, old);
    dump::assert_amcheck_clean(old);
    compare::stop_and_compare(new, old).assert_none();
    report
}

/// A recovery that compares everything after all. Returns why.
#[track_caller]
fn rebuilt_by_hash(recovery: &Recovery, old: &Cluster, new: &Cluster) -> String {
    let report = recovery.clone().option("skip_unchanged", "on").option("start", true).run(new);
    assert_eq!(report.text("/skip/rule"), "hash", "{}", report.0);
    assert_eq!(report.number("/bytes/known"), 0, "{}", report.0);
    old.wait_for_replay(new);
    compare::stop_and_compare(new, old).assert_none();
    report.at("/skip").to_string()
}
