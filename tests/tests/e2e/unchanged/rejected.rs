//! What proves nothing: everything is compared, in the same run.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use pgpool_recovery_e2e::cluster::Stop;
use pgpool_recovery_e2e::stage::{Condition, Stage};
use pgpool_recovery_e2e::{Cluster, Scratch, workload};

use super::failover::{parted, promote_and_change, recovery};
use super::{durable, rebuilt_by_hash};

/// A standby with WAL that tells whose it is: in that of two servers at rest there are no times.
fn standby() -> Stage {
    let stage = Stage::builder().primary(durable).filled(20).standby(Condition::Running).build();
    stage.primary.execute("INSERT INTO accounts (note) VALUES ('a transaction')");
    stage.target.wait_for_replay(&stage.primary);
    stage
}

fn lagging() -> Stage {
    let stage = standby();
    stage.target.kill();
    workload::change_every(&mut stage.primary.connect(), 300);
    stage
}

/// The segments of the target's WAL, in order.
fn segments(stage: &Stage) -> Vec<PathBuf> {
    let entries = fs::read_dir(stage.target.directory().join("pg_wal")).expect("pg_wal");
    let mut segments: Vec<PathBuf> = entries
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.file_name().is_some_and(|name| name.len() == 24))
        .collect();
    segments.sort();
    segments
}

#[test]
fn damaged_or_missing_wal_of_the_target() {
    type Spoil = fn(&Stage);
    let spoils: [(&str, Spoil); 2] = [
        ("checkpoint", |stage| {
            for segment in segments(stage) {
                fs::remove_file(segment).expect("remove");
            }
        }),
        ("WAL of the target", |stage| {
            // somewhere in the middle of what was written last
            let first = &segments(stage)[0];
            let file = OpenOptions::new().read(true).write(true).open(first).expect("open");
            let written: Vec<u8> = fs::read(first).expect("read");
            let used = written.iter().rposition(|byte| *byte != 0).expect("something");
            for at in [used / 2, used / 2 + 1, used / 3] {
                file.write_at(&[written[at] ^ 0xFF], at as u64).expect("write");
            }
        }),
    ];
    for (reason, spoil) in spoils {
        let stage = lagging();
        spoil(&stage);
        let why = rebuilt_by_hash(&stage.recovery(), &stage.target, &stage.primary);
        assert!(why.contains(reason), "{reason}: {why}");
    }
}

#[test]
fn a_target_without_fsync() {
    let stage = lagging();
    stage.target.append_conf("fsync", "off");
    let why = rebuilt_by_hash(&stage.recovery(), &stage.target, &stage.primary);
    assert!(why.contains("fsync = off"), "{why}");
}

#[test]
fn pages_that_were_changed_by_other_means() {
    let stage = standby();
    stage.target.stop(Stop::Fast);
    let path: String = stage.primary.get("SELECT pg_relation_filepath('bulk')", &[]);
    let file = OpenOptions::new().write(true).open(stage.target.directory().join(path)).expect("open");
    for page in 0..500 {
        file.write_at(b"damaged by something", page * 8192 + 5000).expect("write");
    }
    let why = rebuilt_by_hash(&stage.recovery(), &stage.target, &stage.primary);
    assert!(why.contains("no WAL says so"), "{why}");
}

#[test]
fn wal_of_the_primary_that_is_gone() {
    let stage = Stage::builder()
        .primary(durable)
        .with("wal_keep_size", "0")
        .with("max_wal_size", "32MB")
        .with("min_wal_size", "32MB")
        .filled(20)
        .standby(Condition::Killed)
        .build();
    for _ in 0..4 {
        workload::change_every(&mut stage.primary.connect(), 2);
        stage.primary.execute("CHECKPOINT");
    }
    let why = rebuilt_by_hash(&stage.recovery(), &stage.target, &stage.primary);
    assert!(why.contains("neither the WAL") || why.contains("in common"), "{why}");
}

#[test]
fn a_target_that_has_contradicted_the_proof_must_prove_itself_again() {
    let stage = standby();
    stage.target.stop(Stop::Fast);
    let path: String = stage.primary.get("SELECT pg_relation_filepath('bulk')", &[]);
    let file = stage.target.directory().join(path);
    for page in 0..500 {
        let file = OpenOptions::new().write(true).open(&file).expect("open");
        file.write_at(b"damaged by something", page * 8192 + 5000).expect("write");
    }
    let recovery = stage.recovery().option("skip_unchanged", "on").option("start", true);
    let report = recovery.run(&stage.primary);
    assert!(report.number("/skip/refuted") > 0, "{}", report.0);
    assert!(stage.primary.log().contains("WARNING:  pgpool_recovery"), "{}", stage.primary.log());
    let mut modes = Vec::new();
    for _ in 0..2 {
        stage.target.wait_for_replay(&stage.primary);
        stage.target.stop(Stop::Fast);
        stage.primary.execute("INSERT INTO accounts (note) VALUES ('again')");
        let report = recovery.run(&stage.primary);
        assert_eq!(report.number("/skip/refuted"), 0, "{}", report.0);
        modes.push(report.text("/skip/mode").to_owned());
    }
    assert_eq!(modes, ["shadow", "on"]);
}

/// Logs for a while so little that a table is written without WAL.
fn load_without_wal(cluster: &Cluster) {
    let restart_with = |level: &str, senders: u32| {
        cluster.stop(Stop::Fast);
        cluster.append_conf("wal_level", level);
        cluster.append_conf("max_wal_senders", senders);
        cluster.start();
    };
    restart_with("minimal", 0);
    let insert = || -> i64 { cluster.get("SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint", &[]) };
    let before = insert();
    cluster.execute(
        "BEGIN; CREATE TABLE loaded (i integer, w text);
         COPY loaded FROM PROGRAM 'seq -f ''%.0f	0123456789012345678901234567890123456789'' 200000'; COMMIT",
    );
    let size: i64 = cluster.get("SELECT pg_relation_size('loaded')", &[]);
    assert!(insert() - before < size / 2, "its pages are in the WAL");
    restart_with("replica", 10);
}

#[test]
fn wal_of_a_server_that_has_logged_too_little() {
    for on_primary in [true, false] {
        let scratch = Scratch::new();
        let (old, new) = parted(&scratch, &[("wal_log_hints", "on")]);
        if !on_primary {
            load_without_wal(&old);
        }
        old.kill();
        promote_and_change(&new);
        if on_primary {
            load_without_wal(&new);
        }
        let why = rebuilt_by_hash(&recovery(&old, &new), &old, &new);
        let side = if on_primary { "primary" } else { "target" };
        assert!(why.contains(&format!("wal_level of the {side} was")), "{why}");
    }
}
