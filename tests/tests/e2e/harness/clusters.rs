//! The harness itself: it must see what is there and leave nothing behind, or the other tests say nothing.

use std::os::unix::fs::FileExt;
use std::process::Command;

use pgpool_recovery_e2e::cluster::Stop;
use pgpool_recovery_e2e::netns::Network;
use pgpool_recovery_e2e::pgpool::Setup;
use pgpool_recovery_e2e::{Cluster, Host, Scratch, compare, dump, probe, process, server, wait, workload};

#[test]
fn a_standby_by_pg_basebackup_is_found_identical_and_a_damaged_one_is_not() {
    let scratch = Scratch::new();
    let primary = Cluster::place(&scratch, &Host::here(), "primary").with("autovacuum", "off").init();
    primary.start();
    workload::fill(&primary, 5);
    workload::settle(&primary);
    let standby = Cluster::standby_by_basebackup(&primary, &Host::here(), "standby");
    primary.execute("UPDATE bulk SET id = id + 1 WHERE id % 7 = 0");
    standby.wait_for_replay(&primary);
    dump::assert_equal(&primary, &standby);
    dump::assert_amcheck_clean(&standby);
    let table: String = primary.get("SELECT pg_relation_filepath('bulk')", &[]);
    compare::stop_and_compare(&primary, &standby).assert_none();

    let file = std::fs::File::options().write(true).open(standby.directory().join(&table)).expect("bulk");
    file.write_at(b"damage", 3 * compare::PAGE as u64 + 4000).expect("a write");
    let faults = compare::clusters(&primary, &standby).faults;
    assert_eq!(faults.len(), 1, "{faults:?}");
    assert!(faults[0].starts_with(&format!("{table}: page 3 differs")), "{faults:?}");
}

/// A page that is split while VACUUM walks the index is marked (BTP_SPLIT_END, the cycle id), and that is not logged.
#[test]
fn pages_that_were_split_under_a_vacuum_are_equal() {
    let scratch = Scratch::new();
    let primary = Cluster::place(&scratch, &Host::here(), "primary").with("autovacuum", "off").init();
    primary.start();
    primary.execute(
        "CREATE TABLE split (id integer PRIMARY KEY) WITH (vacuum_index_cleanup = on);
         INSERT INTO split SELECT 10 * i FROM generate_series(1, 100000) i;
         DELETE FROM split WHERE id % 100 = 0",
    );
    let standby = Cluster::standby_by_basebackup(&primary, &Host::here(), "standby");
    std::thread::scope(|scope| {
        let vacuum = scope.spawn(|| {
            let sql = "SET vacuum_cost_delay = '20ms'; SET vacuum_cost_limit = 50";
            let mut client = primary.connect();
            client.batch_execute(sql).expect(sql);
            client.batch_execute("VACUUM split").expect("VACUUM");
        });
        wait::until_true("VACUUM in the index", wait::PATIENCE, || {
            let sql = "SELECT count(*) FROM pg_stat_progress_vacuum WHERE phase = 'vacuuming indexes'";
            primary.get::<i64>(sql, &[]) == 1
        });
        primary.execute("INSERT INTO split SELECT 5 + 10 * i FROM generate_series(1, 100000, 3) i");
        assert!(!vacuum.is_finished(), "VACUUM was too quick");
        vacuum.join().expect("VACUUM");
    });
    standby.wait_for_replay(&primary);
    let difference = compare::stop_and_compare(&primary, &standby);
    assert!(!difference.assert_none().masked_pages.is_empty(), "no page was split under the VACUUM");
}

#[test]
fn a_killed_server_is_gone_and_its_directory_goes_too() {
    let scratch = Scratch::new();
    let cluster = Cluster::place(&scratch, &Host::here(), "primary").init();
    cluster.start();
    let mut witness = probe::Witness::on(&cluster);
    witness.assert_served();
    let postmaster = cluster.postmaster().expect("running");
    cluster.kill();
    assert!(cluster.postmaster().is_none());
    assert_eq!(cluster.control("Database cluster state"), "in production");
    cluster.start();
    let second = cluster.postmaster().expect("running again");
    assert_ne!(postmaster, second);
    let path = scratch.path().to_owned();
    drop((cluster, scratch));
    assert!(!path.exists());
    assert!(!process::is_alive(second));
}

#[test]
fn a_backup_in_progress_is_seen() {
    let scratch = Scratch::new();
    let primary = probe::quiet(Cluster::place(&scratch, &Host::here(), "primary")).init();
    primary.start();
    probe::assert_nothing_left(&primary);
    let mut client = primary.connect();
    client.batch_execute(&format!("SELECT {}", server::backup_start("harness"))).expect("a backup");
    let seen = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| probe::assert_no_backup(&primary)));
    assert!(seen.is_err(), "the probe did not see a backup");
    client.batch_execute(&format!("SELECT {}", server::backup_stop())).expect("its end");
    probe::assert_nothing_left(&primary);
}

#[test]
fn hosts_have_addresses_of_their_own() {
    let scratch = Scratch::new();
    let network = Network::new(3);
    let primary = Cluster::place(&scratch, &network.host(0), "primary").init();
    primary.start();
    let standby = Cluster::standby_by_basebackup(&primary, &network.host(1), "standby");
    let sql = "SELECT host(client_addr) FROM pg_stat_replication";
    assert_eq!(primary.get::<String>(sql, &[]), "10.83.0.11");
    standby.stop(Stop::Immediate);
    let list = || {
        process::run({
            let mut command = Command::new("ip");
            command.args(["netns", "list"]);
            command
        })
    };
    let own = network.name().to_owned();
    assert!(list().ok().contains(&own));
    drop((primary, standby, network));
    assert!(!list().ok().contains(&own));
}

#[test]
fn pgpool_fails_over_and_shows_it() {
    let scratch = Scratch::new();
    let primary = Cluster::place(&scratch, &Host::here(), "primary").init();
    primary.start();
    let standby = Cluster::standby_by_basebackup(&primary, &Host::here(), "server1");
    let pgpool = Setup::new(&scratch, &Host::here(), &[&primary, &standby]).start();
    pgpool.wait_for_node(0, "up", "primary", "");
    pgpool.wait_for_node(1, "up", "standby", "streaming");
    primary.kill();
    wait::until_true("the promotion", wait::PATIENCE, || !standby.in_recovery());
    pgpool.wait_for_node(0, "down", "standby", "");
    pgpool.wait_for_node(1, "up", "primary", "");
    pgpool.connect().batch_execute("CREATE TABLE after_failover (i integer)").expect("a write");
    let error = pgpool.recover(0).expect_err("there is no extension in these clusters");
    assert!(error.contains("1st stage"), "{error}");
}
