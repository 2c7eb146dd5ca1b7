//! Hint bits that reach the disk without WAL.

use pgpool_recovery_e2e::{Cluster, Host, Scratch, workload};

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
