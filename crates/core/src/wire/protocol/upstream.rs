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
    /// Which of the addresses of that name; empty: it is no name, or was not resolved.
    #[serde(default)]
    pub address: String,
}

impl Endpoint {
    /// One as a walreceiver shows it.
    pub fn new(host: impl Into<String>, port: impl Into<String>) -> Self {
        Self { host: host.into(), port: port.into(), address: String::new() }
    }

    /// Whether both have the same name, at whichever of its addresses.
    pub fn is_named_as(&self, other: &Self) -> bool {
        self.host == other.host && self.port == other.port
    }

    /// `db1:5432`
    pub fn shown(&self) -> String {
        if self.host.is_empty() {
            "an address of libpq's own".to_owned()
        } else if !self.address.is_empty() {
            format!("{}:{} ({})", self.host, self.port, self.address)
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
    /// Those that do not answer: one of them may be the primary that is gone, another one a standby.
    #[serde(default)]
    pub silent: Vec<Endpoint>,
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

impl Told {
    /// An answer of one server whose address is not known.
    pub const fn of(answer: Result<Answer>) -> Self {
        Self { answer, standbys: Vec::new(), silent: Vec::new() }
    }

    /// Whether what a walreceiver shows as its sender can only be a standby: no address of that name may have another server. One that
    /// refuses a new connection may go on with those that it has.
    pub fn is_standbys(&self, sender: &Endpoint) -> bool {
        self.standbys.iter().any(|standby| standby.is_named_as(sender))
            && !self.silent.iter().any(|silent| silent.is_named_as(sender))
    }
}

impl Answer {
    /// Whether it is a primary, or may be one.
    pub const fn may_be_primary(&self) -> bool {
        matches!(self, Self::Primary(_) | Self::Lives(_) | Self::Unknown(_))
    }
}
