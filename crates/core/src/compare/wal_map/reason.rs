//! Why no block may be left out.

use pgdata::wal::Lsn;
use serde::{Deserialize, Serialize};

use super::facts::{ControlRecord, Unknown};
pub use crate::manifest::Side;

/// A condition that does not hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The files of the two are laid out differently, or they are different clusters.
    #[error("the {what} of the target is {target}, and that of the primary {primary}")]
    Layout {
        /// What differs.
        what: String,
        /// The target's.
        target: String,
        /// The primary's.
        primary: String,
    },
    /// Pages and WAL pages of other sizes than usual.
    #[error("the primary has pages of {0} bytes or WAL pages of {1} bytes, and only 8192 is supported")]
    PageSize(u32, u32),
    /// pg_control was set aside by a recovery that was interrupted.
    #[error("the target has no global/pg_control in its place")]
    ControlAside,
    /// The target is mixed from files of different times.
    #[error("the target has \"{0}\": it is an incomplete or an unused copy")]
    Copy(String),
    /// The target was never consistent.
    #[error("the target is a copy that has not reached the end of its backup")]
    Inconsistent,
    /// Data checksums differ, or are in a state that is not known.
    #[error("data checksums are of version {target} on the target and {primary} on the primary")]
    Checksums {
        /// The target's.
        target: u32,
        /// The primary's.
        primary: u32,
    },
    /// WAL that cannot be read.
    #[error("a record in the WAL of the {0} cannot be read: {1}")]
    Malformed(Side, String),
    /// WAL that may change files in any way.
    #[error(
        "the record at {} in the WAL of the {side} is of resource manager {} and changes files in an unknown way",
        .record.at,
        .record.resource_manager
    )]
    UnknownRecord {
        /// Whose WAL.
        side: Side,
        /// The record.
        record: Unknown,
    },
    /// Extensions write WAL of their own.
    #[error("the primary has resource managers of extensions: {}", .0.join(", "))]
    ResourceManagers(Vec<String>),
    /// Files are encrypted with keys that differ between servers.
    #[error("the {0} has a directory \"pg_tde\": its files may be encrypted with keys of its own")]
    Encrypted(Side),
    /// Changes of new relations were not logged.
    #[error("wal_level of the {0} was \"minimal\" at {1}")]
    MinimalLogging(Side, Lsn),
    /// The WAL of the target does not reach back far enough.
    #[error("the WAL of the target begins at {begin}, and is needed from {needed} on")]
    TargetBegins {
        /// Where it begins.
        begin: Lsn,
        /// From where on it is needed.
        needed: Lsn,
    },
    /// The WAL of the target ends before the server there had ended.
    #[error("the WAL of the target ends at {end}, before {needed}, which it had reached: {why}")]
    TargetEnds {
        /// Where it ends.
        end: Lsn,
        /// What it had reached.
        needed: Lsn,
        /// Why it ends.
        why: String,
    },
    /// There is WAL behind the end of the target's WAL.
    #[error("the WAL of the target ends at {end} ({why}), but a page was written behind it, at {page}")]
    TargetHole {
        /// Where it ends.
        end: Lsn,
        /// The page.
        page: Lsn,
        /// Why it ends.
        why: String,
    },
    /// WAL of the primary is gone.
    #[error("the primary has neither the WAL at {at} nor a summary of it, and is needed from {from} to {to}")]
    SourceHole {
        /// What is missing.
        at: Lsn,
        /// From where on it is needed.
        from: Lsn,
        /// To where.
        to: Lsn,
    },
    /// What summaries tell of may be what is missing.
    #[error("{count} WAL summaries of the primary cannot be used; the first is {first}")]
    UnusableSummaries {
        /// How many.
        count: usize,
        /// The name of one, and why.
        first: String,
    },
    /// pg_control of the target and its WAL contradict each other.
    #[error("the checkpoint in the target's pg_control is not that in its WAL at {at}: {found}")]
    Checkpoint {
        /// Where it should be.
        at: Lsn,
        /// What is there.
        found: ControlRecord,
    },
    /// There is no common history.
    #[error("the WAL of the target's timeline {0} has no record in common with what the primary still has")]
    NothingInCommon(u32),
    /// The common history is not proved.
    #[error(
        "no transaction has ended in the WAL that both have on timeline {timeline}, from {from} to {to}: this does not prove \
         that they have the same history"
    )]
    NoTime {
        /// The last common timeline.
        timeline: u32,
        /// Where the common WAL begins.
        from: Lsn,
        /// Where it ends.
        to: Lsn,
    },
    /// Hint bits of transactions that the primary does not know may be on any page.
    #[error(
        "{count} transactions have ended on the target since it has parted from the primary at {common}, and {hints}"
    )]
    Hints {
        /// Where both parted.
        common: Lsn,
        /// How many transactions have ended in the target's WAL that was read.
        count: u64,
        /// Why their hints cannot be found.
        hints: Unlogged,
    },
    /// The target was not protected against a crash.
    #[error(
        "the target's configuration says fsync = off, or cannot be read: what its disk has after a crash is unknown"
    )]
    FsyncOff,
    /// A tablespace of the target is not where it was.
    #[error("a tablespace of the target was moved: {0}")]
    Tablespace(String),
    /// The target has WAL that the primary does not have, on the same timeline.
    #[error(
        "the target's WAL ends at {end}, behind {start}, which the primary has reached on the same timeline"
    )]
    Ahead {
        /// Where the target's ends.
        end: Lsn,
        /// Where the backup starts.
        start: Lsn,
    },
    /// The target has changes of its own.
    #[error("the target has parted from the primary at {common}: its WAL goes on to {end}")]
    Parted {
        /// Where the common history ends.
        common: Lsn,
        /// Where the target's WAL ends.
        end: Lsn,
    },
    /// A mark of VACUUM that no WAL tells may stay behind a change of its page.
    #[error(
        "full_page_writes was off on the primary at {0}, and hint bits are not logged on both: what VACUUM has marked on the target's \
         pages may not be in any WAL, and a change that is replayed without an image of its page would leave it"
    )]
    Marks(Lsn),
    /// Pages may be torn.
    #[error("full_page_writes was off on the primary at {0}, and the target was not shut down")]
    TornPages(Lsn),
}

/// Why hints of foreign transactions cannot be found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum Unlogged {
    /// Replay logs none.
    #[error("a server in recovery does not log hint bits")]
    Recovery,
    /// They are not logged.
    #[error("it did not log hint bits: wal_log_hints and data checksums are off")]
    Off,
    /// They were not logged all the time.
    #[error("it did not log hint bits all the time: a parameter changed at {0}")]
    Changed(Lsn),
    /// They may not have been logged: checksums may have been switched on later.
    #[error("its WAL does not show that it logged hint bits")]
    NotShown,
    /// It made no checkpoint of its own before.
    #[error("its WAL has no checkpoint of its own before that")]
    NoCheckpoint,
    /// Another timeline than its own has parted, too.
    #[error("it has WAL of several timelines that are not the primary's")]
    Timelines,
}
