//! Three hosts with addresses of their own: Pgpool-II, primary, standby with an agent.
//!
//! `PGPOOL_RECOVERY_E2E_MEGABYTES=1024` makes the cluster as large as one likes.

use pgpool_recovery_e2e::agent::{self, Agent};
use pgpool_recovery_e2e::netns::Network;
use pgpool_recovery_e2e::pgpool::Setup;
use pgpool_recovery_e2e::{Cluster, Recovery, Scratch, compare, dump, wait, workload};

fn megabytes() -> u32 {
    std::env::var("PGPOOL_RECOVERY_E2E_MEGABYTES").map_or(100, |text| text.parse().expect("a number"))
}

#[test]
fn a_new_node_on_another_host() {
    let scratch = Scratch::new();
    let network = Network::new(2);
    let secret = agent::secret(&scratch, "secret");
    let primary = Cluster::place(&scratch, &network.host(0), "server0")
        .with("pgpool_recovery.secret_file", secret.display())
        .into_primary();
    workload::fill(&primary, megabytes());
    let target = Cluster::place(&scratch, &network.host(1), "server1");
    let agent = Agent::start(&scratch, target.host(), &secret, &[target.directory()]);

    let recovery = Recovery::to(target.host().address(), target.dir(), primary.port())
        .option("agent_port", agent.port())
        .option("dest_port", target.port())
        .option("start", true);
    let report = recovery.run(&primary);
    assert_eq!(report.text("/target/transport"), "agent");
    // By the address the agent sees the primary at, under the name of its own.
    primary.wait_for_standby(target.host().address());
    let conf = target.read("myrecovery.conf");
    assert!(conf.contains(&format!("host={} ", primary.host().address())), "{conf}");
    assert!(conf.contains("primary_slot_name = '10_83_0_11'"), "{conf}");

    dump::assert_equal(&primary, &target);
    dump::assert_amcheck_clean(&target);
    compare::stop_and_compare(&primary, &target).assert_none();
}

#[test]
fn pgpool_brings_a_node_on_another_host_back() {
    let scratch = Scratch::new();
    let network = Network::new(3);
    let secret = agent::secret(&scratch, "secret");
    let first = Cluster::place(&scratch, &network.host(1), "server0")
        .with("pgpool_recovery.secret_file", secret.display())
        .into_primary();
    workload::fill(&first, 10);
    let second = Cluster::place(&scratch, &network.host(2), "server1");
    // Pgpool-II tells no agent port: the default one, which every host has to itself.
    let agents = [&first, &second]
        .map(|cluster| Agent::start_at(&scratch, cluster.host(), 9897, &secret, &[cluster.directory()]));
    let pgpool = Setup::new(&scratch, &network.host(0), &[&first, &second])
        .with("backend_application_name0", first.host().address())
        .with("backend_application_name1", second.host().address())
        .start();
    let context = || format!("{}\n{}", agents[0].log(), agents[1].log());

    pgpool.wait_for_node(1, "down", "standby", "");
    pgpool.recover(1).unwrap_or_else(|error| panic!("{error}\n{}\n{}", first.log(), context()));
    pgpool.wait_for_node(1, "up", "standby", "streaming");
    second.wait_for_replay(&first);
    first.kill();
    wait::until_true("the promotion", wait::PATIENCE, || !second.in_recovery());
    pgpool.wait_for_node(1, "up", "primary", "");
    pgpool.connect().batch_execute("INSERT INTO accounts (note) VALUES ('while down')").expect("a row");
    pgpool.recover(0).unwrap_or_else(|error| panic!("{error}\n{}\n{}", second.log(), context()));
    pgpool.wait_for_node(0, "up", "standby", "streaming");
    first.wait_for_replay(&second);
    let sql = "SELECT count(*) FROM accounts WHERE note = 'while down'";
    assert_eq!(first.get::<i64>(sql, &[]), 1);
}
