//! Data page checksums (src/include/storage/checksum_impl.h), to notice a page that the primary's
//! disk has damaged before it is spread to a standby.

use crate::wal::Lsn;

const N_SUMS: usize = 32;
const FNV_PRIME: u32 = 16_777_619;

const BASE_OFFSETS: [u32; N_SUMS] = [
    0x5B1F_36E9,
    0xB852_5960,
    0x02AB_50AA,
    0x1DE6_6D2A,
    0x79FF_467A,
    0x9BB9_F8A3,
    0x217E_7CD2,
    0x83E1_3D2C,
    0xF8D4_474F,
    0xE39E_B970,
    0x42C6_AE16,
    0x9932_16FA,
    0x7B09_3B5D,
    0x98DA_FF3C,
    0xF718_902A,
    0x0B1C_9CDB,
    0xE58F_764B,
    0x1876_36BC,
    0x5D7B_3BB1,
    0xE73D_E7DE,
    0x92BE_C979,
    0xCCA6_C0B2,
    0x304A_0979,
    0x85AA_43D4,
    0x7831_25BB,
    0x6CA8_EAA2,
    0xE407_EAC6,
    0x4B5C_FC3E,
    0x9FBF_8C76,
    0x15CA_20BE,
    0xF2CA_9FD3,
    0x959B_D756,
];

/// What one page's header and checksum say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The checksum matches, or the page was never initialised.
    Good,
    /// The page changed after the backup started: it may be torn, replay restores it whole.
    Newer,
    /// The checksum does not match the content.
    Bad {
        /// The checksum computed from the content.
        computed: u16,
        /// The checksum the page carries.
        stored: u16,
    },
}

/// Judges one page as pg_basebackup does (src/backend/backup/basebackup.c): pages that were never
/// initialised have no checksum, and pages newer than `start_lsn` may legitimately be torn.
/// `page` is one whole block; `block` its number in the relation fork.
pub fn verify(page: &[u8], block: u32, start_lsn: Lsn) -> Verdict {
    let pd_upper = u16::from_le_bytes([page[14], page[15]]);
    if pd_upper == 0 {
        return Verdict::Good;
    }
    let half = |at: usize| u32::from_le_bytes([page[at], page[at + 1], page[at + 2], page[at + 3]]);
    let page_lsn = Lsn(u64::from(half(0)) << 32 | u64::from(half(4)));
    if page_lsn >= start_lsn {
        return Verdict::Newer;
    }
    let stored = u16::from_le_bytes([page[8], page[9]]);
    let computed = checksum(page, block);
    if stored == computed { Verdict::Good } else { Verdict::Bad { computed, stored } }
}

/// pg_checksum_page.
fn checksum(page: &[u8], block: u32) -> u16 {
    let folded = checksum_block(page) ^ block;
    // the remainder is below 65535, so it fits
    (folded % 65_535) as u16 + 1
}

#[multiversion::multiversion(targets("x86_64+avx2", "x86_64+sse4.1"))]
fn checksum_block(page: &[u8]) -> u32 {
    let mut sums = BASE_OFFSETS;
    for (row_number, row) in page.chunks_exact(4 * N_SUMS).enumerate() {
        let mut words = [0_u32; N_SUMS];
        for (word, bytes) in words.iter_mut().zip(row.chunks_exact(4)) {
            *word = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        if row_number == 0 {
            // pd_checksum (bytes 8 and 9) counts as zero
            words[2] &= 0xFFFF_0000;
        }
        for (sum, word) in sums.iter_mut().zip(words) {
            mix(sum, word);
        }
    }
    for _ in 0..2 {
        for sum in &mut sums {
            mix(sum, 0);
        }
    }
    sums.iter().fold(0, |folded, sum| folded ^ sum)
}

#[inline(always)]
fn mix(sum: &mut u32, value: u32) {
    let mixed = *sum ^ value;
    *sum = mixed.wrapping_mul(FNV_PRIME) ^ (mixed >> 17);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A straight transcription of the C code, to hold the vectorised one against.
    fn reference(page: &[u8], block: u32) -> u16 {
        let mut page = page.to_vec();
        page[8] = 0;
        page[9] = 0;
        let mut sums = BASE_OFFSETS;
        for i in 0..page.len() / 128 {
            for (j, sum) in sums.iter_mut().enumerate() {
                let at = i * 128 + j * 4;
                let word = u32::from_le_bytes(page[at..at + 4].try_into().expect("four bytes"));
                mix(sum, word);
            }
        }
        for _ in 0..2 {
            sums.iter_mut().for_each(|sum| mix(sum, 0));
        }
        let folded = sums.iter().fold(0, |a, b| a ^ b) ^ block;
        (folded % 65_535 + 1) as u16
    }

    fn page(seed: u8) -> Vec<u8> {
        (0..8192_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8 ^ seed).collect()
    }

    #[test]
    fn equals_the_reference() {
        for seed in 0..8 {
            let page = page(seed);
            assert_eq!(checksum(&page, u32::from(seed) * 77), reference(&page, u32::from(seed) * 77));
        }
    }

    #[test]
    fn judges_pages() {
        let mut good = page(1);
        good[..8].fill(0);
        good[14] = 1;
        let sum = reference(&good, 9);
        good[8..10].copy_from_slice(&sum.to_le_bytes());
        assert_eq!(verify(&good, 9, Lsn(100)), Verdict::Good);
        assert!(matches!(verify(&good, 10, Lsn(100)), Verdict::Bad { stored, .. } if stored == sum));
        assert_eq!(verify(&good, 10, Lsn(0)), Verdict::Newer);
        assert_eq!(verify(&[0; 8192], 3, Lsn(100)), Verdict::Good);
        good[5000] ^= 1;
        assert!(matches!(verify(&good, 9, Lsn(100)), Verdict::Bad { .. }));
    }
}
