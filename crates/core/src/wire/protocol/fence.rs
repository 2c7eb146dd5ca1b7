//! What is said of an old primary that is stopped for good before another server is promoted.

use pgdata::wal::Lsn;
use serde::{Deserialize, Serialize};

use super::stop::{Role, Stopped};

/// A primary that does not come back by itself: its directory has the mark [`FENCED`](crate::manifest::exclude::FENCED).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fenced {
    /// Which primary it was.
    pub role: Role,
    /// How its server was stopped; none if it was not running.
    pub stopped: Option<Stopped>,
    /// Where its shutdown checkpoint begins, if it was shut down in order: now, or before.
    pub checkpoint: Option<Lsn>,
}
