//! What has been done to each directory since the receiver's start: the run in progress, the last one,
//! and the sums of all. It is kept in memory only.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::error::{Error, Kind};
use crate::manifest::list::FileList;
use crate::sys::clock;
use crate::sys::lock::lock;
use crate::wire::protocol::status::{Account, Moved, Run, State};

/// The accounts of all directories.
pub(super) struct Ledger {
    started: u64,
    since: Instant,
    accounts: Mutex<HashMap<PathBuf, Page>>,
}

/// One directory's page.
#[derive(Default)]
struct Page {
    running: Option<Arc<Entry>>,
    /// All but the run in progress.
    ended: Account,
}

/// A run as the threads of its links see it.
struct Entry {
    primary: Option<IpAddr>,
    started: u64,
    since: Instant,
    files: u64,
    bytes: u64,
    known: AtomicU64,
    step: AtomicU8,
    compared: AtomicU64,
    received: AtomicU64,
    written: AtomicU64,
    wal: AtomicU64,
    streams: AtomicU32,
}

impl Ledger {
    pub(super) fn new() -> Self {
        Self { started: now(), since: Instant::now(), accounts: Mutex::default() }
    }

    /// When the receiver started, seconds since 1970.
    pub(super) const fn started(&self) -> u64 {
        self.started
    }

    pub(super) fn uptime(&self) -> Duration {
        self.since.elapsed()
    }

    /// A run begins. Only one can: it holds the directory's lock.
    pub(super) fn begin(
        self: &Arc<Self>,
        directory: &Path,
        primary: Option<IpAddr>,
        files: &FileList,
    ) -> Record {
        let entry = Arc::new(Entry::new(primary, files));
        lock(&self.accounts).entry(directory.to_owned()).or_default().running = Some(Arc::clone(&entry));
        Record {
            ledger: Arc::clone(self),
            directory: directory.to_owned(),
            entry,
            end: Mutex::new(End::Open),
        }
    }

    /// The record of a dry run, which is not shown: a dry run changes nothing.
    pub(super) fn unlisted(self: &Arc<Self>, files: &FileList) -> Record {
        Record {
            ledger: Arc::clone(self),
            directory: PathBuf::new(),
            entry: Arc::new(Entry::new(None, files)),
            end: Mutex::new(End::Closed),
        }
    }

    /// What is known of a directory.
    pub(super) fn account(&self, directory: &Path) -> Account {
        let accounts = lock(&self.accounts);
        let Some(page) = accounts.get(directory) else {
            return Account::default();
        };
        let mut account = page.ended.clone();
        account.running = page.running.as_ref().map(|entry| entry.describe(entry.state(), None));
        if let Some(running) = &account.running {
            account.moved += running.moved;
        }
        account
    }

    fn close(&self, directory: &Path, entry: &Entry, state: State, error: Option<Error>) {
        let mut run = entry.describe(state, error);
        run.ended = Some(now());
        let mut accounts = lock(&self.accounts);
        let page = accounts.entry(directory.to_owned()).or_default();
        page.running = None;
        let account = &mut page.ended;
        account.moved += run.moved;
        match state {
            State::Succeeded => {
                account.succeeded += 1;
                account.last_success = run.ended;
            }
            State::GivenUp => account.given_up += 1,
            _ => account.failed += 1,
        }
        account.last = Some(run);
    }
}

impl Entry {
    fn new(primary: Option<IpAddr>, files: &FileList) -> Self {
        Self {
            primary,
            started: now(),
            since: Instant::now(),
            files: files.len() as u64,
            bytes: files.bytes(),
            known: AtomicU64::new(0),
            step: AtomicU8::new(State::Data as u8),
            compared: AtomicU64::new(0),
            received: AtomicU64::new(0),
            written: AtomicU64::new(0),
            wal: AtomicU64::new(0),
            streams: AtomicU32::new(0),
        }
    }

    fn state(&self) -> State {
        let step = self.step.load(Ordering::Relaxed);
        [State::Durable, State::Wal].into_iter().find(|state| *state as u8 == step).unwrap_or(State::Data)
    }

    fn describe(&self, state: State, error: Option<Error>) -> Run {
        Run {
            state,
            primary: self.primary,
            started: self.started,
            ended: None,
            milliseconds: u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX),
            files: self.files,
            bytes: self.bytes,
            known: self.known.load(Ordering::Relaxed),
            moved: Moved {
                compared: self.compared.load(Ordering::Relaxed),
                received: self.received.load(Ordering::Relaxed),
                written: self.written.load(Ordering::Relaxed),
            },
            wal: self.wal.load(Ordering::Relaxed),
            streams: self.streams.load(Ordering::Relaxed),
            error,
        }
    }
}

/// The record of a run. Dropped, the run has ended: before its lock is let go of, so that the next run
/// finds it closed.
pub(super) struct Record {
    ledger: Arc<Ledger>,
    directory: PathBuf,
    entry: Arc<Entry>,
    end: Mutex<End>,
}

enum End {
    Open,
    Failed(Error),
    Closed,
}

impl Record {
    /// Enters [`State::Wal`] or [`State::Durable`].
    pub(super) fn enter(&self, step: State) {
        self.entry.step.store(step as u8, Ordering::Relaxed);
    }

    /// So many bytes are not compared.
    pub(super) fn leave_out(&self, bytes: u64) {
        self.entry.known.store(bytes, Ordering::Relaxed);
    }

    pub(super) fn add_compared(&self, bytes: u64) {
        self.entry.compared.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn add_received(&self, bytes: u64) {
        self.entry.received.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn add_wal(&self, bytes: u64) {
        self.entry.wal.fetch_add(bytes, Ordering::Relaxed);
        self.add_received(bytes);
    }

    /// A data link opens; it counts until what is returned is dropped.
    pub(super) fn open_stream(&self) -> OpenStream<'_> {
        self.entry.streams.fetch_add(1, Ordering::Relaxed);
        OpenStream(&self.entry.streams)
    }

    pub(super) fn add_written(&self, bytes: u64) {
        self.entry.written.fetch_add(bytes, Ordering::Relaxed);
    }

    /// The directory is complete: the run has ended, even if a link still has to notice.
    pub(super) fn succeed(&self) {
        *lock(&self.end) = End::Closed;
        self.ledger.close(&self.directory, &self.entry, State::Succeeded, None);
    }

    /// The control link ended with this. The first cause is kept.
    pub(super) fn fail(&self, error: &Error) {
        let mut end = lock(&self.end);
        if matches!(*end, End::Open) {
            *end = End::Failed(error.clone());
        }
    }

    /// A data link ended with this. If it is the cause of the run's end, the primary was told, gave the
    /// run up, and the control link knows only that.
    pub(super) fn fail_link(&self, error: &Error) {
        let mut end = lock(&self.end);
        let replaceable = match &*end {
            End::Open => true,
            End::Failed(known) => is_consequence(known),
            End::Closed => false,
        };
        if replaceable && !is_consequence(error) {
            *end = End::Failed(error.clone());
        }
    }
}

/// A data link that is open.
pub(super) struct OpenStream<'a>(&'a AtomicU32);

impl Drop for OpenStream<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let error = match std::mem::replace(&mut *lock(&self.end), End::Closed) {
            End::Closed => return,
            End::Failed(error) => error,
            // only a thread that panicked says nothing
            End::Open => Error::new(Kind::Internal, "the run ended without a word"),
        };
        let state = if is_consequence(&error) { State::GivenUp } else { State::Failed };
        self.ledger.close(&self.directory, &self.entry, state, Some(error));
    }
}

/// Whether an error is what a link sees when the primary leaves, whatever its reason.
const fn is_consequence(error: &Error) -> bool {
    matches!(error.kind, Kind::Canceled | Kind::ConnectionLost)
}

/// Seconds since 1970.
fn now() -> u64 {
    clock::now() / 1000
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::path::RelPath;
    use crate::manifest::plan::File;

    const DIRECTORY: &str = "/srv/pg/node1";

    fn ledger() -> Arc<Ledger> {
        Arc::new(Ledger::new())
    }

    fn begin(ledger: &Arc<Ledger>) -> Record {
        let file = |path: &str, size| File { path: RelPath::parse(path).expect("valid"), size, mode: 0o600 };
        ledger.begin(
            Path::new(DIRECTORY),
            Some([10, 0, 0, 1].into()),
            &[file("a", 100), file("b", 28)].into_iter().collect(),
        )
    }

    fn account(ledger: &Ledger) -> Account {
        ledger.account(Path::new(DIRECTORY))
    }

    fn last(ledger: &Ledger) -> Run {
        account(ledger).last.expect("a run has ended")
    }

    #[test]
    fn a_run_is_seen_while_it_lasts_and_afterwards() {
        let ledger = ledger();
        assert_eq!(account(&ledger), Account::default());
        let record = begin(&ledger);
        record.add_compared(64);
        record.add_received(10);
        let running = account(&ledger).running.expect("in progress");
        assert_eq!((running.state, running.files, running.bytes), (State::Data, 2, 128));
        assert_eq!(running.primary, Some([10, 0, 0, 1].into()));
        assert_eq!(running.moved, Moved { compared: 64, received: 10, written: 0 });
        assert_eq!((running.ended, running.error), (None, None));
        record.add_wal(5);
        let streams = [record.open_stream(), record.open_stream()];
        let of_links = |run: &Run| (run.moved.received, run.wal, run.streams);
        assert_eq!(account(&ledger).running.as_ref().map(of_links), Some((15, 5, 2)));
        drop(streams);
        assert_eq!(account(&ledger).running.as_ref().map(of_links), Some((15, 5, 0)));
        record.leave_out(32);
        assert_eq!(account(&ledger).running.map(|run| (run.known, run.percent())), Some((32, 75)));
        for step in [State::Wal, State::Durable] {
            record.enter(step);
            assert_eq!(account(&ledger).running.map(|run| run.state), Some(step));
        }
        record.succeed();
        // a link that has not noticed yet holds it still
        let after = account(&ledger);
        drop(record);
        assert_eq!(account(&ledger), after);
        assert_eq!((after.running, after.succeeded, after.failed, after.given_up), (None, 1, 0, 0));
        let last = after.last.expect("it has ended");
        assert_eq!((last.state, last.error), (State::Succeeded, None));
        assert!(last.ended.is_some_and(|ended| ended >= last.started) && after.last_success == last.ended);
        assert_eq!(ledger.account(Path::new("/srv/pg/node2")), Account::default());
    }

    #[test]
    fn sums_only_grow() {
        let ledger = ledger();
        for count in 1..=3 {
            let record = begin(&ledger);
            record.add_written(5);
            assert_eq!(account(&ledger).moved.written, count * 5, "with the run in progress");
            drop(record);
            assert_eq!(account(&ledger).moved.written, count * 5);
        }
        assert_eq!(account(&ledger).failed, 3);
        assert_eq!(account(&ledger).last_success, None);
    }

    #[test]
    fn the_cause_is_told_from_what_follows_from_it() {
        let gave_up = Error::new(Kind::Canceled, "the primary gave up the recovery");
        let lost = Error::new(Kind::ConnectionLost, "lost");
        let full = Error::new(Kind::DiskFull, "full");
        type Step = fn(&Record, &Error);
        let (control, data): (Step, Step) = (Record::fail, Record::fail_link);
        for (steps, state, message) in [
            (vec![(control, &gave_up)], State::GivenUp, "the primary gave up the recovery"),
            (vec![(data, &lost), (control, &gave_up)], State::GivenUp, "the primary gave up the recovery"),
            (vec![(control, &lost), (data, &gave_up)], State::GivenUp, "lost"),
            (vec![(data, &full), (control, &gave_up)], State::Failed, "full"),
            (vec![(control, &gave_up), (data, &full)], State::Failed, "full"),
            (vec![(control, &full), (data, &lost)], State::Failed, "full"),
        ] {
            let ledger = ledger();
            let record = begin(&ledger);
            for (step, error) in steps {
                step(&record, error);
            }
            drop(record);
            let last = last(&ledger);
            let told = last.error.map(|error| error.message);
            assert_eq!((last.state, told.as_deref()), (state, Some(message)));
        }
    }
}
