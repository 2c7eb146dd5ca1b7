//! A primary under heavy weather: transfers between accounts whose sum never changes, and objects of every kind
//! that come and go.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use postgres::{Client, NoTls};

use crate::cluster::Cluster;
use crate::rng::Rng;

const ACCOUNTS: usize = 2000;
const BALANCE: usize = 100;

/// Settings that a primary needs for the storm.
pub fn fit(cluster: Cluster) -> Cluster {
    cluster
        .with("max_prepared_transactions", 20)
        .with("allow_in_place_tablespaces", "on")
        .with("autovacuum_naptime", 1)
}

/// Makes the accounts and what else the storm plays with.
pub fn prepare(cluster: &Cluster) {
    cluster
        .connect()
        .batch_execute(&format!(
            "CREATE TABLE bank (id integer PRIMARY KEY, balance integer NOT NULL, filler text);
             INSERT INTO bank SELECT i, {BALANCE}, repeat('b', 200) FROM generate_series(1, {ACCOUNTS}) i;
             CREATE TABLE ledger (id bigserial PRIMARY KEY, delta integer NOT NULL);
             CREATE TABLE churned (id integer PRIMARY KEY, filler text);
             CREATE INDEX churned_filler ON churned (md5(filler));
             CREATE MATERIALIZED VIEW seen AS SELECT count(*) FROM churned"
        ))
        .expect("the storm's tables");
}

/// Insists on what every moment of the storm's history has in common.
#[track_caller]
pub fn assert_sound(cluster: &Cluster) {
    let sums = "SELECT (SELECT sum(balance) FROM bank)::bigint, (SELECT coalesce(sum(delta), 0) FROM ledger)::bigint";
    let row = cluster.connect().query_one(sums, &[]).expect(sums);
    assert_eq!(row.get::<_, i64>(0), (ACCOUNTS * BALANCE) as i64, "money was lost or made");
    assert_eq!(row.get::<_, i64>(1), 0, "half of a transfer");
}

/// The storm, until this value goes.
#[derive(Debug)]
pub struct Storm {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

impl Storm {
    /// Begins on a cluster.
    pub fn on(cluster: &Cluster, rng: &mut Rng) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let done = Arc::new(AtomicU64::new(0));
        let gusts: [fn(&mut Client, &mut Rng, u64); 4] = [transfer, transfer, churn, ddl];
        let threads = gusts.into_iter().zip(0..).map(|(gust, number)| {
            let (stop, done, mut rng) = (Arc::clone(&stop), Arc::clone(&done), rng.fork());
            let config = cluster.config();
            std::thread::spawn(move || {
                let Ok(mut client) = config.connect(NoTls) else { return };
                // no session waits for another for long
                run(&mut client, "SET lock_timeout = '2s'; SET statement_timeout = '20s'");
                while !stop.load(Ordering::Relaxed) && !client.is_closed() {
                    gust(&mut client, &mut rng, number);
                    done.fetch_add(1, Ordering::Relaxed);
                }
            })
        });
        let threads = threads.collect();
        Self { stop, done, threads }
    }

    /// How many statements went through so far.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }
}

impl Drop for Storm {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Any of these may fail: two that meet, an object that is not there any more. That is weather too.
fn run(client: &mut Client, sql: &str) {
    if client.batch_execute(sql).is_err() {
        let _ = client.batch_execute("ROLLBACK");
    }
}

fn transfer(client: &mut Client, rng: &mut Rng, number: u64) {
    let (from, to) = (1 + rng.below(ACCOUNTS), 1 + rng.below(ACCOUNTS));
    let name = format!("transfer-{number}");
    let prepare = format!("PREPARE TRANSACTION '{name}'");
    let (end, then) = match rng.below(20) {
        0 => ("ROLLBACK", None),
        1 => (prepare.as_str(), Some(format!("COMMIT PREPARED '{name}'"))),
        2 => (prepare.as_str(), Some(format!("ROLLBACK PREPARED '{name}'"))),
        _ => ("COMMIT", None),
    };
    // the smaller first, so that two of them do not wait for each other
    let (first, second, sign) = if from < to { (from, to, 1) } else { (to, from, -1) };
    run(
        client,
        &format!(
            "BEGIN; UPDATE bank SET balance = balance - {sign} WHERE id = {first};
             UPDATE bank SET balance = balance + {sign} WHERE id = {second};
             INSERT INTO ledger (delta) VALUES ({sign}), (0 - {sign}); {end}",
        ),
    );
    if let Some(then) = then {
        run(client, &then);
    }
}

fn churn(client: &mut Client, rng: &mut Rng, _: u64) {
    let (from, length) = (rng.below(20_000), rng.below(500));
    let to = from + length;
    let sql = match rng.below(4) {
        0 => format!("DELETE FROM churned WHERE id BETWEEN {from} AND {to}"),
        1 => format!("UPDATE churned SET filler = md5(random()::text) WHERE id BETWEEN {from} AND {to}"),
        _ => format!(
            "INSERT INTO churned SELECT i, repeat(md5(random()::text), 20) FROM generate_series({from}, {to}) i
             ON CONFLICT (id) DO UPDATE SET filler = excluded.filler"
        ),
    };
    run(client, &sql);
}

fn ddl(client: &mut Client, rng: &mut Rng, _: u64) {
    let n = rng.below(4);
    let sql: &[String] = &match rng.below(20) {
        0 => vec![format!(
            "CREATE TABLE t{n} AS SELECT i, repeat('t', 300) AS f FROM generate_series(1, 3000) i"
        )],
        1 => vec![format!("DROP TABLE IF EXISTS t{n}")],
        2 => vec![format!("TRUNCATE t{n}")],
        3 => vec!["VACUUM FULL churned".into()],
        4 => vec!["VACUUM (FREEZE) bank".into()],
        5 => vec!["REINDEX TABLE churned".into()],
        6 => vec!["REINDEX INDEX CONCURRENTLY churned_filler".into()],
        7 => vec!["CLUSTER churned USING churned_pkey".into()],
        8 => vec![format!("CREATE DATABASE d{n} STRATEGY wal_log TEMPLATE template0")],
        9 => vec![format!("CREATE DATABASE d{n} STRATEGY file_copy TEMPLATE template0")],
        10 => vec![format!("DROP DATABASE IF EXISTS d{n}")],
        11 => vec![format!("CREATE TABLESPACE s{n} LOCATION ''")],
        12 => vec![format!("DROP TABLE IF EXISTS in_s{n}"), format!("DROP TABLESPACE IF EXISTS s{n}")],
        13 => vec![format!("CREATE TABLE in_s{n} TABLESPACE s{n} AS SELECT generate_series(1, 2000) AS i")],
        14 => vec![format!("ALTER TABLE t{n} SET TABLESPACE s{n}")],
        15 => vec!["SELECT lo_from_bytea(0, convert_to(repeat('l', 50000), 'UTF8'))".into()],
        16 => vec!["SELECT lo_unlink(oid) FROM pg_largeobject_metadata ORDER BY random() LIMIT 3".into()],
        17 => {
            vec![format!("CREATE UNLOGGED TABLE IF NOT EXISTS u{n} AS SELECT generate_series(1, 1000) AS i")]
        }
        18 => vec!["REFRESH MATERIALIZED VIEW seen".into(), format!("ALTER TABLE u{n} SET LOGGED")],
        _ => vec!["CHECKPOINT".into(), "SELECT pg_switch_wal()".into()],
    };
    for sql in sql {
        run(client, sql);
    }
    std::thread::sleep(Duration::from_millis(rng.below(20) as u64));
}
