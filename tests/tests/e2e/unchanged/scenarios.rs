//! Histories that a weaker proof would take for another one.

use std::time::Duration;

use pgpool_recovery_e2e::background::Running;
use pgpool_recovery_e2e::cluster::Stop;
use pgpool_recovery_e2e::stage::{Condition, Stage};
use pgpool_recovery_e2e::{Cluster, Host, Scratch, process, server, workload};

use super::failover::{cut_off, parted, promote_and_change, recovery, together};
use super::{durable, each, rebuild, rebuilt_by_hash};

/// What both of two servers do that believe to lead: the same length of WAL, and other content.
fn same_traffic(cluster: &Cluster, word: &str) {
    let mut client = cluster.connect();
    each(
        &mut client,
        &[
            &format!("UPDATE bulk SET filler = repeat('{word}', 250) WHERE id % 300 = 0"),
            &format!("INSERT INTO accounts (note) SELECT repeat('{word}', 9) FROM generate_series(1, 500)"),
            "SELECT count(*) FROM bulk",
        ],
    );
}

/// The one that stays the primary writes more than what a background process may have written on the other.
fn go_ahead(primary: &Cluster) {
    primary.execute("SELECT pg_logical_emit_message(true, 'e2e', repeat('w', 1024 * 1024))");
}

/// A primary that was killed, and two standbys that had the same of it and are both promoted: both are on timeline 2.
fn twice_promoted(scratch: &Scratch) -> (Cluster, Cluster, Cluster) {
    let first =
        durable(Cluster::place(scratch, &Host::here(), "first")).with("wal_log_hints", "on").into_primary();
    workload::fill(&first, 20);
    let [one, other] =
        ["one", "other"].map(|name| Cluster::standby_by_basebackup(&first, &Host::here(), name));
    first.execute("INSERT INTO accounts (note) VALUES ('a transaction')");
    for standby in [&one, &other] {
        standby.wait_for_replay(&first);
    }
    first.kill();
    for standby in [&one, &other] {
        standby.promote();
    }
    (first, one, other)
}

#[test]
fn two_standbys_that_were_promoted_at_the_same_position_have_parted_there() {
    let scratch = Scratch::new();
    let (_first, one, other) = twice_promoted(&scratch);
    same_traffic(&one, "good");
    same_traffic(&other, "evil");
    go_ahead(&one);
    other.kill();
    // hints of its own transactions came without WAL before its first checkpoint
    let recovery = recovery(&other, &one).option("overwrite", "any_cluster");
    let why = rebuilt_by_hash(&recovery, &other, &one);
    assert!(why.contains("no checkpoint of its own before that"), "{why}");
}

#[test]
fn of_two_promoted_standbys_that_which_only_read_is_rebuilt_by_what_changed() {
    let scratch = Scratch::new();
    let (_first, one, other) = twice_promoted(&scratch);
    same_traffic(&one, "good");
    other.execute("SELECT count(*) FROM bulk");
    other.execute("CHECKPOINT");
    other.kill();
    rebuild(&recovery(&other, &one).option("overwrite", "any_cluster"), &other, &one, "H1");
}

#[test]
fn a_clone_of_the_storage_that_went_on_has_parted_where_it_was_made() {
    for (hints, rule) in [("on", Some("H2")), ("off", None)] {
        let scratch = Scratch::new();
        let primary = durable(Cluster::place(&scratch, &Host::here(), "primary"))
            .with("wal_log_hints", hints)
            .into_primary();
        workload::fill(&primary, 20);
        primary.execute("CHECKPOINT");
        primary.execute("INSERT INTO accounts (note) VALUES ('a transaction')");
        primary.stop(Stop::Fast);
        let clone = Cluster::place(&scratch, &Host::here(), "clone");
        let mut copy = std::process::Command::new("cp");
        copy.arg("-a").arg(primary.directory()).arg(clone.directory());
        process::run(copy).ok();
        clone.append_conf("port", clone.port());
        for (cluster, word) in [(&primary, "good"), (&clone, "evil")] {
            cluster.start();
            same_traffic(cluster, word);
        }
        go_ahead(&primary);
        clone.kill();
        // both are on timeline 1
        let recovery = recovery(&clone, &primary).option("overwrite", "any_cluster");
        match rule {
            Some(rule) => {
                let report = rebuild(&recovery, &clone, &primary, rule);
                assert!(report.text("/skip/common_to") < report.text("/skip/target/end"), "{}", report.0);
            }
            None => {
                let why = rebuilt_by_hash(&recovery, &clone, &primary);
                assert!(why.contains("has parted from the primary at"), "{why}");
            }
        }
    }
}

#[test]
fn a_target_whose_wal_was_reset_is_compared() {
    let stage = Stage::builder().primary(durable).filled(20).standby(Condition::Running).build();
    stage.primary.execute("INSERT INTO accounts (note) VALUES ('a transaction')");
    stage.target.wait_for_replay(&stage.primary);
    stage.target.kill();
    // it looks for a running server
    std::fs::remove_file(stage.target.directory().join("postmaster.pid")).expect("killed");
    let mut reset = stage.target.host().pg("pg_resetwal");
    reset.args(["-f", "-D"]).arg(stage.target.directory());
    process::run(reset).ok();
    workload::change_every(&mut stage.primary.connect(), 300);
    // its new checkpoint may be where the primary has not come yet
    let recovery = stage.recovery().option("overwrite", "any_cluster");
    let why = rebuilt_by_hash(&recovery, &stage.target, &stage.primary);
    assert!(why.contains("reset") || why.contains("checkpoint"), "{why}");
}

/// A database with pages that are older than all that happens later.
fn with_another_database(cluster: &Cluster) {
    each(&mut cluster.connect(), &["CREATE DATABASE other TEMPLATE second STRATEGY file_copy OID 60000"]);
    workload::change_every(&mut cluster.connect_to("postgres"), 900);
}

#[test]
fn a_database_that_was_made_again_with_the_same_number_is_another_one() {
    if server::major() < 15 {
        return;
    }
    let again = [
        "DROP DATABASE other",
        "CREATE DATABASE other TEMPLATE template0 STRATEGY file_copy OID 60000",
        "DROP DATABASE other",
        "CREATE DATABASE other TEMPLATE second STRATEGY file_copy OID 60000",
    ];
    for on_primary in [true, false] {
        let scratch = Scratch::new();
        let (old, new) = parted_with(&scratch, &[("wal_log_hints", "on")], with_another_database);
        let change = "UPDATE there SET i = i + 10000";
        if !on_primary {
            old.connect_to("second").batch_execute(change).expect(change);
            each(&mut old.connect(), &again);
        }
        old.execute("CHECKPOINT");
        old.kill();
        new.promote();
        new.execute("DELETE FROM bulk WHERE id = 7");
        if on_primary {
            new.connect_to("second").batch_execute(change).expect(change);
            each(&mut new.connect(), &again);
        }
        rebuild(&recovery(&old, &new), &old, &new, if on_primary { "H1" } else { "H2" });
        old.start();
        let there: i64 =
            old.connect_to("other").query_one("SELECT count(*) FROM there", &[]).expect("there").get(0);
        assert_eq!(there, 5000);
    }
}

/// As [`parted`], with something that both have.
pub(super) fn parted_with(
    scratch: &Scratch,
    settings: &[(&str, &str)],
    prepare: fn(&Cluster),
) -> (Cluster, Cluster) {
    let (old, new) = together(scratch, settings);
    prepare(&old);
    old.execute("CHECKPOINT");
    old.execute("INSERT INTO accounts (note) VALUES ('the last one together')");
    new.wait_for_replay(&old);
    cut_off(&old);
    (old, new)
}

#[test]
fn a_file_that_has_the_same_name_on_both_sides_by_chance_is_another_one() {
    let scratch = Scratch::new();
    let (old, new) = parted(&scratch, &[("wal_log_hints", "on")]);
    // after a crash both count on from where the last checkpoint says
    old.kill();
    new.promote();
    old.start();
    let make = |cluster: &Cluster, word: &str| {
        each(
            &mut cluster.connect(),
            &[
                &format!(
                    "CREATE TABLE mine AS SELECT i, repeat('{word}', 30) AS w FROM generate_series(1, 9000) i"
                ),
                "CREATE INDEX mine_i ON mine (i)",
                "CREATE SEQUENCE mine_n",
                "SELECT nextval('mine_n')",
            ],
        );
        cluster.get::<String>("SELECT pg_relation_filepath('mine')", &[])
    };
    assert_eq!(make(&old, "here"), make(&new, "then"), "not by chance then");
    old.kill();
    rebuild(&recovery(&old, &new), &old, &new, "H2");
}

#[test]
fn an_spgist_index_that_grew_on_the_target_can_be_written_afterwards() {
    let scratch = Scratch::new();
    let (old, new) = parted_with(&scratch, &[("wal_log_hints", "on")], |old| {
        let sql =
            "CREATE TABLE places AS SELECT point(random(), random()) AS p FROM generate_series(1, 3000);
                   CREATE INDEX ON places USING spgist (p)";
        old.execute(sql);
    });
    // its first page remembers pages that the primary does not have
    old.execute("INSERT INTO places SELECT point(random(), random()) FROM generate_series(1, 30000)");
    old.stop(Stop::Fast);
    promote_and_change(&new);
    rebuild(&recovery(&old, &new), &old, &new, "H2");
    old.start();
    old.promote();
    old.execute("INSERT INTO places SELECT point(random(), random()) FROM generate_series(1, 5000)");
    let count = |sql: &str| old.get::<i64>(sql, &[]);
    assert_eq!(count("SELECT count(*) FROM places"), 8000);
    assert_eq!(count("SELECT count(*) FROM places WHERE p <@ box '((0,0),(1,1))'"), 8000);
}

#[test]
fn a_copy_that_was_interrupted_or_never_started_is_compared() {
    let stage = Stage::builder().primary(durable).filled(40).standby(Condition::Killed).build();
    workload::change_every(&mut stage.primary.connect(), 3);
    let recovery = stage.recovery().option("skip_unchanged", "on");
    let running = Running::start(&stage.primary, &recovery.clone().option("max_rate", 4096), "");
    running.wait_for_bytes(&stage.primary, 1 << 20);
    running.cancel();
    running.finish_within(Duration::from_secs(30)).expect_err("canceled");
    let again = recovery.run_when_let_in(&stage.primary);
    assert_eq!(again.text("/skip/rule"), "hash", "{}", again.0);
    let why = rebuilt_by_hash(&stage.recovery(), &stage.target, &stage.primary);
    assert!(why.contains("backup_label"), "{why}");
}

#[test]
fn a_prepared_transaction_that_ended_otherwise_on_the_target() {
    let scratch = Scratch::new();
    let place =
        durable(Cluster::place(&scratch, &Host::here(), "first")).with("max_prepared_transactions", 5);
    let first = place.with("wal_log_hints", "on").into_primary();
    workload::fill(&first, 20);
    let [heir, ahead] =
        ["heir", "ahead"].map(|name| Cluster::standby_by_basebackup(&first, &Host::here(), name));
    first.execute("BEGIN; INSERT INTO accounts (note) SELECT 'prepared' FROM generate_series(1, 300); PREPARE TRANSACTION 'p'");
    heir.wait_for_replay(&first);
    heir.append_conf("primary_conninfo", "");
    heir.reload();
    first
        .execute("SELECT pg_terminate_backend(pid) FROM pg_stat_replication WHERE application_name = 'heir'");
    first.execute("ROLLBACK PREPARED 'p'");
    ahead.wait_for_replay(&first);
    // the hint that its rows never were
    ahead.execute("SELECT count(*) FROM accounts");
    ahead.execute("CHECKPOINT");
    first.kill();
    heir.promote();
    heir.execute("COMMIT PREPARED 'p'");
    ahead.kill();
    let why = rebuilt_by_hash(&recovery(&ahead, &heir), &ahead, &heir);
    assert!(why.contains("a server in recovery does not log hint bits"), "{why}");
    ahead.start();
    assert_eq!(ahead.get::<i64>("SELECT count(*) FROM accounts WHERE note = 'prepared'", &[]), 300);
}

#[test]
fn a_promotion_at_the_end_of_a_segment() {
    for archive in ["off", "on"] {
        let scratch = Scratch::new();
        let place =
            durable(Cluster::place(&scratch, &Host::here(), "old")).initdb_argument("--wal-segsize=1");
        let place = place
            .with("archive_mode", archive)
            .with("archive_command", "true")
            .with("wal_keep_size", "256MB");
        let old = place.into_primary();
        workload::fill(&old, 20);
        let new = Cluster::standby_by_basebackup(&old, &Host::here(), "new");
        old.execute("INSERT INTO accounts (note) VALUES ('a transaction')");
        old.execute("SELECT pg_switch_wal()");
        new.wait_for_what_is_flushed(&old);
        old.kill();
        promote_and_change(&new);
        let report = rebuild(&recovery(&old, &new), &old, &new, "H0");
        assert_eq!(report.number("/source/timeline"), 2, "{}", report.0);
    }
}
