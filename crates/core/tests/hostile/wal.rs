//! The link that brings WAL.

use std::fs;

use pgdata::wal::Lsn;
use pgpool_recovery_core::error::{Error, Kind};
use pgpool_recovery_core::internal::Buffer;
use pgpool_recovery_core::wire::protocol::data::{ASK, Codec, FAILED, PAGES};
use pgpool_recovery_core::wire::protocol::message::{self, Reply, TargetInfo};
use pgpool_recovery_core::wire::protocol::wal::{MAX_WAL, WAL, WAL_DURABLE, WalTail, decode_durable};
use pgpool_recovery_core::wire::protocol::{PUT, REQUEST};
use serde_json::{Value, json};

use crate::peer::{Host, Peer, begin, header, put};

const SEGMENT: u64 = 1 << 20;

/// The first bytes of a segment of the cluster that the marker names.
fn long_header(system_identifier: u64, address: u64) -> Vec<u8> {
    let mut page = [0; 40];
    page[..2].copy_from_slice(&0xD110_u16.to_le_bytes());
    page[2] = 2;
    page[4] = 1;
    page[8..16].copy_from_slice(&address.to_le_bytes());
    page[24..32].copy_from_slice(&system_identifier.to_le_bytes());
    page[32..36].copy_from_slice(&(SEGMENT as u32).to_le_bytes());
    page[36..40].copy_from_slice(&8192_u32.to_le_bytes());
    page.to_vec()
}

fn frame(position: u64, span: u32, content: &[u8]) -> Vec<u8> {
    let length = content.len() as u32;
    let tail = WalTail { position: Lsn(position), span, length, codec: Codec::Plain };
    [content, &tail.encode()].concat()
}

fn attach(host: &Host, target: &TargetInfo) -> Peer {
    let mut link = host.dial();
    link.request(&json!({ "request": "attach_wal", "session": target.session }));
    let Ok(Reply::WalAttached { durable }) = link.answer() else { panic!("it is awaited") };
    assert_eq!(durable, Lsn(SEGMENT));
    link
}

/// Sends half a segment twice.
fn send_segment(link: &mut Peer, begin: u64) {
    link.send(WAL, &frame(begin, MAX_WAL, &long_header(1, begin)));
    link.send(WAL, &frame(begin + u64::from(MAX_WAL), MAX_WAL, b"x"));
}

/// The next frame that is no reply: what is durable, or why it cannot go on.
fn said(link: &mut Peer) -> Result<Lsn, Error> {
    let mut body = Buffer::new();
    match link.link.source.receive(&mut body)? {
        Some(WAL_DURABLE) => decode_durable(&body),
        Some(FAILED) => Err(message::decode(&body)?),
        other => panic!("{other:?}"),
    }
}

#[test]
fn wal_that_no_server_has() {
    let host = Host::new();
    let begin = SEGMENT;
    let first = frame(begin, 8192, &long_header(1, begin));
    let cases: Vec<(&str, u8, Vec<Vec<u8>>)> = vec![
        ("from before the beginning", WAL, vec![frame(0, 8192, &long_header(1, 0))]),
        ("from after the beginning", WAL, vec![frame(begin + 8192, 8192, &long_header(1, begin))]),
        ("a gap", WAL, vec![first.clone(), frame(begin + 3 * 8192, 8192, b"x")]),
        ("back again", WAL, vec![first.clone(), first.clone()]),
        ("of another cluster", WAL, vec![frame(begin, 8192, &long_header(2, begin))]),
        ("of another place", WAL, vec![frame(begin, 8192, &long_header(1, 2 * begin))]),
        ("less than a header", WAL, vec![frame(begin, 8192, &long_header(1, begin)[..39])]),
        ("no header", WAL, vec![frame(begin, 8192, &[7; 8192])]),
        ("nothing", WAL, vec![frame(begin, 0, b"")]),
        ("more content than WAL", WAL, vec![frame(begin, 8, &long_header(1, begin))]),
        ("more than a frame has", WAL, vec![frame(begin, MAX_WAL + 1, &long_header(1, begin))]),
        ("beyond any position", WAL, vec![frame(u64::MAX, 8192, &long_header(1, begin))]),
        ("a tail that is cut", WAL, vec![first[..44].to_vec()]),
        ("an empty frame", WAL, vec![Vec::new()]),
        ("pages", PAGES, vec![vec![0; 100]]),
        ("a question", ASK, vec![vec![0; 16]]),
        ("a request", REQUEST, vec![b"{}".to_vec()]),
    ];
    for (what, kind, frames) in cases {
        let (control, target) = host.begin();
        let mut link = attach(&host, &target);
        frames.iter().for_each(|frame| link.send(kind, frame));
        assert_eq!(said(&mut link).expect_err(what).kind, Kind::ProtocolViolation, "{what}");
        assert_eq!(link.end().expect_err(what).kind, Kind::ProtocolViolation, "{what}");
        let _ = control.end();
        assert!(!host.path("standby/global/pg_control").exists());
    }
    host.assert_unharmed();
}

#[test]
fn a_beginning_that_no_wal_has() {
    let host = Host::new();
    let directory = |path: &str| json!([{ "p": path, "m": 0o700 }]);
    for (field, value) in [
        ("timeline", json!(0)),
        ("segment_size", json!(0)),
        ("segment_size", json!(3 << 20)),
        ("segment_size", json!(1_u64 << 31)),
        ("from", json!(SEGMENT + 1)),
        ("directories", directory("base")),
        ("directories", directory("pg_wal/other")),
        ("directories", directory("../outside")),
    ] {
        let (mut peer, _) = host.open();
        peer.plan(&["base", "base/5", "pg_wal"], &[("base/5/1", 3 * 8192)]);
        peer.request(&header(&[]));
        assert!(matches!(peer.answer(), Ok(Reply::Planned { .. })));
        let mut begin: Value = begin();
        begin["wal"][field] = value;
        peer.request(&begin);
        peer.answer().expect_err(field);
        peer.assert_refused(field);
        assert!(!host.path("standby/pgpool_recovery.incomplete").exists(), "{field}: nothing has begun");
    }
    host.assert_unharmed();
}

#[test]
fn links_that_no_run_awaits() {
    let host = Host::new();
    let (_counting, dry_run) = host.dry_run();
    let (_control, target) = host.begin();
    let _link = attach(&host, &target);
    for (what, session) in [("a second one", &target.session), ("of a dry run", &dry_run.session)] {
        let mut link = host.dial();
        link.request(&json!({ "request": "attach_wal", "session": session }));
        link.answer().expect_err(what);
        link.assert_refused(what);
    }
}

/// Data is complete, and pg_control has come: everything but the WAL is there.
#[test]
fn a_run_whose_wal_is_not_complete_does_not_finish() {
    let host = Host::new();
    for (what, frames, end) in [
        ("none came", Vec::new(), 2 * SEGMENT),
        ("a segment is cut", vec![frame(SEGMENT, MAX_WAL, &long_header(1, SEGMENT))], 2 * SEGMENT),
        ("nothing is asked for", Vec::new(), SEGMENT),
        (
            "an end in the middle",
            vec![frame(SEGMENT, MAX_WAL, &long_header(1, SEGMENT))],
            SEGMENT + u64::from(MAX_WAL),
        ),
    ] {
        let (mut peer, target) = host.begin();
        let mut link = attach(&host, &target);
        frames.iter().for_each(|frame| link.send(WAL, frame));
        // what has been sent was read, once it says so
        link.end().expect("the sender stops");
        peer.request(&json!({ "request": "reconcile" }));
        assert!(matches!(peer.answer(), Ok(Reply::Reconciled { .. })));
        peer.send(PUT, &put("global/pg_control", 1));
        peer.request(&json!({ "request": "finish", "wal_end": end }));
        assert_eq!(peer.answer().expect_err(what).kind, Kind::ProtocolViolation, "{what}");
        peer.assert_refused(what);
        assert!(!host.path("standby/global/pg_control").exists(), "{what}");
        assert!(host.path("standby/pgpool_recovery.incomplete").exists(), "{what}");
    }
    host.assert_unharmed();
}

#[test]
fn nothing_comes_after_the_end() {
    let host = Host::new();
    let (mut peer, target) = host.begin();
    let mut link = attach(&host, &target);
    send_segment(&mut link, SEGMENT);
    assert_eq!(said(&mut link).expect("a segment"), Lsn(2 * SEGMENT));
    peer.request(&json!({ "request": "reconcile" }));
    assert!(matches!(peer.answer(), Ok(Reply::Reconciled { .. })));
    let segment = |number| host.path(&format!("standby/pg_wal/00000001000000000000000{number}"));
    assert!(segment(1).exists(), "what comes while data does is no surplus");
    peer.send(PUT, &put("global/pg_control", 1));
    peer.request(&json!({ "request": "finish", "wal_end": 2 * SEGMENT }));
    let complete = peer.answer().expect("all of it is there");
    assert!(matches!(complete, Reply::Durable { .. }));
    assert!(host.path("standby/global/pg_control").exists());
    send_segment(&mut link, 2 * SEGMENT);
    assert_eq!(said(&mut link).expect_err("complete").kind, Kind::ProtocolViolation);
    let _ = link.end();
    assert!(!segment(2).exists());
    let content = fs::read(segment(1)).expect("read");
    assert_eq!((content.len() as u64, &content[..40]), (SEGMENT, &long_header(1, SEGMENT)[..]));
    assert_eq!(content[MAX_WAL as usize], b'x');
}
