//! Is a timeline of another server the one that this server's history has left? Its number does not tell: two standbys that are
//! promoted begin the same timeline twice, even at the same position. The WAL just before the history left it does.
//!
//! The same question about the timeline that a standby is on itself, and the same answer: the last WAL that it has replayed.

use std::ops::ControlFlow;

use pgdata::history::Ancestor;
use pgdata::wal::Lsn;
use pgdata::wal::reader::Record;
use pgdata::wal::special::Effect;
use serde::{Deserialize, Serialize};

use super::coverage::behind_header;
use super::groups::hash_record;
use super::lineage::Lineage;
use super::walk::{Checked, Wal, each};
use crate::compare::digest::{ContentHash, DIGEST};
use crate::error::Result;
use crate::sys::cancel::Cancel;

/// How many segments before the last one of a timeline are looked at for a record that carries a time.
const EARLIER: u64 = 4;

/// Of how many timelines this is told at most.
const MOST: usize = 16;

/// Some WAL of a timeline: the last before a history left it, the last that was replayed, or a landmark.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Past {
    /// The timeline.
    pub timeline: u32,
    /// The records that begin from here on ..
    pub from: Lsn,
    /// .. up to here, where a record ends.
    pub to: Lsn,
    /// The digest of these records and their positions.
    pub digest: [u8; DIGEST],
}

/// Some records.
pub(super) struct Read {
    pub(super) digest: [u8; DIGEST],
    /// Whether one of the timeline's own carries a time. Two servers that went different ways may write the same records
    /// without a time at the same place, but hardly the same commit, promotion or checkpoint.
    is_stamped: bool,
}

impl Wal<'_> {
    /// The last WAL of the timelines that a history has left, newest first, as far as it is still there.
    pub fn pasts(&self, history: &Lineage, cancel: &Cancel) -> Result<Vec<Past>> {
        let mut pasts = Vec::new();
        for Ancestor { timeline, end } in history.ancestors().into_iter().rev().take(MOST) {
            let Some(past) = self.past(history, timeline, end, cancel)? else { break };
            pasts.push(past);
        }
        Ok(pasts)
    }

    /// The same of a standby, with that of the timeline it is on, as far as it has replayed it: `to` is where a record ends.
    pub fn pasts_of_standby(&self, history: &Lineage, to: Lsn, cancel: &Cancel) -> Result<Vec<Past>> {
        let own = self.past(history, history.timeline(), to, cancel)?;
        Ok(own.into_iter().chain(self.pasts(history, cancel)?).collect())
    }

    /// Whether the WAL here has the same records there, where the server's own `history` is on the timeline.
    pub fn has_past(&self, history: &Lineage, past: &Past, cancel: &Cancel) -> Result<bool> {
        let read = self.read_to(history, past.from, past.to, history.begin(), cancel)?;
        Ok(read.is_some_and(|read| read.is_stamped && read.digest == past.digest))
    }

    fn past(&self, history: &Lineage, timeline: u32, end: Lsn, cancel: &Cancel) -> Result<Option<Past>> {
        let begin = history.range(timeline).map_or(Lsn(0), |(begin, _)| begin);
        let size = self.segment_size();
        let last = end.0.saturating_sub(1) / size;
        for segment in (last.saturating_sub(EARLIER)..=last).rev() {
            let from = Lsn(segment * size);
            match self.read_to(history, from, end, begin, cancel)? {
                None => break,
                Some(Read { digest, is_stamped: true }) => {
                    return Ok(Some(Past { timeline, from, to: end, digest }));
                }
                Some(_) => {}
            }
        }
        Ok(None)
    }

    /// Reads the records that begin between two positions. `None`: they do not reach `to`, where one ends.
    pub(super) fn read_to(
        &self,
        history: &Lineage,
        from: Lsn,
        to: Lsn,
        begin: Lsn,
        cancel: &Cancel,
    ) -> Result<Option<Read>> {
        let (mut end, mut is_stamped) = (None, false);
        let digest = self.digest_records(history, from, to, cancel, |record| {
            end = Some(record.end);
            is_stamped |= record.start >= begin && carries_a_time(&record.effect);
            ControlFlow::Continue(())
        })?;
        let is_reached = end.is_some_and(|end| behind_header(end) == behind_header(to));
        Ok(is_reached.then_some(Read { digest, is_stamped }))
    }

    /// Digests the records that begin from `from` on and before `limit`, as far as they can be read, until one is enough for `see`.
    pub(super) fn digest_records(
        &self,
        history: &Lineage,
        from: Lsn,
        limit: Lsn,
        cancel: &Cancel,
        mut see: impl FnMut(&Record<'_>) -> ControlFlow<()>,
    ) -> Result<[u8; DIGEST]> {
        let mut reader = self.reader_of_page(history, from, limit)?;
        let (mut hash, mut checked) = (ContentHash::default(), Checked::new(cancel));
        // what is behind a record that cannot be read is not known, and then what is looked for is not reached
        let _malformed = each(&mut reader, |record| {
            if record.start >= from {
                hash_record(&mut hash, record);
                if see(record).is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
            checked.next()
        })?;
        Ok(hash.finish())
    }
}

pub(super) const fn carries_a_time(effect: &Effect) -> bool {
    matches!(effect, Effect::TransactionEnd { .. } | Effect::Promotion { .. } | Effect::Checkpoint { .. })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use pgdata::wal::sample::Writer;

    use super::super::tests::{BASE, Made, SEGMENT, commit};
    use super::*;

    impl Made {
        /// What was written, as files of a timeline.
        fn with(self, timeline: u32, writer: &Writer) -> Self {
            self.write(writer, timeline, BASE);
            self
        }

        fn pasts(&self, history: &Lineage) -> Vec<Past> {
            self.wal().pasts(history, &Cancel::new()).expect("readable")
        }

        fn has(&self, history: &Lineage, past: &Past) -> bool {
            self.wal().has_past(history, past, &Cancel::new()).expect("readable")
        }
    }

    fn writer() -> Writer {
        Writer::new(0xD110, SEGMENT, BASE)
    }

    /// WAL without a time.
    fn write_on(writer: &mut Writer, records: usize) {
        for _ in 0..records {
            writer.record(10, 0, &[], &[1; 200]);
        }
    }

    /// The asker's history, which left timeline 1 where the writer is.
    fn left(writer: &Writer) -> Lineage {
        Lineage::new(2, &[Ancestor { timeline: 1, end: writer.position() }])
    }

    #[test]
    fn the_same_wal_up_to_the_switch_is_the_past_whatever_follows() {
        let mut common = writer();
        commit(&mut common, 1);
        write_on(&mut common, 50);
        let history = left(&common);
        let (mut next, mut old) = (common.clone(), common.clone());
        next.timeline = 2;
        commit(&mut next, 2);
        commit(&mut old, 3);
        write_on(&mut old, 9000);
        // the new timeline's file begins with a copy; the old timeline's own may be there as well, or not
        let asker = Made::new().with(2, &next);
        let [past] = asker.pasts(&history).try_into().expect("of one timeline");
        assert_eq!(asker.with(1, &common).pasts(&history), std::slice::from_ref(&past));
        let own = Lineage::new(1, &[]);
        assert!(Made::new().with(1, &old).has(&own, &past));
        assert!(!Made::new().has(&own, &past), "its WAL is gone");
        // a clone that goes on with the same timeline, and wrote other records in the same place
        let mut other = writer();
        commit(&mut other, 4);
        write_on(&mut other, 60);
        assert!(!Made::new().with(1, &other).has(&own, &past));
        // one that has not come so far
        let mut behind = writer();
        commit(&mut behind, 1);
        write_on(&mut behind, 49);
        assert!(!Made::new().with(1, &behind).has(&own, &past));
        assert!(!Made::new().with(1, &old).has(&own, &Past { to: past.from, ..past }), "no records");
    }

    #[test]
    fn records_without_a_time_prove_nothing() {
        let mut common = writer();
        commit(&mut common, 1);
        common.switch();
        write_on(&mut common, 5);
        let history = left(&common);
        let asker = Made::new().with(1, &common);
        let [past] = asker.pasts(&history).try_into().expect("of one timeline");
        assert_eq!(past.from, BASE, "the segment before has a commit");
        fs::remove_file(asker.place(1, 3)).expect("remove");
        assert_eq!(asker.pasts(&history), []);
        let own = Lineage::new(1, &[]);
        let target = Made::new().with(1, &common);
        assert!(target.has(&own, &past));
        // a commit from before the timeline began says nothing about the timeline
        let later = Lineage::new(1, &[Ancestor { timeline: 0, end: Lsn(4 << 20) }]);
        assert!(!target.has(&later, &past));
    }

    #[test]
    fn what_a_standby_has_replayed_is_the_past_of_its_own_timeline() {
        let mut primary = writer();
        commit(&mut primary, 1);
        write_on(&mut primary, 50);
        let (replayed, replica) = (primary.position(), primary.clone());
        // it has received more than it has replayed
        write_on(&mut primary, 10);
        let standby = Made::new().with(1, &primary);
        write_on(&mut primary, 9000);
        let history = Lineage::new(1, &[]);
        let of_standby = |standby: &Made, history: &Lineage, to| {
            standby.wal().pasts_of_standby(history, to, &Cancel::new()).expect("readable")
        };
        let [past] = of_standby(&standby, &history, replayed).try_into().expect("of one timeline");
        assert_eq!((past.timeline, past.to), (1, replayed));
        assert!(Made::new().with(1, &primary).has(&history, &past), "its primary");
        assert!(!Made::new().with(1, &writer()).has(&history, &past), "nothing was written there");
        // a server that went another way on a timeline of the same number
        let mut other = writer();
        commit(&mut other, 2);
        write_on(&mut other, 70);
        assert!(!Made::new().with(1, &other).has(&history, &past));
        // one that parted just before: a commit is not written twice
        let mut parted = replica;
        commit(&mut parted, 3);
        let to = parted.position();
        let [past] = of_standby(&Made::new().with(1, &parted), &history, to).try_into().expect("one");
        assert!(!Made::new().with(1, &primary).has(&history, &past));
        assert_eq!(of_standby(&standby, &history, Lsn(to.0 + 8)), [], "no record ends there");
    }

    #[test]
    fn the_timelines_before_are_a_standbys_pasts_as_well() {
        let mut common = writer();
        commit(&mut common, 1);
        let history = left(&common);
        let mut next = common.clone();
        next.timeline = 2;
        let standby = Made::new().with(1, &common).with(2, &next);
        let pasts = |to| standby.wal().pasts_of_standby(&history, to, &Cancel::new()).expect("readable");
        let timelines = |pasts: Vec<Past>| pasts.iter().map(|past| past.timeline).collect::<Vec<_>>();
        assert_eq!(timelines(pasts(next.position())), [1], "it has no record of its own yet");
        commit(&mut next, 2);
        standby.write(&next, 2, BASE);
        assert_eq!(timelines(pasts(next.position())), [2, 1]);
    }

    #[test]
    fn a_switch_at_the_beginning_of_a_segment_is_proved_by_the_segment_before() {
        let mut common = writer();
        commit(&mut common, 1);
        common.switch();
        let history = left(&common);
        assert_eq!(history.begin(), Lsn(4 << 20));
        let [past] = Made::new().with(1, &common).pasts(&history).try_into().expect("of one timeline");
        assert!(Made::new().with(1, &common).has(&Lineage::new(1, &[]), &past));
    }
}
