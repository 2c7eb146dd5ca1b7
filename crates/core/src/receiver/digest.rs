//! Digesting what the target has, for one data link.

use super::planned::PlannedFile;
use super::read::read_full;
use super::run::Run;
use crate::compare::digest::Pieces;
use crate::error::Result;
use crate::manifest::plan::Range;
use crate::sys::buffer::Buffer;
use crate::sys::direct::DirectFile;
use crate::wire::protocol::data::Present;
use crate::wire::protocol::examine::encode_examined;

/// Reads the target's files and digests their pages; keeps the last file open.
pub(super) struct Digester<'a> {
    run: &'a Run,
    open: Option<(u32, DirectFile)>,
    buffer: Buffer,
    digests: Vec<u8>,
}

impl<'a> Digester<'a> {
    pub(super) const fn new(run: &'a Run) -> Self {
        Self { run, open: None, buffer: Buffer::new(), digests: Vec::new() }
    }

    /// Closes the last file.
    pub(super) fn close(&mut self) {
        self.open = None;
    }

    /// Appends the answer for a batch to `out`, in which `examines` tells what the pages say of themselves. Small files are read
    /// one after the other and digested together.
    pub(super) fn digest(&mut self, batch: &[Range], examines: bool, out: &mut Vec<u8>) -> Result<()> {
        self.buffer.resize(batch.iter().map(|range| Pieces::room(range.length as usize)).sum());
        let mut pieces = Pieces::default();
        let mut unreadable = Vec::new();
        let mut numbers = 0..;
        for ranges in Range::by_file(batch) {
            self.expect(ranges)?;
            for (range, number) in ranges.iter().zip(numbers.by_ref()) {
                let there = self.read(range, pieces.end())?;
                if there.is_none() {
                    unreadable.push(number);
                }
                pieces.push(there.unwrap_or(range.length as usize));
            }
        }
        self.run.record.add_compared(batch.iter().map(|range| u64::from(range.length)).sum());
        self.digests.clear();
        self.run.digest_key.digest_pieces(&self.buffer, &pieces, &mut self.digests);
        for (number, piece) in pieces.iter().enumerate() {
            let digests = &mut self.digests[piece.digests];
            if unreadable.contains(&number) {
                // what the disk cannot read is there but equal to nothing: it is written again
                digests.fill(0);
            }
            let length = u32::try_from(piece.bytes.len()).unwrap_or(u32::MAX);
            if examines {
                encode_examined(length, digests, &self.buffer[piece.bytes], &self.run.digest_key, out);
            } else {
                Present::encode(length, digests, out);
            }
        }
        Ok(())
    }

    /// Turns to ranges of one file, which are read next.
    fn expect(&mut self, ranges: &[Range]) -> Result<()> {
        let Some(first) = ranges.first() else { return Ok(()) };
        let planned = &self.run.planned_files().planned_file(first.file)?;
        if let Some(file) = self.turn_to(planned, first.file)? {
            file.will_need(Range::places(ranges));
        }
        Ok(())
    }

    /// Reads a range to a place in the buffer; returns how much is there, or `None` if the disk cannot read it.
    fn read(&mut self, range: &Range, start: usize) -> Result<Option<usize>> {
        let planned = &self.run.planned_files().planned_file(range.file)?;
        if self.turn_to(planned, range.file)?.is_none() {
            // nothing there, or about to be created: the next range looks again
            return Ok(Some(0));
        }
        let Some((_, file)) = &mut self.open else { return Ok(Some(0)) };
        let buffer = &mut self.buffer[start..start + range.length as usize];
        read_full(file, buffer, range.offset, planned)
    }

    /// The file of this number, open; `None` if nothing is there.
    fn turn_to(&mut self, planned: &PlannedFile<'_>, number: u32) -> Result<Option<&mut DirectFile>> {
        if !matches!(&self.open, Some((open, _)) if *open == number) {
            self.open = self.run.open_present(planned)?.map(|file| (number, file));
        }
        Ok(self.open.as_mut().map(|(_, file)| file))
    }
}
