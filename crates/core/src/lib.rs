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
#![forbid(unsafe_code)]
#![warn(missing_docs)]
// a backend runs this, and they panic where its stderr is a closed pipe or a full disk
#![deny(clippy::print_stderr, clippy::print_stdout)]

pub mod compare;
pub mod data_directory;
pub mod error;
pub mod host;
pub mod local;
pub mod manifest;
pub mod preflight;
pub mod progress;
pub mod receiver;
pub mod replication;
pub mod sender;
pub mod sys;
pub mod wire;
