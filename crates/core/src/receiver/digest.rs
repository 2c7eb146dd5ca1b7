//! Digesting what the target has, for one data link.

use super::read::read_full;
use super::run::{Run, slot};
use crate::buffer::Buffer;
use crate::digest::{DIGEST, PAGE};
use crate::direct::DirectFile;
use crate::error::Result;
use crate::plan::Range;
use crate::protocol::data::Present;

/// Reads the target's files and digests their pages; keeps the last file open.
pub(super) struct Digester<'a> {
    run: &'a Run,
    open: Option<(u32, DirectFile)>,
    buffer: Buffer,
}

impl<'a> Digester<'a> {
    pub(super) const fn new(run: &'a Run) -> Self {
        Self { run, open: None, buffer: Buffer::new() }
    }

    /// Closes the last file.
    pub(super) fn close(&mut self) {
        self.open = None;
    }

    /// Appends the answer for one range to `out`.
    pub(super) fn digest(&mut self, range: &Range, out: &mut Vec<u8>) -> Result<()> {
        let slots = self.run.slots();
        let slot = slot(&slots, range.file)?;
        if !matches!(&self.open, Some((number, _)) if *number == range.file) {
            self.open = None;
            if let Some(file) = self.run.target.open_in_place(&slot.path)? {
                self.open = Some((range.file, DirectFile::new(file)));
            }
        }
        let Some((_, file)) = &mut self.open else {
            // nothing there, or about to be created: the next range looks again
            Present::encode(0, &[], out);
            return Ok(());
        };
        self.buffer.resize(range.length as usize);
        let Some(filled) = read_full(file, &mut self.buffer, range.offset, slot)? else {
            // what the disk cannot read is there but equal to nothing: it is written anew
            let digests = vec![0; self.buffer.len().div_ceil(PAGE) * DIGEST];
            Present::encode(range.length, &digests, out);
            return Ok(());
        };
        let length = u32::try_from(filled).unwrap_or(u32::MAX);
        out.extend_from_slice(&length.to_le_bytes());
        self.run.digest_key.digest_pages(&self.buffer[..filled], out);
        Ok(())
    }
}
