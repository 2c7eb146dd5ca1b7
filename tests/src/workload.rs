//! Data to move.

use postgres::Client;

use crate::cluster::Cluster;
use crate::server;

/// A table of about `megabytes`, one row to 1 kB, and one of each kind of thing a cluster may hold:
/// an unlogged table, a second database, an index, a sequence, a large object.
pub fn fill(cluster: &Cluster, megabytes: u32) {
    let mut client = cluster.connect();
    let rows = megabytes * 900;
    client
        .batch_execute(&format!(
            "CREATE TABLE bulk (id integer, filler text);
             ALTER TABLE bulk ALTER filler SET STORAGE PLAIN;
             INSERT INTO bulk SELECT i, md5(i::text) || repeat('x', 968) FROM generate_series(1, {rows}) i;
             CREATE INDEX bulk_id ON bulk (id);
             CREATE TABLE accounts (id serial PRIMARY KEY, note text);
             INSERT INTO accounts (note) SELECT 'row ' || i FROM generate_series(1, 1000) i;
             CREATE UNLOGGED TABLE fleeting AS SELECT i FROM generate_series(1, 1000) i;
             SELECT lo_from_bytea(0, 'a large object');"
        ))
        .expect("the workload");
    if server::has_contrib() {
        client.batch_execute("CREATE EXTENSION IF NOT EXISTS amcheck").expect("amcheck");
    }
    client.batch_execute("CREATE DATABASE second").expect("a second database");
    let sql = "CREATE TABLE there AS SELECT i, repeat('z', 100) FROM generate_series(1, 5000) i";
    cluster.connect_to("second").batch_execute(sql).expect(sql);
}

/// Makes the cluster's files settle: no hint bit will be set and no page written by a reader any more.
pub fn settle(cluster: &Cluster) {
    for database in ["postgres", "template1", "second"] {
        if let Ok(mut client) = cluster.config().dbname(database).connect(postgres::NoTls) {
            client.batch_execute("VACUUM FREEZE").expect("VACUUM");
        }
    }
    cluster.execute("CHECKPOINT");
}

/// Rewrites about every n-th row in place.
pub fn change_every(client: &mut Client, n: u32) {
    let sql = format!("UPDATE bulk SET filler = md5(random()::text) || repeat('y', 968) WHERE id % {n} = 0");
    client.batch_execute(&sql).expect("an update");
}

/// The size of all databases in bytes.
pub fn size(cluster: &Cluster) -> u64 {
    let bytes: i64 = cluster.get("SELECT sum(pg_database_size(oid))::bigint FROM pg_database", &[]);
    bytes.try_into().expect("a size")
}
