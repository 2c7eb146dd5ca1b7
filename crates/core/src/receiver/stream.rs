//! A data link: one thread reads from the link, two write pages, one digests what is there and answers,
//! one starts the disk early on what was written. So no direction of the link waits for the other or for
//! the disk, and the target is read ahead of the pages that arrive.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::ScopedJoinHandle;

use super::digest::Digester;
use super::run::Run;
use super::write::PageWriter;
use super::{connection_closed, reply, unexpected};
use crate::error::{Error, Kind, Result};
use crate::manifest::plan::Range;
use crate::sys::buffer::Buffer;
use crate::sys::cancel::Cancel;
use crate::wire::compress::Decompressor;
use crate::wire::link::{Link, Sink, Source};
use crate::wire::protocol::MAX_ASKED;
use crate::wire::protocol::data::{
    ASK, BARRIER, CONTENT, ContentTail, DIFFERS, DIGESTS, END_OF_FILE, FAILED, GONE, PAGES, PagesTail,
    WRITTEN, decode_ask, decode_end_of_file, decode_file,
};
use crate::wire::protocol::examine::{EXAMINE, EXAMINED};
use crate::wire::protocol::message::{self, Reply};

/// Requests that wait to be answered; the sender keeps fewer on the way. The reading thread is never to wait here: answers
/// may wait for the sender to take them, which takes none while it waits for what it sends to be read.
const QUEUE: usize = MAX_ASKED + 8;

/// Threads that write: each mostly waits for the disk, which likes to have more to do.
const WRITERS: usize = 2;

/// Frames that wait for each of them, each up to a range long.
const WRITES: usize = 1;

/// Files that wait to be synced early; more of them are synced at the end.
const SYNCS: usize = 2;

/// What is left to the syncing thread.
pub(super) enum Early {
    /// Much of this is in the page cache only.
    Sync(File),
    /// Tells when everything before has been synced.
    Answer(SyncSender<()>),
}

/// What the reading thread leaves to the writing one.
enum Step {
    Pages(PagesTail, Buffer),
    Content(ContentTail, Buffer),
    /// Every writer gets it, and counts itself off: the last one tells that all is written.
    Barrier(Arc<AtomicUsize>),
}

/// What is left to the answering thread.
enum Task {
    /// Digests, and whether pages are examined.
    Digest(Vec<Range>, bool),
    Written(u32),
    Barrier,
    Fail(Error),
}

/// Serves the link until the sender closes it.
pub(super) fn serve(run: &Run, link: Link, cancel: &Cancel) -> Result<()> {
    let Link { mut sink, mut source, .. } = link;
    let _open = run.record.open_stream();
    let close = cancel.clone();
    run.cancel.on_trip(Box::new(move || close.trip()));
    reply(&mut *sink, &Reply::Ok)?;
    let (tasks, queue) = sync_channel(QUEUE);
    let (spend, spent) = channel();
    let (dirty, to_sync) = sync_channel(SYNCS);
    // what is dropped closes the link: not before the reason is known to a sender in this process
    let sink = &mut *sink;
    std::thread::scope(|scope| {
        let start = |name: &str| std::thread::Builder::new().name(name.to_owned());
        let failed = |error: std::io::Error| {
            let error = Error::no_thread(&error);
            cancel.trip_with(error.clone());
            error
        };
        let answers =
            start("target-digests").spawn_scoped(scope, move || answer(run, sink, &queue)).map_err(failed)?;
        let unsynced = tasks.clone();
        let syncs = start("target-sync")
            .spawn_scoped(scope, move || sync_early(&to_sync, &unsynced))
            .map_err(failed)?;
        let mut steps = Vec::with_capacity(WRITERS);
        let mut writers = Vec::with_capacity(WRITERS);
        for _ in 0..WRITERS {
            let (step, writes) = sync_channel(WRITES);
            let (answered, spend, dirty) = (tasks.clone(), spend.clone(), dirty.clone());
            let write = move || write(run, &writes, &answered, &spend, &dirty);
            writers.push(start("target-writes").spawn_scoped(scope, write).map_err(failed)?);
            steps.push(step);
        }
        drop((spend, dirty));
        let read = read(run, &mut *source, &tasks, &steps, &spent);
        drop(steps);
        let join =
            |writer: ScopedJoinHandle<'_, _>| writer.join().unwrap_or_else(|_| Err(panicked("writes")));
        let written = writers.into_iter().map(join).fold(Ok(()), Result::and);
        let synced = syncs.join().unwrap_or_else(|_| Err(panicked("syncs")));
        // the writing thread knows better why it takes nothing more
        let received = written.and(synced).and(read);
        if let Err(error) = &received {
            // tell the sender why before the link closes; it may be closed already
            let _ = tasks.send(Task::Fail(error.clone()));
        }
        drop(tasks);
        let answered = answers.join().unwrap_or_else(|_| Err(panicked("digests")));
        received.and(answered)
    })
}

fn panicked(what: &str) -> Error {
    Error::new(Kind::Internal, format!("the thread that {what} the target panicked"))
}

/// Reads the link; what costs time is handed over.
fn read(
    run: &Run,
    source: &mut dyn Source,
    tasks: &SyncSender<Task>,
    writers: &[SyncSender<Step>],
    spent: &Receiver<Buffer>,
) -> Result<()> {
    let mut body = Buffer::new();
    let mut decompressor = Decompressor::default();
    // a thread that is gone has told the sender why
    let leave = |writer: &SyncSender<Step>, step| writer.send(step).map_err(|_| connection_closed());
    // in turn: no two frames write the same bytes
    let mut turn = writers.iter().cycle();
    let mut hand_over = |step| turn.next().map_or(Ok(()), |writer| leave(writer, step));
    let spare = || spent.try_recv().unwrap_or_default();
    while let Some(kind) = source.receive(&mut body)? {
        match kind {
            ASK | EXAMINE => {
                let task = Task::Digest(decode_ask(&body)?, kind == EXAMINE);
                tasks.send(task).map_err(|_| connection_closed())?;
            }
            BARRIER => {
                let left = Arc::new(AtomicUsize::new(writers.len()));
                writers.iter().try_for_each(|writer| leave(writer, Step::Barrier(Arc::clone(&left))))?;
            }
            kind if !run.sink.takes(kind) => return Err(unexpected(kind)),
            DIFFERS => run.planned_files().planned_file(decode_file(&body)?)?.set_changed(),
            PAGES => {
                let (tail, packed) = PagesTail::decode(&body)?;
                body.resize(packed);
                let mut content = spare();
                decompressor.unpack(tail.codec, &mut body, tail.content_length(), &mut content)?;
                run.record.add_received(content.len() as u64);
                hand_over(Step::Pages(tail, content))?;
            }
            CONTENT => {
                let (tail, length) = ContentTail::decode(&body)?;
                body.resize(length);
                run.record.add_received(length as u64);
                hand_over(Step::Content(tail, std::mem::replace(&mut body, spare())))?;
            }
            END_OF_FILE => {
                let (file, size) = decode_end_of_file(&body)?;
                run.planned_files().writable_file(run, file)?.ends_at(size);
            }
            GONE => run.planned_files().writable_file(run, decode_file(&body)?)?.set_gone(),
            other => return Err(unexpected(other)),
        }
    }
    Ok(())
}

/// Writes what arrives.
fn write(
    run: &Run,
    steps: &Receiver<Step>,
    tasks: &SyncSender<Task>,
    spend: &Sender<Buffer>,
    dirty: &SyncSender<Early>,
) -> Result<()> {
    let mut writer = PageWriter::new(run, dirty);
    let mut step = |step| {
        let (task, buffer) = match step {
            Step::Pages(tail, content) => {
                writer.pages(&tail, &content)?;
                run.record.add_written(content.len() as u64);
                (None, Some(content))
            }
            Step::Content(tail, content) => {
                let written = writer.content(&tail, &content)?;
                run.record.add_compared(content.len() as u64);
                run.record.add_written(written.into());
                (Some(Task::Written(written)), Some(content))
            }
            Step::Barrier(left) => {
                // closed files are complete files
                writer.close()?;
                // The kernel tells of a failed write once, and it may have told the syncing thread: the sender
                // hears of that before it hears that all is written.
                let (answer, answered) = sync_channel(1);
                dirty.send(Early::Answer(answer)).map_err(|_| connection_closed())?;
                answered.recv().map_err(|_| connection_closed())?;
                let is_last = left.fetch_sub(1, Ordering::AcqRel) == 1;
                (is_last.then_some(Task::Barrier), None)
            }
        };
        if let Some(buffer) = buffer {
            // the reading thread may have ended
            let _ = spend.send(buffer);
        }
        task.map_or(Ok(()), |task| tasks.send(task).map_err(|_| connection_closed()))
    };
    for arrived in steps {
        if let Err(error) = step(arrived) {
            // the sender hears of it while it still sends
            let _ = tasks.send(Task::Fail(error.clone()));
            return Err(error);
        }
    }
    Ok(())
}

fn answer(run: &Run, sink: &mut dyn Sink, queue: &Receiver<Task>) -> Result<()> {
    let mut digester = Digester::new(run);
    let mut body = Vec::new();
    let mut failed = None;
    for task in queue {
        let done = match task {
            // after a failure only the sender's end is awaited
            _ if failed.is_some() => continue,
            Task::Digest(ranges, examines) => {
                body.clear();
                digester
                    .digest(&ranges, examines, &mut body)
                    .and_then(|()| sink.send(if examines { EXAMINED } else { DIGESTS }, &[&body]))
                    .and_then(|()| sink.flush())
            }
            Task::Written(bytes) => sink.send(WRITTEN, &[&bytes.to_le_bytes()]).and_then(|()| sink.flush()),
            Task::Barrier => {
                digester.close();
                sink.send(BARRIER, &[]).and_then(|()| sink.flush())
            }
            Task::Fail(error) => Err(error),
        };
        if let Err(error) = done {
            // the link may be what failed
            let _ = message::encode(&error)
                .and_then(|text| sink.send(FAILED, &[&text]))
                .and_then(|()| sink.flush());
            failed = Some(error);
        }
    }
    failed.map_or(Ok(()), Err)
}

/// Has the disk write what piles up in the page cache while the run goes on, so that little is left to wait
/// for when it finishes. The kernel tells of a failed write only once: it ends the run here.
fn sync_early(queue: &Receiver<Early>, tasks: &SyncSender<Task>) -> Result<()> {
    for early in queue {
        let file = match early {
            Early::Sync(file) => file,
            Early::Answer(answer) => {
                // the writing thread waits
                let _ = answer.send(());
                continue;
            }
        };
        file.sync_data().map_err(|error| {
            let error = Error::io("sync a file of the target", &error);
            let _ = tasks.send(Task::Fail(error.clone()));
            error
        })?;
    }
    Ok(())
}
