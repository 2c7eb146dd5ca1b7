//! Moving files over several data links at once.

use std::path::Path;
use std::sync::Mutex;
use std::time::Instant;

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
        let jobs = streams(options.jobs, conversation.connector.is_remote());
        let links = (0..jobs).map(|_| conversation.attach()).collect::<Result<_>>()?;
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
            let results: Vec<Result<()>> = workers
                .into_iter()
                .map(|worker| {
                    let worker = worker.map_err(|error| Error::no_thread(&error))?;
                    worker.join().unwrap_or_else(|_| {
                        Err(Error::new(Kind::Internal, "a thread that sends data panicked"))
                    })
                })
                .collect();
            let finished: Result<()> = results.into_iter().collect();
            // the others failed because the first one did
            finished.map_err(|error| cancel.cause().unwrap_or(error))
        })
    }
}

/// How many streams a setting of `jobs` means. Within one process they mostly wait for the disk, which
/// likes to have more to do than there are processors.
fn streams(jobs: u32, is_remote: bool) -> usize {
    let least = if is_remote { 2 } else { 4 };
    let wanted = match jobs {
        0 => std::thread::available_parallelism().map_or(least, |count| count.get().clamp(least, 16)),
        jobs => jobs as usize,
    };
    wanted.min(MAX_STREAMS)
}
