//! Writing pages into the target's files, for one data link.

use std::sync::mpsc::SyncSender;

use super::connection_closed;
use super::planned::{PlannedFile, PlannedFiles};
use super::read::read_full;
use super::run::Run;
use super::stream::Early;
use crate::compare::delta::{self, Extent};
use crate::compare::digest::PAGE;
use crate::data_directory::write::Writer;
use crate::error::{Error, Result};
use crate::manifest::plan::Range;
use crate::sys::buffer::Buffer;
use crate::sys::direct::DirectFile;
use crate::wire::protocol::data::{ContentTail, PagesTail};

/// Writes what arrives; keeps the file of the last pages open.
pub(super) struct PageWriter<'a> {
    run: &'a Run,
    /// Takes files of which much is in the page cache only.
    dirty: &'a SyncSender<Early>,
    open: Option<Open>,
    present: Buffer,
    runs: Vec<Extent>,
}

struct Open {
    number: u32,
    /// What is there, to be compared; looked for only if content is.
    present: Option<Option<DirectFile>>,
    writer: Option<Writer>,
}

impl Open {
    const fn new(number: u32) -> Self {
        Self { number, present: None, writer: None }
    }
}

impl<'a> PageWriter<'a> {
    pub(super) fn new(run: &'a Run, dirty: &'a SyncSender<Early>) -> Self {
        Self { run, dirty, open: None, present: Buffer::new(), runs: Vec::new() }
    }

    /// Closes the last file, and remembers how it is now.
    pub(super) fn close(&mut self) -> Result<()> {
        self.leave(self.run.planned_files())
    }

    fn leave(&mut self, planned_files: &PlannedFiles) -> Result<()> {
        if let Some(Open { number, writer: Some(writer), .. }) = self.open.take() {
            let planned = &planned_files.writable_file(self.run, number)?;
            if writer.is_direct() {
                planned.set_direct();
            }
            self.run.note(planned, writer.file())?;
        }
        Ok(())
    }

    /// Turns to the file of this number; another one is closed.
    fn turn_to(&mut self, planned_files: &PlannedFiles, number: u32) -> Result<()> {
        if self.open.as_ref().is_none_or(|open| open.number != number) {
            self.leave(planned_files)?;
        }
        Ok(())
    }

    /// Writes the runs of a frame.
    pub(super) fn pages(&mut self, tail: &PagesTail, content: &[u8]) -> Result<()> {
        let planned_files = self.run.planned_files();
        planned_files.writable_file(self.run, tail.file)?;
        let mut rest = content;
        for run in &tail.runs {
            let (bytes, after) = rest.split_at_checked(run.length as usize).ok_or_else(connection_closed)?;
            rest = after;
            self.write(tail.file, planned_files, bytes, run.offset)?;
        }
        Ok(())
    }

    /// Writes what of a batch's content differs from what is there; returns how many bytes.
    pub(super) fn content(&mut self, tail: &ContentTail, content: &[u8]) -> Result<u32> {
        let planned_files = self.run.planned_files();
        let mut rest = content;
        let mut written = 0;
        for ranges in Range::by_file(&tail.ranges) {
            self.expect(ranges, planned_files)?;
            for range in ranges {
                let (content, after) =
                    rest.split_at_checked(range.length as usize).ok_or_else(connection_closed)?;
                rest = after;
                written += self.range(range, planned_files, content)?;
            }
        }
        Ok(written)
    }

    /// Turns to ranges of one file, which are compared next.
    fn expect(&mut self, ranges: &[Range], planned_files: &PlannedFiles) -> Result<()> {
        let Some(first) = ranges.first() else { return Ok(()) };
        let planned = &planned_files.writable_file(self.run, first.file)?;
        if let Some(file) = self.present_file(planned, first.file, planned_files)? {
            file.will_need(Range::places(ranges));
        }
        Ok(())
    }

    fn range(&mut self, range: &Range, planned_files: &PlannedFiles, content: &[u8]) -> Result<u32> {
        planned_files.writable_file(self.run, range.file)?.check_end(range.offset + content.len() as u64)?;
        let read = self.read_present(range, planned_files)?;
        // what the disk cannot read is there but equal to nothing: it is written again
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
            self.write(range.file, planned_files, &content[start..start + run.length as usize], run.offset)?;
            written += run.length;
        }
        self.runs = runs;
        Ok(written)
    }

    /// Reads what the target has of a range into `present`; returns how much that is, or `None` if the disk
    /// cannot read it.
    fn read_present(&mut self, range: &Range, planned_files: &PlannedFiles) -> Result<Option<usize>> {
        let planned = &planned_files.writable_file(self.run, range.file)?;
        let mut buffer = std::mem::take(&mut self.present);
        buffer.resize(range.length as usize);
        let read = match self.present_file(planned, range.file, planned_files)? {
            Some(file) => read_full(file, &mut buffer, range.offset, planned)?,
            None => Some(0),
        };
        self.present = buffer;
        Ok(read)
    }

    /// What the target has of the file of this number, open; `None` if nothing is there.
    fn present_file(
        &mut self,
        planned: &PlannedFile<'_>,
        number: u32,
        planned_files: &PlannedFiles,
    ) -> Result<Option<&mut DirectFile>> {
        self.turn_to(planned_files, number)?;
        let present = &mut self.open.get_or_insert(Open::new(number)).present;
        let present = match present {
            Some(present) => present,
            unknown => unknown.insert(self.run.open_present(planned)?),
        };
        Ok(present.as_mut())
    }

    fn write(&mut self, number: u32, planned_files: &PlannedFiles, bytes: &[u8], offset: u64) -> Result<()> {
        let run = self.run;
        let planned = &planned_files.writable_file(run, number)?;
        planned.check_end(offset + bytes.len() as u64)?;
        self.turn_to(planned_files, number)?;
        let open = self.open.get_or_insert(Open::new(number));
        let writer = match &mut open.writer {
            Some(writer) => writer,
            none => none.insert(Writer::new(run.open_to_write(planned)?)),
        };
        writer
            .write_all(bytes, offset)
            .map_err(Error::on(format_args!("write file \"{}\" of the target", planned.path)))?;
        if let Some(file) = writer.take_dirty() {
            // while it has enough to do, the rest is left to the end
            let _ = self.dirty.try_send(Early::Sync(file));
        }
        Ok(())
    }
}
