//! One data link, seen from the primary: asks what the target has, reads what the primary has, sends
//! what differs. Several requests are on the way at any time, so the target's digests are there before
//! the primary's pages are read. Where both ends are one process there is nothing to save on the link:
//! everything is handed over, and the receiver compares.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Mutex;
use std::time::Instant;

use super::pack::Chooser;
use super::rate::Rate;
use super::read::{Checksums, Reader};
use super::window::{self, Window};
use crate::compare::delta::{self, Extent};
use crate::compare::digest::{DIGEST, DigestKey, PAGE, Piece, Pieces};
use crate::compare::source::{Proof, Treatment};
use crate::compare::wal_map::Witness;
use crate::compare::work::Work;
use crate::error::{Error, Kind, Result};
use crate::manifest::list::FileList;
use crate::manifest::plan::Range;
use crate::progress::Progress;
use crate::sys::buffer::Buffer;
use crate::sys::cancel::Cancel;
use crate::sys::lock::lock;
use crate::wire::compress::Compressor;
use crate::wire::link::{Link, Source, closed};
use crate::wire::protocol::data::{
    ASK, BARRIER, CONTENT, Codec, ContentTail, DIFFERS, DIGESTS, END_OF_FILE, FAILED, GONE, PAGES, PagesTail,
    Present, WRITTEN, decode_written, encode_ask, encode_end_of_file,
};
use crate::wire::protocol::examine::{EXAMINE, EXAMINED, Examined};
use crate::wire::protocol::message;

/// Batches under way to a receiver in this process.
const AHEAD: usize = 8;

/// What all streams of a run share.
pub(super) struct Transfer<'a, 'w> {
    pub(super) data_directory: &'a Path,
    pub(super) files: &'a FileList,
    pub(super) work: Mutex<Work<'w>>,
    pub(super) what: What,
    pub(super) digest_key: &'a DigestKey,
    pub(super) checksums: Option<Checksums>,
    pub(super) chooser: &'a Chooser,
    pub(super) rate: &'a Rate,
    pub(super) progress: &'a Progress,
    pub(super) cancel: &'a Cancel,
    pub(super) is_remote: bool,
    pub(super) place: &'a str,
    pub(super) examination: Option<Examination<'a>>,
}

/// How the pages that are read are examined, where others are left out because WAL proves them equal.
#[derive(Debug, Clone, Copy)]
pub(super) struct Examination<'a> {
    pub(super) witness: &'a Witness<'a>,
    /// Whether the transfer ends when the proof is refuted; else that is only counted.
    pub(super) ends_when_refuted: bool,
    /// When it ends, finished or not.
    pub(super) deadline: Option<Instant>,
}

impl Examination<'_> {
    /// Whether nothing more is to be read.
    fn is_over(&self) -> bool {
        let is_late = self.deadline.is_some_and(|deadline| Instant::now() >= deadline);
        is_late || (self.ends_when_refuted && self.witness.is_refuted())
    }
}

/// What kind of files a transfer moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    /// Data files, of which the target may have much already.
    Data,
    /// Data files again, but only what differs is counted.
    DryRun,
    /// A few pages that WAL proves equal: they are looked at, and nothing is sent.
    Sample,
}

/// A link of the transfer and what it needs over its whole life.
pub(super) struct Stream<'a, 'w> {
    transfer: &'a Transfer<'a, 'w>,
    number: usize,
    link: &'a mut Link,
    compressor: Compressor,
    reader: Reader<'a>,
    buffer: Buffer,
    body: Buffer,
    head: Vec<u8>,
    gathered: Vec<u8>,
    runs: Vec<Extent>,
    digests: Vec<u8>,
    /// How far ahead is asked.
    window: Window,
    /// Batches handed over of which the receiver has not said what it wrote.
    unanswered: usize,
}

impl<'a, 'w> Stream<'a, 'w> {
    /// The stream of this number, counted from 0.
    pub(super) fn new(transfer: &'a Transfer<'a, 'w>, number: usize, link: &'a mut Link) -> Self {
        Self {
            transfer,
            number,
            link,
            compressor: Compressor::default(),
            reader: Reader::new(transfer.data_directory, transfer.files, transfer.checksums),
            buffer: Buffer::new(),
            body: Buffer::new(),
            head: Vec::new(),
            gathered: Vec::new(),
            runs: Vec::new(),
            digests: Vec::new(),
            window: Window::default(),
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
        if self.transfer.is_remote || self.transfer.what == What::DryRun || self.examines() {
            self.send_what_differs()?;
        } else {
            self.hand_over_all()?;
        }
        self.link.sink.send(BARRIER, &[])?;
        self.link.sink.flush()?;
        self.expect(BARRIER)
    }

    fn examines(&self) -> bool {
        self.transfer.examination.is_some()
    }

    fn send_what_differs(&mut self) -> Result<()> {
        let mut asked: VecDeque<Vec<Range>> = VecDeque::new();
        let mut spare = Vec::new();
        loop {
            while self.window.takes_more(&asked) {
                let mut batch = std::mem::take(&mut spare);
                match self.next_batch(&mut batch) {
                    None => break,
                    Some(Treatment::Compare) => {
                        encode_ask(&batch, &mut self.head);
                        self.link.sink.send(if self.examines() { EXAMINE } else { ASK }, &[&self.head])?;
                        asked.push_back(batch);
                    }
                    Some(Treatment::Skip(proof)) => {
                        self.transfer.cancel.check()?;
                        self.verify(&batch, proof)?;
                        spare = batch;
                    }
                }
            }
            let Some(batch) = asked.pop_front() else {
                return Ok(());
            };
            self.transfer.cancel.check()?;
            self.link.sink.flush()?;
            let waits = Instant::now();
            self.expect(if self.examines() { EXAMINED } else { DIGESTS })?;
            // what has a deadline is to end soon after it, so little of it is under way
            if self.transfer.examination.is_none_or(|examination| examination.deadline.is_none()) {
                self.window.waited(waits.elapsed());
            }
            self.answer(&batch)?;
            spare = batch;
        }
    }

    /// Sends what of a batch differs from the digests that have just come.
    fn answer(&mut self, batch: &[Range]) -> Result<()> {
        let body = std::mem::take(&mut self.body);
        let (examined, presents) = if self.examines() {
            let examined = Examined::decode_all(batch, &body)?;
            let presents = examined.iter().map(|examined| examined.present).collect();
            (examined, presents)
        } else {
            (Vec::new(), Present::decode_all(batch, &body)?)
        };
        // small files are read one after the other and digested together
        let mut pieces = Pieces::default();
        self.buffer.resize(batch.iter().map(|range| Pieces::room(range.length as usize)).sum());
        for ranges in Range::by_file(batch) {
            self.reader.expect(ranges)?;
            for range in ranges {
                let length = self.read(range, pieces.end())?;
                pieces.push(length.unwrap_or_default());
            }
        }
        self.digests.clear();
        if presents.iter().any(|present| present.length > 0) {
            self.transfer.digest_key.digest_pieces(&self.buffer, &pieces, &mut self.digests);
        }
        for (place, ((range, present), piece)) in batch.iter().zip(presents).zip(pieces.iter()).enumerate() {
            self.find_runs(range, &piece, present);
            if let Some(examined) = examined.get(place) {
                self.examine(range, &piece, examined);
            }
            let sent = if self.transfer.what == What::Sample {
                0
            } else {
                self.send_runs(range, piece.bytes.start)?
            };
            self.done(range, sent);
        }
        self.body = body;
        Ok(())
    }

    /// Looks at what the pages of a range say of the proof by which others are left out.
    fn examine(&self, range: &Range, piece: &Piece, examined: &Examined<'_>) {
        let Some(Examination { witness, .. }) = self.transfer.examination else { return };
        let file = (range.file, &self.transfer.files.path(range.file as usize));
        let ours = self.digests.get(piece.digests.clone()).unwrap_or_default().chunks_exact(DIGEST);
        let theirs = examined.present.digests.chunks_exact(DIGEST);
        let first = range.offset / PAGE as u64;
        let pages = self.buffer[piece.bytes.clone()].chunks(PAGE);
        for (number, ((page, ours), theirs)) in pages.zip(ours).zip(theirs).enumerate() {
            let Some(facts) = examined.page(number) else { continue };
            let at = u32::try_from(first + number as u64).unwrap_or(u32::MAX);
            witness.look(file, at, page, ours == theirs, facts, self.transfer.digest_key);
        }
    }

    fn hand_over_all(&mut self) -> Result<()> {
        let mut batch = Vec::new();
        while let Some(treatment) = self.next_batch(&mut batch) {
            self.transfer.cancel.check()?;
            match treatment {
                Treatment::Skip(proof) => self.verify(&batch, proof)?,
                Treatment::Compare => self.hand_over(&batch)?,
            }
        }
        while self.unanswered > 0 {
            self.recv_written()?;
        }
        Ok(())
    }

    fn next_batch(&self, batch: &mut Vec<Range>) -> Option<Treatment> {
        // what is left out of a sample is counted when data is sent
        let is_sample = self.transfer.what == What::Sample;
        let passed = |proof, bytes| {
            if !is_sample {
                self.skipped(proof, bytes)
            }
        };
        if self.transfer.examination.is_some_and(|examination| examination.is_over()) {
            return None;
        }
        lock(&self.transfer.work).next(self.number, batch, passed)
    }

    /// Reads a batch that the target has, to verify its checksums. What the target has is as good as what could be read of a
    /// file that has vanished meanwhile.
    fn verify(&mut self, batch: &[Range], proof: Proof) -> Result<()> {
        for range in batch {
            self.buffer.resize(range.length as usize);
            self.reader.read(range, &mut self.buffer)?;
            self.skipped(proof, range.length.into());
        }
        Ok(())
    }

    /// Bytes of data files are left out.
    fn skipped(&self, proof: Proof, bytes: u64) {
        let progress = self.transfer.progress;
        match proof {
            Proof::Cloned => {
                progress.add_compared(bytes);
                progress.add_cloned(bytes);
            }
            Proof::WalMap => progress.add_known(bytes),
        }
    }

    /// Reads a range to a place in the buffer, and tells the receiver if it is shorter or gone. `None` if there is
    /// nothing to send.
    fn read(&mut self, range: &Range, start: usize) -> Result<Option<usize>> {
        let buffer = &mut self.buffer[start..start + range.length as usize];
        let read = self.reader.read(range, buffer)?;
        match read {
            None => self.link.sink.send(GONE, &[&range.file.to_le_bytes()])?,
            Some(length) if length < range.length as usize => {
                let end = range.offset + length as u64;
                self.link.sink.send(END_OF_FILE, &[&encode_end_of_file(range.file, end)])?;
            }
            Some(_) => {}
        }
        Ok(read)
    }

    /// A range is done with, of which `sent` bytes had to be sent.
    fn done(&self, range: &Range, sent: u64) {
        let bytes = range.length.into();
        if self.transfer.is_remote {
            self.transfer.chooser.learn(bytes, sent, Instant::now());
        }
        match self.transfer.what {
            What::Data | What::DryRun => self.transfer.progress.add_compared(bytes),
            What::Sample => {}
        }
    }

    /// Hands a batch over to the receiver in this process, which compares it.
    fn hand_over(&mut self, batch: &[Range]) -> Result<()> {
        self.buffer.resize(batch.iter().map(|range| range.length as usize).sum());
        let mut ranges = Vec::with_capacity(batch.len());
        let mut end = 0;
        for of_file in Range::by_file(batch) {
            self.reader.expect(of_file)?;
            for range in of_file {
                if let Some(length) = self.read(range, end)? {
                    end += length;
                    ranges.push(Range { length: u32::try_from(length).unwrap_or(u32::MAX), ..*range });
                }
                // how much of it is sent the receiver will say
                self.done(range, 0);
            }
        }
        self.buffer.resize(end);
        ContentTail::encode(&ranges, &mut self.head);
        self.link.sink.send_buffer(CONTENT, &mut self.buffer, &self.head)?;
        self.unanswered += 1;
        // under a rate limit nothing is read before the last batch has been paid for
        let window = if self.transfer.rate.is_limited() { 0 } else { AHEAD };
        while self.unanswered > window {
            self.recv_written()?;
        }
        Ok(())
    }

    fn recv_written(&mut self) -> Result<()> {
        self.expect(WRITTEN)?;
        self.unanswered -= 1;
        let bytes = decode_written(&self.body)?.into();
        self.transfer.rate.admit(bytes, self.transfer.cancel)?;
        if self.transfer.what == What::Data {
            self.transfer.progress.add_sent(bytes);
        }
        Ok(())
    }

    /// Finds what of a range the target does not have.
    fn find_runs(&mut self, range: &Range, piece: &Piece, present: Present<'_>) {
        let ours = self.digests.get(piece.digests.clone()).unwrap_or_default();
        let equal = |page: usize| {
            let digest = page * DIGEST..(page + 1) * DIGEST;
            ours.get(digest.clone()).is_some_and(|ours| present.digests.get(digest) == Some(ours))
        };
        let content = &self.buffer[piece.bytes.clone()];
        delta::differing(range.offset, content, present.length as usize, equal, &mut self.runs);
    }

    /// Sends the runs of a range that lies at `start` in the buffer; returns their bytes.
    fn send_runs(&mut self, range: &Range, start: usize) -> Result<u64> {
        let bytes: u64 = self.runs.iter().map(|run| u64::from(run.length)).sum();
        if bytes == 0 {
            return Ok(0);
        }
        if self.transfer.what == What::DryRun {
            self.link.sink.send(DIFFERS, &[&range.file.to_le_bytes()])?;
            self.transfer.progress.add_sent(bytes);
            return Ok(bytes);
        }
        self.transfer.rate.admit(bytes, self.transfer.cancel)?;
        let of = |run: &Extent| {
            let start = start + usize::try_from(run.offset - range.offset).unwrap_or(0);
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
        if self.transfer.what == What::Data {
            self.transfer.progress.add_sent(bytes);
        }
        Ok(bytes)
    }

    fn expect(&mut self, wanted: u8) -> Result<()> {
        expect(&mut *self.link.source, wanted, &mut self.body, self.transfer.place)
    }

    /// What the receiver said before the link broke.
    fn last_words(&mut self) -> Option<Error> {
        let mut body = Buffer::new();
        for _ in 0..2 * window::MOST {
            match self.link.source.receive(&mut body) {
                Ok(Some(FAILED)) => return message::decode(&body).ok(),
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return None,
            }
        }
        None
    }
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
