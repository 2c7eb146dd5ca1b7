//! Something else works in the target's directory while a recovery does, without a PostgreSQL server.

mod fixture;

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};

use fixture::{Hosts, VERSION, once_unlocked, pages, transports};
use pgpool_recovery_core::error::{Error, Kind};
use pgpool_recovery_core::manifest::exclude::{CONTROL_ASIDE, MARKER};
use pgpool_recovery_core::manifest::path::RelPath;
use pgpool_recovery_core::wire::protocol::message::Purpose;

/// A primary with a file that the standby has, one that it has not, an empty one, and many small ones.
fn hosts() -> Hosts {
    let hosts = Hosts::new();
    hosts.write("primary/base/5/1", &pages(40, 1));
    hosts.write("primary/base/5/2", &pages(40, 2));
    hosts.write("primary/base/5/empty", b"");
    for number in 0..20 {
        hosts.write(&format!("primary/pg_xact/{number:04}"), &[number as u8 | 1; 100]);
    }
    hosts
}

fn stopped_standby(hosts: &Hosts) {
    let _ = fs::remove_dir_all(hosts.path("standby"));
    hosts.write("standby/PG_VERSION", b"15\n");
    hosts.write("standby/global/pg_control", b"old control");
    hosts.write("standby/base/5/1", &pages(40, 1));
    hosts.write("standby/base/5/empty", b"");
    hosts.write("standby/pg_xact/0007", &[7; 100]);
}

#[track_caller]
fn assert_in_use(error: &Error, what: &str) {
    assert_eq!(error.kind, Kind::InUse, "{what}: {error:?}");
    assert!(error.detail.is_some() && error.hint.is_some(), "{error:?}");
}

#[test]
fn a_directory_that_changed_since_it_was_checked_is_left_alone() {
    let hosts = hosts();
    type Change = (&'static str, fn(&Hosts));
    let changes: &[Change] = &[
        ("a server ran", |hosts| hosts.write("standby/global/pg_control", b"its control")),
        ("another cluster", |hosts| {
            fs::remove_dir_all(hosts.path("standby/base")).expect("remove");
            hosts.write("standby/base/1/1", b"another");
        }),
        ("another directory", |hosts| {
            fs::rename(hosts.path("standby"), hosts.path("old")).expect("rename");
            hosts.write("standby/base/5/1", b"another");
        }),
    ];
    for (name, connector) in transports(&hosts) {
        for (what, change) in changes {
            stopped_standby(&hosts);
            let (session, _) = hosts.open(&connector, Purpose::Recover).expect(what);
            let session = hosts.plan(session).expect(what);
            change(&hosts);
            let before = hosts.listing("standby");
            let error = hosts.begin(session).expect_err(what);
            assert_in_use(&error, &format!("{name}, {what}"));
            assert_eq!(hosts.listing("standby"), before, "{name}, {what}: nothing was changed");
            let _ = fs::remove_dir_all(hosts.path("old"));
        }
        // it was missing, and the run made it
        let _ = fs::remove_dir_all(hosts.path("standby"));
        let (session, _) = hosts.open(&connector, Purpose::Recover).expect(name);
        let session = hosts.plan(session).expect(name);
        hosts.write("standby/PG_VERSION", b"15\n");
        hosts.write("standby/global/pg_control", b"a new cluster");
        assert_in_use(&hosts.begin(session).expect_err(name), name);
        assert_eq!(hosts.read("standby/global/pg_control"), b"a new cluster");
    }
}

#[test]
fn a_tablespace_directory_that_was_replaced_is_left_alone() {
    let mut hosts = hosts();
    hosts.add_tablespace();
    for (name, connector) in transports(&hosts) {
        stopped_standby(&hosts);
        let (session, _) = hosts.open(&connector, Purpose::Recover).expect(name);
        let session = hosts.plan(session).expect(name);
        fs::rename(hosts.path("spaces/16"), hosts.path("spaces/old")).expect("rename");
        hosts.write(&format!("spaces/16/{VERSION}/5/9"), b"of another server");
        assert_in_use(&hosts.begin(session).expect_err(name), name);
        assert_eq!(hosts.read("standby/global/pg_control"), b"old control");
        fs::remove_dir_all(hosts.path("spaces")).expect("clean");

        // after the data has come
        let (session, _) = hosts.open(&connector, Purpose::Recover).expect(name);
        let session = hosts.plan(session).expect(name);
        let session = hosts.begin(session).expect(name);
        let session = hosts.send(session).expect(name);
        fs::remove_file(hosts.path("standby/pg_tblspc/16")).expect("remove");
        symlink(hosts.path("space"), hosts.path("standby/pg_tblspc/16")).expect("link");
        assert_in_use(&hosts.complete(session).expect_err(name), name);
        assert!(!hosts.path("standby/global/pg_control").exists());
        fs::remove_dir_all(hosts.path("spaces")).expect("clean");
    }
}

#[test]
fn what_something_else_changed_does_not_become_a_standby() {
    let hosts = hosts();
    // by rename, as rsync and restic do
    let replace = |hosts: &Hosts, name: &str, content: &[u8]| {
        hosts.write("standby/strange", content);
        fs::rename(hosts.path("standby/strange"), hosts.path("standby").join(name)).expect("rename");
    };
    type Change<'a> = (&'a str, &'a dyn Fn(&Hosts));
    let changes: &[Change<'_>] = &[
        ("a file that was compared is replaced", &|hosts| replace(hosts, "base/5/1", &pages(40, 9))),
        ("a file that was written is replaced", &|hosts| replace(hosts, "base/5/2", &pages(40, 9))),
        ("an empty file is replaced", &|hosts| replace(hosts, "base/5/empty", b"")),
        ("a small file is replaced by its like", &|hosts| replace(hosts, "pg_xact/0007", &[7; 100])),
        ("a file that was compared is written", &|hosts| {
            let file = fs::OpenOptions::new().write(true).open(hosts.path("standby/base/5/1")).expect("open");
            file.write_all_at(&[0], 77).expect("write");
        }),
        ("a file that was written is cut", &|hosts| {
            let file = fs::OpenOptions::new().write(true).open(hosts.path("standby/base/5/2")).expect("open");
            file.set_len(8192).expect("cut");
        }),
        ("a file goes", &|hosts| fs::remove_file(hosts.path("standby/pg_xact/0007")).expect("remove")),
        ("a file gets another name", &|hosts| {
            fs::hard_link(hosts.path("standby/base/5/1"), hosts.path("kept")).expect("link");
        }),
        ("a mode changes", &|hosts| {
            let mode = fs::Permissions::from_mode(0o640);
            fs::set_permissions(hosts.path("standby/base/5/1"), mode).expect("chmod");
        }),
        ("a directory is replaced", &|hosts| {
            fs::rename(hosts.path("standby/base/5"), hosts.path("old")).expect("rename");
            fs::create_dir(hosts.path("standby/base/5")).expect("make");
            for name in ["1", "2", "empty"] {
                let to = hosts.path("standby/base/5").join(name);
                fs::copy(hosts.path("old").join(name), to).expect("copy");
            }
        }),
        ("the marker goes", &|hosts| fs::remove_file(hosts.path("standby").join(MARKER)).expect("remove")),
        ("the marker is another run's", &|hosts| {
            let text = String::from_utf8(hosts.read(&format!("standby/{MARKER}"))).expect("UTF-8");
            let other = text.replace("\"run\": \"", "\"run\": \"0");
            assert!(other != text, "{text}");
            hosts.write(&format!("standby/{MARKER}"), other.as_bytes());
        }),
        ("pg_control appears", &|hosts| hosts.write("standby/global/pg_control", b"restored from a backup")),
    ];
    let before_settling: &[bool] = &[true, false];
    for (name, connector) in transports(&hosts) {
        for ((what, change), before_settling) in
            changes.iter().flat_map(|change| before_settling.iter().map(move |before| (change, *before)))
        {
            let what = format!("{name}, {what}, before settling: {before_settling}");
            stopped_standby(&hosts);
            let (session, _) = hosts.open(&connector, Purpose::Recover).expect(&what);
            let session = hosts.plan(session).expect(&what);
            let session = hosts.begin(session).expect(&what);
            let session = hosts.send(session).expect(&what);
            await_another_time(&hosts);
            let done = if before_settling {
                change(&hosts);
                hosts.complete(session).map(drop)
            } else {
                let (session, _) = session.reconcile().expect(&what);
                change(&hosts);
                hosts.finish(session)
            };
            assert_in_use(&done.expect_err(&what), &what);
            assert_ne!(
                fs::read(hosts.path("standby/global/pg_control")).ok().as_deref(),
                Some(&b"control"[..]),
                "{what}"
            );
            let _ = (fs::remove_dir_all(hosts.path("old")), fs::remove_file(hosts.path("kept")));
        }
        // the next run heals all of it, once the receiver has noticed the end of this one
        let (session, _) = once_unlocked(|| hosts.open(&connector, Purpose::Recover)).expect(name);
        let session = hosts.plan(session).expect(name);
        let session = hosts.begin(session).expect(name);
        let session = hosts.send(session).expect(name);
        hosts.complete(session).expect(name);
        hosts.assert_same(&["base/5/1", "base/5/2", "base/5/empty", "pg_xact/0007"]);
        assert!(!hosts.path("standby").join(CONTROL_ASIDE).exists());
    }
}

/// The plan was made without it.
#[test]
fn what_a_standby_keeps_may_not_appear_meanwhile() {
    let mut hosts = hosts();
    hosts.keep = vec![RelPath::parse("pg_hba.conf").expect("valid")];
    hosts.write("primary/pg_hba.conf", b"the primary's");
    for (name, connector) in transports(&hosts) {
        stopped_standby(&hosts);
        let (session, _) = hosts.open(&connector, Purpose::Recover).expect(name);
        let session = hosts.plan(session).expect(name);
        hosts.write("standby/pg_hba.conf", b"the standby's own");
        assert_in_use(&hosts.begin(session).expect_err(name), name);
        assert_eq!(hosts.read("standby/pg_hba.conf"), b"the standby's own");
    }
}

/// Waits until a change gets another time than one before.
fn await_another_time(hosts: &Hosts) {
    use std::os::unix::fs::MetadataExt;
    let time = || {
        hosts.write("probe", b"x");
        let metadata = fs::metadata(hosts.path("probe")).expect("stat");
        (metadata.ctime(), metadata.ctime_nsec())
    };
    let first = time();
    while time() == first {}
}
