//! WAL that travels while data does.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pgdata::wal::Lsn;
use pgpool_recovery_core::error::Kind;
use pgpool_recovery_core::manifest::exclude::MARKER;
use pgpool_recovery_core::sender::{TransferOptions, WalPositions};
use pgpool_recovery_core::wire::protocol::message::Purpose;

use fixture::{Hosts, SEGMENT, pages, segment, transports};

mod fixture;

const SIZE: u64 = SEGMENT as u64;

fn name(number: u64) -> String {
    format!("pg_wal/00000001000000000000000{number:X}")
}

/// So many segments, counted from 1, with something in each.
fn write_segments(hosts: &Hosts, numbers: std::ops::RangeInclusive<u64>) {
    for number in numbers {
        let mut content = segment(1, number);
        content[100..SEGMENT as usize / 2].fill(number as u8);
        hosts.write(&format!("primary/{}", name(number)), &content);
    }
}

/// Waits until the target has all WAL before a position, and no longer.
fn await_durable(positions: &WalPositions, position: Lsn) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while positions.durable() < position {
        assert!(Instant::now() < deadline, "durable up to {}", positions.durable());
        std::thread::sleep(Duration::from_millis(2));
    }
    assert_eq!(positions.durable(), position);
}

#[test]
fn segments_are_durable_on_the_target_before_data_has_come() {
    let hosts = Hosts::new();
    hosts.write("primary/base/5/1", &pages(300, 1));
    write_segments(&hosts, 1..=6);
    for (transport, connector) in transports(&hosts) {
        hosts.write("standby/PG_VERSION", b"15\n");
        hosts.write("standby/global/pg_control", b"old control");
        hosts.write("standby/pg_wal/000000010000000000000077", b"old");
        hosts.write("standby/pg_wal/archive_status/000000010000000000000077.ready", b"");
        let (session, progress) = hosts.open(&connector, Purpose::Recover).expect(transport);
        let session = hosts.plan(session).expect(transport);
        let positions = Arc::new(WalPositions::default());
        let session = hosts.begin_with(session, Arc::clone(&positions)).expect(transport);
        assert!(
            !hosts.path("standby/pg_wal/000000010000000000000077").exists(),
            "{transport}: it is emptied first"
        );
        assert_eq!(positions.durable(), Lsn(SIZE), "{transport}: the beginning of the segment of the start");
        // a server that flushes a part of the last segment
        positions.set_flushed(Lsn(4 * SIZE + 5000));
        await_durable(&positions, Lsn(4 * SIZE));
        // the server recycles what the target has
        fs::rename(hosts.path(&format!("primary/{}", name(1))), hosts.path("recycled")).expect("rename");
        let session = hosts.send(session).expect(transport);
        hosts.write("standby/pg_wal/stray", b"x");
        let (session, reconciliation) = session.reconcile().expect(transport);
        assert_eq!(
            reconciliation.removed, 3,
            "{transport}: a segment, archive_status, and what came meanwhile"
        );
        fs::rename(hosts.path("recycled"), hosts.path(&format!("primary/{}", name(1)))).expect("rename");
        assert!(hosts.path("standby").join(MARKER).exists());
        hosts.finish(session).expect(transport);
        assert_eq!((positions.durable(), positions.behind()), (Lsn(7 * SIZE), 0), "{transport}");
        assert_eq!(progress.wal(), 6 * SIZE, "{transport}");
        let names: Vec<String> = (1..=6).map(name).collect();
        hosts.assert_same(&names.iter().map(String::as_str).chain(["base/5/1"]).collect::<Vec<_>>());
        assert!(!hosts.path("standby/pg_wal/stray").exists());
        let done = fs::read_dir(hosts.path("standby/pg_wal/archive_status")).expect("archive_status").count();
        assert_eq!(done, 6, "{transport}: the primary archives its own WAL");
        fs::remove_dir_all(hosts.path("standby")).expect("clean");
    }
}

#[test]
fn wal_that_the_primary_has_removed_ends_the_run_at_once() {
    let hosts = Hosts::new();
    hosts.write("primary/base/5/1", &pages(2000, 1));
    write_segments(&hosts, 1..=3);
    for (transport, connector) in transports(&hosts) {
        let (session, _) = hosts.open(&connector, Purpose::Recover).expect(transport);
        let session = hosts.plan(session).expect(transport);
        let positions = Arc::new(WalPositions::default());
        let session = hosts.begin_with(session, Arc::clone(&positions)).expect(transport);
        // the server says that it has written segment 4, which is gone
        positions.set_flushed(Lsn(4 * SIZE + 100));
        let options = TransferOptions { max_rate: 100, ..hosts.options() };
        let error = session.send_data(&hosts.path("primary"), options, None).expect_err(transport);
        assert_eq!(error.kind, Kind::SlotLost, "{transport}: {error}");
        assert!(hosts.path("standby").join(MARKER).exists());
        assert!(!hosts.path("standby/global/pg_control").exists());
        let _ = fs::remove_dir_all(hosts.path("standby"));
    }
}

#[test]
fn what_the_target_says_of_a_failure_is_the_error_of_the_run() {
    let hosts = Hosts::new();
    hosts.write("primary/base/5/1", &pages(2000, 1));
    // another cluster's: the target refuses it
    hosts.write(&format!("primary/{}", name(1)), &segment(2, 1));
    for (transport, connector) in transports(&hosts) {
        let (session, _) = hosts.open(&connector, Purpose::Recover).expect(transport);
        let session = hosts.plan(session).expect(transport);
        let positions = Arc::new(WalPositions::default());
        let session = hosts.begin_with(session, Arc::clone(&positions)).expect(transport);
        positions.set_flushed(Lsn(2 * SIZE));
        let options = TransferOptions { max_rate: 100, ..hosts.options() };
        let error = session.send_data(&hosts.path("primary"), options, None).expect_err(transport);
        assert!(error.message.contains("is another one"), "{transport}: {error}");
        let _ = fs::remove_dir_all(hosts.path("standby"));
    }
}
