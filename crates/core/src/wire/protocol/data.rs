//! Binary frames: everything that carries file content or digests. Integers are little-endian.

use crate::compare::delta::Extent;
use crate::compare::digest::{DIGEST, PAGE};
use crate::error::{Error, Kind, Result};
use crate::manifest::path::RelPath;
use crate::manifest::plan::{BATCH_RANGES, RANGE, Range};

/// Sender: digest these ranges of the target. Body: 16 bytes a range (file u32, offset u64, length u32).
pub const ASK: u8 = 0x20;
/// Sender: write these pages. Body: their content, then a [`PagesTail`].
pub const PAGES: u8 = 0x21;
/// Sender: the file ends here. Body: file u32, size u64.
pub const END_OF_FILE: u8 = 0x22;
/// Sender: the file is gone on the primary. Body: file u32.
pub const GONE: u8 = 0x23;
/// Both: everything before this is done; no body.
pub const BARRIER: u8 = 0x24;
/// Sender, where both ends are one process: write what of this differs. Body: the content of a batch's
/// ranges, then a [`ContentTail`]. Answer: [`WRITTEN`].
pub const CONTENT: u8 = 0x25;
/// Sender, in a dry run: something of this file would be sent. Body: file u32.
pub const DIFFERS: u8 = 0x26;
/// Receiver: the answer to one [`ASK`]: for each of its ranges the length that is there (u32) and the
/// digests of its pages.
pub const DIGESTS: u8 = 0x30;
/// Receiver: how much of a [`CONTENT`] differed and was written. Body: bytes u32.
pub const WRITTEN: u8 = 0x31;
/// Receiver: it cannot go on. Body: an [`Error`] as JSON.
pub const FAILED: u8 = 0x3F;

/// Most content bytes in one [`PAGES`] frame, before compression.
pub const MAX_PAGES: usize = RANGE as usize;

/// Most runs in one [`PAGES`] frame.
pub const MAX_RUNS: usize = MAX_PAGES / PAGE;

/// How the content of a [`PAGES`] frame is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Codec {
    /// As it is.
    Plain = 0,
    /// An LZ4 block.
    Lz4 = 1,
    /// A Zstandard frame.
    Zstd = 2,
}

impl Codec {
    /// The codec of this number.
    pub(super) fn decode(number: u8) -> Result<Self> {
        match number {
            0 => Ok(Self::Plain),
            1 => Ok(Self::Lz4),
            2 => Ok(Self::Zstd),
            other => Err(violation(format!("unknown codec {other}"))),
        }
    }
}

/// What follows the content of all runs, packed by the codec, in a [`PAGES`] frame: 12 bytes a run
/// (offset u64, length u32), then file u32, codec u8, count of runs u16. The content comes first so that
/// it lies aligned in memory where it arrives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PagesTail {
    /// The file's number in the plan.
    pub file: u32,
    /// How the content is packed.
    pub codec: Codec,
    /// Where the content goes.
    pub runs: Vec<Extent>,
}

impl PagesTail {
    /// Bytes of file, codec and count.
    const FIXED: usize = 7;

    /// Bytes of one run.
    const RUN: usize = 12;

    /// Encodes the tail.
    pub fn encode(file: u32, codec: Codec, runs: &[Extent], out: &mut Vec<u8>) {
        out.clear();
        for run in runs {
            out.extend_from_slice(&run.offset.to_le_bytes());
            out.extend_from_slice(&run.length.to_le_bytes());
        }
        out.extend_from_slice(&file.to_le_bytes());
        out.push(codec as u8);
        out.extend_from_slice(&u16::try_from(runs.len()).unwrap_or(u16::MAX).to_le_bytes());
    }

    /// Decodes the tail; returns the length of the packed content before it.
    pub fn decode(body: &[u8]) -> Result<(Self, usize)> {
        let (rest, fixed) = split_tail(body, Self::FIXED)?;
        let mut reader = Reader(fixed);
        let file = reader.u32()?;
        let codec = Codec::decode(reader.u8()?)?;
        let count = usize::from(reader.u16()?);
        if count > MAX_RUNS {
            return Err(violation(format!("{count} runs in one frame")));
        }
        let (packed, runs) = split_tail(rest, count * Self::RUN)?;
        let mut reader = Reader(runs);
        let mut runs = Vec::with_capacity(count);
        for _ in 0..count {
            let run = Extent { offset: reader.u64()?, length: reader.u32()? };
            check_end(run.offset, run.length.into())?;
            runs.push(run);
        }
        let tail = Self { file, codec, runs };
        if tail.content_length() > MAX_PAGES as u64 {
            return Err(violation(format!("{} bytes of pages in one frame", tail.content_length())));
        }
        Ok((tail, packed.len()))
    }

    /// Bytes of content, unpacked.
    pub fn content_length(&self) -> u64 {
        self.runs.iter().map(|run| u64::from(run.length)).sum()
    }
}

/// What follows the content of a [`CONTENT`] frame: 16 bytes a range (file u32, offset u64, length u32), then
/// the count of ranges u16.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContentTail {
    /// The ranges in the order of their content.
    pub ranges: Vec<Range>,
}

impl ContentTail {
    /// Encodes the tail.
    pub fn encode(ranges: &[Range], out: &mut Vec<u8>) {
        encode_ask(ranges, out);
        out.extend_from_slice(&u16::try_from(ranges.len()).unwrap_or(u16::MAX).to_le_bytes());
    }

    /// Decodes the tail; returns the length of the content before it.
    pub fn decode(body: &[u8]) -> Result<(Self, usize)> {
        let (rest, count) = split_tail(body, 2)?;
        let count = usize::from(Reader(count).u16()?);
        let (content, ranges) = split_tail(rest, count * RANGE_BYTES)?;
        let ranges = decode_ask(ranges)?;
        let length: u64 = ranges.iter().map(|range| u64::from(range.length)).sum();
        if length != content.len() as u64 {
            return Err(violation(format!(
                "{} bytes of content where {length} were announced",
                content.len()
            )));
        }
        Ok((Self { ranges }, content.len()))
    }
}

pub(super) fn split_tail(body: &[u8], length: usize) -> Result<(&[u8], &[u8])> {
    let start = body.len().checked_sub(length).ok_or_else(|| violation("it is too short"))?;
    Ok(body.split_at(start))
}

/// No file ends beyond what a file offset can say.
fn check_end(offset: u64, length: u64) -> Result<()> {
    match offset.checked_add(length) {
        Some(end) if end <= i64::MAX as u64 => Ok(()),
        _ => Err(violation(format!("content at offset {offset}"))),
    }
}

/// Bytes of a range in an [`ASK`] or a [`CONTENT`].
const RANGE_BYTES: usize = 16;

/// Encodes the body of an [`ASK`].
pub fn encode_ask(ranges: &[Range], out: &mut Vec<u8>) {
    out.clear();
    for range in ranges {
        out.extend_from_slice(&range.file.to_le_bytes());
        out.extend_from_slice(&range.offset.to_le_bytes());
        out.extend_from_slice(&range.length.to_le_bytes());
    }
}

/// Decodes the body of an [`ASK`].
pub fn decode_ask(body: &[u8]) -> Result<Vec<Range>> {
    let count = body.len() / RANGE_BYTES;
    if !body.len().is_multiple_of(RANGE_BYTES) || count > BATCH_RANGES {
        return Err(violation(format!("request of {} bytes", body.len())));
    }
    let mut reader = Reader(body);
    let mut total = 0;
    let mut ranges = Vec::with_capacity(count);
    for _ in 0..count {
        let range = Range { file: reader.u32()?, offset: reader.u64()?, length: reader.u32()? };
        total += u64::from(range.length);
        if total > RANGE || range.offset > i64::MAX as u64 - RANGE {
            return Err(violation("request for too long a range"));
        }
        ranges.push(range);
    }
    Ok(ranges)
}

/// What the target has of one range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Present<'a> {
    /// Bytes that are there; shorter than asked where the file ends.
    pub length: u32,
    /// One digest a page, the last one maybe of a shorter page.
    pub digests: &'a [u8],
}

impl<'a> Present<'a> {
    /// Appends one range's answer to the body of a [`DIGESTS`].
    pub fn encode(length: u32, digests: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(&length.to_le_bytes());
        out.extend_from_slice(digests);
    }

    /// Decodes the body of a [`DIGESTS`], which answers all ranges of a batch.
    pub fn decode_all(asked: &[Range], body: &'a [u8]) -> Result<Vec<Self>> {
        let mut rest = body;
        let presents = asked.iter().map(|range| Self::decode(range, &mut rest)).collect::<Result<_>>()?;
        Reader(rest).end()?;
        Ok(presents)
    }

    /// Takes the next range's answer from `body`, which shrinks.
    pub(super) fn decode(asked: &Range, body: &mut &'a [u8]) -> Result<Self> {
        let mut reader = Reader(body);
        let length = reader.u32()?;
        if length > asked.length {
            return Err(violation(format!("digests of {length} bytes where {} were asked", asked.length)));
        }
        let digests = reader.bytes((length as usize).div_ceil(PAGE) * DIGEST)?;
        *body = reader.0;
        Ok(Self { length, digests })
    }
}

/// Encodes the body of an [`END_OF_FILE`].
pub fn encode_end_of_file(file: u32, size: u64) -> [u8; 12] {
    let mut body = [0; 12];
    body[..4].copy_from_slice(&file.to_le_bytes());
    body[4..].copy_from_slice(&size.to_le_bytes());
    body
}

/// Decodes the body of an [`END_OF_FILE`].
pub fn decode_end_of_file(body: &[u8]) -> Result<(u32, u64)> {
    let mut reader = Reader(body);
    let end = (reader.u32()?, reader.u64()?);
    reader.end()?;
    Ok(end)
}

/// Decodes a body that is the number of a file.
pub fn decode_file(body: &[u8]) -> Result<u32> {
    let mut reader = Reader(body);
    let file = reader.u32()?;
    reader.end()?;
    Ok(file)
}

/// Decodes the body of a [`WRITTEN`].
pub fn decode_written(body: &[u8]) -> Result<u32> {
    decode_file(body)
}

/// A small file, installed as a whole: mode u32, length of path u16, path, content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Put {
    /// Where it goes.
    pub path: RelPath,
    /// Permission bits.
    pub mode: u32,
    /// The content.
    pub content: Vec<u8>,
}

impl Put {
    /// Encodes everything before the content.
    pub fn head(&self) -> Vec<u8> {
        let path = self.path.as_str().as_bytes();
        let mut head = self.mode.to_le_bytes().to_vec();
        head.extend_from_slice(&u16::try_from(path.len()).unwrap_or(u16::MAX).to_le_bytes());
        head.extend_from_slice(path);
        head
    }

    /// Decodes a whole body.
    pub fn decode(body: &[u8]) -> Result<Self> {
        let mut reader = Reader(body);
        let mode = reader.u32()?;
        let length = usize::from(reader.u16()?);
        let path =
            std::str::from_utf8(reader.bytes(length)?).map_err(|_| violation("path that is not UTF-8"))?;
        Ok(Self { path: RelPath::parse(path)?, mode, content: reader.0.to_vec() })
    }
}

pub(super) fn violation(what: impl Into<String>) -> Error {
    Error::new(Kind::ProtocolViolation, format!("invalid frame: {}", what.into()))
}

/// Takes integers off the front of a frame.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn bytes(&mut self, count: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or_else(|| violation("it is too short"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk().ok_or_else(|| violation("it is too short"))?;
        self.0 = rest;
        Ok(*taken)
    }

    pub(super) fn u8(&mut self) -> Result<u8> {
        self.array().map(u8::from_le_bytes)
    }

    pub(super) fn u16(&mut self) -> Result<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub(super) fn end(&self) -> Result<()> {
        if self.0.is_empty() { Ok(()) } else { Err(violation("it is too long")) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn decoders_never_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = PagesTail::decode(&body);
            let _ = ContentTail::decode(&body);
            let _ = decode_ask(&body);
            let _ = decode_end_of_file(&body);
            let _ = decode_file(&body);
            let _ = Put::decode(&body);
            let asked = Range { file: 0, offset: 0, length: 1 << 20 };
            let _ = Present::decode_all(&[asked; 2], &body);
        }

        #[test]
        fn pages_round_trip(
            file in any::<u32>(),
            runs in prop::collection::vec((0_u64..1 << 40, 0_u32..=8192), 0..MAX_RUNS),
            content in prop::collection::vec(any::<u8>(), 0..100),
        ) {
            let runs: Vec<Extent> = runs.into_iter().map(|(offset, length)| Extent { offset, length }).collect();
            let mut tail = Vec::new();
            PagesTail::encode(file, Codec::Lz4, &runs, &mut tail);
            let body = [&content[..], &tail].concat();
            let (tail, length) = PagesTail::decode(&body).expect("decodes");
            prop_assert_eq!(tail, PagesTail { file, codec: Codec::Lz4, runs });
            prop_assert_eq!(length, content.len());
            let ranges = [0, content.len()].map(|length| Range { file, offset: 8192, length: length as u32 });
            let mut tail = Vec::new();
            ContentTail::encode(&ranges, &mut tail);
            let body = [&content[..], &tail].concat();
            let decoded = ContentTail::decode(&body).expect("decodes");
            prop_assert_eq!(decoded, (ContentTail { ranges: ranges.to_vec() }, content.len()));
        }

        #[test]
        fn asks_round_trip(ranges in prop::collection::vec((any::<u32>(), 0_u64..1 << 40, 0_u32..2048), 0..BATCH_RANGES)) {
            let ranges: Vec<Range> =
                ranges.into_iter().map(|(file, offset, length)| Range { file, offset, length }).collect();
            let mut body = Vec::new();
            encode_ask(&ranges, &mut body);
            prop_assert_eq!(decode_ask(&body).expect("decodes"), ranges);
        }
    }

    #[test]
    fn answers_end_where_the_questions_do() {
        let asked = [Range { file: 0, offset: 0, length: 100 }, Range { file: 1, offset: 0, length: 100 }];
        let mut body = Vec::new();
        Present::encode(100, &[1; DIGEST], &mut body);
        assert!(Present::decode_all(&asked, &body).is_err(), "an answer is missing");
        Present::encode(0, &[], &mut body);
        let presents = Present::decode_all(&asked, &body).expect("decodes");
        assert_eq!(presents.iter().map(|present| present.length).collect::<Vec<_>>(), [100, 0]);
        body.push(0);
        assert!(Present::decode_all(&asked, &body).is_err(), "a byte too many");
    }

    #[test]
    fn limits_hold() {
        let run = Extent { offset: 0, length: 8193 };
        let mut body = Vec::new();
        PagesTail::encode(1, Codec::Plain, &[run; MAX_RUNS], &mut body);
        assert!(PagesTail::decode(&body).is_err(), "more content than one frame may hold");
        PagesTail::encode(1, Codec::Plain, &[Extent { offset: u64::MAX, length: 1 }], &mut body);
        assert!(PagesTail::decode(&body).is_err(), "an offset past the end of any file");
        ContentTail::encode(&[Range { file: 0, offset: 0, length: 8 }], &mut body);
        assert!(ContentTail::decode(&[&[0; 7][..], &body].concat()).is_err(), "less content than announced");
        ContentTail::encode(&[Range { file: 0, offset: i64::MAX as u64, length: 8 }], &mut body);
        assert!(
            ContentTail::decode(&[&[0; 8][..], &body].concat()).is_err(),
            "content past the end of any file"
        );
        encode_ask(&[Range { file: 0, offset: 0, length: 512 << 10 }; 2], &mut body);
        assert!(decode_ask(&body).is_err(), "more than a batch");
    }

    #[test]
    fn puts_round_trip() {
        let put =
            Put { path: RelPath::parse("a/b").expect("valid"), mode: 0o600, content: b"content".to_vec() };
        let mut body = put.head();
        body.extend_from_slice(&put.content);
        assert_eq!(Put::decode(&body).expect("decodes"), put);
        let evil = [&0_u32.to_le_bytes()[..], &4_u16.to_le_bytes(), b"../x", b"content"].concat();
        assert!(Put::decode(&evil).is_err());
    }
}
