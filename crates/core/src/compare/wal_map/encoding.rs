//! A block map as it travels.
//!
//! Version, grain and a flag (a byte each), a byte of zero, the number of entries, the entries in ascending order, and the
//! CRC-32C of all that. An entry is tablespace, database, relation, limit and the length of its bitmap, which follows in the
//! format of the Roaring project without run containers. Numbers have four bytes, the least significant first.

use pgdata::wal::record::RelationFileLocator;
use roaring::RoaringBitmap;

use super::block_map::{BUDGET, BlockMap, Entry, GRAINS, bit};
use crate::error::{Error, Kind, Result};

const VERSION: u8 = 1;

/// Bytes before the first entry.
const HEAD: usize = 8;

/// Bytes of the CRC.
const TAIL: usize = 4;

/// Most bytes of an encoded map.
pub const MAX_ENCODED: usize = BUDGET + HEAD + TAIL;

/// A bitmap's first number if it has no run containers: a few bytes of those would stand for many blocks.
const NO_RUNS: u32 = 12_346;

impl BlockMap {
    /// The map as it travels; at most [`MAX_ENCODED`] bytes if its budget is the usual one.
    pub fn encode(&mut self) -> Vec<u8> {
        self.bound();
        let mut bytes = vec![VERSION, GRAINS[self.grain], u8::from(self.is_everything), 0];
        // the budget bounds their number
        bytes.extend(length(self.entries.len()));
        for (locator, entry) in &self.entries {
            let RelationFileLocator { tablespace, database, relation } = *locator;
            let numbers = [tablespace, database, relation, entry.limit];
            bytes.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
            let size = if entry.blocks.is_empty() { 0 } else { entry.blocks.serialized_size() };
            bytes.extend(length(size));
            if size > 0 {
                entry.blocks.serialize_into(&mut bytes).expect("memory takes what is written to it");
            }
        }
        bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
        bytes
    }

    /// Reads a map that a peer has sent.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        if bytes.len() > MAX_ENCODED {
            return Err(refused("it is too long"));
        }
        let Some((content, crc)) = bytes.split_last_chunk::<TAIL>() else {
            return Err(refused("it is cut off"));
        };
        if crc32c::crc32c(content) != u32::from_le_bytes(*crc) {
            return Err(refused("its CRC is wrong"));
        }
        let mut rest = content;
        let [version, grain, is_everything, 0] = take::<4>(&mut rest)? else {
            return Err(refused("its head is unknown"));
        };
        if version != VERSION {
            return Err(refused("its version is unknown"));
        }
        let mut map = Self::default();
        map.grain =
            GRAINS.iter().position(|known| *known == grain).ok_or_else(|| refused("its grain is unknown"))?;
        map.is_everything = is_everything != 0;
        let count = number(&mut rest)?;
        for _ in 0..count {
            let locator = RelationFileLocator {
                tablespace: number(&mut rest)?,
                database: number(&mut rest)?,
                relation: number(&mut rest)?,
            };
            if map.entries.last_key_value().is_some_and(|(last, _)| *last >= locator) {
                return Err(refused("its relations are out of order"));
            }
            let limit = number(&mut rest)?;
            let size = number(&mut rest)? as usize;
            let (bitmap, after) = rest.split_at_checked(size).ok_or_else(|| refused("it is cut off"))?;
            rest = after;
            let blocks = blocks(bitmap)?;
            if blocks.max() > Some(bit(u32::MAX, map.grain)) {
                return Err(refused("a bitmap lists blocks that no relation has"));
            }
            map.entries.insert(locator, Entry { limit, blocks });
        }
        if !rest.is_empty() || (map.is_everything && count > 0) {
            return Err(refused("it holds more than it says"));
        }
        map.bound();
        Ok(map)
    }
}

fn blocks(mut bitmap: &[u8]) -> Result<RoaringBitmap> {
    if bitmap.is_empty() {
        return Ok(RoaringBitmap::new());
    }
    if bitmap.first_chunk().map(|first| u32::from_le_bytes(*first)) != Some(NO_RUNS) {
        return Err(refused("a bitmap is of an unknown kind"));
    }
    let blocks = RoaringBitmap::deserialize_from(&mut bitmap).map_err(|_| refused("a bitmap is damaged"))?;
    if bitmap.is_empty() { Ok(blocks) } else { Err(refused("a bitmap is followed by something else")) }
}

fn length(count: usize) -> [u8; 4] {
    u32::try_from(count).expect("the budget is less than 4 GB").to_le_bytes()
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N]> {
    let (taken, after) = rest.split_first_chunk::<N>().ok_or_else(|| refused("it is cut off"))?;
    *rest = after;
    Ok(*taken)
}

fn number(rest: &mut &[u8]) -> Result<u32> {
    take(rest).map(u32::from_le_bytes)
}

fn refused(why: &str) -> Error {
    Error::new(Kind::ProtocolViolation, "invalid block map from the peer")
        .detail(format!("The map is refused because {why}."))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn map_of(adds: &[(u32, u32)], limits: &[(u32, u32)]) -> BlockMap {
        let locator = |relation| RelationFileLocator { tablespace: 1663, database: 5, relation };
        let mut map = BlockMap::default();
        adds.iter().for_each(|&(relation, block)| map.add(locator(relation), block));
        limits.iter().for_each(|&(relation, block)| map.limit(locator(relation), block));
        map
    }

    fn sealed(mut content: Vec<u8>) -> Vec<u8> {
        let crc = crc32c::crc32c(&content);
        content.extend(crc.to_le_bytes());
        content
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(
            adds in prop::collection::vec((1_u32..5, prop_oneof![0_u32..20_000, any::<u32>()]), 0..200),
            limits in prop::collection::vec((1_u32..9, any::<u32>()), 0..5),
            dense in 0_u32..10_000,
        ) {
            let mut map = map_of(&adds, &limits);
            for block in 0..dense {
                map.add(RelationFileLocator { tablespace: 1, database: 1, relation: 1 }, block);
            }
            let bytes = map.encode();
            prop_assert_eq!(BlockMap::decode(&bytes).expect("valid"), map);
        }

        #[test]
        fn any_bytes_are_a_map_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = BlockMap::decode(&bytes);
            let _ = BlockMap::decode(&sealed(bytes));
        }

        /// With a CRC that fits, so that what lies behind it is reached.
        #[test]
        fn a_changed_map_is_refused_or_another(
            adds in prop::collection::vec((1_u32..5, 0_u32..200_000), 1..60),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut content = map_of(&adds, &[(1, 3)]).encode();
            content.truncate(content.len() - TAIL);
            for (place, byte) in changes {
                let place = place.index(content.len());
                content[place] = byte;
            }
            if let Ok(mut map) = BlockMap::decode(&sealed(content.clone())) {
                let again = BlockMap::decode(&map.encode()).expect("its own encoding");
                prop_assert_eq!(again, map);
            }
            content.truncate(cut.index(content.len()));
            prop_assert!(BlockMap::decode(&content).is_err());
        }
    }

    #[test]
    fn damage_is_named() {
        let good = map_of(&[(1, 1)], &[]).encode();
        let detail = |bytes: &[u8]| BlockMap::decode(bytes).expect_err("refused").detail.unwrap_or_default();
        assert!(detail(&[]).contains("cut off"));
        let mut flipped = good.clone();
        flipped[9] ^= 1;
        assert!(detail(&flipped).contains("CRC"));
        let mut content = good[..good.len() - TAIL].to_vec();
        content[0] = 2;
        assert!(detail(&sealed(content.clone())).contains("version"));
        content[0] = VERSION;
        content[1] = 32;
        assert!(detail(&sealed(content.clone())).contains("no relation has"));
        content[1] = 0;
        content[4] = 200;
        assert!(detail(&sealed(content.clone())).contains("cut off"));
        content[4] = 0;
        assert!(detail(&sealed(content.clone())).contains("more than it says"));
        // a bitmap of runs
        let first = HEAD + 20;
        content[4] = 1;
        content[first..first + 4].copy_from_slice(&12_347_u32.to_le_bytes());
        assert!(detail(&sealed(content)).contains("unknown kind"));
        assert!(detail(&vec![0; MAX_ENCODED + 1]).contains("too long"));
    }
}
