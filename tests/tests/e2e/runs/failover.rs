//! The old primary after a fail-over: a different history on most of the same pages.

use pgpool_recovery_e2e::agent::{self, Agent};
use pgpool_recovery_e2e::by_both_transports;
use pgpool_recovery_e2e::recovery::Report;
use pgpool_recovery_e2e::{Cluster, Host, Recovery, Scratch, Transport, compare, dump, workload};

/// A primary killed after writes that no standby has, and its standby, promoted and written to.
fn split(scratch: &Scratch) -> (Cluster, Cluster) {
    let old = Cluster::primary(scratch);
    workload::fill(&old, 60);
    // with checksums (PostgreSQL 18's default) each side's own hint bits would give every page another LSN
    workload::settle(&old);
    let new = Cluster::standby_by_basebackup(&old, &Host::here(), "standby");
    new.wait_for_replay(&old);
    // The standby is cut off, the primary writes on: updates in place, a new table, a dropped one.
    let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_replication";
    old.set_hba("local all all trust\nhost all all 0.0.0.0/0 trust\n");
    old.reload();
    old.execute(sql);
    let mut client = old.connect();
    workload::change_every(&mut client, 100);
    client
        .batch_execute(
            "CREATE TABLE lost AS SELECT i FROM generate_series(1, 5000) i;
             INSERT INTO accounts (note) VALUES ('never replicated');
             CHECKPOINT;
             DELETE FROM accounts WHERE id < 100",
        )
        .expect("divergent writes");
    client.batch_execute("CREATE DATABASE lost_database").expect("a database that will be no more");
    drop(client);
    old.kill();

    new.promote();
    let mut client = new.connect();
    workload::change_every(&mut client, 70);
    client
        .batch_execute(
            "CREATE TABLE won AS SELECT i FROM generate_series(1, 5000) i;
             INSERT INTO accounts (note) VALUES ('after the fail-over')",
        )
        .expect("new writes");
    client.batch_execute("CREATE DATABASE won_database").expect("a new database");
    (old, new)
}

/// About 1 in 100 and 1 in 70 rows changed, each on a page of seven or eight others: every page that
/// holds one differs, so up to a fifth of the big table, and what else was written.
#[track_caller]
fn assert_little_was_sent(report: &Report, primary: &Cluster) {
    let (sent, size) = (report.number("/bytes/sent"), workload::size(primary));
    assert!(sent < size * 45 / 100, "{sent} of {size} bytes were sent");
    assert!(report.number("/bytes/compared") > size / 2, "{}", report.0);
}

#[track_caller]
fn assert_rebuilt(old: &Cluster, new: &Cluster) {
    assert!(old.in_recovery());
    old.wait_for_replay(new);
    let sql = "SELECT count(*) FROM accounts WHERE note = 'never replicated'";
    assert_eq!(old.get::<i64>(sql, &[]), 0);
    dump::assert_equal(new, old);
    dump::assert_amcheck_clean(old);
    compare::stop_and_compare(new, old).assert_none();
}

fn the_old_primary_is_rebuilt_from_the_new_one(transport: Transport) {
    let scratch = Scratch::new();
    let (old, new) = split(&scratch);
    let secret = agent::secret(&scratch, "secret");
    let agent = Agent::start(&scratch, &Host::here(), &secret, &[old.directory()]);
    let report = Recovery::of(&old, &new)
        .option("transport", transport.name())
        .option("agent_port", agent.port())
        .option("secret_file", secret.to_str().expect("ASCII"))
        .option("start", true)
        .run(&new);
    assert_eq!(report.text("/target/transport"), transport.name());
    assert_eq!(report.number("/source/timeline"), 2);
    assert_little_was_sent(&report, &new);
    assert_rebuilt(&old, &new);
}

by_both_transports!(the_old_primary_is_rebuilt_from_the_new_one);

#[test]
fn there_and_back_again() {
    let scratch = Scratch::new();
    let (first, second) = split(&scratch);
    Recovery::of(&first, &second).option("application_name", "first").option("start", true).run(&second);
    second.wait_for_standby("first");
    first.wait_for_replay(&second);
    second.kill();
    first.promote();
    first.execute("INSERT INTO accounts (note) VALUES ('third timeline')");
    let report = Recovery::of(&second, &first).option("start", true).run(&first);
    assert_eq!(report.number("/source/timeline"), 3);
    assert_rebuilt(&second, &first);
}
