//! Leaving out the blocks that WAL proves equal, and proving that proof on the way.

use std::path::Path;
use std::time::{Duration, Instant};

use super::conversation::Conversation;
use super::stream::{Examination, What};
use super::transfer::{Job, Links};
use crate::compare::source::{Cloned, Hash};
use crate::compare::wal_map::{
    BlockMap, Breakdown, Found, Layout, Reach, Refutation, Sample, WalMap, Witness,
};
use crate::error::{Error, Kind, Result};
use crate::manifest::plan::File;
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

impl Skipped {
    fn take(&mut self, witness: &Witness<'_>) {
        self.looked += witness.looked();
        self.unlogged += witness.unlogged();
        self.refuted += witness.refuted();
        self.refutations.extend(witness.refutations());
    }
}

/// Moves data, or counts what differs; first and last numbers of the files that were cloned are in `cloned`.
pub(super) fn transfer(
    links: &mut Links,
    conversation: &Conversation,
    (data_directory, files): (&Path, &[File]),
    cloned: &[(u32, u32)],
    skip: Option<Skip>,
    what: What,
) -> Result<Option<Skipped>> {
    let hash = Cloned::new(cloned, &Hash);
    let all = Job::new(data_directory, files, &hash, what);
    let Some(skip) = skip else {
        return links.transfer(conversation, &all).map(|()| None);
    };
    let map = WalMap::new(skip.map, files, &conversation.present(files.len())?, skip.layout);
    let mut skipped = Skipped { breakdown: map.breakdown(), ..Skipped::default() };
    let examination =
        |witness, ends_when_refuted, deadline| Some(Examination { witness, ends_when_refuted, deadline });
    if !skip.is_tried {
        let source = Cloned::new(cloned, &map);
        let job = if skip.leaves_out { Job { source: &source, ..all } } else { all };
        links.transfer(conversation, &job)?;
        skipped.is_left_out = skip.leaves_out;
        return Ok(Some(skipped));
    }
    if skip.leaves_out {
        let witness = Witness::new(&map, skip.reach);
        let pages = skipped.breakdown.known / crate::compare::digest::PAGE as u64;
        let every = skip.sampled.min(pages / LEAST).max(1);
        let deadline = Some(Instant::now() + SAMPLING);
        // in rounds over all files: on a slow disk the time is over before all of it was looked at
        let rounds = if every == 1 { 1 } else { ROUNDS };
        for round in 0..rounds {
            let sample = Sample::new(&map, every * rounds, skip.seed.wrapping_add(round));
            let sample = Cloned::new(cloned, &sample);
            let examination = examination(&witness, true, deadline);
            let job = Job { source: &sample, what: What::Sample, examination, ..all };
            links.transfer(conversation, &job)?;
        }
        if !witness.is_refuted() {
            let source = Cloned::new(cloned, &map);
            let job = Job { source: &source, examination: examination(&witness, true, None), ..all };
            links.transfer(conversation, &job)?;
        }
        skipped.take(&witness);
        if skipped.refuted == 0 {
            skipped.is_left_out = true;
            return Ok(Some(skipped));
        }
        // what was compared by now is compared again: it costs time, and nothing is left out on a wrong proof
        conversation.progress.start_again();
        links.transfer(conversation, &all)?;
    } else {
        let witness = Witness::new(&map, skip.reach);
        links.transfer(conversation, &Job { examination: examination(&witness, false, None), ..all })?;
        skipped.take(&witness);
    }
    Ok(Some(skipped))
}

impl Conversation {
    /// What the target has at the place of each file of the plan.
    fn present(&self, files: usize) -> Result<Vec<Found>> {
        let most = files.saturating_mul(size_of::<u64>());
        let (reply, sizes) = self.request_blob(&Request::Present, most)?;
        match reply {
            Reply::Ok if sizes.len() == most => {}
            Reply::Ok => {
                let message = format!("sizes of {} files where {files} were asked for", sizes.len() / 8);
                return Err(Error::new(Kind::ProtocolViolation, message));
            }
            other => return Err(super::conversation::unexpected(&other)),
        }
        let sizes = sizes.as_chunks().0.iter().map(|size| u64::from_le_bytes(*size));
        Ok(sizes.map(|size| if size == u64::MAX { Found::Unfit } else { Found::Bytes(size) }).collect())
    }
}
