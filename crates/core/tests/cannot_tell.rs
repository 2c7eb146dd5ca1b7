//! What cannot be told about a target is refused, and nothing is changed.

mod fixture;

use std::fs;
use std::os::unix::fs::symlink;
use std::sync::Arc;

use fixture::{Hosts, VERSION, once_unlocked, pages, transports};
use pgpool_recovery_core::error::Kind;
use pgpool_recovery_core::manifest::exclude::MARKER;
use pgpool_recovery_core::sender::Session;
use pgpool_recovery_core::sys::cancel::Cancel;
use pgpool_recovery_core::wire::protocol::message::{LinkedWal, Purpose};

fn with_tablespace() -> Hosts {
    let mut hosts = Hosts::new();
    hosts.add_tablespace();
    hosts
}

#[test]
fn a_tablespace_whose_link_was_lost_is_the_interrupted_recoverys_own() {
    let hosts = with_tablespace();
    for (name, connector) in transports(&hosts) {
        {
            let (session, _) = hosts.open(&connector, Purpose::Recover).expect(name);
            let session = hosts.plan(session).expect(name);
            let session = hosts.begin(session).expect(name);
            hosts.send(session).expect(name);
        }
        let link = hosts.path("standby/pg_tblspc/16");
        assert_eq!(fs::read_link(&link).expect("a link"), hosts.path("spaces/16"));
        fs::remove_file(&link).expect("a power cut");
        once_unlocked(|| hosts.run(&connector)).expect(name);
        assert_eq!(hosts.read(&format!("standby/pg_tblspc/16/{VERSION}/5/9")), pages(5, 5));
        // once it is complete, a place that no link leads to is not its own
        fs::remove_file(&link).expect("removed");
        let error = hosts.run(&connector).expect_err(name);
        assert!(error.message.contains("is in use"), "{name}: {error}");
        fs::remove_dir_all(hosts.path("standby")).expect("clean");
        fs::remove_dir_all(hosts.path("spaces")).expect("clean");
    }
}

#[test]
fn a_tablespace_directory_that_cannot_be_listed_is_not_free() {
    let hosts = with_tablespace();
    fs::create_dir_all(hosts.path("spaces/16")).expect("make");
    symlink(VERSION, hosts.path("spaces/16").join(VERSION)).expect("a link to itself");
    for (name, connector) in transports(&hosts) {
        let error = hosts.run(&connector).expect_err(name);
        assert_eq!(error.kind, Kind::TargetRefused, "{name}: {error}");
        assert!(error.message.contains("cannot tell"), "{name}: {error}");
        assert!(!hosts.path("standby").exists(), "{name}: nothing was made");
        let error = hosts.dry_run(&connector).expect_err(name);
        assert!(error.message.contains("cannot tell"), "a dry run, too: {error}");
    }
}

#[test]
fn two_targets_with_one_pg_wal_exclude_each_other() {
    let hosts = Hosts::new();
    for name in ["standby", "other", "wal"] {
        fs::create_dir(hosts.path(name)).expect("make");
    }
    for name in ["standby", "other"] {
        symlink(hosts.path("wal"), hosts.path(name).join("pg_wal")).expect("link");
    }
    let connector = hosts.local();
    let (first, _) = hosts.open(&connector, Purpose::Recover).expect("the first");
    assert_eq!(first.target().linked_wal, Some(LinkedWal::Empty));
    let open = || {
        let path = hosts.path("other");
        let session = Session::open(
            Arc::clone(&connector),
            &path,
            Purpose::Recover,
            Vec::new(),
            Arc::default(),
            &Cancel::new(),
        );
        session.map(drop).map_err(|error| error.kind)
    };
    assert_eq!(open(), Err(Kind::Locked));
    drop(first);
    // the session ends in a thread of its own
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while open() != Ok(()) {
        assert!(std::time::Instant::now() < deadline, "the lock is not released");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

#[test]
fn a_pg_wal_that_leads_nowhere_is_refused() {
    let hosts = Hosts::new();
    hosts.write("standby/PG_VERSION", b"15\n");
    symlink("/not/mounted", hosts.path("standby/pg_wal")).expect("link");
    let before = hosts.listing("standby");
    for (name, connector) in transports(&hosts) {
        let error = hosts.run(&connector).expect_err(name);
        assert!(error.kind == Kind::TargetRefused && error.hint.is_some(), "{name}: {error}");
        let (session, _) = hosts.open(&connector, Purpose::Look).expect(name);
        let doubt = session.target().doubts.wal.clone().expect("it is told");
        assert!(doubt.message.contains("leads to no directory"), "{doubt}");
        assert_eq!(hosts.listing("standby"), before, "{name}");
    }
}

#[test]
fn a_linked_global_is_refused_before_anything_changes() {
    let hosts = Hosts::new();
    hosts.write("standby/PG_VERSION", b"15\n");
    hosts.write("elsewhere/pg_control", b"control");
    symlink(hosts.path("elsewhere"), hosts.path("standby/global")).expect("link");
    let before = hosts.listing("standby");
    for (name, connector) in transports(&hosts) {
        let error = hosts.run(&connector).expect_err(name);
        assert!(error.message.contains("is a symbolic link"), "{name}: {error}");
        hosts.dry_run(&connector).expect_err("a dry run, too");
        assert_eq!(hosts.listing("standby"), before, "{name}");
        assert!(!hosts.path("standby").join(MARKER).exists());
    }
}
