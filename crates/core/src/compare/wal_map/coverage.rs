//! Which WAL of a primary's history has been read, itself or as summaries.

use pgdata::wal::Lsn;
use pgdata::wal::page::PAGE_SIZE;
use pgdata::wal_summary::Name;

use super::facts::ChainFacts;
use super::lineage::Lineage;

/// Parts of a history, in order and apart.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Coverage {
    parts: Vec<(Lsn, Lsn)>,
}

impl Coverage {
    /// WAL that was read along the history.
    pub fn add_wal(&mut self, facts: &ChainFacts) {
        if let Some(from) = facts.from {
            self.add(from, facts.end);
        }
    }

    /// A summary that was read: of its timeline's part of the history.
    pub fn add_summary(&mut self, name: &Name, history: &Lineage) {
        if let Some((from, to)) = of_history(name, history) {
            self.add(from, to);
        }
    }

    /// The first position between two that is missing.
    pub fn first_hole(&self, from: Lsn, to: Lsn) -> Option<Lsn> {
        let at = self.end_of(from);
        (behind_header(at) < behind_header(to)).then_some(at)
    }

    /// To where nothing is missing from a position on.
    pub fn end_of(&self, from: Lsn) -> Lsn {
        let mut at = from;
        for (begin, end) in &self.parts {
            if behind_header(*begin) <= behind_header(at) && at < *end {
                at = *end;
            }
        }
        at
    }

    fn add(&mut self, from: Lsn, to: Lsn) {
        if from < to {
            self.parts.push((from, to));
            self.parts.sort_unstable();
        }
    }
}

/// Where records go on at a position. One that ends with a page is followed by one that begins behind the next page's header,
/// of 24 or 40 bytes, in which none begins.
pub(super) const fn behind_header(at: Lsn) -> Lsn {
    const HEADER: u64 = 40;
    let offset = at.0 % PAGE_SIZE as u64;
    if offset < HEADER { Lsn(at.0 - offset + HEADER) } else { at }
}

/// The part of a history of which a summary tells.
pub(super) fn of_history(name: &Name, history: &Lineage) -> Option<(Lsn, Lsn)> {
    let (begin, end) = history.range(name.timeline)?;
    let (from, to) = (name.start.max(begin), name.end.min(end));
    (from < to).then_some((from, to))
}

#[cfg(test)]
mod tests {
    use pgdata::history::Ancestor;

    use super::*;

    #[test]
    fn a_page_header_is_no_hole() {
        let mut coverage = Coverage::default();
        coverage.add(Lsn(0x10_0048), Lsn(0x20_0000));
        assert_eq!(coverage.first_hole(Lsn(0x10_0048), Lsn(0x20_0028)), None, "a segment begins");
        coverage.add(Lsn(0x20_0028), Lsn(0x20_2000));
        coverage.add(Lsn(0x20_2018), Lsn(0x20_3000));
        assert_eq!(coverage.first_hole(Lsn(0x10_0048), Lsn(0x20_3000)), None, "a page begins");
        coverage.add(Lsn(0x20_3010), Lsn(0x20_4000));
        assert_eq!(coverage.first_hole(Lsn(0x20_0000), Lsn(0x20_4000)), Some(Lsn(0x20_3000)));
        assert_eq!(coverage.end_of(Lsn(0x10_0048)), Lsn(0x20_3000));
        assert_eq!(coverage.end_of(Lsn(0x20_3000)), Lsn(0x20_3000), "nothing is known of what follows");
    }

    #[test]
    fn holes_are_found_per_timeline() {
        let history = Lineage::new(2, &[Ancestor { timeline: 1, end: Lsn(100_000) }]);
        let mut coverage = Coverage::default();
        assert_eq!(coverage.first_hole(Lsn(10_000), Lsn(20_000)), Some(Lsn(10_000)));
        assert_eq!(coverage.first_hole(Lsn(20_000), Lsn(20_000)), None);
        let mut add = |timeline, start: u64, end: u64| {
            let name = Name { timeline, start: Lsn(start * 1000), end: Lsn(end * 1000) };
            coverage.add_summary(&name, &history);
            coverage.first_hole(Lsn(10_000), Lsn(150_000)).map(|lsn| lsn.0 / 1000)
        };
        assert_eq!(add(1, 50, 120), Some(10));
        assert_eq!(add(1, 0, 50), Some(100), "what lies behind the timeline's end is another history's");
        assert_eq!(add(3, 100, 150), Some(100), "another timeline");
        assert_eq!(add(2, 90, 140), Some(140));
        assert_eq!(add(2, 141, 200), Some(140));
        assert_eq!(add(2, 130, 145), None);
    }
}
