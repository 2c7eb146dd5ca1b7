//! What is said to a server that is to follow another primary.

use serde::{Deserialize, Serialize};

use crate::wire::protocol::stop::Asker;

/// What makes the server in a directory follow the one that asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Follow {
    /// The primary that is going to be followed.
    pub asker: Asker,
    /// The whole text of myrecovery.conf.
    pub myrecovery: String,
    /// Permission bits of files that are made.
    pub mode: u32,
    /// Whether the directory is that of a stopped former primary, which becomes a standby; else a standby runs there.
    pub rejoins: bool,
}

/// What has become of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Followed {
    /// The files that were changed.
    pub changed: Vec<String>,
    /// Whether a server that runs was told to read them.
    pub is_told: bool,
    /// What an operator should know.
    pub warnings: Vec<String>,
}
