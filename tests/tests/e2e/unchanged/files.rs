//! Files that are not what the other side has under the same name.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;

use pgpool_recovery_e2e::cluster::Stop;
use pgpool_recovery_e2e::stage::{Condition, Stage};
use pgpool_recovery_e2e::{Cluster, Scratch, process, server, workload};

use super::failover::recovery;
use super::scenarios::parted_with;
use super::{durable, each, rebuild, rebuilt_by_hash};

/// Everything that gives a relation another file.
fn rewrites() -> Vec<&'static str> {
    let mut statements = vec![
        "BEGIN; CREATE TABLE made AS SELECT generate_series(1, 500) AS i; TRUNCATE made;
         INSERT INTO made SELECT generate_series(1, 3000); COMMIT",
        "VACUUM FULL r0",
        "CLUSTER r1 USING r1_pkey",
        "REINDEX TABLE CONCURRENTLY r2",
        "ALTER TABLE r3 SET UNLOGGED",
        "ALTER TABLE r4 SET UNLOGGED",
        "ALTER TABLE r4 SET LOGGED",
        "ALTER TABLE r5 ALTER i TYPE bigint",
        "TRUNCATE r6",
        "INSERT INTO r6 SELECT i, 'again' FROM generate_series(1, 2000) i",
    ];
    if server::major() >= 15 {
        statements.extend([
            "CREATE TABLESPACE apart LOCATION ''",
            "ALTER TABLE r7 SET TABLESPACE apart",
            "ALTER TABLE r0 SET TABLESPACE apart",
            "ALTER TABLE r0 SET TABLESPACE pg_default",
        ]);
    }
    statements
}

fn settings() -> Vec<(&'static str, &'static str)> {
    let mut settings = vec![("wal_log_hints", "on")];
    if server::major() >= 15 {
        settings.push(("allow_in_place_tablespaces", "on"));
    }
    settings
}

fn with_tables_to_rewrite(cluster: &Cluster) {
    let mut client = cluster.connect();
    for n in 0..8 {
        let sql = format!(
            "CREATE TABLE r{n} (i integer PRIMARY KEY, word text);
             INSERT INTO r{n} SELECT i, repeat('{n}', 50) FROM generate_series(1, 4000) i;
             DELETE FROM r{n} WHERE i % 3 = 0"
        );
        client.batch_execute(&sql).expect(&sql);
    }
}

#[test]
fn relations_that_got_other_files_on_the_primary() {
    let scratch = Scratch::new();
    let (old, new) = parted_with(&scratch, &settings(), with_tables_to_rewrite);
    old.execute("CHECKPOINT");
    old.kill();
    new.promote();
    each(&mut new.connect(), &rewrites());
    rebuild(&recovery(&old, &new), &old, &new, "H1");
}

/// Both give out the same numbers, to different relations.
#[test]
fn relations_that_got_other_files_on_both_sides() {
    let scratch = Scratch::new();
    let (old, new) = parted_with(&scratch, &settings(), with_tables_to_rewrite);
    old.kill();
    new.promote();
    old.start();
    each(&mut new.connect(), &rewrites());
    let mut others = rewrites();
    // what is set up first must come first; the rest of it in another order
    others[1..7].reverse();
    others.swap(4, 5);
    each(&mut old.connect(), &others);
    old.kill();
    rebuild(&recovery(&old, &new), &old, &new, "H2");
}

/// A table and an index, and of a subtransaction that is rolled back another table.
fn make_files(client: &mut postgres::Client, word: &str) -> [String; 2] {
    let table = format!("SELECT i, repeat('{word}', 20) AS w FROM generate_series(1, 9000) i");
    each(
        client,
        &[
            "BEGIN",
            "SAVEPOINT a",
            &format!("CREATE TABLE rolled_back AS {table}"),
            "ROLLBACK TO a",
            &format!("CREATE TABLE {word} AS {table}"),
            &format!("CREATE INDEX {word}_i ON {word} (i)"),
        ],
    );
    ["", "_i"].map(|suffix| {
        let sql = format!("SELECT pg_relation_filepath('{word}{suffix}')");
        client.query_one(&sql, &[]).expect("a path").get(0)
    })
}

/// Leaves files of a transaction that a crash has ended: nothing removes them.
fn crash_with_new_files(cluster: &Cluster, word: &str) -> [String; 2] {
    let mut open = cluster.connect();
    let paths = make_files(&mut open, word);
    cluster.execute("CHECKPOINT");
    cluster.kill();
    drop(open);
    cluster.start();
    assert!(paths.iter().all(|path| cluster.has(path)), "{paths:?} are gone");
    paths
}

fn commit_new_files(cluster: &Cluster, word: &str) -> [String; 2] {
    let mut client = cluster.connect();
    let paths = make_files(&mut client, word);
    each(&mut client, &["COMMIT"]);
    paths
}

/// Under the same names: what a crash has left on one side is a table on the other, and on both sides there is what a crash
/// has left before they parted.
#[test]
fn files_that_crashes_have_left_on_both_sides() {
    let scratch = Scratch::new();
    let (old, new) = parted_with(&scratch, &[("wal_log_hints", "on")], |old| {
        crash_with_new_files(old, "common");
    });
    // after a crash both count on from where the last checkpoint says
    old.kill();
    new.promote();
    old.start();
    let left = crash_with_new_files(&old, "here");
    assert_eq!(left, commit_new_files(&new, "there"), "not by chance then");
    new.execute("CHECKPOINT");
    new.kill();
    new.start();
    let left = crash_with_new_files(&new, "here");
    assert_eq!(left, commit_new_files(&old, "there"), "not by chance then");
    old.kill();
    rebuild(&recovery(&old, &new), &old, &new, "H2");
}

/// Damages a page where its position and header do not tell.
fn damage(path: &Path, page: u64) {
    let file = OpenOptions::new().write(true).open(path).expect("a relation's file");
    file.write_all_at(b"damage", page * 8192 + 5000).expect("written");
}

#[test]
fn files_of_the_target_that_are_missing_or_of_another_size_or_kind() {
    type Spoil = fn(&Path);
    fn resize(path: &Path, by: i64) {
        let file = OpenOptions::new().write(true).open(path).expect("a relation's file");
        let length = file.metadata().expect("a file").len();
        file.set_len(length.checked_add_signed(by).expect("positive")).expect("another length");
    }
    const SPOILS: [Spoil; 7] = [
        |path| fs::remove_file(path).expect("removed"),
        |path| resize(path, -3 * 8192),
        |path| resize(path, 5 * 8192),
        |path| {
            resize(path, -100);
            damage(path, 1);
        },
        |path| {
            let other = path.with_file_name("another_name");
            fs::hard_link(path, &other).expect("a second name");
            damage(path, 1);
        },
        |path| File::create(path).map(drop).expect("emptied"),
        |path| {
            fs::copy(path, path.with_extension("1")).map(drop).expect("a segment too many");
        },
    ];
    let stage = Stage::builder().primary(durable).filled(20).standby(Condition::Running).build();
    let (primary, target) = (&stage.primary, &stage.target);
    let mut client = primary.connect();
    let paths: Vec<String> = (0..SPOILS.len())
        .map(|n| {
            let sql = format!(
                "CREATE TABLE s{n} AS SELECT i, repeat('s', 100) AS w FROM generate_series(1, 3000) i;
                 VACUUM s{n}"
            );
            for sql in sql.split(';') {
                client.batch_execute(sql).expect(sql);
            }
            client
                .query_one("SELECT pg_relation_filepath($1::text::regclass)", &[&format!("s{n}")])
                .expect("a path")
                .get(0)
        })
        .collect();
    drop(client);
    // so that no WAL that is read names them
    begin_the_range_and_stop(target, primary);
    for (path, spoil) in paths.iter().zip(SPOILS) {
        spoil(&target.directory().join(path));
    }
    workload::change_every(&mut primary.connect(), 500);
    let report = rebuild(&stage.recovery(), target, primary, "H0");
    // one is empty, one is three pages shorter
    assert!(report.number("/skip/bytes/tail") >= 20 * 8192, "{}", report.0);
    assert!(report.number("/skip/bytes/limit") == 0, "{}", report.0);
}

/// What was changed before this is in no WAL that a rebuild reads; a transaction tells whose WAL it is.
fn begin_the_range_and_stop(target: &Cluster, primary: &Cluster) {
    primary.execute("CHECKPOINT");
    target.wait_for_replay(primary);
    target.execute("CHECKPOINT");
    primary.execute("INSERT INTO accounts (note) VALUES ('a transaction')");
    target.wait_for_replay(primary);
    target.stop(Stop::Fast);
}

#[test]
fn a_tablespace_that_was_moved_to_an_old_copy() {
    let scratch = Scratch::new();
    let stage = Stage::on(&scratch).primary(durable).filled(20).build();
    let (primary, target) = (&stage.primary, &stage.target);
    let [theirs, ours, another, old_copy] =
        ["theirs", "ours", "another", "old-copy"].map(|name| scratch.mkdir(name));
    let mapped = |to: &Path| format!("{}={}", theirs.display(), to.display());
    primary.execute(&format!("CREATE TABLESPACE far LOCATION '{}'", theirs.display()));
    primary.execute("CREATE TABLE there TABLESPACE far AS SELECT i, repeat('a', 200) AS w FROM generate_series(1, 9000) i");
    let recovery = |to: &Path| stage.recovery().option("tablespace_mapping", mapped(to));
    recovery(&ours).option("start", true).run(primary);
    target.wait_for_replay(primary);
    target.stop(Stop::Fast);
    let copy = |from: &Path, to: &Path| {
        let mut copy = std::process::Command::new("cp");
        copy.arg("-a").arg(from.join(".")).arg(to);
        process::run(copy).ok();
    };
    copy(&ours, &old_copy);
    target.start();
    // both change it together, and long before the target goes away
    primary.execute("UPDATE there SET w = repeat('b', 200)");
    begin_the_range_and_stop(target, primary);
    let oid: String = primary.get("SELECT oid::text FROM pg_tablespace WHERE spcname = 'far'", &[]);
    let link = target.directory().join("pg_tblspc").join(oid);
    let move_to = |place: &Path| {
        fs::remove_file(&link).expect("a link");
        symlink(place, &link).expect("a link");
    };
    move_to(&old_copy);
    recovery(&ours).option("skip_unchanged", "on").fail(primary).expect("55000").says("is in use");
    // what the link leads to says nothing about another directory
    let why = rebuilt_by_hash(&recovery(&another), target, primary);
    assert!(why.contains("a tablespace of the target was moved"), "{why}");
    // and if the old copy is asked for, its pages contradict the proof
    primary.start();
    target.start();
    primary.execute("INSERT INTO accounts (note) VALUES ('a transaction')");
    target.wait_for_replay(primary);
    target.stop(Stop::Fast);
    move_to(&old_copy);
    let why = rebuilt_by_hash(&recovery(&old_copy), target, primary);
    assert!(why.contains("no WAL says so"), "{why}");
}
