//! One data link, seen from the primary: asks what the target has, reads what the primary has, sends
//! what differs. Several requests are on the way at any time, so the target's digests are there before
//! the primary's pages are read. Where both ends are one process there is nothing to save on the link:
//! everything is handed over, and the receiver compares.

use std::collections::VecDeque;
use std::fs::File;
use std::path::Path;
use std::sync::Mutex;
use std::time::Instant;

use super::pack::Chooser;
use super::rate::Rate;
use crate::buffer::Buffer;
use crate::cancel::Cancel;
use crate::checksum::{self, Verdict};
use crate::compress::Compressor;
use crate::delta;
use crate::digest::{DIGEST, DigestKey};
use crate::direct::DirectFile;
use crate::error::{Error, Kind, Result};
use crate::exclude::{RelationFile, holds_relations};
use crate::link::{Link, Source, closed};
use crate::lock::lock;
use crate::plan::{self, Range, Work};
use crate::progress::Progress;
use crate::protocol::data::{
    ASK, BARRIER, CONTENT, Codec, ContentTail, DIGESTS, END_OF_FILE, FAILED, GONE, PAGES, PagesTail, Present,
    Run, WRITTEN, decode_written, encode_ask, encode_end_of_file,
};
use crate::protocol::message;

/// Batches asked for ahead of the one that is being read.
const AHEAD: usize = 8;

/// How often a page whose checksum is wrong is read again: the server may be writing it.
const RETRIES: usize = 5;

/// What all streams of a run share.
pub(super) struct Transfer<'a> {
    pub(super) data_directory: &'a Path,
    pub(super) files: &'a [plan::File],
    pub(super) work: Mutex<Work>,
    pub(super) what: What,
    /// First and last number of each row of files that are there already: they are only verified.
    pub(super) cloned: &'a [(u32, u32)],
    pub(super) digest_key: &'a DigestKey,
    pub(super) checksums: Option<Checksums>,
    pub(super) chooser: &'a Chooser,
    pub(super) rate: &'a Rate,
    pub(super) progress: &'a Progress,
    pub(super) cancel: &'a Cancel,
    pub(super) is_remote: bool,
    pub(super) place: &'a str,
}

/// What kind of files a transfer moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    /// Data files, of which the target may have much already.
    Data,
    /// WAL, of which it has nothing.
    Wal,
}

/// How page checksums are verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checksums {
    /// Size of a page, bytes.
    pub block_size: u32,
    /// Pages in one segment file of a relation.
    pub segment_blocks: u32,
    /// Pages at or after it may be torn: replay restores them.
    pub start_lsn: u64,
}

/// A link of the transfer and what it needs over its whole life.
pub(super) struct Stream<'a> {
    transfer: &'a Transfer<'a>,
    number: usize,
    link: &'a mut Link,
    compressor: Compressor,
    open: Option<(u32, Option<DirectFile>)>,
    buffer: Buffer,
    body: Buffer,
    head: Vec<u8>,
    gathered: Vec<u8>,
    runs: Vec<Run>,
    digests: Vec<u8>,
    /// Bytes of the last range that had to be sent.
    sent: u64,
    /// Ranges handed over of which the receiver has not said what it wrote.
    unanswered: usize,
}

impl<'a> Stream<'a> {
    /// The stream of this number, counted from 0.
    pub(super) fn new(transfer: &'a Transfer<'a>, number: usize, link: &'a mut Link) -> Self {
        Self {
            transfer,
            number,
            link,
            compressor: Compressor::default(),
            open: None,
            buffer: Buffer::new(),
            body: Buffer::new(),
            head: Vec::new(),
            gathered: Vec::new(),
            runs: Vec::new(),
            digests: Vec::new(),
            sent: 0,
            unanswered: 0,
        }
    }

    /// Works until nothing is left, then makes sure that everything arrived.
    pub(super) fn run(mut self) -> Result<()> {
        match self.work() {
            Ok(()) => Ok(()),
            // the receiver's own words, if it said why before it closed the link
            Err(error) if error.kind == Kind::ConnectionLost => Err(self.last_words().unwrap_or(error)),
            Err(error) => Err(error),
        }
    }

    fn work(&mut self) -> Result<()> {
        match (self.transfer.is_remote, self.transfer.what) {
            (true, What::Data) => self.send_what_differs()?,
            (true, What::Wal) => self.each_range(|stream, range, length| {
                // nothing is there
                stream.send_pages(range, length, Present { length: 0, digests: &[] })
            })?,
            (false, _) => {
                self.each_range(Self::hand_over)?;
                while self.unanswered > 0 {
                    self.hear_written()?;
                }
            }
        }
        self.link.sink.send(BARRIER, &[])?;
        self.link.sink.flush()?;
        self.expect(BARRIER)
    }

    fn send_what_differs(&mut self) -> Result<()> {
        let mut asked: VecDeque<Vec<Range>> = VecDeque::new();
        let mut spare = Vec::new();
        loop {
            while asked.len() < AHEAD {
                let mut batch = std::mem::take(&mut spare);
                if !self.next_batch(&mut batch) {
                    break;
                }
                encode_ask(&batch, &mut self.head);
                self.link.sink.send(ASK, &[&self.head])?;
                asked.push_back(batch);
            }
            let Some(batch) = asked.pop_front() else {
                return Ok(());
            };
            self.transfer.cancel.check()?;
            self.link.sink.flush()?;
            self.expect(DIGESTS)?;
            let body = std::mem::take(&mut self.body);
            let mut rest = &body[..];
            for range in &batch {
                let present = Present::decode(range, &mut rest)?;
                self.range(range, |stream, range, length| stream.send_pages(range, length, present))?;
            }
            self.body = body;
            spare = batch;
        }
    }

    fn each_range(&mut self, mut send: impl FnMut(&mut Self, &Range, usize) -> Result<()>) -> Result<()> {
        let mut batch = Vec::new();
        while self.next_batch(&mut batch) {
            self.transfer.cancel.check()?;
            for range in &batch {
                self.range(range, &mut send)?;
            }
        }
        Ok(())
    }

    fn next_batch(&self, batch: &mut Vec<Range>) -> bool {
        lock(&self.transfer.work).next(self.number, self.transfer.files, batch)
    }

    /// Reads a range, checks it, and lets `send` do with it what is to be done.
    fn range(
        &mut self,
        range: &Range,
        send: impl FnOnce(&mut Self, &Range, usize) -> Result<()>,
    ) -> Result<()> {
        let is_cloned = is_within(self.transfer.cloned, range.file);
        let Some(length) = self.read(range)? else {
            if is_cloned {
                // the clone is as good as a file that was read before it vanished
                return Ok(());
            }
            return self.link.sink.send(GONE, &[&range.file.to_le_bytes()]);
        };
        if length < range.length as usize && !is_cloned {
            let end = range.offset + length as u64;
            self.link.sink.send(END_OF_FILE, &[&encode_end_of_file(range.file, end)])?;
        }
        self.verify(range, length)?;
        self.sent = 0;
        if !is_cloned {
            send(self, range, length)?;
        }
        self.transfer.chooser.learn(range.length.into(), self.sent, Instant::now());
        match self.transfer.what {
            What::Data => self.transfer.progress.add_compared(range.length.into()),
            What::Wal => self.transfer.progress.add_wal(range.length.into()),
        }
        Ok(())
    }

    /// Hands a range over to the receiver in this process, which compares it.
    fn hand_over(&mut self, range: &Range, length: usize) -> Result<()> {
        self.buffer.resize(length);
        let tail = ContentTail { file: range.file, offset: range.offset }.encode();
        self.link.sink.send_buffer(CONTENT, &mut self.buffer, &tail)?;
        self.unanswered += 1;
        // under a rate limit no range is read before the last one has been paid for
        let window = if self.transfer.rate.is_limited() { 0 } else { AHEAD };
        while self.unanswered > window {
            self.hear_written()?;
        }
        Ok(())
    }

    fn hear_written(&mut self) -> Result<()> {
        self.expect(WRITTEN)?;
        self.unanswered -= 1;
        let bytes = decode_written(&self.body)?.into();
        self.transfer.rate.admit(bytes, self.transfer.cancel)?;
        if self.transfer.what == What::Data {
            self.transfer.progress.add_sent(bytes);
        }
        Ok(())
    }

    /// Reads the primary's bytes; `None` if the file is gone.
    fn read(&mut self, range: &Range) -> Result<Option<usize>> {
        let path = &self.transfer.files[range.file as usize].path;
        let failed = |error| Error::io(format_args!("read file \"{path}\" of the primary"), &error);
        if !matches!(&self.open, Some((number, _)) if *number == range.file) {
            let file = match File::open(self.transfer.data_directory.join(path)) {
                Ok(file) => Some(DirectFile::new(file)),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
                Err(error) => return Err(failed(error)),
            };
            self.open = Some((range.file, file));
        }
        let Some((_, Some(file))) = &mut self.open else {
            return Ok(None);
        };
        self.buffer.resize(range.length as usize);
        file.read_full(&mut self.buffer, range.offset).map(Some).map_err(failed)
    }

    /// Checks the pages' checksums as pg_basebackup does; a page that stays bad fails the run.
    fn verify(&mut self, range: &Range, length: usize) -> Result<()> {
        let Some(checksums) = self.transfer.checksums else {
            return Ok(());
        };
        let path = &self.transfer.files[range.file as usize].path;
        let relation =
            RelationFile::parse(path.file_name()).filter(|_| path.parent().is_some_and(holds_relations));
        let Some(relation) = relation else {
            return Ok(());
        };
        let size = checksums.block_size as usize;
        let first = relation.segment * checksums.segment_blocks
            + u32::try_from(range.offset / size as u64).unwrap_or(u32::MAX);
        for (index, start) in (0..length / size).map(|index| index * size).enumerate() {
            let block = first + u32::try_from(index).unwrap_or(u32::MAX);
            let mut verdict = checksum::verify(&self.buffer[start..start + size], block, checksums.start_lsn);
            for _ in 0..RETRIES {
                if !matches!(verdict, Verdict::Bad { .. }) {
                    break;
                }
                std::thread::sleep(std::time::Duration::from_millis(1));
                if let Some((_, Some(file))) = &mut self.open {
                    let page = &mut self.buffer[start..start + size];
                    let count = file
                        .read_full(page, range.offset + start as u64)
                        .map_err(Error::on(format_args!("read file \"{path}\" of the primary")))?;
                    if count < size {
                        // truncated meanwhile: the page is none any more
                        return Ok(());
                    }
                    verdict = checksum::verify(page, block, checksums.start_lsn);
                }
            }
            if let Verdict::Bad { computed, stored } = verdict {
                return Err(checksum::corrupt_page(path.as_str(), block, computed, stored));
            }
        }
        Ok(())
    }

    /// Sends what of a range the target does not have.
    fn send_pages(&mut self, range: &Range, length: usize, present: Present<'_>) -> Result<()> {
        let there = present.length as usize;
        self.digests.clear();
        self.transfer.digest_key.digest_pages(&self.buffer[..length.min(there)], &mut self.digests);
        let ours = &self.digests;
        let equal = |page: usize| {
            let digest = page * DIGEST..(page + 1) * DIGEST;
            ours.get(digest.clone()).is_some_and(|ours| present.digests.get(digest) == Some(ours))
        };
        delta::differing(range.offset, &self.buffer[..length], there, equal, &mut self.runs);
        self.send_runs(range)
    }

    fn send_runs(&mut self, range: &Range) -> Result<()> {
        let bytes: u64 = self.runs.iter().map(|run| u64::from(run.length)).sum();
        if bytes == 0 {
            return Ok(());
        }
        self.transfer.rate.admit(bytes, self.transfer.cancel)?;
        let of = |run: &Run| {
            let start = usize::try_from(run.offset - range.offset).unwrap_or(0);
            &self.buffer[start..start + run.length as usize]
        };
        let tried = self.transfer.chooser.choose();
        let mut codec = Codec::Plain;
        let mut parts: Vec<&[u8]> = Vec::new();
        if tried != Codec::Plain {
            self.gathered.clear();
            self.runs.iter().for_each(|run| self.gathered.extend_from_slice(of(run)));
            if let Some(packed) = self.compressor.pack(tried, &self.gathered)? {
                codec = tried;
                parts.push(packed);
            }
        }
        if codec == Codec::Plain {
            parts.extend(self.runs.iter().map(of));
        }
        PagesTail::encode(range.file, codec, &self.runs, &mut self.head);
        parts.push(&self.head);
        self.link.sink.send(PAGES, &parts)?;
        self.sent += bytes;
        if self.transfer.what == What::Data {
            self.transfer.progress.add_sent(bytes);
        }
        Ok(())
    }

    fn expect(&mut self, wanted: u8) -> Result<()> {
        expect(&mut *self.link.source, wanted, &mut self.body, self.transfer.place)
    }

    /// What the receiver said before the link broke.
    fn last_words(&mut self) -> Option<Error> {
        let mut body = Buffer::new();
        for _ in 0..2 * AHEAD {
            match self.link.source.receive(&mut body) {
                Ok(Some(FAILED)) => return message::decode(&body).ok(),
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return None,
            }
        }
        None
    }
}

/// Whether one of the rows, which are in order, has this number.
fn is_within(rows: &[(u32, u32)], number: u32) -> bool {
    let row = rows.partition_point(|&(_, last)| last < number);
    rows.get(row).is_some_and(|&(first, _)| first <= number)
}

fn expect(source: &mut dyn Source, wanted: u8, body: &mut Buffer, place: &str) -> Result<()> {
    match source.receive(body)? {
        Some(kind) if kind == wanted => Ok(()),
        Some(FAILED) => Err(message::decode(body)?),
        Some(other) => Err(Error::new(
            Kind::ProtocolViolation,
            format!("unexpected frame of kind {other:#04x} from {place}"),
        )),
        None => Err(closed(place)),
    }
}
