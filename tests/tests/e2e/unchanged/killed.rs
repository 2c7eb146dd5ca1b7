//! Servers that were killed while they recovered, made a restartpoint or were promoted.
//!
//! A file that may not be opened, or a command that does not return, holds each of them at one place.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use pgdata::wal::Lsn;
use pgpool_recovery_e2e::stage::{Builder, Condition, Stage};
use pgpool_recovery_e2e::{Cluster, Scratch, wait, workload};

use super::failover::{change_alone, parted, promote_and_change, recovery};
use super::{durable, each, rebuild};

/// A table that was made last: of all that a checkpoint writes its pages come last.
const LAST: &str = "CREATE TABLE last AS SELECT i, repeat('a', 100) AS w FROM generate_series(1, 3000) i";

/// The file of that table in a server's data directory.
fn last(server: &Cluster, directory_of: &Cluster) -> std::path::PathBuf {
    let path: String = server.get("SELECT pg_relation_filepath('last')", &[]);
    directory_of.directory().join(path)
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("another mode");
}

#[test]
fn an_old_primary_that_has_crashed_again_within_its_recovery() {
    let scratch = Scratch::new();
    // so few buffers that replay writes pages before it ends
    let (old, new) = parted(&scratch, &[("wal_log_hints", "on"), ("shared_buffers", "1MB")]);
    change_alone(&old);
    let mut client = old.connect();
    each(&mut client, &[LAST, "CHECKPOINT"]);
    workload::change_every(&mut client, 11);
    each(&mut client, &["UPDATE last SET w = 'lost'"]);
    workload::change_every(&mut client, 13);
    drop(client);
    let obstacle = last(&old, &old);
    old.kill();
    set_mode(&obstacle, 0o000);
    assert!(!old.try_start().status.success(), "it started");
    assert_eq!(old.control("Database cluster state"), "in crash recovery");
    set_mode(&obstacle, 0o600);
    promote_and_change(&new);
    rebuild(&recovery(&old, &new), &old, &new, "H2");
}

/// A standby for which nothing but the test decides when pages are written.
fn standby(builder: Builder) -> Stage {
    let builder = builder.primary(durable).with("checkpoint_timeout", "1h").with("bgwriter_lru_maxpages", 0);
    let stage = builder.filled(5).standby(Condition::Running).build();
    each(&mut stage.primary.connect(), &[LAST, "CHECKPOINT"]);
    stage.target.wait_for_replay(&stage.primary);
    stage.target.execute("CHECKPOINT");
    stage.primary.execute("INSERT INTO accounts (note) VALUES ('a transaction')");
    stage
}

#[test]
fn a_standby_that_was_killed_within_a_restartpoint() {
    let stage = standby(Stage::builder());
    let (primary, target) = (&stage.primary, &stage.target);
    primary.execute("UPDATE last SET w = repeat('b', 100)");
    workload::change_every(&mut primary.connect(), 50);
    primary.execute("CHECKPOINT");
    primary.execute("INSERT INTO accounts (note) VALUES ('behind the checkpoint')");
    target.wait_for_replay(primary);
    let redo = || target.control("Latest checkpoint's REDO location");
    let (before, obstacle) = (redo(), last(primary, target));
    set_mode(&obstacle, 0o000);
    target.connect().batch_execute("CHECKPOINT").expect_err("a page cannot be written");
    target.kill();
    set_mode(&obstacle, 0o600);
    assert_eq!(redo(), before, "the restartpoint is complete");
    let lsn_of = |cluster: &Cluster| fs::read(last(primary, cluster)).expect("the table")[..8].to_vec();
    assert_ne!(lsn_of(primary), lsn_of(target), "its pages were written");
    workload::change_every(&mut primary.connect(), 70);
    let report = rebuild(&stage.recovery(), target, primary, "H0");
    // pg_controldata of 19 writes leading zeros
    let lsn = |text: &str| text.parse::<Lsn>().expect("a position");
    assert_eq!(lsn(report.text("/skip/from")), lsn(&before), "{}", report.0);
}

#[test]
fn a_standby_that_was_killed_when_its_promotion_began() {
    let stage = standby(Stage::builder());
    let (primary, target) = (&stage.primary, &stage.target);
    target.wait_for_replay(primary);
    target.append_conf("primary_conninfo", "");
    target.reload();
    let wal = target.directory().join("pg_wal");
    set_mode(&wal, 0o500);
    // the server may end before it answers
    let _ = target.connect().batch_execute("SELECT pg_promote(false)");
    wait::until_true("the end of the promotion", wait::PATIENCE, || target.postmaster().is_none());
    set_mode(&wal, 0o700);
    assert_eq!(target.control("Database cluster state"), "in archive recovery");
    workload::change_every(&mut primary.connect(), 70);
    rebuild(&stage.recovery(), target, primary, "H0");
}

/// It has begun a timeline, and its pg_control does not say so.
#[test]
fn a_standby_that_was_killed_before_its_promotion_was_complete() {
    let scratch = Scratch::new();
    let [reached, go_on] = ["reached", "go-on"].map(|name| scratch.join(name));
    let wait = format!("touch {}; until [ -e {} ]; do sleep 0.1; done", reached.display(), go_on.display());
    let stage = standby(Stage::on(&scratch).with("recovery_end_command", wait));
    let (primary, target) = (&stage.primary, &stage.target);
    target.wait_for_replay(primary);
    target.append_conf("primary_conninfo", "");
    target.reload();
    target.execute("SELECT pg_promote(false)");
    wait::until_true("the end of the promotion", wait::PATIENCE, || reached.exists());
    target.kill();
    fs::write(&go_on, "").expect("a file");
    assert_eq!(target.control("Database cluster state"), "in archive recovery");
    assert_eq!(target.control("Latest checkpoint's TimeLineID"), "1");
    assert!(target.has("pg_wal/00000002.history"), "no timeline has begun");
    workload::change_every(&mut primary.connect(), 70);
    // which the primary is not on
    let recovery = stage.recovery().option("overwrite", "any_cluster");
    let report = rebuild(&recovery, target, primary, "H1");
    assert!(report.text("/skip/common_to") < report.text("/skip/target/end"), "{}", report.0);
}
