//! A run begins only if it can end: what is mounted in a target, read-only or in the place of a file, is looked at first.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use pgpool_recovery_e2e::ext4::Ext4;
use pgpool_recovery_e2e::mount::Mounted;
use pgpool_recovery_e2e::scratch::write_as_postgres;
use pgpool_recovery_e2e::snapshot::Snapshot;
use pgpool_recovery_e2e::{Cluster, Host, account, process};
use serde_json::json;

use super::obstacles::{Hosts, give_back, give_to_root, write_bytes};

#[test]
fn file_systems_that_are_mounted_read_only() {
    let mut hosts = Hosts::new();
    let read_only = |hosts: &Hosts| hosts.assert_refused("target_writable", "55000", &["read-only"]);
    // pg_wal leads there
    let volume = Ext4::empty(&hosts.scratch, &hosts.scratch.join("place"), 256);
    let (wal, elsewhere) = (hosts.at("pg_wal"), volume.path().join("wal"));
    let mut copy = Command::new("cp");
    copy.arg("-a").arg(&wal).arg(&elsewhere);
    process::run(copy).ok();
    fs::remove_dir_all(&wal).expect("removed");
    symlink(&elsewhere, &wal).expect("a link");
    volume.remount("ro");
    read_only(&hosts);
    volume.remount("rw");
    hosts.assert_works();

    // a tablespace lies there, new or known
    let space = hosts.scratch.mkdir("primary-space");
    hosts.primary.execute(&format!("CREATE TABLESPACE far LOCATION '{}'", space.display()));
    hosts.primary.execute("CREATE TABLE there TABLESPACE far AS SELECT generate_series(1, 10000)");
    let place = volume.path().join("far");
    fs::create_dir(&place).expect("made");
    give_back(&place, 0o700);
    hosts.options.insert("tablespace_mapping", json!(format!("{}={}", space.display(), place.display())));
    for _ in 0..2 {
        volume.remount("ro");
        read_only(&hosts);
        volume.remount("rw");
        hosts.assert_works();
    }

    // a directory of the cluster, and one that holds a file of the standby's own
    let database = Mounted::itself(&hosts.scratch, &hosts.database()).read_only();
    read_only(&hosts);
    drop(database);
    let certificates = hosts.at("certificates");
    fs::create_dir(&certificates).expect("made");
    account::give(&certificates);
    write_as_postgres(&certificates.join("own.key"), "a key", 0o600);
    write_as_postgres(&certificates.join("old.key"), "an old key", 0o600);
    hosts.options.insert("keep_files", json!("postgresql.conf, certificates/own.key"));
    let secret = Mounted::itself(&hosts.scratch, &certificates).read_only();
    read_only(&hosts);
    hosts.options.insert("keep_files", json!("postgresql.conf, certificates"));
    hosts.assert_works();
    drop(secret);
}

#[test]
fn files_that_are_mount_points() {
    const MOUNTED: &[&str] = &["is a mount point", "keep_files"];
    let mut hosts = Hosts::new();
    // its own configuration, as a container has it
    let configuration = hosts.at("postgresql.conf");
    let mounted = Mounted::itself(&hosts.scratch, &configuration);
    hosts.assert_refused("configuration", "55000", &["postgresql.conf", "mount point", "include_if_exists"]);
    let own = fs::read_to_string(&configuration).expect("its configuration");
    let include = format!("include_if_exists = '{}'\n", hosts.at("myrecovery.conf").display());
    write_bytes(&configuration, (own + &include).as_bytes());
    hosts.assert_works();
    drop(mounted);

    // a file of the plan: one that may be written is, the others are in the way
    let authentication = hosts.at("pg_hba.conf");
    let theirs = hosts.primary.directory().join("pg_hba.conf");
    let text = fs::read_to_string(&theirs).expect("the primary's");
    write_as_postgres(&theirs, &(text + "# changed\n"), 0o600);
    let mounted = Mounted::itself(&hosts.scratch, &authentication);
    hosts.assert_works();
    assert!(hosts.target.read("pg_hba.conf").ends_with("# changed\n"));
    give_to_root(&authentication, 0o644);
    hosts.assert_refused("target_writable", "55000", MOUNTED);
    let mounted = mounted.read_only();
    hosts.assert_refused("target_writable", "55000", MOUNTED);
    hosts.options.insert("keep_files", json!("postgresql.conf, pg_hba.conf"));
    hosts.assert_works();
    drop(mounted);
    give_back(&authentication, 0o600);
    let mounted = Mounted::itself(&hosts.scratch, &authentication).read_only();
    hosts.options.remove("keep_files");
    hosts.assert_refused("target_writable", "55000", MOUNTED);
    drop(mounted);

    // one that is made for the standby, and one that goes
    for name in ["postgresql.auto.conf", "surplus.conf"] {
        if !hosts.at(name).exists() {
            write_as_postgres(&hosts.at(name), "", 0o600);
        }
        let mounted = Mounted::itself(&hosts.scratch, &hosts.at(name));
        hosts.assert_refused("target_writable", "55000", MOUNTED);
        drop(mounted);
    }
    hosts.assert_works();
}

/// A volume that is mounted in the wrong data directory: a run empties pg_wal, and takes away what is strange in the others.
#[test]
fn directories_of_the_primary_that_are_mounted_in_the_target() {
    let hosts = Hosts::new();
    let own = |name: &str| hosts.primary.directory().join(name);
    hosts.assert_works();
    let segments = || {
        let entries = fs::read_dir(own("pg_wal")).expect("listed");
        entries.map(|entry| entry.expect("an entry").file_name()).collect::<BTreeSet<_>>()
    };
    let before = segments();
    let mounted = Mounted::of(&hosts.scratch, &own("pg_wal"), &hosts.at("pg_wal"));
    for &transport in hosts.transports {
        let rows = hosts.check(transport);
        for (row, words) in
            [("target_is_not_primary", "the primary's own"), ("target_wal", "another server uses")]
        {
            let (ok, said, _) = &rows[row];
            assert!(!ok && said.contains(words), "{row}: {said}");
        }
        for dry_run in [true, false] {
            let refused = hosts.recovery(transport).option("dry_run", dry_run).fail(&hosts.primary);
            refused.expect("55000").says("pg_wal").says("the primary's own").says("mounted");
        }
    }
    drop(mounted);
    assert_eq!(segments(), before);
    for name in ["base", "pg_xact", "base/1"] {
        let mounted = Mounted::of(&hosts.scratch, &own(name), &hosts.at(name));
        for &transport in hosts.transports {
            let (ok, said, _) = &hosts.check(transport)["target_tablespaces"];
            assert!(!ok && said.contains("the primary's own directory"), "{said}");
            for dry_run in [true, false] {
                let refused = hosts.recovery(transport).option("dry_run", dry_run).fail(&hosts.primary);
                refused.expect("55000").says("the primary's own directory").says(name).says("mount");
            }
        }
        drop(mounted);
    }
    hosts.primary.execute("CREATE TABLE after AS SELECT 1 AS i; CHECKPOINT");
    hosts.assert_works();
}

/// As deep as a mount may hide it: the directory of a database in a tablespace.
#[test]
fn a_database_in_a_tablespace_of_the_primary_that_is_mounted_in_the_target() {
    let mut hosts = Hosts::new();
    let (space, place) = hosts.mapped_tablespace();
    hosts.assert_works();
    let content: String = hosts
        .primary
        .get("SELECT pg_ls_dir('pg_tblspc/' || oid) FROM pg_tablespace WHERE spcname = 'far'", &[]);
    let database: u32 =
        hosts.primary.get("SELECT oid FROM pg_database WHERE datname = current_database()", &[]);
    let before = Snapshot::of(&space);
    for name in [content.clone(), format!("{content}/{database}")] {
        let mounted = Mounted::of(&hosts.scratch, &space.join(&name), &place.join(&name));
        for &transport in hosts.transports {
            let (ok, said, _) = &hosts.check(transport)["target_tablespaces"];
            assert!(!ok && said.contains("the primary's own directory"), "{said}");
            for dry_run in [true, false] {
                let refused = hosts.recovery(transport).option("dry_run", dry_run).fail(&hosts.primary);
                refused.expect("55000").says("the primary's own directory").says(&name).says("mount");
            }
        }
        drop(mounted);
    }
    before.assert_unchanged(&space);
    assert_eq!(hosts.primary.get::<i64>("SELECT count(*) FROM there", &[]), 10_000);
    hosts.assert_works();
}

/// Of a server of another system that runs here.
#[test]
fn directories_of_another_server_that_are_mounted_in_the_target() {
    let hosts = Hosts::new();
    hosts.assert_works();
    let third = Cluster::place(&hosts.scratch, &Host::here(), "third").init();
    third.start();
    third.execute("CREATE TABLE precious AS SELECT generate_series(1, 10000) AS i");
    third.execute("CHECKPOINT");
    let before = Snapshot::of(&third.directory().join("base"));
    for name in ["base", "base/1", "pg_xact"] {
        let mounted = Mounted::of(&hosts.scratch, &third.directory().join(name), &hosts.at(name));
        for &transport in hosts.transports {
            let (ok, said, hint) = &hosts.check(transport)["target_writable"];
            assert!(!ok && said.contains("another server uses") && hint.contains("mount"), "{said} {hint}");
            for dry_run in [true, false] {
                let refused = hosts.recovery(transport).option("dry_run", dry_run).fail(&hosts.primary);
                refused
                    .expect("55006")
                    .says("another server uses")
                    .says(name)
                    .says(third.dir())
                    .says("mount");
            }
        }
        drop(mounted);
    }
    before.assert_unchanged(&third.directory().join("base"));
    assert_eq!(third.get::<i64>("SELECT count(*) FROM precious", &[]), 10_000);
    hosts.assert_works();
}
