//! Pages of relations (src/include/storage/bufpage.h), and which differences between two of them say nothing, because
//! PostgreSQL does not log them.
//!
//! The rules are those PostgreSQL applies itself when `wal_consistency_checking` compares a replayed page
//! with the original (bufmask.c, `heap_mask` in heapam.c, `btree_mask` in nbtxlog.c), but narrower.

use crate::bytes::u32_at;
use crate::wal::Lsn;

/// Bytes in a page (BLCKSZ): 8192 in every distribution.
pub const PAGE: usize = 8192;

const HEADER: usize = 24;
/// `ItemIdData.lp_flags`: LP_NORMAL.
const NORMAL: u32 = 1;

/// Where the last record ends that changed a page (pd_lsn). A page that was never changed has none: 0.
pub fn lsn(page: &[u8]) -> Option<Lsn> {
    Some(Lsn(u64::from(u32_at(page, 0)?) << 32 | u64::from(u32_at(page, 4)?)))
}

/// Whether all rows of a table's page are said to be visible to everyone (PD_ALL_VISIBLE).
pub fn is_all_visible(page: &[u8]) -> bool {
    page.get(FLAGS).is_some_and(|flags| flags & ALL_VISIBLE != 0)
}

/// Clears that.
pub fn clear_all_visible(page: &mut [u8]) {
    if let Some(flags) = page.get_mut(FLAGS) {
        *flags &= !ALL_VISIBLE;
    }
}

/// Where the first byte of `pd_flags` lies.
const FLAGS: usize = 10;

const ALL_VISIBLE: u8 = 0x04;

/// Whether a page holds nothing: zeros, or what `PageInit` makes of them for a table, which is not logged.
pub fn is_unused(page: &[u8]) -> bool {
    let rest = page.get(HEADER..).unwrap_or_default();
    let is_initialised = || {
        let at = |offset| word(page, offset);
        lsn(page) == Some(Lsn(0)) && at(12) == Some(HEADER) && at(14) == Some(PAGE) && at(16) == Some(PAGE)
    };
    rest.iter().all(|&byte| byte == 0) && (page.iter().all(|&byte| byte == 0) || is_initialised())
}

/// Whether two differing pages, the primary's and the standby's, are equal but for what is not WAL-logged.
///
/// `is_map`: a visibility map, whose content lies where other pages have their hole.
pub fn equal_when_masked(one: &[u8], other: &[u8], is_map: bool) -> bool {
    if one.len() != PAGE || other.len() != PAGE {
        return false;
    }
    // CREATE DATABASE ... STRATEGY wal_log logs a map's page without its hole, which is all of it
    // (RelationCopyStorageUsingBuffer in bufmgr.c). A map without a bit promises nothing.
    if is_map && is_empty_map(other) {
        return true;
    }
    let (mut a, mut b) = (one.to_vec(), other.to_vec());
    // Where hints are not logged, VACUUM's mark leaves the page's LSN as it is (`log_heap_visible`): the page may reach the disk before
    // the record does, and a primary that is killed then keeps a mark of which no standby hears. The other way round it would
    // be a promise that the primary does not keep.
    if !is_map && is_all_visible(&a) && !is_all_visible(&b) {
        clear_all_visible(&mut a);
    }
    for page in [&mut a, &mut b] {
        if mask(page, is_map).is_none() {
            return false;
        }
    }
    a == b
}

/// Whether a visibility map's page says nothing. VACUUM makes such pages without WAL (`vm_extend`).
pub fn is_empty_map(page: &[u8]) -> bool {
    page.iter().skip(HEADER).all(|&byte| byte == 0)
}

fn word(page: &[u8], at: usize) -> Option<usize> {
    Some(usize::from(u16::from_le_bytes(page.get(at..at + 2)?.try_into().ok()?)))
}

/// Sets to zero what PostgreSQL does not log of a page. `None`: this is no page, so nothing about it may be masked; part of it
/// may be zero then.
pub fn mask(page: &mut [u8], is_map: bool) -> Option<()> {
    if page.len() != PAGE {
        return None;
    }
    // The LSN (a hint-bit change may stamp it) and the checksum over all of it.
    page[0..10].fill(0);
    if is_map {
        return Some(());
    }
    // PD_HAS_FREE_LINES and PD_PAGE_FULL are hints; so is the oldest prunable transaction.
    page[10] &= !0b11;
    page[20..24].fill(0);
    let (lower, upper, special) = (word(page, 12)?, word(page, 14)?, word(page, 16)?);
    if lower < HEADER || lower > upper || upper > special || special > PAGE {
        return None;
    }
    page[lower..upper].fill(0);
    if is_spgist_metapage(page) {
        // which pages have room, as the last session knew; the copy in the page is changed without WAL (spgutils.c)
        page[SPGIST_CACHE].fill(0);
        return Some(());
    }
    if is_deleted_gin_page(page, special) {
        page[12..16].fill(0);
        page[HEADER..PAGE - 2].fill(0);
        return Some(());
    }
    let is_sequence = special == PAGE - 8 && page[special..special + 4] == [0x17, 0x17, 0, 0];
    if is_sequence {
        // The primary counts on in shared memory what it logged up to 32 values ahead.
        page[upper..special].fill(0);
    } else if special == PAGE {
        for at in (HEADER..lower).step_by(4) {
            mask_tuple(page, at)?;
        }
    } else {
        mask_index(page, lower, special);
    }
    Some(())
}

/// SpGistMetaPageData in src/include/access/spgist_private.h, `lastUsedPages`.
const SPGIST_CACHE: std::ops::Range<usize> = 28..92;

/// The first page of an SP-GiST index, by its magic number, its flags and the identification at its end.
fn is_spgist_metapage(page: &[u8]) -> bool {
    const MAGIC: u32 = 0xBA0B_ABEE;
    const META: usize = 1;
    const ID: usize = 0xFF82;
    u32_at(page, HEADER) == Some(MAGIC)
        && word(page, PAGE - 8) == Some(META)
        && word(page, PAGE - 2) == Some(ID)
}

/// The line pointer at `at`: offset (15 bits), flags (2 bits), length (15 bits).
fn mask_tuple(page: &mut [u8], at: usize) -> Option<()> {
    let item = u32::from_le_bytes(page.get(at..at + 4)?.try_into().ok()?);
    if (item >> 15) & 3 != NORMAL {
        return Some(());
    }
    let tuple = usize::try_from(item & 0x7fff).ok()?;
    let flags = word(page, tuple + 20)?;
    // HEAP_XMIN_FROZEN is both bits of xmin at once, and logged; each alone is a hint. The bits of xmax
    // are hints, and HEAP_COMBOCID (0x0020) with t_cid belongs to the inserting session.
    let hints = if flags & 0x0300 == 0x0300 { 0x0c20 } else { 0x0f20 };
    let masked = u16::try_from(flags & !hints).ok()?;
    page[tuple + 20..tuple + 22].copy_from_slice(&masked.to_le_bytes());
    page[tuple + 8..tuple + 12].fill(0);
    // What lies between the end of a tuple and the next aligned one is what lay there before.
    let end = tuple + usize::try_from(item >> 17).ok()?;
    page.get_mut(end..end.next_multiple_of(8))?.fill(0);
    Some(())
}

/// LP_DEAD marks of index entries are hints, and so are the marks of pages that have some (`_hash_kill_items`,
/// `gistkillitems`, a B-tree's BTP_HAS_GARBAGE). What tells a running VACUUM of a
/// split, BTP_SPLIT_END and the vacuum cycle, is not replayed.
fn mask_index(page: &mut [u8], lower: usize, special: usize) {
    for at in (HEADER..lower).step_by(4) {
        page[at + 1] &= 0x7f;
        page[at + 2] &= 0xfe;
    }
    // at the end is what the page is of, but for B-trees, of which the cycle is there, and never as high
    match (word(page, PAGE - 2), special) {
        // LH_PAGE_HAS_DEAD_TUPLES of a hash index
        (Some(0xFF80), SIXTEEN) => page[special + 12] &= !0x80,
        // F_HAS_GARBAGE of a GiST index
        (Some(0xFF81), SIXTEEN) => page[special + 12] &= !0x10,
        (_, SIXTEEN) => {
            page[special + 12] &= !0x60;
            page[special + 14..special + 16].fill(0);
        }
        // BRIN_EVACUATE_PAGE
        (Some(0xF093), EIGHT) => page[PAGE - 4] &= !0x01,
        _ => {}
    }
}

/// Where the special space of an index page begins, of the two lengths that there are.
const SIXTEEN: usize = PAGE - 16;
const EIGHT: usize = PAGE - 8;

/// A deleted page of a GIN index: its flags are the last two bytes, of which the upper one is not used. Replay empties such
/// a page (ginRedoDeleteListPages in ginxlog.c), the primary leaves what was there.
fn is_deleted_gin_page(page: &[u8], special: usize) -> bool {
    const DELETED: usize = 1 << 2;
    special == EIGHT && word(page, PAGE - 2).is_some_and(|flags| flags < 0x100 && flags & DELETED != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A heap page with one tuple at 8000.
    fn heap() -> Vec<u8> {
        let mut page = vec![0; PAGE];
        page[12..18].copy_from_slice(&[28, 0, 0x40, 0x1f, 0, 0x20]);
        let item: u32 = 8000 | (NORMAL << 15) | (100 << 17);
        page[24..28].copy_from_slice(&item.to_le_bytes());
        page
    }

    #[test]
    fn a_page_that_was_only_initialised_holds_nothing() {
        let (zeros, mut page) = (vec![0; PAGE], vec![0; PAGE]);
        page[12..18].copy_from_slice(&[24, 0, 0, 0x20, 0, 0x20]);
        assert!(is_unused(&zeros) && is_unused(&page) && !is_unused(&heap()));
        page[4] = 1;
        assert_eq!((is_unused(&page), lsn(&page), lsn(&page[..7])), (false, Some(Lsn(1)), None));
    }

    #[test]
    fn hint_bits_do_not_count_and_data_do() {
        let (one, mut other) = (heap(), heap());
        other[8021] = 0x01;
        other[5] = 9;
        assert!(equal_when_masked(&one, &other, false));
        other[8050] = 1;
        assert!(!equal_when_masked(&one, &other, false));
    }

    #[test]
    fn what_pads_a_tuple_does_not_count() {
        let (one, mut other) = (heap(), heap());
        other[8100..8104].fill(7);
        assert!(equal_when_masked(&one, &other, false));
        other[8104] = 7;
        assert!(!equal_when_masked(&one, &other, false));
    }

    #[test]
    fn a_standbys_map_may_say_nothing_but_not_more() {
        let (mut one, mut other) = (vec![0; PAGE], vec![0; PAGE]);
        one[100] = 3;
        assert!(equal_when_masked(&one, &other, true));
        assert!(!equal_when_masked(&other, &one, true));
        other[100] = 1;
        assert!(!equal_when_masked(&one, &other, true));
    }

    #[test]
    fn what_an_spgist_index_remembers_of_its_room_does_not_count() {
        let mut one = vec![0; PAGE];
        one[12..18].copy_from_slice(&[92, 0, 0xF8, 0x1f, 0xF8, 0x1f]);
        one[24..28].copy_from_slice(&0xBA0B_ABEE_u32.to_le_bytes());
        one[PAGE - 8] = 1;
        one[PAGE - 2..].copy_from_slice(&[0x82, 0xFF]);
        let mut other = one.clone();
        other[28..92].fill(7);
        assert!(equal_when_masked(&one, &other, false));
        other[92] = 1;
        assert!(equal_when_masked(&one, &other, false), "the hole");
        other[PAGE - 6] = 1;
        assert!(!equal_when_masked(&one, &other, false));
        one[24] ^= 1;
        other = one.clone();
        other[28] = 7;
        assert!(!equal_when_masked(&one, &other, false), "another page");
    }

    #[test]
    fn marks_of_index_pages_do_not_count_and_their_other_flags_do() {
        // end of the page, length of the special space, place of the flags from the end, a mark, another flag
        for (id, length, flags, hint, other) in [
            (0xFF80_u16, 16_usize, 4_usize, 0x80_u8, 0x40_u8),
            (0xFF81, 16, 4, 0x10, 0x08),
            (0x0001, 16, 4, 0x40, 0x10),
            (0xF093, 8, 4, 0x01, 0x02),
        ] {
            let mut page = vec![0; PAGE];
            let special = u16::try_from(PAGE - length).expect("small");
            page[12] = 28;
            page[14..16].copy_from_slice(&special.to_le_bytes());
            page[16..18].copy_from_slice(&special.to_le_bytes());
            page[PAGE - 2..].copy_from_slice(&id.to_le_bytes());
            let changed = |bit: u8| {
                let mut changed = page.clone();
                changed[PAGE - flags] ^= bit;
                equal_when_masked(&page, &changed, false)
            };
            assert!(changed(hint) && !changed(other), "{id:04X}");
        }
    }

    #[test]
    fn what_a_deleted_page_of_a_gin_index_had_does_not_count() {
        let page = |flags: u8, fill: u8| {
            let mut page = vec![fill; PAGE];
            page[..24].fill(0);
            page[12..18].copy_from_slice(&[24 + fill, 0, 0xF8, 0x1F, 0xF8, 0x1F]);
            page[PAGE - 2..].copy_from_slice(&[flags, 0]);
            page
        };
        assert!(equal_when_masked(&page(0x04, 4), &page(0x04, 0), false));
        assert!(!equal_when_masked(&page(0x10, 4), &page(0x10, 0), false));
        assert!(!equal_when_masked(&page(0x04, 4), &page(0x00, 0), false));
    }

    #[test]
    fn a_mark_of_vacuum_may_be_the_primarys_alone() {
        let (one, mut marked) = (heap(), heap());
        marked[FLAGS] |= ALL_VISIBLE;
        assert!(equal_when_masked(&marked, &one, false));
        assert!(!equal_when_masked(&one, &marked, false));
    }

    #[test]
    fn a_frozen_tuple_is_not_a_hint() {
        let (one, mut other) = (heap(), heap());
        other[8021] = 0x03;
        assert!(!equal_when_masked(&one, &other, false));
    }

    #[test]
    fn what_is_no_page_is_compared_as_it_is() {
        let (one, mut other) = (vec![0xff; PAGE], vec![0xff; PAGE]);
        other[3] = 0;
        assert!(!equal_when_masked(&one, &other, false));
    }
}
