//! What a receiver tells of the runs that it serves.

mod fixture;

use std::fs;
use std::sync::Arc;

use fixture::{Hosts, pages};
use pgpool_recovery_core::error::Kind;
use pgpool_recovery_core::sys::cancel::Cancel;
use pgpool_recovery_core::wire::inquiry;
use pgpool_recovery_core::wire::link::Connector;
use pgpool_recovery_core::wire::protocol::message::Purpose;
use pgpool_recovery_core::wire::protocol::status::{self, Moved, State};

/// What the agent tells of its only directory.
fn told(connector: &Arc<dyn Connector>) -> status::Directory {
    let status = inquiry::status(&**connector, &Cancel::new()).expect("status");
    assert_eq!(status.version, env!("CARGO_PKG_VERSION"));
    <[_; 1]>::try_from(status.directories).expect("one is listed").into_iter().next().expect("one")
}

/// The same, once it satisfies: an agent notices the end of a run within milliseconds.
fn told_when(connector: &Arc<dyn Connector>, satisfies: fn(&status::Directory) -> bool) -> status::Directory {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    loop {
        let told = told(connector);
        if satisfies(&told) {
            return told;
        }
        assert!(std::time::Instant::now() < deadline, "{told:?}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

#[test]
fn an_agent_tells_how_its_runs_go() {
    let hosts = Hosts::new();
    hosts.write("primary/base/5/1", &pages(300, 1));
    let connector = hosts.agent();
    let idle = told(&connector);
    assert_eq!(idle.data_directory, hosts.path("standby"));
    assert_eq!((idle.server, idle.incomplete, idle.account), (None, false, status::Account::default()));
    assert!(!hosts.path("standby").exists(), "asking makes nothing");
    hosts.dry_run(&connector).expect("dry run");
    assert_eq!(told(&connector).account, status::Account::default(), "a dry run is none");

    let (session, progress) = hosts.open(&connector, Purpose::Recover).expect("open");
    assert_eq!(told(&connector).account.running, None, "a run counts from its first change on");
    let session = hosts.plan(session).expect("plan");
    let session = hosts.begin(session).expect("begin");
    let begun = told(&connector);
    assert!(begun.incomplete && begun.marker.is_some_and(|marker| marker.note == "test"));
    let run = begun.account.running.expect("in progress");
    assert_eq!((run.state, run.bytes, run.ended), (State::Data, progress.total(), None));
    assert_eq!(run.primary, Some([127, 0, 0, 1].into()));
    let session = hosts.send(session).expect("send");
    let moved = Moved { compared: progress.total(), received: progress.sent(), written: progress.sent() };
    assert_eq!(told(&connector).account.running.expect("in progress").moved, moved);
    let (session, _) = session.reconcile().expect("reconcile");
    assert_eq!(told(&connector).account.running.expect("in progress").state, State::Wal);
    drop(session);

    let broken = told_when(&connector, |told| told.account.running.is_none());
    assert!(broken.incomplete);
    let last = broken.account.last.expect("a run has ended");
    assert_eq!((last.state, last.moved), (State::GivenUp, moved));
    assert_eq!(last.error.expect("why").kind, Kind::ConnectionLost);

    hosts.run(&connector).expect("run");
    let done = told(&connector);
    assert_eq!((done.incomplete, done.marker, done.account.running), (false, None, None));
    let last = done.account.last.expect("a run has ended");
    let wal = fs::metadata(hosts.path("primary/pg_wal/000000010000000000000001")).expect("WAL").len();
    assert_eq!((last.state, last.error.as_ref()), (State::Succeeded, None));
    assert_eq!(last.moved.compared, progress.total());
    assert!((1..=wal).contains(&last.moved.received), "WAL only: {last:?}");
    assert_eq!((done.account.succeeded, done.account.failed, done.account.given_up), (1, 0, 1));
    assert_eq!(done.account.moved.written, moved.written + last.moved.written);
    assert_eq!(done.account.last_success, last.ended);
}

#[test]
fn an_agent_tells_what_broke_a_run() {
    let hosts = Hosts::new();
    hosts.write("primary/base/5/1", &pages(300, 1));
    let connector = hosts.agent();
    let (session, _) = hosts.open(&connector, Purpose::Recover).expect("open");
    let session = hosts.plan(session).expect("plan");
    let session = hosts.begin(session).expect("begin");
    // a file takes the place of a directory that the run has made
    fs::remove_dir(hosts.path("standby/base/5")).expect("remove");
    hosts.write("standby/base/5", b"no directory");
    let error = hosts.send(session).expect_err("no place for the file");
    let broken = told_when(&connector, |told| told.account.running.is_none());
    assert_eq!((broken.account.failed, broken.account.given_up), (1, 0));
    let last = broken.account.last.expect("a run has ended");
    assert_eq!((last.state, last.error), (State::Failed, Some(error)), "the link's error, not what followed");
}
