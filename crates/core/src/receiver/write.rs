//! Writing pages into the target's files, for one data link.

use std::sync::mpsc::SyncSender;

use super::cut;
use super::read::read_full;
use super::run::{Run, Slot, slot};
use super::stream::Early;
use crate::buffer::Buffer;
use crate::delta;
use crate::digest::PAGE;
use crate::direct::DirectFile;
use crate::error::{Error, Result};
use crate::plan::Range;
use crate::protocol::data::{self, ContentTail, PagesTail};
use crate::target::write::Writer;

/// Writes what arrives; keeps the file of the last pages open.
pub(super) struct PageWriter<'a> {
    run: &'a Run,
    /// Takes files of which much is in the page cache only.
    dirty: &'a SyncSender<Early>,
    open: Option<Open>,
    present: Buffer,
    runs: Vec<data::Run>,
}

struct Open {
    number: u32,
    /// What is there, to be compared; looked for only if content is.
    present: Option<Option<DirectFile>>,
    writer: Option<Writer>,
}

impl<'a> PageWriter<'a> {
    pub(super) fn new(run: &'a Run, dirty: &'a SyncSender<Early>) -> Self {
        Self { run, dirty, open: None, present: Buffer::new(), runs: Vec::new() }
    }

    /// Closes the last file.
    pub(super) fn close(&mut self) {
        self.open = None;
    }

    /// Writes the runs of a frame.
    pub(super) fn pages(&mut self, tail: &PagesTail, content: &[u8]) -> Result<()> {
        let slots = self.run.slots();
        let slot = slot(&slots, tail.file)?;
        let mut rest = content;
        for run in &tail.runs {
            let (bytes, after) = rest.split_at_checked(run.length as usize).ok_or_else(cut)?;
            rest = after;
            self.write(tail.file, slot, bytes, run.offset)?;
        }
        Ok(())
    }

    /// Writes what of a batch's content differs from what is there; returns how many bytes.
    pub(super) fn content(&mut self, tail: &ContentTail, content: &[u8]) -> Result<u32> {
        let slots = self.run.slots();
        let mut rest = content;
        let mut written = 0;
        for range in &tail.ranges {
            let (content, after) = rest.split_at_checked(range.length as usize).ok_or_else(cut)?;
            rest = after;
            written += self.range(range, slot(&slots, range.file)?, content)?;
        }
        Ok(written)
    }

    fn range(&mut self, range: &Range, slot: &Slot, content: &[u8]) -> Result<u32> {
        slot.check_end(range.offset + content.len() as u64)?;
        let read = self.read_present(range, slot)?;
        // what the disk cannot read is there but equal to nothing: it is written anew
        let there = read.unwrap_or(content.len());
        let mut runs = std::mem::take(&mut self.runs);
        let equal = |page: usize| {
            let page = page * PAGE..((page + 1) * PAGE).min(there);
            read.is_some() && content[page.clone()] == self.present[page]
        };
        delta::differing(range.offset, content, there, equal, &mut runs);
        let mut written = 0;
        for run in &runs {
            let start = usize::try_from(run.offset - range.offset).unwrap_or(0);
            self.write(range.file, slot, &content[start..start + run.length as usize], run.offset)?;
            written += run.length;
        }
        self.runs = runs;
        Ok(written)
    }

    /// Reads what the target has of a range into `present`; returns how much that is, or `None` if the disk
    /// cannot read it.
    fn read_present(&mut self, range: &Range, slot: &Slot) -> Result<Option<usize>> {
        let open = entered(&mut self.open, range.file);
        let present = match &mut open.present {
            Some(present) => present,
            unknown => unknown.insert(self.run.open_present(slot)?),
        };
        let Some(file) = present else {
            return Ok(Some(0));
        };
        self.present.resize(range.length as usize);
        read_full(file, &mut self.present, range.offset, slot)
    }

    fn write(&mut self, number: u32, slot: &Slot, bytes: &[u8], offset: u64) -> Result<()> {
        slot.check_end(offset + bytes.len() as u64)?;
        let open = entered(&mut self.open, number);
        let writer = match &mut open.writer {
            Some(writer) => writer,
            none => {
                slot.set_changed();
                none.insert(Writer::new(self.run.open_to_write(slot)?))
            }
        };
        writer
            .write_all(bytes, offset)
            .map_err(Error::on(format_args!("write file \"{}\" of the target", slot.path)))?;
        if let Some(file) = writer.take_dirty() {
            // while it has enough to do, the rest is left to the end
            let _ = self.dirty.try_send(Early::Sync(file));
        }
        Ok(())
    }
}

/// The open file of this number; another one is closed.
fn entered(open: &mut Option<Open>, number: u32) -> &mut Open {
    if open.as_ref().is_none_or(|open| open.number != number) {
        *open = None;
    }
    open.get_or_insert(Open { number, present: None, writer: None })
}
