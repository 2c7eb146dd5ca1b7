//! Whether a rebuilt standby is right, looked at outside of the timed section.

use std::time::{Duration, Instant};

use pgpool_recovery_e2e::cluster::Stop as StopMode;
use pgpool_recovery_e2e::{Cluster, compare, wait};

use crate::interrupt::{Outcome, failed};
use crate::stage::Stage;
use crate::tree;

/// Rows and hash sum of every table looked at.
pub(crate) type Fingerprint = Vec<(String, i64, i64)>;

/// Megabytes of tables that queries read, unless all of them are asked for.
const SAMPLE: u64 = 150;

/// What our engine leaves in a directory that is not finished.
const INCOMPLETE: &str = "pgpool_recovery.incomplete";

/// Starts the target, and insists that it streams from the primary, replays all of its WAL, and holds the
/// same rows and, if the primary is at rest, the same bytes. The target is stopped afterwards. Returns how long it took
/// from the start until all WAL was replayed.
pub(crate) fn check(stage: &Stage) -> Outcome<Duration> {
    let (primary, target) = (&stage.primary, &stage.target);
    if target.has(INCOMPLETE) {
        return failed("the target is marked as incomplete");
    }
    let start = Instant::now();
    // Some contenders start it themselves.
    if target.postmaster().is_none() {
        stage.give_target_its_port();
        let started = target.try_start();
        if !started.status.success() {
            return failed(format!("the standby does not start: {}\n{}", started.stderr, target.log()));
        }
    }
    wait::until_true("the standby to stream", wait::PATIENCE, || streams(primary));
    target.wait_for_replay(primary);
    let caught_up = start.elapsed();
    if !target.in_recovery() {
        return failed("the target is no standby");
    }
    compare_rows(stage)?;
    target.stop(StopMode::Fast);
    // The walsender notices a moment later; until then its slot cannot be dropped.
    wait::until_true("the end of the walsender", Duration::from_secs(10), || !streams(primary));
    stage.drop_slots();
    if stage.at_rest {
        compare_bytes(stage)?;
    }
    Ok(caught_up)
}

fn streams(primary: &Cluster) -> bool {
    primary.get("SELECT count(*) > 0 FROM pg_stat_replication WHERE state = 'streaming'", &[])
}

fn compare_rows(stage: &Stage) -> Outcome<()> {
    let megabytes = tree::relations(stage.primary.directory()).map_or(0, |files| files.values().sum::<u64>());
    let megabytes = megabytes / 1_000_000;
    let whole = stage.all_rows || megabytes <= SAMPLE;
    let percent = if whole { 100 } else { u32::try_from(SAMPLE * 100 / megabytes).unwrap_or(0).max(1) };
    let mut expected = stage.expected.borrow_mut();
    let expected = expected.entry(percent).or_insert_with(|| fingerprint(&stage.primary, percent));
    let found = fingerprint(&stage.target, percent);
    if found == *expected {
        return Ok(());
    }
    let pairs = expected.iter().zip(&found).filter(|(a, b)| a != b);
    failed(format!(
        "the standby holds other rows than the primary (table, rows, hash; primary and standby):\n{:?}\n\
         {} and {} entries",
        pairs.take(5).collect::<Vec<_>>(),
        expected.len(),
        found.len()
    ))
}

fn fingerprint(cluster: &Cluster, percent: u32) -> Fingerprint {
    let mut client = cluster.connect();
    let sql = "SELECT c.relname::text FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace
        AND c.relkind = 'r' AND (c.relname LIKE 'pgbench%' OR c.relname LIKE 'one_page_%7') ORDER BY 1 LIMIT 200";
    let tables: Vec<String> = client.query(sql, &[]).expect(sql).iter().map(|row| row.get(0)).collect();
    let mut found: Fingerprint = tables
        .into_iter()
        .map(|table| {
            // A standby is a physical copy, so the same blocks hold the same rows.
            let sql = format!(
                "SELECT count(*), coalesce(sum(hashtext(t::text)), 0)::bigint
                 FROM {table} t TABLESAMPLE SYSTEM ({percent}) REPEATABLE (1)"
            );
            let row = client.query_one(&sql, &[]).expect(&sql);
            (table, row.get(0), row.get(1))
        })
        .collect();
    let sql = "SELECT count(*), sum(hashtext(relname::text))::bigint FROM pg_class";
    let row = client.query_one(sql, &[]).expect(sql);
    found.push(("pg_class".to_owned(), row.get(0), row.get(1)));
    found
}

fn compare_bytes(stage: &Stage) -> Outcome<()> {
    // What the primary still has in memory.
    stage.primary.execute("CHECKPOINT");
    let (one, other) = (stage.primary.directory(), stage.target.directory());
    let differing = tree::relations(one).and_then(|files| {
        let mut differing = tree::differing(&files, one, other)?;
        let more = tree::relations(other)?;
        differing.extend(more.into_keys().filter(|name| !files.contains_key(name)));
        Ok(differing)
    });
    let differing = match differing {
        Ok(differing) if differing.is_empty() => return Ok(()),
        Ok(differing) => differing,
        Err(error) => return failed(format!("the two data directories cannot be compared: {error}")),
    };
    // Hint bits say nothing; the harness knows them.
    let mut faults = compare::directories(one, other).faults;
    faults.retain(|fault| fault.starts_with("base/") || fault.starts_with("global/"));
    if faults.is_empty() {
        return Ok(());
    }
    failed(format!("{} files differ from the primary's:\n{}", differing.len(), faults.join("\n")))
}
