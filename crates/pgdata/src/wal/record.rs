//! One record of the WAL: its header, and the blocks that it changes.
//!
//! A record is a header of 24 bytes, headers of blocks and of the main data, then page images and data of each block, then
//! the main data (src/include/access/xlogrecord.h). Images and data of blocks are never looked at: that a block is
//! named says that it changed.

use super::Lsn;
use super::page::{Format, PAGE_SIZE};
use crate::bytes::{u16_at, u32_at, u64_at};

/// Length of the header (SizeOfXLogRecord).
pub const HEADER: usize = 24;

/// Longest record (XLogRecordMaxSize).
pub const MAX_LENGTH: u32 = 1020 << 20;

/// Most bytes from the beginning of a record to the end of its last block header: every block with an image and a
/// locator, then origin, top-level transaction and the length of the main data.
pub const MAX_HEADERS: usize = HEADER + (MAX_BLOCK_ID as usize + 1) * (4 + 7 + 12 + 4) + 3 + 5 + 5;

/// Blocks have numbers from 0 to this one (XLR_MAX_BLOCK_ID).
const MAX_BLOCK_ID: u8 = 32;

const DATA_SHORT: u8 = 255;
const DATA_LONG: u8 = 254;
const ORIGIN: u8 = 253;
const TOPLEVEL_XID: u8 = 252;

/// `xl_info`: the record changes files of relations in other ways than by the blocks it names.
const SPECIAL_REL_UPDATE: u8 = 0x01;

/// A resource manager: the part of PostgreSQL that wrote the record (src/include/access/rmgrlist.h).
pub mod rmgr {
    /// RM_XLOG_ID
    pub const XLOG: u8 = 0;
    /// RM_XACT_ID
    pub const XACT: u8 = 1;
    /// RM_SMGR_ID
    pub const SMGR: u8 = 2;
    /// RM_DBASE_ID
    pub const DBASE: u8 = 4;
    /// RM_LOGICALMSG_ID, the last one of PostgreSQL 13 to 19
    pub(super) const LAST: u8 = 21;
    /// RM_MIN_CUSTOM_ID, from which extensions have theirs (15 and later)
    pub const FIRST_CUSTOM: u8 = 128;
}

/// The header of a record (XLogRecord).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordHeader {
    /// Bytes of the whole record.
    pub length: u32,
    /// The transaction, or 0.
    pub xid: u32,
    /// Where the record before it begins.
    pub previous: Lsn,
    /// What it is, to its resource manager; the low four bits are the same for all.
    pub info: u8,
    /// Who wrote it; see [`rmgr`].
    pub resource_manager: u8,
    /// CRC-32C of the body, then of the header up to here.
    pub crc: u32,
}

impl RecordHeader {
    /// Reads the header; `None` if the bytes end before it does.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        Some(Self {
            length: u32_at(bytes, 0)?,
            xid: u32_at(bytes, 4)?,
            previous: Lsn(u64_at(bytes, 8)?),
            info: *bytes.get(16)?,
            resource_manager: *bytes.get(17)?,
            crc: u32_at(bytes, 20)?,
        })
    }

    /// Whether a server of this version knows such a resource manager. What writes none does not end the WAL of a
    /// server that reads it without an error.
    pub const fn is_known(&self, format: Format) -> bool {
        self.resource_manager <= rmgr::LAST
            || (self.resource_manager >= rmgr::FIRST_CUSTOM && format.major >= 15)
    }

    /// What the record is, as its resource manager names it (`XLR_RMGR_INFO_MASK`).
    pub const fn kind(&self) -> u8 {
        self.info & 0xF0
    }

    /// Whether it changes files of relations in other ways than by the blocks it names.
    pub const fn is_special(&self) -> bool {
        self.info & SPECIAL_REL_UPDATE != 0
    }
}

/// Where the files of a relation lie (RelFileLocator; RelFileNode before 16).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelationFileLocator {
    /// OID of the tablespace: 1663 is the data directory's `base`, 1664 `global`.
    pub tablespace: u32,
    /// OID of the database; 0 in `global`.
    pub database: u32,
    /// Number of the file.
    pub relation: u32,
}

impl RelationFileLocator {
    /// Reads three numbers; `None` if the bytes end before they do.
    pub(crate) fn parse(bytes: &[u8], offset: usize) -> Option<Self> {
        Some(Self {
            tablespace: u32_at(bytes, offset)?,
            database: u32_at(bytes, offset.checked_add(4)?)?,
            relation: u32_at(bytes, offset.checked_add(8)?)?,
        })
    }
}

/// The main fork (MAIN_FORKNUM).
pub const MAIN_FORK: u8 = 0;

/// Forks have numbers from 0 to this one (MAX_FORKNUM).
pub const MAX_FORK: u8 = 3;

/// A block that a record changes, or could change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockReference {
    /// The relation.
    pub locator: RelationFileLocator,
    /// The fork; see [`MAIN_FORK`].
    pub fork: u8,
    /// The block, counted over all segment files.
    pub block: u32,
}

/// A record with a right CRC that this crate does not understand. What it changes is unknown, so nothing may be
/// concluded from the WAL that holds it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a WAL record cannot be read: {0}")]
pub struct Malformed(pub &'static str);

/// Reads the headers of a record's blocks into `blocks`, and returns the length of its main data. `bytes` is the record
/// from its beginning, as far as [`MAX_HEADERS`] or longer; `length` is that of the whole.
pub fn read_block_headers(
    bytes: &[u8],
    length: usize,
    format: Format,
    blocks: &mut Vec<BlockReference>,
) -> Result<usize, Malformed> {
    blocks.clear();
    let mut cursor = Cursor { bytes, at: HEADER };
    // what the headers so far announce
    let mut announced = 0_usize;
    let mut main = 0;
    let mut last: Option<u8> = None;
    let mut locator = None;
    while length.saturating_sub(cursor.at) > announced {
        match cursor.u8()? {
            DATA_SHORT => {
                main = usize::from(cursor.u8()?);
                announced += main;
                // by convention the main data is always last
                break;
            }
            DATA_LONG => {
                main = cursor.u32()? as usize;
                announced = announced.checked_add(main).ok_or(Malformed("its data is too long"))?;
                break;
            }
            ORIGIN => cursor.skip(2)?,
            TOPLEVEL_XID if format.major >= 14 => cursor.skip(4)?,
            id @ ..=MAX_BLOCK_ID => {
                if last.is_some_and(|last| id <= last) {
                    return Err(Malformed("its blocks are out of order"));
                }
                last = Some(id);
                let flags = cursor.u8()?;
                let data = usize::from(cursor.u16()?);
                if (flags & HAS_DATA != 0) != (data > 0) {
                    return Err(Malformed(
                        "a block's flags and the length of its data contradict each other",
                    ));
                }
                announced += data;
                if flags & HAS_IMAGE != 0 {
                    announced += cursor.image(format)?;
                }
                if flags & SAME_RELATION == 0 {
                    locator = Some(cursor.locator()?);
                }
                let locator = locator.ok_or(Malformed("its first block has no relation"))?;
                let fork = flags & FORK;
                if fork > MAX_FORK {
                    return Err(Malformed("a block's fork is unknown"));
                }
                blocks.push(BlockReference { locator, fork, block: cursor.u32()? });
            }
            _ => return Err(Malformed("it has a part of an unknown kind")),
        }
    }
    if length.checked_sub(cursor.at) == Some(announced) {
        Ok(main)
    } else {
        Err(Malformed("the lengths of its parts do not add up"))
    }
}

// fork_flags of XLogRecordBlockHeader
const FORK: u8 = 0x0F;
const HAS_IMAGE: u8 = 0x10;
const HAS_DATA: u8 = 0x20;
const SAME_RELATION: u8 = 0x80;

// bimg_info of XLogRecordBlockImageHeader
const HAS_HOLE: u8 = 0x01;

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Cursor<'_> {
    fn skip(&mut self, length: usize) -> Result<(), Malformed> {
        self.at += length;
        if self.at <= self.bytes.len() { Ok(()) } else { Err(SHORT) }
    }

    fn u8(&mut self) -> Result<u8, Malformed> {
        let byte = *self.bytes.get(self.at).ok_or(SHORT)?;
        self.at += 1;
        Ok(byte)
    }

    fn u16(&mut self) -> Result<u16, Malformed> {
        let number = u16_at(self.bytes, self.at).ok_or(SHORT)?;
        self.at += 2;
        Ok(number)
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        let number = u32_at(self.bytes, self.at).ok_or(SHORT)?;
        self.at += 4;
        Ok(number)
    }

    fn locator(&mut self) -> Result<RelationFileLocator, Malformed> {
        let locator = RelationFileLocator::parse(self.bytes, self.at).ok_or(SHORT)?;
        self.at += 12;
        Ok(locator)
    }

    /// The length of a block's image.
    fn image(&mut self, format: Format) -> Result<usize, Malformed> {
        let length = usize::from(self.u16()?);
        let hole_offset = self.u16()?;
        let info = self.u8()?;
        // BKPIMAGE_IS_COMPRESSED; from 15 on one bit for each method
        let compressed = if format.major >= 15 { 0x1C } else { 0x02 };
        let has_hole = info & HAS_HOLE != 0;
        let is_compressed = info & compressed != 0;
        if is_compressed && has_hole {
            self.skip(2)?;
        }
        let is_right = if is_compressed {
            length < PAGE_SIZE
        } else if has_hole {
            hole_offset != 0 && length != 0 && length < PAGE_SIZE
        } else {
            length == PAGE_SIZE
        };
        if is_right { Ok(length) } else { Err(Malformed("the length of a page image is wrong")) }
    }
}

const SHORT: Malformed = Malformed("its headers are cut off");

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wal::page::MAGICS;

    fn format(magic: u16) -> Format {
        Format::of(magic).expect("known")
    }

    /// A record with these headers and so many bytes behind them.
    fn read(headers: &[u8], rest: usize, magic: u16) -> Result<(usize, Vec<BlockReference>), Malformed> {
        let mut record = vec![0; HEADER];
        record.extend_from_slice(headers);
        let length = record.len() + rest;
        let mut blocks = Vec::new();
        let main = read_block_headers(&record, length, format(magic), &mut blocks)?;
        Ok((main, blocks))
    }

    fn locator(relation: u32) -> Vec<u8> {
        [1663_u32, 5, relation].iter().flat_map(|number| number.to_le_bytes()).collect()
    }

    #[test]
    fn blocks_and_main_data_are_found() {
        // block 0 of relation 16384 with three bytes of data, block 7 of its visibility map without, then main data
        let mut headers = vec![0, 0x20, 3, 0];
        headers.extend(locator(16384));
        headers.extend(9_u32.to_le_bytes());
        headers.extend([1, 0x82, 0, 0]);
        headers.extend(7_u32.to_le_bytes());
        headers.extend([ORIGIN, 1, 0, TOPLEVEL_XID, 1, 2, 3, 4, DATA_SHORT, 11]);
        let (main, blocks) = read(&headers, 3 + 11, 0xD10D).expect("a record");
        assert_eq!(main, 11);
        let relation = RelationFileLocator { tablespace: 1663, database: 5, relation: 16384 };
        let block = |fork, block| BlockReference { locator: relation, fork, block };
        assert_eq!(blocks, [block(0, 9), block(2, 7)]);
        assert!(read(&headers, 3 + 12, 0xD10D).is_err() && read(&headers, 3 + 10, 0xD10D).is_err());
        assert!(read(&headers, 3 + 11, 0xD106).is_err(), "13 has no top-level transaction");
        let mut long = vec![DATA_LONG];
        long.extend(70_000_u32.to_le_bytes());
        assert_eq!(read(&long, 70_000, 0xD110), Ok((70_000, vec![])));
        assert_eq!(read(&[], 0, 0xD110), Ok((0, vec![])), "nothing but a header");
    }

    #[test]
    fn images_are_counted_as_each_version_has_them() {
        let image = |length: u16, hole_offset: u16, info: u8, hole: &[u8]| {
            let mut headers = vec![0, 0x10, 0, 0];
            headers.extend(length.to_le_bytes());
            headers.extend(hole_offset.to_le_bytes());
            headers.push(info);
            headers.extend(hole);
            headers.extend(locator(1));
            headers.extend(3_u32.to_le_bytes());
            headers
        };
        for (length, hole_offset, info, hole, magics) in [
            (8192, 0, 0x00, &[][..], &[0xD106, 0xD10D, 0xD110, 0xD118][..]),
            (8000, 40, 0x01, &[], &[0xD106, 0xD118, 0xD122]),
            (500, 40, 0x03, &[1, 2], &[0xD106, 0xD10D]),
            (500, 0, 0x02, &[], &[0xD106, 0xD10D]),
            (500, 40, 0x05, &[1, 2], &[0xD110, 0xD118, 0xD122]),
            (500, 0, 0x08, &[], &[0xD113]),
            (500, 0, 0x12, &[], &[0xD116]),
        ] {
            for magic in magics {
                let headers = image(length, hole_offset, info, hole);
                let found = read(&headers, usize::from(length), *magic);
                assert_eq!(found.expect("an image").1.len(), 1, "{length} {info:x} {magic:x}");
            }
        }
        for (length, hole_offset, info) in [(8191, 0, 0), (8192, 40, 1), (8000, 0, 1), (8192, 0, 4)] {
            assert!(read(&image(length, hole_offset, info, &[]), usize::from(length), 0xD110).is_err());
        }
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        let block = |id: u8, flags: u8, data: u16| {
            let mut headers = vec![id, flags];
            headers.extend(data.to_le_bytes());
            if flags & SAME_RELATION == 0 {
                headers.extend(locator(1));
            }
            headers.extend(1_u32.to_le_bytes());
            headers
        };
        let two = |first, second| [block(first, 0, 0), block(second, 0, 0)].concat();
        assert!(read(&two(0, 1), 0, 0xD110).is_ok());
        for (headers, rest) in [
            (two(1, 1), 0),
            (two(2, 1), 0),
            (block(0, SAME_RELATION, 0), 0),
            (block(0, HAS_DATA, 0), 0),
            (block(0, 0, 5), 5),
            (block(0, 4, 0), 0),
            (block(33, 0, 0), 0),
            (vec![251, 0], 0),
            (vec![DATA_SHORT, 3], 2),
        ] {
            assert!(read(&headers, rest, 0xD110).is_err(), "{headers:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_record_or_none(
            bytes in proptest::collection::vec(any::<u8>(), 0..200), length in 0_usize..2000,
            magic in 0..MAGICS.len(),
        ) {
            let mut blocks = Vec::new();
            if let Ok(main) = read_block_headers(&bytes, length, format(MAGICS[magic]), &mut blocks) {
                prop_assert!(main <= length);
            }
            let _ = RecordHeader::parse(&bytes);
        }
    }
}
