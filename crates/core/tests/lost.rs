//! What cannot be found on the primary was dropped only if what names it has gone as well.

mod fixture;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::Path;

use fixture::{Hosts, VERSION, once_unlocked, pages, transports};
use pgpool_recovery_core::error::{Error, Kind};
use pgpool_recovery_core::manifest::Side;
use pgpool_recovery_core::manifest::dropped::Directories;
use pgpool_recovery_core::manifest::exclude::Rules;
use pgpool_recovery_core::manifest::plan::{Plan, Tablespace};
use pgpool_recovery_core::manifest::scan::{Source, scan, tablespace_links, tablespace_paths};
use pgpool_recovery_core::sys::FileId;
use pgpool_recovery_core::sys::cancel::Cancel;
use pgpool_recovery_core::wire::protocol::message::Purpose;

fn listed(root: &Path, tablespaces: &[Tablespace]) -> Result<Plan, Error> {
    let rules = Rules::default();
    let source =
        Source { data_directory: root, tablespace_version_directory: VERSION, tablespaces, rules: &rules };
    scan(&source, &Cancel::new())
}

fn has(plan: &Plan, name: &str) -> bool {
    plan.files.iter().any(|file| file.path.as_str() == name)
}

#[test]
fn data_behind_a_link_that_leads_nowhere_was_not_dropped() {
    for broken in ["base/5", "base", "global", "pg_xact", "base/4/1"] {
        let hosts = Hosts::new();
        let root = hosts.path("primary");
        let link = root.join(broken);
        let _ = fs::remove_dir_all(&link);
        fs::create_dir_all(link.parent().expect("parent")).expect("make");
        symlink("/nowhere/unmounted", &link).expect("link");
        let error = listed(&root, &[]).expect_err(broken);
        assert_eq!(error.kind, Kind::MissingFile, "{broken}: {error}");
        assert!(error.message.contains(&format!("{}\"", link.display())), "{broken}: {error}");
        assert!(error.hint.is_some(), "{broken}: {error}");
        assert!(error.detail.is_some_and(|detail| detail.contains("/nowhere/unmounted")), "{broken}");
    }
}

#[test]
fn a_tablespace_was_dropped_only_if_its_link_has_gone() {
    let mut hosts = Hosts::new();
    hosts.add_tablespace();
    let (root, file) = (hosts.path("primary"), format!("pg_tblspc/16/{VERSION}/5/9"));
    assert!(has(&listed(&root, &hosts.tablespaces).expect("all is there"), &file));
    // its file system is not mounted: the mount point is empty, or it has gone as well
    fs::rename(hosts.path("space").join(VERSION), hosts.path("unmounted")).expect("move");
    for _ in 0..2 {
        let error = listed(&root, &hosts.tablespaces).expect_err("lost");
        assert_eq!(error.kind, Kind::MissingFile, "{error}");
        assert!(error.message.contains("pg_tblspc/16") && error.hint.is_some(), "{error}");
        let _ = fs::remove_dir(hosts.path("space"));
    }
    fs::remove_file(root.join("pg_tblspc/16")).expect("remove");
    assert!(!has(&listed(&root, &hosts.tablespaces).expect("dropped"), &file));
}

#[test]
fn what_is_lost_during_the_run_does_not_empty_the_standbys_copy() {
    let mut hosts = Hosts::new();
    hosts.add_tablespace();
    let mut connectors = transports(&hosts).into_iter();
    let (name, connector) = connectors.next().expect("local");
    hosts.run(&connector).expect(name);
    let (copy, lost) = (format!("standby/pg_tblspc/16/{VERSION}/5/9"), hosts.path("space"));
    for (name, connector) in std::iter::once((name, connector)).chain(connectors) {
        let (session, _) = hosts.open(&connector, Purpose::Recover).expect(name);
        let session = hosts.plan(session).and_then(|session| hosts.begin(session)).expect(name);
        fs::rename(&lost, hosts.path("unmounted")).expect("move");
        let Err(error) = hosts.send(session) else { panic!("{name}: it was taken for dropped") };
        assert_eq!(error.kind, Kind::MissingFile, "{name}: {error}");
        assert!(hosts.read(&copy) == pages(5, 5), "{name}: the standby's copy is as it was");
        fs::rename(hosts.path("unmounted"), &lost).expect("move");
        once_unlocked(|| hosts.run(&connector)).expect(name);
    }
}

#[test]
fn a_directory_that_is_on_another_file_system_by_now_is_not_the_primarys() {
    let hosts = Hosts::new();
    hosts.write("primary/base/5/1", b"data");
    hosts.write("primary/extra/1", b"an operator's");
    let root = hosts.path("primary");
    let mut plan = listed(&root, &[]).expect("listed");
    assert_eq!(plan.identities.len(), plan.directories.len());
    Directories::of(&root, &plan).demand_mounted().expect("nothing has changed");
    let mut moved = |name: &str| {
        let number = plan.directories.iter().position(|found| found.path.as_str() == name).expect("listed");
        let here = plan.identities[number];
        plan.identities[number] = FileId { device: here.device + 1, ..here };
        let demanded = Directories::of(&root, &plan).demand_mounted();
        plan.identities[number] = here;
        demanded
    };
    moved("extra").expect("not PostgreSQL's");
    let error = moved("base/5").expect_err("replaced");
    assert!(error.kind == Kind::InUse && error.message.contains("base/5"), "{error}");
    let directories = Directories::of(&root, &plan);
    fs::remove_dir_all(root.join("base/5")).expect("drop");
    directories.demand_mounted().expect("dropped");
    symlink("/nowhere/unmounted", root.join("base/5")).expect("link");
    assert_eq!(directories.demand_mounted().expect_err("lost").kind, Kind::MissingFile);
}

#[test]
fn the_location_of_a_tablespace_is_not_guessed() {
    let hosts = Hosts::new();
    let (root, location) = (hosts.path("primary"), OsStr::from_bytes(b"/spaces/t\xe9"));
    symlink(location, root.join("pg_tblspc/16")).expect("link");
    let error = tablespace_links(&root, Side::Primary).expect_err("not UTF-8");
    assert_eq!(error.kind, Kind::Unsupported);
    assert!(error.message.contains("tablespace 16 on the primary"), "{error}");
    assert!(error.message.contains("t\\xE9") && error.detail.is_some() && error.hint.is_some(), "{error}");
    assert_eq!(tablespace_paths(&root, Side::Primary).expect("bytes"), [(16, location.into())]);
}
