//! Is another server's WAL this server's, too? Its positions and the number of its timeline do not tell: two standbys that are
//! promoted begin the same timeline at the same place, and a clone of a primary goes on with the same one. The time in a
//! checkpoint, or in the record with which a timeline begins, does.

use std::ops::ControlFlow;

use pgdata::control_file::ControlFile;
use pgdata::wal::Lsn;

use super::lineage::Lineage;
use super::past::{Past, carries_a_time};
use super::walk::Wal;
use crate::error::Result;
use crate::sys::cancel::Cancel;

/// How far the record with the time may be, bytes. It is the first one, as a rule.
const NEAR: u64 = 1 << 20;

/// What WAL says of another server's records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Agreement {
    /// They are here, too.
    Same,
    /// Others are in their place.
    Other,
    /// The place is not here: WAL that was removed, or that belongs to no timeline of this history.
    Unknown,
}

impl Wal<'_> {
    /// Records that no other server has on its last timeline, if that is another one: its latest checkpoint or, if that was on an
    /// earlier timeline, those with which the last one begins. `None`: they are not there.
    pub fn landmark(
        &self,
        control: &ControlFile,
        history: &Lineage,
        cancel: &Cancel,
    ) -> Result<Option<Past>> {
        let timeline = history.timeline();
        let is_there = control.timeline == timeline;
        let from = if is_there { control.recovery.checkpoint_at } else { history.begin() };
        let limit = Lsn(from.0.saturating_add(NEAR));
        let mut end = None;
        let digest = self.digest_records(history, from, limit, cancel, |record| {
            if !carries_a_time(&record.effect) {
                return ControlFlow::Continue(());
            }
            end = Some(record.end);
            ControlFlow::Break(())
        })?;
        Ok(end.map(|to| Past { timeline, from, to, digest }))
    }

    /// Whether a server with this history, which has flushed its WAL up to `flushed`, has these records.
    pub fn agrees(
        &self,
        history: &Lineage,
        flushed: Lsn,
        landmark: &Past,
        cancel: &Cancel,
    ) -> Result<Agreement> {
        let Past { timeline, from, to, digest } = *landmark;
        let is_within = history.range(timeline).is_some_and(|(_, end)| to <= end.min(flushed));
        if !is_within {
            return Ok(Agreement::Unknown);
        }
        let read = self.read_to(history, from, to, Lsn(0), cancel)?;
        if read.is_some_and(|read| read.digest == digest) {
            return Ok(Agreement::Same);
        }
        // asked after it was read: a segment that was recycled meanwhile is not there any more
        Ok(if self.has_segments(history, from, to)? { Agreement::Other } else { Agreement::Unknown })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use pgdata::history::Ancestor;
    use pgdata::wal::sample::Writer;

    use super::super::tests::{BASE, Made, SEGMENT, commit};
    use super::*;

    fn writer() -> Writer {
        let mut writer = Writer::new(0xD110, SEGMENT, BASE);
        commit(&mut writer, 1);
        writer.record(10, 0, &[], &[1; 200]);
        writer
    }

    /// The server that wrote this, its checkpoint at a position on this timeline.
    fn server(writers: &[&Writer], timeline: u32, checkpoint: Lsn) -> Made {
        let mut made = Made::new();
        for writer in writers {
            made.write(writer, writer.timeline, BASE);
        }
        made.control.timeline = timeline;
        made.control.recovery.checkpoint_at = checkpoint;
        made
    }

    fn landmark(server: &Made, history: &Lineage) -> Option<Past> {
        server.wal().landmark(&server.control, history, &Cancel::new()).expect("readable")
    }

    fn agrees(server: &Made, history: &Lineage, flushed: Lsn, landmark: &Past) -> Agreement {
        server.wal().agrees(history, flushed, landmark, &Cancel::new()).expect("readable")
    }

    #[test]
    fn two_that_were_promoted_at_the_same_position_are_told_apart() {
        let common = writer();
        let history = Lineage::new(2, &[Ancestor { timeline: 1, end: common.position() }]);
        let promoted = |time| {
            let mut writer = common.clone();
            writer.timeline = 2;
            commit(&mut writer, time);
            commit(&mut writer, time);
            writer
        };
        let (one, other) = (promoted(2), promoted(3));
        let end = one.position();
        // its checkpoint is still on the timeline before
        let mark = landmark(&server(&[&common, &one], 1, BASE), &history).expect("it has one");
        assert_eq!((mark.timeline, mark.from), (2, common.position()));
        assert!(mark.to < end, "the first time will do");
        for (wal, answer) in [(&one, Agreement::Same), (&other, Agreement::Other)] {
            let primary = server(&[&common, wal], 2, BASE);
            assert_eq!(agrees(&primary, &history, end, &mark), answer);
            assert_eq!(agrees(&primary, &history, mark.to, &mark), answer);
            assert_eq!(
                agrees(&primary, &history, Lsn(mark.to.0 - 8), &mark),
                Agreement::Unknown,
                "not written"
            );
            let left = Lineage::new(3, &[Ancestor { timeline: 1, end }]);
            assert_eq!(agrees(&primary, &left, end, &mark), Agreement::Unknown, "not of its history");
            for timeline in [1, 2] {
                fs::remove_file(primary.place(timeline, BASE.0 / u64::from(SEGMENT))).expect("remove");
            }
            assert_eq!(agrees(&primary, &history, end, &mark), Agreement::Unknown, "removed");
        }
    }

    #[test]
    fn a_clone_that_went_on_by_itself_is_told_apart_by_its_checkpoint() {
        let common = writer();
        let history = Lineage::new(1, &[]);
        let went_on = |time| {
            let mut writer = common.clone();
            commit(&mut writer, time);
            writer
        };
        let (one, other) = (went_on(2), went_on(3));
        let mark = landmark(&server(&[&one], 1, common.position()), &history).expect("it has one");
        assert_eq!((mark.from, mark.to), (common.position(), one.position()));
        assert_eq!(agrees(&server(&[&one], 1, BASE), &history, mark.to, &mark), Agreement::Same);
        assert_eq!(agrees(&server(&[&other], 1, BASE), &history, mark.to, &mark), Agreement::Other);
        // what both have had says nothing
        let mark = landmark(&server(&[&one], 1, BASE), &history).expect("it has one");
        assert_eq!(agrees(&server(&[&other], 1, BASE), &history, one.position(), &mark), Agreement::Same);
    }

    #[test]
    fn without_a_time_there_is_no_landmark() {
        let mut common = writer();
        let at = common.position();
        common.record(10, 0, &[], &[1; 200]);
        let made = server(&[&common], 1, at);
        assert_eq!(landmark(&made, &Lineage::new(1, &[])), None);
        assert_eq!(landmark(&Made::new(), &Lineage::new(1, &[])), None, "no WAL");
    }
}
