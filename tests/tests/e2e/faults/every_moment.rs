//! Every fault that a recovery must survive, at its start, in its middle and near its end, with a local target and
//! through an agent. After each: the primary is as it was, the target cannot be started, its own files are there, and
//! the next run completes it without sending what the broken one had sent.

use std::fs::{self, OpenOptions};
use std::ops::{Deref, DerefMut};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::time::Duration;

use pgpool_recovery_e2e::background::Running;
use pgpool_recovery_e2e::by_both_transports;
use pgpool_recovery_e2e::cluster::Stop;
use pgpool_recovery_e2e::mount::Tmpfs;
use pgpool_recovery_e2e::probe::{self, Witness};
use pgpool_recovery_e2e::process::{self, Daemon};
use pgpool_recovery_e2e::proxy::{Proxy, Weather};
use pgpool_recovery_e2e::recovery::try_remote_start;
use pgpool_recovery_e2e::scratch::write_as_postgres;
use pgpool_recovery_e2e::stage::Builder;
use pgpool_recovery_e2e::trace::{HELD, Hold};
use pgpool_recovery_e2e::xfs::Xfs;
use pgpool_recovery_e2e::{Host, Recovery, Scratch, SqlError, Stage, Transport, compare, wait};
use rustix::process::Signal;

const MEGABYTES: u32 = 16;
/// Slow enough to be caught at any moment.
const KILOBYTES_PER_SECOND: u32 = 8000;

/// When the fault happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Moment {
    /// The target has just been put out of use.
    Start,
    /// Half of what differs has been sent.
    Middle,
    /// All data is there, and the end of the WAL is awaited.
    End,
}

const MOMENTS: [Moment; 3] = [Moment::Start, Moment::Middle, Moment::End];

/// A stage, and what is watched while a fault happens on it.
struct Trial {
    stage: Stage,
    witness: Witness,
    /// What the standby's own configuration says.
    configuration: String,
    /// Bytes of the target that differ from the primary.
    damaged: u64,
    /// The link to the agent.
    proxy: Option<Proxy>,
    xfs: Option<Xfs>,
}

impl Deref for Trial {
    type Target = Stage;

    fn deref(&self) -> &Stage {
        &self.stage
    }
}

impl DerefMut for Trial {
    fn deref_mut(&mut self) -> &mut Stage {
        &mut self.stage
    }
}

impl Trial {
    /// With a standby.
    fn new(transport: Transport) -> Self {
        let trial = Self::with(Stage::builder(), transport, None);
        trial.make_standby();
        trial
    }

    /// With a standby on a disk of its own.
    fn on_a_disk(transport: Transport) -> Self {
        let scratch = Scratch::new();
        let xfs = Xfs::new(&scratch, 600).unwrap_or_else(|reason| panic!("no XFS: {reason}"));
        let directory = xfs.path().join("target");
        let builder = Stage::on(&scratch).target(move |target| target.at(directory));
        let trial = Self::with(builder, transport, Some(xfs));
        trial.make_standby();
        trial
    }

    fn with(builder: Builder, transport: Transport, xfs: Option<Xfs>) -> Self {
        let stage = builder.quiet().filled(MEGABYTES).settled().through(transport).build();
        let proxy = (transport == Transport::Agent).then(|| {
            let proxy = Proxy::to(stage.agent().port());
            stage.primary.use_agent(proxy.port());
            proxy
        });
        let witness = Witness::on(&stage.primary);
        Self { stage, witness, configuration: String::new(), damaged: 0, proxy, xfs }
    }

    fn make_standby(&self) {
        self.recovery().option("keep_files", "").run(&self.primary);
        self.start_and_compare();
    }

    fn recovery(&self) -> Recovery {
        self.stage.recovery().option("keep_files", "postgresql.conf, own.txt")
    }

    fn slow(&self) -> Recovery {
        self.recovery().option("max_rate", KILOBYTES_PER_SECOND)
    }

    /// The standby is stopped, has a file of its own, and every page of a table is damaged.
    fn damage(&mut self) {
        let own = self.target.directory().join("own.txt");
        write_as_postgres(&own, "mine", 0o600);
        fs::File::open(&own).and_then(|own| own.sync_all()).expect("synced");
        self.configuration = self.target.read("postgresql.conf");
        let path: String = self.primary.get("SELECT pg_relation_filepath('bulk')", &[]);
        let file = OpenOptions::new().write(true).open(self.target.directory().join(path)).expect("bulk");
        let length = file.metadata().expect("bulk").len();
        for page in 0..length / 8192 {
            file.write_all_at(b"damage", page * 8192 + 4000).expect("written");
        }
        file.sync_all().expect("synced");
        self.damaged = length;
    }

    /// Waits for a moment of the run of this backend. At its end it is held up there, as long as what is returned lasts.
    #[track_caller]
    fn wait_for(&self, moment: Moment, backend: i32, has_ended: impl Fn() -> bool) -> Option<Hold> {
        let mut client = self.primary.connect();
        let mut hold = None;
        wait::until_true(&format!("{moment:?} of the run"), wait::PATIENCE, || {
            assert!(!has_ended(), "it ended before its {moment:?}: {}", self.primary.log());
            let sql = "SELECT phase, coalesce(backup_total - backup_streamed, 1 << 40) \
                       FROM pg_stat_progress_basebackup WHERE pid = $1";
            let Some(row) = client.query_opt(sql, &[&backend]).expect(sql) else { return false };
            let (phase, left): (String, i64) = (row.get(0), row.get(1));
            let is_streaming = phase == "streaming database files";
            match moment {
                // first the marker, then pg_control, then all else
                Moment::Start => {
                    self.target.has("pgpool_recovery.incomplete") && !self.target.has("global/pg_control")
                }
                Moment::Middle => is_streaming && left.unsigned_abs() <= self.damaged / 2,
                Moment::End => {
                    if is_streaming && hold.is_none() {
                        hold = Some(self.hold_up(backend));
                    }
                    hold.is_some() && phase == "transferring wal files"
                }
            }
        });
        hold
    }

    /// Holds up the receiver, in this backend or in the agent, when it has the WAL up to the backup's end: that of a quiet
    /// primary is one segment. Nothing is finished before.
    fn hold_up(&self, backend: i32) -> Hold {
        let receiver = match self.proxy {
            Some(_) => self.agent().pid(),
            None => backend.unsigned_abs(),
        };
        let segment: String = self.primary.get("SELECT pg_walfile_name(pg_current_wal_insert_lsn())", &[]);
        let path = self.target.directory().join("pg_wal").join(segment);
        Hold::at_fsync(&path, &self.scratch, receiver)
    }

    /// A run that this happens to at this moment. It must fail, with this SQLSTATE if its session is there to tell.
    #[track_caller]
    fn break_off(&mut self, moment: Moment, sqlstate: Option<&str>, fault: impl FnOnce(&mut Self, &Running)) {
        self.damage();
        let running = Running::start(&self.primary, &self.slow(), "");
        // until the end: what is asked of a backend, it does a little later
        let _hold = self.wait_for(moment, running.backend(), || running.has_ended());
        fault(self, &running);
        // SILENCE, and a little
        let error = running.finish_within(Duration::from_secs(45)).expect_err("it was interrupted");
        if let Some(error) = error.as_db_error() {
            assert_ne!(error.code().code(), "XX000", "{error:?}");
            assert!(sqlstate.is_none_or(|sqlstate| error.code().code() == sqlstate), "{error:?}");
        }
    }

    #[track_caller]
    fn assert_broken_off(&mut self) {
        self.witness.assert_served();
        probe::assert_nothing_left(&self.primary);
        assert!(self.target.has("pgpool_recovery.incomplete"), "no marker");
        assert!(!self.target.try_start().status.success(), "an incomplete target started");
        let _ = try_remote_start(&self.primary, "localhost", self.target.dir())
            .expect_err("an incomplete target was started");
        assert!(self.target.postmaster().is_none());
        self.assert_own_files();
    }

    #[track_caller]
    fn assert_own_files(&self) {
        assert_eq!(self.target.read("own.txt"), "mine");
        assert!(self.target.read("postgresql.conf").starts_with(&self.configuration), "its configuration");
    }

    /// The next run completes and sends at most so many bytes.
    #[track_caller]
    fn assert_next_run_completes(&self, most: u64) {
        let report = self.recovery().run_when_let_in(&self.primary);
        let sent = report.number("/bytes/sent");
        assert!(sent <= most, "{sent} bytes sent, {most} were to be enough: {}", report.0);
        assert!(sent < report.number("/bytes/total"), "{}", report.0);
        self.start_and_compare();
        self.assert_own_files();
    }

    /// The standby is exact; it is stopped then.
    #[track_caller]
    fn start_and_compare(&self) {
        self.remote_start();
        assert!(!self.target.has("pgpool_recovery.incomplete"));
        let mut difference = compare::running(&self.primary, &self.target);
        difference.faults.retain(|fault| !fault.starts_with("own.txt: extra"));
        difference.assert_none();
        self.target.stop(Stop::Fast);
        self.primary.execute("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots");
    }

    /// What may still have to be sent after a fault at this moment that left the page cache alone.
    fn left_at(&self, moment: Moment) -> u64 {
        let left = match moment {
            Moment::Start => self.damaged,
            Moment::Middle => self.damaged / 2,
            Moment::End => 0,
        };
        // what was on the way, and what the server changed in its catalogs meanwhile
        left + (4 << 20)
    }
}

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

fn weather(trial: &Trial, weather: Weather) {
    trial.proxy.as_ref().expect("a link").set(weather);
}

#[test]
fn a_link_that_is_cut() {
    at_every_moment(Transport::Agent, Some("08006"), |trial, _| weather(trial, Weather::Cut));
}

#[test]
fn a_link_that_swallows_everything() {
    at_every_moment(Transport::Agent, None, |trial, _| weather(trial, Weather::Hole));
}

#[test]
fn a_bit_that_flips_on_the_wire() {
    at_every_moment(Transport::Agent, None, |trial, _| weather(trial, Weather::Flip));
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
