//! Hint bits that reach the disk without WAL.

use std::fs;

use pgpool_recovery_e2e::{Cluster, Host, Scratch, compare, wait, workload};

use super::failover::{change_alone, cut_off, recovery, together};
use super::{durable, each, rebuild, rebuilt_by_hash};

/// Logging hints does not log those of a page that was written since the last checkpoint: the range must go back to there, and
/// not only to where the histories part.
#[test]
fn a_hint_on_a_page_that_was_changed_since_the_last_common_checkpoint() {
    let scratch = Scratch::new();
    let (old, new) = together(&scratch, &[("wal_log_hints", "on")]);
    let mut open = old.connect();
    each(
        &mut open,
        &["BEGIN", "INSERT INTO accounts (note) SELECT 'undecided' FROM generate_series(1, 300)"],
    );
    new.wait_for_replay(&old);
    cut_off(&old);
    each(&mut open, &["COMMIT"]);
    // which sets the hint on pages that no WAL names from here on
    old.execute("SELECT count(*) FROM accounts");
    old.execute("CHECKPOINT");
    old.kill();
    new.promote();
    new.execute("DELETE FROM bulk WHERE id = 7");
    rebuild(&recovery(&old, &new), &old, &new, "H2");
    old.start();
    assert_eq!(old.get::<i64>("SELECT count(*) FROM accounts WHERE note = 'undecided'", &[]), 0);
}

/// Until its first own checkpoint is complete, a promoted server logs hints only on pages that are older than the last
/// checkpoint it has replayed.
#[test]
fn a_standby_whose_first_own_checkpoint_was_not_complete_when_they_parted() {
    let scratch = Scratch::new();
    let first = durable(Cluster::place(&scratch, &Host::here(), "first"))
        .with("wal_log_hints", "on")
        .with("checkpoint_timeout", "1h")
        .into_primary();
    workload::fill(&first, 20);
    let old = Cluster::standby_by_basebackup(&first, &Host::here(), "old");
    let new = Cluster::standby_by_basebackup(&old, &Host::here(), "new");
    // the checkpoint after a promotion takes its time over so many pages
    workload::change_every(&mut first.connect(), 2);
    old.wait_for_replay(&first);
    first.kill();
    old.promote();
    old.execute("INSERT INTO accounts (note) VALUES ('a transaction')");
    new.wait_for_replay(&old);
    new.append_conf("primary_conninfo", "");
    new.reload();
    assert_eq!(old.control("Latest checkpoint's TimeLineID"), "1", "it is complete already");
    change_alone(&old);
    assert_eq!(old.control("Latest checkpoint's TimeLineID"), "2");
    old.kill();
    new.promote();
    let recovery = recovery(&old, &new).option("overwrite", "any_cluster");
    let why = rebuilt_by_hash(&recovery, &old, &new);
    assert!(why.contains("no checkpoint of its own before that"), "{why}");
}

/// Whether a table's page is marked as visible to all (PD_ALL_VISIBLE).
fn is_all_visible(page: &[u8]) -> bool {
    page[10] & 4 != 0
}

/// Whether a row on a table's page is marked as committed (HEAP_XMIN_COMMITTED), or as frozen, which is that and another bit: from 16 on
/// VACUUM freezes a page if a hint has had it logged.
fn has_hints(page: &[u8]) -> bool {
    let number = |at: usize| usize::from(u16::from_le_bytes([page[at], page[at + 1]]));
    let mut pointers = (24..number(12)).step_by(4);
    pointers.any(|pointer| number((number(pointer) & 0x7FFF) + 20) & 0x0100 != 0)
}

/// What its primary has logged is no sign of what it logs itself: a restartpoint writes the hints of a page that replay has
/// changed before the redo point, and no WAL behind that names the page.
#[test]
fn a_standby_that_was_ahead_and_whose_restartpoint_has_written_hints() {
    // if the page is marked as visible to all, WAL names it, but with hints not logged its LSN stays
    for (checksums, is_vacuumed) in [("--data-checksums", false), ("--data-checksums", true), ("", true)] {
        let scratch = Scratch::new();
        let place = durable(Cluster::place(&scratch, &Host::here(), "first"));
        let place = place.with("checkpoint_timeout", "1h").with("bgwriter_lru_maxpages", 0);
        let place = if checksums.is_empty() { place } else { place.initdb_argument(checksums) };
        let first = place.into_primary();
        workload::fill(&first, 5);
        let [heir, ahead] =
            ["heir", "ahead"].map(|name| Cluster::standby_by_basebackup(&first, &Host::here(), name));
        first.execute("UPDATE bulk SET filler = 'before' WHERE id < 100");
        let mut open = first.connect();
        let insert = "INSERT INTO accounts (note) SELECT 'undecided' FROM generate_series(1, 300)";
        each(&mut open, &["BEGIN", insert]);
        first.execute("CHECKPOINT");
        first.execute("DELETE FROM bulk WHERE id = 1000");
        heir.wait_for_replay(&first);
        heir.append_conf("primary_conninfo", "");
        heir.reload();
        wait::until_true("the receiver to end", wait::PATIENCE, || {
            heir.get::<i64>("SELECT count(*) FROM pg_stat_wal_receiver", &[]) == 0
        });
        each(&mut open, &["COMMIT"]);
        drop(open);
        // images of pages of which nothing but hints has changed
        first.execute("SELECT count(*) FROM bulk");
        if is_vacuumed {
            first.execute("VACUUM accounts");
        }
        // replay flushes WAL for it: a standby sets a hint only if this and the commits next to it are flushed
        first.execute("DROP TABLE fleeting");
        ahead.wait_for_what_is_flushed(&first);
        ahead.execute("SELECT count(*) FROM accounts");
        ahead.execute("CHECKPOINT");
        first.kill();
        ahead.kill();
        let path: String = heir.get("SELECT pg_relation_filepath('accounts')", &[]);
        let file = fs::read(ahead.directory().join(path)).expect("the table");
        let page = file.chunks(8192).next_back().expect("a page");
        assert_eq!((is_all_visible(page), has_hints(page)), (is_vacuumed, true), "no hint on the disk");
        heir.promote();
        heir.execute("DELETE FROM bulk WHERE id = 7");
        let recovery = recovery(&ahead, &heir).option("skip_unchanged", "on").option("start", true);
        let report = recovery.run(&heir);
        ahead.wait_for_replay(&heir);
        let count = |sql: &str| ahead.get::<i64>(sql, &[]);
        // comparing pages would not tell: it leaves hints out
        assert_eq!(count("SELECT count(*) FROM accounts WHERE note = 'undecided'"), 0, "{}", report.0);
        assert_eq!(count("SELECT count(id) FROM accounts WHERE id > 1000"), 0, "by the index");
        compare::stop_and_compare(&heir, &ahead).assert_none();
        let why = report.at("/skip/rejected").to_string();
        assert!(why.contains("a server in recovery does not log hint bits"), "{}", report.0);
    }
}
