//! The primary's host is gone from the network: nothing answers there, and nothing refuses.

use std::time::{Duration, Instant};

use pgpool_recovery_e2e::agent::{self, Agent};
use pgpool_recovery_e2e::netns::Network;
use pgpool_recovery_e2e::pgpool::{self, Setup};
use pgpool_recovery_e2e::{Cluster, Scratch, wait};
use serde_json::Value;

use super::lean::Lean;

/// As Pgpool-II's own host calls what it calls on the servers.
const AGENT_PORT: u16 = 9897;

#[test]
fn the_primarys_host_falls_silent_and_comes_back() {
    if pgpool::version() < (4, 3) {
        return;
    }
    let (scratch, network) = (Scratch::new(), Network::new(4));
    let secret = agent::secret(&scratch, "secret");
    let node = |id: usize| {
        Cluster::place(&scratch, &network.host(id + 1), &format!("node{id}"))
            .with("pgpool_recovery.secret_file", secret.display())
            .with("pgpool_recovery.application_name", "server%n")
            .with("pgpool_recovery.slot_name", "server%n")
            .with("wal_keep_size", "64MB")
    };
    let nodes = [node(0).into_primary(), node(1), node(2)];
    let _agents = nodes.each_ref().map(|node| {
        let text = agent::cluster(node.directory()) + "allow_stop = true\n";
        Agent::start_at_with(&scratch, node.host(), AGENT_PORT, &secret, &text)
    });
    let pgpool = Setup::new(&scratch, &network.host(0), &nodes.each_ref())
        .with("health_check_max_retries", 0)
        .with("failover_command", Lean::hook(&scratch, "failover"))
        .start();
    for id in [1, 2] {
        pgpool.wait_for_node(id, "down", "standby", "");
        pgpool.recover(id).unwrap_or_else(|error| panic!("{error}\n{}", nodes[0].log()));
        pgpool.wait_for_node(id, "up", "standby", "streaming");
    }
    nodes[0].execute("CREATE TABLE seen AS SELECT 1 AS id");
    for id in [2, 1] {
        nodes[id].wait_for_what_is_flushed(&nodes[0]);
    }

    network.cut(1);
    let begin = Instant::now();
    wait::until_true("the promotion", Duration::from_secs(120), || !nodes[1].in_recovery());
    println!("promoted after {:?}", begin.elapsed());
    pgpool.wait_for_node(1, "up", "primary", "");
    nodes[1].wait_for_standby("server2");
    pgpool.wait_for_node(2, "up", "standby", "streaming");
    nodes[1].execute("INSERT INTO seen VALUES (2)");
    nodes[2].wait_for_replay(&nodes[1]);
    // it lives on where nobody reaches it, and nothing makes a node of it again by itself
    network.mend(1);
    assert!(!nodes[0].in_recovery());
    assert_eq!(pgpool.nodes()[0].status, "down");
    nodes[0].execute("CREATE TABLE lost AS SELECT 1 AS id");
    let sql = "SELECT pgpool_recovery_follow($1, $2, $3, $4, $5, 0, '{\"on_diverged\": \"rebuild\"}')";
    let (host, port) = (nodes[0].host().address(), i32::from(nodes[0].port()));
    let (own, own_port) = (nodes[1].host().address(), i32::from(nodes[1].port()));
    let report: Value = nodes[1].get(sql, &[&host, &nodes[0].dir(), &port, &own, &own_port]);
    assert_eq!(report["result"], "rebuilt", "{report}");
    nodes[0].wait_for_replay(&nodes[1]);
    assert_eq!(nodes[0].get::<i64>("SELECT count(*) FROM seen", &[]), 2);
    pgpool.pcp("pcp_attach_node", &["-n", "0"]).ok();
    pgpool.wait_for_node(0, "up", "standby", "streaming");
}
