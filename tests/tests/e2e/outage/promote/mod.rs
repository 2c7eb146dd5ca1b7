//! `pgpool_recovery_promote`: one primary after it, and nobody who was not asked for is stopped.

use std::collections::BTreeMap;

use pgpool_recovery_e2e::agent::{self, Agent};
use pgpool_recovery_e2e::recovery::SqlError;
use pgpool_recovery_e2e::server::programs;
use pgpool_recovery_e2e::{Cluster, Host, Scratch};
use serde_json::{Value, json};

mod alive; // the question to the old primary fails: is it gone, or does it live?
mod calls; // arguments, rights, two calls at once, a server that is a primary already
mod earlier; // another promotion before this one
mod fence; // the old primary: which one is stopped, and what becomes of it
mod nodes; // the other nodes: who has more, who follows
mod relays; // standbys of standbys; answers that are no longer true

use super::stop::ALLOWED;

/// A primary, two standbys of it, and an agent for all of them. The first standby is the one that is promoted.
struct Trio {
    agent: Agent,
    one: Cluster,
    two: Cluster,
    old: Cluster,
    options: Value,
}

impl Trio {
    fn new() -> Self {
        Self::with(ALLOWED)
    }

    /// With these lines in the old primary's section of the agent's configuration. $OLD, $TWO and $BIN are their directories.
    fn with(lines: &str) -> Self {
        let scratch = Scratch::new();
        let old = Cluster::place(&scratch, &Host::here(), "old").into_primary();
        let one = Cluster::standby_by_basebackup(&old, &Host::here(), "one");
        let two = Cluster::standby_by_basebackup(&old, &Host::here(), "two");
        // what the second backup has written, too
        for standby in [&one, &two] {
            standby.wait_for_what_is_flushed(&old);
        }
        let secret = agent::secret(&scratch, "promote-secret");
        let section = |cluster: &Cluster, lines: &str| agent::cluster(cluster.directory()) + lines;
        let lines = lines.replace("$OLD", old.dir()).replace("$TWO", two.dir());
        let lines = lines.replace("$BIN", programs().to_str().expect("ASCII"));
        let text = section(&old, &lines) + &section(&one, ALLOWED) + &section(&two, ALLOWED);
        let agent = Agent::start_with(&scratch, &Host::here(), &secret, &text);
        let options = json!({ "transport": "agent", "agent_port": agent.port(), "secret_file": secret.to_str(),
            "slot_name": "node_%p", "application_name": "node_%p" });
        Self { agent, one, two, old, options }
    }

    /// The options of one call.
    fn option(&self, name: &str, value: impl Into<Value>) -> Value {
        with(&self.options, name, value)
    }

    /// The options of a call that names these as the other nodes.
    fn nodes(&self, nodes: &[&Cluster]) -> Value {
        let nodes: Vec<Value> = (2..).zip(nodes).map(|(id, node)| node_of(id, node)).collect();
        self.option("nodes", nodes)
    }

    /// The primary dies when both standbys have all that it wrote.
    fn kill_primary(&self) {
        self.old.execute("CREATE TABLE IF NOT EXISTS kept AS SELECT generate_series(1, 1000) AS n");
        self.one.wait_for_replay(&self.old);
        self.two.wait_for_replay(&self.old);
        self.old.kill();
    }

    /// One standby receives nothing of what is written meanwhile.
    fn without(&self, standby: &Cluster, write: impl FnOnce()) {
        standby.append_conf("primary_conninfo", "host=127.0.0.1 port=1 user=postgres connect_timeout=1");
        standby.reload();
        pgpool_recovery_e2e::wait::until_true(
            "the walreceiver to end",
            pgpool_recovery_e2e::wait::PATIENCE,
            || {
                standby
                    .get::<i64>("SELECT count(*) FROM pg_stat_wal_receiver WHERE status = 'streaming'", &[])
                    == 0
            },
        );
        write();
    }

    /// Nothing has been promoted.
    #[track_caller]
    fn demand_nothing_promoted(&self) {
        assert!(self.one.in_recovery() && self.two.in_recovery());
    }
}

fn with(options: &Value, name: &str, value: impl Into<Value>) -> Value {
    let mut options = options.clone();
    options[name] = value.into();
    options
}

fn node_of(id: u32, node: &Cluster) -> Value {
    json!({ "node_id": id, "host": "localhost", "port": node.port(), "directory": node.dir() })
}

/// Promotes a standby in the place of an old primary, if one is named.
fn promote(standby: &Cluster, old: Option<&Cluster>, options: &Value) -> Result<Value, SqlError> {
    let sql = "SELECT pgpool_recovery_promote($1, $2, $3, $4)";
    let (host, dir) = (old.map(|_| "localhost"), old.map(Cluster::dir));
    let port = old.map(|old| i32::from(old.port()));
    let row = standby.connect().query_one(sql, &[&host, &dir, &port, options]);
    row.map(|row| row.get(0)).map_err(|error| SqlError::from(&error))
}

const MARK: &str = "pgpool_recovery.fenced";

/// What the mark in a directory says.
#[track_caller]
fn mark(cluster: &Cluster) -> BTreeMap<String, Value> {
    serde_json::from_str(&cluster.read(MARK)).expect("a mark")
}

/// A standby gets what its new primary writes.
#[track_caller]
fn demand_following(primary: &Cluster, standby: &Cluster) {
    primary.execute("DROP TABLE IF EXISTS later; CREATE TABLE later AS SELECT 42 AS n");
    standby.wait_for_replay(primary);
    assert!(standby.in_recovery());
    assert_eq!(standby.get::<i32>("SELECT n FROM later", &[]), 42);
}
