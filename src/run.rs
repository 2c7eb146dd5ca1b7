//! One command at work: what blocks runs beside the backend's main thread, which shows meanwhile how far it is.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use pgpool_recovery_core::error::{Error, Kind, Result};
use pgpool_recovery_core::progress::{Phase, Progress};
use pgpool_recovery_core::sender::WalPositions;
use pgpool_recovery_core::sys::cancel::Cancel;
use pgpool_recovery_core::sys::space::WatchedSpace;

use crate::history::Recording;
use crate::pg::memory;
use crate::pg::slot::Slot;
use crate::pg::threads::{self, DropAside};
use crate::watch::Watch;

/// Owns what the threads of one command share: the cancel and the counters.
pub(crate) struct Run<'a> {
    cancel: Cancel,
    progress: Arc<Progress>,
    wire: Arc<AtomicU64>,
    /// A command that moves no data shows nothing.
    watch: Option<Watch<'a>>,
    /// When its time is over, and how much that was.
    end: Option<(Instant, Duration)>,
}

impl<'a> Run<'a> {
    /// Shows nothing.
    pub(crate) fn quiet() -> Self {
        memory::forget();
        Self { cancel: Cancel::new(), progress: Arc::default(), wire: Arc::default(), watch: None, end: None }
    }

    /// Shows nothing, and fails when its time is over.
    pub(crate) fn within(time: Duration) -> Self {
        Self { end: Some((Instant::now() + time, time)), ..Self::quiet() }
    }

    /// Shows its progress, and writes it to `recording`; a dry run has none.
    pub(crate) fn watched(progress: Arc<Progress>, recording: Option<&'a Recording<'a>>) -> Self {
        memory::forget();
        let watch = Watch::start(Arc::clone(&progress), recording);
        Self { cancel: Cancel::new(), progress, wire: Arc::default(), watch: Some(watch), end: None }
    }

    /// Begins anew after an attempt has failed. What was sent stays sent, on the wire as well.
    pub(crate) fn next_attempt(&mut self) {
        memory::forget();
        self.cancel = Cancel::new();
        self.progress.next_attempt();
        self.watch = self.watch.take().map(Watch::next_attempt);
    }

    /// Sleeps, showing nothing. Ends as everything else does that blocks.
    pub(crate) fn pause(&self, time: Duration) -> Result<()> {
        let cancel = &self.cancel;
        threads::wait(cancel, &mut || Ok(()), || cancel.sleep(time))
    }

    pub(crate) const fn progress(&self) -> &Arc<Progress> {
        &self.progress
    }

    /// What the links count their bytes with, both directions.
    pub(crate) const fn wire(&self) -> &Arc<AtomicU64> {
        &self.wire
    }

    /// Runs `job` on a thread of its own and returns what it returns; see [`threads::wait`].
    pub(crate) fn blocking<T: Send>(&mut self, job: impl FnOnce(&Cancel) -> Result<T> + Send) -> Result<T> {
        self.blocking_with(None, job)
    }

    /// Like [`Self::blocking`]; what the job tells meanwhile is heard by the main thread.
    pub(crate) fn blocking_told<T: Send, M: Send>(
        &mut self,
        mut hear: impl FnMut(M),
        job: impl FnOnce(&Cancel, &mut dyn FnMut(M)) -> Result<T> + Send,
    ) -> Result<T> {
        let (teller, told) = channel();
        let (cancel, mut tick) = self.at_work(None);
        let mut hear_and_tick = || {
            told.try_iter().for_each(&mut hear);
            tick()
        };
        // nobody hears what is told after the end
        threads::wait(cancel, &mut hear_and_tick, || job(cancel, &mut |said| drop(teller.send(said))))
    }

    /// Like [`Self::blocking`]; fails as soon as the slot has lost WAL.
    pub(crate) fn blocking_with<T: Send>(
        &mut self,
        slot: Option<&Slot>,
        job: impl FnOnce(&Cancel) -> Result<T> + Send,
    ) -> Result<T> {
        let (cancel, mut tick) = self.at_work(slot);
        threads::wait(cancel, &mut tick, || job(cancel))
    }

    /// Runs a step that takes what was owned and returns what it has after; see [`threads::step`].
    pub(crate) fn step<A: Send + 'static, B: Send + 'static, T: Send>(
        &mut self,
        owned: DropAside<A>,
        slot: Option<&Slot>,
        job: impl FnOnce(A) -> Result<(B, T)> + Send,
    ) -> Result<(DropAside<B>, T)> {
        let (cancel, mut tick) = self.at_work(slot);
        threads::step(owned, cancel, &mut tick, job)
    }

    /// The switch of a job, and what the main thread does while it runs.
    fn at_work(&mut self, slot: Option<&Slot>) -> (&Cancel, impl FnMut() -> Result<()>) {
        let Self { cancel, watch, end, .. } = self;
        let tick = move || match end {
            Some((end, time)) if Instant::now() >= *end => Err(too_late(*time)),
            _ => watch.as_mut().map_or(Ok(()), |watch| watch.tick(slot)),
        };
        (cancel, tick)
    }

    /// Enters a phase and shows it at once.
    pub(crate) fn enter(&mut self, phase: Phase) {
        if let Some(watch) = &mut self.watch {
            watch.enter(phase);
        }
    }

    /// From now on a run that leaves the primary too little room there fails.
    pub(crate) fn guard(&mut self, space: WatchedSpace) {
        if let Some(watch) = &mut self.watch {
            watch.guard(space);
        }
    }

    /// From now on WAL is sent as the server flushes it.
    pub(crate) fn send_wal(&mut self, positions: Arc<WalPositions>) {
        if let Some(watch) = &mut self.watch {
            watch.send_wal(positions);
        }
    }

    /// The number of tablespaces, the default one included.
    pub(crate) fn tablespaces(&self, total: usize) {
        if let Some(watch) = &self.watch {
            watch.tablespaces(total);
        }
    }

    /// All tablespaces were streamed, and the data is complete.
    pub(crate) fn data_done(&mut self, tablespaces: usize) {
        if let Some(watch) = &mut self.watch {
            watch.tablespaces_streamed(tablespaces);
            watch.data_done();
        }
    }
}

fn too_late(time: Duration) -> Error {
    Error::new(Kind::Unreachable, format!("it took longer than {:.1} s", time.as_secs_f32()))
        .hint("Check that its host is up and reachable.")
}
