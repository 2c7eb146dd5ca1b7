//! The engine of pgpool_recovery: everything that can be done without a PostgreSQL server.
//!
//! ```text
//!  primary                                            standby host
//!  scan -> plan -> sender --------- link ---------> receiver -> target directory
//!          (reads, compares, sends what differs)    (digests, writes, makes durable)
//! ```
//!
//! The extension drives the sending half, the agent the receiving half; a standby on the primary's
//! own host is served by both halves in one process over an in-process link. Nothing here names
//! PostgreSQL's server code, and nothing here is `unsafe`.
//!
//! The rooms stand below from the ground up: each uses only those before it, and `sender` and `receiver` do not
//! know each other. A module that no other crate needs is private.
#![forbid(unsafe_code)]
#![warn(missing_docs)]
// a backend runs this, and they panic where its stderr is a closed pipe or a full disk
#![deny(clippy::print_stderr, clippy::print_stdout)]

// An error with its kind, SQLSTATE, DETAIL and HINT.
pub mod error;
// The operating system, without a word of PostgreSQL.
pub mod sys;
// What a run counts while it goes on.
pub mod progress;
// What the primary has, and what of it travels.
pub mod manifest;
// Which pages must be looked at, and which differ.
pub mod compare;
// What makes a copy a standby, and how it is seen to follow.
pub mod replication;
// What travels between two hosts, and over what.
pub mod wire;
// The only writer of a target.
mod data_directory;
// What a host does with a data directory without a run: policy, inspection, running servers, starts.
pub mod host;
// May this target be replaced?
pub mod preflight;
// The sending half of a run.
pub mod sender;
// The receiving half of a run.
pub mod receiver;
// Both halves in one process.
mod local;

pub use local::LocalConnector;

/// What only the fuzzers and the tests of this crate name besides; not for other crates.
#[doc(hidden)]
pub mod internal {
    pub use crate::sys::buffer::Buffer;
    pub use crate::wire::compress::{Compressor, Decompressor};
}
