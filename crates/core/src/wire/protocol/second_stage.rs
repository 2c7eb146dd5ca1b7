//! What is said of a standby that becomes a server of its own: the second stage of Pgpool-II's native replication and
//! snapshot isolation modes.

use pgdata::wal::Lsn;
use serde::{Deserialize, Serialize};

use crate::wire::protocol::stop::Asker;

/// What makes a standby a server of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promote {
    /// The primary that made the standby and that it follows.
    pub asker: Asker,
    /// How far the standby must have replayed WAL.
    pub replayed: Lsn,
    /// How long the promotion may take, seconds.
    pub timeout: u32,
}

/// What has become of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promoted {
    /// The timeline that it writes.
    pub timeline: u32,
    /// What an operator should know.
    pub warnings: Vec<String>,
}

/// That a standby was made to be promoted: the file [`SECOND_STAGE`](crate::manifest::exclude::SECOND_STAGE) in its data
/// directory, as JSON. No standby without it is promoted beside its primary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecondStageMark {
    /// Says in plain words what the file means.
    #[serde(default)]
    pub note: String,
    /// When the standby was made, seconds since 1970.
    pub made: u64,
    /// System identifier of the primary that made it.
    pub system_identifier: u64,
    /// The timeline of that primary.
    pub timeline: u32,
}
