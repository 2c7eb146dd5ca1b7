//! WAL as it arrives: written into segments of the target's pg_wal, made durable, and told how far it is.
//!
//! What may come is what follows: the position of each piece is the end of the one before. So nothing that a sender says
//! leaves a gap, goes back, or leads to another file than those of this run's timeline.

use std::fs::File;
use std::os::unix::fs::FileExt;

use pgdata::wal::page::{LONG_HEADER, PageHeader, SegmentHeader};
use pgdata::wal::{Lsn, parse_segment_name, segment_name, segment_start};
use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::identity::Installed;
use super::incoming::PERMISSIONS;
use crate::data_directory::{DataDirectory, Stat};
use crate::error::{Error, Kind, Result};
use crate::manifest::path::RelPath;
use crate::sys::size::pretty;
use crate::sys::space::Space;
use crate::wire::protocol::message::WalStart;
use crate::wire::protocol::wal::WalTail;

/// What arrives is made durable after so many bytes, and at the end of each segment.
const SYNC: u64 = 16 << 20;

/// The segments that PostgreSQL can have, bytes (`IsValidWalSegSize`).
const SEGMENT_SIZES: std::ops::RangeInclusive<u32> = 1 << 20..=1 << 30;

/// What need not be archived has an empty file there, of its name and this ending.
const ARCHIVE_STATUS: &str = "pg_wal/archive_status";
const DONE: &str = ".done";

/// The directories that a pg_wal may have.
const DIRECTORIES: [&str; 2] = [ARCHIVE_STATUS, "pg_wal/summaries"];

/// Takes the WAL of one run.
pub(super) struct WalSink {
    start: WalStart,
    system_identifier: u64,
    /// Bytes that stay free on the file system of pg_wal.
    kept: u64,
    /// Where the next piece begins.
    position: Lsn,
    /// Everything before is durable.
    durable: Lsn,
    open: Option<Segment>,
    /// Complete segments, as they were left.
    complete: Vec<Installed>,
    is_closed: bool,
}

/// The segment that is being written.
struct Segment {
    path: RelPath,
    file: File,
}

impl WalSink {
    /// Refuses a beginning that no server's WAL has. Nothing is written yet.
    pub(super) fn new(mut start: WalStart, system_identifier: u64, kept: u64) -> Result<Self> {
        let size = start.segment_size;
        let is_size = SEGMENT_SIZES.contains(&size) && size.is_power_of_two();
        if !is_size || start.timeline == 0 || segment_start(start.from, size) != start.from {
            let message =
                format!("WAL of timeline {} from {} in segments of {size} bytes", start.timeline, start.from);
            return Err(out_of_place(message));
        }
        for directory in &mut start.directories {
            if !DIRECTORIES.contains(&directory.path.as_str()) {
                return Err(out_of_place(format!("\"{}\" is no directory of WAL", directory.path)));
            }
            directory.mode &= PERMISSIONS;
        }
        start.mode &= PERMISSIONS;
        let (position, durable) = (start.from, start.from);
        let complete = Vec::new();
        Ok(Self { start, system_identifier, kept, position, durable, open: None, complete, is_closed: false })
    }

    /// Makes the directories of pg_wal, which is empty.
    pub(super) fn make_directories(&self, target: &DataDirectory) -> Result<()> {
        let mut directories = self.start.directories.iter();
        directories.try_for_each(|directory| target.make_directory(&directory.path, directory.mode))
    }

    /// Everything before is durable.
    pub(super) const fn durable(&self) -> Lsn {
        self.durable
    }

    /// Whether something in pg_wal came from this run.
    pub(super) fn has(&self, path: &RelPath) -> bool {
        let (size, position) = (self.start.segment_size, self.position.0);
        let segment = match path.parent() {
            Some("pg_wal") => Some(path.file_name()),
            Some(ARCHIVE_STATUS) => path.file_name().strip_suffix(DONE),
            _ => None,
        };
        let named = segment.and_then(|name| parse_segment_name(name, size));
        let is_own = named.is_some_and(|(timeline, number)| {
            let begin = number * u64::from(size);
            timeline == self.start.timeline && (self.start.from.0..position).contains(&begin)
        });
        is_own || self.start.directories.iter().any(|directory| directory.path == *path)
    }

    /// Writes the next piece. Returns how far everything is durable, if that has changed.
    pub(super) fn write(
        &mut self,
        target: &DataDirectory,
        tail: &WalTail,
        content: &[u8],
    ) -> Result<Option<Lsn>> {
        let size = u64::from(self.start.segment_size);
        let (begin, end) = (tail.position, Lsn(tail.position.0 + u64::from(tail.span)));
        if self.is_closed {
            return Err(out_of_place("WAL after its end"));
        }
        if begin != self.position {
            return Err(out_of_place(format!("WAL at {begin} where {} was awaited", self.position)));
        }
        let offset = begin.0 % size;
        if offset + u64::from(tail.span) > size || content.len() > tail.span as usize {
            return Err(out_of_place(format!("{} bytes of WAL at {begin}", tail.span)));
        }
        let segment = match &self.open {
            Some(segment) => segment,
            None => {
                self.demand_header(begin, content)?;
                let made = self.create(target, begin)?;
                self.open.insert(made)
            }
        };
        let Segment { path, file } = segment;
        file.write_all_at(content, offset)
            .map_err(Error::on(format_args!("write file \"{path}\" of the target")))?;
        self.position = end;
        if end.0.is_multiple_of(size) {
            self.complete_segment(target)?;
        } else if end.0 - self.durable.0 >= SYNC {
            file.sync_data().map_err(Error::on(format_args!("sync file \"{path}\" of the target")))?;
        } else {
            return Ok(None);
        }
        self.durable = end;
        Ok(Some(end))
    }

    /// Makes the segment durable that has come to its end. The primary archives its own WAL: a promoted standby need not archive it
    /// again, so it is marked as archived, which lasts from the end of the run on.
    fn complete_segment(&mut self, target: &DataDirectory) -> Result<()> {
        let Some(Segment { path, file }) = self.open.take() else { return Ok(()) };
        file.sync_all().map_err(Error::on(format_args!("sync file \"{path}\" of the target")))?;
        let stat =
            Stat::of_file(&file).map_err(Error::on(format_args!("stat file \"{path}\" of the target")))?;
        if self.start.directories.iter().any(|directory| directory.path.as_str() == ARCHIVE_STATUS) {
            let done = RelPath::parse(&format!("{ARCHIVE_STATUS}/{}{DONE}", path.file_name()))?;
            let marked = target.create(&done, self.start.mode)?;
            marked.sync_all().map_err(Error::on(format_args!("sync file \"{done}\" of the target")))?;
        }
        self.complete.push((path, stat.stamp));
        Ok(())
    }

    /// No WAL comes any more. Fails unless all of it up to `end` is there and durable; returns its files.
    pub(super) fn finish(&mut self, end: Lsn) -> Result<Vec<Installed>> {
        self.is_closed = true;
        if self.open.is_some() || self.durable != end || end <= self.start.from {
            let message = format!("the WAL ends at {} and not at {end}", self.position);
            return Err(out_of_place(message));
        }
        Ok(std::mem::take(&mut self.complete))
    }

    /// The first page of a segment says whose it is, and where it belongs.
    fn demand_header(&self, begin: Lsn, content: &[u8]) -> Result<()> {
        let wanted = SegmentHeader {
            system_identifier: self.system_identifier,
            segment_size: self.start.segment_size,
        };
        let header = content.get(..LONG_HEADER).map(PageHeader::parse);
        match header {
            Some(Ok(header)) if header.address == begin && header.segment == Some(wanted) => Ok(()),
            Some(Err(error)) => Err(out_of_place(format!("the segment at {begin} cannot be read: {error}"))),
            _ => Err(out_of_place(format!("what should be the segment at {begin} is another one"))),
        }
    }

    /// Makes a segment, of zeros: the server recycles these files and relies on their space.
    fn create(&self, target: &DataDirectory, begin: Lsn) -> Result<Segment> {
        let WalStart { timeline, segment_size, mode, .. } = self.start;
        let directory = RelPath::parse("pg_wal")?;
        let size = u64::from(segment_size);
        self.demand_room(target, &directory, size)?;
        let path = directory.join(&segment_name(timeline, begin.0 / size, segment_size))?;
        let file = target.create(&path, mode)?;
        let failed =
            |error: Errno| Error::io(format_args!("allocate \"{path}\" on the target"), &error.into());
        match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, size) {
            Ok(()) => {}
            // not every file system can
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => rustix::fs::ftruncate(&file, size).map_err(failed)?,
            Err(error) => return Err(failed(error)),
        }
        rustix::fs::fchmod(&file, rustix::fs::Mode::from_raw_mode(mode)).map_err(failed)?;
        target.sync_directory(&directory)?;
        Ok(Segment { path, file })
    }

    /// Fails while there still is some room: a disk that is full to the last byte harms others.
    fn demand_room(&self, target: &DataDirectory, directory: &RelPath, size: u64) -> Result<()> {
        let space =
            Space::of(target.enter(directory)?).map_err(Error::on("ask for the target's free space"))?;
        if space.free >= size.saturating_add(self.kept) {
            return Ok(());
        }
        Err(Error::new(Kind::DiskFull, "not enough space for WAL in pg_wal on the target")
            .detail(format!(
                "{} are left, of which {} stay free; {} of WAL have come since the backup started.",
                pretty(space.free),
                pretty(self.kept),
                pretty(self.position.0 - self.start.from.0),
            ))
            .hint(
                "Make room on the file system of the target's pg_wal for what the primary writes during a recovery, or \
                 raise max_rate; then run the recovery again: it sends only what is missing.",
            ))
    }
}

fn out_of_place(message: impl Into<String>) -> Error {
    Error::new(Kind::ProtocolViolation, message)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::protocol::data::Codec;

    const SEGMENT: u32 = 1 << 20;
    const SYSTEM: u64 = 7;

    fn start(segment_size: u32) -> WalStart {
        let from = Lsn(3 * u64::from(segment_size));
        WalStart { timeline: 2, segment_size, from, mode: 0o640, directories: Vec::new() }
    }

    /// An empty pg_wal, and what is written into it.
    fn target() -> (tempfile::TempDir, DataDirectory) {
        let top = tempfile::tempdir().expect("temporary directory");
        std::fs::create_dir(top.path().join("pg_wal")).expect("make");
        let target = DataDirectory::open(top.path()).expect("open");
        (top, target)
    }

    fn sink(segment_size: u32) -> WalSink {
        WalSink::new(start(segment_size), SYSTEM, 0).expect("valid")
    }

    /// So many segments of WAL, with a header each.
    fn wal(segment_size: u32, segments: usize, byte: u8) -> Vec<u8> {
        let mut wal = vec![byte; segment_size as usize * segments];
        for (number, segment) in wal.chunks_mut(segment_size as usize).enumerate() {
            let address = (3 + number as u64) * u64::from(segment_size);
            segment[..LONG_HEADER].fill(0);
            segment[..2].copy_from_slice(&0xD110_u16.to_le_bytes());
            segment[2] = 2;
            segment[8..16].copy_from_slice(&address.to_le_bytes());
            segment[24..32].copy_from_slice(&SYSTEM.to_le_bytes());
            segment[32..36].copy_from_slice(&segment_size.to_le_bytes());
            segment[36..40].copy_from_slice(&8192_u32.to_le_bytes());
        }
        wal
    }

    fn write(
        sink: &mut WalSink,
        target: &DataDirectory,
        position: Lsn,
        content: &[u8],
    ) -> Result<Option<Lsn>> {
        let length = u32::try_from(content.len()).expect("short");
        sink.write(target, &WalTail { position, span: length, length, codec: Codec::Plain }, content)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// However WAL is cut into pieces, it is what was sent, and what is durable follows what was written.
        #[test]
        fn pieces_of_any_size_become_whole_segments(cuts in prop::collection::vec(40_usize..200_000, 1..40)) {
            let (top, target) = target();
            let (mut sink, wal) = (sink(SEGMENT), wal(SEGMENT, 3, 9));
            let from = sink.durable();
            let (mut at, mut durable) = (0, from);
            let mut cuts = cuts.iter().cycle();
            while at < wal.len() {
                let left = SEGMENT as usize - at % SEGMENT as usize;
                let length = cuts.next().map_or(left, |cut| left.min(*cut));
                let now = write(&mut sink, &target, Lsn(from.0 + at as u64), &wal[at..at + length]).expect("follows");
                at += length;
                prop_assert_eq!(now.is_some(), at.is_multiple_of(SEGMENT as usize));
                prop_assert!(now.is_none_or(|now| now > durable && now.0 == from.0 + at as u64));
                durable = now.unwrap_or(durable);
                prop_assert_eq!(sink.durable(), durable);
            }
            let written = sink.finish(Lsn(from.0 + wal.len() as u64)).expect("complete");
            for (number, (path, stamp)) in written.iter().enumerate() {
                prop_assert_eq!(path.as_str(), format!("pg_wal/{}", segment_name(2, 3 + number as u64, SEGMENT)));
                let content = std::fs::read(top.path().join(path)).expect("read");
                prop_assert!(content == wal[number * SEGMENT as usize..][..SEGMENT as usize]);
                prop_assert_eq!(&target.stat(path).expect("stat").expect("there").stamp, stamp);
            }
            prop_assert_eq!(written.len(), 3);
        }
    }

    #[test]
    fn what_follows_the_content_are_zeros_whatever_was_there() {
        let (top, target) = target();
        let mut sink = sink(SEGMENT);
        let name = segment_name(2, 3, SEGMENT);
        std::fs::write(top.path().join("pg_wal").join(&name), vec![5; 2 * SEGMENT as usize]).expect("write");
        let from = sink.durable();
        let header = &wal(SEGMENT, 1, 1)[..LONG_HEADER];
        let length = u32::try_from(header.len()).expect("short");
        let tail = WalTail { position: from, span: SEGMENT, length, codec: Codec::Plain };
        assert_eq!(sink.write(&target, &tail, header).expect("a segment"), Some(Lsn(4 * u64::from(SEGMENT))));
        let content = std::fs::read(top.path().join("pg_wal").join(&name)).expect("read");
        assert_eq!(content.len(), SEGMENT as usize);
        assert!(content[..LONG_HEADER] == *header && content[LONG_HEADER..].iter().all(|byte| *byte == 0));
        let stat = target.stat(&RelPath::parse(&format!("pg_wal/{name}")).expect("valid")).expect("stat");
        assert_eq!(stat.expect("there").mode, 0o640);
    }

    #[test]
    fn only_what_follows_is_taken() {
        let (_top, target) = target();
        let mut sink = sink(SEGMENT);
        let (from, wal) = (sink.durable(), wal(SEGMENT, 2, 1));
        let at = |offset: u64| Lsn(from.0 + offset);
        let refused = |sink: &mut WalSink, position, content: &[u8]| {
            write(sink, &target, position, content).map_err(|error| error.kind)
                == Err(Kind::ProtocolViolation)
        };
        assert!(refused(&mut sink, at(8192), &wal[8192..16384]), "it begins at the beginning");
        write(&mut sink, &target, from, &wal[..8192]).expect("the beginning");
        assert!(refused(&mut sink, from, &wal[..8192]), "back");
        assert!(refused(&mut sink, at(8193), &wal[8193..9000]), "a gap");
        assert!(refused(&mut sink, at(8192), &wal[8192..SEGMENT as usize + 1]), "beyond the segment");
        write(&mut sink, &target, at(8192), &wal[8192..SEGMENT as usize]).expect("the rest");
        let next = &wal[SEGMENT as usize..];
        assert!(refused(&mut sink, at(SEGMENT.into()), &next[..39]), "less than a header");
        assert!(refused(&mut sink, at(SEGMENT.into()), &wal[..8192]), "the header of another segment");
        write(&mut sink, &target, at(SEGMENT.into()), &next[..8192]).expect("the next segment");
        // it is cut in the middle
        for end in [from, at(SEGMENT.into()), at(u64::from(SEGMENT) + 8192), at(2 * u64::from(SEGMENT))] {
            assert_eq!(sink.finish(end).expect_err("not complete").kind, Kind::ProtocolViolation, "{end}");
        }
        assert!(refused(&mut sink, at(u64::from(SEGMENT) + 8192), &next[8192..9000]), "after the end");
    }

    #[test]
    fn much_wal_is_durable_before_its_segment_is_complete() {
        let (_top, target) = target();
        let size = 2 * u32::try_from(SYNC).expect("small");
        let (mut sink, wal) = (sink(size), wal(size, 1, 1));
        let from = sink.durable();
        let half = usize::try_from(SYNC).expect("small");
        assert_eq!(write(&mut sink, &target, from, &wal[..half - 1]).expect("follows"), None);
        let now = write(&mut sink, &target, Lsn(from.0 + SYNC - 1), &wal[half - 1..half]).expect("follows");
        assert_eq!(now, Some(Lsn(from.0 + SYNC)));
    }

    #[test]
    fn a_full_file_system_ends_it_before_a_segment_is_made() {
        let (top, target) = target();
        let mut sink = WalSink::new(start(SEGMENT), SYSTEM, u64::MAX).expect("valid");
        let from = sink.durable();
        let error = write(&mut sink, &target, from, &wal(SEGMENT, 1, 1)[..8192]).expect_err("no room");
        assert_eq!(error.kind, Kind::DiskFull);
        assert!(error.detail.is_some() && error.hint.is_some(), "{error:?}");
        assert_eq!(std::fs::read_dir(top.path().join("pg_wal")).expect("list").count(), 0);
    }

    #[test]
    fn its_own_files_are_known_by_their_names() {
        let (_top, target) = target();
        let mut sink = sink(SEGMENT);
        let from = sink.durable();
        write(&mut sink, &target, from, &wal(SEGMENT, 1, 1)[..8192]).expect("follows");
        for (name, is_own) in [
            ("pg_wal/000000020000000000000003", true),
            ("pg_wal/000000020000000000000002", false),
            ("pg_wal/000000020000000000000004", false),
            ("pg_wal/000000010000000000000003", false),
            ("pg_wal/000000020000000000000003.partial", false),
            ("base/000000020000000000000003", false),
            ("pg_wal/archive_status", false),
            ("pg_wal/archive_status/000000020000000000000003.done", true),
            ("pg_wal/archive_status/000000020000000000000003.ready", false),
            ("pg_wal/archive_status/000000020000000000000004.done", false),
        ] {
            assert_eq!(sink.has(&RelPath::parse(name).expect("valid")), is_own, "{name}");
        }
    }
}
