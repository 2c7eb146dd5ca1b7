//! Every record of a server's WAL, with every block that it names, is read as pg_waldump reads it.

use std::collections::BTreeMap;
use std::fs;

use pgdata::control_file::{ControlFile, PG_CONTROL};
use pgdata::wal::directory::Directory;
use pgdata::wal::reader::{End, Origin, Reader};
use pgdata::wal::record::{BlockReference, RelationFileLocator};
use pgdata::wal::special::Effect;
use pgdata::wal::{Lsn, segment_name};
use pgpool_recovery_e2e::cluster::Stop;
use pgpool_recovery_e2e::{Cluster, Scratch, process, server};

/// What is compared of a record.
#[derive(Debug, PartialEq, Eq)]
struct Said {
    length: u32,
    previous: Lsn,
    xid: u32,
    blocks: Vec<BlockReference>,
}

/// Everything that writes WAL in a way of its own.
const WORK: &str = "
    CREATE TABLE t (id integer PRIMARY KEY, text text, point point, array_ integer[]);
    CREATE INDEX t_hash ON t USING hash (id);
    CREATE INDEX t_gin ON t USING gin (array_);
    CREATE INDEX t_gist ON t USING gist (point);
    CREATE INDEX t_spgist ON t USING spgist (point);
    CREATE INDEX t_brin ON t USING brin (id);
    INSERT INTO t SELECT i, repeat(md5(i::text), i % 40), point(i, -i), ARRAY[i, i % 7] FROM generate_series(1, 5000) i;
    UPDATE t SET text = text || 'x' WHERE id % 3 = 0;
    DELETE FROM t WHERE id > 4000;
    SELECT pg_logical_emit_message(true, 'long', repeat('m', 3000000));
    SELECT pg_logical_emit_message(false, 'short', 'm');
    CREATE SEQUENCE s; SELECT nextval('s') FROM generate_series(1, 100);
    SELECT lo_from_bytea(0, 'large');";

/// What no transaction block takes.
const STATEMENTS: &[&str] = &[
    "VACUUM (FREEZE, ANALYZE) t",
    "CHECKPOINT",
    "UPDATE t SET text = 'y' WHERE id % 5 = 0",
    "REINDEX TABLE CONCURRENTLY t",
    "VACUUM FULL t",
    "SELECT pg_switch_wal()",
    "CREATE TABLE cut AS SELECT i FROM generate_series(1, 50000) i",
    "DELETE FROM cut WHERE i > 100",
    "VACUUM cut",
    "TRUNCATE t",
    "DROP TABLE cut",
    "CREATE DATABASE d",
    "DROP DATABASE d",
    "SELECT pg_create_restore_point('here')",
    // subtransactions, prepared transactions, and one that is rolled back
    "DO $$ BEGIN FOR i IN 1..200 LOOP
        BEGIN INSERT INTO t (id) VALUES (i); EXCEPTION WHEN OTHERS THEN NULL; END;
     END LOOP; END $$",
    "BEGIN",
    "CREATE TABLE prepared (i integer)",
    "PREPARE TRANSACTION 'p'",
    "COMMIT PREPARED 'p'",
    "BEGIN",
    "DROP TABLE prepared",
    "PREPARE TRANSACTION 'q'",
    "ROLLBACK PREPARED 'q'",
    "BEGIN",
    "CREATE TABLE gone AS SELECT 1",
    "ROLLBACK",
];

#[test]
fn a_server_with_wal_of_every_kind() {
    let compressions = match server::major() {
        13 | 14 => vec!["off", "on"],
        _ => vec!["off", "pglz", "lz4"],
    };
    for (number, compression) in compressions.into_iter().enumerate() {
        let scratch = Scratch::new();
        let cluster = Cluster::place(&scratch, &Default::default(), "server")
            .initdb_argument(["--wal-segsize=1", "--wal-segsize=16", "--data-checksums"][number])
            .with("wal_compression", compression)
            .with("wal_level", "logical")
            .with("max_prepared_transactions", 5)
            .with("wal_consistency_checking", if number == 0 { "all" } else { "" })
            .with("wal_keep_size", "1GB")
            .into_primary();
        cluster.execute(WORK);
        let mut client = cluster.connect();
        for statement in STATEMENTS {
            client.batch_execute(statement).expect(statement);
        }
        drop(client);
        // the end of a server that was killed, which nothing marks
        cluster.execute("INSERT INTO t SELECT i FROM generate_series(10000, 10100) i");
        if number == 0 {
            cluster.kill()
        } else {
            cluster.stop(Stop::Fast)
        };
        let (ours, end, effects) = read(&cluster);
        let (theirs, their_end) = dump(&cluster);
        assert!(theirs.len() > 5000, "{} records, ours {}, {end:?} {their_end}", theirs.len(), ours.len());
        for (start, said) in &theirs {
            assert_eq!(ours.get(start), Some(said), "{compression}: {start}");
        }
        assert_eq!(ours.len(), theirs.len(), "{compression}");
        assert_eq!(end.at, their_end, "{compression}: {}", end.why);
        assert!(effects > 20, "{effects} records have an effect");
    }
}

fn origin(cluster: &Cluster) -> Origin {
    let bytes = fs::read(cluster.directory().join(PG_CONTROL)).expect("pg_control");
    let control = ControlFile::parse(&bytes).expect("pg_control");
    Origin { system_identifier: control.system_identifier, segment_size: control.wal_segment_size }
}

/// The numbers of the oldest and of the newest segment.
fn segments(cluster: &Cluster) -> (u64, u64) {
    let size = u64::from(origin(cluster).segment_size);
    let names = fs::read_dir(cluster.directory().join("pg_wal")).expect("pg_wal");
    let names = names.map(|entry| entry.expect("an entry").file_name().into_string().expect("a name"));
    let names = names.filter(|name| name.len() == 24);
    let mut numbers: Vec<u64> = names
        .map(|name| {
            let half = |from: usize| u64::from_str_radix(&name[from..from + 8], 16).expect("digits");
            half(8) * ((1 << 32) / size) + half(16)
        })
        .collect();
    numbers.sort_unstable();
    (numbers[0], numbers[numbers.len() - 1])
}

fn read(cluster: &Cluster) -> (BTreeMap<Lsn, Said>, End, usize) {
    let origin = origin(cluster);
    let start = Lsn(segments(cluster).0 * u64::from(origin.segment_size));
    let directory = Directory::new(cluster.directory().join("pg_wal"), origin.segment_size, 1, &[]);
    let mut reader = Reader::new(directory, origin, start, Lsn(u64::MAX));
    reader.seek_from(start).expect("readable");
    let (mut records, mut effects) = (BTreeMap::new(), 0);
    while let Some(record) = reader.next_record().expect("readable") {
        effects += usize::from(record.effect != Effect::None);
        assert_ne!(record.effect, Effect::Unknown, "{}: {:?}", record.start, record.header);
        let said = Said {
            length: record.header.length,
            previous: record.header.previous,
            xid: record.header.xid,
            blocks: record.blocks.to_vec(),
        };
        records.insert(record.start, said);
    }
    let end = reader.end().cloned().expect("an end");
    (records, end, effects)
}

/// What pg_waldump says, and where it stops.
fn dump(cluster: &Cluster) -> (BTreeMap<Lsn, Said>, Lsn) {
    let size = origin(cluster).segment_size;
    let (first, _) = segments(cluster);
    let mut command = cluster.host().pg("pg_waldump");
    command.arg("--path").arg(cluster.directory().join("pg_wal")).arg(segment_name(1, first, size));
    let dumped = process::run(command);
    // one segment alone gives no end: it goes on as long as there are records
    let mut command = cluster.host().pg("pg_waldump");
    let start = Lsn(u64::from(size) * first);
    let first_record =
        dumped.stdout.lines().find_map(|line| field(line, "lsn: ")).unwrap_or_else(|| start.to_string());
    command.arg("--path").arg(cluster.directory().join("pg_wal")).arg("--start").arg(first_record);
    let dumped = process::run(command);
    let records = dumped.stdout.lines().filter_map(parse).collect();
    // "... invalid record length at 0/3F791698: expected at least 24, got 0"
    let position = |text: &str| text.split([':', ' ', '\n']).next()?.parse().ok();
    let end = dumped.stderr.rsplit(" at ").find_map(position);
    (records, end.unwrap_or_else(|| panic!("no end: {}", dumped.stderr)))
}

fn field(line: &str, name: &str) -> Option<String> {
    let (_, rest) = line.split_once(name)?;
    Some(rest.trim_start().split([',', ' ']).next()?.to_owned())
}

/// "rmgr: Heap  len (rec/tot):  54/  150, tx: 738, lsn: 0/01500028, prev 0/01500000, desc: ..., blkref #0: rel 1663/5/16384
/// fork vm blk 3 FPW"
fn parse(line: &str) -> Option<(Lsn, Said)> {
    let total = line.split_once('/')?.1.split_once('/')?.1.split_once(',')?.0;
    let blocks = line.split("blkref #").skip(1).map(|text| {
        let words: Vec<&str> = text.split_whitespace().collect();
        let numbers: Vec<u32> = words[2].split('/').map(|number| number.parse().expect(line)).collect();
        let after = |word: &str| words.iter().position(|found| *found == word).map(|at| words[at + 1]);
        let fork = match after("fork").map(|fork| fork.trim_end_matches(',')) {
            None | Some("main") => 0,
            Some("fsm") => 1,
            Some("vm") => 2,
            Some("init") => 3,
            Some(other) => panic!("fork {other}"),
        };
        let locator =
            RelationFileLocator { tablespace: numbers[0], database: numbers[1], relation: numbers[2] };
        let block = after("blk").expect(line).trim_matches(|c: char| !c.is_ascii_digit());
        BlockReference { locator, fork, block: block.parse().expect(line) }
    });
    let said = Said {
        length: total.trim().parse().ok()?,
        previous: field(line, "prev ")?.parse().ok()?,
        xid: field(line, "tx: ")?.parse().ok()?,
        blocks: blocks.collect(),
    };
    Some((field(line, "lsn: ")?.parse().ok()?, said))
}
