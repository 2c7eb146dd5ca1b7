//! Which WAL of a primary's history has been read, itself or as summaries.

use pgdata::wal::Lsn;
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
        let mut at = from;
        for (begin, end) in &self.parts {
            if *begin <= at && at < *end {
                at = *end;
            }
        }
        (at < to).then_some(at)
    }

    fn add(&mut self, from: Lsn, to: Lsn) {
        if from < to {
            self.parts.push((from, to));
            self.parts.sort_unstable();
        }
    }
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
    fn holes_are_found_per_timeline() {
        let history = Lineage::new(2, &[Ancestor { timeline: 1, end: Lsn(100) }]);
        let mut coverage = Coverage::default();
        assert_eq!(coverage.first_hole(Lsn(10), Lsn(20)), Some(Lsn(10)));
        assert_eq!(coverage.first_hole(Lsn(20), Lsn(20)), None);
        let mut add = |timeline, start, end| {
            let name = Name { timeline, start: Lsn(start), end: Lsn(end) };
            coverage.add_summary(&name, &history);
            coverage.first_hole(Lsn(10), Lsn(150)).map(|lsn| lsn.0)
        };
        assert_eq!(add(1, 50, 120), Some(10));
        assert_eq!(add(1, 0, 50), Some(100), "what lies behind the timeline's end is another history's");
        assert_eq!(add(3, 100, 150), Some(100), "another timeline");
        assert_eq!(add(2, 90, 140), Some(140));
        assert_eq!(add(2, 141, 200), Some(140));
        assert_eq!(add(2, 130, 145), None);
    }
}
