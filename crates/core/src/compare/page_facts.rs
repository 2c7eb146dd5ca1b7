//! What a page says of itself.

use pgdata::page::{self, is_unused};
use pgdata::wal::Lsn;

use super::digest::{DIGEST, DigestKey};

/// What a page says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageFacts {
    /// Where the last record ends that changed it, if this is a page.
    pub lsn: Lsn,
    /// The digest of what PostgreSQL logs of it, but for the next.
    pub logged: [u8; DIGEST],
    /// Whether a table's page says that all of its rows are visible: the one logged change that may leave the LSN as it is
    /// (`log_heap_visible`).
    pub is_all_visible: bool,
}

impl PageFacts {
    /// Bytes on the wire.
    pub const BYTES: usize = 8 + DIGEST + 1;

    /// Of a page as it was read; what is no whole page has its own digest.
    pub fn of(page: &[u8], key: &DigestKey) -> Self {
        let mut masked = page.to_vec();
        // what PageInit makes of zeros is not logged
        if is_unused(page) {
            masked.fill(0);
        } else if page::mask(&mut masked, false).is_none() {
            masked.copy_from_slice(page);
        }
        page::clear_all_visible(&mut masked);
        Self {
            lsn: page::lsn(page).unwrap_or_default(),
            logged: key.page(&masked),
            is_all_visible: page::is_all_visible(page),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::digest::PAGE;

    #[test]
    fn pages_that_differ_by_a_hint_have_one_logged_digest() {
        let key = DigestKey::from_bytes([7; 32]);
        let mut page = vec![0; PAGE];
        page[..8].copy_from_slice(&[0x16, 0, 0, 0, 0x48, 0xD8, 0x74, 0xB3]);
        page[12..18].copy_from_slice(&[24, 0, 0xF0, 0x1F, 0xF0, 0x1F]);
        let facts = PageFacts::of(&page, &key);
        assert_eq!(facts.lsn, Lsn(0x16_B374_D848));
        page[0] = 0x17;
        page[20] = 9;
        let hinted = PageFacts::of(&page, &key);
        assert_eq!((hinted.lsn, hinted.logged), (Lsn(0x17_B374_D848), facts.logged));
        // the last two bytes of a B-tree's page are the cycle of a running VACUUM, which is not logged
        page[PAGE - 5] = 1;
        assert_ne!(PageFacts::of(&page, &key).logged, facts.logged);
    }
}
