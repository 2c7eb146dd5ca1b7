//! What the pages that are read all the same say of the proof by which others are left out.
//!
//! A proof that holds has no exception: a page that was changed since both sides had it carries the position of that change, and
//! that change stands in the WAL. One page that says otherwise, and the proof is not used any more.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use pgdata::page;
use pgdata::wal::Lsn;

use super::source::WalMap;
use crate::compare::digest::{DigestKey, PAGE};
use crate::compare::page_facts::PageFacts;
use crate::manifest::exclude::relation_segment;
use crate::manifest::path::RelPath;
use crate::sys::lock::lock;

/// Refutations of which more than the number is kept.
const KEPT: usize = 16;

/// From where to where the proof reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reach {
    /// The common redo point from which on both sides' WAL was read.
    pub from: Lsn,
    /// Where the backup starts, which is where the source's map ends.
    pub to: Lsn,
    /// Where the target's WAL ends: no page of it is younger.
    pub target_end: Lsn,
}

/// A page that should not be as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refutation {
    /// Its file, relative to the data directory.
    pub file: RelPath,
    /// Its number in the file.
    pub page: u32,
    /// The primary's page says that it was last changed here.
    pub source: Lsn,
    /// The target's page says so.
    pub target: Lsn,
    /// What contradicts the proof.
    pub why: &'static str,
}

/// Looks at every page that is read on both sides.
#[derive(Debug)]
pub struct Witness<'a> {
    map: &'a WalMap,
    reach: Reach,
    looked: AtomicU64,
    unlogged: AtomicU64,
    refuted: AtomicU64,
    refutations: Mutex<Vec<Refutation>>,
}

/// What two pages say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// Nothing against the proof.
    Nothing,
    /// They differ by what PostgreSQL does not log.
    Unlogged,
    /// The proof is wrong.
    Refuted(&'static str),
}

impl<'a> Witness<'a> {
    /// Of a map that reaches so far.
    pub const fn new(map: &'a WalMap, reach: Reach) -> Self {
        Self {
            map,
            reach,
            looked: AtomicU64::new(0),
            unlogged: AtomicU64::new(0),
            refuted: AtomicU64::new(0),
            refutations: Mutex::new(Vec::new()),
        }
    }

    /// Looks at a page of the file of this number; `is_equal`: both sides have the same bytes.
    pub fn look(
        &self,
        (number, file): (u32, &RelPath),
        at: u32,
        source: &[u8],
        is_equal: bool,
        target: PageFacts,
        key: &DigestKey,
    ) {
        if source.len() != PAGE || relation_segment(file).is_none() {
            return;
        }
        let is_unlisted = !self.map.may_differ(number, at);
        let ours = page::lsn(source).unwrap_or_default();
        let is_logged_equal = || {
            // VACUUM may have marked the primary's page since the backup began without another LSN; nothing clears the mark so
            let ours = PageFacts::of(source, key);
            is_equal || (ours.logged == target.logged && (ours.is_all_visible || !target.is_all_visible))
        };
        let verdict = if is_unlisted {
            self.looked.fetch_add(1, Ordering::Relaxed);
            self.reach.verdict(ours, target.lsn, is_equal, is_logged_equal)
        } else if target.lsn > self.reach.target_end {
            Verdict::Refuted(YOUNGER)
        } else {
            Verdict::Nothing
        };
        match verdict {
            Verdict::Nothing => {}
            Verdict::Unlogged => {
                self.unlogged.fetch_add(1, Ordering::Relaxed);
            }
            Verdict::Refuted(why) => {
                self.refuted.fetch_add(1, Ordering::Relaxed);
                let mut refutations = lock(&self.refutations);
                if refutations.len() < KEPT {
                    let (source, target) = (ours, target.lsn);
                    refutations.push(Refutation { file: file.clone(), page: at, source, target, why });
                }
            }
        }
    }

    /// Whether a page has refuted the proof.
    pub fn is_refuted(&self) -> bool {
        self.refuted() > 0
    }

    /// How many pages have.
    pub fn refuted(&self) -> u64 {
        self.refuted.load(Ordering::Relaxed)
    }

    /// How many pages were looked at that the proof leaves out.
    pub fn looked(&self) -> u64 {
        self.looked.load(Ordering::Relaxed)
    }

    /// How many of them differ by what PostgreSQL does not log.
    pub fn unlogged(&self) -> u64 {
        self.unlogged.load(Ordering::Relaxed)
    }

    /// The first ones that have refuted it.
    pub fn refutations(&self) -> Vec<Refutation> {
        lock(&self.refutations).clone()
    }
}

const YOUNGER: &str = "the target's page is younger than the target's WAL";
const CHANGED_HERE: &str = "the primary changed the page, and its WAL does not say so";
const CHANGED_THERE: &str = "the target changed the page, and its WAL does not say so";
const DIFFERENT: &str = "the pages differ, and no WAL says so";

impl Reach {
    /// What two pages that no WAL names say of the proof.
    fn verdict(
        &self,
        source: Lsn,
        target: Lsn,
        is_equal: bool,
        is_logged_equal: impl FnOnce() -> bool,
    ) -> Verdict {
        if target > self.target_end {
            Verdict::Refuted(YOUNGER)
        } else if source > self.to {
            // changed since the backup began: replay brings it
            Verdict::Nothing
        } else if source > self.from {
            Verdict::Refuted(CHANGED_HERE)
        } else if target > self.from {
            Verdict::Refuted(CHANGED_THERE)
        } else if is_equal {
            Verdict::Nothing
        } else if is_logged_equal() {
            Verdict::Unlogged
        } else {
            Verdict::Refuted(DIFFERENT)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_contradicts_the_proof_refutes_it() {
        let reach = Reach { from: Lsn(100), to: Lsn(200), target_end: Lsn(150) };
        let verdict = |source, target, is_equal, is_logged_equal| {
            reach.verdict(Lsn(source), Lsn(target), is_equal, || is_logged_equal)
        };
        // unchanged since
        assert_eq!(verdict(100, 100, true, true), Verdict::Nothing);
        assert_eq!(verdict(0, 0, true, true), Verdict::Nothing);
        // one side has logged a hint, the other has not
        assert_eq!(verdict(90, 100, false, true), Verdict::Unlogged);
        assert_eq!(verdict(90, 90, false, true), Verdict::Unlogged);
        assert_eq!(verdict(90, 90, false, false), Verdict::Refuted(DIFFERENT));
        assert_eq!(verdict(90, 80, false, false), Verdict::Refuted(DIFFERENT));
        // equal pages that should have been listed are as bad
        assert_eq!(verdict(101, 101, true, true), Verdict::Refuted(CHANGED_HERE));
        assert_eq!(verdict(200, 90, false, false), Verdict::Refuted(CHANGED_HERE));
        assert_eq!(verdict(90, 101, false, true), Verdict::Refuted(CHANGED_THERE));
        assert_eq!(verdict(90, 151, false, true), Verdict::Refuted(YOUNGER));
        // the primary goes on meanwhile
        assert_eq!(verdict(201, 90, false, false), Verdict::Nothing);
        assert_eq!(verdict(201, 151, false, false), Verdict::Refuted(YOUNGER));
    }
}
