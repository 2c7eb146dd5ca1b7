//! A few of the blocks that are left out, to be looked at all the same.

use super::block_map::BlockMap;
use super::source::WalMap;
use crate::compare::digest::PAGE;
use crate::compare::source::{ChangeSource, Proof, Stretch, Treatment};
use crate::manifest::list::FileList;

/// Every so many pages of what another source leaves out, from a place on that is another one in each file; and, if asked for,
/// some pages that a wrong proof is more likely to show on. Those beside pages that WAL names are compared in any case.
#[derive(Debug)]
pub struct Sample<'a> {
    map: &'a WalMap,
    every: u64,
    /// Another one in each run.
    seed: u64,
    marks: Option<Marks<'a>>,
}

/// Pages that say more than others: those that were changed last before the range, which are the first to be wrong if the
/// common history ends earlier or the target has lost writes, and the last page of each file.
#[derive(Debug)]
struct Marks<'a> {
    /// The plan's files.
    files: &'a FileList,
    /// What WAL names just before the range.
    last_changed: &'a BlockMap,
    /// One of so many of these, and one of so many last pages.
    every: (u64, u64),
    /// Which of them: each of `every` rounds has others.
    round: u64,
}

const PAGE_BYTES: u64 = PAGE as u64;

/// Most pages that were changed last, and most last pages of files, that are looked at in all rounds together.
const MOST_MARKS: (u64, u64) = (2000, 1000);

impl<'a> Sample<'a> {
    /// One page of `every` (1: all of them).
    pub fn new(map: &'a WalMap, every: u64, seed: u64) -> Self {
        Self { map, every: every.max(1), seed, marks: None }
    }

    /// The same, and in one of `rounds` rounds the pages that WAL named last before the range, and the last pages of files.
    #[must_use]
    pub fn with_marks(
        self,
        files: &'a FileList,
        last_changed: &'a BlockMap,
        round: u64,
        rounds: u64,
    ) -> Self {
        let share = |count: u64, most: u64| count.div_ceil(most).max(1) * rounds.max(1);
        let every = (share(last_changed.count(), MOST_MARKS.0), share(self.map.files(), MOST_MARKS.1));
        Self { marks: Some(Marks { files, last_changed, every, round }), ..self }
    }

    /// The first sampled page of a file at `page` or later.
    fn next(&self, number: u32, size: u64, page: u64) -> u64 {
        let phase = mixed(number, self.seed) % self.every;
        let next = page + (phase + self.every - page % self.every) % self.every;
        let mark = self.marks.as_ref().and_then(|marks| self.next_mark(marks, number, size, page, next));
        mark.unwrap_or(next)
    }

    /// The first marked page of a file at `page` or later, and before `end`.
    fn next_mark(&self, marks: &Marks<'_>, number: u32, size: u64, page: u64, end: u64) -> Option<u64> {
        let is_of_round = |key: u64, every: u64| mixed(number, key) % every == marks.round % every;
        let path = marks.files.path(number as usize);
        let changed = self.map.listed_by(marks.last_changed, number, path.as_str(), page);
        let changed = changed.take_while(|page| *page < end).find(|page| is_of_round(*page, marks.every.0));
        let last = size.div_ceil(PAGE_BYTES).saturating_sub(1);
        let is_marked = (page..end).contains(&last) && is_of_round(u64::MAX, marks.every.1);
        changed.into_iter().chain(is_marked.then_some(last)).min()
    }
}

/// A multiplicative hash (Knuth, TAOCP 6.4), which spreads the files' phases.
fn mixed(number: u32, key: u64) -> u64 {
    (u64::from(number) ^ key.rotate_left(32)).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32
}

impl ChangeSource for Sample<'_> {
    fn stretch(&self, number: u32, size: u64, offset: u64) -> Stretch {
        let known = self.map.stretch(number, size, offset);
        let skip = |end| Stretch { end, treatment: Treatment::Skip(Proof::WalMap) };
        if known.treatment == Treatment::Compare {
            return skip(known.end);
        }
        let page = offset / PAGE_BYTES;
        let next = self.next(number, size, page);
        if next == page {
            return Stretch { end: offset + PAGE_BYTES, treatment: Treatment::Compare };
        }
        skip(known.end.min(next * PAGE_BYTES))
    }
}

#[cfg(test)]
mod tests {
    use pgdata::wal::record::RelationFileLocator;
    use proptest::prelude::*;

    use super::super::block_map::BlockMap;
    use super::super::source::{Found, Layout};
    use super::*;
    use crate::compare::work::Work;
    use crate::manifest::path::RelPath;
    use crate::manifest::plan::File;

    fn locator(file: u32) -> RelationFileLocator {
        RelationFileLocator { tablespace: 1663, database: 5, relation: 16_384 + file }
    }

    #[test]
    fn marks_are_few_and_each_round_has_others() {
        const ROUNDS: u64 = 8;
        let files: FileList = (0..5000_u32)
            .map(|number| {
                let path = RelPath::parse(&format!("base/5/{}", 16_384 + number)).expect("valid");
                File { path, size: 40 * PAGE_BYTES, mode: 0o600 }
            })
            .collect();
        let found = vec![Found::Bytes(40 * PAGE_BYTES); files.len()];
        let layout = Layout { segment_blocks: 131_072, first_blocks: false };
        let map = WalMap::new(BlockMap::default(), &files, found, layout);
        let mut last_changed = BlockMap::default();
        (0..5000).for_each(|file| last_changed.add(locator(file), 7));
        let mut seen = std::collections::BTreeSet::new();
        for round in 0..ROUNDS {
            let sample = Sample::new(&map, 1 << 40, 1).with_marks(&files, &last_changed, round, ROUNDS);
            let mut work = Work::new(&files, &sample, 1, false);
            let mut batch = Vec::new();
            while work.next(0, &mut batch, |_, _| ()).is_some() {
                for range in &batch {
                    assert!(seen.insert((range.file, range.offset / PAGE_BYTES)), "in two rounds");
                }
            }
        }
        let count = |page| seen.iter().filter(|(_, of)| *of == page).count();
        let (changed, last) = (count(7), count(39));
        // one of three, one of five
        assert!((1500..1900).contains(&changed) && (850..1150).contains(&last), "{changed} and {last}");
        assert!(seen.len() - changed - last <= ROUNDS as usize, "{} pages", seen.len());
    }

    proptest! {
        #[test]
        fn only_unlisted_pages_are_sampled_and_of_those_the_share_that_was_asked_for(
            sizes in prop::collection::vec(0_u64..3000, 1..6),
            listed in prop::collection::vec((0_u32..6, 0_u32..3000), 0..20),
            changed in prop::collection::vec((0_u32..6, 0_u32..3000), 0..20),
            every in 1_u64..50,
            seed: u64,
        ) {
            let files: FileList = (16384_u64..).zip(&sizes).map(|(number, pages)| File {
                path: RelPath::parse(&format!("base/5/{number}")).expect("valid"),
                size: pages * PAGE_BYTES,
                mode: 0o600,
            }).collect();
            let found: Vec<Found> = files.iter().map(|file| Found::Bytes(file.size)).collect();
            let mut map = BlockMap::default();
            listed.into_iter().for_each(|(file, block)| map.add(locator(file), block));
            let layout = Layout { segment_blocks: 131_072, first_blocks: false };
            let map = WalMap::new(map, &files, found, layout);
            let mut last_changed = BlockMap::default();
            changed.iter().for_each(|(file, block)| last_changed.add(locator(*file), *block));
            let sample = Sample::new(&map, every, seed).with_marks(&files, &last_changed, 0, 1);
            let mut seen = std::collections::BTreeSet::new();
            let mut work = Work::new(&files, &sample, 1, false);
            let (mut batch, mut sampled) = (Vec::new(), 0);
            while work.next(0, &mut batch, |_, _| ()).is_some() {
                for range in &batch {
                    for page in 0..u64::from(range.length) / PAGE_BYTES {
                        let page = u32::try_from(range.offset / PAGE_BYTES + page).expect("small");
                        prop_assert!(!map.may_differ(range.file, page));
                        prop_assert!(seen.insert((range.file, page)), "dealt twice");
                        sampled += 1;
                    }
                }
            }
            // as a stream goes through them: a page in a short gap is compared with those around it
            let mut left_out = std::collections::BTreeSet::new();
            for (file, number) in files.iter().zip(0..) {
                let mut offset = 0;
                while offset < file.size {
                    let stretch = map.stretch(number, file.size, offset);
                    let end = stretch.end.min(file.size);
                    if stretch.treatment != Treatment::Compare {
                        left_out.extend((offset / PAGE_BYTES..end / PAGE_BYTES).map(|page| (number, page)));
                    }
                    offset = end;
                }
            }
            let last_pages = (0..).zip(&sizes).filter(|(_, pages)| **pages > 0).map(|(number, pages)| (number, pages - 1));
            let in_plan = changed.iter().filter(|(file, _)| (*file as usize) < files.len());
            let marked = in_plan.map(|(file, block)| (*file, u64::from(*block))).chain(last_pages);
            for (number, page) in marked.filter(|marked| left_out.contains(marked)) {
                let page = u32::try_from(page).expect("small");
                prop_assert!(seen.contains(&(number, page)), "page {} of file {}", page, number);
            }
            let known = map.breakdown().known / PAGE_BYTES;
            prop_assert!(sampled <= known);
            if every == 1 {
                prop_assert_eq!(sampled, left_out.len() as u64);
            }
        }
    }
}
