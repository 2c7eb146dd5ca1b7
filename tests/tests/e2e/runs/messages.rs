//! What a recovery tells the client while it runs, and clients that cannot take it: none of them harms the primary.

use std::process::Command;
use std::time::Duration;

use pgpool_recovery_e2e::cluster::Stop;
use pgpool_recovery_e2e::probe::{self, Witness};
use pgpool_recovery_e2e::process::{self, Daemon};
use pgpool_recovery_e2e::recovery::remote_start;
use pgpool_recovery_e2e::scratch::write_as_postgres;
use pgpool_recovery_e2e::xfs::Xfs;
use pgpool_recovery_e2e::{Cluster, Host, Recovery, Scratch, Stage, wait};
use rustix::process::Signal;

/// Long enough at [`KILOBYTES_PER_SECOND`] for more than one NOTICE; they come every 5 s.
const MEGABYTES: u32 = 24;
const KILOBYTES_PER_SECOND: u32 = 4000;
/// Bytes that take longer than the first NOTICE.
const PAST_A_NOTICE: i64 = 30 << 20;

fn stage() -> Stage {
    Stage::builder().quiet().filled(MEGABYTES).build()
}

fn slow(stage: &Stage) -> Recovery {
    stage.recovery().option("clone", false).option("max_rate", KILOBYTES_PER_SECOND)
}

/// The call inside PL/pgSQL functions, whose names would be every message's CONTEXT.
fn wrap(primary: &Cluster, recovery: &Recovery) {
    let call = recovery.sql().replacen("SELECT ", "PERFORM ", 1);
    primary.execute(&format!(
        "CREATE FUNCTION \"r\u{20ac}\"() RETURNS void LANGUAGE plpgsql AS $f$ BEGIN {call}; END $f$;
         CREATE FUNCTION called() RETURNS void LANGUAGE plpgsql AS $f$ BEGIN PERFORM \"r\u{20ac}\"(); END $f$"
    ));
}

fn psql(primary: &Cluster, arguments: &[&str]) -> Command {
    let mut command = primary.host().pg("psql");
    command.arg("-h").arg(primary.scratch().sockets()).args(["-p", &primary.port().to_string()]);
    command.args(["-U", "postgres", "-d", "postgres", "-X", "-v", "ON_ERROR_STOP=1"]).args(arguments);
    command
}

fn spawn(primary: &Cluster, arguments: &[&str]) -> Daemon {
    Daemon::spawn(psql(primary, arguments), &primary.scratch().join("psql.log"), Signal::TERM)
}

/// The backend of the one run there is.
fn backend(primary: &Cluster) -> i32 {
    wait::until("the call", wait::PATIENCE, || {
        let sql = "SELECT pid FROM pg_stat_progress_basebackup";
        primary.connect().query_opt(sql, &[]).expect(sql).map(|row| row.get(0))
    })
}

/// How many bytes the running recovery has gone through.
const STREAMED: &str = "SELECT coalesce(max(backup_streamed), 0) FROM pg_stat_progress_basebackup";

fn wait_for_bytes(primary: &Cluster, bytes: i64) {
    let mut client = primary.connect();
    wait::until_true("the run to go on", wait::PATIENCE, || {
        client.query_one(STREAMED, &[]).expect(STREAMED).get::<_, i64>(0) >= bytes
    });
}

/// Waits until a run has stopped moving: all its threads wait for the disk.
fn wait_for_standstill(primary: &Cluster) {
    let mut last = -1;
    wait::until_true("the disk to hold the run up", wait::PATIENCE, || {
        let before = std::mem::replace(&mut last, primary.get::<i64>(STREAMED, &[]));
        std::thread::sleep(Duration::from_secs(2));
        before == last
    });
}

fn has_session(primary: &Cluster, backend: i32) -> bool {
    primary.get("SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1)", &[&backend])
}

#[test]
fn a_function_whose_name_the_client_has_no_letters_for_may_call() {
    let stage = stage();
    let (primary, target) = (&stage.primary, &stage.target);
    let mut witness = Witness::on(primary);
    wrap(primary, &slow(&stage));
    let mut psql = spawn(primary, &["-c", "SET client_encoding = 'LATIN1'", "-c", "SELECT called()"]);
    let status = wait::until("psql", 2 * wait::PATIENCE, || psql.ended());
    assert!(status.success(), "{}\n{}", psql.log(), primary.log());
    assert!(psql.log().contains("NOTICE:  pgpool_recovery: "), "{}", psql.log());
    witness.assert_served();
    remote_start(primary, "localhost", target.dir());
}

#[test]
fn a_directory_that_the_client_has_no_letters_for_may_be_rebuilt() {
    let stage = stage();
    let (primary, scratch) = (&stage.primary, &stage.scratch);
    let mut witness = Witness::on(primary);
    let target = Cluster::place(scratch, &Host::here(), "target").at(scratch.join("z\u{fc}rich \u{20ac}"));
    wrap(primary, &Recovery::of(&target, primary).option("dest_port", target.port()));
    let set = "SET client_encoding = 'LATIN1'; SET client_min_messages = 'log'";
    let mut client = spawn(primary, &["-c", set, "-c", "SELECT called()"]);
    let status = wait::until("psql", wait::PATIENCE, || client.ended());
    assert!(status.success(), "{}\n{}", client.log(), primary.log());
    assert!(!client.log().contains("LOG:"), "the server log's lines are its own: {}", client.log());
    assert!(primary.log().contains("recovery of") && primary.log().contains("z\u{fc}rich \u{20ac}"));
    witness.assert_served();

    // the NOTICE that Pgpool-II logs names the directory, as far as the client has letters for it
    let other = scratch.mkdir("\u{20ac}");
    write_as_postgres(&other.join("holiday.jpg"), "x", 0o600);
    primary.execute(&format!(
        "CREATE FUNCTION failing() RETURNS void LANGUAGE plpgsql AS $f$ BEGIN
         PERFORM pgpool_recovery('pgpool_recovery_1st_stage', 'localhost', '{}', '{}'); END $f$",
        other.display(),
        primary.port()
    ));
    let failed = process::run(psql(primary, &["-c", set, "-c", "SELECT failing()"]));
    assert!(!failed.status.success());
    let notice = "NOTICE:  pgpool_recovery: first stage failed: directory ";
    assert!(failed.stderr.contains(notice) && failed.stderr.contains("\\u{20ac}"), "{}", failed.stderr);
    witness.assert_served();
}

/// A statement of some megabytes around the call. PostgreSQL would send it with every message.
fn long_statement(scratch: &Scratch, recovery: &Recovery) -> String {
    let call = recovery.sql().replacen("SELECT ", "PERFORM ", 1);
    let statement = call.replacen("PERFORM ", &format!("PERFORM /* {} */ ", "x".repeat(4 << 20)), 1);
    let file = scratch.write("long.sql", &format!("DO $do$ BEGIN {statement}; END $do$;\n"), 0o600);
    file.to_str().expect("ASCII").to_owned()
}

#[test]
fn a_session_whose_client_stopped_reading_can_be_terminated() {
    let stage = stage();
    let primary = &stage.primary;
    let mut witness = Witness::on(primary);
    let statement = long_statement(&stage.scratch, &slow(&stage));
    let mut psql = spawn(primary, &["-f", &statement]);
    let backend = backend(primary);
    psql.signal(Signal::STOP);
    wait_for_bytes(primary, PAST_A_NOTICE);
    primary.execute(&format!("SELECT pg_terminate_backend({backend})"));
    wait::until_true("the session's end", Duration::from_secs(20), || !has_session(primary, backend));
    psql.kill();
    probe::assert_nothing_left(primary);
    witness.assert_served();
}

#[test]
fn a_server_whose_client_stopped_reading_can_be_stopped() {
    let stage = stage();
    let primary = &stage.primary;
    let statement = long_statement(&stage.scratch, &slow(&stage));
    let mut psql = spawn(primary, &["-f", &statement]);
    let _ = backend(primary);
    psql.signal(Signal::STOP);
    wait_for_bytes(primary, PAST_A_NOTICE);
    // fails where the server does not stop
    primary.stop(Stop::Fast);
    psql.kill();
}

#[test]
fn a_client_that_does_not_read_misses_notices_and_nothing_else() {
    let stage = stage();
    let primary = &stage.primary;
    // what a unix socket calls full has room for more: this does not wait for the client
    let call = slow(&stage).sql().replacen("SELECT ", "PERFORM ", 1);
    let statement = format!(
        "DO $do$ BEGIN PERFORM pg_advisory_lock(1); RAISE NOTICE '%', repeat('x', 120000); {call}; END $do$;\n"
    );
    let file = stage.scratch.write("full.sql", &statement, 0o600);
    let mut holder = primary.connect();
    holder.batch_execute("SELECT pg_advisory_lock(1)").expect("the lock");
    let mut psql = spawn(primary, &["-f", file.to_str().expect("ASCII")]);
    wait::until_true("the call to wait", wait::PATIENCE, || {
        primary.get("SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted)", &[])
    });
    psql.signal(Signal::STOP);
    holder.batch_execute("SELECT pg_advisory_unlock(1)").expect("unlocked");
    wait::until_true("the recovery to succeed", 2 * wait::PATIENCE, || {
        let sql = "SELECT coalesce(bool_or(state = 'succeeded'), false) FROM pgpool_recovery_status";
        primary.get(sql, &[])
    });
    psql.signal(Signal::CONT);
    let status = wait::until("psql", wait::PATIENCE, || psql.ended());
    assert!(status.success());
    assert!(
        psql.log().contains("xxxxx") && !psql.log().contains("pgpool_recovery: "),
        "{}",
        psql.log().len()
    );
}

#[test]
fn a_session_that_waits_for_a_dead_disk_can_be_terminated() {
    let scratch = Scratch::new();
    let xfs = Xfs::new(&scratch, 600).unwrap_or_else(|reason| panic!("no XFS: {reason}"));
    let directory = xfs.path().join("target");
    let stage = Stage::on(&scratch).target(move |target| target.at(directory));
    let stage = stage.quiet().filled(MEGABYTES).build();
    let primary = &stage.primary;
    let mut witness = Witness::on(primary);
    let statement = scratch.write("call.sql", &format!("{};\n", slow(&stage).sql()), 0o600);
    let mut psql = spawn(primary, &["-f", statement.to_str().expect("ASCII")]);
    let backend = backend(primary);
    wait_for_bytes(primary, PAST_A_NOTICE / 2);
    xfs.freeze();
    wait_for_standstill(primary);
    // Ctrl-C: the call waits for its threads, which wait for the disk; only the client's word for it shows that
    primary.execute(&format!("SELECT pg_cancel_backend({backend})"));
    std::thread::sleep(Duration::from_secs(1));
    assert!(has_session(primary, backend), "its threads may still write");
    primary.execute(&format!("SELECT pg_terminate_backend({backend})"));
    let gone = wait::try_until(Duration::from_secs(20), || !has_session(primary, backend));
    xfs.thaw();
    assert!(gone, "it waits for the disk");
    psql.kill();
    wait::until_true("the process's end", wait::PATIENCE, || !process::is_alive(backend.unsigned_abs()));
    probe::assert_nothing_left(primary);
    witness.assert_served();
}
