//! Leaving out the blocks that WAL proves equal, and proving that proof on the way.

use std::path::Path;
use std::time::{Duration, Instant};

use super::conversation::{Conversation, unexpected};
use super::stream::{Examination, What};
use super::transfer::{Job, Links};
use crate::compare::digest::PAGE;
use crate::compare::source::{ChangeSource, Cloned, Hash};
use crate::compare::wal_map::{
    BlockMap, Breakdown, Found, Layout, Reach, Refutation, Sample, WalMap, Witness,
};
use crate::error::{Error, Kind, Result};
use crate::manifest::list::FileList;
use crate::sys::blocks::Blocks;
use crate::wire::protocol::message::{Reply, Request};

/// How long a sample may take.
const SAMPLING: Duration = Duration::from_secs(10);

/// How often all files are gone through for a sample.
const ROUNDS: u64 = 8;

/// Pages that a sample has at least, if there are so many.
const LEAST: u64 = 10_000;

/// Blocks that need not be read.
#[derive(Debug)]
pub struct Skip {
    /// What the WAL of both sides names.
    pub map: BlockMap,
    /// What the primary's WAL names just before that: looked at first of all that is left out.
    pub last_changed: BlockMap,
    /// The layout of the files.
    pub layout: Layout,
    /// From where to where the proof reaches.
    pub reach: Reach,
    /// Whether they are left out; else everything is compared, and the proof is only tried.
    pub leaves_out: bool,
    /// Whether the proof is tried on pages that are read. The primary's must be on disk: of what it changed before
    /// [`Reach::from`] and has not written yet, no WAL that was read tells.
    pub is_tried: bool,
    /// One of so many left out pages is looked at all the same.
    pub sampled: u64,
    /// Another number for each run.
    pub seed: u64,
}

/// What became of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Skipped {
    /// What the map says of the plan's files.
    pub breakdown: Breakdown,
    /// Pages that it leaves out and that were looked at all the same.
    pub looked: u64,
    /// Those of them that differ by what PostgreSQL does not log.
    pub unlogged: u64,
    /// Pages that refute the proof.
    pub refuted: u64,
    /// The first of these.
    pub refutations: Vec<Refutation>,
    /// Whether blocks were left out to the end.
    pub is_left_out: bool,
}

/// Moves data, or counts what differs; first and last numbers of the files that were cloned are in `cloned`.
pub(super) fn transfer(
    links: &mut Links,
    conversation: &Conversation,
    (data_directory, files): (&Path, &FileList),
    cloned: &[(u32, u32)],
    skip: Option<Skip>,
    what: What,
) -> Result<Option<Skipped>> {
    let hash = Cloned::new(cloned, &Hash);
    let all = Job::new(data_directory, files, &hash, what);
    let Some(skip) = skip else {
        return links.transfer(conversation, &all).map(|()| None);
    };
    let map = WalMap::new(skip.map, files, found(&conversation.present(files.len())?), skip.layout);
    let breakdown = map.breakdown();
    let witness = Witness::new(&map, skip.reach);
    // a proof that is only tried is tried to the end, so that all contradictions are counted
    let examined_until = |deadline| {
        skip.is_tried.then_some(Examination {
            witness: &witness,
            ends_when_refuted: skip.leaves_out,
            deadline,
        })
    };
    if skip.leaves_out && skip.is_tried {
        let every = skip.sampled.min(breakdown.known / PAGE as u64 / LEAST).max(1);
        let examination = examined_until(Some(Instant::now() + SAMPLING));
        // in rounds over all files: on a slow disk the time is over before all of it was looked at
        let rounds = if every == 1 { 1 } else { ROUNDS };
        for round in 0..rounds {
            let sample = Sample::new(&map, every * rounds, skip.seed.wrapping_add(round));
            let sample = sample.with_marks(files, &skip.last_changed, round, rounds);
            let source = Cloned::new(cloned, &sample);
            links.transfer(conversation, &Job { source: &source, what: What::Sample, examination, ..all })?;
        }
    }
    if !witness.is_refuted() {
        if skip.leaves_out {
            conversation.tell_left_out(what, breakdown.known)?;
        }
        let left_out = Cloned::new(cloned, &map);
        let source: &dyn ChangeSource = if skip.leaves_out { &left_out } else { &hash };
        links.transfer(conversation, &Job { source, examination: examined_until(None), ..all })?;
    }
    if skip.leaves_out && witness.is_refuted() {
        // what was compared by now is compared again: it costs time, and nothing is left out on a wrong proof
        conversation.progress.start_again();
        conversation.tell_left_out(what, 0)?;
        links.transfer(conversation, &all)?;
    }
    Ok(Some(Skipped {
        breakdown,
        looked: witness.looked(),
        unlogged: witness.unlogged(),
        refuted: witness.refuted(),
        refutations: witness.refutations(),
        is_left_out: skip.leaves_out && !witness.is_refuted(),
    }))
}

impl Conversation {
    /// Tells how much data is not compared, for the agent's status; a dry run has none.
    fn tell_left_out(&self, what: What, bytes: u64) -> Result<()> {
        if what == What::Data { self.done(&Request::LeftOut { bytes }) } else { Ok(()) }
    }

    /// What the target has at the place of each file of the plan, 8 bytes for each: see [`found`].
    fn present(&self, files: usize) -> Result<Blocks<u8>> {
        let most = files.saturating_mul(size_of::<u64>());
        let mut sizes = Blocks::default();
        let reply = self.request_parts(&Request::Present, most, |part| sizes.extend_from_slice(part))?;
        match reply {
            Reply::Ok if sizes.len() == most => Ok(sizes),
            Reply::Ok => {
                let message = format!("sizes of {} files where {files} were asked for", sizes.len() / 8);
                Err(Error::new(Kind::ProtocolViolation, message))
            }
            other => Err(unexpected(&other)),
        }
    }
}

/// What an answer says of each file.
fn found(sizes: &Blocks<u8>) -> impl Iterator<Item = Found> {
    sizes.numbers().map(|size| if size == u64::MAX { Found::Unfit } else { Found::Bytes(size) })
}
