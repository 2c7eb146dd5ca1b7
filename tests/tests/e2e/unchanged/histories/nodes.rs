//! The servers of a history, and what happens to them.

use std::path::Path;
use std::time::{Duration, Instant};

use pgpool_recovery_e2e::cluster::Stop;
use pgpool_recovery_e2e::rng::Rng;
use pgpool_recovery_e2e::{Cluster, Host, Scratch, scratch, server, wait};
use postgres::Client;

use super::work::{self, Work};

/// What a server is at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// The primary.
    Leads,
    /// A standby that follows the primary, as far as it can.
    Follows,
    /// A standby that receives nothing.
    Cut,
    /// A primary whose place another one has taken, and that does not know it.
    Alone,
    /// Stopped or killed, and what it was before.
    Down { was_standby: bool },
}

#[derive(Debug)]
pub(super) struct Node {
    pub(super) cluster: Cluster,
    pub(super) role: Role,
}

/// Three servers, of which one leads.
pub(super) struct Nodes {
    // before the servers that it is a session of
    open: Option<(usize, Client)>,
    pub(super) nodes: Vec<Node>,
    /// What happened so far.
    pub(super) tale: Vec<String>,
    began: Instant,
}

/// In memory if there is enough of it: three servers sync a lot, and what they write survives their end anyway.
fn place() -> Scratch {
    const ENOUGH: u64 = 4 << 30;
    let memory = Path::new("/dev/shm");
    let free = rustix::fs::statvfs(memory).map_or(0, |of| of.f_bavail * of.f_frsize);
    if free >= ENOUGH { Scratch::within(memory) } else { Scratch::new() }
}

/// Tells what happened when a history fails.
impl Drop for Nodes {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.tale.join("\n"));
        }
    }
}

impl Nodes {
    pub(super) fn new(rng: &mut Rng) -> Self {
        let scratch = place();
        let on = |rng: &mut Rng, chance| if rng.percent(chance) { "on" } else { "off" };
        let mut settings: Vec<(&str, String)> = vec![
            ("fsync", "on".into()),
            ("wal_log_hints", on(rng, 65).into()),
            ("full_page_writes", on(rng, 75).into()),
            ("autovacuum", on(rng, 30).into()),
            ("autovacuum_naptime", "1s".into()),
            ("shared_buffers", (*rng.pick(&["1MB", "2MB", "16MB"])).into()),
            ("max_prepared_transactions", "10".into()),
            ("wal_keep_size", (*rng.pick(&["1GB", "1GB", "1GB", "1GB", "1GB", "64MB"])).into()),
            ("wal_compression", on(rng, 30).into()),
            ("checkpoint_timeout", "30s".into()),
        ];
        if server::major() >= 15 {
            settings.push(("allow_in_place_tablespaces", "on".into()));
        }
        let arguments: Vec<&str> = [("--data-checksums", 35), ("--wal-segsize=1", 30)]
            .into_iter()
            .filter_map(|(argument, chance)| rng.percent(chance).then_some(argument))
            .collect();
        let began = Instant::now();
        let tale = vec![format!("initdb {}: {settings:?}", arguments.join(" "))];
        let place = Cluster::place(&scratch, &Host::here(), "n0");
        let place = settings.iter().fold(place, |place, (name, value)| place.with(name, value));
        let first =
            arguments.iter().fold(place, |place, argument| place.initdb_argument(argument)).into_primary();
        work::prepare(&first, rng);
        let mut nodes = vec![Node { cluster: first, role: Role::Leads }];
        for name in ["n1", "n2"] {
            let cluster = Cluster::standby_by_basebackup(&nodes[0].cluster, &Host::here(), name);
            nodes.push(Node { cluster, role: Role::Follows });
        }
        Self { open: None, nodes, tale, began }
    }

    pub(super) fn told(&mut self, number: usize, what: impl std::fmt::Display) {
        let Node { cluster, role } = &self.nodes[number];
        let seconds = self.began.elapsed().as_secs_f32();
        self.tale.push(format!("{seconds:5.1} {} {role:?}: {what}", cluster.name()));
    }

    pub(super) fn cluster(&self, number: usize) -> &Cluster {
        &self.nodes[number].cluster
    }

    pub(super) fn leader(&self) -> usize {
        self.nodes.iter().position(|node| node.role == Role::Leads).expect("one leads")
    }

    /// One of the servers of such roles.
    pub(super) fn one(&self, rng: &mut Rng, is_it: impl Fn(Role) -> bool) -> Option<usize> {
        let numbers: Vec<usize> =
            (0..self.nodes.len()).filter(|number| is_it(self.nodes[*number].role)).collect();
        (!numbers.is_empty()).then(|| *rng.pick(&numbers))
    }

    pub(super) fn work(&mut self, number: usize, work: &Work, is_asynchronous: bool) {
        let sql = work.statements.join("; ");
        self.told(
            number,
            format!("{}: {}", work.database, sql.split_whitespace().collect::<Vec<_>>().join(" ")),
        );
        work.run(self.cluster(number), is_asynchronous);
    }

    /// Some sessions on a server that writes.
    pub(super) fn busy(&mut self, number: usize, rng: &mut Rng, most: usize) {
        for _ in 0..1 + rng.below(most) {
            let work = match rng.below(10) {
                0..6 => work::change(rng),
                6..8 => work::upkeep(rng),
                _ => work::read(rng),
            };
            self.work(number, &work, rng.percent(50));
        }
    }

    /// A transaction that goes on while other things happen; or one ends.
    fn open(&mut self, rng: &mut Rng) {
        if let Some((number, mut client)) = self.open.take() {
            let end = *rng.pick(&["COMMIT", "ROLLBACK"]);
            self.told(number, end);
            let _ = client.batch_execute(end);
            return;
        }
        let leader = self.leader();
        let sql = format!(
            "BEGIN; CREATE TABLE o{} AS SELECT generate_series(1, 4000) AS i; UPDATE there SET filler = 'open' WHERE i < 90",
            rng.below(1_000_000)
        );
        let mut client = self.cluster(leader).connect_to("second");
        if client.batch_execute(&sql).is_ok() {
            self.told(leader, format!("stays open: {sql}"));
            self.open = Some((leader, client));
        }
    }

    /// Nothing stays open.
    pub(super) fn close(&mut self) {
        self.open = None;
    }

    fn checkpoint(&mut self, number: usize) {
        self.told(number, "CHECKPOINT");
        self.cluster(number).execute("CHECKPOINT");
    }

    /// Writes where a standby receives from, in place of what was said of it before. `None`: from where a recovery says.
    fn set_source(&self, number: usize, source: Option<&str>) {
        let cluster = self.cluster(number);
        let text = cluster.read("postgresql.conf");
        let is_other =
            |line: &&str| !line.starts_with("primary_conninfo") && !line.starts_with("primary_slot_name");
        let mut text: String = text.lines().filter(is_other).map(|line| format!("{line}\n")).collect();
        if let Some(source) = source {
            text += &format!("primary_conninfo = '{source}'\nprimary_slot_name = ''\n");
        }
        scratch::write_as_postgres(&cluster.directory().join("postgresql.conf"), &text, 0o600);
        if cluster.postmaster().is_some() {
            cluster.reload();
        }
    }

    pub(super) fn forget_source(&self, number: usize) {
        self.set_source(number, None);
    }

    pub(super) fn cut(&mut self, number: usize) {
        self.told(number, "is cut off");
        self.set_source(number, Some(""));
        self.nodes[number].role = Role::Cut;
    }

    /// Follows the one that leads.
    pub(super) fn follow(&mut self, number: usize) {
        let leader = self.leader();
        self.told(number, format!("follows {}", self.cluster(leader).name()));
        let source = format!(
            "host={} port={} user=postgres application_name={}",
            self.cluster(leader).host().address(),
            self.cluster(leader).port(),
            self.cluster(number).name()
        );
        self.set_source(number, Some(&source));
        self.nodes[number].role = Role::Follows;
    }

    /// Ends a server one way or the other.
    pub(super) fn end(&mut self, number: usize, rng: &mut Rng) {
        let role = self.nodes[number].role;
        if self.open.as_ref().is_some_and(|(of, _)| *of == number) && role != Role::Leads {
            self.open = None;
        }
        let way = rng.below(10);
        self.told(number, ["fast", "fast", "fast", "immediate", "immediate"].get(way).unwrap_or(&"kill"));
        let cluster = self.cluster(number);
        match way {
            0..3 => cluster.stop(Stop::Fast),
            3..5 => cluster.stop(Stop::Immediate),
            _ => cluster.kill(),
        }
        if self.open.as_ref().is_some_and(|(of, _)| *of == number) {
            self.open = None;
        }
        let was_standby = matches!(role, Role::Follows | Role::Cut);
        self.nodes[number].role = Role::Down { was_standby };
    }

    /// Starts it as what it was.
    pub(super) fn start(&mut self, number: usize, role: Role) {
        self.told(number, "starts");
        self.cluster(number).start();
        self.nodes[number].role = role;
    }

    /// Starts a standby that was ended, cut off; false if it has parted from its primary, and so does not start.
    fn start_cut(&mut self, number: usize) -> bool {
        self.told(number, "starts");
        let cluster = self.cluster(number);
        let started = cluster.try_start();
        if !started.status.success() {
            let log = cluster.log();
            // its last checkpoint, or what it has written since, lies on the branch that was left
            let refusals =
                ["is not a child of this server's history", "does not contain minimum recovery point"];
            assert!(refusals.iter().any(|words| log.contains(words)), "{}\n{log}", started.stderr);
            return false;
        }
        self.nodes[number].role = Role::Cut;
        true
    }

    /// Waits a while for a standby to have what the leader has.
    pub(super) fn let_catch_up(&self, number: usize) -> bool {
        let leader = self.cluster(self.leader());
        leader.execute("SELECT pg_logical_emit_message(true, 'e2e', '')");
        let lsn: String = leader.get("SELECT pg_current_wal_flush_lsn()::text", &[]);
        let mut client = self.cluster(number).connect();
        wait::try_until(Duration::from_secs(5), || {
            let sql = "SELECT coalesce(pg_last_wal_replay_lsn() >= $1::text::pg_lsn, false)";
            client.query_one(sql, &[&lsn]).is_ok_and(|row| row.get(0))
        })
    }

    /// A standby that runs, followed or cut off; one that is down is started for it.
    pub(super) fn standby(&mut self, rng: &mut Rng) -> Option<usize> {
        let running = |role| matches!(role, Role::Follows | Role::Cut);
        if let Some(number) = self.one(rng, running) {
            return Some(number);
        }
        let number = self.one(rng, |role| role == Role::Down { was_standby: true })?;
        self.start_cut(number).then_some(number)
    }

    /// The standby takes the leader's place, whether that runs or not; the third follows it, or not. False if the standby ended
    /// instead, and the leader leads on.
    pub(super) fn fail_over(&mut self, leader: usize, heir: usize, rng: &mut Rng) -> bool {
        self.told(heir, "is promoted");
        let cluster = self.cluster(heir);
        let promoted = cluster.try_promote();
        if !promoted.status.success() {
            // One that had more than its primary, was killed and told to follow that all the same reads on another branch when it is
            // promoted, and gives up.
            let log = cluster.log();
            let gave_up = cluster.postmaster().is_none() && log.contains("PANIC:  ");
            assert!(gave_up, "{}\n{log}", promoted.stderr);
            self.told(heir, "has ended");
            self.nodes[heir].role = Role::Down { was_standby: true };
            if self.nodes[leader].role != Role::Leads {
                self.start(leader, Role::Leads);
            }
            return false;
        }
        if let Some(old) = self.nodes.iter_mut().find(|node| node.role == Role::Leads) {
            old.role = Role::Alone;
        }
        self.nodes[heir].role = Role::Leads;
        for number in 0..self.nodes.len() {
            if matches!(self.nodes[number].role, Role::Follows | Role::Cut) && rng.percent(80) {
                self.follow(number);
            }
        }
        true
    }

    /// Something happens.
    pub(super) fn step(&mut self, rng: &mut Rng) {
        let leader = self.leader();
        match rng.below(100) {
            0..52 => self.busy(leader, rng, 3),
            52..62 => {
                let number = self.one(rng, |role| !matches!(role, Role::Down { .. })).expect("the leader");
                let work = work::read(rng);
                self.work(number, &work, false);
            }
            62..70 => {
                let number = self.one(rng, |role| !matches!(role, Role::Down { .. })).expect("the leader");
                self.checkpoint(number);
            }
            70..76 => {
                if let Some(number) = self.one(rng, |role| role == Role::Follows) {
                    self.cut(number);
                } else if let Some(number) = self.one(rng, |role| role == Role::Cut) {
                    self.follow(number);
                }
            }
            76..82 => {
                if let Some(number) = self.one(rng, |role| role == Role::Down { was_standby: true }) {
                    if self.start_cut(number) {
                        self.follow(number);
                    }
                } else if let Some(number) = self.one(rng, |role| matches!(role, Role::Follows | Role::Cut)) {
                    self.end(number, rng);
                }
            }
            82..87 => {
                self.end(leader, rng);
                if rng.percent(25) {
                    let value = *rng.pick(&["on", "off"]);
                    let name = *rng.pick(&["wal_log_hints", "full_page_writes"]);
                    self.told(leader, format!("{name} = {value}"));
                    self.cluster(leader).append_conf(name, value);
                }
                self.start(leader, Role::Leads);
            }
            87..93 => self.open(rng),
            _ => {
                if let Some(number) = self.one(rng, |role| role == Role::Alone) {
                    self.busy(number, rng, 4);
                } else {
                    self.busy(leader, rng, 6);
                }
            }
        }
    }
}
