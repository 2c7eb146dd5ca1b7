//! What lies in the primary.

use std::fmt::Write as _;
use std::fs::File;

use pgpool_recovery_e2e::{Cluster, Scratch, account};

use crate::interrupt::{Outcome, Stop, check};
use crate::stage::{Place, Stage};
use crate::tool;

/// Rows of pgbench_accounts on a page that is full.
pub(crate) const ROWS_OF_A_FULL_PAGE: u32 = 61;

/// Kilobytes of the rows of one unit of pgbench's scale if their pages are full, and of their index.
const KILOBYTES_PER_SCALE: (u32, u32) = (12_800, 2_200);

/// A primary with so many megabytes of pgbench data, at rest.
pub(crate) fn pgbench_stage(
    scratch: Scratch,
    place: Place,
    megabytes: u32,
    fill_factor: u32,
) -> Outcome<Stage> {
    let stage = Stage::new(scratch, place);
    pgbench_tables(&stage.primary, megabytes, fill_factor)?;
    Ok(stage)
}

/// Fills a cluster with pgbench's tables and brings them to rest.
pub(crate) fn pgbench_tables(primary: &Cluster, megabytes: u32, fill_factor: u32) -> Outcome<()> {
    let scale = scale(megabytes, fill_factor).to_string();
    pgbench(primary, &["-i", "-q", "-s", &scale, "-F", &fill_factor.to_string()])?;
    settle(primary);
    Ok(())
}

/// pgbench's scale for so many megabytes.
pub(crate) fn scale(megabytes: u32, fill_factor: u32) -> u32 {
    let (rows, index) = KILOBYTES_PER_SCALE;
    (megabytes * 1000 / (rows * 100 / fill_factor + index)).max(1)
}

/// How many rows of pgbench_accounts lie on a page.
pub(crate) const fn rows_of_a_page(fill_factor: u32) -> u32 {
    ROWS_OF_A_FULL_PAGE * fill_factor / 100
}

/// Runs pgbench on a cluster.
pub(crate) fn pgbench(cluster: &Cluster, arguments: &[&str]) -> Outcome<String> {
    let mut command = cluster.host().pg("pgbench");
    command.arg("-h").arg(cluster.scratch().sockets()).args(["-p", &cluster.port().to_string()]);
    command.args(["-U", "postgres"]).args(arguments).arg("postgres");
    tool::run(command, None)
}

/// After this no reader sets a hint bit any more, and nothing is left to be written.
pub(crate) fn settle(primary: &Cluster) {
    for database in ["postgres", "template1"] {
        primary.connect_to(database).batch_execute("VACUUM FREEZE").expect("VACUUM");
    }
    primary.execute("CHECKPOINT");
}

/// Adds tables of one page each, without index or TOAST table.
pub(crate) fn one_page_tables(primary: &Cluster, from: u32, to: u32) -> Outcome<()> {
    let mut client = primary.connect();
    client.batch_execute("SET synchronous_commit = off").expect("SET");
    let mut next = from;
    while next < to {
        check()?;
        // Each table is locked until its transaction ends.
        let end = (next + 500).min(to);
        let mut sql = String::new();
        for number in next..end {
            write!(sql, "CREATE TABLE one_page_{number} (i) AS SELECT {number};").expect("a String takes it");
        }
        client.batch_execute(&sql).expect("new tables");
        next = end;
    }
    // Not the tables: a visibility map would give each of them a second file.
    let sql = "SELECT string_agg(oid::regclass::text, ', ') FROM pg_class
        WHERE relnamespace = 'pg_catalog'::regnamespace AND relkind = 'r'";
    let catalogs: String = client.query_one(sql, &[]).expect(sql).get(0);
    client.batch_execute(&format!("VACUUM FREEZE {catalogs}")).expect("VACUUM");
    client.batch_execute("CHECKPOINT").expect("CHECKPOINT");
    Ok(())
}

/// Adds files that look like those of tables of one page. The server knows nothing of them, and a recovery copies them: to make
/// as many tables would take hours.
pub(crate) fn files_like_tables(primary: &Cluster, count: u32) -> Outcome<()> {
    const FIRST: u32 = 1_000_000_000;
    let sql = "SELECT oid::text FROM pg_database WHERE datname = 'postgres'";
    let database: String = primary.connect().query_one(sql, &[]).expect(sql).get(0);
    let directory = primary.directory().join("base").join(database);
    for number in FIRST..FIRST + count {
        check()?;
        let path = directory.join(number.to_string());
        File::create(&path)
            .and_then(|file| file.set_len(8192))
            .map_err(|error| Stop::Failed(format!("{}: {error}", path.display())))?;
        account::give(&path);
    }
    Ok(())
}
