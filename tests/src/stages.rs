//! The two stages of native replication and snapshot isolation mode, and what must be the same on two nodes after them.

use postgres::{Client, Error};

use crate::cluster::Cluster;
use crate::host::Host;
use crate::recovery::SqlError;
use crate::scratch::Scratch;

pub const FIRST: &str = "pgpool_recovery_1st_stage_native";
pub const SECOND: &str = "pgpool_recovery_2nd_stage";

/// The databases with sequences.
const DATABASES: [&str; 2] = ["postgres", "second"];

/// A node of such a mode. Nodes on one host are told apart by their number.
pub fn node(scratch: &Scratch, name: &str) -> Cluster {
    Cluster::place(scratch, &Host::here(), name)
        .with("pgpool_recovery.application_name", "server%n")
        .with("pgpool_recovery.slot_name", "server%n")
        // its own transactions would be counted as those of clients
        .with("autovacuum", "off")
}

/// Calls a stage for node 1 as Pgpool-II calls it.
pub fn call(client: &mut Client, script: &str, node: &Cluster) -> Result<(), SqlError> {
    try_call(client, script, node).map_err(|error| SqlError::from(&error))
}

/// The same for a session that may not live to be told why.
pub fn try_call(client: &mut Client, script: &str, node: &Cluster) -> Result<(), Error> {
    let port = client.query_one("SHOW port", &[]).expect("the port").get::<_, String>(0);
    let sql = format!(
        "SELECT pgpool_recovery('{script}', 'localhost', '{}', '{port}', 1, '{}', 'localhost')",
        node.dir(),
        node.port()
    );
    client.simple_query(&sql).map(drop)
}

/// Sequences of every kind in two databases, of which WAL is ahead, and large objects.
pub fn make_sequences(main: &Cluster) {
    main.execute("CREATE DATABASE second");
    for database in DATABASES {
        main.connect_to(database)
            .batch_execute(
                "CREATE SCHEMA \"odd \"\" schema\";
                 CREATE SEQUENCE plain; CREATE SEQUENCE fresh; CREATE SEQUENCE cached CACHE 20;
                 CREATE SEQUENCE \"odd \"\" schema\".\"odd ' name\" INCREMENT -3;
                 CREATE SEQUENCE cycled MAXVALUE 5 CYCLE;
                 CREATE TABLE numbered (id bigint GENERATED ALWAYS AS IDENTITY, serial serial);
                 SELECT lo_from_bytea(900001, decode(repeat('ab', 5000), 'hex'))",
            )
            .expect("sequences");
    }
    use_sequences(main);
}

/// Takes values, so that WAL is ahead.
pub fn use_sequences(main: &Cluster) {
    for database in DATABASES {
        main.connect_to(database)
            .batch_execute(
                "SELECT nextval('plain'), nextval('cached');
                 SELECT nextval('\"odd \"\" schema\".\"odd '' name\"') FROM generate_series(1, 2);
                 SELECT nextval('cycled') FROM generate_series(1, 7);
                 INSERT INTO numbered DEFAULT VALUES",
            )
            .expect("values");
    }
}

/// Insists that two nodes have the same rows, large objects and sequences, and that each gives the same next values.
#[track_caller]
pub fn assert_same(main: &Cluster, node: &Cluster) {
    for database in DATABASES {
        let (mut main, mut node) = (main.connect_to(database), node.connect_to(database));
        let mut same = |sql: &str| {
            let told = |client: &mut Client| -> Vec<String> {
                let rows = client.query(sql, &[]).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
                rows.iter().map(|row| row.get::<_, Option<String>>(0).unwrap_or_default()).collect()
            };
            let (ours, theirs) = (told(&mut main), told(&mut node));
            assert_eq!(ours, theirs, "{database}: {sql}");
            ours
        };
        let large = same(
            "SELECT string_agg(loid || ' ' || pageno || ' ' || md5(data), ',' ORDER BY loid, pageno) FROM pg_largeobject",
        );
        assert!(large[0].contains("900001"), "{large:?}");
        let tables = same(
            "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables
             WHERE schemaname NOT IN ('pg_catalog', 'information_schema') ORDER BY 1",
        );
        for table in tables {
            same(&format!("SELECT string_agg(t::text, '|' ORDER BY t::text) FROM {table} AS t"));
        }
        let sequences = same("SELECT format('%I.%I', schemaname, sequencename) FROM pg_sequences ORDER BY 1");
        assert!(sequences.len() >= 7, "{sequences:?}");
        for sequence in sequences {
            same(&format!("SELECT last_value || ' ' || is_called FROM {sequence}"));
            let name = sequence.replace('\'', "''");
            // sessions of their own: both have to ask for more than one value, of a cached sequence as well
            same(&format!("SELECT string_agg(nextval('{name}')::text, ',') FROM generate_series(1, 3)"));
        }
    }
}
