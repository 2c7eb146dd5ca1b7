//! What cannot be found on the primary, or not be named, is not taken for what was dropped: the standby's copy stays.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::Path;

use pgpool_recovery_e2e::account;
use pgpool_recovery_e2e::mount::Mounted;
use pgpool_recovery_e2e::snapshot::Snapshot;
use serde_json::json;

use super::obstacles::{Hosts, give_back, write_bytes};

/// The check has this in a bad row, the dry run and the recovery end with it, and neither the target nor what lies in `place` has
/// changed.
#[track_caller]
fn assert_lost(hosts: &Hosts, row: &str, sqlstate: &str, words: &[&str], place: &Path) {
    for &transport in hosts.transports {
        let paths = [hosts.target.directory(), place];
        let before = paths.map(Snapshot::of);
        let rows = hosts.check(transport);
        let (ok, said, hint) = &rows[row];
        assert!(!ok && !hint.is_empty(), "{transport:?}: {rows:#?}");
        for word in words {
            assert!(said.contains(word), "{transport:?}: no {word}: {said}");
        }
        for dry_run in [true, false] {
            let error = hosts.recovery(transport).option("dry_run", dry_run).fail(&hosts.primary);
            assert!(!error.hint.is_empty() && !error.detail.is_empty(), "{transport:?}: {error:?}");
            let error = error.expect(sqlstate);
            for word in words {
                error.clone().says(word);
            }
        }
        paths.iter().zip(before).for_each(|(path, before)| before.assert_unchanged(path));
    }
}

/// An empty directory, as a mount point is when nothing is mounted there.
fn unmounted(hosts: &Hosts, path: &Path) -> Mounted {
    Mounted::of(&hosts.scratch, &hosts.scratch.mkdir("nothing"), path)
}

#[test]
fn a_tablespace_that_is_not_mounted_on_the_primary() {
    let mut hosts = Hosts::new();
    let (space, place) = hosts.mapped_tablespace();
    hosts.assert_works();
    hosts.primary.execute("CHECKPOINT");
    let mounted = unmounted(&hosts, &space);
    assert_lost(&hosts, "tablespaces", "58P01", &["missing on the primary", "pg_tblspc"], &place);
    drop(mounted);
    // nor is there a mount point
    let elsewhere = hosts.scratch.join("elsewhere");
    fs::rename(&space, &elsewhere).expect("moved");
    assert_lost(&hosts, "tablespaces", "58P01", &["leads nowhere", "pg_tblspc"], &place);
    fs::rename(&elsewhere, &space).expect("moved");
    hosts.assert_works();
    hosts.primary.execute("DROP TABLE there");
    hosts.primary.execute("CHECKPOINT");
    hosts.primary.execute("DROP TABLESPACE far");
    hosts.assert_works();
}

#[test]
fn a_database_that_is_not_mounted_on_the_primary() {
    let mut hosts = Hosts::new();
    hosts.primary.execute("CREATE DATABASE other");
    hosts.assert_works();
    hosts.primary.execute("CHECKPOINT");
    let oid: u32 = hosts.primary.get("SELECT oid FROM pg_database WHERE datname = 'other'", &[]);
    let name = format!("base/{oid}");
    let (directory, elsewhere) = (hosts.primary.directory().join(&name), hosts.scratch.join("elsewhere"));
    fs::rename(&directory, &elsewhere).expect("moved");
    symlink("/nowhere/unmounted", &directory).expect("a link");
    assert_lost(&hosts, "primary_files", "58P01", &["leads nowhere", &name], hosts.target.directory());
    fs::remove_file(&directory).expect("removed");
    fs::create_dir(&directory).expect("a mount point");
    give_back(&directory, 0o700);
    // each waits for a command that may be dropping it
    let both = hosts.transports;
    hosts.transports = &both[..1];
    let words = ["are missing on the primary", &format!("database {oid}")];
    assert_lost(&hosts, "primary_files", "58P01", &words, hosts.target.directory());
    hosts.transports = both;
    fs::remove_dir(&directory).expect("removed");
    fs::rename(&elsewhere, &directory).expect("moved");
    hosts.assert_works();
    hosts.primary.execute("DROP DATABASE other");
    hosts.assert_works();
}

#[test]
fn a_tablespace_whose_location_is_not_utf8() {
    let mut hosts = Hosts::new();
    let (space, place) = (hosts.scratch.join(OsStr::from_bytes(b"t\xe9")), hosts.scratch.mkdir("place"));
    fs::create_dir(&space).expect("made");
    give_back(&space, 0o700);
    hosts.primary.execute("CREATE DATABASE bytes ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0");
    let mut bytes = hosts.primary.connect_to("bytes");
    let sql = format!("CREATE TABLESPACE far LOCATION E'{}/t\\351'", hosts.scratch.path().display());
    bytes.batch_execute(&sql).expect("a tablespace");
    bytes
        .batch_execute("CREATE TABLE there TABLESPACE far AS SELECT generate_series(1, 1000) AS i")
        .expect("a table");
    // what would be found if the byte was replaced
    let shown = hosts.scratch.path().join("t\u{fffd}");
    hosts.options.insert("tablespace_mapping", json!(format!("{}={}", shown.display(), place.display())));
    assert_lost(&hosts, "tablespaces", "0A000", &["not UTF-8", "t\\xE9"], &place);
    bytes.batch_execute("DROP TABLE there").expect("dropped");
    bytes.batch_execute("CHECKPOINT").expect("a checkpoint");
    bytes.batch_execute("DROP TABLESPACE far").expect("dropped");
    hosts.assert_works();
}

#[test]
fn a_file_of_the_standbys_own_whose_name_is_not_utf8() {
    let hosts = Hosts::new();
    let (own, main) = (hosts.at("").join(OsStr::from_bytes(b"own-\xe9.conf")), hosts.at("postgresql.conf"));
    write_bytes(&own, b"work_mem = '7MB'\n");
    let before = fs::read(&main).expect("its configuration");
    write_bytes(&main, &[&before[..], b"\ninclude 'own-\xe9.conf'\n"].concat());
    hosts.assert_refused("target_identity", "55000", &["own-\\xE9.conf", "UTF-8"]);
    assert!(own.exists());
    // a directory that is kept keeps what it holds, whatever that is called
    let directory = hosts.at("conf.d");
    fs::create_dir(&directory).expect("made");
    account::give(&directory);
    let within = directory.join(OsStr::from_bytes(b"own-\xe9.conf"));
    fs::rename(&own, &within).expect("moved");
    write_bytes(&main, &[&before[..], b"\ninclude_dir 'conf.d'\n"].concat());
    hosts.assert_works();
    assert_eq!(fs::read(&within).expect("kept"), b"work_mem = '7MB'\n");
}

#[test]
fn a_configuration_of_the_primary_that_leads_nowhere() {
    let hosts = Hosts::new();
    hosts.assert_works();
    for directory in [hosts.target.directory(), hosts.primary.directory()] {
        fs::remove_file(directory.join("postgresql.conf")).expect("removed");
    }
    let link = hosts.primary.directory().join("postgresql.conf");
    symlink("/nowhere/postgresql.conf", &link).expect("a link");
    let place = hosts.target.directory().to_owned();
    assert_lost(&hosts, "configuration", "55000", &["would have no postgresql.conf"], &place);
}
