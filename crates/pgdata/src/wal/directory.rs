//! The pages of a `pg_wal`: in which file a page lies, along a history of timelines.
//!
//! A page of timeline 2 lies in a file of timeline 2, or, where timeline 3 sprang in the same segment, in that of timeline
//! 3, which begins with a copy. Which of them are there depends: the old one may be gone, renamed to `.partial`, or be
//! the only one whose pages were written. So every file of the history that could hold a page is asked, the newest
//! first (`XLogFileReadAnyTLI` in src/backend/access/transam/xlogrecovery.c).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use super::Lsn;
use super::page::{PAGE_SIZE, PageHeader};
use super::reader::Pages;
use super::segment_file::segment_name;
use crate::history::Ancestor;

/// Pages that are read at once.
const AHEAD: usize = 32;

/// The pages in the files of a directory.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    segment_size: u32,
    /// The timelines, newest first, and where each begins.
    timelines: Vec<(u32, Lsn)>,
    /// The files of one segment.
    segment: Option<(u64, Vec<Ahead>)>,
}

/// A file of a segment, read some pages ahead.
#[derive(Debug)]
struct Ahead {
    file: File,
    buffer: Vec<u8>,
    /// Where in the file the buffer begins.
    offset: u64,
}

impl Directory {
    /// The WAL of `timeline` and its `ancestors`, oldest first, in this directory.
    pub fn new(path: PathBuf, segment_size: u32, timeline: u32, ancestors: &[Ancestor]) -> Self {
        let mut begin = Lsn(0);
        let mut timelines = Vec::new();
        for ancestor in ancestors {
            timelines.push((ancestor.timeline, begin));
            begin = ancestor.end;
        }
        timelines.push((timeline, begin));
        timelines.reverse();
        Self { path, segment_size, timelines, segment: None }
    }

    /// Opens the files in which pages of a segment may lie, in the order in which they are asked.
    fn open(&self, segment: u64) -> io::Result<Vec<Ahead>> {
        let mut files = Vec::new();
        let end = Lsn((segment + 1).saturating_mul(u64::from(self.segment_size)));
        let possible = self.timelines.iter().filter(|(_, begin)| *begin < end);
        let names = possible.map(|(timeline, _)| segment_name(*timeline, segment, self.segment_size));
        let names: Vec<String> = names.collect();
        for name in names.iter().cloned().chain(names.iter().map(|name| format!("{name}.partial"))) {
            let path = self.path.join(name);
            // what is no file, a pipe for instance, might never be opened
            if path.metadata().is_ok_and(|metadata| !metadata.is_file()) {
                continue;
            }
            match File::open(path) {
                Ok(file) => files.push(Ahead { file, buffer: Vec::new(), offset: 0 }),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(files)
    }
}

impl Pages for Directory {
    /// Files stay open: one that the server renames to use it again still has what it had.
    fn refresh(&mut self) {
        let Some((_, files)) = &mut self.segment else { return };
        files.iter_mut().for_each(|file| file.buffer.clear());
        if files.is_empty() {
            self.segment = None;
        }
    }

    fn read(&mut self, address: Lsn, page: &mut [u8]) -> io::Result<bool> {
        let size = u64::from(self.segment_size).max(PAGE_SIZE as u64);
        let (segment, offset) = (address.0 / size, address.0 % size);
        if self.segment.as_ref().is_none_or(|(open, _)| *open != segment) {
            self.segment = Some((segment, self.open(segment)?));
        }
        let Some((_, files)) = &mut self.segment else { return Ok(false) };
        // the newest file with that page; else what the newest file has there, so that the reader can say what is wrong
        let mut is_there = false;
        let mut other = Vec::new();
        for file in files {
            if is_there {
                other.resize(PAGE_SIZE, 0);
            }
            if !file.read(offset, size, if is_there { &mut other } else { page })? {
                continue;
            }
            let found: &[u8] = if is_there { &other } else { page };
            if PageHeader::parse(found).is_ok_and(|header| header.address == address) {
                if is_there {
                    page.copy_from_slice(&other);
                }
                return Ok(true);
            }
            is_there = true;
        }
        Ok(is_there)
    }
}

impl Ahead {
    /// Reads a page; false if the file ends before it does.
    fn read(&mut self, offset: u64, size: u64, page: &mut [u8]) -> io::Result<bool> {
        let end = offset + PAGE_SIZE as u64;
        if offset < self.offset || end > self.offset + self.buffer.len() as u64 {
            let wanted = (size - offset).min((AHEAD * PAGE_SIZE) as u64) as usize;
            self.buffer.resize(wanted, 0);
            self.offset = offset;
            let mut filled = 0;
            while filled < wanted {
                match self.file.read_at(&mut self.buffer[filled..], offset + filled as u64) {
                    Ok(0) => break,
                    Ok(read) => filled += read,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
            self.buffer.truncate(filled);
        }
        let from = (offset - self.offset) as usize;
        let Some(found) = self.buffer.get(from..from + PAGE_SIZE) else { return Ok(false) };
        page.copy_from_slice(found);
        Ok(true)
    }
}
