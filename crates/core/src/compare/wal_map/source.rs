//! The map, asked for stretches of the plan's files.

use pgdata::wal::record::RelationFileLocator;

use super::block_map::{BlockMap, Entry, bit, first_block};
use crate::compare::digest::PAGE;
use crate::compare::source::{ChangeSource, Proof, Stretch, Treatment};
use crate::manifest::list::FileList;
use crate::manifest::plan::{File, RANGE};
use crate::sys::blocks::Blocks;

/// Files of relations with a lower number are those of catalogs (FirstNormalObjectId in
/// src/include/access/transam.h): they are always compared.
const FIRST_NORMAL: u32 = 16_384;

/// The tablespace whose files lie in `base` (DEFAULTTABLESPACE_OID).
const DEFAULT_TABLESPACE: u32 = 1663;

/// Listed blocks with no more than so many others between them are one stretch: to read them, too, costs less than to
/// leave them out.
const GAP: u64 = (64 << 10) / PAGE as u64;

/// Blocks after which a stretch may end: nothing longer is dealt at a time.
const LONG: u64 = RANGE / PAGE as u64;

/// What the target has at the place of a planned file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// A regular file with one name and so many bytes.
    Bytes(u64),
    /// Nothing, or something that is replaced and not written in place.
    Unfit,
}

/// The layout of the files, and what else is always compared.
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    /// Pages in one segment file of a relation, as pg_control says.
    pub segment_blocks: u32,
    /// Whether the first block of every relation is compared although no WAL names it: SP-GiST changes it without WAL
    /// (spgutils.c, `SpGistUpdateMetaPage`), so of a target that wrote its last WAL itself it may be anything.
    pub first_blocks: bool,
}

/// What the map says of all files together, bytes of the primary's files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Breakdown {
    /// Proved to be equal; what lies between two listed blocks is compared all the same.
    pub known: u64,
    /// Named by WAL.
    pub listed: u64,
    /// Behind the place from which on the relation was cut, made or removed.
    pub limit: u64,
    /// Of files, or first blocks, of which WAL does not tell everything.
    pub always: u64,
    /// Beyond what the target has.
    pub tail: u64,
}

/// Leaves out the blocks that neither side's WAL names.
#[derive(Debug)]
pub struct WalMap {
    entries: Vec<Entry>,
    grain: usize,
    files: Blocks<Share>,
    layout: Layout,
    breakdown: Breakdown,
}

/// What is known of a file: 12 bytes, because there may be millions.
#[derive(Debug, Clone, Copy)]
struct Share {
    /// The number of its relation's entry, or one of the two below.
    entry: u32,
    /// The number of its first block in the relation.
    first: u32,
    /// How many of its blocks both sides have.
    common: u32,
}

/// All of the file is compared.
const ALWAYS: u32 = u32::MAX;

/// No WAL names a block of its relation.
const UNLISTED: u32 = u32::MAX - 1;

impl WalMap {
    /// Applies the union of both sides' maps to the plan's files; `found` says of each what the target has.
    pub fn new(
        map: BlockMap,
        files: &FileList,
        found: impl IntoIterator<Item = Found>,
        layout: Layout,
    ) -> Self {
        let mut numbers = std::collections::BTreeMap::new();
        let mut made = Self {
            entries: Vec::with_capacity(map.entries.len()),
            grain: map.grain,
            files: Blocks::default(),
            layout,
            breakdown: Breakdown::default(),
        };
        let is_everything = map.is_everything;
        for (locator, entry) in map.entries {
            numbers.insert(locator, u32::try_from(made.entries.len()).unwrap_or(ALWAYS));
            made.entries.push(entry);
        }
        let number = |locator: RelationFileLocator| numbers.get(&locator).copied();
        let is_listed = |locator: RelationFileLocator, tablespace: u32| {
            number(RelationFileLocator { tablespace, relation: 0, ..locator }).is_some()
        };
        let found = found.into_iter().chain(std::iter::repeat(Found::Unfit));
        for (file, found) in files.iter().zip(found) {
            let share =
                share(&file, found, layout).filter(|_| !is_everything).and_then(|(locator, share)| {
                    let is_new = is_listed(locator, locator.tablespace) || is_listed(locator, 0);
                    (!is_new).then(|| Share { entry: number(locator).unwrap_or(UNLISTED), ..share })
                });
            let share = share.unwrap_or(Share { entry: ALWAYS, first: 0, common: 0 });
            made.files.push(share);
            made.count(share, file.size);
        }
        made
    }

    /// What the map says of all files together.
    pub const fn breakdown(&self) -> Breakdown {
        self.breakdown
    }

    /// Whether a page of the file of this number may differ; the page is counted from the file's beginning.
    pub fn may_differ(&self, number: u32, page: u32) -> bool {
        self.files.get(number as usize).is_none_or(|share| {
            self.next_dirty(*share, page.into()).is_some_and(|(begin, _)| begin <= u64::from(page))
        })
    }

    /// How many files there are.
    pub fn files(&self) -> u64 {
        self.files.len() as u64
    }

    /// The pages of a file, at `page` or later, that another map lists one by one.
    pub(super) fn listed_by<'a>(
        &self,
        other: &'a BlockMap,
        number: u32,
        path: &str,
        page: u64,
    ) -> impl Iterator<Item = u64> + use<'a> {
        let share = self.files.get(number as usize).filter(|share| share.entry != ALWAYS).copied();
        let entry = share.and_then(|_| other.entries.get(&main_fork(path)?.0));
        let (first, grain) = (share.map_or(0, |share| u64::from(share.first)), other.grain);
        let mut bits = entry.map(|entry| entry.blocks.iter());
        if let Some(bits) = &mut bits {
            bits.advance_to(bit(u32::try_from(first + page).unwrap_or(u32::MAX), grain));
        }
        let blocks = bits.into_iter().flatten().map(move |bit| first_block(bit, grain));
        blocks.filter_map(move |block| block.checked_sub(first)).filter(move |listed| *listed >= page)
    }

    fn entry(&self, share: Share) -> Option<&Entry> {
        self.entries.get(share.entry as usize)
    }

    /// Where the next pages begin that are compared, at this page of the file or later, and where they end.
    fn next_dirty(&self, share: Share, page: u64) -> Option<(u64, u64)> {
        if share.entry == ALWAYS {
            return Some((page, u64::MAX));
        }
        if page == 0 && share.first == 0 && self.layout.first_blocks {
            return Some((0, 1));
        }
        let mut rest = u64::from(share.common);
        let Some(entry) = self.entry(share) else {
            return Some((rest.max(page), u64::MAX));
        };
        let first = u64::from(share.first);
        rest = rest.min(u64::from(entry.limit).saturating_sub(first));
        // what is behind it is compared to the end
        if page < rest {
            let block = u32::try_from(first + page).unwrap_or(u32::MAX);
            let mut bits = entry.blocks.iter();
            bits.advance_to(bit(block, self.grain));
            if let Some(next) = bits.next() {
                let begin = first_block(next, self.grain).saturating_sub(first).max(page);
                let end = first_block(next, self.grain).saturating_add(first_block(1, self.grain)) - first;
                if begin < rest {
                    return Some((begin, if end < rest { end } else { rest.max(begin + 1) }));
                }
            }
        }
        Some((rest.max(page), u64::MAX))
    }

    /// Adds a file to the breakdown.
    fn count(&mut self, share: Share, size: u64) {
        const PAGE_BYTES: u64 = PAGE as u64;
        if share.entry == ALWAYS {
            self.breakdown.always += size;
            return;
        }
        let common = u64::from(share.common);
        let first = u64::from(share.first);
        let below = self
            .entry(share)
            .map_or(common, |entry| common.min(u64::from(entry.limit).saturating_sub(first)));
        let mut listed = 0;
        if below > 0
            && let Some(entry) = self.entry(share)
        {
            let last = u32::try_from(first + below - 1).unwrap_or(u32::MAX);
            let bits = bit(share.first, self.grain)..=bit(last, self.grain);
            listed = (entry.blocks.range_cardinality(bits) * first_block(1, self.grain)).min(below);
        }
        let is_first_listed =
            || self.entry(share).is_some_and(|entry| entry.blocks.contains(bit(0, self.grain)));
        let always = u64::from(below > 0 && first == 0 && self.layout.first_blocks && !is_first_listed());
        let breakdown = &mut self.breakdown;
        breakdown.listed += listed * PAGE_BYTES;
        breakdown.always += always * PAGE_BYTES;
        breakdown.limit += (common - below) * PAGE_BYTES;
        breakdown.tail += size - common * PAGE_BYTES;
        breakdown.known += (below - listed - always) * PAGE_BYTES;
    }
}

impl ChangeSource for WalMap {
    fn stretch(&self, number: u32, size: u64, offset: u64) -> Stretch {
        const PAGE_BYTES: u64 = PAGE as u64;
        let Some(share) = self.files.get(number as usize).copied() else {
            return Stretch::rest(Treatment::Compare);
        };
        if share.entry == ALWAYS {
            return Stretch::rest(Treatment::Compare);
        }
        let page = offset / PAGE_BYTES;
        let pages = size.div_ceil(PAGE_BYTES);
        let Some((begin, mut end)) = self.next_dirty(share, page).filter(|(begin, _)| *begin < pages) else {
            return Stretch::rest(Treatment::Skip(Proof::WalMap));
        };
        let is_in_gap = || {
            let before = page.checked_sub(1).and_then(|before| self.next_dirty(share, before));
            begin - page <= GAP && before.is_some_and(|(begin, _)| begin < page)
        };
        if begin > page && !is_in_gap() {
            return Stretch { end: begin * PAGE_BYTES, treatment: Treatment::Skip(Proof::WalMap) };
        }
        while end < pages && end - page < LONG {
            match self.next_dirty(share, end) {
                Some((next, after)) if next - end <= GAP && next < pages => end = after,
                _ => break,
            }
        }
        Stretch { end: end.saturating_mul(PAGE_BYTES), treatment: Treatment::Compare }
    }
}

/// The relation of a file whose blocks WAL tells, and what both sides have of it.
fn share(file: &File, found: Found, layout: Layout) -> Option<(RelationFileLocator, Share)> {
    let (locator, segment) = main_fork(file.path.as_str())?;
    let Found::Bytes(theirs) = found else { return None };
    let blocks = |bytes: u64| {
        let blocks = bytes / PAGE as u64;
        let is_whole = bytes.is_multiple_of(PAGE as u64) && blocks <= layout.segment_blocks.into();
        is_whole.then(|| u32::try_from(blocks).ok()).flatten()
    };
    let common = blocks(file.size)?.min(blocks(theirs)?);
    let first = segment.checked_mul(layout.segment_blocks)?;
    first.checked_add(layout.segment_blocks)?;
    Some((locator, Share { entry: UNLISTED, first, common }))
}

/// The relation and the number of the segment if a file is of the main fork of a relation that is no catalog: all changes of
/// such files are told by WAL.
fn main_fork(path: &str) -> Option<(RelationFileLocator, u32)> {
    let (tablespace, rest) = match path.strip_prefix("base/") {
        Some(rest) => (DEFAULT_TABLESPACE, rest),
        None => {
            let (tablespace, rest) = path.strip_prefix("pg_tblspc/")?.split_once('/')?;
            let (_version, rest) = rest.split_once('/')?;
            (number(tablespace)?, rest)
        }
    };
    let (database, name) = rest.split_once('/')?;
    let (relation, segment) = match name.split_once('.') {
        Some((relation, segment)) => (relation, number(segment)?),
        None => (name, 0),
    };
    let (database, relation) = (number(database)?, number(relation)?);
    (relation >= FIRST_NORMAL).then_some((RelationFileLocator { tablespace, database, relation }, segment))
}

/// A number as PostgreSQL writes it into a name.
fn number(text: &str) -> Option<u32> {
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0');
    is_number.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests;
