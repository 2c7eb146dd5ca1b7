//! Which blocks of which relations some WAL changes.
//!
//! Only main forks are listed: other forks are always compared. A map may list more than was changed, never less: when it
//! grows beyond its budget, one bit stands for 16 blocks, then for a segment file, then for a relation, and at last the map
//! says that everything changed.

use std::collections::BTreeMap;

use pgdata::wal::record::RelationFileLocator;
use roaring::RoaringBitmap;

/// Bytes that a map may take.
pub const BUDGET: usize = 24 << 20;

/// Base-2 logarithms of the blocks that one bit stands for, in the order in which they are resorted to.
pub(super) const GRAINS: [u8; 4] = [0, 4, 17, 32];

/// No block was cut, made or removed.
pub(super) const NO_LIMIT: u32 = u32::MAX;

/// What an entry takes besides its bitmap, bytes.
const ENTRY: usize = 96;

/// What a container of a bitmap takes besides its values, bytes.
const CONTAINER: usize = 48;

/// Additions after which the size is measured again.
const UNMEASURED: usize = 1 << 16;

/// What is known of the main fork of a relation.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Entry {
    /// Blocks from this one on were truncated, created again or removed: the least of all limits.
    pub(super) limit: u32,
    /// The listed blocks, in units of the map's grain.
    pub(super) blocks: RoaringBitmap,
}

impl Default for Entry {
    fn default() -> Self {
        Self { limit: NO_LIMIT, blocks: RoaringBitmap::new() }
    }
}

/// The changed blocks.
#[derive(Debug, Clone)]
pub struct BlockMap {
    pub(super) entries: BTreeMap<RelationFileLocator, Entry>,
    /// An index into [`GRAINS`].
    pub(super) grain: usize,
    /// Everything changed; the entries are empty.
    pub(super) is_everything: bool,
    budget: usize,
    unmeasured: usize,
}

impl Default for BlockMap {
    fn default() -> Self {
        Self::with_budget(BUDGET)
    }
}

impl PartialEq for BlockMap {
    fn eq(&self, other: &Self) -> bool {
        (&self.entries, self.grain, self.is_everything) == (&other.entries, other.grain, other.is_everything)
    }
}

impl BlockMap {
    /// An empty map that takes so many bytes at most, and what 65,536 additions take.
    pub const fn with_budget(budget: usize) -> Self {
        Self { entries: BTreeMap::new(), grain: 0, is_everything: false, budget, unmeasured: 0 }
    }

    /// A block changed.
    pub fn add(&mut self, locator: RelationFileLocator, block: u32) {
        let bit = bit(block, self.grain);
        self.change(locator, |entry| {
            entry.blocks.insert(bit);
        });
    }

    /// Blocks from `block` on were cut, made or removed: those that are there now are others, whatever was listed before.
    pub fn limit(&mut self, locator: RelationFileLocator, block: u32) {
        self.change(locator, |entry| entry.limit = entry.limit.min(block));
    }

    /// All relations of a database in a tablespace, or in every one that it uses, were made or removed.
    pub fn database(&mut self, tablespace: Option<u32>, database: u32) {
        self.limit(of_database(tablespace.unwrap_or(0), database), 0);
    }

    /// Adds what another map lists.
    pub fn merge(&mut self, other: &Self) {
        if other.is_everything {
            self.give_up();
        }
        while self.grain < other.grain {
            self.coarsen();
        }
        for (locator, added) in &other.entries {
            let (from, to) = (other.grain, self.grain);
            self.change(*locator, |entry| {
                entry.limit = entry.limit.min(added.limit);
                if from == to {
                    entry.blocks |= &added.blocks;
                } else {
                    entry.blocks |= regrained(&added.blocks, from, to);
                }
            });
            // `change` may have coarsened this map, and the next entry is regrained to that
        }
        self.bound();
    }

    /// Whether a block of a relation's main fork may have changed.
    pub fn lists(&self, locator: RelationFileLocator, block: u32) -> bool {
        self.is_everything
            || self.lists_database(locator.tablespace, locator.database)
            || self
                .entries
                .get(&locator)
                .is_some_and(|entry| block >= entry.limit || entry.blocks.contains(bit(block, self.grain)))
    }

    /// Whether all relations of a database in a tablespace may have changed.
    pub fn lists_database(&self, tablespace: u32, database: u32) -> bool {
        self.is_everything
            || [tablespace, 0]
                .iter()
                .any(|tablespace| self.entries.contains_key(&of_database(*tablespace, database)))
    }

    /// How many blocks are listed, at least; those behind a limit are not counted.
    pub fn count(&self) -> u64 {
        self.entries.values().map(|entry| entry.blocks.len()).sum()
    }

    /// Brings the map below its budget.
    pub(super) fn bound(&mut self) {
        self.unmeasured = 0;
        while self.bytes() > self.budget {
            self.coarsen();
        }
    }

    fn change(&mut self, locator: RelationFileLocator, how: impl FnOnce(&mut Entry)) {
        if self.is_everything {
            return;
        }
        how(self.entries.entry(locator).or_default());
        self.unmeasured += 1;
        if self.unmeasured >= UNMEASURED {
            self.bound();
        }
    }

    fn bytes(&self) -> usize {
        self.entries.values().map(|entry| ENTRY + bitmap_bytes(&entry.blocks)).sum()
    }

    /// Turns to the next grain.
    pub(super) fn coarsen(&mut self) {
        if self.grain + 1 == GRAINS.len() {
            return self.give_up();
        }
        let (from, to) = (self.grain, self.grain + 1);
        for entry in self.entries.values_mut() {
            entry.blocks = regrained(&entry.blocks, from, to);
        }
        self.grain = to;
    }

    fn give_up(&mut self) {
        self.is_everything = true;
        self.entries.clear();
    }
}

/// The entry that stands for a database.
const fn of_database(tablespace: u32, database: u32) -> RelationFileLocator {
    RelationFileLocator { tablespace, database, relation: 0 }
}

/// The bit that stands for a block.
pub(super) fn bit(block: u32, grain: usize) -> u32 {
    block.checked_shr(GRAINS[grain].into()).unwrap_or(0)
}

/// The first block for which a bit stands.
pub(super) fn first_block(bit: u32, grain: usize) -> u64 {
    u64::from(bit) << GRAINS[grain]
}

fn regrained(blocks: &RoaringBitmap, from: usize, to: usize) -> RoaringBitmap {
    let by = u32::from(GRAINS[to] - GRAINS[from]);
    let mut coarse = RoaringBitmap::new();
    for bit in blocks {
        coarse.insert(bit.checked_shr(by).unwrap_or(0));
    }
    coarse
}

fn bitmap_bytes(blocks: &RoaringBitmap) -> usize {
    let found = blocks.statistics();
    let values = found.n_bytes_array_containers + found.n_bytes_bitset_containers;
    CONTAINER * found.n_containers as usize + usize::try_from(values).unwrap_or(usize::MAX / 2)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    pub(crate) fn locator(relation: u32) -> RelationFileLocator {
        RelationFileLocator { tablespace: 1663, database: 5, relation }
    }

    #[derive(Debug, Clone, Copy)]
    enum Change {
        Add(u32, u32),
        Limit(u32, u32),
        Database(Option<u32>, u32),
    }

    fn changes() -> impl Strategy<Value = Vec<Change>> {
        let block = prop_oneof![0_u32..200, 0_u32..300_000, any::<u32>()];
        let change = (16384_u32..16390, block, 0_u8..40, prop::option::of(1663_u32..1665)).prop_map(
            |(relation, block, kind, tablespace)| match kind {
                0 => Change::Database(tablespace, block % 7),
                1 | 2 => Change::Limit(relation, block),
                _ => Change::Add(relation, block),
            },
        );
        prop::collection::vec(change, 0..80)
    }

    fn apply(map: &mut BlockMap, changes: &[Change]) {
        for change in changes {
            match *change {
                Change::Add(relation, block) => map.add(locator(relation), block),
                Change::Limit(relation, block) => map.limit(locator(relation), block),
                Change::Database(tablespace, database) => map.database(tablespace, database),
            }
        }
    }

    /// What the changes say about a block, without a map.
    fn is_changed(changes: &[Change], relation: u32, block: u32) -> bool {
        changes.iter().any(|change| match *change {
            Change::Add(of, number) => (of, number) == (relation, block),
            Change::Limit(of, limit) => of == relation && block >= limit,
            Change::Database(tablespace, database) => {
                database == 5 && tablespace.is_none_or(|tablespace| tablespace == 1663)
            }
        })
    }

    fn interesting(changes: &[Change]) -> BTreeSet<(u32, u32)> {
        let mut blocks = BTreeSet::new();
        for change in changes {
            if let Change::Add(relation, block) | Change::Limit(relation, block) = *change {
                blocks.extend(
                    [block, block.wrapping_add(1), block.wrapping_sub(1)].map(|block| (relation, block)),
                );
            }
        }
        blocks.insert((16384, 0));
        // InvalidBlockNumber
        blocks.retain(|(_, block)| *block != u32::MAX);
        blocks
    }

    proptest! {
        #[test]
        fn a_map_lists_what_changed_and_nothing_else(changes in changes()) {
            let mut map = BlockMap::default();
            apply(&mut map, &changes);
            for (relation, block) in interesting(&changes) {
                prop_assert_eq!(map.lists(locator(relation), block), is_changed(&changes, relation, block));
            }
        }

        #[test]
        fn a_union_lists_what_either_lists(one in changes(), other in changes(), grains in (0_usize..4, 0_usize..4)) {
            let (mut a, mut b) = (BlockMap::default(), BlockMap::default());
            apply(&mut a, &one);
            apply(&mut b, &other);
            for (map, grain) in [(&mut a, grains.0), (&mut b, grains.1)] {
                (0..grain).for_each(|_| map.coarsen());
            }
            a.merge(&b);
            let all = [one, other].concat();
            for (relation, block) in interesting(&all) {
                let is_changed = is_changed(&all, relation, block);
                prop_assert!(a.lists(locator(relation), block) || !is_changed);
                if grains == (0, 0) {
                    prop_assert_eq!(a.lists(locator(relation), block), is_changed);
                }
            }
        }

        #[test]
        fn no_grain_loses_a_block(changes in changes(), budget in 0_usize..4000) {
            let mut map = BlockMap::with_budget(budget);
            apply(&mut map, &changes);
            for _ in 0..=GRAINS.len() {
                for (relation, block) in interesting(&changes) {
                    prop_assert!(map.lists(locator(relation), block) || !is_changed(&changes, relation, block));
                }
                map.coarsen();
            }
            prop_assert!(map.is_everything && map.entries.is_empty());
        }
    }

    #[test]
    fn the_budget_is_kept() {
        let mut map = BlockMap::with_budget(1 << 20);
        for block in 0..2_000_000_u32 {
            map.add(locator(16384 + block % 3), block.wrapping_mul(2_654_435_761));
        }
        map.bound();
        assert!(map.bytes() <= 1 << 20 && map.grain > 0 && !map.is_everything);
        assert!(map.lists(locator(16384), 0));
        // so many relations that not even one bit for each is left
        for relation in 0..100_000 {
            map.add(locator(relation), 7);
        }
        assert!(map.is_everything && map.lists(locator(1), 1));
    }

    #[test]
    fn limits_leave_what_was_listed() {
        let mut map = BlockMap::default();
        map.add(locator(16384), 100);
        map.limit(locator(16384), 50);
        map.limit(locator(16384), 200);
        let listed: Vec<u32> =
            [49, 50, 100, 200].into_iter().filter(|block| map.lists(locator(16384), *block)).collect();
        assert_eq!(listed, [50, 100, 200]);
        assert!(!map.lists(locator(16385), 100));
    }
}
