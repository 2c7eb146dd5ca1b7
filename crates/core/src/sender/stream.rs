//! One data link, seen from the primary: asks what the target has, reads what the primary has, sends
//! what differs. Several requests are on the way at any time, so the target's digests are there before
//! the primary's pages are read.

use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Mutex;
use std::time::Instant;

use super::pack::{Compression, Packer};
use super::rate::Rate;
use crate::cancel::Cancel;
use crate::checksum::{self, Verdict};
use crate::digest::{DIGEST, DigestKey, PAGE};
use crate::error::{Error, Kind, Result};
use crate::exclude::{RelationFile, holds_relations};
use crate::link::{Link, Source, closed};
use crate::lock::lock;
use crate::plan::{self, Batches, Range};
use crate::progress::Progress;
use crate::protocol::data::{
    ASK, BARRIER, DIGESTS, END_OF_FILE, FAILED, GONE, PAGES, PagesHead, Present, Run, encode_ask,
    encode_end_of_file,
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
    pub(super) batches: Mutex<Batches>,
    pub(super) what: What,
    pub(super) digest_key: &'a DigestKey,
    pub(super) checksums: Option<Checksums>,
    pub(super) compression: Compression,
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
    link: &'a mut Link,
    packer: Packer,
    open: Option<(u32, Option<File>)>,
    buffer: Vec<u8>,
    head: Vec<u8>,
    gathered: Vec<u8>,
    runs: Vec<Run>,
    digests: Vec<u8>,
}

impl<'a> Stream<'a> {
    pub(super) fn new(transfer: &'a Transfer<'a>, link: &'a mut Link) -> Self {
        Self {
            transfer,
            link,
            packer: Packer::new(transfer.compression, transfer.is_remote),
            open: None,
            buffer: Vec::new(),
            head: Vec::new(),
            gathered: Vec::new(),
            runs: Vec::new(),
            digests: Vec::new(),
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
        let mut asked: VecDeque<Vec<Range>> = VecDeque::new();
        let mut spare = Vec::new();
        let mut body = Vec::new();
        loop {
            while asked.len() < AHEAD {
                let mut batch = std::mem::take(&mut spare);
                if !self.next_batch(&mut batch) {
                    break;
                }
                if self.transfer.what == What::Data {
                    encode_ask(&batch, &mut self.head);
                    self.link.sink.send(ASK, &[&self.head])?;
                }
                asked.push_back(batch);
            }
            let Some(batch) = asked.pop_front() else {
                break;
            };
            self.transfer.cancel.check()?;
            match self.transfer.what {
                What::Data => {
                    self.link.sink.flush()?;
                    self.expect(DIGESTS, &mut body)?;
                    let mut rest = body.as_slice();
                    for range in &batch {
                        let present = Present::decode(range, &mut rest)?;
                        self.send_range(range, present)?;
                    }
                }
                What::Wal => {
                    for range in &batch {
                        self.send_range(range, Present { length: 0, digests: &[] })?;
                    }
                }
            }
            spare = batch;
        }
        self.link.sink.send(BARRIER, &[])?;
        self.link.sink.flush()?;
        self.expect(BARRIER, &mut body)
    }

    fn next_batch(&self, batch: &mut Vec<Range>) -> bool {
        let mut batches = lock(&self.transfer.batches);
        batches.next(self.transfer.files, batch)
    }

    fn send_range(&mut self, range: &Range, present: Present<'_>) -> Result<()> {
        let Some(length) = self.read(range)? else {
            self.link.sink.send(GONE, &[&range.file.to_le_bytes()])?;
            return Ok(());
        };
        if length < range.length as usize {
            let end = range.offset + length as u64;
            self.link.sink.send(END_OF_FILE, &[&encode_end_of_file(range.file, end)])?;
        }
        self.verify(range, length)?;
        self.find_runs(range, length, present);
        self.send_runs(range)?;
        match self.transfer.what {
            What::Data => self.transfer.progress.add_compared(range.length.into()),
            What::Wal => self.transfer.progress.add_wal(range.length.into()),
        }
        Ok(())
    }

    /// Reads the primary's bytes; `None` if the file is gone.
    fn read(&mut self, range: &Range) -> Result<Option<usize>> {
        let path = &self.transfer.files[range.file as usize].path;
        let failed = |error| Error::io(format_args!("read file \"{path}\" of the primary"), &error);
        if !matches!(&self.open, Some((number, _)) if *number == range.file) {
            let file = match File::open(self.transfer.data_directory.join(path)) {
                Ok(file) => Some(file),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
                Err(error) => return Err(failed(error)),
            };
            self.open = Some((range.file, file));
        }
        let Some((_, Some(file))) = &self.open else {
            return Ok(None);
        };
        let wanted = range.length as usize;
        if self.buffer.len() < wanted {
            self.buffer.resize(wanted, 0);
        }
        read_full(file, &mut self.buffer[..wanted], range.offset).map(Some).map_err(failed)
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
                if let Some((_, Some(file))) = &self.open {
                    let page = &mut self.buffer[start..start + size];
                    let count = read_full(file, page, range.offset + start as u64)
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

    /// Finds the pages that the target does not have; neighbours become one run.
    fn find_runs(&mut self, range: &Range, length: usize, present: Present<'_>) {
        self.runs.clear();
        let mut add = |start: usize, end: usize| {
            let offset = range.offset + start as u64;
            let length = u32::try_from(end - start).unwrap_or(u32::MAX);
            match self.runs.last_mut() {
                Some(last) if last.offset + u64::from(last.length) == offset => last.length += length,
                _ => self.runs.push(Run { offset, length }),
            }
        };
        let there = present.length as usize;
        let comparable = length.min(there);
        self.digests.clear();
        self.transfer.digest_key.digest_pages(&self.buffer[..comparable], &mut self.digests);
        for (page, ours) in self.digests.chunks_exact(DIGEST).enumerate() {
            let start = page * PAGE;
            // a last page that is longer on one side differs
            let whole = (start + PAGE).min(length) == (start + PAGE).min(there);
            let theirs = present.digests.get(page * DIGEST..(page + 1) * DIGEST);
            if !whole || theirs != Some(ours) {
                add(start, (start + PAGE).min(length));
            }
        }
        // beyond its end the target's file reads as zeros once it has its size
        let compared = comparable.div_ceil(PAGE) * PAGE;
        let mut start = compared;
        while start < length {
            let end = (start + PAGE).min(length);
            if !is_zero(&self.buffer[start..end]) {
                add(start, end);
            }
            start = end;
        }
    }

    fn send_runs(&mut self, range: &Range) -> Result<()> {
        let bytes: u64 = self.runs.iter().map(|run| u64::from(run.length)).sum();
        if bytes == 0 {
            return Ok(());
        }
        self.transfer.rate.admit(bytes, self.transfer.cancel)?;
        let content: &[u8] = match self.runs.as_slice() {
            // one run needs no gathering
            [run] => {
                let start = usize::try_from(run.offset - range.offset).unwrap_or(0);
                &self.buffer[start..start + run.length as usize]
            }
            runs => {
                self.gathered.clear();
                for run in runs {
                    let start = usize::try_from(run.offset - range.offset).unwrap_or(0);
                    self.gathered.extend_from_slice(&self.buffer[start..start + run.length as usize]);
                }
                &self.gathered
            }
        };
        let started = Instant::now();
        let tried = self.packer.choose();
        let (codec, packed) = self.packer.pack(tried, content)?;
        PagesHead::encode(range.file, codec, &self.runs, &mut self.head);
        self.link.sink.send(PAGES, &[&self.head, packed])?;
        self.packer.learn(tried, content.len(), started.elapsed());
        if self.transfer.what == What::Data {
            self.transfer.progress.add_sent(bytes);
        }
        Ok(())
    }

    fn expect(&mut self, wanted: u8, body: &mut Vec<u8>) -> Result<()> {
        expect(&mut *self.link.source, wanted, body, self.transfer.place)
    }

    /// What the receiver said before the link broke.
    fn last_words(&mut self) -> Option<Error> {
        let mut body = Vec::new();
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

fn expect(source: &mut dyn Source, wanted: u8, body: &mut Vec<u8>, place: &str) -> Result<()> {
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

fn is_zero(page: &[u8]) -> bool {
    // stops at the first byte for almost every page that is not zero
    page.first() == Some(&0) && page.iter().all(|&byte| byte == 0)
}

fn read_full(file: &File, buffer: &mut [u8], offset: u64) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
