//! What an operator has who sees only what `pcp_recovery_node` prints, Pgpool-II's log and the primary's log: each
//! names the cause of a failure.

use std::fs::{self, OpenOptions};
use std::ops::Deref;
use std::os::unix::fs::FileExt;

use pgpool_recovery_e2e::agent;
use pgpool_recovery_e2e::cluster::Stop;
use pgpool_recovery_e2e::mount::Tmpfs;
use pgpool_recovery_e2e::pgpool::{Pgpool, Setup};
use pgpool_recovery_e2e::process;
use pgpool_recovery_e2e::proxy::{Proxy, Weather};
use pgpool_recovery_e2e::scratch::write_as_postgres;
use pgpool_recovery_e2e::stage::Builder;
use pgpool_recovery_e2e::{Cluster, Host, Scratch, Stage, Transport, wait};
use rustix::process::Signal;

const MEGABYTES: u32 = 10;

/// Two nodes, the second one reached through an agent, and Pgpool-II.
struct Desk {
    pgpool: Pgpool,
    proxy: Proxy,
    stage: Stage,
}

impl Deref for Desk {
    type Target = Stage;

    fn deref(&self) -> &Stage {
        &self.stage
    }
}

impl Desk {
    fn new() -> Self {
        Self::with(Stage::builder())
    }

    fn with(builder: Builder) -> Self {
        let stage = builder
            .with("pgpool_recovery.application_name", "server%n")
            .primary(|primary| primary.initdb_argument("--data-checksums"))
            .filled(MEGABYTES)
            .through(Transport::Agent)
            .build();
        let proxy = Proxy::to(stage.agent().port());
        stage.primary.use_agent(proxy.port());
        let pgpool = Setup::new(&stage.scratch, &Host::here(), &[&stage.primary, &stage.target]).start();
        pgpool.wait_for_node(1, "down", "standby", "");
        Self { pgpool, proxy, stage }
    }

    /// Sets something on the primary for the next recovery.
    fn set(&self, name: &str, value: &str) {
        self.primary.append_conf(name, value);
        self.primary.reload();
    }

    /// The first stage fails; both logs say why.
    #[track_caller]
    fn assert_told(&self, cause: &str) {
        self.assert_told_of(cause, || self.pgpool.recover(1));
    }

    /// It fails because of what happens in the middle of its copy.
    #[track_caller]
    fn assert_told_in_the_middle(&self, cause: &str, happens: impl FnOnce(&Self)) {
        self.set("pgpool_recovery.max_rate", "4000");
        self.assert_told_of(cause, || {
            std::thread::scope(|scope| {
                let call = scope.spawn(|| self.pgpool.recover(1));
                wait_for_the_middle(self);
                happens(self);
                call.join().expect("a call")
            })
        });
        self.set("pgpool_recovery.max_rate", "0");
    }

    #[track_caller]
    fn assert_told_of(&self, cause: &str, recover: impl FnOnce() -> Result<(), String>) {
        let (before, logged) = (self.pgpool.log().len(), self.primary.log().len());
        let printed = recover().expect_err(cause);
        // All that Pgpool-II lets through.
        assert!(printed.contains("execution of command failed at \"1st stage\""), "{printed}");
        let says = |log: &str, start: &str| {
            let is_it =
                |line: &&str| line.contains(start) && line.contains("failed: ") && line.contains(cause);
            let mut lines = log.lines().skip_while(|line| !is_it(line));
            lines.next().is_some() && lines.take(2).any(|line| line.contains("HINT:"))
        };
        let log = self.pgpool.log().split_off(before);
        assert!(says(&log, "NOTICE:  pgpool_recovery: first stage"), "{cause}: Pgpool-II's log: {log}");
        let log = self.primary.log().split_off(logged);
        let start = format!("pgpool_recovery: recovery of \"{}\" on host ", self.target.dir());
        assert!(says(&log, &start), "{cause}: the primary's log: {log}");
    }

    /// The start fails; this is what Pgpool-II shows.
    #[track_caller]
    fn assert_shown(&self, cause: &str) {
        let printed = self.pgpool.recover(1).expect_err(cause);
        assert!(printed.contains("executing remote start failed") && printed.contains(cause), "{printed}");
    }

    #[track_caller]
    fn assert_recovers(&self) {
        self.pgpool.recover(1).unwrap_or_else(|error| panic!("{error}\n{}", self.primary.log()));
        self.pgpool.wait_for_node(1, "up", "standby", "streaming");
    }
}

#[test]
fn what_keeps_a_recovery_from_its_beginning() {
    let mut desk = Desk::new();

    desk.primary.use_agent(desk.agent().port());
    desk.stage.agent_mut().stop();
    desk.assert_told("could not connect to the agent at 127.0.0.1");
    desk.stage.agent_mut().restart();

    let ours = desk.scratch.join("secret");
    desk.set("pgpool_recovery.secret_file", agent::secret(&desk.scratch, "other").to_str().expect("a path"));
    desk.assert_told("secret");
    desk.set("pgpool_recovery.secret_file", "/no/such/file");
    desk.assert_told("/no/such/file");
    desk.set("pgpool_recovery.secret_file", ours.to_str().expect("a path"));

    desk.primary.set_hba("local all all trust\nhost all all 0.0.0.0/0 trust\n");
    desk.primary.reload();
    desk.assert_told("replication login");
    desk.primary
        .set_hba("local all all trust\nhost all all 0.0.0.0/0 trust\nhost replication all 0.0.0.0/0 trust\n");
    desk.primary.reload();

    desk.assert_recovers();
}

#[test]
fn a_target_that_is_not_to_be_replaced() {
    let desk = Desk::with(Stage::builder().target(Cluster::init));
    desk.assert_told("belongs to another cluster");

    desk.target.append_conf("listen_addresses", "");
    desk.target.start();
    desk.assert_told("a server is running in");
    desk.target.stop(Stop::Fast);

    let elsewhere = desk.scratch.mkdir("elsewhere");
    let kept = desk.scratch.join("kept");
    fs::rename(desk.target.directory(), &kept).expect("moved");
    fs::rename(&elsewhere, desk.target.directory()).expect("moved");
    fs::write(desk.target.directory().join("thesis.txt"), "ours").expect("a file");
    desk.assert_told("is not empty and not a PostgreSQL cluster");
}

#[test]
fn a_disk_that_is_too_small() {
    let scratch = Scratch::new();
    let small = Tmpfs::new(&scratch, "small", 20);
    let directory = small.path().join("node1");
    let desk = Desk::with(Stage::on(&scratch).target(move |target| target.at(directory)));
    desk.assert_told("not enough space");
}

#[track_caller]
fn wait_for_the_middle(stage: &Stage) {
    wait::until_true("the middle of the copy", wait::PATIENCE, || {
        let sql = "SELECT count(*) FROM pg_stat_progress_basebackup WHERE backup_streamed > 2 << 20";
        stage.primary.get::<i64>(sql, &[]) == 1
    });
}

#[test]
fn what_breaks_a_recovery_off() {
    let mut desk = Desk::new();
    desk.assert_told_in_the_middle("connection to the agent at 127.0.0.1", |desk| {
        desk.proxy.set(Weather::Cut)
    });
    desk.proxy.set(Weather::Fair);
    desk.assert_told_in_the_middle("connection to the agent at 127.0.0.1", |desk| {
        rustix::process::kill_process(process::pid(desk.agent().pid()), Signal::KILL)
            .expect("the agent runs");
    });
    desk.stage.agent_mut().kill();
    desk.stage.agent_mut().restart();

    desk.assert_recovers();
}

/// Pgpool-II makes one call, and that lasts.
#[test]
fn an_agent_that_is_restarted_in_the_middle() {
    let mut desk = Desk::new();
    // as it is by default
    desk.set("pgpool_recovery.retry_for", "300");
    desk.set("pgpool_recovery.max_rate", "4000");
    let (pgpool, stage) = (&desk.pgpool, &mut desk.stage);
    std::thread::scope(|scope| {
        let call = scope.spawn(|| pgpool.recover(1));
        wait_for_the_middle(stage);
        stage.agent_mut().kill();
        let sql = "SELECT count(*) FROM pgpool_recovery_status WHERE state = 'running' AND error IS NOT NULL";
        wait::until_true("the agent to be missed", wait::PATIENCE, || {
            stage.primary.get::<i64>(sql, &[]) == 1
        });
        stage.agent_mut().restart();
        call.join().expect("a call").expect("it goes on");
    });
    desk.pgpool.wait_for_node(1, "up", "standby", "streaming");
}

#[test]
fn a_page_of_the_primary_that_is_corrupt() {
    let desk = Desk::new();
    let file: String = desk.primary.get("SELECT pg_relation_filepath('bulk')", &[]);
    desk.primary.execute("CHECKPOINT");
    let bulk = OpenOptions::new().write(true).open(desk.primary.directory().join(&file)).expect("bulk");
    bulk.write_all_at(b"damage", 3 * 8192 + 4000).expect("written");
    desk.assert_told(&format!("checksum verification failed in file \"{file}\", block 3"));
}

#[test]
fn what_keeps_a_standby_from_starting() {
    let desk = Desk::new();
    desk.assert_recovers();
    desk.target.stop(Stop::Fast);
    desk.pgpool.wait_for_node(1, "down", "standby", "");
    let good = desk.target.read("postgresql.conf");
    desk.target.append_conf("shared_preload_libraries", "no_such_library");
    desk.assert_shown("no_such_library");
    write_as_postgres(&desk.target.directory().join("postgresql.conf"), &good, 0o600);
    let taken = std::net::TcpListener::bind(("::", desk.target.port())).expect("the standby's port");
    desk.assert_shown("could not create any TCP/IP sockets");
    drop(taken);
    desk.assert_recovers();
}
