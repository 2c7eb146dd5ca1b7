//! Reading the WAL of one side: what it changes, and what else it tells.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::Path;

use pgdata::control_file::ControlFile;
use pgdata::wal::directory::Directory;
use pgdata::wal::page::PAGE_SIZE;
use pgdata::wal::reader::{Origin, ReadError, Reader, Record};
use pgdata::wal::{Lsn, parse_segment_name};
use serde::{Deserialize, Serialize};

use super::block_map::BlockMap;
use super::facts::ChainFacts;
use super::groups::{Digester, Group, Grouping};
use super::lineage::{Lineage, Next};
use crate::error::{Error, Kind, Result};
use crate::sys::cancel::Cancel;

/// Records after which a cancel is noticed.
const RECORDS: u32 = 4096;

/// How much WAL before a range is looked at for what was changed last, bytes.
const BEFORE: u64 = 8 << 20;

/// Most timelines of which a target may have WAL.
const MAX_CHAINS: usize = 16;

/// A `pg_wal`.
#[derive(Debug, Clone, Copy)]
pub struct Wal<'a> {
    /// The directory.
    pub directory: &'a Path,
    /// Whose WAL it is.
    pub origin: Origin,
}

/// The WAL along one path of timelines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// What it tells.
    pub facts: ChainFacts,
    /// Its digests, in windows.
    pub groups: Vec<Group>,
}

/// What the WAL of a target tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetWal {
    /// Every path of which there is WAL, that of pg_control first.
    pub chains: Vec<Chain>,
    /// Whether nothing older is there.
    pub is_all: bool,
}

/// Numbers and names of a timeline's segments, `.partial` ones, too.
type Segments = Vec<(u64, String)>;

/// What of a source's WAL is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scope {
    /// Records from the beginning of the page on that holds this position.
    pub from: Lsn,
    /// Records that begin before this position: nothing behind what is flushed.
    pub limit: Lsn,
    /// Those that begin before this position are digested: the end of the target's WAL.
    pub digested: Lsn,
}

/// A chain, and the first page behind it of which nothing was used.
struct Found {
    chain: Chain,
    unused: Lsn,
}

impl<'a> Wal<'a> {
    /// The WAL of the cluster with this pg_control.
    pub const fn new(directory: &'a Path, control: &ControlFile) -> Self {
        let origin =
            Origin { system_identifier: control.system_identifier, segment_size: control.wal_segment_size };
        Self { directory, origin }
    }

    /// The history of a timeline, as its file here says; a timeline without a file has sprung from none.
    pub fn lineage(&self, timeline: u32) -> Result<Lineage> {
        let read = Lineage::read(self.directory, timeline)?;
        Ok(read.unwrap_or_else(|| Lineage::new(timeline, &[])))
    }

    /// The beginning of the oldest segment from which on none is missing before `until`.
    pub fn begin(&self, until: Lsn) -> Result<Lsn> {
        Ok(self.oldest(&self.segments()?, until))
    }

    /// Reads the WAL of a source along its history, and adds what it changes to the map.
    pub fn read_source(
        &self,
        lineage: &Lineage,
        scope: Scope,
        map: &mut BlockMap,
        cancel: &Cancel,
    ) -> Result<Chain> {
        Ok(self.read(lineage, scope, None, map, cancel)?.chain)
    }

    /// What the WAL along a history names in the last [`BEFORE`] bytes before `to`, as far as they are there from `begin` on.
    /// What cannot be read names nothing.
    pub fn named_before(&self, lineage: &Lineage, begin: Lsn, to: Lsn, cancel: &Cancel) -> Result<BlockMap> {
        let mut map = BlockMap::default();
        let from = begin.max(Lsn(to.0.saturating_sub(BEFORE)));
        let scope = Scope { from, limit: to, digested: Lsn(0) };
        if from < to && self.read_source(lineage, scope, &mut map, cancel).is_err() {
            cancel.check()?;
        }
        Ok(map)
    }

    /// Reads a source's WAL on from where a record or a summary ends, as [`Self::read_source`] does.
    pub fn read_on(
        &self,
        lineage: &Lineage,
        from: Lsn,
        limit: Lsn,
        map: &mut BlockMap,
        cancel: &Cancel,
    ) -> Result<ChainFacts> {
        let (reader, facts) = (self.reader(lineage, from, limit), ChainFacts::new(lineage.clone(), from));
        Ok(go_through(reader, facts, None, Lsn(0), map, cancel)?.chain.facts)
    }

    /// Reads all WAL of a target from the page on that holds `from`, or from the oldest segment on if that is later, along every
    /// timeline, and adds what it changes to the map.
    pub fn read_target(
        &self,
        control: &ControlFile,
        from: Lsn,
        map: &mut BlockMap,
        cancel: &Cancel,
    ) -> Result<TargetWal> {
        let segments = self.segments()?;
        let own = control.timeline.max(control.min_recovery_timeline);
        let oldest = self.oldest(&segments, control.recovery.checkpoint_at);
        let from = from.max(oldest);
        let size = self.segment_size();
        let later = |of: &Segments| of.iter().any(|(segment, _)| *segment >= from.0 / size);
        let others = segments.iter().filter(|(timeline, of)| **timeline != own && later(of));
        let timelines: Vec<u32> = std::iter::once(own).chain(others.map(|(timeline, _)| *timeline)).collect();
        if timelines.len() > MAX_CHAINS {
            let message = format!("the target has WAL of {} timelines", timelines.len());
            return Err(Error::new(Kind::Unsupported, message)
                .detail(format!("Not more than {MAX_CHAINS} are read.")));
        }
        let mut chains = Vec::new();
        for timeline in timelines {
            let lineage = self.lineage(timeline)?;
            let control = (timeline == own).then_some(control);
            let scope = Scope { from, limit: Lsn(u64::MAX), digested: Lsn(u64::MAX) };
            let Found { mut chain, unused } = self.read(&lineage, scope, control, map, cancel)?;
            if let Some(of) = segments.get(&timeline) {
                chain.facts.beyond = self.written_beyond(of, unused, cancel)?;
            }
            // files that were made for later use hold nothing of their timeline
            if timeline == own || chain.facts.from.is_some() || chain.facts.beyond.is_some() {
                chains.push(chain);
            }
        }
        Ok(TargetWal { chains, is_all: from == oldest })
    }

    /// Digests the records that a search for the common history wants next.
    pub fn digest(&self, lineage: &Lineage, next: Next, cancel: &Cancel) -> Result<Vec<Group>> {
        let mut digester = Digester::new(next.grouping);
        let mut reader = self.reader_of_page(lineage, next.from, next.to)?;
        let mut checked = Checked::new(cancel);
        // what is behind a record that cannot be read is nothing that both have
        let _malformed = each(&mut reader, |record| {
            if record.start >= next.from {
                digester.add(record);
            }
            checked.next()
        })?;
        Ok(digester.finish())
    }

    fn read(
        &self,
        lineage: &Lineage,
        scope: Scope,
        control: Option<&ControlFile>,
        map: &mut BlockMap,
        cancel: &Cancel,
    ) -> Result<Found> {
        let reader = self.reader_of_page(lineage, scope.from, scope.limit)?;
        let facts = ChainFacts::new(lineage.clone(), scope.from);
        go_through(reader, facts, control, scope.digested, map, cancel)
    }

    /// A reader of the records along a history, from the one on that begins at `start`, up to `limit`.
    pub(super) fn reader(&self, lineage: &Lineage, start: Lsn, limit: Lsn) -> Reader<Directory> {
        let (size, timeline) = (self.origin.segment_size, lineage.timeline());
        let pages = Directory::new(self.directory.to_owned(), size, timeline, &lineage.ancestors());
        Reader::new(pages, self.origin, start, limit)
    }

    /// The same, turned to the first record on the page that holds `from`.
    pub(super) fn reader_of_page(
        &self,
        lineage: &Lineage,
        from: Lsn,
        limit: Lsn,
    ) -> Result<Reader<Directory>> {
        let mut reader = self.reader(lineage, Lsn(0), limit);
        reader.seek_from(page_of(from)).map_err(failed)?;
        Ok(reader)
    }

    pub(super) fn segment_size(&self) -> u64 {
        // of a pg_control that says 0 nothing is found, and nothing is divided by it
        u64::from(self.origin.segment_size).max(PAGE_SIZE as u64)
    }

    /// The files of all timelines.
    fn segments(&self) -> Result<BTreeMap<u32, Segments>> {
        let failed = |error| Error::at("read directory", self.directory, &error);
        let mut segments: BTreeMap<u32, Segments> = BTreeMap::new();
        for entry in fs::read_dir(self.directory).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let Some(name) = name.to_str() else { continue };
            let whole = name.strip_suffix(".partial").unwrap_or(name);
            if let Some((timeline, segment)) = parse_segment_name(whole, self.origin.segment_size) {
                segments.entry(timeline).or_default().push((segment, name.to_owned()));
            }
        }
        Ok(segments)
    }

    /// The beginning of the oldest segment from which on none is missing before `until`.
    /// Whether the segment that holds a position is there, of any timeline of a history.
    pub fn has_segment(&self, history: &Lineage, position: Lsn) -> Result<bool> {
        self.has_segments(history, position, Lsn(position.0.saturating_add(1)))
    }

    /// Whether the segments of a range are there, of any timeline of a history.
    pub(super) fn has_segments(&self, history: &Lineage, from: Lsn, to: Lsn) -> Result<bool> {
        let of_history =
            self.segments()?.into_iter().filter(|(timeline, _)| history.range(*timeline).is_some());
        let there: BTreeSet<u64> =
            of_history.flat_map(|(_, segments)| segments).map(|(segment, _)| segment).collect();
        let size = self.segment_size();
        Ok((from.0 / size..=to.0.saturating_sub(1) / size).all(|segment| there.contains(&segment)))
    }

    fn oldest(&self, segments: &BTreeMap<u32, Segments>, until: Lsn) -> Lsn {
        let size = self.segment_size();
        let there: BTreeSet<u64> = segments.values().flatten().map(|(segment, _)| *segment).collect();
        let last = until.0 / size;
        let missing = (0..=last).rev().find(|segment| !there.contains(segment));
        Lsn(missing.map_or(0, |missing| missing + 1).min(last) * size)
    }

    /// A page at `unused` or later that was written at the place where it lies.
    fn written_beyond(&self, segments: &Segments, unused: Lsn, cancel: &Cancel) -> Result<Option<Lsn>> {
        let size = self.segment_size();
        for (segment, name) in segments.iter().filter(|(segment, _)| *segment >= unused.0 / size) {
            cancel.check()?;
            let path = self.directory.join(name);
            if path.metadata().is_ok_and(|metadata| !metadata.is_file()) {
                continue;
            }
            let file = match File::open(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(Error::at("open file", &path, &error)),
            };
            let begin = segment.saturating_mul(size);
            let mut address = begin.max(unused.0);
            let mut head = [0; 16];
            while address < begin.saturating_add(size) {
                match file.read_exact_at(&mut head, address - begin) {
                    Ok(()) => {}
                    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
                    Err(error) => return Err(Error::at("read file", &path, &error)),
                }
                if head[8..] == address.to_le_bytes() {
                    return Ok(Some(Lsn(address)));
                }
                address += PAGE_SIZE as u64;
            }
        }
        Ok(None)
    }
}

/// Reads records to the end: what they tell is added to the facts, and what they change to the map. Those before `digested` are
/// digested.
fn go_through(
    mut reader: Reader<Directory>,
    mut facts: ChainFacts,
    control: Option<&ControlFile>,
    digested: Lsn,
    map: &mut BlockMap,
    cancel: &Cancel,
) -> Result<Found> {
    let mut digester = Digester::new(Grouping::Windows);
    let mut checked = Checked::new(cancel);
    facts.malformed = each(&mut reader, |record| {
        facts.add(record, control);
        map.add_record(record);
        if record.start < digested {
            digester.add(record);
        }
        checked.next()
    })?;
    facts.why = reader.end().map(|end| end.why.to_string()).unwrap_or_default();
    Ok(Found { chain: Chain { facts, groups: digester.finish() }, unused: reader.unused() })
}

/// The page that holds a position.
const fn page_of(position: Lsn) -> Lsn {
    Lsn(position.0 - position.0 % PAGE_SIZE as u64)
}

fn failed(error: io::Error) -> Error {
    Error::io("read WAL", &error)
}

/// Hands over the records that are left until one is enough. Returns which record cannot be read and why, if that ends it.
pub(super) fn each(
    reader: &mut Reader<Directory>,
    mut take: impl FnMut(&Record<'_>) -> Result<ControlFlow<()>>,
) -> Result<Option<String>> {
    loop {
        match reader.next_record() {
            Ok(Some(record)) => {
                if take(&record)?.is_break() {
                    return Ok(None);
                }
            }
            Ok(None) => return Ok(None),
            Err(ReadError::Malformed { at, source }) => return Ok(Some(format!("{source}, at {at}"))),
            Err(ReadError::Io(error)) => return Err(failed(error)),
        }
    }
}

/// Notices a cancel now and then.
pub(super) struct Checked<'a> {
    cancel: &'a Cancel,
    seen: u32,
}

impl<'a> Checked<'a> {
    pub(super) const fn new(cancel: &'a Cancel) -> Self {
        Self { cancel, seen: 0 }
    }

    /// Another record was read.
    pub(super) fn next(&mut self) -> Result<ControlFlow<()>> {
        self.seen = self.seen.wrapping_add(1);
        if self.seen.is_multiple_of(RECORDS) {
            self.cancel.check()?;
        }
        Ok(ControlFlow::Continue(()))
    }
}

#[cfg(test)]
mod tests;
