//! `pgpool_recovery_follow`: after a promotion the other standby follows the new primary, or is told from one that cannot.

use std::fs;
use std::os::unix::fs::MetadataExt;

use pgpool_recovery_e2e::agent::{self, Agent};
use pgpool_recovery_e2e::cluster::Stop;
use pgpool_recovery_e2e::recovery::SqlError;
use pgpool_recovery_e2e::stage::Transport;
use pgpool_recovery_e2e::{Cluster, Host, Scratch, by_both_transports, wait};
use serde_json::{Value, json};

use super::stop::ALLOWED;

pub(super) fn follow(caller: &Cluster, target: &Cluster, options: &Value) -> Result<Value, SqlError> {
    let sql = "SELECT pgpool_recovery_follow('localhost', $1, $2, $3, $4, 2, $5)";
    let (port, own) = (i32::from(target.port()), i32::from(caller.port()));
    let arguments: [&(dyn postgres::types::ToSql + Sync); 5] =
        [&target.dir(), &port, &caller.host().address(), &own, options];
    caller.connect().query_one(sql, &arguments).map(|row| row.get(0)).map_err(|error| SqlError::from(&error))
}

/// A primary with two standbys, and an agent for the old primary and the second standby.
pub(super) struct Trio {
    pub(super) agent: Agent,
    pub(super) options: Value,
    pub(super) third: Cluster,
    pub(super) new: Cluster,
    pub(super) old: Cluster,
}

impl Trio {
    pub(super) fn new(transport: Transport) -> Self {
        Self::with(transport, ALLOWED, |old| old)
    }

    pub(super) fn with(transport: Transport, lines: &str, change: impl Fn(Cluster) -> Cluster) -> Self {
        let scratch = Scratch::new();
        // their logs are where the product looks for them
        let old = Cluster::place(&scratch, &Host::here(), "old").with("logging_collector", "on");
        let old = change(old).into_primary();
        let new = Cluster::standby_by_basebackup(&old, &Host::here(), "new");
        let third = Cluster::standby_by_basebackup(&old, &Host::here(), "third");
        let secret = agent::secret(&scratch, "outage-secret");
        let text: String =
            [&old, &third].iter().map(|cluster| agent::cluster(cluster.directory()) + lines).collect();
        let agent = Agent::start_with(&scratch, &Host::here(), &secret, &text);
        let options = json!({ "transport": transport.name(), "agent_port": agent.port(),
            "secret_file": secret.to_str(), "slot_name": "third", "application_name": "third" });
        Self { agent, options, third, new, old }
    }

    /// The options of one call.
    pub(super) fn option(&self, name: &str, value: impl Into<Value>) -> Value {
        let mut options = self.options.clone();
        options[name] = value.into();
        options
    }

    /// The primary dies, and both standbys have all that it wrote.
    pub(super) fn fail_over(&self) {
        self.old.execute("CREATE TABLE replicated ()");
        self.new.wait_for_replay(&self.old);
        self.third.wait_for_replay(&self.old);
        self.old.kill();
        self.new.promote();
    }

    /// One standby receives nothing of what is written now.
    pub(super) fn without(&self, standby: &Cluster, write: impl FnOnce()) {
        standby.execute("ALTER SYSTEM SET primary_conninfo = ''");
        standby.reload();
        wait::until_true("the walreceiver to end", wait::PATIENCE, || {
            standby.get::<i64>("SELECT count(*) FROM pg_stat_wal_receiver", &[]) == 0
        });
        write();
        let other = if standby.name() == "new" { &self.third } else { &self.new };
        other.wait_for_replay(&self.old);
    }

    /// What follows gets what is written now.
    #[track_caller]
    pub(super) fn demand_following(&self, follower: &Cluster) {
        self.new.execute("CREATE TABLE later ()");
        follower.wait_for_replay(&self.new);
        assert!(follower.in_recovery());
        assert_eq!(follower.get::<i64>("SELECT count(*) FROM pg_class WHERE relname = 'later'", &[]), 1);
        let sql = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'third' AND active";
        assert_eq!(self.new.get::<i64>(sql, &[]), 1);
    }

    /// Nothing has been done to the second standby, nor for it.
    #[track_caller]
    pub(super) fn demand_untouched(&self, postmaster: Option<u32>) {
        assert_eq!(self.third.postmaster(), postmaster);
        assert!(!self.third.has("myrecovery.conf"));
        let slots = self
            .new
            .get::<i64>("SELECT count(*) FROM pg_replication_slots WHERE slot_type = 'physical'", &[]);
        assert_eq!(slots, 0, "a slot was left behind");
    }
}

fn a_standby_follows_a_promotion_without_a_restart(transport: Transport) {
    let trio = Trio::new(transport);
    let third = &trio.third;
    // these two would win
    third.execute("ALTER SYSTEM SET primary_conninfo = 'host=127.0.0.1 port=1'");
    third.execute("ALTER SYSTEM SET work_mem = '5MB'");
    let running = third.postmaster();
    trio.fail_over();
    let report = follow(&trio.new, third, &trio.options).expect("follows");
    assert_eq!((&report["result"], &report["timeline"]), (&json!("following"), &json!(2)), "{report}");
    assert_eq!(report["slot"], "third", "{report}");
    assert!(report["lsn"].as_str().is_some_and(|lsn| lsn.contains('/')), "{report}");
    assert!(report["seconds"].as_f64().is_some_and(|seconds| seconds < 60.0), "{report}");
    trio.demand_following(third);
    assert_eq!(third.postmaster(), running);
    let auto = third.read("postgresql.auto.conf");
    assert!(auto.contains("work_mem") && !auto.contains("primary_conninfo"), "{auto}");

    // again: nothing is written
    let made = |name: &str| {
        let metadata = fs::metadata(third.directory().join(name)).expect(name);
        (metadata.ino(), metadata.mtime(), metadata.mtime_nsec())
    };
    let before = ["myrecovery.conf", "postgresql.conf", "postgresql.auto.conf"].map(made);
    let loaded = || third.get::<std::time::SystemTime>("SELECT pg_conf_load_time()", &[]);
    let read = loaded();
    let report = follow(&trio.new, third, &trio.options).expect("follows already");
    assert_eq!(report["result"], "following", "{report}");
    assert_eq!(["myrecovery.conf", "postgresql.conf", "postgresql.auto.conf"].map(made), before);
    assert_eq!(loaded(), read);
}

fn a_standby_that_is_behind_follows(transport: Transport) {
    let trio = Trio::new(transport);
    trio.without(&trio.third, || trio.old.execute("CREATE TABLE replicated ()"));
    trio.old.kill();
    trio.new.promote();
    let report = follow(&trio.new, &trio.third, &trio.options).expect("follows");
    assert_eq!(report["result"], "following", "{report}");
    trio.demand_following(&trio.third);
}

fn a_standby_that_is_ahead_has_diverged_and_is_rebuilt_if_asked_for(transport: Transport) {
    let trio = Trio::new(transport);
    trio.without(&trio.new, || trio.old.execute("CREATE TABLE only_on_third ()"));
    trio.old.kill();
    trio.new.promote();
    let running = trio.third.postmaster();
    let error = follow(&trio.new, &trio.third, &trio.options).expect_err("diverged").expect("55000");
    let fork = trio.new.read("pg_wal/00000002.history");
    let fork = fork.split_whitespace().nth(1).expect("a position");
    let sql = "SELECT greatest(pg_last_wal_replay_lsn(), pg_last_wal_receive_lsn())::text";
    let reached: String = trio.third.get(sql, &[]);
    error.says("diverged").says(fork).says(&reached).says("on_diverged");
    trio.demand_untouched(running);

    let report = follow(&trio.new, &trio.third, &trio.option("on_diverged", "rebuild")).expect("rebuilt");
    assert_eq!(report["result"], "rebuilt", "{report}");
    trio.demand_following(&trio.third);
    let sql = "SELECT count(*) FROM pg_class WHERE relname = 'only_on_third'";
    assert_eq!(trio.third.get::<i64>(sql, &[]), 0);
}

fn a_fenced_primary_that_was_shut_down_in_order_rejoins(transport: Transport) {
    let trio = Trio::new(transport);
    trio.old.execute("CREATE TABLE replicated ()");
    trio.old.stop(Stop::Fast);
    let checkpoint = trio.old.control("Latest checkpoint location");
    wait::until_true("the shutdown checkpoint to be replayed", wait::PATIENCE, || {
        trio.new.get::<bool>("SELECT pg_last_wal_replay_lsn() > $1::text::pg_lsn", &[&checkpoint])
    });
    trio.new.promote();
    let error = follow(&trio.new, &trio.old, &trio.options).expect_err("nobody says that it may run");
    error.expect("55000").says("is stopped");
    assert!(!trio.old.has("standby.signal") && trio.old.postmaster().is_none());
    let mark = json!({ "fenced": 1, "by": "new", "why": "a switchover" }).to_string();
    pgpool_recovery_e2e::scratch::write_as_postgres(
        &trio.old.directory().join("pgpool_recovery.fenced"),
        &mark,
        0o600,
    );
    let report = follow(&trio.new, &trio.old, &trio.options).expect("rejoins");
    assert_eq!((&report["result"], &report["timeline"]), (&json!("rejoined"), &json!(2)), "{report}");
    assert!(!trio.old.has("pgpool_recovery.fenced"));
    trio.demand_following(&trio.old);
}

fn an_old_primary_that_still_runs_is_stopped_and_rebuilt_if_asked_for(transport: Transport) {
    let trio = Trio::new(transport);
    trio.old.execute("CREATE TABLE replicated ()");
    trio.new.wait_for_replay(&trio.old);
    trio.new.promote();
    trio.old.execute("CREATE TABLE never_replicated ()");
    let error = follow(&trio.new, &trio.old, &trio.options).expect_err("diverged");
    error.expect("55000").says("diverged").says("was stopped");
    assert_eq!(trio.old.postmaster(), None, "two primaries are worse than one");
    let error = follow(&trio.new, &trio.old, &trio.options).expect_err("it is not fenced");
    error.expect("55000").says("is stopped");
    trio.old.start();
    let report = follow(&trio.new, &trio.old, &trio.option("on_diverged", "rebuild")).expect("rebuilt");
    assert_eq!(report["result"], "rebuilt", "{report}");
    trio.demand_following(&trio.old);
}

fn a_second_primary_is_left_alone(transport: Transport) {
    let trio = Trio::new(transport);
    trio.fail_over();
    trio.third.promote();
    trio.third.execute("CREATE TABLE of_the_other ()");
    let running = trio.third.postmaster();
    for on_diverged in ["report", "rebuild"] {
        let error =
            follow(&trio.new, &trio.third, &trio.option("on_diverged", on_diverged)).expect_err("refused");
        error.expect("55000").says("runs as a primary").says("timeline 2");
    }
    trio.demand_untouched(running);
    assert!(!trio.third.in_recovery());
}

by_both_transports!(
    a_standby_follows_a_promotion_without_a_restart,
    a_standby_that_is_behind_follows,
    a_standby_that_is_ahead_has_diverged_and_is_rebuilt_if_asked_for,
    a_fenced_primary_that_was_shut_down_in_order_rejoins,
    an_old_primary_that_still_runs_is_stopped_and_rebuilt_if_asked_for,
    a_second_primary_is_left_alone,
);
