//! Records one after another, as PostgreSQL reads them when it replays (`XLogDecodeNextRecord` in
//! src/backend/access/transam/xlogreader.c).
//!
//! The end of the WAL is no error: it is where nothing valid follows, and [`End`] says why. A record whose CRC is right but
//! that is not understood is an error, because WAL that is not understood proves nothing.

use std::io;
use std::ops::Range;

use super::Lsn;
use super::page::{BadPage, Format, PAGE_SIZE, PageHeader};
use super::record::{
    BlockReference, HEADER, MAX_HEADERS, MAX_LENGTH, Malformed, RecordHeader, read_block_headers,
};
use super::special::{self, Effect};

/// Records up to this length are put together in memory as a whole.
const WHOLE: usize = 512 << 10;

/// Longest main data that is put together: a transaction's end with some five million dropped files.
const MAX_DATA: usize = 64 << 20;

/// Where pages come from.
pub trait Pages {
    /// Fills `page`, of [`PAGE_SIZE`] bytes, with the page at this position; false if there is none.
    fn read(&mut self, address: Lsn, page: &mut [u8]) -> io::Result<bool>;

    /// What was read ahead may be out of date: more has been written since.
    fn refresh(&mut self) {}
}

/// Whose WAL is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// The cluster's.
    pub system_identifier: u64,
    /// Bytes in a segment.
    pub segment_size: u32,
}

/// A record.
#[derive(Debug)]
pub struct Record<'a> {
    /// Where it begins.
    pub start: Lsn,
    /// Where it ends; the next one begins here, or behind the header of the page that begins here.
    pub end: Lsn,
    /// The timeline of the page on which it begins.
    pub timeline: u32,
    /// Its header.
    pub header: RecordHeader,
    /// The blocks that it changes.
    pub blocks: &'a [BlockReference],
    /// What else it does.
    pub effect: Effect,
    /// Its main data; of a record of more than half a megabyte only where that is needed to know the effect.
    pub data: &'a [u8],
    /// All of it; of a record of more than half a megabyte its beginning, with the CRC of all.
    pub bytes: &'a [u8],
}

/// Where the WAL ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// The end of the last record; what follows is not valid.
    pub at: Lsn,
    /// Why not.
    pub why: Why,
}

/// Why no record follows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Why {
    /// The caller wanted no more.
    #[error("the limit is reached")]
    Limit,
    /// There is no such page.
    #[error("there is no page at {0}")]
    NoPage(Lsn),
    /// What is there is no page.
    #[error("at {0}: {1}")]
    Page(Lsn, BadPage),
    /// Another cluster's, or another version's.
    #[error("the page at {0} is another cluster's")]
    Foreign(Lsn),
    /// A page of an earlier use of the file.
    #[error("the page at {0} is that of {1}")]
    Address(Lsn, Lsn),
    /// A timeline follows a later one.
    #[error("the page at {0} is of timeline {1}, and one before it of a later one")]
    Timeline(Lsn, u32),
    /// The page and the record that should end or begin there contradict each other.
    #[error("the record and the page at {0} do not belong together")]
    Continuation(Lsn),
    /// Nothing was written here.
    #[error("there is no record")]
    Empty,
    /// Not a record's length, resource manager or predecessor.
    #[error("there is no valid record")]
    Header,
    /// It was not completely written, or is damaged.
    #[error("the CRC of the record is wrong")]
    Crc,
}

/// Why reading failed.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The operating system's error.
    #[error("could not read WAL: {0}")]
    Io(#[from] io::Error),
    /// A valid record that this crate does not understand.
    #[error("at {at}: {source}")]
    Malformed {
        /// Where it begins.
        at: Lsn,
        /// What is wrong with it.
        source: Malformed,
    },
}

/// Reads records from a position on.
#[derive(Debug)]
pub struct Reader<P> {
    pages: P,
    origin: Origin,
    format: Option<Format>,
    /// The page that was read last, if it was valid.
    header: Option<PageHeader>,
    page: Vec<u8>,
    /// The latest timeline so far, and the page that it was on.
    latest: (Lsn, u32),
    next: u64,
    limit: Lsn,
    /// Where the last record began.
    previous: Option<Lsn>,
    assembly: Assembly,
    /// Where in the page the last record lies, if it lies in one: it need not be put together.
    in_page: Option<Range<usize>>,
    end: Option<End>,
}

impl<P: Pages> Reader<P> {
    /// Reads from `start`, where a record begins, to `limit` at most.
    pub fn new(pages: P, origin: Origin, start: Lsn, limit: Lsn) -> Self {
        Self {
            pages,
            origin,
            format: None,
            header: None,
            page: vec![0; PAGE_SIZE],
            latest: (Lsn(0), 0),
            next: start.0,
            limit,
            previous: None,
            assembly: Assembly::default(),
            in_page: None,
            end: None,
        }
    }

    /// Turns to the first record that begins on the page at `page` or later (`XLogFindNextRecord`): what a page begins with
    /// may belong to a record before it. Where none begins the reader is at its end.
    pub fn seek_from(&mut self, page: Lsn) -> io::Result<()> {
        self.next = page.0;
        let mut address = page_of(page.0);
        let why = loop {
            if address >= self.limit {
                break Why::Limit;
            }
            if let Err(why) = self.turn_to(address)? {
                break why;
            }
            let Some(header) = &self.header else { break Why::NoPage(address) };
            let (begin, rest) = (header.length(), header.remaining as usize);
            if !header.is_continuation() {
                self.next = address.0;
                return Ok(());
            }
            // a record that ends at the end of a page leaves no room for another
            if begin + rest.next_multiple_of(8) < PAGE_SIZE {
                self.next = address.0 + (begin + rest.next_multiple_of(8)) as u64;
                return Ok(());
            }
            address = Lsn(address.0 + PAGE_SIZE as u64);
        };
        self.end = Some(End { at: page, why });
        Ok(())
    }

    /// The next record; `None` at the [`Self::end`].
    pub fn next_record(&mut self) -> Result<Option<Record<'_>>, ReadError> {
        if self.end.is_some() {
            return Ok(None);
        }
        let at = Lsn(self.next);
        let (start, timeline, header) = match self.assemble()? {
            Ok(found) => found,
            Err(why) => {
                self.end = Some(End { at, why });
                return Ok(None);
            }
        };
        let Some(format) = self.format else { return Ok(None) };
        let malformed = |source| ReadError::Malformed { at: start, source };
        let (bytes, data) = match self.in_page.clone().and_then(|range| self.page.get(range)) {
            Some(bytes) => {
                let blocks = &mut self.assembly.blocks;
                let main = read_block_headers(bytes, bytes.len(), format, blocks).map_err(malformed)?;
                (bytes, &bytes[bytes.len() - main..])
            }
            None => {
                let main = self.assembly.parse(format).map_err(malformed)?;
                (self.assembly.head.as_slice(), self.assembly.data(main))
            }
        };
        let effect = special::effect(&header, data, format).map_err(malformed)?;
        if effect == Effect::Switch {
            self.next = self.next.next_multiple_of(u64::from(self.origin.segment_size).max(1));
        }
        self.previous = Some(start);
        let (end, blocks) = (Lsn(self.next), self.assembly.blocks.as_slice());
        Ok(Some(Record { start, end, timeline, header, blocks, effect, data, bytes }))
    }

    /// The first page of which nothing was used: behind the pages of the last record, or of the one that is incomplete
    /// at the end.
    pub fn unused(&self) -> Lsn {
        match self.end.as_ref().map(|end| &end.why) {
            // it was read, and does not belong to what was before it
            Some(Why::Continuation(page)) => *page,
            _ if self.latest.1 == 0 => page_of(self.next),
            _ => Lsn(self.latest.0.0 + PAGE_SIZE as u64),
        }
    }

    /// Goes on where it has ended: more may have been written since.
    pub fn resume(&mut self) {
        self.pages.refresh();
        self.header = None;
        self.end = None;
    }

    /// Where the WAL ends, once no record is left.
    pub const fn end(&self) -> Option<&End> {
        self.end.as_ref()
    }

    /// Puts the next record together, and returns where it begins, on which timeline, and its header.
    fn assemble(&mut self) -> io::Result<Result<(Lsn, u32, RecordHeader), Why>> {
        'record: loop {
            self.in_page = None;
            if self.next >= self.limit.0 {
                return Ok(Err(Why::Limit));
            }
            let mut address = page_of(self.next);
            if let Err(why) = self.turn_to(address)? {
                return Ok(Err(why));
            }
            let Some(header) = self.header.clone() else { return Ok(Err(Why::NoPage(address))) };
            let mut offset = (self.next - address.0) as usize;
            if offset == 0 {
                offset = header.length();
            }
            if offset < header.length() || (offset == header.length() && header.is_continuation()) {
                return Ok(Err(Why::Continuation(address)));
            }
            let start = Lsn(address.0 + offset as u64);
            let length = crate::bytes::u32_at(&self.page, offset).unwrap_or_default();
            if length == 0 {
                return Ok(Err(Why::Empty));
            }
            if (length as usize) < HEADER || length > MAX_LENGTH {
                return Ok(Err(Why::Header));
            }
            let range = offset..offset + length as usize;
            if let Some(bytes) = self.page.get(range.clone()) {
                let found = RecordHeader::parse(bytes);
                let Some(found) = found.filter(|found| self.is_plausible(found, start, header.format)) else {
                    return Ok(Err(Why::Header));
                };
                if crc_of(bytes) != found.crc {
                    return Ok(Err(Why::Crc));
                }
                self.next = (address.0 + range.end as u64).next_multiple_of(8);
                self.in_page = Some(range);
                return Ok(Ok((start, header.timeline, found)));
            }
            self.assembly.begin(length as usize);
            loop {
                let taken = self.assembly.take(&self.page[offset..], header.format);
                // a wrong header would have us look for the rest of something that is none
                if self
                    .assembly
                    .header()
                    .is_some_and(|found| !self.is_plausible(&found, start, header.format))
                {
                    return Ok(Err(Why::Header));
                }
                if self.assembly.missing() == 0 {
                    // records begin at multiples of 8
                    self.next = (address.0 + (offset + taken) as u64).next_multiple_of(8);
                    break;
                }
                address = Lsn(address.0 + PAGE_SIZE as u64);
                if let Err(why) = self.turn_to(address)? {
                    return Ok(Err(why));
                }
                let Some(page) = &self.header else { return Ok(Err(Why::NoPage(address))) };
                if page.is_overwrite() {
                    self.next = address.0;
                    continue 'record;
                }
                if !page.is_continuation() || page.remaining as usize != self.assembly.missing() {
                    return Ok(Err(Why::Continuation(address)));
                }
                offset = page.length();
            }
            let Some(found) = self.assembly.header().filter(|found| self.assembly.is_intact(found)) else {
                self.next = start.0;
                return Ok(Err(Why::Crc));
            };
            return Ok(Ok((start, header.timeline, found)));
        }
    }

    fn is_plausible(&self, header: &RecordHeader, start: Lsn, format: Format) -> bool {
        let follows = match self.previous {
            Some(previous) => header.previous == previous,
            None => header.previous < start,
        };
        follows && header.is_known(format)
    }

    /// Reads a page, unless it was the last one, and judges it as `XLogReaderValidatePageHeader` does.
    fn turn_to(&mut self, address: Lsn) -> io::Result<Result<(), Why>> {
        if self.header.as_ref().is_some_and(|header| header.address == address) {
            return Ok(Ok(()));
        }
        self.header = None;
        if !self.pages.read(address, &mut self.page)? {
            return Ok(Err(Why::NoPage(address)));
        }
        let header = match PageHeader::parse(&self.page) {
            Ok(header) => header,
            Err(bad) => return Ok(Err(Why::Page(address, bad))),
        };
        if header.address != address {
            return Ok(Err(Why::Address(address, header.address)));
        }
        let begins_segment = address.0.is_multiple_of(u64::from(self.origin.segment_size).max(1));
        let is_ours = match header.segment {
            Some(segment) => {
                segment.system_identifier == self.origin.system_identifier
                    && segment.segment_size == self.origin.segment_size
            }
            None => !begins_segment,
        };
        if !is_ours || self.format.is_some_and(|format| format != header.format) {
            return Ok(Err(Why::Foreign(address)));
        }
        let (page, timeline) = self.latest;
        if address > page {
            if header.timeline < timeline {
                return Ok(Err(Why::Timeline(address, header.timeline)));
            }
            self.latest = (address, header.timeline);
        }
        self.format = Some(header.format);
        self.header = Some(header);
        Ok(Ok(()))
    }
}

/// The page that holds a position.
const fn page_of(position: u64) -> Lsn {
    Lsn(position - position % PAGE_SIZE as u64)
}

/// The CRC of a whole record: of its body, then of its header up to the CRC.
fn crc_of(record: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&record[HEADER..]), &record[..HEADER - 4])
}

/// A record that is put together from the pages over which it goes. Of a long one only what is of interest is kept: its
/// headers, and its main data where that matters.
#[derive(Debug, Default)]
struct Assembly {
    length: usize,
    received: usize,
    /// From the beginning: all of a short record, the headers of a long one.
    head: Vec<u8>,
    /// The main data of a long record.
    tail: Vec<u8>,
    /// Of a long record: the CRC of the body so far.
    crc: u32,
    /// Of a long record: the length of its main data, and what its headers say about blocks.
    headers: Option<Result<usize, Malformed>>,
    blocks: Vec<BlockReference>,
}

impl Assembly {
    fn begin(&mut self, length: usize) {
        self.length = length;
        self.received = 0;
        self.head.clear();
        self.tail.clear();
        self.crc = 0;
        self.headers = None;
    }

    const fn missing(&self) -> usize {
        self.length - self.received
    }

    const fn is_long(&self) -> bool {
        self.length > WHOLE
    }

    fn header(&self) -> Option<RecordHeader> {
        RecordHeader::parse(&self.head)
    }

    /// Takes what belongs to the record, and returns how much that is.
    fn take(&mut self, bytes: &[u8], format: Format) -> usize {
        let taken = self.missing().min(bytes.len());
        let (bytes, from) = (&bytes[..taken], self.received);
        self.received += taken;
        if !self.is_long() {
            self.head.extend_from_slice(bytes);
            return taken;
        }
        let body = HEADER.saturating_sub(from).min(taken);
        self.crc = crc32c::crc32c_append(self.crc, &bytes[body..]);
        let wanted = MAX_HEADERS.saturating_sub(from).min(taken);
        self.head.extend_from_slice(&bytes[..wanted]);
        if self.headers.is_none() && self.head.len() == MAX_HEADERS {
            self.headers = Some(read_block_headers(&self.head, self.length, format, &mut self.blocks));
            let begin = self.length - self.kept();
            // what of the main data came before it was known to be wanted
            if let Some(early) = self.head.get(begin..) {
                self.tail.extend_from_slice(early);
            }
        }
        let begin = (self.length - self.kept()).max(MAX_HEADERS).max(from);
        if self.headers.is_some() && begin < self.received {
            self.tail.extend_from_slice(&bytes[begin - from..]);
        }
        taken
    }

    /// How much of a long record's end is kept.
    fn kept(&self) -> usize {
        let needs = self.header().is_some_and(|header| special::needs_data(&header));
        match &self.headers {
            Some(Ok(main)) if needs && *main <= MAX_DATA => *main,
            _ => 0,
        }
    }

    /// Whether the CRC is right.
    fn is_intact(&self, header: &RecordHeader) -> bool {
        let crc = if self.is_long() {
            crc32c::crc32c_append(self.crc, &self.head[..HEADER - 4])
        } else {
            crc_of(&self.head)
        };
        crc == header.crc
    }

    /// Reads the headers, and returns the length of the main data; the blocks are known from here on.
    fn parse(&mut self, format: Format) -> Result<usize, Malformed> {
        if !self.is_long() {
            return read_block_headers(&self.head, self.length, format, &mut self.blocks);
        }
        let main = self.headers.clone().unwrap_or(Err(Malformed("it has no headers")))?;
        let needs = self.header().is_some_and(|header| special::needs_data(&header));
        if needs && self.tail.len() != main {
            return Err(Malformed("its data is too long"));
        }
        Ok(main)
    }

    /// The main data, of this length, as far as it is needed.
    fn data(&self, main: usize) -> &[u8] {
        if self.is_long() { &self.tail } else { &self.head[self.length - main..] }
    }
}

const _: () = assert!(MAX_HEADERS < WHOLE);

#[cfg(test)]
mod tests;
