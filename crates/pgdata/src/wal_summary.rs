//! WAL summary files (`pg_wal/summaries`, PostgreSQL 17 and later; src/common/blkreftable.c): which blocks a range of the WAL
//! changes.

use std::io::{self, Read};

use crate::bytes::u32_at;
use crate::wal::Lsn;
use crate::wal::record::{MAX_FORK, RelationFileLocator};

const MAGIC: u32 = 0x652B_137B;

/// Blocks of which one part of an entry tells.
const CHUNK_BLOCKS: u32 = 1 << 16;

/// Words of a part that is a bitmap; a part with fewer is a list.
const BITMAP_WORDS: u16 = 4096;

/// Most parts of an entry: a relation has 2^32 blocks at most.
const MAX_CHUNKS: u32 = 1 << 16;

/// What the name of a summary file says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    /// The timeline.
    pub timeline: u32,
    /// Where the range begins.
    pub start: Lsn,
    /// Where it ends.
    pub end: Lsn,
}

impl Name {
    /// Reads `TTTTTTTTSSSSSSSSSSSSSSSSEEEEEEEEEEEEEEEE.summary`; `None` if it is another file's name.
    pub fn parse(name: &str) -> Option<Self> {
        let digits = name.strip_suffix(".summary").filter(|digits| digits.len() == 40)?;
        if !digits.bytes().all(|byte| byte.is_ascii_digit() || (b'A'..=b'F').contains(&byte)) {
            return None;
        }
        let lsn = |from: usize| u64::from_str_radix(&digits[from..from + 16], 16).ok().map(Lsn);
        let timeline = u32::from_str_radix(&digits[..8], 16).ok()?;
        Some(Self { timeline, start: lsn(8)?, end: lsn(24)? })
    }
}

/// What a summary says about a fork of a relation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fork {
    /// The relation.
    pub locator: RelationFileLocator,
    /// The fork.
    pub fork: u8,
    /// Blocks from this one on were recreated, cut or removed; `None`: none was.
    pub limit: Option<u32>,
}

/// Why a summary cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Invalid {
    /// The operating system's error, or the file's early end.
    #[error("could not read the WAL summary: {0}")]
    Io(#[from] io::Error),
    /// It holds what PostgreSQL does not write.
    #[error("the WAL summary is damaged: {0}")]
    Damaged(&'static str),
}

/// Reads a summary file to its end, and tells of each fork and of each of its blocks. Nothing that was told counts if it
/// fails: the CRC is at the end.
pub fn read(
    file: impl Read,
    mut fork: impl FnMut(Fork),
    mut block: impl FnMut(&Fork, u32),
) -> Result<(), Invalid> {
    let mut file = Summed { file, crc: 0 };
    if u32_at(&file.bytes::<4>()?, 0) != Some(MAGIC) {
        return Err(Invalid::Damaged("its first bytes are not those of a summary"));
    }
    let mut words = Vec::new();
    let mut sizes = Vec::new();
    loop {
        let entry = file.bytes::<24>()?;
        if entry == [0; 24] {
            break;
        }
        let number = |offset| u32_at(&entry, offset).unwrap_or_default();
        let found = Fork {
            locator: RelationFileLocator { tablespace: number(0), database: number(4), relation: number(8) },
            fork: u8::try_from(number(12))
                .ok()
                .filter(|fork| *fork <= MAX_FORK)
                .ok_or(Invalid::Damaged("a fork is unknown"))?,
            limit: Some(number(16)).filter(|limit| *limit != u32::MAX),
        };
        let chunks = number(20);
        if chunks > MAX_CHUNKS {
            return Err(Invalid::Damaged("a relation is too long"));
        }
        fork(found);
        file.words(chunks as usize, &mut sizes)?;
        for (chunk, size) in (0_u32..).zip(&sizes) {
            let first = chunk * CHUNK_BLOCKS;
            if *size > BITMAP_WORDS {
                return Err(Invalid::Damaged("a part of an entry is too long"));
            }
            file.words(usize::from(*size), &mut words)?;
            if *size == BITMAP_WORDS {
                for (word, bits) in (0_u32..).zip(&words) {
                    let set = (0..16).filter(|bit| bits & (1 << bit) != 0);
                    set.for_each(|bit| block(&found, first + word * 16 + bit));
                }
            } else {
                words.iter().for_each(|offset| block(&found, first + u32::from(*offset)));
            }
        }
    }
    let crc = file.crc;
    if u32_at(&file.bytes::<4>()?, 0) != Some(crc) {
        return Err(Invalid::Damaged("its CRC is wrong"));
    }
    Ok(())
}

/// A file and the CRC-32C of what was read of it.
struct Summed<R> {
    file: R,
    crc: u32,
}

impl<R: Read> Summed<R> {
    fn bytes<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.file.read_exact(&mut bytes)?;
        self.crc = crc32c::crc32c_append(self.crc, &bytes);
        Ok(bytes)
    }

    fn words(&mut self, count: usize, words: &mut Vec<u16>) -> io::Result<()> {
        words.clear();
        // in parts: a damaged count must not cost memory
        let mut part = [0; 8192];
        let mut left = count * 2;
        while left > 0 {
            let part = &mut part[..left.min(8192)];
            self.file.read_exact(part)?;
            self.crc = crc32c::crc32c_append(self.crc, part);
            words.extend(part.chunks_exact(2).map(|word| u16::from_le_bytes([word[0], word[1]])));
            left -= part.len();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LOCATOR: RelationFileLocator =
        RelationFileLocator { tablespace: 1663, database: 5, relation: 16384 };

    fn entry(fork: u32, limit: u32, chunks: &[Vec<u16>]) -> Vec<u8> {
        let chunk_count = u32::try_from(chunks.len()).expect("few");
        let numbers = [1663, 5, 16384, fork, limit, chunk_count];
        let mut bytes: Vec<u8> = numbers.iter().flat_map(|number: &u32| number.to_le_bytes()).collect();
        let sizes = chunks.iter().map(|chunk| u16::try_from(chunk.len()).expect("short"));
        let words = sizes.chain(chunks.iter().flatten().copied());
        bytes.extend(words.flat_map(u16::to_le_bytes));
        bytes
    }

    fn file(entries: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = MAGIC.to_le_bytes().to_vec();
        bytes.extend(entries.iter().flatten());
        bytes.extend([0; 24]);
        let crc = crc32c::crc32c(&bytes);
        bytes.extend(crc.to_le_bytes());
        bytes
    }

    type Told = (Vec<Fork>, Vec<(u8, u32)>);

    fn told(bytes: &[u8]) -> Result<Told, Invalid> {
        let (mut forks, mut blocks) = (Vec::new(), Vec::new());
        read(bytes, |fork| forks.push(fork), |fork, block| blocks.push((fork.fork, block)))?;
        Ok((forks, blocks))
    }

    #[test]
    fn lists_bitmaps_and_limits_are_told() {
        let mut bitmap = vec![0; 4096];
        bitmap[0] = 0b101;
        bitmap[4095] = 0x8000;
        let bytes = file(&[entry(0, u32::MAX, &[vec![3, 7], vec![], bitmap]), entry(2, 0, &[])]);
        let (forks, blocks) = told(&bytes).expect("a summary");
        let fork = |fork, limit| Fork { locator: LOCATOR, fork, limit };
        assert_eq!(forks, [fork(0, None), fork(2, Some(0))]);
        assert_eq!(blocks, [(0, 3), (0, 7), (0, 131_072), (0, 131_074), (0, 196_607)]);
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let bytes = file(&[entry(0, 9, &[vec![3, 7]])]);
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(told(&damaged).is_err(), "bit {bit}");
        }
        for length in 0..bytes.len() {
            assert!(told(&bytes[..length]).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn names_tell_timeline_and_range() {
        let name = "0000000100000000010000280000000001000150.summary";
        let range = Name { timeline: 1, start: Lsn(0x100_0028), end: Lsn(0x100_0150) };
        assert_eq!(Name::parse(name), Some(range));
        for other in ["", "temp.summary", "000000010000000001000028000000000100015g.summary", &name[..40]] {
            assert_eq!(Name::parse(other), None, "{other}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_summary_or_none(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut with_magic = MAGIC.to_le_bytes().to_vec();
            with_magic.extend(&bytes);
            let _ = told(&with_magic);
            let _ = told(&bytes);
        }
    }
}
