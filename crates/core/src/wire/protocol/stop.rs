//! What is said of a server that is to be stopped.

use serde::{Deserialize, Serialize};

use crate::compare::wal_map::{Lineage, Past};
use crate::sys::FileId;

/// The server that asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asker {
    /// Its system identifier.
    pub system_identifier: u64,
    /// The timeline that it writes, or replays, and those from which that has sprung.
    pub history: Lineage,
    /// What proves that a primary on one of these timelines is the one that it has sprung from, or follows.
    #[serde(default)]
    pub pasts: Vec<Past>,
    /// What directory its data directory is.
    pub identity: FileId,
    /// The boot of the machine it runs on.
    pub boot_id: Option<String>,
}

/// What a server is to the one that asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// In recovery, with a standby.signal.
    Standby,
    /// A primary whose timeline the asker's history has left behind.
    FormerPrimary,
    /// The primary on the timeline of the asker, a standby. Only a standby that is going to be promoted stops it.
    OwnPrimary,
}

/// How a server was shut down, as pg_ctl calls it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Sessions are ended and a shutdown checkpoint is made; or what the operator's command does.
    Fast,
    /// All processes end at once: the next start begins with crash recovery.
    Immediate,
}

/// A server that was stopped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stopped {
    /// What it was.
    pub role: Role,
    /// How it ended.
    pub mode: Mode,
    /// How long it took, milliseconds.
    pub milliseconds: u64,
}
