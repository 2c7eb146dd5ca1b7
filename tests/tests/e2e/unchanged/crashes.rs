//! Servers that ran on after the histories parted in another way than as a primary, and a primary that has lost what its standby
//! has.

use std::fs;
use std::path::Path;

use pgpool_recovery_e2e::cluster::Stop;
use pgpool_recovery_e2e::scratch::write_as_postgres;
use pgpool_recovery_e2e::stage::{Condition, Stage};
use pgpool_recovery_e2e::{Scratch, process, workload};

use super::failover::{change_alone, parted, promote_and_change, recovery};
use super::{durable, each, rebuild, rebuilt_by_hash};

#[test]
fn an_old_primary_that_was_started_as_a_standby_and_could_not_follow() {
    let scratch = Scratch::new();
    let (old, new) = parted(&scratch, &[("wal_log_hints", "on")]);
    change_alone(&old);
    old.kill();
    promote_and_change(&new);
    write_as_postgres(&old.directory().join("standby.signal"), "", 0o600);
    old.append_conf("primary_conninfo", format!("host=127.0.0.1 port={} user=postgres", new.port()));
    old.start();
    // in recovery hints are set, and none is logged
    old.execute("SELECT count(*) FROM bulk");
    old.kill();
    let why = rebuilt_by_hash(&recovery(&old, &new), &old, &new);
    assert!(why.contains("a server in recovery does not log hint bits"), "{why}");
}

#[test]
fn an_old_primary_that_was_changed_in_single_user_mode() {
    let scratch = Scratch::new();
    let (old, new) = parted(&scratch, &[("wal_log_hints", "on")]);
    change_alone(&old);
    old.kill();
    fs::remove_file(old.directory().join("postmaster.pid")).expect("killed");
    let statements = scratch.join("statements.sql");
    write_as_postgres(
        &statements,
        "UPDATE bulk SET filler = 'single' WHERE id BETWEEN 3000 AND 3100\n",
        0o600,
    );
    let mut single = old.host().command("sh");
    let program = pgpool_recovery_e2e::server::program("postgres");
    single.args(["-c", "\"$0\" --single -D \"$1\" postgres < \"$2\""]);
    single.arg(program).arg(old.directory()).arg(&statements);
    process::run(single).ok();
    assert_eq!(old.control("Database cluster state"), "shut down");
    promote_and_change(&new);
    rebuild(&recovery(&old, &new), &old, &new, "H2");
}

/// The tail of its WAL was not on the disk, and its standby has it: nothing but the standby's own WAL tells of that.
#[test]
fn a_primary_that_has_lost_what_its_standby_has() {
    let stage = Stage::builder().primary(durable).filled(20).standby(Condition::Running).build();
    let (primary, target) = (&stage.primary, &stage.target);
    primary.execute("INSERT INTO accounts (note) VALUES ('a transaction')");
    target.wait_for_replay(primary);
    primary.stop(Stop::Fast);
    let earlier = stage.scratch.join("earlier");
    let copy = |from: &Path, to: &Path| {
        let mut copy = std::process::Command::new("cp");
        copy.arg("-a").arg(from).arg(to);
        process::run(copy).ok();
    };
    copy(primary.directory(), &earlier);
    primary.start();
    primary.wait_for_standby(target.name());
    let mut open = primary.connect();
    each(&mut open, &["BEGIN", "UPDATE bulk SET filler = 'lost' WHERE id < 300", "SELECT pg_switch_wal()"]);
    target.wait_for_what_is_flushed(primary);
    target.stop(Stop::Fast);
    primary.kill();
    drop(open);
    fs::remove_dir_all(primary.directory()).expect("removed");
    copy(&earlier, primary.directory());
    primary.start();
    workload::change_every(&mut primary.connect(), 700);
    for _ in 0..3 {
        primary.execute("SELECT pg_switch_wal()");
        primary.execute("INSERT INTO accounts (note) VALUES ('another history')");
    }
    rebuild(&stage.recovery(), target, primary, "H1");
}
