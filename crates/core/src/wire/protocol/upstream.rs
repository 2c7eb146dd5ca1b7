//! What the server is that a standby follows.

use serde::{Deserialize, Serialize};

use crate::error::Result;

/// Where a server listens, as a connection string names it and pg_stat_wal_receiver shows it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Endpoint {
    /// A name, an address or a directory of sockets. Empty: the string does not say it.
    pub host: String,
    /// Its port.
    pub port: String,
}

impl Endpoint {
    /// `db1:5432`
    pub fn shown(&self) -> String {
        if self.host.is_empty() {
            "an address of libpq's own".to_owned()
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

/// What the servers have said that a connection string names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// The worst of it for a promotion; an error is the silence of all that are no standbys. [`Answer::Standby`]: all are.
    pub answer: Result<Answer>,
    /// Those that answer as a standby, which say nothing of the primary.
    pub standbys: Vec<Endpoint>,
}

/// What answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// A primary of this system, on this timeline.
    Primary(u32),
    /// A standby of this system: whether its primary lives only that one knows.
    Standby,
    /// A server that lives, and did not say what it is: its refusal, or what else shows that it lives.
    Lives(String),
    /// Whether one lives is not known, for this reason.
    Unknown(String),
}

impl Answer {
    /// Whether it is a primary, or may be one.
    pub const fn may_be_primary(&self) -> bool {
        matches!(self, Self::Primary(_) | Self::Lives(_) | Self::Unknown(_))
    }
}
