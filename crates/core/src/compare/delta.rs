//! Which pages of a range have to be written.

use crate::compare::digest::PAGE;

/// A stretch of bytes that is written at one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Where in the file.
    pub offset: u64,
    /// How many bytes.
    pub length: u32,
}

static ZEROS: [u8; PAGE] = [0; PAGE];

/// Finds the pages of `ours` that the target does not have; neighbours become one run. `offset` is where
/// the range begins in its file, `there` how many bytes of the range the target has, and `equal` says of
/// a page that both have whole whether it is the same.
pub fn differing(
    offset: u64,
    ours: &[u8],
    there: usize,
    mut equal: impl FnMut(usize) -> bool,
    runs: &mut Vec<Extent>,
) {
    runs.clear();
    for (number, page) in ours.chunks(PAGE).enumerate() {
        let start = number * PAGE;
        let end = start + page.len();
        let is_there = if start >= there {
            // beyond its end the target's file reads as zeros once it has its size
            page == &ZEROS[..page.len()]
        } else {
            // a last page that is longer on one side differs
            end == there.min(start + PAGE) && equal(number)
        };
        if is_there {
            continue;
        }
        let at = offset + start as u64;
        let length = u32::try_from(page.len()).unwrap_or(u32::MAX);
        match runs.last_mut() {
            Some(last) if last.offset + u64::from(last.length) == at => last.length += length,
            _ => runs.push(Extent { offset: at, length }),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever the target has: with the runs written and its size set it has what the primary has.
        #[test]
        fn writing_the_runs_makes_them_equal(
            pages in prop::collection::vec((0_u8..3, 0_u8..3), 0..20),
            ours_last in 0_usize..PAGE,
            theirs_last in 0_usize..PAGE,
            cut in 0_usize..20,
        ) {
            let content = |last: usize, pick: fn(&(u8, u8)) -> u8| -> Vec<u8> {
                let mut bytes: Vec<u8> = pages.iter().flat_map(|page| [pick(page); PAGE]).collect();
                bytes.truncate((bytes.len() + last).saturating_sub(PAGE));
                bytes
            };
            let ours = content(ours_last, |page| page.0);
            let mut theirs = content(theirs_last, |page| page.1);
            theirs.truncate(theirs.len().saturating_sub(cut * PAGE));
            let mut runs = Vec::new();
            let there = theirs.len().min(ours.len());
            let equal = |page: usize| {
                let end = ((page + 1) * PAGE).min(there);
                ours[page * PAGE..end] == theirs[page * PAGE..end]
            };
            differing(1 << 30, &ours, there, equal, &mut runs);
            theirs.resize(theirs.len().max(ours.len()), 0);
            for run in &runs {
                let start = (run.offset - (1 << 30)) as usize;
                let end = start + run.length as usize;
                theirs[start..end].copy_from_slice(&ours[start..end]);
            }
            theirs.truncate(ours.len());
            prop_assert_eq!(theirs, ours);
            // runs are in order and apart
            prop_assert!(runs.windows(2).all(|pair| pair[0].offset + u64::from(pair[0].length) < pair[1].offset));
        }
    }
}
