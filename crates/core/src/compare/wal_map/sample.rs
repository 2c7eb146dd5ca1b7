//! A few of the blocks that are left out, to be looked at all the same.

use super::source::WalMap;
use crate::compare::digest::PAGE;
use crate::compare::source::{ChangeSource, Proof, Stretch, Treatment};
use crate::manifest::plan::File;

/// Every so many pages of what another source leaves out, from a place on that is another one in each file, and the pages
/// beside those that WAL names.
#[derive(Debug)]
pub struct Sample<'a> {
    map: &'a WalMap,
    every: u64,
    /// Another one in each run.
    seed: u64,
}

const PAGE_BYTES: u64 = PAGE as u64;

impl<'a> Sample<'a> {
    /// One page of `every` (1: all of them).
    pub fn new(map: &'a WalMap, every: u64, seed: u64) -> Self {
        Self { map, every: every.max(1), seed }
    }

    /// The first sampled page of a file at `page` or later.
    fn next(&self, number: u32, page: u64) -> u64 {
        // a multiplicative hash (Knuth, TAOCP 6.4) spreads the files' phases
        let mixed = (u64::from(number) ^ self.seed.rotate_left(32)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let phase = (mixed >> 32) % self.every;
        page + (phase + self.every - page % self.every) % self.every
    }
}

impl ChangeSource for Sample<'_> {
    fn stretch(&self, number: u32, file: &File, offset: u64) -> Stretch {
        let known = self.map.stretch(number, file, offset);
        let skip = |end| Stretch { end, treatment: Treatment::Skip(Proof::WalMap) };
        if known.treatment == Treatment::Compare {
            return skip(known.end);
        }
        let page = offset / PAGE_BYTES;
        let next = self.next(number, page);
        if next == page {
            return Stretch { end: offset + PAGE_BYTES, treatment: Treatment::Compare };
        }
        skip(known.end.min(next * PAGE_BYTES))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::block_map::BlockMap;
    use super::super::source::{Found, Layout};
    use super::*;
    use crate::compare::work::Work;
    use crate::manifest::path::RelPath;

    proptest! {
        #[test]
        fn only_unlisted_pages_are_sampled_and_of_those_the_share_that_was_asked_for(
            sizes in prop::collection::vec(0_u64..3000, 1..6),
            listed in prop::collection::vec((0_u32..6, 0_u32..3000), 0..20),
            every in 1_u64..50,
            seed: u64,
        ) {
            let files: Vec<File> = (16384_u64..).zip(&sizes).map(|(number, pages)| File {
                path: RelPath::parse(&format!("base/5/{number}")).expect("valid"),
                size: pages * PAGE_BYTES,
                mode: 0o600,
            }).collect();
            let found: Vec<Found> = files.iter().map(|file| Found::Bytes(file.size)).collect();
            let mut map = BlockMap::default();
            for (file, block) in listed {
                let relation = 16384 + file;
                map.add(pgdata::wal::record::RelationFileLocator { tablespace: 1663, database: 5, relation }, block);
            }
            let layout = Layout { segment_blocks: 131_072, first_blocks: false };
            let map = WalMap::new(map, &files, &found, layout);
            let sample = Sample::new(&map, every, seed);
            let mut work = Work::new(&files, &sample, 1, false);
            let (mut batch, mut sampled) = (Vec::new(), 0);
            while work.next(0, &mut batch, |_, _| ()).is_some() {
                for range in &batch {
                    for page in 0..u64::from(range.length) / PAGE_BYTES {
                        let page = u32::try_from(range.offset / PAGE_BYTES + page).expect("small");
                        prop_assert!(!map.may_differ(range.file, page));
                        sampled += 1;
                    }
                }
            }
            let known = map.breakdown().known / PAGE_BYTES;
            prop_assert!(sampled <= known);
            if every == 1 {
                // what lies in a gap between two listed pages is compared in any case
                let read: u64 = files.iter().zip(0..).map(|(file, number)| {
                    (0..file.size / PAGE_BYTES).filter(|page| {
                        map.stretch(number, file, page * PAGE_BYTES).treatment == Treatment::Compare
                    }).count() as u64
                }).sum();
                prop_assert_eq!(sampled + read, files.iter().map(|file| file.size / PAGE_BYTES).sum::<u64>());
            }
        }
    }
}
