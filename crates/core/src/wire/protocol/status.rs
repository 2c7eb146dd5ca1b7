//! What a receiver tells about itself, see [`super::message::Request::Status`].

use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::message::Marker;
use crate::error::Error;

/// A receiver and its directories.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The version of its software.
    pub version: String,
    /// When it started, seconds since 1970.
    pub started: u64,
    /// How long it has been running, seconds.
    pub uptime: u64,
    /// The directories it serves, in the order of its configuration.
    pub directories: Vec<Directory>,
}

/// A data directory and what has been done to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Directory {
    /// The directory as the configuration names it.
    pub data_directory: PathBuf,
    /// The process that runs on the directory.
    pub server: Option<u32>,
    /// Why it cannot be told whether one does.
    #[serde(default)]
    pub server_unknown: Option<String>,
    /// Whether the marker of a recovery is there: one is running, or was interrupted.
    pub incomplete: bool,
    /// What that marker says, if it can be read.
    pub marker: Option<Marker>,
    /// The runs since the receiver's start.
    pub account: Account,
}

/// The runs of one directory since the receiver's start. A run counts from its first change to the
/// directory; what is refused before that has changed nothing and is told to the primary only.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// The run in progress.
    pub running: Option<Run>,
    /// The last one that ended.
    pub last: Option<Run>,
    /// Runs that succeeded.
    pub succeeded: u64,
    /// Runs that failed.
    pub failed: u64,
    /// Runs that the primary gave up.
    pub given_up: u64,
    /// When the last one succeeded, seconds since 1970.
    pub last_success: Option<u64>,
    /// The sums of all runs, the one in progress among them.
    pub moved: Moved,
}

/// One run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// How far it has come, or how it ended.
    pub state: State,
    /// The primary's address.
    pub primary: Option<IpAddr>,
    /// When it began, seconds since 1970.
    pub started: u64,
    /// When it ended, seconds since 1970.
    pub ended: Option<u64>,
    /// How long it has taken, milliseconds.
    pub milliseconds: u64,
    /// Data files in the plan.
    pub files: u64,
    /// Bytes of these files.
    pub bytes: u64,
    /// Those of them that are not compared, because WAL proves them equal.
    pub known: u64,
    /// What it has moved.
    pub moved: Moved,
    /// Bytes of WAL that arrived, before compression; part of what was received.
    #[serde(default)]
    pub wal: u64,
    /// Data links that are open.
    #[serde(default)]
    pub streams: u32,
    /// Why it ended, where it did not succeed.
    pub error: Option<Error>,
}

impl Run {
    /// How much of the data is done with, percent.
    pub fn percent(&self) -> u64 {
        let done = self.moved.compared.saturating_add(self.known).min(self.bytes);
        done.saturating_mul(100).checked_div(self.bytes).unwrap_or(100)
    }
}

/// How far a run has come, or how it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Data files are compared and written.
    Data,
    /// Data is complete; surplus is removed and WAL received.
    Wal,
    /// Everything is there and is made durable.
    Durable,
    /// The directory is complete and durable.
    Succeeded,
    /// It failed here. The directory cannot be started.
    Failed,
    /// The primary left: it failed there, was canceled, or the connection broke, which looks the same from
    /// here. The directory cannot be started.
    GivenUp,
}

/// Amounts of data, bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moved {
    /// Data files of the plan that were looked at and compared with the primary's.
    pub compared: u64,
    /// Content of data files and WAL that arrived, before compression.
    pub received: u64,
    /// Content written to the directory.
    pub written: u64,
}

impl std::ops::AddAssign for Moved {
    fn add_assign(&mut self, other: Self) {
        self.compared += other.compared;
        self.received += other.received;
        self.written += other.written;
    }
}
