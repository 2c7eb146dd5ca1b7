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

pub mod buffer;
pub mod cancel;
pub mod checksum;
pub mod clock;
pub mod compress;
pub mod configuration;
pub mod control_file;
pub mod delta;
pub mod digest;
pub mod direct;
pub mod error;
pub mod exclude;
pub mod hexadecimal;
pub mod hot_standby;
pub mod inquiry;
pub mod judge;
pub mod link;
pub mod local;
mod lock;
pub mod naming;
pub mod own_address;
pub mod path;
pub mod plan;
pub mod process;
pub mod progress;
pub mod protocol;
pub mod receiver;
pub mod recovery_settings;
pub mod scan;
pub mod secret;
pub mod sender;
pub mod size;
pub mod sockets;
pub mod space;
pub mod standby;
pub mod streaming;
pub mod target;
pub mod wal;
