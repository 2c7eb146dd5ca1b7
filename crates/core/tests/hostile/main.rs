//! A peer that knows the secret and means ill, or is mad: whatever it sends, the receiver answers with an error,
//! changes nothing outside of the directory it serves, and serves the next one.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use pgpool_recovery_core::compare::delta::Extent;
use pgpool_recovery_core::error::Kind;
use pgpool_recovery_core::manifest::plan::Range;
use pgpool_recovery_core::wire::protocol::data::{
    ASK, BARRIER, CONTENT, Codec, ContentTail, END_OF_FILE, GONE, MAX_RUNS, PAGES, PagesTail,
};
use pgpool_recovery_core::wire::protocol::message::Reply;
use pgpool_recovery_core::wire::protocol::plan::PLAN;
use pgpool_recovery_core::wire::protocol::{PUT, REPLY, REQUEST};
use serde_json::json;

use peer::{Host, begin, header, plan, put};

mod peer;
mod wal;

#[test]
fn paths_that_lead_elsewhere() {
    let host = Host::new();
    let long = "x/".repeat(3000) + "x";
    for path in
        ["../outside/x", "/outside/x", "base/../../outside/x", "base//x", "./x", "", "base/\0x", ".", &long]
    {
        let (mut peer, _) = host.open();
        peer.plan(&[], &[(path, 1)]);
        peer.request(&header(&[]));
        let _ = peer.answer();
        peer.assert_refused(path);
        let (mut peer, _) = host.open();
        peer.plan(&[path], &[]);
        peer.request(&header(&[]));
        let _ = peer.answer();
        peer.assert_refused(path);
        let length = u16::try_from(path.len()).expect("short enough").to_le_bytes();
        let put = [&[0; 4][..], &length, path.as_bytes()].concat();
        let mut peer = host.reconciled();
        peer.send(PUT, &put);
        peer.assert_refused(path);
        let mut peer = host.dial();
        peer.request(&json!({ "request": "open", "directory": host.path("standby"), "purpose": "recover", "keep": [path] }));
        peer.assert_refused(path);
    }
    host.assert_unharmed();
}

#[test]
fn directories_that_are_not_served() {
    let host = Host::new();
    for directory in ["outside", "standby/base", "standby/../outside", "spaces"] {
        let mut peer = host.dial();
        peer.request(&json!({ "request": "open", "directory": host.path(directory), "purpose": "recover", "keep": [] }));
        let _ = peer.answer();
        peer.assert_refused(directory);
    }
    for target in ["outside", "standby/base", "spaces", "spaces/../outside/x"] {
        let (mut peer, _) = host.open();
        peer.request(&header(&[json!({ "oid": 16, "source": "/x", "target": host.path(target) })]));
        let _ = peer.answer();
        peer.assert_refused(target);
    }
    host.assert_unharmed();
}

#[test]
fn a_dry_run_writes_nothing_whatever_it_is_told() {
    let host = Host::new();
    let mut page = vec![7; 8192];
    let mut tail = Vec::new();
    PagesTail::encode(0, Codec::Plain, &[Extent { offset: 0, length: 8192 }], &mut tail);
    page.extend_from_slice(&tail);
    let mut content = vec![7; 8192];
    ContentTail::encode(&[Range { file: 0, offset: 0, length: 8192 }], &mut tail);
    content.extend_from_slice(&tail);
    for (kind, body) in [(PAGES, page), (CONTENT, content)] {
        let (_peer, target) = host.dry_run();
        let mut stream = host.attach(&target);
        stream.send(kind, &body);
        stream.assert_refused("a dry run");
    }
    for request in ["clone", "finish"] {
        let (mut peer, _) = host.dry_run();
        peer.request(&json!({ "request": request, "wal_end": 2 << 20 }));
        peer.answer().expect_err(request);
        peer.assert_refused(request);
    }
    let (mut peer, _) = host.dry_run();
    peer.request(&begin());
    peer.answer().expect_err("begin");
    peer.assert_refused("begin");
    assert_eq!(fs::read(host.path("standby/base/5/1")).expect("read"), b"precious");
    assert_eq!(fs::read(host.path("standby/PG_VERSION")).expect("read"), b"precious");
    host.assert_unharmed();
}

#[test]
fn steps_out_of_order() {
    let host = Host::new();
    for request in ["present", "clone", "reconcile", "finish"] {
        let (mut peer, _) = host.open();
        peer.request(&json!({ "request": request, "wal_end": 2 << 20 }));
        peer.answer().expect_err(request);
        // who asks on is told the same and does not wait for ever
        peer.request(&json!({ "request": "log" }));
        peer.answer().expect_err("it has ended");
        peer.assert_refused(request);
        let mut peer = host.dial();
        peer.request(&json!({ "request": request, "wal_end": 2 << 20 }));
        peer.assert_refused(request);
    }
    // an agent has no files of the primary's
    let (mut peer, _) = host.begin();
    peer.request(&json!({ "request": "clone" }));
    peer.answer().expect_err("clone");
    peer.assert_refused("clone");
    // nothing was reconciled
    let (mut peer, _) = host.begin();
    peer.request(&json!({ "request": "finish", "wal_end": 2 << 20 }));
    peer.answer().expect_err("finish");
    peer.assert_refused("finish");
    assert!(!host.path("standby/global/pg_control").exists());
    host.assert_unharmed();
}

#[test]
fn frames_that_are_none() {
    let host = Host::new();
    for (kind, body) in [
        (REQUEST, &b"{"[..]),
        (REQUEST, br#"{"request":"open"}"#),
        (REQUEST, br#"{"request":"rm -rf /"}"#),
        (REQUEST, &[0xff; 100]),
        (REPLY, b"{}"),
        (PAGES, &[0; 100]),
        (0xEE, b"?"),
        (PUT, &[0xff; 3]),
    ] {
        let mut peer = host.dial();
        peer.send(kind, body);
        peer.assert_refused("first");
        let (mut peer, _) = host.open();
        peer.send(kind, body);
        peer.assert_refused("second");
    }
    let mut peer = host.dial();
    peer.request(&json!({ "request": "attach", "session": "guessed" }));
    peer.answer().expect_err("no such run");
    peer.assert_refused("a token that was never given out");
    // more of small files than any recovery has
    let mut peer = host.reconciled();
    for number in 0..40 {
        peer.send(
            PUT,
            &put(&format!("pg_wal/archive_status/0000000100000000000000{number:02X}.done"), 1 << 20),
        );
    }
    peer.assert_refused("40 MB of small files");
    host.assert_unharmed();
}

#[test]
fn pages_that_belong_nowhere() {
    let host = Host::new();
    let pages = |file: u32, runs: &[Extent], content: &[u8]| {
        let mut tail = Vec::new();
        PagesTail::encode(file, Codec::Plain, runs, &mut tail);
        [content, &tail].concat()
    };
    let page = Extent { offset: 0, length: 8192 };
    let cases: Vec<(&str, u8, Vec<u8>)> = vec![
        ("a file that is not in the plan", PAGES, pages(7, &[page], &[1; 8192])),
        ("the end of the numbers", PAGES, pages(u32::MAX, &[page], &[1; 8192])),
        (
            "beyond the planned size",
            PAGES,
            pages(0, &[Extent { offset: 3 * 8192, length: 8192 }], &[1; 8192]),
        ),
        (
            "past the end of any file",
            PAGES,
            pages(0, &[Extent { offset: u64::MAX - 1, length: 8192 }], &[1; 8192]),
        ),
        ("less content than announced", PAGES, pages(0, &[page, page], &[1; 8192])),
        ("too much in one frame", PAGES, pages(0, &[page; MAX_RUNS], &[])),
        ("a tail that is cut", PAGES, pages(0, &[page], &[1; 8192])[..8200].to_vec()),
        ("nothing at all", PAGES, Vec::new()),
        ("questions about another file", ASK, 9_u32.to_le_bytes().repeat(6)),
        ("half a question", ASK, vec![1; 7]),
        ("the end of another file", END_OF_FILE, [9; 12].to_vec()),
        ("another file is gone", GONE, vec![9; 4]),
        ("a request on a data link", REQUEST, b"{}".to_vec()),
    ];
    for (what, kind, body) in cases {
        let (control, target) = host.begin();
        let mut stream = host.attach(&target);
        stream.send(kind, &body);
        stream.send(BARRIER, &[]);
        let error = stream.end().expect_err(what);
        assert_eq!(error.kind, Kind::ProtocolViolation, "{what}: {error:?}");
        let _ = control.end();
        assert!(!host.path("standby/global/pg_control").exists());
    }
    host.assert_unharmed();
}

/// A directory is exchanged for a link while pages arrive.
#[test]
fn a_directory_that_becomes_a_link() {
    let host = Host::new();
    fs::write(host.path("outside/1"), "mine").expect("write");
    let (control, target) = host.begin();
    fs::rename(host.path("standby/base/5"), host.path("standby/base/6")).expect("rename");
    symlink(host.path("outside"), host.path("standby/base/5")).expect("link");
    let mut stream = host.attach(&target);
    let mut tail = Vec::new();
    PagesTail::encode(0, Codec::Plain, &[Extent { offset: 0, length: 8192 }], &mut tail);
    stream.send(PAGES, &[&[1; 8192][..], &tail].concat());
    stream.send(BARRIER, &[]);
    let _ = stream.end();
    let _ = control.end();
    assert_eq!(fs::read(host.path("outside/1")).expect("still there"), b"mine");
    fs::remove_file(host.path("outside/1")).expect("clean");
    fs::remove_file(host.path("standby/base/5")).expect("clean");
    host.assert_unharmed();
}

/// A plan that claims more than any disk has is refused by arithmetic, not by an overflow.
#[test]
fn a_plan_of_astronomic_size() {
    let host = Host::new();
    let (mut peer, _) = host.open();
    peer.plan(&[], &[("a", u64::MAX), ("b", u64::MAX), ("c", 1)]);
    peer.request(&header(&[]));
    let error = peer.answer().expect_err("no disk has that");
    assert_eq!(error.kind, Kind::DiskFull);
    let _ = peer.end();
    assert!(Path::new(&host.path("standby/PG_VERSION")).exists());
    host.assert_unharmed();
}

/// What the receiver looks up in a plan rests on its order.
#[test]
fn plans_that_are_not_in_order_or_malformed() {
    let host = Host::new();
    for files in [
        &[("base/5/1", 1), ("base/5/1", 1)][..],
        &[("base/5/2", 1), ("base/5/1", 1)],
        &[("base/5/1", 1), ("base/6/1", 1), ("base/5/2", 1)],
    ] {
        let (mut peer, _) = host.open();
        peer.plan(&["base", "base/5", "base/6"], files);
        peer.request(&header(&[]));
        peer.answer().expect_err("not in order");
        peer.assert_refused("not in order");
    }
    let valid = plan(&["base"], &[("base/5", 1)]);
    let slash = [&[2, 0x80, 1, 0, 0, 1, 0][..], &[0; 8], &[3], b"a/b"].concat();
    for body in [valid[..valid.len() - 1].to_vec(), [&valid[..], &[9]].concat(), slash] {
        let (mut peer, _) = host.open();
        peer.send(PLAN, &body);
        peer.answer().expect_err("malformed");
        peer.assert_refused("malformed");
    }
    host.assert_unharmed();
}

/// Files that make a server start, and those that are the standby's own, come in one way or not at all.
#[test]
fn files_that_no_plan_has() {
    let host = Host::new();
    fs::write(host.path("standby/pg_hba.conf"), "own").expect("write");
    let open = |host: &Host| {
        let mut peer = host.dial();
        peer.request(&json!({
            "request": "open", "directory": host.path("standby"), "purpose": "recover", "keep": ["pg_hba.conf", "certs"]
        }));
        assert!(matches!(peer.answer(), Ok(Reply::Target(_))));
        peer
    };
    for path in [
        "global/pg_control",
        "global/pg_control.pgpool_recovery",
        "pg_wal/000000010000000000000001",
        "pgpool_recovery.incomplete",
        "standby.signal",
        "myrecovery.conf",
        "postmaster.pid",
        "recovery.signal/x",
        "pg_hba.conf",
    ] {
        for is_directory in [false, true] {
            let mut peer = open(&host);
            let (directories, files) =
                if is_directory { (vec![path], Vec::new()) } else { (Vec::new(), vec![(path, 1)]) };
            peer.plan(&directories, &files);
            peer.answer().expect_err(path);
            peer.assert_refused(path);
        }
    }
    let mut peer = open(&host);
    peer.plan(&[], &[("global", 1)]);
    peer.answer().expect_err("a file in the place of a directory");
    peer.assert_refused("global");
    // what it keeps but does not have yet may come
    let mut peer = open(&host);
    peer.plan(&["certs"], &[("certs/server.key", 1)]);
    peer.request(&header(&[]));
    assert!(matches!(peer.answer(), Ok(Reply::Planned { .. })));
    peer.end().expect("nothing was begun");
    assert_eq!(fs::read(host.path("standby/pg_hba.conf")).expect("read"), b"own");
    host.assert_unharmed();
}

#[test]
fn small_files_that_no_recovery_has() {
    let host = Host::new();
    for path in [
        "pg_hba.conf",
        "base/5/1",
        "recovery.signal",
        "pgpool_recovery.incomplete",
        "pg_wal/archive_status/x",
        "pg_wal/000000010000000000000001",
    ] {
        let mut peer = host.reconciled();
        peer.send(PUT, &put(path, 1));
        peer.answer().expect_err(path);
        peer.assert_refused(path);
    }
    let mut peer = host.reconciled();
    peer.send(PUT, &put("global/pg_control", 1));
    peer.send(PUT, &put("global/pg_control", 1));
    peer.answer().expect_err("twice");
    peer.assert_refused("twice");
    // before anything is reconciled
    let (mut peer, _) = host.begin();
    peer.send(PUT, &put("backup_label", 1));
    peer.answer().expect_err("too early");
    peer.assert_refused("too early");
    assert!(!host.path("standby/global/pg_control").exists());
    host.assert_unharmed();
}

/// What was reconciled is compared with nothing any more.
#[test]
fn data_after_it_was_reconciled() {
    let host = Host::new();
    let mut page = vec![7; 8192];
    let mut tail = Vec::new();
    PagesTail::encode(0, Codec::Plain, &[Extent { offset: 0, length: 8192 }], &mut tail);
    page.extend_from_slice(&tail);
    for (kind, body) in [(PAGES, page), (END_OF_FILE, [0; 12].to_vec()), (GONE, vec![0; 4])] {
        let (mut control, target) = host.begin();
        let mut stream = host.attach(&target);
        control.request(&json!({ "request": "reconcile" }));
        assert!(matches!(control.answer(), Ok(Reply::Reconciled { .. })));
        let before = fs::read(host.path("standby/base/5/1")).expect("read");
        stream.send(kind, &body);
        stream.send(BARRIER, &[]);
        stream.assert_refused("reconciled");
        let _ = control.end();
        assert!(before == fs::read(host.path("standby/base/5/1")).expect("read"));
    }
    for (directories, files) in [(vec![], vec![("base/5/2", 1)]), (vec!["base/6"], vec![])] {
        let mut peer = host.reconciled();
        peer.plan(&directories, &files);
        peer.answer().expect_err("more of the plan");
        peer.assert_refused("more of the plan");
    }
    let (mut peer, _) = host.begin();
    peer.plan(&[], &[("base/5/2", 1)]);
    peer.answer().expect_err("more of the plan");
    peer.assert_refused("more of the plan");
    host.assert_unharmed();
}
