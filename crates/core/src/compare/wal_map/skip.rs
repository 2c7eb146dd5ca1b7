//! May blocks be left out, and which? Facts of both sides in, a decision or the reasons against one out.
//!
//! Let a redo point be common to both, and the target have flushed everything older. Then a block is the same on both sides
//! if neither the primary's WAL from there to the start of the backup nor the target's own WAL from there to its end names
//! it, and no hint of a transaction that the primary does not know has reached it. Hints need no WAL: one of three rules
//! must exclude them ([`Rule`]).

use pgdata::control_file::{ControlFile, State};
use pgdata::wal::Lsn;
use serde::{Deserialize, Serialize};

use super::coverage::{Coverage, behind_header};
use super::facts::{ChainFacts, Completed, ControlRecord};
use super::lineage::{Common, Lineage};
use super::reason::{Reason, Side, Unlogged};

/// What lies in the target besides its WAL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetFacts {
    /// Its pg_control.
    pub control: ControlFile,
    /// Whether that lies in its place.
    pub control_in_place: bool,
    /// Which of these are there: the marker, `backup_label`, `tablespace_map`, `recovery.signal`.
    pub copies: Vec<String>,
    /// Whether its configuration says `fsync = off`.
    pub fsync_off: bool,
    /// What is wrong with the links of its tablespaces, if something is.
    pub tablespaces: Vec<String>,
    /// Whether there is a directory `pg_tde`.
    pub is_encrypted: bool,
}

/// What is known of the primary besides its WAL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceFacts {
    /// Its pg_control.
    pub control: ControlFile,
    /// Its timeline and what that has sprung from.
    pub lineage: Lineage,
    /// Resource managers of extensions that are loaded (`pg_get_wal_resource_managers`).
    pub resource_managers: Vec<String>,
    /// Whether there is a directory `pg_tde`.
    pub is_encrypted: bool,
}

/// What is known before a decision.
#[derive(Debug, Clone, Copy)]
pub struct Evidence<'a> {
    /// What lies in the target.
    pub target: &'a TargetFacts,
    /// What is known of the primary.
    pub source: &'a SourceFacts,
    /// The target's WAL, that of pg_control's timeline first.
    pub target_wal: &'a [ChainFacts],
    /// Whether the target has no older WAL.
    pub is_all: bool,
    /// What the WAL of each of these timelines has in common with the primary's.
    pub common: &'a [Option<Common>],
    /// The primary's WAL that was read.
    pub source_wal: &'a [ChainFacts],
    /// What of the primary's history was read, as WAL or as summaries.
    pub coverage: &'a Coverage,
    /// Where the backup starts. Before that is known: to where the primary's WAL was read.
    pub start: Lsn,
}

/// Why no foreign hint is on a block that no WAL names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Rule {
    /// The target has not parted: whatever it knows of transactions, the primary knows, too.
    H0,
    /// No transaction has ended on the target since it has parted.
    H1,
    /// The target has logged its hints since a checkpoint that it made before it parted.
    H2,
}

impl std::fmt::Display for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::H0 => "H0",
            Self::H1 => "H1",
            Self::H2 => "H2",
        })
    }
}

/// Blocks may be left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// What excludes foreign hints.
    pub rule: Rule,
    /// The common redo point. The maps of both sides must begin here or before.
    pub from: Lsn,
    /// Where the backup starts. The primary's map must reach to here.
    pub to: Lsn,
    /// Where the common history ends. The primary's map must begin here or before.
    pub common_to: Lsn,
    /// Where the target's WAL ends. No page of the target that is read may be newer.
    pub target_end: Lsn,
    /// Whether the first block of each relation is compared all the same; see [`super::Layout`].
    pub first_blocks: bool,
}

/// What comes of the evidence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Blocks may be left out.
    Skip(Decision),
    /// The WAL of both must be read from this position on, and it must be decided again.
    Widen(Lsn),
    /// Everything is compared.
    Reject(Vec<Reason>),
}

/// From where the WAL of both is read first: its redo point, or where the histories part as their files say.
pub fn read_from(target: &ControlFile, lineage: &Lineage, source: &Lineage) -> Lsn {
    target.recovery.checkpoint.redo.min(lineage.parts_from(source))
}

/// The conditions that need no WAL.
pub fn before_reading(target: &TargetFacts, source: &SourceFacts) -> Vec<Reason> {
    let mut reasons = layout(&target.control, &source.control);
    if !target.control_in_place {
        reasons.push(Reason::ControlAside);
    }
    reasons.extend(target.copies.iter().cloned().map(Reason::Copy));
    let recovery = &target.control.recovery;
    let is_backup = recovery.backup_start_point.0 != 0
        || recovery.backup_end_point.0 != 0
        || recovery.backup_end_required;
    let min = recovery.min_recovery_point;
    if is_backup || (min.0 != 0 && min < recovery.checkpoint.redo) {
        reasons.push(Reason::Inconsistent);
    }
    if !source.resource_managers.is_empty() {
        reasons.push(Reason::ResourceManagers(source.resource_managers.clone()));
    }
    for (side, is_encrypted) in [(Side::Primary, source.is_encrypted), (Side::Target, target.is_encrypted)] {
        if is_encrypted {
            reasons.push(Reason::Encrypted(side));
        }
    }
    if target.fsync_off {
        reasons.push(Reason::FsyncOff);
    }
    reasons.extend(target.tablespaces.iter().cloned().map(Reason::Tablespace));
    reasons
}

fn layout(target: &ControlFile, source: &ControlFile) -> Vec<Reason> {
    let mut reasons = Vec::new();
    let mut same = |what: &str, theirs: u64, ours: u64| {
        if theirs != ours {
            let (target, primary) = (theirs.to_string(), ours.to_string());
            reasons.push(Reason::Layout { what: what.to_owned(), target, primary });
        }
    };
    let of = |pick: fn(&ControlFile) -> u32| (pick(target).into(), pick(source).into());
    same("system identifier", target.system_identifier, source.system_identifier);
    for (what, (theirs, ours)) in [
        ("version of pg_control", of(|control| control.pg_control_version)),
        ("catalog version", of(|control| control.catalog_version)),
        ("block size", of(|control| control.block_size)),
        ("size of relation segments", of(|control| control.relation_segment_blocks)),
        ("size of WAL pages", of(|control| control.recovery.wal_block_size)),
        ("size of WAL segments", of(|control| control.wal_segment_size)),
        ("alignment", of(|control| control.recovery.max_alignment)),
    ] {
        same(what, theirs, ours);
    }
    if (source.block_size, source.recovery.wal_block_size) != (8192, 8192) {
        reasons.push(Reason::PageSize(source.block_size, source.recovery.wal_block_size));
    }
    let (theirs, ours) = (target.checksum_version, source.checksum_version);
    if theirs != ours || ours > 1 {
        reasons.push(Reason::Checksums { target: theirs, primary: ours });
    }
    reasons
}

/// Decides whether blocks may be left out.
pub fn decide(evidence: &Evidence<'_>) -> Outcome {
    let mut reasons = before_reading(evidence.target, evidence.source);
    reasons.extend(wal_of_target(evidence));
    reasons.extend(wal_of_source(evidence.source_wal));
    reasons.extend(lost_marks(evidence));
    let common = match common(evidence) {
        Ok(common) => Some(common),
        Err(Reason::NothingInCommon(_) | Reason::NoTime { .. })
            if reasons.is_empty() && may_be_older(evidence) =>
        {
            return Outcome::Widen(earlier(evidence));
        }
        Err(reason) => {
            reasons.push(reason);
            None
        }
    };
    let (Some(common), true) = (common, reasons.is_empty()) else { return Outcome::Reject(reasons) };
    let (rule, from) = match rule(evidence, &common) {
        Ok(found) => found,
        // a checkpoint before what was read may do
        Err(Unlogged::NoCheckpoint) if !evidence.is_all => return Outcome::Widen(earlier(evidence)),
        Err(hints) => {
            let count = evidence.target_wal.iter().map(|chain| chain.ends.count).sum();
            return Outcome::Reject(vec![Reason::Hints { common: common.to, count, hints }]);
        }
    };
    let begin = evidence.target_wal[0].from.unwrap_or(Lsn(u64::MAX));
    if begin > behind_header(from) {
        if evidence.is_all {
            return Outcome::Reject(vec![Reason::TargetBegins { begin, needed: from }]);
        }
        return Outcome::Widen(from);
    }
    if let Some(at) = evidence.coverage.first_hole(common.to, evidence.start) {
        let (from, to) = (common.to, evidence.start);
        return Outcome::Reject(vec![Reason::SourceHole { at, from, to }]);
    }
    Outcome::Skip(Decision {
        rule,
        from,
        to: evidence.start,
        common_to: common.to,
        target_end: common.target_end,
        first_blocks: may_have_led(evidence),
    })
}

/// Whether older WAL may prove a common history that what was read does not: what both have must begin where the target's
/// WAL was begun to be read, and not where the primary's is gone.
fn may_be_older(evidence: &Evidence<'_>) -> bool {
    let begin = evidence.target_wal.first().and_then(|own| own.from);
    let common = evidence.common.first().copied().flatten();
    !evidence.is_all && common.is_none_or(|common| Some(common.from) <= begin)
}

/// From where to read if what was read does not do: some times as much.
fn earlier(evidence: &Evidence<'_>) -> Lsn {
    const LEAST: u64 = 64 << 20;
    let begin = evidence.target_wal.first().and_then(|own| own.from).unwrap_or_default();
    let read: u64 = evidence.target_wal.iter().map(ChainFacts::bytes).max().unwrap_or_default();
    let wanted = begin.0.saturating_sub(read.saturating_mul(2).max(LEAST));
    // within a segment this may lie behind a switch to the next one, where nothing is written
    let segment = u64::from(evidence.target.control.wal_segment_size);
    Lsn(wanted - wanted.checked_rem(segment).unwrap_or_default())
}

/// Whether nothing needs to be copied: the server there could simply be started as a standby of this primary. The coverage
/// is that of WAL only, and the position from which on the primary must send its own is returned.
pub fn rejoin(evidence: &Evidence<'_>) -> Result<Lsn, Vec<Reason>> {
    let mut reasons = before_reading(evidence.target, evidence.source);
    // a resource manager of an extension replays its WAL there, too, and keys stay where they are
    reasons.retain(|reason| !matches!(reason, Reason::ResourceManagers(_) | Reason::Encrypted(_)));
    reasons.extend(
        wal_of_target(evidence)
            .into_iter()
            .filter(|reason| !matches!(reason, Reason::UnknownRecord { .. } | Reason::MinimalLogging(..))),
    );
    match common(evidence) {
        Ok(Parting { to, target_end, is_parted: true }) => {
            reasons.push(Reason::Parted { common: to, end: target_end });
        }
        Ok(Parting { to, .. }) => {
            if let Some(at) = evidence.coverage.first_hole(to, evidence.start) {
                reasons.push(Reason::SourceHole { at, from: to, to: evidence.start });
            }
            reasons.extend(torn(evidence));
            if reasons.is_empty() {
                return Ok(to);
            }
        }
        Err(reason) => reasons.push(reason),
    }
    Err(reasons)
}

/// Whether replay might meet torn pages without images of them.
fn torn(evidence: &Evidence<'_>) -> Option<Reason> {
    let control = &evidence.target.control;
    if matches!(control.state, State::ShutDown | State::ShutDownInRecovery) {
        return None;
    }
    without_images(control, evidence.target_wal).map(Reason::TornPages)
}

/// The first place from which on full_page_writes was off, as far as pg_control and the WAL that was read tell.
fn without_images(control: &ControlFile, wal: &[ChainFacts]) -> Option<Lsn> {
    let checkpoint = &control.recovery.checkpoint;
    let at_checkpoint = (!checkpoint.full_page_writes).then_some(checkpoint.redo);
    let later = wal.iter().filter_map(|chain| chain.full_page_writes_off);
    at_checkpoint.into_iter().chain(later).min()
}

/// Whether a page of the target may be marked as visible to all, the primary's not, and stay so. Where hints are not logged the mark
/// does not raise the page's LSN (`log_heap_visible`): the page may reach the disk before the record does, and a server that
/// is killed keeps a mark that no WAL tells. The first change of the page brings an image of it without the mark, if full_page_writes
/// is on; else the mark stays, and hides that a row is deleted. A standby has its marks from WAL.
fn lost_marks(evidence: &Evidence<'_>) -> Option<Reason> {
    let (ours, theirs) = (&evidence.source.control, &evidence.target.control);
    if !may_have_led(evidence) {
        return None;
    }
    let logs_hints = |control: &ControlFile| control.recovery.wal_log_hints || control.checksum_version != 0;
    if logs_hints(ours) && logs_hints(theirs) {
        return None;
    }
    without_images(ours, evidence.source_wal).map(Reason::Marks)
}

/// Whether the last WAL in a data directory was written by its own server, and not by that of another one.
fn wrote_its_wal(control: &ControlFile) -> bool {
    control.state != State::Startup && !control.is_in_archive_recovery()
}

/// Whether the target may have been a primary. One that was promoted, and died before its first checkpoint, looks like the standby that it
/// was.
fn may_have_led(evidence: &Evidence<'_>) -> bool {
    wrote_its_wal(&evidence.target.control) || evidence.target_wal.len() > 1
}

/// The conditions on the target's WAL.
fn wal_of_target(evidence: &Evidence<'_>) -> Vec<Reason> {
    let mut reasons = Vec::new();
    let recovery = &evidence.target.control.recovery;
    for chain in evidence.target_wal {
        reasons.extend(readable(Side::Target, chain));
        if let Some(page) = chain.beyond {
            reasons.push(Reason::TargetHole { end: chain.end, page, why: chain.why.clone() });
        }
    }
    let Some(own) = evidence.target_wal.first() else {
        reasons.push(Reason::Checkpoint { at: recovery.checkpoint_at, found: ControlRecord::Missing });
        return reasons;
    };
    let mut needed = recovery.min_recovery_point;
    match own.control_record {
        ControlRecord::Found { end } => needed = needed.max(end),
        found => reasons.push(Reason::Checkpoint { at: recovery.checkpoint_at, found }),
    }
    if own.end < needed {
        reasons.push(Reason::TargetEnds { end: own.end, needed, why: own.why.clone() });
    }
    reasons
}

/// The conditions on the primary's WAL.
fn wal_of_source(chains: &[ChainFacts]) -> Vec<Reason> {
    chains.iter().flat_map(|chain| readable(Side::Primary, chain)).collect()
}

fn readable(side: Side, chain: &ChainFacts) -> Vec<Reason> {
    let malformed = chain.malformed.clone().map(|what| Reason::Malformed(side, what));
    let unknown = chain.unknown.map(|record| Reason::UnknownRecord { side, record });
    let minimal = chain.minimal.map(|at| Reason::MinimalLogging(side, at));
    malformed.into_iter().chain(unknown).chain(minimal).collect()
}

/// Where both sides part.
struct Parting {
    /// Where the common history ends.
    to: Lsn,
    /// Where the target's WAL ends.
    target_end: Lsn,
    /// Whether the target has WAL that is not common.
    is_parted: bool,
}

fn common(evidence: &Evidence<'_>) -> Result<Parting, Reason> {
    let target_end = evidence.target_wal.iter().map(|chain| chain.end).max().unwrap_or_default();
    let mut parted: Option<Lsn> = None;
    let commons = evidence.common.iter().copied().chain(std::iter::repeat(None));
    for (number, (chain, common)) in evidence.target_wal.iter().zip(commons).enumerate() {
        let timeline = chain.lineage.timeline();
        let common = common.ok_or(Reason::NothingInCommon(timeline))?;
        if number == 0 {
            let (timeline, begin) = evidence.source.lineage.at(common.to);
            if common.stamped.is_none_or(|stamped| stamped < begin) {
                return Err(Reason::NoTime { timeline, from: common.from, to: common.to });
            }
        }
        if common.to < chain.end {
            parted = Some(parted.map_or(common.to, |to| to.min(common.to)));
        }
        let on_one_timeline = evidence.source.lineage.at(evidence.start).0 == chain.lineage.at(chain.end).0;
        if on_one_timeline && chain.end > evidence.start {
            return Err(Reason::Ahead { end: chain.end, start: evidence.start });
        }
    }
    let to = parted.unwrap_or(target_end);
    if to > evidence.start {
        return Err(Reason::Ahead { end: to, start: evidence.start });
    }
    Ok(Parting { to, target_end, is_parted: parted.is_some() })
}

/// The rule that excludes foreign hints, and the redo point from which on it does.
fn rule(evidence: &Evidence<'_>, parting: &Parting) -> Result<(Rule, Lsn), Unlogged> {
    let control = &evidence.target.control;
    let (redo, to) = (control.recovery.checkpoint.redo, parting.to);
    if !parting.is_parted {
        return Ok((Rule::H0, redo));
    }
    if evidence.target_wal.iter().all(|chain| chain.ends.count == 0 || chain.ends.last < to) {
        return Ok((Rule::H1, redo.min(to)));
    }
    if !wrote_its_wal(control) {
        return Err(Unlogged::Recovery);
    }
    let (own, others) = (&evidence.target_wal[0], &evidence.target_wal[1..]);
    if others.iter().any(|chain| chain.end > to) {
        return Err(Unlogged::Timelines);
    }
    hints_are_logged(control, own, to)?;
    let made = own_checkpoint(own, to).ok_or(Unlogged::NoCheckpoint)?;
    Ok((Rule::H2, redo.min(made.redo)))
}

/// Whether the target has logged its hints since it has parted.
fn hints_are_logged(control: &ControlFile, own: &ChainFacts, common_to: Lsn) -> Result<(), Unlogged> {
    let changed = own.parameters.filter(|at| *at >= common_to).or(own.hints_off);
    let by_setting = match (control.recovery.wal_log_hints, changed) {
        (false, _) => Err(Unlogged::Off),
        // what it was before is not known: the record tells only what it was from there on
        (true, Some(at)) => Err(Unlogged::Changed(at)),
        (true, None) => Ok(()),
    };
    if by_setting.is_ok() || control.checksum_version == 0 {
        return by_setting;
    }
    // checksums that were switched on while the server was stopped leave no trace
    let since = own.started.unwrap_or_default();
    if own.hint_image.is_some_and(|at| at >= since) { Ok(()) } else { Err(Unlogged::NotShown) }
}

/// The last checkpoint before the histories part that the target made itself, and did not replay.
fn own_checkpoint(own: &ChainFacts, common_to: Lsn) -> Option<Completed> {
    let (timeline, begin) = own.lineage.at(own.end);
    let is_own =
        |made: &&Completed| made.end <= common_to && made.timeline == timeline && made.start >= begin;
    own.checkpoints.iter().rev().find(is_own).copied()
}

#[cfg(test)]
mod tests;
