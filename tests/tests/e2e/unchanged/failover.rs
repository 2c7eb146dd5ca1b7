//! The old primary after a fail-over.

use pgpool_recovery_e2e::background::Running;
use pgpool_recovery_e2e::{Cluster, Host, Recovery, Scratch, Transport, by_both_transports, wait, workload};

use super::{durable, each, rebuild, rebuilt_by_hash};

/// A primary with other settings, and its standby, which has replayed everything.
pub(super) fn together(scratch: &Scratch, settings: &[(&str, &str)]) -> (Cluster, Cluster) {
    let place = durable(Cluster::place(scratch, &Host::here(), "primary"));
    let old = settings.iter().fold(place, |place, (name, value)| place.with(name, value)).into_primary();
    workload::fill(&old, 40);
    let new = Cluster::standby_by_basebackup(&old, &Host::here(), "standby");
    // a checkpoint of its own from which on hints are logged
    old.execute("CHECKPOINT");
    old.execute("UPDATE bulk SET filler = 'before' WHERE id < 500");
    new.wait_for_replay(&old);
    (old, new)
}

/// Standbys receive nothing from it any more.
pub(super) fn cut_off(primary: &Cluster) {
    primary.set_hba("local all all trust\nhost all all 0.0.0.0/0 trust\n");
    primary.reload();
    primary.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_replication");
}

/// The same, but the standby receives nothing any more.
pub(super) fn parted(scratch: &Scratch, settings: &[(&str, &str)]) -> (Cluster, Cluster) {
    let (old, new) = together(scratch, settings);
    cut_off(&old);
    (old, new)
}

/// What no standby has: rows, hints on pages that were written long before, dead index entries.
pub(super) fn change_alone(old: &Cluster) {
    let mut client = old.connect();
    workload::change_every(&mut client, 500);
    each(
        &mut client,
        &[
            "CREATE TABLE lost AS SELECT i FROM generate_series(1, 5000) i",
            "DELETE FROM accounts WHERE id < 100",
            "SELECT count(*) FROM bulk",
            "SET enable_seqscan = off",
            "SELECT count(*) FROM accounts WHERE id < 200",
            "CHECKPOINT",
            "DELETE FROM bulk WHERE id % 100 = 7",
            "SELECT count(*) FROM bulk",
        ],
    );
}

pub(super) fn promote_and_change(new: &Cluster) {
    new.promote();
    let mut client = new.connect();
    workload::change_every(&mut client, 700);
    each(&mut client, &["CREATE TABLE won AS SELECT i FROM generate_series(1, 5000) i", "VACUUM bulk"]);
}

pub(super) fn recovery(old: &Cluster, new: &Cluster) -> Recovery {
    Recovery::of(old, new).option("dest_port", old.port())
}

#[test]
fn a_killed_primary_that_has_logged_its_hints_is_rebuilt_in_place() {
    for settings in [[("wal_log_hints", "on")], [("full_page_writes", "off")]] {
        let scratch = Scratch::new();
        let settings = if settings[0].0 == "wal_log_hints" {
            settings.to_vec()
        } else {
            [&settings[..], &[("wal_log_hints", "on")]].concat()
        };
        let (old, new) = parted(&scratch, &settings);
        change_alone(&old);
        old.kill();
        promote_and_change(&new);
        let report = rebuild(&recovery(&old, &new), &old, &new, "H2");
        assert_eq!(report.number("/source/timeline"), 2);
    }
}

#[test]
fn a_primary_on_which_no_transaction_has_ended_needs_no_logged_hints() {
    let scratch = Scratch::new();
    let (old, new) = parted(&scratch, &[]);
    // fenced: a checkpoint, and pages that readers set hints on
    old.execute("SELECT count(*) FROM bulk");
    old.execute("CHECKPOINT");
    old.kill();
    promote_and_change(&new);
    rebuild(&recovery(&old, &new), &old, &new, "H1");
}

#[test]
fn a_primary_that_has_not_logged_its_hints_is_compared() {
    let scratch = Scratch::new();
    let (old, new) = parted(&scratch, &[]);
    change_alone(&old);
    old.kill();
    promote_and_change(&new);
    let why = rebuilt_by_hash(&recovery(&old, &new), &old, &new);
    assert!(why.contains("wal_log_hints and data checksums are off"), "{why}");
}

/// Pages of a table that are marked as visible to all, as they are on disk.
fn marks(cluster: &Cluster, path: &str) -> usize {
    let file = std::fs::read(cluster.directory().join(path)).expect("a table");
    file.chunks(8192).filter(|page| pgdata::page::is_all_visible(page)).count()
}

/// VACUUM marks pages on the primary, they reach the disk, and their WAL does not: no standby hears of it.
fn with_lost_marks(scratch: &Scratch) -> (Cluster, Cluster) {
    let settings = [
        ("full_page_writes", "off"),
        ("shared_buffers", "128kB"),
        ("wal_writer_delay", "10s"),
        ("autovacuum", "off"),
    ];
    let (old, new) = together(scratch, &settings);
    old.execute(
        "CREATE TABLE marked AS SELECT i, repeat('m', 900) AS filler FROM generate_series(1, 8000) i",
    );
    old.execute("SELECT count(*) FROM marked");
    new.wait_for_replay(&old);
    for cluster in [&old, &new] {
        cluster.execute("CHECKPOINT");
    }
    let path: String = old.get("SELECT pg_relation_filepath('marked')", &[]);
    // pages push each other out of the few buffers that VACUUM has, and nothing waits for a flush of WAL
    let slowly = "SET vacuum_cost_delay = '20ms'; SET vacuum_cost_limit = 100";
    let _vacuum = Running::start_statement(&old, slowly, "VACUUM marked".to_owned());
    wait::until_true("marks on disk", wait::PATIENCE, || marks(&old, &path) > 20);
    old.kill();
    new.promote();
    new.execute("CHECKPOINT");
    let (lost, known) = (marks(&old, &path), marks(&new, &path));
    assert!(lost > known, "the standby knows of {known} marks, and the primary had {lost}");
    (old, new)
}

#[test]
fn marks_of_vacuum_that_are_in_no_wal_do_not_outlive_a_change() {
    let scratch = Scratch::new();
    let (old, new) = with_lost_marks(&scratch);
    let why = rebuilt_by_hash(&recovery(&old, &new), &old, &new);
    assert!(why.contains("what VACUUM has marked"), "{why}");
}

/// The second time the old primary is a standby that was promoted.
fn there_and_back(transport: Transport) {
    let scratch = Scratch::new();
    let (first, second) = parted(&scratch, &[("wal_log_hints", "on")]);
    change_alone(&first);
    first.kill();
    promote_and_change(&second);
    if transport == Transport::Local {
        rebuild(&recovery(&first, &second), &first, &second, "H2");
    } else {
        let secret = pgpool_recovery_e2e::agent::secret(&scratch, "secret");
        let agent =
            pgpool_recovery_e2e::agent::Agent::start(&scratch, &Host::here(), &secret, &[first.directory()]);
        let recovery = recovery(&first, &second)
            .option("transport", "agent")
            .option("agent_port", agent.port())
            .option("secret_file", secret.to_str().expect("ASCII"));
        rebuild(&recovery, &first, &second, "H2");
    }
}

by_both_transports!(there_and_back);
