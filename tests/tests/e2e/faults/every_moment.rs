//! Every fault that a recovery must survive, at its start, in its middle and near its end, with a local target and
//! through an agent. After each: the primary is as it was, the target cannot be started, its own files are there, and
//! the next run completes it without sending what the broken one had sent.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use pgpool_recovery_e2e::background::Running;
use pgpool_recovery_e2e::by_both_transports;
use pgpool_recovery_e2e::cluster::Stop;
use pgpool_recovery_e2e::mount::Tmpfs;
use pgpool_recovery_e2e::probe::{self, Witness};
use pgpool_recovery_e2e::process::{self, Daemon};
use pgpool_recovery_e2e::proxy::Weather;
use pgpool_recovery_e2e::scratch::write_as_postgres;
use pgpool_recovery_e2e::trace::HELD;
use pgpool_recovery_e2e::{Host, Scratch, SqlError, Stage, Transport, wait};
use rustix::process::Signal;

use super::trial::{MEGABYTES, MOMENTS, Moment, Trial};

/// The fault at every moment; `fault` makes the run fail.
#[track_caller]
fn at_every_moment(transport: Transport, sqlstate: Option<&str>, fault: impl Fn(&mut Trial, &Running)) {
    let mut trial = Trial::new(transport);
    for moment in MOMENTS {
        eprintln!("{transport:?}, {moment:?}");
        trial.break_off(moment, sqlstate, &fault);
        if transport == Transport::Agent && !process::is_alive(trial.agent().pid()) {
            trial.agent_mut().restart();
        }
        if let Some(proxy) = &trial.proxy {
            proxy.set(Weather::Fair);
        }
        trial.assert_broken_off();
        trial.assert_next_run_completes(trial.left_at(moment));
    }
}

fn a_cancel(transport: Transport) {
    at_every_moment(transport, Some("57014"), |_, running| running.cancel());
}

fn a_terminated_backend(transport: Transport) {
    at_every_moment(transport, Some("57P01"), |trial, running| {
        trial.primary.execute(&format!("SELECT pg_terminate_backend({})", running.backend()));
    });
}

/// kill -9 of the backend: the postmaster restarts all others.
fn a_killed_backend(transport: Transport) {
    at_every_moment(transport, None, |trial, running| {
        let backend = process::pid(running.backend().unsigned_abs());
        rustix::process::kill_process(backend, Signal::KILL).expect("the backend");
        wait::until_true("the primary to be back", wait::PATIENCE, || {
            // first all others end
            !trial.witness.is_served() && trial.primary.config().connect(postgres::NoTls).is_ok()
        });
        trial.witness = Witness::on(&trial.primary);
    });
}

fn a_killed_primary(transport: Transport) {
    at_every_moment(transport, None, |trial, _| {
        trial.primary.kill();
        trial.primary.start();
        trial.witness = Witness::on(&trial.primary);
    });
}

fn a_primary_that_is_shut_down(transport: Transport) {
    at_every_moment(transport, Some("57P01"), |trial, _| {
        trial.primary.stop(Stop::Fast);
        trial.primary.start();
        trial.witness = Witness::on(&trial.primary);
    });
}

by_both_transports!(
    a_cancel,
    a_terminated_backend,
    a_killed_backend,
    a_killed_primary,
    a_primary_that_is_shut_down,
    a_lost_client,
    a_disk_that_dies,
    a_full_disk,
    an_unreadable_file,
    a_slot_that_somebody_drops,
);

#[test]
fn a_killed_agent() {
    at_every_moment(Transport::Agent, Some("08006"), |trial, _| {
        trial.agent_mut().kill();
    });
}

#[test]
fn an_agent_that_is_stopped() {
    at_every_moment(Transport::Agent, Some("08006"), |trial, _| {
        assert!(trial.agent_mut().stop().success());
    });
}

#[test]
fn a_link_that_is_cut() {
    at_every_moment(Transport::Agent, Some("08006"), |trial, _| trial.weather(Weather::Cut));
}

#[test]
fn a_link_that_swallows_everything() {
    at_every_moment(Transport::Agent, None, |trial, _| trial.weather(Weather::Hole));
}

#[test]
fn a_bit_that_flips_on_the_wire() {
    at_every_moment(Transport::Agent, None, |trial, _| trial.weather(Weather::Flip));
}

/// The caller is gone: a client that was killed, or Pgpool-II in the middle of pcp_recovery_node.
fn a_lost_client(transport: Transport) {
    let mut trial = Trial::new(transport);
    for moment in MOMENTS {
        lose_client(&mut trial, moment);
        trial.target.await_release();
        trial.assert_broken_off();
        trial.assert_next_run_completes(trial.left_at(moment) + (16 << 20));
    }
}

fn lose_client(trial: &mut Trial, moment: Moment) {
    trial.damage();
    let mut psql = trial.primary.host().pg("psql");
    psql.arg("-h").arg(trial.scratch.sockets()).args(["-p", &trial.primary.port().to_string()]);
    psql.args(["-U", "postgres", "-d", "postgres", "-X", "-c", &trial.slow().sql()]);
    let mut psql = Daemon::spawn(psql, &trial.scratch.join("psql.log"), Signal::TERM);
    let backend: i32 = wait::until("the call", wait::PATIENCE, || {
        let sql = "SELECT pid FROM pg_stat_progress_basebackup";
        trial.primary.connect().query_opt(sql, &[]).expect(sql).map(|row| row.get(0))
    });
    let has_ended = || !process::is_alive(backend.unsigned_abs());
    // the backend looks for its client once a second: at the end it is held up for longer
    let _hold = trial.wait_for(moment, backend, has_ended);
    psql.kill();
    wait::until_true("the backend's end", Duration::from_secs(10) + HELD, has_ended);
}

/// The standby's host loses power: what was not synced is gone.
fn a_disk_that_dies(transport: Transport) {
    let mut trial = Trial::on_a_disk(transport);
    for moment in MOMENTS {
        eprintln!("{transport:?}, {moment:?}");
        trial.break_off(moment, None, |trial, _| trial.xfs.as_ref().expect("a disk").pull_the_plug());
        trial.xfs.as_ref().expect("a disk").plug_in();
        trial.assert_broken_off();
        trial.assert_next_run_completes(u64::MAX);
    }
    // and right after a run that succeeded
    trial.damage();
    trial.recovery().run_when_let_in(&trial.primary);
    trial.xfs.as_ref().expect("a disk").pull_the_plug();
    trial.xfs.as_ref().expect("a disk").plug_in();
    trial.start_and_compare();
    trial.assert_own_files();
}

/// Another process fills the target's disk.
fn a_full_disk(transport: Transport) {
    for moment in [Moment::Start, Moment::Middle] {
        let scratch = Scratch::new();
        let small = Tmpfs::new(&scratch, "small", 200);
        let directory = small.path().join("data");
        let builder = Stage::on(&scratch).target(move |target| target.at(directory));
        let mut trial = Trial::with(builder, transport, None);
        trial.damaged = u64::from(MEGABYTES) << 20;
        let running = Running::start(&trial.primary, &trial.slow(), "");
        let _ = trial.wait_for(moment, running.backend(), || running.has_ended());
        let ballast = small.path().join("ballast");
        let _ = process::run({
            let mut fill = Host::here().command("dd");
            fill.args(["if=/dev/zero", "bs=64k", &format!("of={}", ballast.display())]);
            fill
        });
        let error = running.finish_within(Duration::from_secs(20)).expect_err("the disk is full");
        SqlError::from(&error).expect("53100").says("space");
        trial.witness.assert_served();
        probe::assert_nothing_left(&trial.primary);
        assert!(!trial.target.try_start().status.success(), "an incomplete target started");
        fs::remove_file(&ballast).expect("removed");
        trial.recovery().run_when_let_in(&trial.primary);
        trial.start_and_compare();
    }
}

/// A file of the primary that its own user may not read.
fn an_unreadable_file(transport: Transport) {
    let mut trial = Trial::new(transport);
    trial.damage();
    let secret = trial.primary.directory().join("base/unreadable");
    write_as_postgres(&secret, "x", 0o000);
    let error = trial.recovery().fail(&trial.primary);
    error.says("unreadable").says("permission denied");
    trial.witness.assert_served();
    probe::assert_nothing_left(&trial.primary);
    assert!(!trial.target.has("pgpool_recovery.incomplete"), "it was refused before anything changed");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).expect("chmod");
    trial.assert_next_run_completes(u64::MAX);
}

/// The slot is dropped: PostgreSQL refuses while the run holds it, and the run goes on.
fn a_slot_that_somebody_drops(transport: Transport) {
    let mut trial = Trial::new(transport);
    trial.damage();
    let running = Running::start(&trial.primary, &trial.slow(), "");
    let _ = trial.wait_for(Moment::Middle, running.backend(), || running.has_ended());
    let slot = probe::slots(&trial.primary).pop().expect("a slot");
    let drop = trial.primary.connect().execute("SELECT pg_drop_replication_slot($1::text)", &[&slot]);
    assert_eq!(SqlError::from(&drop.expect_err("it is active")).sqlstate, "55006");
    running.finish_within(Duration::from_secs(30)).expect("the run goes on");
    trial.start_and_compare();
}

/// A disk that takes nothing any more.
#[test]
fn a_read_only_disk() {
    let mut trial = Trial::on_a_disk(Transport::Local);
    trial.damage();
    let xfs = trial.xfs.as_ref().expect("a disk");
    xfs.remount("ro");
    let error = trial.recovery().fail(&trial.primary);
    error.says("read-only");
    trial.witness.assert_served();
    probe::assert_nothing_left(&trial.primary);
    xfs.remount("rw");
    trial.assert_next_run_completes(u64::MAX);
}
