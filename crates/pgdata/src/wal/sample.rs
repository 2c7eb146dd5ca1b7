//! WAL as a server writes it, made up for tests.

use super::Lsn;
use super::page::{LONG_HEADER, PAGE_SIZE, SHORT_HEADER};
use super::reader::{Origin, Pages};
use super::record::{BlockReference, HEADER, RelationFileLocator};

/// Writes records into pages, from the beginning of a segment on.
#[derive(Debug, Clone)]
pub struct Writer {
    /// XLOG_PAGE_MAGIC
    pub magic: u16,
    /// Whose it is.
    pub origin: Origin,
    /// Of the pages that are begun from here on.
    pub timeline: u32,
    base: u64,
    bytes: Vec<u8>,
    previous: u64,
}

impl Writer {
    /// A writer that begins at `base`, where a segment does.
    pub fn new(magic: u16, segment_size: u32, base: Lsn) -> Self {
        let origin = Origin { system_identifier: 42, segment_size };
        Self { magic, origin, timeline: 1, base: base.0, bytes: Vec::new(), previous: 0 }
    }

    /// Where the next byte goes.
    pub fn position(&self) -> Lsn {
        Lsn(self.base + self.bytes.len() as u64)
    }

    /// What was written, in whole pages.
    pub fn finish(&self) -> Written {
        let mut bytes = self.bytes.clone();
        bytes.resize(bytes.len().next_multiple_of(PAGE_SIZE), 0);
        Written { base: self.base, bytes }
    }

    /// Writes a record whose blocks have each so many bytes of data; returns where it begins.
    pub fn record(&mut self, manager: u8, info: u8, blocks: &[(BlockReference, u16)], main: &[u8]) -> Lsn {
        let body = body(blocks, main);
        self.record_of(manager, info, &body)
    }

    /// Writes a record with this body; returns where it begins.
    pub fn record_of(&mut self, manager: u8, info: u8, body: &[u8]) -> Lsn {
        self.align();
        let start = self.room();
        let mut record = Vec::with_capacity(HEADER + body.len());
        let length = u32::try_from(HEADER + body.len()).expect("not so long");
        record.extend(length.to_le_bytes());
        record.extend(7_u32.to_le_bytes());
        record.extend(self.previous.to_le_bytes());
        record.extend([info, manager, 0, 0]);
        let crc = crc32c::crc32c_append(crc32c::crc32c(body), &record);
        record.extend(crc.to_le_bytes());
        record.extend(body);
        self.previous = start.0;
        let mut left = record.as_slice();
        while !left.is_empty() {
            if self.bytes.len().is_multiple_of(PAGE_SIZE) {
                self.page(0x01, u32::try_from(left.len()).expect("not so long"));
            }
            let room = PAGE_SIZE - self.bytes.len() % PAGE_SIZE;
            let (now, later) = left.split_at(room.min(left.len()));
            self.bytes.extend(now);
            left = later;
        }
        self.align();
        start
    }

    /// Leaves the rest of the segment unused, as XLOG_SWITCH does; the pages are there, with headers.
    pub fn switch(&mut self) -> Lsn {
        let start = self.record(0, 0x40, &[], &[]);
        let size = u64::from(self.origin.segment_size);
        while !self.position().0.is_multiple_of(size) {
            if self.bytes.len().is_multiple_of(PAGE_SIZE) {
                self.page(0, 0);
            }
            self.bytes.resize(self.bytes.len().next_multiple_of(PAGE_SIZE), 0);
        }
        start
    }

    /// Gives up the record that goes over the page that begins at `page`: what follows begins there, with the record that
    /// says so. Returns where that begins.
    pub fn overwrite(&mut self, page: Lsn, given_up: Lsn, previous: Lsn) -> Lsn {
        self.bytes.truncate((page.0 - self.base) as usize);
        self.page(0x08, 0);
        self.previous = previous.0;
        let data = [given_up.0.to_le_bytes(), 0_u64.to_le_bytes()].concat();
        self.record(0, 0xD0, &[], &data)
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
    }

    /// Where a record begins: behind the header of a page that is begun for it.
    fn room(&mut self) -> Lsn {
        if self.bytes.len().is_multiple_of(PAGE_SIZE) {
            self.page(0, 0);
        }
        self.position()
    }

    fn page(&mut self, info: u16, remaining: u32) {
        let address = self.position().0;
        let is_long = address.is_multiple_of(u64::from(self.origin.segment_size));
        let mut header = Vec::with_capacity(LONG_HEADER);
        header.extend(self.magic.to_le_bytes());
        header.extend((info | if is_long { 2 } else { 0 }).to_le_bytes());
        header.extend(self.timeline.to_le_bytes());
        header.extend(address.to_le_bytes());
        header.extend(remaining.to_le_bytes());
        header.resize(SHORT_HEADER, 0);
        if is_long {
            header.extend(self.origin.system_identifier.to_le_bytes());
            header.extend(self.origin.segment_size.to_le_bytes());
            header.extend(8192_u32.to_le_bytes());
        }
        self.bytes.extend(header);
    }
}

/// The body of a record whose blocks have each so many bytes of data.
pub fn body(blocks: &[(BlockReference, u16)], main: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    let mut last: Option<RelationFileLocator> = None;
    for (id, (block, data)) in (0_u8..).zip(blocks) {
        let is_same = last == Some(block.locator);
        let flags = block.fork | if *data > 0 { 0x20 } else { 0 } | if is_same { 0x80 } else { 0 };
        body.extend([id, flags]);
        body.extend(data.to_le_bytes());
        if !is_same {
            let RelationFileLocator { tablespace, database, relation } = block.locator;
            body.extend([tablespace, database, relation].iter().flat_map(|number| number.to_le_bytes()));
        }
        last = Some(block.locator);
        body.extend(block.block.to_le_bytes());
    }
    if let Ok(short) = u8::try_from(main.len()) {
        if short > 0 {
            body.extend([255, short]);
        }
    } else {
        body.push(254);
        body.extend(u32::try_from(main.len()).expect("not so long").to_le_bytes());
    }
    body.extend(blocks.iter().flat_map(|(_, data)| std::iter::repeat_n(0xAB, usize::from(*data))));
    body.extend(main);
    body
}

/// Pages in memory.
#[derive(Debug, Clone)]
pub struct Written {
    base: u64,
    /// All pages.
    pub bytes: Vec<u8>,
}

impl Written {
    /// Where a position lies in the bytes.
    pub const fn offset(&self, position: Lsn) -> usize {
        (position.0 - self.base) as usize
    }
}

impl Pages for Written {
    fn read(&mut self, address: Lsn, page: &mut [u8]) -> std::io::Result<bool> {
        let offset = address.0.checked_sub(self.base).and_then(|offset| usize::try_from(offset).ok());
        let found = offset.and_then(|offset| self.bytes.get(offset..offset + PAGE_SIZE));
        if let Some(found) = found {
            page.copy_from_slice(found);
        }
        Ok(found.is_some())
    }
}
