//! What the server's summarizer (PostgreSQL 17 and later) lists of its WAL is what the WAL itself lists.

use std::fs;

use pgdata::control_file::{ControlFile, PG_CONTROL};
use pgdata::wal::Lsn;
use pgdata::wal::record::RelationFileLocator;
use pgpool_recovery_core::compare::wal_map::{BlockMap, Coverage, Lineage, Scope, Wal, summaries};
use pgpool_recovery_core::sys::cancel::Cancel;
use pgpool_recovery_e2e::cluster::Stop;
use pgpool_recovery_e2e::{Cluster, Host, Scratch, server, wait, workload};

/// What makes, cuts, rewrites and removes relations.
const WORK: &[&str] = &[
    "CREATE TABLE cut AS SELECT i, repeat('c', 100) AS w FROM generate_series(1, 20000) i",
    "CHECKPOINT",
    "DELETE FROM cut WHERE i > 1000",
    "VACUUM cut",
    "INSERT INTO cut SELECT i, repeat('d', 100) FROM generate_series(1, 5000) i",
    "UPDATE bulk SET filler = 'x' WHERE id % 30 = 0",
    "CREATE INDEX ON bulk USING hash (id)",
    "CHECKPOINT",
    "BEGIN; CREATE TABLE made AS SELECT generate_series(1, 500) AS i; TRUNCATE made; INSERT INTO made VALUES (1); COMMIT",
    "VACUUM FULL accounts",
    "CREATE DATABASE third TEMPLATE second STRATEGY file_copy",
    "CREATE DATABASE fourth TEMPLATE second STRATEGY wal_log",
    "DROP DATABASE third",
    "TRUNCATE made",
    "DROP TABLE fleeting",
    "CHECKPOINT",
];

#[test]
fn a_summary_lists_what_the_wal_lists() {
    if server::major() < 17 {
        eprintln!("PostgreSQL {} does not summarize its WAL", server::major());
        return;
    }
    let scratch = Scratch::new();
    let cluster = Cluster::place(&scratch, &Host::here(), "server")
        .with("summarize_wal", "on")
        .with("autovacuum", "off")
        .with("wal_keep_size", "1GB")
        .init();
    cluster.start();
    workload::fill(&cluster, 20);
    let mut client = cluster.connect();
    for sql in WORK {
        client.batch_execute(sql).expect(sql);
    }
    let ends = |what: &str| {
        let sql = format!("SELECT {what}(end_lsn - '0/0')::bigint FROM pg_available_wal_summaries()");
        cluster.get::<Option<i64>>(&sql, &[]).map(i64::unsigned_abs)
    };
    let redo: i64 = cluster.get("SELECT (redo_lsn - '0/0')::bigint FROM pg_control_checkpoint()", &[]);
    wait::until_true("the summaries", wait::PATIENCE, || ends("max") >= Some(redo.unsigned_abs()));
    let sql = "SELECT min(start_lsn - '0/0')::bigint FROM pg_available_wal_summaries()";
    let begin = Lsn(cluster.get::<i64>(sql, &[]).unsigned_abs());
    drop(client);
    let highest: i64 = cluster.get("SELECT max(oid)::bigint FROM pg_class", &[]);
    let databases: Vec<u32> = {
        let rows = cluster.connect().query("SELECT oid FROM pg_database", &[]).expect("databases");
        rows.iter().map(|row| row.get(0)).collect()
    };
    cluster.stop(Stop::Immediate);

    let bytes = fs::read(cluster.directory().join(PG_CONTROL)).expect("pg_control");
    let control = ControlFile::parse(&bytes).expect("pg_control");
    let (directory, lineage, cancel) =
        (cluster.directory().join("pg_wal"), Lineage::new(1, &[]), Cancel::new());
    let (mut summarized, mut coverage) = (BlockMap::default(), Coverage::default());
    let range = (begin, Lsn(u64::MAX));
    let of_summaries = directory.join(summaries::SUMMARIES);
    let found = summaries::read(&of_summaries, &lineage, range, &mut summarized, &mut coverage, &cancel);
    let found = found.expect("summaries");
    assert!(found.read >= 3 && found.unusable.is_empty(), "{found:?}");
    let end = coverage.first_hole(begin, Lsn(u64::MAX)).expect("an end");
    assert!(end.0 >= redo.unsigned_abs(), "summaries are missing");
    let of_wal = |limit: Lsn| {
        let mut map = BlockMap::default();
        let scope = Scope { from: begin, limit, digested: Lsn(0) };
        let wal = Wal::new(&directory, &control);
        let chain = wal.read_source(&lineage, scope, &mut map, &cancel).expect("WAL");
        assert!(chain.facts.end >= limit && chain.facts.malformed.is_none(), "{:?}", chain.facts);
        map
    };
    // reading begins with a page: what its records before the summaries name is left out
    let (all, before) = (of_wal(end), of_wal(begin));
    let (mut listed, mut unlisted) = (0, 0);
    for database in databases {
        assert_eq!(
            summarized.lists_database(1663, database),
            all.lists_database(1663, database),
            "database {database}"
        );
        // pg_type to pg_class, and all that are no catalogs
        for relation in (1247..1260).chain(16_384..u32::try_from(highest).expect("small") + 50) {
            let locator = RelationFileLocator { tablespace: 1663, database, relation };
            for block in 0..3000 {
                let is_listed = summarized.lists(locator, block);
                let by_wal = all.lists(locator, block);
                assert!(
                    is_listed == by_wal || (by_wal && before.lists(locator, block)),
                    "{locator:?}, block {block}: {is_listed} in summaries, {by_wal} in WAL"
                );
                *(if is_listed { &mut listed } else { &mut unlisted }) += 1;
            }
        }
    }
    assert!(listed > 1000 && unlisted > 1000, "{listed} listed, {unlisted} not");
}
