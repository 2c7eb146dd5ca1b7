//! What sessions do in a history: tables with indexes of every method, and everything that changes their files.

use pgpool_recovery_e2e::rng::Rng;
use pgpool_recovery_e2e::{Cluster, server};
use postgres::Client;
use postgres::error::SqlState;

/// Tables of the same shape, in database `postgres`.
const TABLES: usize = 4;
const ROWS: usize = 1500;

/// Makes them, and what else the histories play with.
pub(super) fn prepare(cluster: &Cluster, rng: &mut Rng) {
    let mut client = cluster.connect();
    let mut run = |sql: &str| client.batch_execute(sql).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    if server::has_contrib() {
        run("CREATE EXTENSION amcheck; CREATE EXTENSION bloom");
    }
    for n in 0..TABLES {
        let fill = 50 + 10 * rng.below(6);
        run(&format!(
            "CREATE TABLE t{n} (id integer PRIMARY KEY, k integer, s text, a integer[], p point, big text)
                 WITH (fillfactor = {fill});
             ALTER TABLE t{n} ALTER big SET STORAGE EXTERNAL;
             CREATE INDEX t{n}_k ON t{n} (k);
             CREATE INDEX t{n}_hash ON t{n} USING hash (s);
             CREATE INDEX t{n}_gin ON t{n} USING gin (a) WITH (fastupdate = {});
             CREATE INDEX t{n}_gist ON t{n} USING gist (p);
             CREATE INDEX t{n}_spgist ON t{n} USING spgist (p);
             CREATE INDEX t{n}_words ON t{n} USING spgist (s);
             CREATE INDEX t{n}_brin ON t{n} USING brin (k) WITH (pages_per_range = 4)",
            rng.percent(60)
        ));
        if server::has_contrib() {
            run(&format!("CREATE INDEX t{n}_bloom ON t{n} USING bloom (k)"));
        }
        run(&insert(n, 1, ROWS));
    }
    run("CREATE SEQUENCE numbers;
         CREATE TABLE bulk (id integer, filler text);
         ALTER TABLE bulk ALTER filler SET STORAGE PLAIN;
         INSERT INTO bulk SELECT i, md5(i::text) || repeat('x', 968) FROM generate_series(1, 4000) i;
         CREATE INDEX bulk_id ON bulk (id);
         SELECT lo_from_bytea(0, convert_to(repeat('l', 9000), 'UTF8')) FROM generate_series(1, 5)");
    if rng.percent(50) {
        run("VACUUM");
    }
    run("CREATE DATABASE second");
    let sql = "CREATE TABLE there (i integer PRIMARY KEY, filler text);
               INSERT INTO there SELECT i, repeat('z', 100) FROM generate_series(1, 3000) i";
    cluster.connect_to("second").batch_execute(sql).expect(sql);
}

fn insert(n: usize, from: usize, rows: usize) -> String {
    format!(
        "INSERT INTO t{n} SELECT i, (random() * 1000)::integer, md5(i::text) || repeat('s', i % 60),
             ARRAY[i % 7, i % 101, (random() * 500)::integer], point(random(), random()),
             CASE WHEN i % 20 = 0 THEN repeat(md5(random()::text), 100) END
         FROM generate_series({from}, {}) i ON CONFLICT DO NOTHING",
        from + rows - 1
    )
}

/// Statements for one session in one of the databases.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) database: &'static str,
    pub(super) statements: Vec<String>,
}

impl Work {
    fn here(statements: impl IntoIterator<Item = String>) -> Self {
        Self { database: "postgres", statements: statements.into_iter().collect() }
    }

    /// Does it. That two sessions meet, or that something is not there, is part of the play.
    pub(super) fn run(&self, cluster: &Cluster, is_asynchronous: bool) {
        let Ok(mut client) = cluster.config().dbname(self.database).connect(postgres::NoTls) else {
            assert!(self.database != "postgres", "{} does not let in: {}", cluster.name(), cluster.log());
            return;
        };
        let asynchronous = if is_asynchronous { "off" } else { "local" };
        let sql = format!(
            "SET lock_timeout = '200ms'; SET statement_timeout = '5s'; SET client_min_messages = error;
             SET synchronous_commit = {asynchronous}"
        );
        client.batch_execute(&sql).expect("settings");
        for sql in &self.statements {
            if !perform(&mut client, sql) {
                return;
            }
        }
    }
}

/// Whether it went well.
fn perform(client: &mut Client, sql: &str) -> bool {
    let Err(error) = client.batch_execute(sql) else { return true };
    let allowed = [
        SqlState::LOCK_NOT_AVAILABLE,
        SqlState::QUERY_CANCELED,
        SqlState::T_R_DEADLOCK_DETECTED,
        SqlState::T_R_SERIALIZATION_FAILURE,
        SqlState::OBJECT_IN_USE,
        SqlState::UNDEFINED_OBJECT,
        SqlState::UNDEFINED_TABLE,
        SqlState::UNDEFINED_DATABASE,
        SqlState::DUPLICATE_OBJECT,
        SqlState::DUPLICATE_TABLE,
        SqlState::DUPLICATE_DATABASE,
        SqlState::WRONG_OBJECT_TYPE,
        SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
        SqlState::READ_ONLY_SQL_TRANSACTION,
        SqlState::INVALID_TABLE_DEFINITION,
    ];
    let code = error.code().unwrap_or_else(|| panic!("{sql}: {error:?}"));
    assert!(allowed.contains(code), "{sql}: {error:?}");
    let _ = client.batch_execute("ROLLBACK");
    false
}

/// What changes data, of one or more transactions.
pub(super) fn change(rng: &mut Rng) -> Work {
    let n = rng.below(TABLES);
    let (from, length) = (1 + rng.below(2 * ROWS), 1 + rng.below(200));
    let to = from + length;
    let range = format!("id BETWEEN {from} AND {to}");
    let statements: Vec<String> = match rng.below(26) {
        0 | 1 => vec![format!("UPDATE t{n} SET k = k + 1 WHERE {range}")],
        2 | 3 => vec![format!("UPDATE t{n} SET s = md5(random()::text), p = point(random(), random()) WHERE {range}")],
        4 => vec![format!("UPDATE t{n} SET a = a || {}, big = repeat(md5(random()::text), 90) WHERE {range} AND id % 9 = 0", rng.below(600))],
        5..8 => vec![insert(n, from, length)],
        8 | 9 => vec![format!("DELETE FROM t{n} WHERE {range}")],
        10 => vec![format!("BEGIN; {}; ROLLBACK", insert(n, from, length))],
        11 => vec![format!(
            "BEGIN; UPDATE t{n} SET k = 0 WHERE {range}; SAVEPOINT a; DELETE FROM t{n} WHERE {range};
             CREATE TABLE gone AS SELECT generate_series(1, 2000) AS i; ROLLBACK TO a;
             SAVEPOINT b; UPDATE t{n} SET k = k - 3 WHERE {range}; RELEASE b; COMMIT"
        )],
        12 => vec![format!(
            "BEGIN; SELECT 1 FROM t{n} WHERE {range} FOR KEY SHARE; SAVEPOINT a;
             UPDATE t{n} SET k = k + 2 WHERE {range}; COMMIT"
        )],
        13 => vec![format!("UPDATE bulk SET filler = md5(random()::text) || repeat('y', 968) WHERE id BETWEEN {from} AND {}", from + 20)],
        14 => vec![format!("DELETE FROM bulk WHERE id BETWEEN {from} AND {}", from + 5)],
        15 => vec![format!("SELECT nextval('numbers') FROM generate_series(1, {})", 1 + rng.below(80))],
        16 => vec![format!("SELECT setval('numbers', {})", 1 + rng.below(9000))],
        17 => vec!["SELECT lo_from_bytea(0, convert_to(repeat('m', 20000), 'UTF8'))".into()],
        18 => vec!["SELECT lo_put(oid, 3000, convert_to(repeat(md5(random()::text), 40), 'UTF8')) FROM pg_largeobject_metadata ORDER BY random() LIMIT 2".into()],
        19 => vec!["SELECT lo_unlink(oid) FROM pg_largeobject_metadata ORDER BY random() LIMIT 1".into()],
        20 | 21 => {
            let statements = vec![
                format!("UPDATE there SET filler = repeat('w', 90) WHERE i % {} = 1", 20 + rng.below(400)),
                format!("DELETE FROM there WHERE i BETWEEN {from} AND {}", from + 10),
                format!("INSERT INTO there SELECT i, 'again' FROM generate_series({from}, {}) i ON CONFLICT DO NOTHING", from + 30),
            ];
            return Work { database: "second", statements };
        }
        22 => vec![format!("BEGIN; UPDATE t{n} SET k = 7, s = 'prepared' || id WHERE {range}; PREPARE TRANSACTION 'p{}'", rng.below(3))],
        23 => vec![format!("BEGIN; CREATE TABLE q{from} AS SELECT generate_series(1, 900) AS i; {}; PREPARE TRANSACTION 'p{}'", insert(n, to, 20), rng.below(3))],
        _ => vec![end_of_prepared(rng)],
    };
    Work::here(statements)
}

fn end_of_prepared(rng: &mut Rng) -> String {
    format!("{} PREPARED 'p{}'", rng.pick(&["COMMIT", "ROLLBACK"]), rng.below(3))
}

/// What changes files as a whole, maps and hints.
pub(super) fn upkeep(rng: &mut Rng) -> Work {
    let (n, m) = (rng.below(TABLES), rng.below(3));
    let indexes = ["pkey", "k", "hash", "gin", "gist", "spgist", "words", "brin"];
    let statements: Vec<String> = match rng.below(29) {
        0..3 => vec![format!("VACUUM t{n}")],
        3 => vec![format!("VACUUM (FREEZE) t{n}")],
        4 => vec![format!("VACUUM FULL t{n}")],
        5 => vec!["VACUUM (FREEZE) bulk".into()],
        6 => vec![format!("CLUSTER t{n} USING t{n}_{}", rng.pick(&["pkey", "k", "gist"]))],
        7 => vec![format!("REINDEX INDEX t{n}_{}", rng.pick(&indexes))],
        8 => vec![format!("REINDEX INDEX CONCURRENTLY t{n}_{}", rng.pick(&indexes))],
        9 => vec![format!("TRUNCATE t{n}"), insert(n, 1, 300)],
        // the end of the file is cut off
        10 | 11 => vec![
            format!("DELETE FROM t{n} WHERE ctid >= '({},0)'", 5 + rng.below(60)),
            format!("VACUUM t{n}"),
        ],
        12 => vec![format!(
            "BEGIN; CREATE TABLE n{m} (i integer); INSERT INTO n{m} SELECT generate_series(1, 500); TRUNCATE n{m}; INSERT INTO n{m} SELECT generate_series(1, 3000); COMMIT"
        )],
        13 => vec![format!("DROP TABLE IF EXISTS n{m}")],
        14 => {
            vec![format!("CREATE UNLOGGED TABLE IF NOT EXISTS n{m} AS SELECT generate_series(1, 2000) AS i")]
        }
        15 => vec![format!("ALTER TABLE n{m} SET {}", rng.pick(&["LOGGED", "UNLOGGED"]))],
        16 => vec![format!("ALTER TABLE t{n} ALTER k TYPE integer USING k + 1")],
        17 => vec![format!("SELECT gin_clean_pending_list('t{n}_gin')")],
        18 => vec![format!(
            "SELECT brin_desummarize_range('t{n}_brin', 0), brin_summarize_new_values('t{n}_brin')"
        )],
        19 => vec![create_database(rng, m)],
        20 | 21 => vec![format!("DROP DATABASE IF EXISTS d{m}"), create_database(rng, m)],
        22 => vec![format!("DROP DATABASE IF EXISTS d{m}")],
        23 => vec!["ANALYZE".into()],
        24 if server::major() >= 15 => vec![
            "SET allow_in_place_tablespaces = on".into(),
            format!("CREATE TABLESPACE s{m} LOCATION ''"),
            format!("CREATE TABLE in_s{m} TABLESPACE s{m} AS SELECT generate_series(1, 2000) AS i"),
        ],
        25 => vec![format!("ALTER TABLE t{n} SET TABLESPACE {}", rng.pick(&["s0", "s1", "pg_default"]))],
        26 => vec![format!("ALTER DATABASE d{m} SET TABLESPACE {}", rng.pick(&["s0", "pg_default"]))],
        _ => vec!["SELECT pg_switch_wal()".into()],
    };
    Work::here(statements)
}

fn create_database(rng: &mut Rng, m: usize) -> String {
    // a standby that is killed copies the files again as they are by then: with a template that changes it is another
    // database afterwards (a limit of PostgreSQL's, see createdb() in dbcommands.c)
    let copied = "template0";
    match server::major() {
        ..15 => format!("CREATE DATABASE d{m} TEMPLATE {copied}"),
        _ => {
            let (strategy, template) =
                *rng.pick(&[("wal_log", "template0"), ("wal_log", "second"), ("file_copy", copied)]);
            // the same number again, with other content
            let number = if rng.percent(50) { format!(" OID {}", 60_000 + m) } else { String::new() };
            format!("CREATE DATABASE d{m} TEMPLATE {template} STRATEGY {strategy}{number}")
        }
    }
}

/// What sets hints, kills entries of indexes and prunes.
pub(super) fn read(rng: &mut Rng) -> Work {
    let n = rng.below(TABLES);
    if rng.percent(15) {
        return Work { database: "second", statements: vec!["SELECT sum(length(filler)) FROM there".into()] };
    }
    let method = *rng.pick(&["SET enable_seqscan = off", "SET enable_indexscan = off"]);
    Work::here(match rng.below(4) {
        0 => vec!["SELECT count(*), sum(id) FROM bulk".into()],
        1 => vec![format!("SELECT count(*), sum(k) FROM t{n}")],
        _ => std::iter::once(method.into())
            .chain(conditions(n).map(|condition| select(n, &condition)))
            .collect(),
    })
}

/// One for each index, which it can find everything by.
fn conditions(n: usize) -> impl Iterator<Item = String> {
    let key = format!("s IN (SELECT s FROM t{n} WHERE id % 50 = 0)");
    ["id > 0", "k >= 0", "a @> ARRAY[3]", "p <@ box '((0,0),(0.5,1))'", "s ^@ 'a'", "k = 17"]
        .map(str::to_owned)
        .into_iter()
        .chain([key])
}

fn select(n: usize, condition: &str) -> String {
    format!("SELECT count(*), sum(id) FROM t{n} WHERE {condition}")
}

/// Insists that every index finds what the tables have.
#[track_caller]
pub(super) fn assert_sound(cluster: &Cluster) {
    let mut client = cluster.connect();
    let mut found = |sql: &str, settings: &str| {
        client.batch_execute(settings).expect("settings");
        let row = client.query_one(sql, &[]).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        (row.get::<_, i64>(0), row.get::<_, Option<i64>>(1))
    };
    for n in 0..TABLES {
        for sql in conditions(n).map(|condition| select(n, &condition)) {
            let by_table = found(
                &sql,
                "SET enable_indexscan = off; SET enable_bitmapscan = off; SET enable_indexonlyscan = off; SET enable_seqscan = on",
            );
            for (index, bitmap) in [("on", "off"), ("off", "on")] {
                let by_index = found(
                    &sql,
                    &format!(
                        "SET enable_seqscan = off; SET enable_indexscan = {index}; SET enable_indexonlyscan = {index}; SET enable_bitmapscan = {bitmap}"
                    ),
                );
                assert_eq!(by_table, by_index, "{}: {sql}", cluster.name());
            }
        }
    }
}

/// Writes into every index, after all.
#[track_caller]
pub(super) fn assert_can_be_written(cluster: &Cluster) {
    let mut client = cluster.connect();
    for n in 0..TABLES {
        for sql in [
            insert(n, 10_000, 1000),
            format!("UPDATE t{n} SET k = k + 1, p = point(random(), random())"),
            format!("VACUUM t{n}"),
        ] {
            client.batch_execute(&sql).unwrap_or_else(|error| panic!("{}: {sql}: {error:?}", cluster.name()));
        }
    }
    assert_sound(cluster);
}

/// Transactions that are prepared hold locks.
pub(super) fn end_all_prepared(cluster: &Cluster) {
    let mut client = cluster.connect();
    for row in client.query("SELECT gid FROM pg_prepared_xacts", &[]).expect("prepared transactions") {
        let sql = format!("ROLLBACK PREPARED '{}'", row.get::<_, String>(0));
        client.batch_execute(&sql).expect(&sql);
    }
}
