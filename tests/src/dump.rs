//! The logical content of a cluster, for comparing two of them.

use std::collections::BTreeMap;

use crate::cluster::Cluster;
use crate::{process, server};

/// `pg_dump` of every database plus the global objects, by database name ("" for the latter).
pub fn everything(cluster: &Cluster) -> BTreeMap<String, String> {
    let mut dumps = BTreeMap::new();
    let mut globals = cluster.host().pg("pg_dumpall");
    globals.arg("--globals-only");
    dumps.insert(String::new(), dump(cluster, globals));
    let rows = cluster.connect().query("SELECT datname::text FROM pg_database WHERE datallowconn", &[]);
    for row in rows.expect("the list of databases") {
        let database: String = row.get(0);
        let mut command = cluster.host().pg("pg_dump");
        // A standby cannot read unlogged tables.
        command.args(["--dbname", &database, "--no-unlogged-table-data"]);
        dumps.insert(database, dump(cluster, command));
    }
    dumps
}

fn dump(cluster: &Cluster, mut command: std::process::Command) -> String {
    command.arg("--host").arg(cluster.scratch().sockets());
    command.args(["--port", &cluster.port().to_string(), "--username", "postgres"]);
    process::run(command)
        .ok()
        .lines()
        // \restrict carries a random word in each dump. A standby knows a sequence as of its last WAL
        // record, which runs up to 32 values ahead (SEQ_LOG_VALS in PostgreSQL's sequence.c).
        .filter(|line| !line.starts_with("\\restrict") && !line.starts_with("\\unrestrict"))
        .filter(|line| !line.starts_with("SELECT pg_catalog.setval("))
        .map(|line| format!("{line}\n"))
        .collect()
}

/// Insists that both clusters hold the same data, naming the database and line that differ.
#[track_caller]
pub fn assert_equal(one: &Cluster, other: &Cluster) {
    let (a, b) = (everything(one), everything(other));
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>(), "other databases");
    for (database, text) in &a {
        let different = text.lines().zip(b[database].lines()).find(|(x, y)| x != y);
        assert!(different.is_none(), "database \"{database}\" differs: {different:?}");
        assert_eq!(text.len(), b[database].len(), "the dump of \"{database}\" is longer on one side");
    }
}

/// Runs `pg_amcheck` over everything; `amcheck` must be installed in the databases to check. PostgreSQL 13 has
/// no such program: there the B-tree indexes of database postgres are checked.
#[track_caller]
pub fn assert_amcheck_clean(cluster: &Cluster) {
    if !server::has_contrib() {
        eprintln!("this PostgreSQL came without amcheck");
        return;
    }
    if server::major() < 14 {
        cluster.execute(
            "SELECT bt_index_check(c.oid, true) FROM pg_class c JOIN pg_am a ON a.oid = c.relam
             WHERE a.amname = 'btree' AND c.relkind = 'i' AND c.relpersistence = 'p'",
        );
        return;
    }
    let mut command = cluster.host().pg("pg_amcheck");
    command.args(["--all", "--heapallindexed", "--no-strict-names"]);
    command.arg("--host").arg(cluster.scratch().sockets());
    command.args(["--port", &cluster.port().to_string(), "--username", "postgres"]);
    let finished = process::run(command);
    assert!(finished.status.success(), "pg_amcheck: {}{}", finished.stdout, finished.stderr);
}
