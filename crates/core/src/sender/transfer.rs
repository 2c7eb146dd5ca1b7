//! Moving files over several data links at once.

use std::io;
use std::path::Path;
use std::sync::Mutex;
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use super::TransferOptions;
use super::conversation::Conversation;
use super::pack::Chooser;
use super::rate::Rate;
use super::stream::{Examination, Stream, Transfer, What};
use crate::compare::source::ChangeSource;
use crate::compare::work::Work;
use crate::error::{Error, Kind, Result};
use crate::manifest::list::FileList;
use crate::wire::link::Link;
use crate::wire::protocol::MAX_STREAMS;

/// Data links, and how data is moved over them.
pub(crate) struct Links {
    links: Vec<Link>,
    options: TransferOptions,
    rate: Rate,
}

/// What is moved.
pub(super) struct Job<'a> {
    pub(super) data_directory: &'a Path,
    pub(super) files: &'a FileList,
    /// Says how.
    pub(super) source: &'a dyn ChangeSource,
    pub(super) what: What,
    pub(super) examination: Option<Examination<'a>>,
}

impl<'a> Job<'a> {
    /// Nothing is examined.
    pub(super) fn new(
        data_directory: &'a Path,
        files: &'a FileList,
        source: &'a dyn ChangeSource,
        what: What,
    ) -> Self {
        Self { data_directory, files, source, what, examination: None }
    }
}

impl Links {
    /// Attaches as many links as `options` asks for.
    pub(super) fn attach(conversation: &Conversation, options: TransferOptions, rate: Rate) -> Result<Self> {
        let connector = &conversation.connector;
        let jobs = streams(options.jobs, connector.is_remote(), connector.round_trip());
        // all at once: each takes some round trips
        let entrance = conversation.entrance();
        let links = together(jobs, || entrance.attach())?;
        conversation.progress.set_streams(u32::try_from(jobs).unwrap_or(u32::MAX));
        Ok(Self { links, options, rate })
    }

    /// Moves files.
    pub(super) fn transfer(&mut self, conversation: &Conversation, job: &Job<'_>) -> Result<()> {
        let Job { data_directory, files, source, what, examination } = *job;
        let Self { links, options, rate } = self;
        let chooser = Chooser::new(options.compression, Instant::now());
        // what was cloned is read only to be verified, once
        let verifies = options.checksums.is_some() && what != What::Sample;
        let work = Work::new(files, source, links.len(), verifies);
        let cancel = &conversation.cancel;
        let transfer = &Transfer {
            data_directory,
            files,
            work: Mutex::new(work),
            what,
            digest_key: &conversation.digest_key,
            checksums: options.checksums,
            chooser: &chooser,
            rate,
            progress: &conversation.progress,
            cancel,
            is_remote: conversation.connector.is_remote(),
            place: &conversation.place,
            examination,
        };
        std::thread::scope(|scope| {
            let workers: Vec<_> = links
                .iter_mut()
                .enumerate()
                .map(|(number, link)| {
                    let work = move || {
                        // one stream that fails ends the others: they see the cause, not a broken link
                        Stream::new(transfer, number, link)
                            .run()
                            .inspect_err(|error| cancel.trip_with(error.clone()))
                    };
                    std::thread::Builder::new().name("send".to_owned()).spawn_scoped(scope, work)
                })
                .collect();
            let results: Vec<Result<()>> = workers.into_iter().map(joined).collect();
            let finished: Result<()> = results.into_iter().collect();
            // the others failed because the first one did
            finished.map_err(|error| cancel.cause().unwrap_or(error))
        })
    }
}

/// What a thread has come to, if it was started.
fn joined<T>(worker: io::Result<ScopedJoinHandle<'_, Result<T>>>) -> Result<T> {
    let worker = worker.map_err(|error| Error::no_thread(&error))?;
    worker.join().unwrap_or_else(|_| Err(Error::new(Kind::Internal, "a thread that sends data panicked")))
}

/// Does something so many times at once.
fn together<T: Send>(count: usize, work: impl Fn() -> Result<T> + Sync) -> Result<Vec<T>> {
    std::thread::scope(|scope| {
        let start = |_| std::thread::Builder::new().name("send".to_owned()).spawn_scoped(scope, &work);
        let workers: Vec<_> = (0..count).map(start).collect();
        // every thread is waited for, whatever the first one says
        let results: Vec<Result<T>> = workers.into_iter().map(joined).collect();
        results.into_iter().collect()
    })
}

/// What one TCP connection has under way on a host with the kernel's default settings: Linux lets a window grow to some 3 MB.
const WINDOW: u64 = 3 << 20;

/// The speed that distance is not to take away, bytes per second: 2 Gbit/s.
const SPEED: u64 = 250_000_000;

/// Most streams that are chosen here.
const MOST_CHOSEN: usize = 16;

/// How many streams a setting of `jobs` means. Within one process they mostly wait for the disk, which
/// likes to have more to do than there are processors. Far away each is held up by its window.
fn streams(jobs: u32, is_remote: bool, round_trip: Duration) -> usize {
    if jobs > 0 {
        return (jobs as usize).min(MAX_STREAMS);
    }
    let under_way = u64::try_from(u128::from(SPEED) * round_trip.as_nanos() / 1_000_000_000);
    let windows = under_way.unwrap_or(u64::MAX).div_ceil(WINDOW);
    let least = if is_remote { usize::try_from(windows).unwrap_or(MOST_CHOSEN).max(2) } else { 4 };
    let least = least.min(MOST_CHOSEN);
    std::thread::available_parallelism().map_or(least, |count| count.get().clamp(least, MOST_CHOSEN))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn far_away_more_streams_are_needed() {
        let far = |milliseconds| streams(0, true, Duration::from_millis(milliseconds));
        let processors = streams(0, true, Duration::ZERO);
        assert_eq!(far(1), processors);
        assert!((5..=MOST_CHOSEN).contains(&far(53)), "{}", far(53));
        assert_eq!(far(100_000), MOST_CHOSEN);
        assert_eq!(streams(0, true, Duration::MAX), MOST_CHOSEN);
        assert_eq!(streams(3, true, Duration::from_millis(53)), 3, "what was set is kept");
        assert_eq!(streams(1000, true, Duration::ZERO), MAX_STREAMS);
        assert!(streams(0, false, Duration::ZERO) >= 4);
    }

    #[test]
    fn what_is_done_together_takes_the_time_of_one() {
        let barrier = std::sync::Barrier::new(5);
        // ends only if all five are under way at once
        let done = together(5, || Ok(barrier.wait().is_leader())).expect("no error");
        assert_eq!(done.iter().filter(|is_leader| **is_leader).count(), 1);
        let failed: Result<Vec<()>> = together(3, || Err(Error::new(Kind::Internal, "no")));
        assert_eq!(failed.expect_err("all failed").message, "no");
    }
}
