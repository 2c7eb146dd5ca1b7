//! What a recovery must not leave on a primary.

use postgres::Client;

use crate::cluster::Cluster;

/// A session that was there before the trouble, to show that the server never restarted.
pub struct Witness {
    client: Client,
    started: String,
}

impl Witness {
    pub fn on(cluster: &Cluster) -> Self {
        let mut client = cluster.connect();
        client.batch_execute("CREATE TEMP TABLE witness AS SELECT 1 AS one").expect("a table");
        let started = started(&mut client);
        Self { client, started }
    }

    /// Whether its session is still served.
    pub fn is_served(&mut self) -> bool {
        self.client.simple_query("SELECT 1").is_ok()
    }

    #[track_caller]
    pub fn assert_served(&mut self) {
        let row = self.client.query_one("SELECT one FROM witness", &[]).expect("the old session is alive");
        assert_eq!(row.get::<_, i32>(0), 1);
        assert_eq!(started(&mut self.client), self.started, "the server restarted");
    }
}

fn started(client: &mut Client) -> String {
    let sql = "SELECT pg_postmaster_start_time()::text";
    client.query_one(sql, &[]).expect(sql).get(0)
}

/// Insists that no slot, no walsender, no progress row and no running backup is left.
#[track_caller]
pub fn assert_nothing_left(primary: &Cluster) {
    assert_eq!(slots(primary), Vec::<String>::new(), "slots");
    let sql = "SELECT count(*) FROM pg_stat_progress_basebackup";
    assert_eq!(primary.get::<i64>(sql, &[]), 0, "{sql}");
    assert_no_backup(primary);
}

/// The names of all slots.
pub fn slots(primary: &Cluster) -> Vec<String> {
    let sql = "SELECT slot_name::text FROM pg_replication_slots ORDER BY 1";
    let rows = primary.connect().query(sql, &[]).expect(sql);
    rows.iter().map(|row| row.get(0)).collect()
}

/// Insists that the server holds no backup to be in progress.
///
/// No view tells that. But as long as one is, every page's first change after a checkpoint writes the
/// whole page to WAL, whatever full_page_writes says (`runningBackups` in PostgreSQL's xlog.c). So the
/// cluster must run with `full_page_writes = off` (see [`quiet`]) and a small change must write little.
#[track_caller]
pub fn assert_no_backup(primary: &Cluster) {
    let mut client = primary.connect();
    let off: String = client.query_one("SHOW full_page_writes", &[]).expect("SHOW").get(0);
    assert_eq!(off, "off", "this check needs Cluster::with(\"full_page_writes\", \"off\")");
    for sql in [
        "DROP TABLE IF EXISTS full_page_probe",
        "CREATE TABLE full_page_probe AS SELECT i, repeat('x', 100) FROM generate_series(1, 50) i",
        "VACUUM FREEZE full_page_probe",
        "CHECKPOINT",
    ] {
        client.batch_execute(sql).expect(sql);
    }
    // Other sessions write too (autovacuum, the background writer's snapshots): one quiet try will do.
    let mut least = i64::MAX;
    for _ in 0..20 {
        let before = insert_lsn(&mut client);
        let sql = "UPDATE full_page_probe SET i = i WHERE i = 1";
        client.batch_execute(sql).expect(sql);
        least = least.min(insert_lsn(&mut client) - before);
        if least < 4096 {
            break;
        }
        client.batch_execute("CHECKPOINT").expect("CHECKPOINT");
    }
    assert!(least < 4096, "{least} bytes of WAL for one small change: a backup is still in progress");
    client.batch_execute("DROP TABLE full_page_probe").expect("DROP TABLE");
}

fn insert_lsn(client: &mut Client) -> i64 {
    let sql = "SELECT (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint";
    client.query_one(sql, &[]).expect(sql).get(0)
}

/// A place for a primary that [`assert_nothing_left`] can look at.
pub fn quiet(cluster: Cluster) -> Cluster {
    cluster.with("full_page_writes", "off").with("autovacuum", "off")
}
