//! How far two servers have the same history: as far as their WAL is the same, byte by byte.
//!
//! Equal timelines, switch points, checkpoints or system identifiers prove nothing: two standbys that are promoted at one
//! position begin the same timeline twice, and the copy of a storage goes on where its original does. Records that carry
//! a time in microseconds are not written twice, and two histories that have parted do not meet again.

use std::path::Path;

use pgdata::history::{self, Ancestor};
use pgdata::wal::Lsn;

use super::groups::{Group, Grouping};
use crate::error::{Error, Kind, Result};
use crate::sys::small_file;

/// Longest history file that is read, bytes.
const MAX_HISTORY: usize = 1 << 20;

/// What both have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Common {
    /// Where the WAL begins that both still have.
    pub from: Lsn,
    /// Where the last record ends that is the same.
    pub to: Lsn,
    /// Where the last such record begins that carries a time.
    pub stamped: Option<Lsn>,
}

/// What has to be compared next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Next {
    /// The records that begin from here on, on both sides ..
    pub from: Lsn,
    /// .. to here.
    pub to: Lsn,
    /// How they are digested.
    pub grouping: Grouping,
}

/// Compares groups of records, finer and finer, until the first difference is found.
///
/// It begins with [`Grouping::Windows`] of all that the target has, and of what the source has up to the target's end.
#[derive(Debug)]
pub struct Search {
    common: Option<Common>,
    grouping: Grouping,
}

impl Default for Search {
    fn default() -> Self {
        Self { common: None, grouping: Grouping::Windows }
    }
}

impl Search {
    /// Compares the groups that were wanted; `None`: it is found, see [`Self::found`].
    pub fn compare(&mut self, source: &[Group], target: &[Group]) -> Option<Next> {
        let (mut ours, mut theirs) = (source, target);
        if self.common.is_none() {
            match first_pair(source, target) {
                Some((one, other)) => (ours, theirs) = (&source[one..], &target[other..]),
                None => return self.refine(overlap(source, target)?),
            }
        }
        while let (Some((one, our_rest)), Some((other, their_rest))) =
            (ours.split_first(), theirs.split_first())
        {
            if (one.begin, one.end, one.digest) != (other.begin, other.end, other.digest) {
                return self.refine((one.begin.min(other.begin), one.end.max(other.end)));
            }
            let common = self.common.get_or_insert(Common { from: one.begin, to: one.end, stamped: None });
            common.to = one.end;
            // both sides have digested the same: ours says it as well as theirs
            common.stamped = one.stamped.or(common.stamped);
            (ours, theirs) = (our_rest, their_rest);
        }
        None
    }

    /// What both have, once nothing has to be compared any more; `None`: no record.
    pub const fn found(&self) -> Option<Common> {
        self.common
    }

    fn refine(&mut self, (from, to): (Lsn, Lsn)) -> Option<Next> {
        self.grouping = self.grouping.finer()?;
        Some(Next { from, to, grouping: self.grouping })
    }
}

/// The first two groups that begin with the same record.
fn first_pair(source: &[Group], target: &[Group]) -> Option<(usize, usize)> {
    let (mut one, mut other) = (0, 0);
    while let (Some(ours), Some(theirs)) = (source.get(one), target.get(other)) {
        match ours.begin.cmp(&theirs.begin) {
            std::cmp::Ordering::Less => one += 1,
            std::cmp::Ordering::Greater => other += 1,
            std::cmp::Ordering::Equal => return Some((one, other)),
        }
    }
    None
}

/// Where both have records, if they do.
fn overlap(source: &[Group], target: &[Group]) -> Option<(Lsn, Lsn)> {
    let from = source.first()?.begin.max(target.first()?.begin);
    let to = source.last()?.end.min(target.last()?.end);
    (from < to).then_some((from, to))
}

/// A timeline, and those from which it has sprung.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Lineage {
    /// The timelines and where each ends, oldest first.
    ancestors: Vec<(u32, Lsn)>,
    /// The one that goes on.
    timeline: u32,
}

impl Lineage {
    /// A timeline and what it has sprung from, oldest first.
    pub fn new(timeline: u32, ancestors: &[Ancestor]) -> Self {
        Self { ancestors: ancestors.iter().map(|one| (one.timeline, one.end)).collect(), timeline }
    }

    /// The history of a timeline, as its file in a pg_wal says; the first one needs none. `None` if there is no file.
    pub fn read(pg_wal: &Path, timeline: u32) -> Result<Option<Self>> {
        let file = pg_wal.join(format!("{timeline:08X}.history"));
        let text = small_file::read(&file, MAX_HISTORY).map_err(Error::on_path("read file", &file))?;
        let Some(text) = text else { return Ok((timeline == 1).then(|| Self::new(timeline, &[]))) };
        let ancestors = history::parse(&text).map_err(|invalid| {
            Error::new(Kind::Unsupported, format!("invalid history file \"{}\"", file.display()))
                .detail(format!("{invalid}."))
        })?;
        Ok(Some(Self::new(timeline, &ancestors)))
    }

    /// The timeline that goes on.
    pub const fn timeline(&self) -> u32 {
        self.timeline
    }

    /// Where it was begun; 0 if it has sprung from none.
    pub fn begin(&self) -> Lsn {
        self.ancestors.last().map_or(Lsn(0), |(_, end)| *end)
    }

    /// The timeline on which a record lies that ends at `end`, and where that timeline begins.
    pub fn at(&self, end: Lsn) -> (u32, Lsn) {
        let mut begin = Lsn(0);
        for (timeline, until) in &self.ancestors {
            if end <= *until {
                return (*timeline, begin);
            }
            begin = *until;
        }
        (self.timeline, begin)
    }

    /// What the timeline has sprung from, oldest first.
    pub fn ancestors(&self) -> Vec<Ancestor> {
        self.ancestors.iter().map(|(timeline, end)| Ancestor { timeline: *timeline, end: *end }).collect()
    }

    /// Which part of the history a timeline is: from where to where, the end exclusive.
    pub fn range(&self, timeline: u32) -> Option<(Lsn, Lsn)> {
        let mut begin = Lsn(0);
        for (ancestor, end) in &self.ancestors {
            if *ancestor == timeline {
                return Some((begin, *end));
            }
            begin = *end;
        }
        (timeline == self.timeline).then_some((begin, Lsn(u64::MAX)))
    }

    /// The history of a timeline that it is, or was, on.
    pub fn up_to(&self, timeline: u32) -> Option<Self> {
        let before = self.ancestors.iter().position(|(ancestor, _)| *ancestor == timeline);
        let before = before.or((timeline == self.timeline).then_some(self.ancestors.len()))?;
        Some(Self { ancestors: self.ancestors[..before].to_vec(), timeline })
    }

    /// Where this history parts from another one, as their files say: the end of the last timeline that they share.
    pub fn parts_from(&self, other: &Self) -> Lsn {
        let ours = self.ancestors.iter().copied().chain([(self.timeline, Lsn(u64::MAX))]);
        let theirs = other.ancestors.iter().copied().chain([(other.timeline, Lsn(u64::MAX))]);
        let mut end = Lsn(0);
        for (one, another) in ours.zip(theirs) {
            if one.0 != another.0 {
                break;
            }
            end = one.1.min(another.1);
            if one.1 != another.1 {
                break;
            }
        }
        end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lineage(ancestors: &[(u32, u64)], timeline: u32) -> Lineage {
        let ancestors = ancestors.iter().map(|&(timeline, end)| (timeline, Lsn(end))).collect();
        Lineage { ancestors, timeline }
    }

    #[test]
    fn positions_belong_to_timelines() {
        let lineage = lineage(&[(1, 100), (3, 200)], 4);
        assert_eq!(lineage.at(Lsn(100)), (1, Lsn(0)));
        assert_eq!(lineage.at(Lsn(101)), (3, Lsn(100)));
        assert_eq!(lineage.at(Lsn(201)), (4, Lsn(200)));
        assert_eq!((lineage.begin(), lineage.range(3)), (Lsn(200), Some((Lsn(100), Lsn(200)))));
        assert_eq!((lineage.range(2), lineage.range(4)), (None, Some((Lsn(200), Lsn(u64::MAX)))));
        assert_eq!(lineage.up_to(3), Some(self::lineage(&[(1, 100)], 3)));
        assert_eq!((lineage.up_to(4).as_ref(), lineage.up_to(2)), (Some(&lineage), None));
    }

    #[test]
    fn histories_part_where_their_files_say() {
        let one = lineage(&[(1, 100), (2, 200)], 3);
        assert_eq!(one.parts_from(&one).0, u64::MAX);
        assert_eq!(one.parts_from(&lineage(&[], 1)).0, 100);
        assert_eq!(one.parts_from(&lineage(&[(1, 100)], 2)).0, 200);
        assert_eq!(one.parts_from(&lineage(&[(1, 100), (2, 150)], 4)).0, 150);
        assert_eq!(one.parts_from(&lineage(&[(1, 90)], 2)).0, 90);
        assert_eq!(one.parts_from(&lineage(&[], 7)).0, 0);
    }
}
