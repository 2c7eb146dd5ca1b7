//! Pages of the WAL (XLogPageHeaderData, XLogLongPageHeaderData in src/include/access/xlog_internal.h).

use super::Lsn;
use crate::bytes::{u16_at, u32_at, u64_at};

/// Bytes in a page (XLOG_BLCKSZ): 8192 in every distribution; a server that was built with another size is refused.
pub const PAGE_SIZE: usize = 8192;

/// Length of the header of most pages (SizeOfXLogShortPHD).
pub const SHORT_HEADER: usize = 24;

/// Length of the header of a segment's first page (SizeOfXLogLongPHD).
pub const LONG_HEADER: usize = 40;

const FIRST_IS_CONTINUATION: u16 = 0x0001;
const HAS_LONG_HEADER: u16 = 0x0002;

/// What differs between the servers that this crate can read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Format {
    /// The major version.
    pub major: u32,
    /// XLP_FIRST_IS_OVERWRITE_CONTRECORD
    overwrite: u16,
    /// XLP_ALL_FLAGS
    flags: u16,
}

impl Format {
    /// The format of pages with this number (XLOG_PAGE_MAGIC); `None`: a version that this crate does not know wrote
    /// them. Flags have changed with PostgreSQL 19, so an unknown number must not be taken for the last known one.
    pub const fn of(magic: u16) -> Option<Self> {
        let major = match magic {
            0xD106 => 13,
            0xD10D => 14,
            0xD110 => 15,
            0xD113 => 16,
            0xD116 => 17,
            0xD118 => 18,
            // without XLP_BKP_REMOVABLE, whose bit the other flag has got
            0xD122 => return Some(Self { major: 19, overwrite: 0x0004, flags: 0x0007 }),
            _ => return None,
        };
        Some(Self { major, overwrite: 0x0008, flags: 0x000F })
    }
}

/// The numbers of all formats that are known.
pub const MAGICS: [u16; 7] = [0xD106, 0xD10D, 0xD110, 0xD113, 0xD116, 0xD118, 0xD122];

/// The header of a page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageHeader {
    /// What wrote it.
    pub format: Format,
    /// The timeline on which the page was written. In a segment that was copied at a timeline switch it is the old one.
    pub timeline: u32,
    /// The position of the page's first byte.
    pub address: Lsn,
    /// Of a record that began on an earlier page: how many bytes are left, from this page on.
    pub remaining: u32,
    /// On the first page of a segment.
    pub segment: Option<SegmentHeader>,
    info: u16,
}

/// What the first page of a segment says besides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Whose WAL it is.
    pub system_identifier: u64,
    /// Bytes in a segment.
    pub segment_size: u32,
}

/// Why a page is none that can be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadPage {
    /// Not PostgreSQL's, or a version's that this crate does not know.
    #[error("page magic {0:04X} is unknown")]
    Magic(u16),
    /// Flags that the version does not have.
    #[error("page flags {0:04X} are unknown")]
    Flags(u16),
    /// The server has pages of another size.
    #[error("the server has WAL pages of {0} bytes")]
    PageSize(u32),
    /// It is too short for a page.
    #[error("the page is cut off")]
    Short,
}

impl PageHeader {
    /// Reads the header of a page.
    pub fn parse(page: &[u8]) -> Result<Self, BadPage> {
        let short = || BadPage::Short;
        let magic = u16_at(page, 0).ok_or_else(short)?;
        let format = Format::of(magic).ok_or(BadPage::Magic(magic))?;
        let info = u16_at(page, 2).ok_or_else(short)?;
        if info & !format.flags != 0 {
            return Err(BadPage::Flags(info));
        }
        let segment = if info & HAS_LONG_HEADER != 0 {
            let page_size = u32_at(page, 36).ok_or_else(short)?;
            if page_size as usize != PAGE_SIZE {
                return Err(BadPage::PageSize(page_size));
            }
            let system_identifier = u64_at(page, 24).ok_or_else(short)?;
            Some(SegmentHeader { system_identifier, segment_size: u32_at(page, 32).ok_or_else(short)? })
        } else {
            None
        };
        Ok(Self {
            format,
            timeline: u32_at(page, 4).ok_or_else(short)?,
            address: Lsn(u64_at(page, 8).ok_or_else(short)?),
            remaining: u32_at(page, 16).ok_or_else(short)?,
            segment,
            info,
        })
    }

    /// Where the page's content begins.
    pub const fn length(&self) -> usize {
        if self.segment.is_some() { LONG_HEADER } else { SHORT_HEADER }
    }

    /// Whether the content begins with the rest of a record from an earlier page.
    pub const fn is_continuation(&self) -> bool {
        self.info & FIRST_IS_CONTINUATION != 0
    }

    /// Whether the record that should go on here was given up after a crash, and another one begins.
    pub const fn is_overwrite(&self) -> bool {
        self.info & self.format.overwrite != 0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(magic: u16, info: u16) -> Vec<u8> {
        let mut page = vec![0; PAGE_SIZE];
        page[..2].copy_from_slice(&magic.to_le_bytes());
        page[2..4].copy_from_slice(&info.to_le_bytes());
        page[4..8].copy_from_slice(&3_u32.to_le_bytes());
        page[8..16].copy_from_slice(&0x1_0200_0000_u64.to_le_bytes());
        page[16..20].copy_from_slice(&77_u32.to_le_bytes());
        page[24..32].copy_from_slice(&42_u64.to_le_bytes());
        page[32..36].copy_from_slice(&(16_u32 << 20).to_le_bytes());
        page[36..40].copy_from_slice(&8192_u32.to_le_bytes());
        page
    }

    #[test]
    fn both_kinds_of_headers_are_read() {
        let short = PageHeader::parse(&header(0xD110, 0x0001)).expect("short");
        assert_eq!((short.format.major, short.timeline, short.remaining), (15, 3, 77));
        assert_eq!(short.address, Lsn(0x1_0200_0000));
        assert!(short.is_continuation() && !short.is_overwrite());
        assert_eq!((short.length(), short.segment), (24, None));
        let long = PageHeader::parse(&header(0xD118, 0x000A)).expect("long");
        assert_eq!(long.segment, Some(SegmentHeader { system_identifier: 42, segment_size: 16 << 20 }));
        assert!(long.is_overwrite() && !long.is_continuation());
        assert_eq!(long.length(), 40);
    }

    #[test]
    fn what_a_flag_means_depends_on_the_version() {
        let overwrites =
            |magic, info| PageHeader::parse(&header(magic, info)).map(|page| page.is_overwrite());
        assert_eq!((overwrites(0xD118, 0x0004), overwrites(0xD118, 0x0008)), (Ok(false), Ok(true)));
        assert_eq!((overwrites(0xD122, 0x0004), overwrites(0xD122, 0x0001)), (Ok(true), Ok(false)));
        assert_eq!(overwrites(0xD122, 0x0008), Err(BadPage::Flags(0x08)));
    }

    #[test]
    fn what_is_not_known_is_refused() {
        // D121 is that of the betas of PostgreSQL 19
        for magic in [0, 0xD105, 0xD119, 0xD121, 0xD123, 0xFFFF] {
            assert_eq!(PageHeader::parse(&header(magic, 0)), Err(BadPage::Magic(magic)));
        }
        assert_eq!(PageHeader::parse(&header(0xD110, 0x0010)), Err(BadPage::Flags(0x10)));
        let mut page = header(0xD110, 0x0002);
        page[37] = 0x40;
        assert_eq!(PageHeader::parse(&page), Err(BadPage::PageSize(0x4000)));
        assert_eq!(PageHeader::parse(&page[..10]), Err(BadPage::Short));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_page_or_none(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = PageHeader::parse(&bytes);
        }
    }
}
