//! Whole runs between two directories, without a PostgreSQL server: the local link and TLS.

mod fixture;

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::sync::Arc;

use fixture::{Hosts, VERSION, pages, transports};
use pgpool_recovery_core::error::Kind;
use pgpool_recovery_core::manifest::exclude::MARKER;
use pgpool_recovery_core::manifest::path::RelPath;
use pgpool_recovery_core::replication::standby::Listening;
use pgpool_recovery_core::sender::Compression;
use pgpool_recovery_core::sender::{Session, TransferOptions};
use pgpool_recovery_core::sys::cancel::Cancel;
use pgpool_recovery_core::wire::protocol::message::Purpose;

#[test]
fn an_empty_target_gets_everything_and_a_second_run_sends_nothing() {
    let hosts = Hosts::new();
    hosts.write("primary/base/5/1", &pages(700, 1));
    hosts.write("primary/base/5/2", &pages(3, 2)[..20_000]);
    hosts.write("primary/base/5/empty", b"");
    for number in 0..600 {
        hosts.write(&format!("primary/pg_xact/{number:04}"), &[number as u8 | 1; 100]);
    }
    for (name, connector) in transports(&hosts) {
        let outcome = hosts.run(&connector).expect(name);
        assert_eq!((outcome.sent, outcome.total), (outcome.total, outcome.sent), "{name}: all of it");
        let files =
            ["base/5/1", "base/5/2", "base/5/empty", "pg_xact/0599", "pg_wal/000000010000000000000001"];
        hosts.assert_same(&files);
        assert!(hosts.path("standby/pg_wal/archive_status").is_dir());
        assert_eq!(hosts.read("standby/backup_label"), b"label");

        let outcome = hosts.run(&connector).expect(name);
        assert_eq!((outcome.sent, outcome.removed), (0, 3), "{name}: backup_label and the old WAL go");
        hosts.assert_same(&files);
        fs::remove_dir_all(hosts.path("standby")).expect("clean");
    }
}

#[test]
fn only_pages_that_differ_are_sent() {
    for compression in [Compression::Off, Compression::Lz4, Compression::Zstd, Compression::Auto] {
        let hosts = Hosts { compression, ..Hosts::new() };
        let mut content = pages(1000, 1);
        hosts.write("standby/PG_VERSION", b"15\n");
        hosts.write("standby/base/5/1", &content);
        for page in [0, 5, 6, 500, 999] {
            content[page * 8192 + 17] ^= 0xFF;
        }
        hosts.write("primary/base/5/1", &content);
        let outcome = hosts.run(&hosts.agent()).expect("run");
        assert_eq!((outcome.sent, outcome.changed), (5 * 8192, 1), "{compression:?}");
        hosts.assert_same(&["base/5/1"]);
    }
}

#[test]
fn a_target_damaged_in_every_way_comes_out_exact() {
    let hosts = Hosts::new();
    let content = pages(40, 3);
    for name in ["a", "b", "c", "d", "e", "f", "g"] {
        hosts.write(&format!("primary/base/5/{name}"), &content);
    }
    for (name, connector) in transports(&hosts) {
        let _ = fs::remove_dir_all(hosts.path("standby"));
        hosts.write("standby/PG_VERSION", b"15\n");
        hosts.write("standby/base/5/a", &content[..100]); // truncated
        hosts.write("standby/base/5/b", &[content.as_slice(), &[1; 9000]].concat()); // extended
        let mut flipped = content.clone();
        flipped[70_000] ^= 4;
        hosts.write("standby/base/5/c", &flipped); // one bit
        fs::create_dir_all(hosts.path("standby/base/5/d/deep")).expect("make"); // a directory in its place
        symlink("/etc/passwd", hosts.path("standby/base/5/e")).expect("link"); // a link in its place
        hosts.write("outside", &flipped);
        fs::hard_link(hosts.path("outside"), hosts.path("standby/base/5/f")).expect("link"); // another name
        // g is missing
        hosts.write("standby/base/77/1", b"dropped database");
        hosts.write("standby/stray", b"x");
        hosts.write("standby/postmaster.pid", b"4000000\n");
        hosts.write("standby/pg_wal/000000010000000000000077", b"old");
        hosts.write("standby/log/postgresql.log", b"the standby's own log");
        symlink("nowhere", hosts.path("standby/broken")).expect("link");
        hosts.run(&connector).expect(name);
        hosts.assert_same(&[
            "base/5/a", "base/5/b", "base/5/c", "base/5/d", "base/5/e", "base/5/f", "base/5/g",
        ]);
        for gone in ["base/77", "stray", "postmaster.pid", "pg_wal/000000010000000000000077", "broken"] {
            assert!(
                fs::symlink_metadata(hosts.path("standby").join(gone)).is_err(),
                "{name}: {gone} is left over"
            );
        }
        assert_eq!(hosts.read("outside"), flipped, "the other name's file is not ours to write");
        assert_eq!(hosts.read("standby/log/postgresql.log"), b"the standby's own log");
        fs::remove_file(hosts.path("outside")).expect("clean");
    }
}

#[test]
fn kept_files_survive_and_read_the_recovery_settings() {
    let mut hosts = Hosts::new();
    hosts.keep =
        vec![RelPath::parse("postgresql.conf").expect("valid"), RelPath::parse("certs").expect("valid")];
    hosts.write("primary/postgresql.conf", b"port = 1\n");
    hosts.write("standby/PG_VERSION", b"15\n");
    hosts.write("standby/postgresql.conf", b"port = 2\n");
    hosts.write("standby/certs/server.key", b"private");
    hosts.run(&hosts.local()).expect("run");
    let include =
        format!("port = 2\ninclude_if_exists = '{}/myrecovery.conf'\n", hosts.path("standby").display());
    assert_eq!(String::from_utf8_lossy(&hosts.read("standby/postgresql.conf")), include);
    assert_eq!(hosts.read("standby/certs/server.key"), b"private");
    hosts.run(&hosts.local()).expect("run");
    assert_eq!(String::from_utf8_lossy(&hosts.read("standby/postgresql.conf")), include, "added once");
}

#[test]
fn tablespaces_go_where_they_are_mapped() {
    let mut hosts = Hosts::new();
    hosts.add_tablespace();
    for (name, connector) in transports(&hosts) {
        hosts.write("spaces/16/PG_14_1/other", b"another major version's");
        hosts.run(&connector).expect(name);
        hosts.write(&format!("spaces/16/{VERSION}/5/stray"), b"x");
        hosts.run(&connector).expect(name);
        assert_eq!(hosts.read(&format!("spaces/16/{VERSION}/5/9")), pages(5, 5));
        assert_eq!(hosts.read(&format!("standby/pg_tblspc/16/{VERSION}/5/9")), pages(5, 5));
        assert!(!hosts.path(&format!("spaces/16/{VERSION}/5/stray")).exists());
        assert_eq!(hosts.read("spaces/16/PG_14_1/other"), b"another major version's");
        fs::remove_dir_all(hosts.path("standby")).expect("clean");
        fs::remove_dir_all(hosts.path("spaces")).expect("clean");
    }
    hosts.tablespaces[0].target = hosts.path("elsewhere").display().to_string();
    let error = hosts.run(&hosts.agent()).expect_err("outside tablespace_roots");
    assert_eq!(error.kind, Kind::TargetRefused);
    assert!(!hosts.path("standby").exists() && !hosts.path("elsewhere").exists(), "a refusal leaves nothing");
    hosts.tablespaces[0].target = hosts.path("space").display().to_string();
    let error = hosts.run(&hosts.local()).expect_err("the primary's own tablespace");
    assert!(error.message.contains("is in use"), "{error}");
}

#[test]
fn a_broken_run_cannot_be_started_and_is_completed_by_the_next() {
    let hosts = Hosts::new();
    hosts.write("primary/base/5/1", &pages(900, 1));
    for (name, connector) in transports(&hosts) {
        hosts.write("standby/PG_VERSION", b"15\n");
        hosts.write("standby/global/pg_control", b"old control");
        {
            let (session, _) = hosts.open(&connector, Purpose::Recover).expect(name);
            let busy =
                hosts.open(&connector, Purpose::Recover).expect_err("a second recovery is refused at once");
            assert_eq!(busy.kind, Kind::Locked, "{name}");
            let session = hosts.plan(session).expect(name);
            let session = hosts.begin(session).expect(name);
            assert!(hosts.path("standby").join(MARKER).exists());
            assert!(!hosts.path("standby/global/pg_control").exists());
            hosts.send(session).expect(name);
        }
        let outcome = loop {
            match hosts.run(&connector) {
                // the agent notices the end of the first run within milliseconds
                Err(error) if error.kind == Kind::Locked => {
                    std::thread::sleep(std::time::Duration::from_millis(20))
                }
                other => break other.expect(name),
            }
        };
        assert_eq!(outcome.sent, 0, "{name}: everything had arrived");
        assert!(outcome.changed == 0, "{name}");
        hosts.assert_same(&["base/5/1"]);
        fs::remove_dir_all(hosts.path("standby")).expect("clean");
    }
}

#[test]
fn cancel_brings_every_step_back() {
    let hosts = Hosts::new();
    hosts.write("primary/base/5/1", &pages(2000, 1));
    for (name, connector) in transports(&hosts) {
        let cancel = Cancel::new();
        let session = Session::open(
            Arc::clone(&connector),
            &hosts.path("standby"),
            Purpose::Recover,
            Vec::new(),
            Arc::default(),
            &cancel,
        )
        .expect(name);
        let session = hosts.plan(session).expect(name);
        let session = hosts.begin(session).expect(name);
        let trip = cancel.clone();
        let timer = std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(150));
            trip.trip();
        });
        let options = TransferOptions {
            jobs: 2,
            compression: Compression::Off,
            max_rate: 1000,
            clone: true,
            checksums: None,
        };
        let error = session.send_data(&hosts.path("primary"), options, None).expect_err("cancelled");
        assert_eq!(error.kind, Kind::Canceled, "{name}: {error}");
        timer.join().expect("timer");
        let _ = fs::remove_dir_all(hosts.path("standby"));
    }
}

#[test]
fn a_directory_the_agent_does_not_list_is_refused() {
    let hosts = Hosts::new();
    let connector = hosts.agent();
    let other = hosts.path("other");
    let error =
        Session::open(connector, &other, Purpose::Recover, Vec::new(), Arc::default(), &Cancel::new());
    assert_eq!(error.expect_err("refused").kind, Kind::TargetRefused);
    assert!(!other.exists());
}

#[test]
fn a_refused_target_is_left_untouched() {
    let hosts = Hosts::new();
    hosts.write("primary/base/5/1", &pages(10, 1));
    hosts.write("standby/base/5/1", b"precious");
    let before: Vec<_> =
        fs::read_dir(hosts.path("standby")).expect("list").map(|e| e.expect("entry").path()).collect();
    {
        let (session, _) = hosts.open(&hosts.local(), Purpose::Recover).expect("open");
        assert!(session.target().system_identifier.is_none());
    }
    let after: Vec<_> =
        fs::read_dir(hosts.path("standby")).expect("list").map(|e| e.expect("entry").path()).collect();
    assert_eq!(before, after);
    assert_eq!(hosts.read("standby/base/5/1"), b"precious");
}

/// Once a refusal is told, the directory is as it was and another run can begin.
#[test]
fn a_session_that_ends_before_anything_began_leaves_nothing_behind_when_it_is_gone() {
    let hosts = Hosts::new();
    hosts.write("primary/base/5/1", &pages(10, 1));
    for (name, connector) in transports(&hosts) {
        for _ in 0..50 {
            let (session, _) = hosts.open(&connector, Purpose::Recover).expect("it is free");
            assert!(hosts.path("standby").exists(), "{name}: it was made to be held");
            let session = hosts.plan(session).expect(name);
            drop(session);
            assert!(!hosts.path("standby").exists(), "{name}");
        }
    }
}

#[test]
fn a_port_that_is_taken_ends_nothing() {
    let hosts = Hosts::new();
    let other = TcpListener::bind("127.0.0.1:0").expect("listen");
    let port = other.local_addr().expect("address").port();
    let listening = Listening { port, addresses: "127.0.0.1".to_owned() };
    for (name, connector) in transports(&hosts) {
        for purpose in [Purpose::Look, Purpose::Recover] {
            let (mut session, _) = hosts.open(&connector, purpose).expect(name);
            assert_eq!(session.test_port(&listening).expect_err(name).kind, Kind::InUse);
            hosts.plan(session).expect("the session goes on");
        }
    }
}

#[test]
fn a_dry_run_tells_what_a_run_would_do_and_touches_nothing() {
    let hosts = Hosts::new();
    let content = pages(300, 1);
    hosts.write("primary/base/5/1", &content);
    hosts.write("primary/base/5/2", &content[..30_000]);
    hosts.write("primary/base/5/3", &[content.as_slice(), &[0; 8192]].concat());
    hosts.write("primary/base/5/empty", b"");
    for (name, connector) in transports(&hosts) {
        let full = hosts.dry_run(&connector).expect(name);
        assert_eq!((full.sent, full.changed, full.removed), (full.total - 8192, 5, 0), "{name}: zeros stay");
        assert!(!hosts.path("standby").exists(), "{name}: the directory is not made");
        hosts.run(&connector).expect(name);

        let mut other = content.clone();
        other[100 * 8192] ^= 1;
        hosts.write("standby/base/5/1", &other); // a page
        hosts.write("standby/base/5/3", &content); // too short
        hosts.write("standby/base/5/stray", b"x");
        fs::set_permissions(hosts.path("standby/base/5/empty"), fs::Permissions::from_mode(0o640))
            .expect("chmod");
        let before = hosts.listing("standby");
        let dry_run = hosts.dry_run(&connector).expect(name);
        assert_eq!(hosts.listing("standby"), before, "{name}");
        let run = hosts.run(&connector).expect(name);
        assert_eq!(dry_run, run, "{name}");
        assert_eq!((run.sent, run.changed), (8192, 3), "{name}: a page, a size and a mode");
        fs::remove_dir_all(hosts.path("standby")).expect("clean");
    }
}
