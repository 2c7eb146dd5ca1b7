//! What a recovery must not do to the primary's host: a standby beside its primary shares a file system and the names of
//! directories with it, and the slot of any run keeps WAL there.

use std::fs;
use std::path::Path;
use std::time::Duration;

use pgpool_recovery_e2e::background::Running;
use pgpool_recovery_e2e::by_both_transports;
use pgpool_recovery_e2e::mount::Tmpfs;
use pgpool_recovery_e2e::probe::{self, Witness};
use pgpool_recovery_e2e::process;
use pgpool_recovery_e2e::recovery::{remote_start, try_remote_start};
use pgpool_recovery_e2e::wait;
use pgpool_recovery_e2e::xfs::Xfs;
use pgpool_recovery_e2e::{Cluster, Host, Recovery, Scratch, SqlError, Stage, Transport, compare, workload};

const MEGABYTES: u32 = 16;

fn recovery(target: &Cluster, primary: &Cluster) -> Recovery {
    Recovery::of(target, primary).option("dest_port", target.port()).option("clone", false)
}

/// A tablespace with a table in it.
fn create_tablespace(primary: &Cluster, location: &Path) {
    primary.execute(&format!("CREATE TABLESPACE fresh LOCATION '{}'", location.display()));
    primary.execute("CREATE TABLE in_fresh TABLESPACE fresh AS SELECT i FROM generate_series(1, 10000) i");
}

fn mapping(location: &Path) -> String {
    format!("{}={}", location.display(), location.with_extension("standby").display())
}

fn assert_whole(cluster: &Cluster) {
    assert_eq!(cluster.get::<i64>("SELECT count(*) FROM in_fresh", &[]), 10_000);
}

/// Replay would empty the primary's directory.
fn a_tablespace_created_during_a_run_fails_it(transport: Transport) {
    let scratch = Scratch::new();
    let roots = format!("tablespace_roots = [\"{}\"]\n", scratch.path().display());
    let stage = Stage::on(&scratch).quiet().filled(MEGABYTES).agent_with(&roots).build();
    let (primary, target) = (&stage.primary, &stage.target);
    let recovery = || recovery(target, primary).option("transport", transport.name());
    let location = scratch.mkdir("fresh");
    let running = Running::start(primary, &recovery().option("max_rate", 8000), "");
    running.wait_for_bytes(primary, 4 << 20);
    create_tablespace(primary, &location);
    let error = running.finish_within(Duration::from_secs(60)).expect_err("it would share the tablespace");
    SqlError::from(&error).expect("55000").says("tablespace").says("run the recovery again");
    probe::assert_nothing_left(primary);
    assert!(!target.try_start().status.success(), "an incomplete target started");
    assert_whole(primary);

    recovery().option("tablespace_mapping", mapping(&location)).run_when_let_in(primary);
    stage.remote_start();
    target.wait_for_replay(primary);
    assert_whole(target);
    primary.execute("CHECKPOINT");
    assert_whole(primary);
    compare::stop_and_compare(primary, target).assert_none();
}

by_both_transports!(a_tablespace_created_during_a_run_fails_it);

/// The link of one that is being created may be there before its WAL: replay would empty the primary's directory, if that WAL
/// came behind the backup's start.
#[test]
fn a_tablespace_that_is_being_created_is_waited_for() {
    let scratch = Scratch::new();
    let stage = Stage::on(&scratch).quiet().filled(MEGABYTES).build();
    let (primary, target) = (&stage.primary, &stage.target);
    let location = scratch.mkdir("fresh");
    primary.append_conf("synchronous_standby_names", "nobody");
    primary.reload();
    let create = format!("CREATE TABLESPACE fresh LOCATION '{}'", location.display());
    let mut session = primary.connect();
    let is_held = "SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND query LIKE 'CREATE TABLESPACE%'";
    let recovery = || recovery(target, primary).option("tablespace_mapping", mapping(&location));
    std::thread::scope(|scope| {
        let creation = scope.spawn(move || session.batch_execute(&create));
        wait::until_true("CREATE TABLESPACE to wait", wait::PATIENCE, || primary.get(is_held, &[]));
        let error = recovery().fail(primary);
        error.expect("55006").says("is being created").says("pg_tablespace");
        assert!(!target.directory().join("PG_VERSION").exists() && !target.has("pgpool_recovery.incomplete"));
        let running = Running::start(primary, &recovery(), "");
        primary.execute("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'");
        creation.join().expect("no panic").expect("it is committed here");
        running.finish_within(wait::PATIENCE).expect("recovered");
    });
    primary.append_conf("synchronous_standby_names", "");
    primary.reload();
    primary.execute("CREATE TABLE in_fresh TABLESPACE fresh AS SELECT i FROM generate_series(1, 10000) i");
    stage.remote_start();
    target.wait_for_replay(primary);
    assert_whole(target);
    assert_whole(primary);
}

#[test]
fn a_standby_that_lacks_a_tablespace_is_not_started() {
    let scratch = Scratch::new();
    let stage = Stage::on(&scratch).quiet().filled(MEGABYTES).build();
    let (primary, target) = (&stage.primary, &stage.target);
    let location = scratch.mkdir("fresh");
    recovery(target, primary).run(primary);
    create_tablespace(primary, &location);
    let error =
        try_remote_start(primary, "localhost", target.dir()).expect_err("it would share the tablespace");
    error.expect("55000").says("fresh").says("tablespace_mapping");
    assert!(target.postmaster().is_none());
    assert_whole(primary);
    recovery(target, primary).option("tablespace_mapping", mapping(&location)).run(primary);
    remote_start(primary, "localhost", target.dir());
    target.wait_for_replay(primary);
    assert_whole(target);
    assert_whole(primary);
}

#[test]
fn a_tablespace_dropped_during_a_run_does_no_harm() {
    let scratch = Scratch::new();
    let stage = Stage::on(&scratch).quiet().filled(MEGABYTES).build();
    let (primary, target) = (&stage.primary, &stage.target);
    let location = scratch.mkdir("fresh");
    create_tablespace(primary, &location);
    let slow =
        recovery(target, primary).option("max_rate", 8000).option("tablespace_mapping", mapping(&location));
    let running = Running::start(primary, &slow, "");
    running.wait_for_bytes(primary, 4 << 20);
    primary.execute("DROP TABLE in_fresh");
    primary.execute("DROP TABLESPACE fresh");
    running.finish_within(Duration::from_secs(60)).expect("it succeeds");
    remote_start(primary, "localhost", target.dir());
    target.wait_for_replay(primary);
    compare::stop_and_compare(primary, target).assert_none();
}

/// Bytes that are free on the file system.
fn free(directory: &Path) -> u64 {
    let stat = rustix::fs::statvfs(directory).expect("statvfs");
    stat.f_bavail * stat.f_frsize
}

/// Leaves so many bytes of the file system free.
fn leave_free(directory: &Path, bytes: u64) {
    let ballast = directory.join("ballast");
    let free = || free(directory);
    let grown = fs::metadata(&ballast).map_or(0, |metadata| metadata.len()) + free().saturating_sub(bytes);
    let mut allocate = std::process::Command::new("fallocate");
    allocate.args(["-l", &grown.to_string()]).arg(&ballast);
    process::run(allocate).ok();
    assert!(free() <= bytes + (8 << 20), "{} bytes are free", free());
}

#[test]
fn a_copy_leaves_the_primary_room_on_its_own_file_system() {
    let scratch = Scratch::new();
    let xfs = Xfs::new(&scratch, 800).unwrap_or_else(|reason| panic!("no XFS: {reason}"));
    let reserve = 64 << 20;
    let primary =
        probe::quiet(Cluster::place(&scratch, &Host::here(), "primary").at(xfs.path().join("primary")))
            .with("max_wal_size", "64MB")
            .with("min_wal_size", "32MB")
            .into_primary();
    workload::fill(&primary, MEGABYTES);
    let target = Cluster::place(&scratch, &Host::here(), "target").at(xfs.path().join("target"));
    let slow = recovery(&target, &primary).option("max_rate", 8000);

    // room for the copy, but not for the copy and what the primary may write
    let size: i64 = primary.get("SELECT sum(pg_database_size(oid))::bigint FROM pg_database", &[]);
    leave_free(xfs.path(), size.unsigned_abs() + (40 << 20) + reserve / 2);
    slow.fail(&primary).expect("53100").says("stay free for the primary");
    assert!(!target.has(""), "nothing was written");
    probe::assert_nothing_left(&primary);

    // room for both, until something else takes it
    fs::remove_file(xfs.path().join("ballast")).expect("removed");
    let running = Running::start(&primary, &slow, "");
    running.wait_for_bytes(&primary, 4 << 20);
    leave_free(xfs.path(), reserve - (8 << 20));
    let error = running.finish_within(Duration::from_secs(20)).expect_err("the reserve is gone");
    SqlError::from(&error).expect("53100").says("running full").says("kept for the primary");
    // the slot keeps no WAL, and the primary has room to write
    probe::assert_nothing_left(&primary);
    primary.execute("CREATE TABLE more AS SELECT i, repeat('m', 500) FROM generate_series(1, 20000) i");
    assert!(!target.try_start().status.success(), "an incomplete target started");

    fs::remove_file(xfs.path().join("ballast")).expect("removed");
    recovery(&target, &primary).run(&primary);
    remote_start(&primary, "localhost", target.dir());
    compare::stop_and_compare(&primary, &target).assert_none();
}

#[test]
fn a_copy_to_another_file_system_may_fill_it() {
    let scratch = Scratch::new();
    let xfs = Xfs::new(&scratch, 600).unwrap_or_else(|reason| panic!("no XFS: {reason}"));
    let directory = xfs.path().join("target");
    let stage = Stage::on(&scratch).target(move |target| target.at(directory)).filled(MEGABYTES).build();
    let (primary, target) = (&stage.primary, &stage.target);
    let size: i64 = primary.get("SELECT sum(pg_database_size(oid))::bigint FROM pg_database", &[]);
    // a quarter of it would be 150 MB
    leave_free(xfs.path(), size.unsigned_abs() + (80 << 20));
    recovery(target, primary).run(primary);
}

/// The WAL that a run's slot keeps is on the primary's file system, wherever the target is.
fn a_run_is_given_up_before_its_slot_fills_the_primarys_file_system(transport: Transport) {
    let scratch = Scratch::new();
    let tmpfs = Tmpfs::new(&scratch, "small", 500);
    let directory = tmpfs.path().join("primary");
    let stage = Stage::on(&scratch)
        .quiet()
        .primary(|primary| {
            primary.at(directory).with("max_wal_size", "128MB").with("checkpoint_timeout", "1h")
        })
        .filled(MEGABYTES)
        .through(transport)
        .build();
    let (primary, target) = (&stage.primary, &stage.target);
    let mut witness = Witness::on(primary);
    let running = Running::start(primary, &stage.recovery().option("max_rate", 200), "");
    running.wait_for_bytes(primary, 1 << 20);

    // a quarter of the file system is the reserve, and half of that ends the run
    let short = 50 << 20;
    let mut client = primary.connect();
    for _ in 0..400 {
        if free(tmpfs.path()) < short {
            break;
        }
        let sql = "SELECT pg_logical_emit_message(false, 'e2e', repeat('w', 1024 * 1024))";
        client.batch_execute(sql).expect(sql);
    }
    if free(tmpfs.path()) > short {
        leave_free(tmpfs.path(), short);
    }
    let error = running.finish_within(Duration::from_secs(60)).expect_err("the reserve is gone");
    SqlError::from(&error).expect("53100").says("the primary's WAL is running full");

    // no checkpoint is due, and yet the WAL that the slot kept goes
    wait::until_true("the WAL to be removed", wait::PATIENCE, || {
        primary.get::<i64>("SELECT coalesce(sum(size), 0)::bigint FROM pg_ls_waldir()", &[]) <= 192 << 20
    });
    probe::assert_nothing_left(primary);
    witness.assert_served();
    assert!(!target.try_start().status.success(), "an incomplete target started");

    stage.recovery().run_when_let_in(primary);
    stage.remote_start();
    target.wait_for_replay(primary);
}

by_both_transports!(a_run_is_given_up_before_its_slot_fills_the_primarys_file_system);
