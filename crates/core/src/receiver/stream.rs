//! A data link: one thread reads from the link and writes pages, a second one digests what is there
//! and answers. So neither direction ever waits for the other, and the target's disk is read ahead of
//! the pages that arrive.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use super::run::{Run, slot};
use super::{cut, reply, unexpected};
use crate::cancel::Cancel;
use crate::compress;
use crate::digest::{DIGEST, PAGE};
use crate::error::{Error, Kind, Result};
use crate::link::{Link, Sink, Source};
use crate::plan::Range;
use crate::protocol::data::{
    ASK, BARRIER, DIGESTS, END_OF_FILE, FAILED, GONE, PAGES, PagesHead, Present, decode_ask,
    decode_end_of_file, decode_gone,
};
use crate::protocol::message::{self, Reply};

/// Requests that wait to be answered; the sender keeps fewer on the way.
const QUEUE: usize = 64;

/// What the reading thread leaves to the answering one.
enum Task {
    Digest(Vec<Range>),
    Barrier,
    Fail(Error),
}

/// Serves the link until the sender closes it.
pub(super) fn serve(run: &Run, link: Link, cancel: &Cancel) -> Result<()> {
    let Link { mut sink, mut source, .. } = link;
    let close = cancel.clone();
    run.cancel.on_trip(Box::new(move || close.trip()));
    reply(&mut *sink, &Reply::Ok)?;
    let (tasks, queue) = sync_channel(QUEUE);
    std::thread::scope(|scope| {
        let answers = std::thread::Builder::new()
            .name("target-digests".to_owned())
            .spawn_scoped(scope, move || answer(run, &mut *sink, &queue))
            .map_err(Error::on("start a thread"))?;
        let written = write(run, &mut *source, &tasks);
        if let Err(error) = &written {
            // tell the sender why before the link closes; if it is closed already, nobody listens
            let _ = tasks.send(Task::Fail(error.clone()));
        }
        drop(tasks);
        let answered = answers.join().unwrap_or_else(|_| {
            Err(Error::new(Kind::Internal, "the thread that digests the target panicked"))
        });
        written.and(answered)
    })
}

fn write(run: &Run, source: &mut dyn Source, tasks: &SyncSender<Task>) -> Result<()> {
    let mut body = Vec::new();
    let mut content = Vec::new();
    let mut open: Option<(u32, File)> = None;
    // the answering thread leaves only after it has told the sender why
    let hand_over = |task| tasks.send(task).map_err(|_| cut());
    while let Some(kind) = source.receive(&mut body)? {
        match kind {
            ASK => hand_over(Task::Digest(decode_ask(&body)?))?,
            BARRIER => {
                // closed files are complete files
                open = None;
                hand_over(Task::Barrier)?;
            }
            PAGES => {
                let (head, packed) = PagesHead::decode(&body)?;
                let content = compress::unpack(head.codec, packed, head.content_length(), &mut content)?;
                write_pages(run, &head, content, &mut open)?;
            }
            END_OF_FILE => {
                let (file, size) = decode_end_of_file(&body)?;
                slot(&run.slots(), file)?.ends_at(size);
            }
            GONE => slot(&run.slots(), decode_gone(&body)?)?.set_gone(),
            other => return Err(unexpected(other)),
        }
    }
    Ok(())
}

fn write_pages(
    run: &Run,
    head: &PagesHead,
    mut content: &[u8],
    open: &mut Option<(u32, File)>,
) -> Result<()> {
    let slots = run.slots();
    let slot = slot(&slots, head.file)?;
    for run in &head.runs {
        slot.check_end(run.offset + u64::from(run.length))?;
    }
    let file = match open {
        Some((number, file)) if *number == head.file => file,
        _ => {
            slot.set_changed();
            &mut open.insert((head.file, run.target.open_for_write(&slot.path, slot.mode)?)).1
        }
    };
    for run in &head.runs {
        let (bytes, rest) = content.split_at_checked(run.length as usize).ok_or_else(cut)?;
        content = rest;
        file.write_all_at(bytes, run.offset)
            .map_err(Error::on(format_args!("write file \"{}\" of the target", slot.path)))?;
    }
    Ok(())
}

fn answer(run: &Run, sink: &mut dyn Sink, queue: &Receiver<Task>) -> Result<()> {
    let mut digester = Digester { run, open: None, buffer: Vec::new() };
    let mut body = Vec::new();
    let mut failed = None;
    for task in queue {
        let done = match task {
            // after a failure only the sender's end is awaited
            _ if failed.is_some() => continue,
            Task::Digest(ranges) => {
                body.clear();
                ranges
                    .iter()
                    .try_for_each(|range| digester.digest(range, &mut body))
                    .and_then(|()| sink.send(DIGESTS, &[&body]))
                    .and_then(|()| sink.flush())
            }
            Task::Barrier => {
                digester.open = None;
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

/// Reads the target's files and digests their pages.
struct Digester<'a> {
    run: &'a Run,
    open: Option<(u32, Option<File>)>,
    buffer: Vec<u8>,
}

impl Digester<'_> {
    fn digest(&mut self, range: &Range, out: &mut Vec<u8>) -> Result<()> {
        let slots = self.run.slots();
        let slot = slot(&slots, range.file)?;
        if !matches!(&self.open, Some((number, _)) if *number == range.file) {
            self.open = Some((range.file, self.run.target.open_in_place(&slot.path)?));
        }
        let Some((_, Some(file))) = &self.open else {
            // nothing there, or about to be created: the next range looks again
            self.open = None;
            Present::encode(0, &[], out);
            return Ok(());
        };
        self.buffer.resize(range.length as usize, 0);
        let mut filled = 0;
        let mut unreadable = false;
        while filled < self.buffer.len() {
            match file.read_at(&mut self.buffer[filled..], range.offset + filled as u64) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => {
                    unreadable = true;
                    break;
                }
                Err(error) => {
                    return Err(Error::io(format_args!("read file \"{}\" of the target", slot.path), &error));
                }
            }
        }
        if unreadable {
            // what the target's disk cannot read is there but equal to nothing: it is written anew
            let digests = vec![0; self.buffer.len().div_ceil(PAGE) * DIGEST];
            Present::encode(range.length, &digests, out);
            return Ok(());
        }
        let length = u32::try_from(filled).unwrap_or(u32::MAX);
        out.extend_from_slice(&length.to_le_bytes());
        self.run.digest_key.digest_pages(&self.buffer[..filled], out);
        Ok(())
    }
}
