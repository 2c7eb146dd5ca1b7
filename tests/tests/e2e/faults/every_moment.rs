//! Every fault that a recovery must survive, at its start, in its middle and near its end, with a local target and
//! through an agent. After each: the primary is as it was, the target cannot be started, its own files are there, and
//! the next run completes it without sending what the broken one had sent.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::time::Duration;

use pgpool_recovery_e2e::agent::{self, Agent};
use pgpool_recovery_e2e::background::Running;
use pgpool_recovery_e2e::cluster::Stop;
use pgpool_recovery_e2e::mount::Tmpfs;
use pgpool_recovery_e2e::probe::{self, Witness};
use pgpool_recovery_e2e::process::{self, Daemon};
use pgpool_recovery_e2e::proxy::{Proxy, Weather};
use pgpool_recovery_e2e::recovery::remote_start;
use pgpool_recovery_e2e::scratch::write_as_postgres;
use pgpool_recovery_e2e::xfs::Xfs;
use pgpool_recovery_e2e::{Cluster, Host, Recovery, Scratch, SqlError, compare, wait, workload};
use rustix::process::Signal;

const MEGABYTES: u32 = 16;
/// Slow enough to be caught at any moment.
const KILOBYTES_PER_SECOND: u32 = 8000;
/// WAL that travels at the end, bytes: long enough to be caught there.
const WAL: u32 = 8 << 20;

/// How the target is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Local,
    Agent,
}

/// When the fault happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Moment {
    /// The target has just been put out of use.
    Start,
    /// Half of what differs has been sent.
    Middle,
    /// All data is there, WAL is being sent.
    End,
}

const MOMENTS: [Moment; 3] = [Moment::Start, Moment::Middle, Moment::End];

struct Stage {
    primary: Cluster,
    target: Cluster,
    witness: Witness,
    /// What the standby's own configuration says.
    configuration: String,
    /// Bytes of the target that differ from the primary.
    damaged: u64,
    agent: Option<Agent>,
    proxy: Option<Proxy>,
    xfs: Option<Xfs>,
    scratch: Scratch,
}

impl Stage {
    fn new(way: Way) -> Self {
        Self::on(way, Scratch::new(), None)
    }

    fn on_a_disk(way: Way) -> Self {
        let scratch = Scratch::new();
        let xfs = Xfs::new(&scratch, 600).unwrap_or_else(|reason| panic!("no XFS: {reason}"));
        Self::on(way, scratch, Some(xfs))
    }

    fn on(way: Way, scratch: Scratch, xfs: Option<Xfs>) -> Self {
        let secret = agent::secret(&scratch, "secret");
        let primary = probe::quiet(Cluster::place(&scratch, &Host::here(), "primary"))
            .with("pgpool_recovery.secret_file", secret.display())
            .into_primary();
        workload::fill(&primary, MEGABYTES);
        workload::settle(&primary);
        let mut target = Cluster::place(&scratch, &Host::here(), "target");
        if let Some(xfs) = &xfs {
            target = target.at(xfs.path().join("target"));
        }
        let (mut agent, mut proxy) = (None, None);
        if way == Way::Agent {
            let started = Agent::start(&scratch, &Host::here(), &secret, &[target.directory()]);
            let to_it = Proxy::to(started.port());
            primary.use_agent(to_it.port());
            (agent, proxy) = (Some(started), Some(to_it));
        }
        let witness = Witness::on(&primary);
        let stage = Self {
            primary,
            target,
            witness,
            configuration: String::new(),
            damaged: 0,
            agent,
            proxy,
            xfs,
            scratch,
        };
        stage.recovery().option("keep_files", "").run(&stage.primary);
        stage.start_and_compare();
        stage
    }

    fn recovery(&self) -> Recovery {
        Recovery::of(&self.target, &self.primary)
            .option("keep_files", "postgresql.conf, own.txt")
            .option("application_name", "target")
            .option("dest_port", self.target.port())
    }

    fn slow(&self) -> Recovery {
        self.recovery().option("max_rate", KILOBYTES_PER_SECOND)
    }

    /// The standby is stopped, has a file of its own, and every page of a table is damaged.
    fn damage(&mut self) {
        write_as_postgres(&self.target.directory().join("own.txt"), "mine", 0o600);
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

    /// Waits for a moment of the run of this backend.
    #[track_caller]
    fn wait_for(&self, moment: Moment, backend: i32, has_ended: impl Fn() -> bool) {
        let mut client = self.primary.connect();
        let mut wal_written = false;
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
                    if is_streaming && !wal_written {
                        let sql = format!("SELECT pg_logical_emit_message(false, 'e2e', repeat('w', {WAL}))");
                        client.batch_execute(&sql).expect("WAL");
                        wal_written = true;
                    }
                    phase == "transferring wal files"
                }
            }
        });
    }

    /// A run that this happens to at this moment; it must fail.
    #[track_caller]
    fn break_off(&mut self, moment: Moment, fault: impl FnOnce(&mut Self, &Running)) {
        self.damage();
        let running = Running::start(&self.primary, &self.slow(), "");
        self.wait_for(moment, running.backend(), || running.has_ended());
        fault(self, &running);
        // SILENCE, and a little
        let error = running.finish_within(Duration::from_secs(45)).expect_err("it was interrupted");
        if let Some(error) = error.as_db_error() {
            assert_ne!(error.code().code(), "XX000", "{error:?}");
        }
    }

    #[track_caller]
    fn assert_broken_off(&mut self) {
        self.witness.assert_served();
        probe::assert_nothing_left(&self.primary);
        assert!(self.target.has("pgpool_recovery.incomplete"), "no marker");
        assert!(!self.target.try_start().status.success(), "an incomplete target started");
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
        remote_start(&self.primary, "localhost", self.target.dir());
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
fn at_every_moment(way: Way, fault: impl Fn(&mut Stage, &Running)) {
    let mut stage = Stage::new(way);
    for moment in MOMENTS {
        eprintln!("{way:?}, {moment:?}");
        stage.break_off(moment, &fault);
        if let Some(agent) = stage.agent.as_mut().filter(|agent| !process::is_alive(agent.pid())) {
            agent.restart();
        }
        if let Some(proxy) = &stage.proxy {
            proxy.set(Weather::Fair);
        }
        stage.assert_broken_off();
        stage.assert_next_run_completes(stage.left_at(moment));
    }
}

fn cancel(_: &mut Stage, running: &Running) {
    running.cancel();
}

fn terminate(stage: &mut Stage, running: &Running) {
    stage.primary.execute(&format!("SELECT pg_terminate_backend({})", running.backend()));
}

/// kill -9 of the backend: the postmaster restarts all others.
fn kill_backend(stage: &mut Stage, running: &Running) {
    let backend = process::pid(running.backend().unsigned_abs());
    rustix::process::kill_process(backend, Signal::KILL).expect("the backend");
    wait::until_true("the primary to be back", wait::PATIENCE, || {
        // first all others end
        !stage.witness.is_served() && stage.primary.config().connect(postgres::NoTls).is_ok()
    });
    stage.witness = Witness::on(&stage.primary);
}

fn kill_primary(stage: &mut Stage, _: &Running) {
    stage.primary.kill();
    stage.primary.start();
    stage.witness = Witness::on(&stage.primary);
}

fn stop_primary(stage: &mut Stage, _: &Running) {
    stage.primary.stop(Stop::Fast);
    stage.primary.start();
    stage.witness = Witness::on(&stage.primary);
}

fn kill_agent(stage: &mut Stage, _: &Running) {
    stage.agent.as_mut().expect("an agent").kill();
}

fn stop_agent(stage: &mut Stage, _: &Running) {
    assert!(stage.agent.as_mut().expect("an agent").stop().success());
}

fn weather(stage: &Stage, weather: Weather) {
    stage.proxy.as_ref().expect("a link").set(weather);
}

#[test]
fn a_cancel_local() {
    at_every_moment(Way::Local, cancel);
}

#[test]
fn a_cancel_through_an_agent() {
    at_every_moment(Way::Agent, cancel);
}

#[test]
fn a_terminated_backend_local() {
    at_every_moment(Way::Local, terminate);
}

#[test]
fn a_terminated_backend_through_an_agent() {
    at_every_moment(Way::Agent, terminate);
}

#[test]
fn a_killed_backend_local() {
    at_every_moment(Way::Local, kill_backend);
}

#[test]
fn a_killed_backend_through_an_agent() {
    at_every_moment(Way::Agent, kill_backend);
}

#[test]
fn a_killed_primary_local() {
    at_every_moment(Way::Local, kill_primary);
}

#[test]
fn a_killed_primary_through_an_agent() {
    at_every_moment(Way::Agent, kill_primary);
}

#[test]
fn a_primary_that_is_shut_down_local() {
    at_every_moment(Way::Local, stop_primary);
}

#[test]
fn a_primary_that_is_shut_down_through_an_agent() {
    at_every_moment(Way::Agent, stop_primary);
}

#[test]
fn a_killed_agent() {
    at_every_moment(Way::Agent, kill_agent);
}

#[test]
fn an_agent_that_is_stopped() {
    at_every_moment(Way::Agent, stop_agent);
}

#[test]
fn a_link_that_is_cut() {
    at_every_moment(Way::Agent, |stage, _| weather(stage, Weather::Cut));
}

#[test]
fn a_link_that_swallows_everything() {
    at_every_moment(Way::Agent, |stage, _| weather(stage, Weather::Hole));
}

#[test]
fn a_bit_that_flips_on_the_wire() {
    at_every_moment(Way::Agent, |stage, _| weather(stage, Weather::Flip));
}

/// The caller is gone: a client that was killed, or Pgpool-II in the middle of pcp_recovery_node.
fn a_lost_client(way: Way) {
    let mut stage = Stage::new(way);
    for moment in MOMENTS {
        // the backend looks for its client once a second, and the last moment is short: it may have succeeded by then
        let is_noticed = (0..3).any(|_| {
            lose_client(&mut stage, moment);
            stage.target.await_release();
            moment != Moment::End || stage.target.has("pgpool_recovery.incomplete")
        });
        assert!(is_noticed, "the run was through each time");
        stage.assert_broken_off();
        stage.assert_next_run_completes(stage.left_at(moment) + (16 << 20));
    }
}

fn lose_client(stage: &mut Stage, moment: Moment) {
    stage.damage();
    let mut psql = stage.primary.host().pg("psql");
    psql.arg("-h").arg(stage.scratch.sockets()).args(["-p", &stage.primary.port().to_string()]);
    psql.args(["-U", "postgres", "-d", "postgres", "-X", "-c", &stage.slow().sql()]);
    let mut psql = Daemon::spawn(psql, &stage.scratch.join("psql.log"), Signal::TERM);
    let backend: i32 = wait::until("the call", wait::PATIENCE, || {
        let sql = "SELECT pid FROM pg_stat_progress_basebackup";
        stage.primary.connect().query_opt(sql, &[]).expect(sql).map(|row| row.get(0))
    });
    let has_ended = || !process::is_alive(backend.unsigned_abs());
    stage.wait_for(moment, backend, has_ended);
    psql.kill();
    wait::until_true("the backend's end", Duration::from_secs(10), has_ended);
}

#[test]
fn a_lost_client_local() {
    a_lost_client(Way::Local);
}

#[test]
fn a_lost_client_through_an_agent() {
    a_lost_client(Way::Agent);
}

/// The standby's host loses power: what was not synced is gone.
fn a_disk_that_dies(way: Way) {
    let mut stage = Stage::on_a_disk(way);
    for moment in MOMENTS {
        eprintln!("{way:?}, {moment:?}");
        stage.break_off(moment, |stage, _| stage.xfs.as_ref().expect("a disk").pull_the_plug());
        stage.xfs.as_ref().expect("a disk").plug_in();
        if moment == Moment::End && !stage.target.has("pgpool_recovery.incomplete") {
            // The WAL had come before the plug was out, and the disk died in the last sync: the marker's removal lasts,
            // its success was never told. Everything else was synced before, so next to nothing is missing.
            assert!(stage.target.has("global/pg_control"), "neither marker nor pg_control");
            stage.witness.assert_served();
            probe::assert_nothing_left(&stage.primary);
            stage.assert_own_files();
            stage.assert_next_run_completes(stage.left_at(moment));
            continue;
        }
        stage.assert_broken_off();
        stage.assert_next_run_completes(u64::MAX);
    }
    // and right after a run that succeeded
    stage.damage();
    stage.recovery().run_when_let_in(&stage.primary);
    stage.xfs.as_ref().expect("a disk").pull_the_plug();
    stage.xfs.as_ref().expect("a disk").plug_in();
    stage.start_and_compare();
    stage.assert_own_files();
}

#[test]
fn a_disk_that_dies_local() {
    a_disk_that_dies(Way::Local);
}

#[test]
fn a_disk_that_dies_through_an_agent() {
    a_disk_that_dies(Way::Agent);
}

/// Another process fills the target's disk.
fn a_full_disk(way: Way) {
    for moment in [Moment::Start, Moment::Middle] {
        let scratch = Scratch::new();
        let small = Tmpfs::new(&scratch, "small", 200);
        let mut stage = Stage::on(way, scratch, None);
        let directory = small.path().join("data");
        if way == Way::Agent {
            let agent =
                Agent::start(&stage.scratch, &Host::here(), &stage.scratch.join("secret"), &[&directory]);
            stage.proxy = Some(Proxy::to(agent.port()));
            stage.agent = Some(agent);
            stage.primary.use_agent(stage.proxy.as_ref().expect("one").port());
        }
        stage.target = Cluster::place(&stage.scratch, &Host::here(), "new").at(&directory);
        stage.damaged = u64::from(MEGABYTES) << 20;
        let running = Running::start(&stage.primary, &stage.slow(), "");
        stage.wait_for(moment, running.backend(), || running.has_ended());
        let ballast = small.path().join("ballast");
        let _ = process::run({
            let mut fill = Host::here().command("dd");
            fill.args(["if=/dev/zero", "bs=64k", &format!("of={}", ballast.display())]);
            fill
        });
        let error = running.finish_within(Duration::from_secs(20)).expect_err("the disk is full");
        SqlError::from(&error).expect("53100").says("space");
        stage.witness.assert_served();
        probe::assert_nothing_left(&stage.primary);
        assert!(!stage.target.try_start().status.success(), "an incomplete target started");
        fs::remove_file(&ballast).expect("removed");
        stage.recovery().run_when_let_in(&stage.primary);
        stage.start_and_compare();
    }
}

#[test]
fn a_full_disk_local() {
    a_full_disk(Way::Local);
}

#[test]
fn a_full_disk_through_an_agent() {
    a_full_disk(Way::Agent);
}

/// A file of the primary that its own user may not read.
fn an_unreadable_file(way: Way) {
    let mut stage = Stage::new(way);
    stage.damage();
    let secret = stage.primary.directory().join("base/unreadable");
    write_as_postgres(&secret, "x", 0o000);
    let error = stage.recovery().fail(&stage.primary);
    error.says("unreadable").says("permission denied");
    stage.witness.assert_served();
    probe::assert_nothing_left(&stage.primary);
    assert!(!stage.target.has("pgpool_recovery.incomplete"), "it was refused before anything changed");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).expect("chmod");
    stage.assert_next_run_completes(u64::MAX);
}

#[test]
fn an_unreadable_file_local() {
    an_unreadable_file(Way::Local);
}

#[test]
fn an_unreadable_file_through_an_agent() {
    an_unreadable_file(Way::Agent);
}

/// The slot is dropped: PostgreSQL refuses while the run holds it, and the run goes on.
fn a_slot_that_somebody_drops(way: Way) {
    let mut stage = Stage::new(way);
    stage.damage();
    let running = Running::start(&stage.primary, &stage.slow(), "");
    stage.wait_for(Moment::Middle, running.backend(), || running.has_ended());
    let slot = probe::slots(&stage.primary).pop().expect("a slot");
    let drop = stage.primary.connect().execute("SELECT pg_drop_replication_slot($1::text)", &[&slot]);
    assert_eq!(SqlError::from(&drop.expect_err("it is active")).sqlstate, "55006");
    running.finish_within(Duration::from_secs(30)).expect("the run goes on");
    stage.start_and_compare();
}

#[test]
fn a_slot_that_somebody_drops_local() {
    a_slot_that_somebody_drops(Way::Local);
}

#[test]
fn a_slot_that_somebody_drops_through_an_agent() {
    a_slot_that_somebody_drops(Way::Agent);
}

/// A disk that takes nothing any more.
#[test]
fn a_read_only_disk() {
    let mut stage = Stage::on_a_disk(Way::Local);
    stage.damage();
    let xfs = stage.xfs.as_ref().expect("a disk");
    xfs.remount("ro");
    let error = stage.recovery().fail(&stage.primary);
    error.says("read-only");
    stage.witness.assert_served();
    probe::assert_nothing_left(&stage.primary);
    xfs.remount("rw");
    stage.assert_next_run_completes(u64::MAX);
}
