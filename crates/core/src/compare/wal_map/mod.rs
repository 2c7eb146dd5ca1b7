//! The blocks that need not be read, because the WAL of both sides says that they did not change.
//!
//! A block of a table or index is the same on both sides if neither the primary's WAL since a common redo point nor all of
//! the target's own WAL since then names it, and if no hint bit can have reached it without WAL. That the redo point is common is
//! proved by equal WAL. What is not proved is compared, as everything is without this.
//!
//! | module | what |
//! |---|---|
//! | [`BlockMap`] (`block_map`, `encoding`) | which blocks some WAL changes; bounded; as it travels |
//! | [`Wal`] (`walk`) | reads a `pg_wal`: its map, its facts, its digests |
//! | [`ChainFacts`] (`facts`) | what WAL tells besides blocks: ends of transactions, parameters, checkpoints |
//! | [`summaries`] | the files of the primary's summarizer in place of its WAL |
//! | [`Follower`] (`follow`) | reads on while the primary writes |
//! | [`Coverage`] | which part of the primary's history was read |
//! | [`Search`], [`Lineage`] (`groups`, `lineage`) | how far the WAL of both is the same |
//! | [`Past`] (`past`) | is another server's timeline the one that this history has left? |
//! | [`Agreement`] (`landmark`) | is a server's last timeline this one's, or another of the same number? |
//! | [`skip`] | facts of both sides in, a decision or a [`Reason`] for each condition out |
//! | [`WalMap`] (`source`) | the decision applied to the files of a plan |
//! | [`Sample`], [`Witness`] | pages that are read all the same, and what they say of the proof |
//!
//! The order of a run: [`skip::before_reading`]; on the target [`Wal::read_target`] from [`skip::read_from`] on; on the primary
//! [`Wal::read_source`], or [`summaries::read`] and the WAL behind the last of them; [`Search`] for each of the target's chains, on
//! both sides [`Wal::digest`]; [`skip::decide`]. After the backup has started the rest of the primary's WAL is read up to the
//! start, and it is decided again, with that. Then both maps are merged and make a [`WalMap`]. A decision that needed WAL from long
//! before [`skip::Decision::from`] is worth reading the target's map once more, from there.

mod block_map;
mod coverage;
mod encoding;
mod facts;
mod follow;
mod groups;
mod landmark;
mod lineage;
mod past;
mod reason;
mod sample;
pub mod skip;
mod source;
pub mod summaries;
#[cfg(test)]
mod tests;
mod walk;
mod witness;

pub use block_map::{BUDGET, BlockMap};
pub use coverage::Coverage;
pub use encoding::MAX_ENCODED;
pub use facts::{ChainFacts, Completed, ControlRecord, Ends, Unknown};
pub use follow::Follower;
pub use groups::{GROUP, Group, Grouping, MAX_GROUPS};
pub use landmark::Agreement;
pub use lineage::{Common, Lineage, Next, Search};
pub use past::Past;
pub use reason::{Reason, Side, Unlogged};
pub use sample::Sample;
pub use source::{Breakdown, Found, Layout, WalMap};
pub use walk::{Chain, Scope, TargetWal, Wal};
pub use witness::{Reach, Refutation, Witness};
