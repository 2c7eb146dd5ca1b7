//! The proof that blocks are equal, as the sender makes it: the WAL of both sides, and how far it is the same.

use std::path::{Path, PathBuf};

use pgdata::control_file::ControlFile;
use pgdata::wal::Lsn;
use pgdata::wal::page::PAGE_SIZE;

use super::Session;
use super::conversation::unexpected;
use super::skip::Skip;
use super::state::Opened;
use crate::compare::wal_map::skip::{self, Decision, Evidence, Outcome, SourceFacts, TargetFacts};
use crate::compare::wal_map::summaries::{self, Summaries};
use crate::compare::wal_map::{
    BlockMap, Chain, ChainFacts, Common, Coverage, Follower, GROUP, Group, Layout, MAX_ENCODED, MAX_GROUPS,
    Next, Reach, Reason, Scope, Search, Wal,
};
use crate::error::{Error, Kind, Result};
use crate::manifest::plan::Tablespace;
use crate::sys::cancel::Cancel;
use crate::wire::protocol::message::{self, Reply, Request};

/// Most bytes of a target's answer: its map, and the digests of as many timelines as it may have.
const MOST: usize = MAX_ENCODED + 16 * MAX_GROUPS * GROUP;

/// How often a target's WAL is read at most. From the second time on it is three times as much each time, or all from a
/// place that turned out to be needed.
const READS: usize = 12;

/// The primary's side.
#[derive(Debug)]
pub struct Source {
    /// Its `pg_wal`.
    pub wal_directory: PathBuf,
    /// What is known of it besides its WAL.
    pub facts: SourceFacts,
    /// Where the tablespaces go on the target.
    pub tablespaces: Vec<Tablespace>,
}

/// Why blocks are not left out: conditions that do not hold, or an error on the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rejected {
    /// Conditions that do not hold.
    Reasons(Vec<Reason>),
    /// What could not be read.
    Failed(Error),
}

impl Rejected {
    /// As the report lists them.
    pub fn lines(&self) -> Vec<String> {
        match self {
            Self::Reasons(reasons) => reasons.iter().map(ToString::to_string).collect(),
            Self::Failed(error) => vec![error.to_string()],
        }
    }
}

/// The target's WAL, as its receiver tells it.
struct Target {
    facts: TargetFacts,
    chains: Vec<ChainFacts>,
    /// The digests of each chain.
    groups: Vec<Vec<Group>>,
    map: BlockMap,
    is_all: bool,
}

/// What is known of both sides.
struct Known {
    target: TargetFacts,
    target_wal: Vec<ChainFacts>,
    is_all: bool,
    common: Vec<Option<Common>>,
    source_wal: Vec<ChainFacts>,
    coverage: Coverage,
    summaries: Summaries,
}

impl Known {
    /// For a backup that starts at `start`.
    fn evidence<'a>(&'a self, source: &'a Source, start: Lsn) -> Evidence<'a> {
        Evidence {
            target: &self.target,
            source: &source.facts,
            target_wal: &self.target_wal,
            is_all: self.is_all,
            common: &self.common,
            source_wal: &self.source_wal,
            coverage: &self.coverage,
            start,
        }
    }
}

/// What is known before the backup starts.
pub struct Proof {
    known: Known,
    /// What the WAL of both sides names.
    map: BlockMap,
    /// What the primary's names just before that.
    last_changed: BlockMap,
    /// To where the primary's WAL was read.
    read_to: Lsn,
    /// Reads it on.
    follower: Follower,
}

/// What the report says of a proof.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// What was decided.
    pub decision: Decision,
    /// Bytes of the primary's WAL that were read.
    pub source_bytes: u64,
    /// Summaries that were read instead.
    pub summaries: u32,
    /// Bytes of the target's WAL.
    pub target_bytes: u64,
    /// Why a restart of the target would not do, or `None` if it would.
    pub rejoin: Option<Vec<Reason>>,
}

impl Source {
    /// Of the server in a data directory, with the history of the timeline that it writes.
    pub fn of(
        data_directory: &Path,
        control: ControlFile,
        timeline: u32,
        resource_managers: Vec<String>,
        tablespaces: Vec<Tablespace>,
    ) -> Result<Self> {
        let wal_directory = data_directory.join("pg_wal");
        let lineage = Wal::new(&wal_directory, &control).lineage(timeline)?;
        let encrypted = data_directory.join("pg_tde");
        let is_encrypted = encrypted.try_exists().map_err(Error::on_path("stat file", &encrypted))?;
        let facts = SourceFacts { control, lineage, resource_managers, is_encrypted };
        Ok(Self { wal_directory, facts, tablespaces })
    }

    fn wal(&self) -> Wal<'_> {
        Wal::new(&self.wal_directory, &self.facts.control)
    }

    fn summaries_directory(&self) -> PathBuf {
        self.wal_directory.join(summaries::SUMMARIES)
    }
}

impl Session<Opened> {
    /// Reads the WAL of both sides up to `flushed` and decides. An error of either side is no error of the run.
    pub fn prove(
        &self,
        source: &Source,
        flushed: Lsn,
        cancel: &Cancel,
    ) -> Result<std::result::Result<Proof, Rejected>> {
        let proved = self.try_to_prove(source, flushed, cancel);
        or_rejected(proved, cancel)
    }

    fn try_to_prove(
        &self,
        source: &Source,
        flushed: Lsn,
        cancel: &Cancel,
    ) -> Result<std::result::Result<Proof, Vec<Reason>>> {
        let mut from = None;
        for _ in 0..READS {
            let target = self.read_wal(source, from)?;
            let reasons = skip::before_reading(&target.facts, &source.facts);
            if !reasons.is_empty() {
                return Ok(Err(reasons));
            }
            match self.compare(source, target, flushed, cancel)? {
                Step::Decided(proof) => return Ok(Ok(*proof)),
                Step::Rejected(reasons) => return Ok(Err(reasons)),
                // each time it is read from an earlier position on, and in the end from the first
                Step::Widen(wanted) => from = Some(wanted),
            }
        }
        Err(Error::new(Kind::Internal, "the target's WAL was read again and again"))
    }

    /// The target's WAL, from a position on.
    fn read_wal(&self, source: &Source, from: Option<Lsn>) -> Result<Target> {
        let request = Request::ReadWal { source: source.facts.lineage.clone(), from };
        let (reply, blob) = self.conversation.request_blob(&request, MOST)?;
        let wal = match reply {
            Reply::Wal(wal) => *wal,
            other => return Err(unexpected(&other)),
        };
        let lengths = wal.groups.iter().try_fold(wal.map, |sum, groups| sum.checked_add(*groups));
        if lengths != Some(blob.len()) || wal.groups.len() != wal.chains.len() {
            return Err(Error::new(Kind::ProtocolViolation, "the lengths of an answer about WAL are wrong"));
        }
        let (map, mut rest) = blob.split_at(wal.map);
        let mut groups = Vec::new();
        for length in &wal.groups {
            let (of_chain, others) = rest.split_at(*length);
            groups.push(Group::decode_all(of_chain)?);
            rest = others;
        }
        let tablespaces = moved(&wal, &source.tablespaces);
        let message::Wal { target, chains, is_all, .. } = wal;
        let facts = TargetFacts { tablespaces, ..target };
        Ok(Target { facts, chains, groups, map: BlockMap::decode(map)?, is_all })
    }

    fn digest_wal(&self, timeline: u32, next: Next) -> Result<Vec<Group>> {
        let request = Request::DigestWal { timeline, next };
        match self.conversation.request_blob(&request, MAX_GROUPS * GROUP)? {
            (Reply::Ok, groups) => Group::decode_all(&groups),
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// Reads the primary's WAL as far as the target's reaches back, and finds what both have.
    fn compare(&self, source: &Source, target: Target, flushed: Lsn, cancel: &Cancel) -> Result<Step> {
        let (wal, lineage) = (source.wal(), &source.facts.lineage);
        let Target { facts, chains: target_wal, groups, map: mut theirs, is_all } = target;
        let target_from = target_wal.iter().filter_map(|chain| chain.from).min().unwrap_or(flushed);
        let target_end = target_wal.iter().map(|chain| chain.end).max().unwrap_or_default();
        let from = wal.begin(flushed)?.max(target_from);
        // behind what both may have summaries stand for WAL, where there are any
        let scope = Scope { from, limit: flushed.min(target_end), digested: target_end };
        let mut map = BlockMap::default();
        let Chain { facts: ours, groups: our_groups } = wal.read_source(lineage, scope, &mut map, cancel)?;
        let mut common = Vec::new();
        for (chain, groups) in target_wal.iter().zip(&groups) {
            let mut search = Search::default();
            let mut next = search.compare(&our_groups, groups);
            while let Some(wanted) = next {
                let ours = wal.digest(lineage, wanted, cancel)?;
                next = search.compare(&ours, &self.digest_wal(chain.lineage.timeline(), wanted)?);
            }
            common.push(search.found());
        }
        let mut coverage = Coverage::default();
        coverage.add_wal(&ours);
        let mut later = BlockMap::default();
        let (directory, range) = (source.summaries_directory(), (ours.end, flushed));
        let summaries = summaries::read(&directory, lineage, range, &mut later, &mut coverage, cancel)?;
        let rest = wal.read_on(lineage, coverage.end_of(ours.end), flushed, &mut later, cancel)?;
        coverage.add_wal(&rest);
        let (ours_end, read_to) = (ours.end, rest.end);
        let source_wal = vec![ours, rest];
        let known = Known { target: facts, target_wal, is_all, common, source_wal, coverage, summaries };
        let decision = match skip::decide(&known.evidence(source, read_to)) {
            Outcome::Skip(decision) => decision,
            Outcome::Widen(wanted) => return Ok(Step::Widen(wanted)),
            Outcome::Reject(reasons) => return Ok(Step::Rejected(known.summaries.explain(reasons))),
        };
        // a proof that needed older WAL lists what that changed, too
        let is_wider = target_from.0 < decision.from.0 - decision.from.0 % PAGE_SIZE as u64;
        if is_wider {
            let again = self.read_wal(source, Some(decision.from))?;
            let scope = Scope { from: from.max(decision.from), ..scope };
            map = BlockMap::default();
            let ours = wal.read_source(lineage, scope, &mut map, cancel)?;
            // a timeline that ends before it has no changes that count, and may not be read again
            let is_there = |chain: &ChainFacts| {
                let same = |facts: &ChainFacts| (facts.lineage.timeline(), facts.end);
                chain.end <= decision.from || again.chains.iter().any(|other| same(other) == same(chain))
            };
            if ours.facts.end < ours_end || !known.target_wal.iter().all(is_there) {
                return Err(Error::new(Kind::WrongState, "WAL was removed while it was read"));
            }
            theirs = again.map;
        }
        map.merge(&later);
        map.merge(&theirs);
        let last_changed = wal.named_before(lineage, wal.begin(decision.from)?, decision.from, cancel)?;
        let follower = Follower::start(&wal, lineage, read_to)?;
        let proof = Proof { known, map, last_changed, read_to, follower };
        Ok(Step::Decided(Box::new(proof)))
    }
}

enum Step {
    Decided(Box<Proof>),
    Widen(Lsn),
    Rejected(Vec<Reason>),
}

impl Proof {
    /// Reads the primary's WAL up to the backup's start, and decides with that; without a backup up to where it was read.
    pub fn complete(
        self,
        source: &Source,
        start: Option<Lsn>,
        cancel: &Cancel,
    ) -> Result<std::result::Result<(Skip, Account), Rejected>> {
        let completed = self.try_to_complete(source, start);
        or_rejected(completed, cancel)
    }

    fn try_to_complete(
        mut self,
        source: &Source,
        start: Option<Lsn>,
    ) -> Result<std::result::Result<(Skip, Account), Vec<Reason>>> {
        let start = start.unwrap_or(self.read_to);
        let (facts, map) = self.follower.finish(start)?;
        self.map.merge(&map);
        self.known.coverage.add_wal(&facts);
        self.known.source_wal.push(facts);
        let evidence = self.known.evidence(source, start);
        let decision = match skip::decide(&evidence) {
            Outcome::Skip(decision) => decision,
            Outcome::Reject(reasons) => return Ok(Err(self.known.summaries.explain(reasons))),
            Outcome::Widen(_) => {
                return Err(Error::new(Kind::Internal, "the target's WAL does not reach back far enough"));
            }
        };
        let bytes = |chains: &[ChainFacts]| chains.iter().map(ChainFacts::bytes).sum();
        let account = Account {
            decision,
            source_bytes: bytes(&self.known.source_wal),
            summaries: self.known.summaries.read,
            target_bytes: bytes(&self.known.target_wal),
            rejoin: skip::rejoin(&evidence).err(),
        };
        let skip = Skip {
            map: self.map,
            last_changed: self.last_changed,
            layout: Layout {
                segment_blocks: source.facts.control.relation_segment_blocks,
                first_blocks: decision.first_blocks,
            },
            reach: Reach { from: decision.from, to: decision.to, target_end: decision.target_end },
            leaves_out: false,
            is_tried: true,
            sampled: 1,
            seed: start.0,
        };
        Ok(Ok((skip, account)))
    }
}

/// Everything but a cancel, or the end of the link, only means that everything is compared.
fn or_rejected<T>(
    done: Result<std::result::Result<T, Vec<Reason>>>,
    cancel: &Cancel,
) -> Result<std::result::Result<T, Rejected>> {
    match done {
        Ok(decided) => Ok(decided.map_err(Rejected::Reasons)),
        Err(error) => {
            cancel.check()?;
            match error.kind {
                Kind::Canceled | Kind::ConnectionLost | Kind::ProtocolViolation => Err(error),
                _ => Ok(Err(Rejected::Failed(error))),
            }
        }
    }
}

/// The tablespaces of the target that do not lie where they will be written.
fn moved(wal: &message::Wal, tablespaces: &[Tablespace]) -> Vec<String> {
    let leads_elsewhere = |tablespace: &&Tablespace| {
        let link = wal.links.get(&tablespace.oid.to_string());
        link.is_some_and(|link| Path::new(link) != Path::new(&tablespace.target))
    };
    let elsewhere = tablespaces.iter().filter(leads_elsewhere);
    elsewhere.map(|tablespace| format!("{} to \"{}\"", tablespace.oid, tablespace.target)).collect()
}
