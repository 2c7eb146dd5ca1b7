//! The write-ahead log: its files, pages and records.
//!
//! | module | what | PostgreSQL's source |
//! |---|---|---|
//! | [`segment_file`] | names in `pg_wal` | `access/xlog_internal.h` |
//! | [`page`] | page headers; which server wrote them | `access/xlog_internal.h` |
//! | [`record`] | record headers and the blocks that a record changes | `access/xlogrecord.h`, `access/transam/xlogreader.c` |
//! | [`special`] | records that change files without naming blocks | `access/xact.h`, `catalog/storage_xlog.h`, ... |
//! | [`reader`] | records one after another | `access/transam/xlogreader.c` |
//! | [`directory`] | pages in the files of `pg_wal`, along timelines | `access/transam/xlogrecovery.c` |
//!
//! Reading is bounded: whatever the files hold, memory is, and nothing panics.

use std::fmt;

pub mod directory;
pub mod page;
pub mod reader;
pub mod record;
#[cfg(any(test, feature = "samples"))]
pub mod sample;
pub mod segment_file;
pub mod special;

pub use segment_file::{
    is_history, parse_segment_name, segment_end, segment_name, segment_start, segment_timeline,
};

/// A position in the WAL (XLogRecPtr): bytes since its beginning.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, serde::Serialize, serde::Deserialize,
)]
pub struct Lsn(pub u64);

impl fmt::Display for Lsn {
    /// As PostgreSQL writes it, `16/B374D848`; from 19 on it fills the second part up with zeros.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl std::str::FromStr for Lsn {
    type Err = InvalidLsn;

    fn from_str(text: &str) -> Result<Self, InvalidLsn> {
        let half = |digits: &str| {
            let is_hexadecimal = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
            let half = (is_hexadecimal && digits.len() <= 8).then(|| u32::from_str_radix(digits, 16).ok());
            half.flatten().map(u64::from)
        };
        let (high, low) = text.split_once('/').ok_or(InvalidLsn)?;
        Ok(Self((half(high).ok_or(InvalidLsn)? << 32) | half(low).ok_or(InvalidLsn)?))
    }
}

/// A text that is no LSN.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is not an LSN, two hexadecimal numbers of at most eight digits with a slash between them")]
pub struct InvalidLsn;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_written_as_postgresql_writes_them() {
        for (text, position) in [("0/0", 0), ("16/B374D848", 0x16_B374_D848), ("FFFFFFFF/FFFFFFFF", u64::MAX)]
        {
            assert_eq!(text.parse(), Ok(Lsn(position)));
            assert_eq!(Lsn(position).to_string(), text);
        }
        assert_eq!("0/04000060".parse(), Ok(Lsn(0x400_0060)), "of PostgreSQL 19");
        for other in ["", "0", "/", "0/", "g/0", "0/+1", "100000000/0", "0/0/0"] {
            assert_eq!(other.parse::<Lsn>(), Err(InvalidLsn), "{other}");
        }
    }
}
