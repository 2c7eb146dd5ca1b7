//! Digests of the records of some WAL, for two sides to find out how far they have the same.
//!
//! Page headers do not count: a segment that is copied at a timeline switch has others. A record counts with the place where
//! it begins and with its bytes; of a record of more than half a megabyte with its headers, its CRC, and its data if it
//! ends a transaction.

use pgdata::wal::Lsn;
use pgdata::wal::page::PAGE_SIZE;
use pgdata::wal::reader::Record;
use pgdata::wal::special::Effect;

use crate::compare::digest::{ContentHash, DIGEST};
use crate::error::{Error, Kind, Result};

/// Most groups that one side tells: half a terabyte of WAL. What lies behind them counts as different.
pub const MAX_GROUPS: usize = 1 << 15;

/// Bytes of a group on the wire: where its records begin and end, where the last one that carries a time begins, or zero,
/// and their digest.
pub const GROUP: usize = 8 + 8 + 8 + DIGEST;

/// Which records are digested together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Grouping {
    /// Those that begin in the same 16 MiB of WAL.
    Windows,
    /// Those that begin on the same page.
    Pages,
    /// Each by itself.
    Records,
}

impl Grouping {
    fn key(self, start: Lsn) -> u64 {
        match self {
            Self::Windows => start.0 / (16 << 20),
            Self::Pages => start.0 / PAGE_SIZE as u64,
            Self::Records => start.0,
        }
    }

    /// The next finer one.
    pub(super) const fn finer(self) -> Option<Self> {
        match self {
            Self::Windows => Some(Self::Pages),
            Self::Pages => Some(Self::Records),
            Self::Records => None,
        }
    }
}

/// Some records, digested together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Where the first one begins.
    pub begin: Lsn,
    /// Where the last one ends.
    pub end: Lsn,
    /// Where the last one begins that carries a time in microseconds: no two servers write two of the same.
    pub stamped: Option<Lsn>,
    /// The digest of all.
    pub digest: [u8; DIGEST],
}

impl Group {
    /// The groups as they travel.
    pub fn encode_all(groups: &[Self]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(groups.len() * GROUP);
        for group in groups {
            let numbers = [group.begin, group.end, group.stamped.unwrap_or_default()];
            bytes.extend(numbers.iter().flat_map(|number| number.0.to_le_bytes()));
            bytes.extend(group.digest);
        }
        bytes
    }

    /// Reads the groups that a peer has sent.
    pub fn decode_all(bytes: &[u8]) -> Result<Vec<Self>> {
        let refused = |why: &str| {
            Error::new(Kind::ProtocolViolation, "invalid digests of WAL from the peer")
                .detail(format!("They are refused because {why}."))
        };
        let (chunks, rest) = bytes.as_chunks::<GROUP>();
        if !rest.is_empty() || chunks.len() > MAX_GROUPS {
            return Err(refused("their length is wrong"));
        }
        let mut groups: Vec<Self> = Vec::with_capacity(chunks.len());
        for chunk in chunks {
            let numbers = chunk.as_chunks::<8>().0;
            let number = |index: usize| Lsn(u64::from_le_bytes(numbers[index]));
            let (begin, end) = (number(0), number(1));
            if end <= begin || groups.last().is_some_and(|last| last.end > begin) {
                return Err(refused("they are out of order"));
            }
            let mut digest = [0; DIGEST];
            digest.copy_from_slice(&chunk[GROUP - DIGEST..]);
            groups.push(Self {
                begin,
                end,
                stamped: Some(number(2)).filter(|stamped| stamped.0 > 0),
                digest,
            });
        }
        Ok(groups)
    }
}

/// Adds a record, with the place where it begins.
pub(super) fn hash_record(hash: &mut ContentHash, record: &Record<'_>) {
    hash.update(&record.start.0.to_le_bytes());
    hash.update(record.bytes);
    if record.bytes.len() < record.header.length as usize {
        hash.update(record.data);
    }
}

/// Digests records as they are read.
#[derive(Debug)]
pub(super) struct Digester {
    grouping: Grouping,
    groups: Vec<Group>,
    key: Option<u64>,
    hash: ContentHash,
}

impl Digester {
    /// Makes groups of this kind.
    pub(super) fn new(grouping: Grouping) -> Self {
        Self { grouping, groups: Vec::new(), key: None, hash: ContentHash::default() }
    }

    /// Adds the next record.
    pub(super) fn add(&mut self, record: &Record<'_>) {
        let key = self.grouping.key(record.start);
        if self.key != Some(key) {
            self.close();
            if self.groups.len() == MAX_GROUPS {
                return;
            }
            self.key = Some(key);
            self.groups.push(Group {
                begin: record.start,
                end: record.end,
                stamped: None,
                digest: [0; DIGEST],
            });
        }
        let Some(group) = self.groups.last_mut() else { return };
        group.end = record.end;
        if matches!(record.effect, Effect::TransactionEnd { .. } | Effect::Promotion { .. }) {
            group.stamped = Some(record.start);
        }
        hash_record(&mut self.hash, record);
    }

    /// The groups of all records.
    pub(super) fn finish(mut self) -> Vec<Group> {
        self.close();
        self.groups
    }

    fn close(&mut self) {
        if self.key.take().is_some()
            && let Some(group) = self.groups.last_mut()
        {
            group.digest = self.hash.finish();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn groups_travel(steps in prop::collection::vec((0_u64..100, 1_u64..100, any::<u64>(), any::<[u8; 16]>()), 0..20)) {
            let mut at = 0;
            let groups: Vec<Group> = steps
                .into_iter()
                .map(|(gap, length, stamped, digest)| {
                    let begin = at + gap;
                    at = begin + length;
                    let stamped = Some(Lsn(stamped)).filter(|stamped| stamped.0 > 0);
                    Group { begin: Lsn(begin), end: Lsn(at), stamped, digest }
                })
                .collect();
            prop_assert_eq!(Group::decode_all(&Group::encode_all(&groups)).expect("valid"), groups);
        }

        #[test]
        fn any_bytes_are_groups_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Group::decode_all(&bytes);
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let group =
            |begin, end| Group { begin: Lsn(begin), end: Lsn(end), stamped: None, digest: [0; DIGEST] };
        for bad in [&[group(5, 5)][..], &[group(1, 9), group(8, 10)]] {
            assert!(Group::decode_all(&Group::encode_all(bad)).is_err());
        }
        assert!(Group::decode_all(&vec![0; GROUP * (MAX_GROUPS + 1)]).is_err());
        assert!(Group::decode_all(&[0; GROUP - 1]).is_err());
    }
}
