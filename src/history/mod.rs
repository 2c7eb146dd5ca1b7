//! What became of the last first stage of each target.
//!
//! Pgpool-II throws away the text of an error from `pgpool_recovery`, but shows that of
//! `pgpool_remote_start`, which it may call in another session. So the cause is kept in a small file
//! beside the server's socket, where PostgreSQL itself keeps what belongs to one server and not into
//! its data directory (docs/decisions/). `pgpool_recovery_status` shows what is remembered, and a running
//! recovery tells there how far it is.

mod file;
mod worker;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pgpool_recovery_core::error::Error;
use pgpool_recovery_core::manifest::path::normalize_directory;
use pgpool_recovery_core::progress::Progress;
use pgpool_recovery_core::sys::clock::now;
use serde::{Deserialize, Serialize};

use self::file::{OutcomesFile, Unwritten};
pub(crate) use self::worker::Worker;
use crate::pg::raised::{self, Raised};
use crate::pg::{catalog, interrupts};

/// Most targets remembered; the oldest go first.
const MOST: usize = 100;

/// How often a running recovery writes down how far it is.
const SHOW: Duration = Duration::from_secs(1);

/// How long the beginning of a recovery waits for other sessions that write theirs down.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long its end does: until it is told, the recovery counts as running for as long as the backend lives.
const LAST_PATIENCE: Duration = Duration::from_secs(5);

thread_local! {
    /// What this session could not write down. Main thread only.
    static SESSION: RefCell<Outcomes> = RefCell::default();
}

/// How a first stage ended, or that it has not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub(crate) enum Outcome {
    /// A backend works on it, or died doing so.
    Running(Worker),
    /// It failed, and this is why.
    Failed {
        error: Error,
        /// Of an ERROR that PostgreSQL raised; the kind of `error` may stand for another one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sqlstate: Option<String>,
    },
    /// The target is complete.
    Succeeded,
    /// A second stage has made a server of its own of it.
    Promoted {
        /// The timeline that it writes.
        timeline: u32,
    },
}

impl Outcome {
    fn failed(error: Error) -> Self {
        Self::Failed { error, sqlstate: None }
    }
}

/// A stage of a recovery.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Stage {
    /// A standby is made.
    #[default]
    First,
    /// It is promoted.
    Second,
}

impl Stage {
    /// As messages call it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::First => "first stage",
            Self::Second => "second stage",
        }
    }
}

/// A recovery of one target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) host: String,
    pub(crate) directory: String,
    /// Which stage this is the outcome of.
    #[serde(default)]
    pub(crate) stage: Stage,
    /// Milliseconds since 1970.
    pub(crate) started: u64,
    /// When it was last heard of, milliseconds since 1970.
    pub(crate) updated: u64,
    pub(crate) outcome: Outcome,
    /// As the report calls them, once they are known.
    pub(crate) transport: Option<String>,
    pub(crate) strategy: Option<String>,
    pub(crate) figures: Option<Figures>,
    /// A page contradicted what the WAL of both sides says, and no run in which everything was compared has found none since.
    #[serde(default)]
    pub(crate) is_contradicted: bool,
    /// Why it is being tried again, while it has not reached the target again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) lost: Option<Error>,
}

/// How far it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Figures {
    pub(crate) phase: String,
    pub(crate) streams: u32,
    /// How long data has been streaming, milliseconds.
    pub(crate) streaming: Option<u64>,
    pub(crate) total: u64,
    pub(crate) compared: u64,
    pub(crate) sent: u64,
    pub(crate) cloned: u64,
    #[serde(default)]
    pub(crate) known: u64,
    pub(crate) wal: u64,
    #[serde(default)]
    pub(crate) wal_behind: u64,
}

impl Figures {
    /// Bytes of data files that need no more looking at: compared, or left out because WAL proves them equal.
    pub(crate) const fn done(&self) -> u64 {
        self.compared.saturating_add(self.known)
    }
}

impl Entry {
    fn key(&self) -> String {
        format!("{}:{}", self.host, self.directory)
    }

    /// The other backend that works on it now. What this one began has ended when it asks.
    pub(crate) fn other_worker(&self) -> Option<&Worker> {
        match &self.outcome {
            Outcome::Running(worker) if *worker != Worker::this() && worker.is_alive() => Some(worker),
            _ => None,
        }
    }
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Outcomes {
    /// By host and directory.
    targets: BTreeMap<String, Entry>,
}

impl Outcomes {
    fn put(&mut self, entry: &Entry) {
        self.targets.insert(entry.key(), entry.clone());
        while self.targets.len() > MOST {
            self.forget_one();
        }
    }

    /// Whether another backend works on a target.
    fn is_worked_on(&self, key: &str) -> bool {
        self.targets.get(key).is_some_and(|entry| entry.other_worker().is_some())
    }

    /// What either knows, of each target the newest.
    fn merge(&mut self, other: Self) {
        for (key, entry) in other.targets {
            if self.targets.get(&key).is_none_or(|known| known.updated <= entry.updated) {
                self.targets.insert(key, entry);
            }
        }
    }

    /// The oldest goes, and first of all what was refused before it did anything.
    fn forget_one(&mut self) {
        let worth = |entry: &Entry| {
            let is_running = matches!(entry.outcome, Outcome::Running(_));
            (is_running || entry.strategy.is_some(), entry.updated)
        };
        let least = self.targets.iter().min_by_key(|(_, entry)| worth(entry));
        if let Some(key) = least.map(|(key, _)| key.clone()) {
            self.targets.remove(&key);
        }
    }
}

/// What one server remembers.
pub(crate) struct History {
    file: Option<OutcomesFile>,
    /// Whether this session is being terminated: then it does not wait.
    is_ending: fn() -> bool,
}

impl History {
    /// The history of this server.
    pub(crate) fn of_this_server() -> Result<Self, Error> {
        let directories = catalog::setting("unix_socket_directories")?.unwrap_or_default();
        let port = catalog::setting("port")?.and_then(|port| port.parse().ok()).unwrap_or(0);
        Ok(Self { is_ending: interrupts::terminating, ..Self::of(&directories, port) })
    }

    /// The history of the server with these socket directories and this port.
    fn of(unix_socket_directories: &str, port: u16) -> Self {
        Self { file: OutcomesFile::beside_socket(unix_socket_directories, port), is_ending: || false }
    }

    /// Everything that is remembered.
    pub(crate) fn all(&self) -> Vec<Entry> {
        let mut outcomes = self.file.as_ref().and_then(OutcomesFile::read).unwrap_or_default();
        outcomes.merge(SESSION.with_borrow(Clone::clone));
        outcomes.targets.into_values().collect()
    }

    /// The last first stage of a target, if any is known.
    pub(crate) fn recall(&self, host: &str, directory: &str) -> Option<Entry> {
        let directory = normal(directory);
        self.all().into_iter().find(|entry| entry.host == host && entry.directory == directory)
    }

    /// A first stage begins. What becomes of it is remembered even if an interrupt ends it.
    pub(crate) fn begin<'a>(&'a self, host: &str, directory: &str, progress: Arc<Progress>) -> Recording<'a> {
        self.begin_stage(Stage::First, host, directory, progress)
    }

    /// The same for any stage.
    pub(crate) fn begin_stage<'a>(
        &'a self,
        stage: Stage,
        host: &str,
        directory: &str,
        progress: Arc<Progress>,
    ) -> Recording<'a> {
        let entry = Entry {
            host: host.to_owned(),
            directory: normal(directory),
            stage,
            started: now(),
            updated: now(),
            outcome: Outcome::Running(Worker::this()),
            transport: None,
            strategy: None,
            figures: None,
            is_contradicted: self.recall(host, directory).is_some_and(|last| last.is_contradicted),
            lost: None,
        };
        let key = entry.key();
        let mut other_runs = false;
        self.change(PATIENCE, Unwritten::Keeps, |outcomes| {
            other_runs |= outcomes.is_worked_on(&key);
            if !other_runs {
                outcomes.put(&entry);
            }
        });
        Recording {
            history: self,
            progress,
            entry: RefCell::new(entry),
            shown: Cell::new(Instant::now()),
            is_silent: Cell::new(other_runs),
            raised: RefCell::new(None),
        }
    }

    /// Best effort: a recovery must not fail because its story cannot be written down. What could not be is
    /// written with the next change.
    fn change(&self, patience: Duration, if_unwritten: Unwritten, mut change: impl FnMut(&mut Outcomes)) {
        let mut unwritten = SESSION.take();
        let written = self.file.as_ref().map(|file| {
            file.change(patience, self.is_ending, if_unwritten, |outcomes| {
                outcomes.merge(unwritten.clone());
                change(outcomes);
            })
        });
        if !matches!(written, Some(Ok(()))) {
            change(&mut unwritten);
            SESSION.set(unwritten);
        }
    }
}

/// A first stage in progress. Dropped without a word it counts as interrupted: an ERROR raised by an
/// interrupt unwinds past everything else.
pub(crate) struct Recording<'a> {
    history: &'a History,
    progress: Arc<Progress>,
    entry: RefCell<Entry>,
    /// When it was last written down.
    shown: Cell<Instant>,
    /// Nothing more is to be said, or another session's run of the same target is what counts.
    is_silent: Cell<bool>,
    /// The ERROR that ends it, if one unwinds.
    raised: RefCell<Option<Raised>>,
}

impl Recording<'_> {
    /// The target is this run's alone. How it is going to be filled, as the report calls it.
    pub(crate) fn set_strategy(&self, transport: &str, strategy: &str) {
        self.is_silent.set(false);
        let mut entry = self.entry.borrow_mut();
        entry.transport = Some(transport.to_owned());
        entry.strategy = Some(strategy.to_owned());
        entry.lost = None;
    }

    /// What a run with `skip_unchanged` has found out about the target, if it has.
    pub(crate) fn set_contradicted(&self, found: Option<bool>) {
        if let Some(is_contradicted) = found {
            self.entry.borrow_mut().is_contradicted = is_contradicted;
        }
    }

    /// It has lost its target, and tries again.
    pub(crate) fn lost(&self, error: Error) {
        self.entry.borrow_mut().lost = Some(error);
        self.show_now();
    }

    /// Writes down how far it is, now and then.
    pub(crate) fn show(&self) {
        if self.shown.get().elapsed() >= SHOW {
            self.show_now();
        }
    }

    /// Writes down how far it is, unless another session is just writing.
    pub(crate) fn show_now(&self) {
        self.shown.set(Instant::now());
        self.put(None);
    }

    /// An ERROR that unwinds is going to end it.
    pub(crate) fn raise(&self, raised: Raised) {
        self.raised.replace(Some(raised));
    }

    /// It ended.
    pub(crate) fn finish(self, outcome: Result<(), Error>) {
        let end = match outcome {
            Ok(()) => Outcome::Succeeded,
            Err(error) => Outcome::failed(error),
        };
        self.put(Some(end));
    }

    /// The target is a server of its own now.
    pub(crate) fn promoted(self, timeline: u32) {
        self.put(Some(Outcome::Promoted { timeline }));
    }

    /// Writes the story down; `end`: it goes no further.
    fn put(&self, end: Option<Outcome>) {
        if self.is_silent.get() {
            return;
        }
        let mut entry = self.entry.borrow_mut();
        entry.updated = now();
        entry.figures = Some(figures(&self.progress));
        let (patience, if_unwritten) = match end {
            // the next time will do
            None => (Duration::ZERO, Unwritten::Keeps),
            Some(outcome) => {
                entry.outcome = outcome;
                self.is_silent.set(true);
                (LAST_PATIENCE, Unwritten::Removes)
            }
        };
        self.history.change(patience, if_unwritten, |outcomes| outcomes.put(&entry));
    }
}

impl Drop for Recording<'_> {
    fn drop(&mut self) {
        let end = match self.raised.take() {
            Some(raised) => Outcome::Failed { error: raised.error(), sqlstate: Some(raised.sqlstate) },
            None => Outcome::failed(raised::interrupted()),
        };
        self.put(Some(end));
    }
}

fn figures(progress: &Progress) -> Figures {
    let milliseconds = |streaming: Duration| u64::try_from(streaming.as_millis()).unwrap_or(u64::MAX);
    Figures {
        phase: progress.phase().name().to_owned(),
        streams: progress.streams(),
        streaming: progress.streaming().map(milliseconds),
        total: progress.total(),
        compared: progress.compared(),
        sent: progress.sent(),
        cloned: progress.cloned(),
        known: progress.known(),
        wal: progress.wal(),
        wal_behind: progress.wal_behind(),
    }
}

/// A directory may be written in several ways.
fn normal(directory: &str) -> String {
    normalize_directory(directory).map_or_else(|_| directory.to_owned(), |path| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use pgpool_recovery_core::error::Kind;

    use super::*;

    #[test]
    fn survives_the_session_and_forgets_damage() {
        let directory = std::env::temp_dir().join(format!("pgpool_recovery_outcomes_{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("make");
        let history = || History::of(&format!("{}, /other", directory.display()), 7);
        let error = Error::new(Kind::DiskFull, "full").hint("Free some.");
        history().begin("h", "/d/", Arc::default()).finish(Err(error.clone()));
        let recall = |directory| history().recall("h", directory).map(|entry| entry.outcome);
        assert_eq!(recall("/d"), Some(Outcome::failed(error)));
        assert_eq!(recall("/e"), None);
        drop(history().begin("h", "/d", Arc::default()));
        assert!(matches!(recall("/d"), Some(Outcome::Failed { error, .. }) if error.kind == Kind::Canceled));
        let of_server = history();
        let recording = of_server.begin("h", "/d", Arc::default());
        recording.raise(Raised::example("55P03", "canceling statement due to lock timeout"));
        drop(recording);
        let Some(Outcome::Failed { error, sqlstate }) = recall("/d") else { panic!("it failed") };
        assert_eq!((error.kind, sqlstate.as_deref()), (Kind::Internal, Some("55P03")));
        assert_eq!(error.message, "canceling statement due to lock timeout");
        history().begin("h", "/d", Arc::default()).finish(Ok(()));
        assert_eq!(recall("/d"), Some(Outcome::Succeeded));
        let file = directory.join(".s.PGSQL.7.recovery.json");
        std::fs::write(&file, "{").expect("write");
        assert_eq!(recall("/d"), None);
        std::fs::remove_file(&file).expect("remove");
        std::os::unix::fs::symlink("/etc/passwd", &file).expect("link");
        assert_eq!(recall("/d"), None, "a link is not followed");
        std::fs::remove_dir_all(&directory).expect("clean");
    }

    #[test]
    fn an_end_that_cannot_be_written_leaves_nobody_waiting() {
        let directory = std::env::temp_dir().join(format!("pgpool_recovery_end_{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("make");
        let history = History::of(&directory.display().to_string(), 7);
        let recording = history.begin("h", "/d", Arc::default());
        let file = directory.join(".s.PGSQL.7.recovery.json");
        assert!(file.exists());
        // nothing can be put into its place
        let new = directory.join(".s.PGSQL.7.recovery.new");
        std::fs::create_dir(&new).expect("in the way");
        recording.finish(Ok(()));
        assert!(!file.exists(), "other sessions know nothing");
        let recall = || history.recall("h", "/d").map(|entry| entry.outcome);
        assert_eq!(recall(), Some(Outcome::Succeeded), "this one does");
        std::fs::remove_dir(&new).expect("out of the way");
        history.begin("h", "/e", Arc::default()).finish(Ok(()));
        SESSION.take();
        assert_eq!(recall(), Some(Outcome::Succeeded), "told with the next one");
        std::fs::remove_dir_all(&directory).expect("clean");
    }

    #[test]
    fn who_works_on_a_target_keeps_its_place() {
        let directory = std::env::temp_dir().join(format!("pgpool_recovery_place_{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("make");
        let history = History::of(&directory.display().to_string(), 7);
        let mut other = std::process::Command::new("sleep").arg("60").spawn().expect("a process");
        let running = Outcome::Running(Worker::of(other.id()));
        history.change(PATIENCE, Unwritten::Keeps, |outcomes| {
            outcomes.put(&entry("/d", 1, Some("delta"), running.clone()))
        });
        let refused = history.begin("h", "/d", Arc::default());
        refused.finish(Err(Error::new(Kind::InUse, "locked")));
        let recall = || history.recall("h", "/d").expect("known");
        assert!(recall().other_worker().is_some_and(|worker| worker.pid == other.id()));
        other.kill().and_then(|()| other.wait()).expect("ended");
        assert!(recall().other_worker().is_none());
        history.begin("h", "/d", Arc::default()).finish(Ok(()));
        assert_eq!(recall().outcome, Outcome::Succeeded);
        std::fs::remove_dir_all(&directory).expect("clean");
    }

    fn entry(directory: &str, updated: u64, strategy: Option<&str>, outcome: Outcome) -> Entry {
        Entry {
            host: "h".to_owned(),
            directory: directory.to_owned(),
            stage: Stage::First,
            started: 0,
            updated,
            outcome,
            transport: None,
            strategy: strategy.map(str::to_owned),
            figures: None,
            is_contradicted: false,
            lost: None,
        }
    }

    #[test]
    fn refusals_are_forgotten_before_anything_else() {
        let mut outcomes = Outcomes::default();
        let (real, running) = (Outcome::Succeeded, Outcome::Running(Worker::this()));
        outcomes.put(&entry("/old", 1, Some("delta"), real.clone()));
        outcomes.put(&entry("/running", 2, None, running));
        for number in 0..300 {
            outcomes.put(&entry(&format!("/refused/{number}"), 100 + number, None, real.clone()));
        }
        assert_eq!(outcomes.targets.len(), MOST);
        assert!(outcomes.targets.contains_key("h:/old") && outcomes.targets.contains_key("h:/running"));
        assert!(outcomes.targets.contains_key("h:/refused/299"));
    }

    #[test]
    fn whose_number_somebody_else_has_now_runs_no_more() {
        let directory = std::env::temp_dir().join(format!("pgpool_recovery_number_{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("make");
        let history = History::of(&directory.display().to_string(), 7);
        // a backend of that number died in the middle
        let gone = Outcome::Running(Worker::this().successor());
        history.change(PATIENCE, Unwritten::Keeps, |outcomes| {
            outcomes.put(&entry("/d", 1, Some("delta"), gone.clone()))
        });
        history.begin("h", "/d", Arc::default()).finish(Ok(()));
        assert_eq!(history.recall("h", "/d").map(|entry| entry.outcome), Some(Outcome::Succeeded));
        std::fs::remove_dir_all(&directory).expect("clean");
    }
}
