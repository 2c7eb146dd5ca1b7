//! Targets that were damaged before, tablespaces that move, and directories that are no standby.

use std::fs::{self, OpenOptions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::process::{Command, Stdio};

use pgpool_recovery_e2e::by_both_transports;
use pgpool_recovery_e2e::cluster::Stop;
use pgpool_recovery_e2e::recovery::{remote_start, try_remote_start};
use pgpool_recovery_e2e::scratch::write_as_postgres;
use pgpool_recovery_e2e::snapshot::Snapshot;
use pgpool_recovery_e2e::stage::Condition;
use pgpool_recovery_e2e::{
    Cluster, Host, Recovery, Scratch, Stage, Transport, account, compare, dump, server, wait, workload,
};

/// A running primary with data, and a standby of it, killed.
fn stage() -> Stage {
    Stage::builder().filled(10).standby(Condition::Killed).build()
}

/// Where a table's first segment lies.
fn file_of(cluster: &Cluster, table: &str) -> String {
    cluster.get("SELECT pg_relation_filepath($1::text::regclass)", &[&table])
}

/// Damages one page in the middle of a file.
fn damage(standby: &Cluster, file: &str) {
    let path = standby.directory().join(file);
    let file = OpenOptions::new().write(true).open(&path).expect("the relation");
    file.write_all_at(&[0xFF; 100], 2 * 8192 + 50).expect("written");
}

#[test]
fn damage_of_every_kind_is_repaired() {
    let stage = stage();
    let (primary, standby) = (&stage.primary, &stage.target);
    let table = file_of(primary, "accounts");
    let catalog = file_of(primary, "pg_attribute");
    let index = file_of(primary, "pg_class_oid_index");

    // A page differs in a file that may be read but not written: it is replaced as a whole.
    damage(standby, &table);
    fs::set_permissions(standby.directory().join(&table), fs::Permissions::from_mode(0o400)).expect("chmod");
    // It may not be written here, and the primary has nothing but zeros, which are not sent to where nothing is.
    for (directory, byte) in [(primary.directory(), 0), (standby.directory(), 7)] {
        write_as_postgres(
            &directory.join("zeros"),
            &String::from_utf8(vec![byte; 16384]).expect("ASCII"),
            0o400,
        );
    }
    // Truncated, extended, emptied, missing.
    let open = |file: &str| OpenOptions::new().write(true).open(standby.directory().join(file)).expect("it");
    open(&catalog).set_len(8192 + 100).expect("truncated");
    open(&index).set_len(1 << 20).expect("extended");
    fs::write(standby.directory().join("global/pg_control"), "").expect("emptied");
    fs::remove_file(standby.directory().join("PG_VERSION")).expect("removed");
    fs::remove_dir_all(standby.directory().join("pg_xact")).expect("removed");
    symlink("/nowhere", standby.directory().join("pg_multixact/offsets/0001")).expect("a broken link");

    let report = Recovery::of(standby, primary).run(primary);
    assert!(fs::read(standby.directory().join("zeros")).expect("a file").iter().all(|&byte| byte == 0));
    assert!(report.number("/bytes/sent") < report.number("/bytes/total") / 2, "{}", report.0);
    remote_start(primary, "localhost", standby.dir());
    standby.wait_for_replay(primary);
    dump::assert_equal(primary, standby);
    dump::assert_amcheck_clean(standby);
    compare::stop_and_compare(primary, standby).assert_none();
}

#[test]
fn what_is_no_standby_is_not_started() {
    let scratch = Scratch::new();
    let primary = Cluster::primary(&scratch);
    let other = Cluster::place(&scratch, &Host::here(), "other").init();
    let before = Snapshot::of(other.directory());
    try_remote_start(&primary, "localhost", other.dir()).expect_err("a second primary").says("standby");
    assert_eq!(other.postmaster(), None);
    before.assert_unchanged(other.directory());
}

/// What the standby has outside its data directory must not be what the primary has inside its own.
#[test]
fn a_pg_wal_that_leads_into_the_primary_is_refused() {
    let stage = stage();
    let (primary, standby) = (&stage.primary, &stage.target);
    let precious = primary.directory().join("precious");
    fs::create_dir(&precious).expect("a directory");
    account::give(&precious);
    write_as_postgres(&precious.join("letter"), "precious", 0o600);
    let link = standby.directory().join("pg_wal");
    fs::remove_dir_all(&link).expect("removed");
    symlink(&precious, &link).expect("a link");
    Recovery::of(standby, primary).fail(primary).expect("55000").says("primary");
    assert_eq!(fs::read_to_string(precious.join("letter")).expect("still there"), "precious");
}

#[test]
fn a_server_by_its_older_name_is_a_running_server() {
    if server::major() > 15 {
        eprintln!("PostgreSQL 16 and later have no program of that name");
        return;
    }
    let stage = stage();
    let (primary, standby) = (&stage.primary, &stage.target);
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "postgres", "--regid", "postgres", "--init-groups"]);
    command.arg(server::program("postmaster")).arg("-D").arg(standby.directory());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).env_remove("RUST_BACKTRACE");
    let mut postmaster = command.spawn().expect("postmaster");
    // the killed one has left such a file too
    let own = postmaster.id().to_string();
    let is_ready = || {
        standby.has("postmaster.pid")
            && standby.read("postmaster.pid").lines().next() == Some(&own)
            && standby.read("postmaster.pid").contains("ready")
    };
    wait::until_true("the server to be ready", wait::PATIENCE, is_ready);
    Recovery::of(standby, primary).option("slot_name", "another").fail(primary).expect("55006");
    standby.stop(Stop::Fast);
    // it is reaped
    let _ = postmaster.wait();
}

/// A cancel that arrives while a log line is written must unwind like any other.
fn a_timeout_at_any_moment_leaves_the_session_usable(transport: Transport) {
    let stage = Stage::builder().filled(10).standby(Condition::Killed).through(transport).build();
    let mut client = stage.primary.connect();
    let threads = |pid: i32| fs::read_dir(format!("/proc/{pid}/task")).expect("the backend").count();
    let pid: i32 = client.query_one("SELECT pg_backend_pid()", &[]).expect("a pid").get(0);
    let backup = format!("SELECT {}; SELECT {}", server::backup_start("x"), server::backup_stop());
    for milliseconds in (20..200).step_by(6) {
        client.batch_execute(&format!("SET statement_timeout = {milliseconds}")).expect("set");
        let _ = stage.recovery().call(&mut client);
        client.batch_execute("SET statement_timeout = 0").expect("the session lives");
        // a name service that is being asked is not waited for
        wait::until_true("the end of all threads", wait::PATIENCE, || threads(pid) == 1);
        let started = client.batch_execute(&backup);
        started.unwrap_or_else(|error| panic!("a backup is left after {milliseconds} ms: {error:?}"));
    }
    stage.recovery().run_when_let_in(&stage.primary);
}

by_both_transports!(a_timeout_at_any_moment_leaves_the_session_usable);

/// Many streams make files of an empty target at once: none may undo another's work.
#[test]
fn many_streams_fill_an_empty_directory() {
    let scratch = Scratch::new();
    let primary = Cluster::primary(&scratch);
    workload::settle(&primary);
    for number in 0..120 {
        let path = primary.directory().join(format!("file{number}"));
        fs::write(&path, vec![b'a' + (number % 26) as u8; 3 << 20]).expect("written");
        account::give(&path);
    }
    let target = Cluster::place(&scratch, &Host::here(), "target");
    Recovery::of(&target, &primary).option("jobs", 16).option("dest_port", target.port()).run(&primary);
    for number in 0..120 {
        let content = fs::read(target.directory().join(format!("file{number}"))).expect("read");
        assert!(content == vec![b'a' + (number % 26) as u8; 3 << 20], "file{number} differs");
    }
}

#[test]
fn a_fifo_in_the_place_of_a_file_blocks_nobody() {
    let stage = stage();
    let (primary, standby) = (&stage.primary, &stage.target);
    for name in ["PG_VERSION", "postmaster.pid", "myrecovery.conf"] {
        let path = standby.directory().join(name);
        let _ = fs::remove_file(&path);
        assert!(Command::new("mkfifo").arg(&path).status().expect("mkfifo").success());
        account::give(&path);
    }
    Recovery::of(standby, primary).run(primary);
    remote_start(primary, "localhost", standby.dir());
}

#[test]
fn pg_wal_stays_where_the_standby_has_it() {
    let stage = stage();
    let (primary, standby) = (&stage.primary, &stage.target);
    let elsewhere = stage.scratch.mkdir("wal");
    let link = standby.directory().join("pg_wal");
    fs::remove_dir_all(&link).expect("removed");
    symlink(&elsewhere, &link).expect("a link");
    write_as_postgres(&elsewhere.join("0000000100000000000000F0"), "old", 0o600);
    // what mkfs leaves at the root of a file system is root's
    let lost = elsewhere.join("lost+found");
    fs::create_dir(&lost).expect("a directory");
    fs::set_permissions(&lost, fs::Permissions::from_mode(0o700)).expect("chmod");

    Recovery::of(standby, primary).run(primary);
    assert_eq!(fs::read_link(&link).expect("still a link"), elsewhere);
    assert!(!elsewhere.join("0000000100000000000000F0").exists() && lost.exists());
    remote_start(primary, "localhost", standby.dir());
    standby.wait_for_replay(primary);
    account::give(&lost);
}

/// PostgreSQL makes neither; a recovery that stopped at them would leave a target that has to be cleaned by hand.
#[test]
fn closed_directories_and_strange_names_are_no_obstacle() {
    let stage = stage();
    let (primary, standby) = (&stage.primary, &stage.target);
    let strange = std::ffi::OsStr::from_bytes(b"strange \xff");
    for directory in ["", "base"] {
        std::fs::write(standby.directory().join(directory).join(strange), "x").expect("made");
    }
    let surplus = standby.directory().join("surplus");
    std::fs::create_dir(&surplus).expect("made");
    std::fs::create_dir(surplus.join(strange)).expect("made");
    account::give(&surplus);
    let unchangeable = standby.directory().join("base/unchangeable");
    std::fs::create_dir(&unchangeable).expect("made");
    std::fs::write(unchangeable.join("file"), "x").expect("made");
    account::give(&unchangeable);
    std::fs::set_permissions(&unchangeable, std::fs::Permissions::from_mode(0o500)).expect("closed");
    let own = ["base/1", "pg_xact"].map(|name| standby.directory().join(name));
    for closed in own.into_iter().chain([surplus]) {
        std::fs::set_permissions(closed, std::fs::Permissions::from_mode(0o000)).expect("closed");
    }
    Recovery::of(standby, primary).run(primary);
    remote_start(primary, "localhost", standby.dir());
    compare::stop_and_compare(primary, standby).assert_none();
}
