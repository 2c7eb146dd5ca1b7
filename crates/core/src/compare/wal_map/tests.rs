//! What the tests of several modules share: a pg_wal that is made up.

use std::path::PathBuf;

use pgdata::control_file::{ControlFile, sample};
use pgdata::wal::record::rmgr;
use pgdata::wal::sample::Writer;
use pgdata::wal::{Lsn, segment_name};

use super::walk::Wal;

pub(super) const SEGMENT: u32 = 1 << 20;
pub(super) const BASE: Lsn = Lsn(3 << 20);

/// Segments, and the pg_control of the server whose they are.
pub(super) struct Made {
    pub(super) directory: tempfile::TempDir,
    pub(super) control: ControlFile,
}

impl Made {
    pub(super) fn new() -> Self {
        let mut control = ControlFile::parse(&sample(42)).expect("a sample");
        control.wal_segment_size = SEGMENT;
        (control.timeline, control.min_recovery_timeline) = (1, 0);
        control.recovery.checkpoint_at = BASE;
        Self { directory: tempfile::tempdir().expect("a directory"), control }
    }

    /// Writes what a server wrote on a timeline, from the segment of `from` on.
    pub(super) fn write(&self, writer: &Writer, timeline: u32, from: Lsn) {
        let bytes = writer.finish().bytes;
        let first = from.0 / u64::from(SEGMENT);
        for (segment, content) in (BASE.0 / u64::from(SEGMENT)..).zip(bytes.chunks(SEGMENT as usize)) {
            if segment >= first {
                std::fs::write(self.place(timeline, segment), content).expect("a segment");
            }
        }
    }

    pub(super) fn place(&self, timeline: u32, segment: u64) -> PathBuf {
        self.directory.path().join(segment_name(timeline, segment, SEGMENT))
    }

    pub(super) fn wal(&self) -> Wal<'_> {
        Wal::new(self.directory.path(), &self.control)
    }
}

pub(super) fn commit(writer: &mut Writer, time: u64) -> Lsn {
    writer.record(rmgr::XACT, 0x00, &[], &time.to_le_bytes())
}
