//! The protocol, version 3.
//!
//! # Participants
//!
//! The *sender* is the primary's backend that runs `pgpool_recovery_1st_stage`; it opens every link.
//! The *receiver* is an agent, or the same code in the sender's process for a local target.
//!
//! # Goals
//!
//! * Nothing crosses the link that both ends have already: digests of the target's pages stream one
//!   way, pages that differ stream the other way, without a round trip per file or page.
//! * Every length is bounded before memory is allocated; decoding never panics.
//! * The receiver owns the target: the sender names files, the receiver decides what may be written.
//!
//! # Non-goals
//!
//! Backward compatibility on the wire: ends of different versions part during the TLS handshake
//! (ALPN, [`crate::wire::link::tls::ALPN`]). Generic file transfer.
//!
//! # Frames
//!
//! One byte kind, four bytes length (little-endian, at most [`crate::wire::link::MAX_BODY`]), body.
//!
//! # A run
//!
//! ```text
//! control link                                    data links (several)
//! -> Open            <- Target
//! -> TestReplication <- LoggedIn
//! -> ReadWal         <- Blob*, Wal            (only where blocks may be left out: the target's WAL)
//! -> DigestWal*      <- Blob*, Ok             (how far it is the primary's)
//!    (pg_backup_start, scan)
//! -> Plan*, PlanEnd  <- Planned
//! -> Begin           <- Ok       (marker written, pg_control moved aside, pg_wal emptied)
//! -> Present         <- Blob*, Ok             (sizes of the target's files, where blocks may be left out)
//! -> LeftOut         <- Ok                    (how much of them is not compared)
//!                                 -> Attach        <- Ok
//!                                 -> Ask*          <- Digests*
//!                                 -> Pages*, EndOfFile, Gone
//!                                 -> Barrier       <- Barrier
//! -> Reconcile       <- Reconciled  (sizes right, surplus files removed)
//!    (pg_control read, pg_backup_stop)
//! -> Put* , Finish   <- Durable  (all synced, pg_control in place, marker removed)
//! -> Start           <- Starting*, Started
//! ```
//!
//! From Begin to Finish a link of its own carries WAL, as the primary flushes it:
//!
//! ```text
//! -> AttachWal        <- WalAttached
//! -> Wal*             <- WalDurable*
//! ```
//!
//! Both ends send [`PING`] on the control link every few seconds; silence for [`SILENCE`] ends the run.

use std::time::Duration;

pub mod data;
pub mod describe;
pub mod examine;
pub mod fence;
pub mod follow;
pub mod message;
pub mod plan;
pub mod second_stage;
pub mod status;
pub mod stop;
pub mod upstream;
pub mod wal;

/// Keeps an idle control link alive; no body.
pub const PING: u8 = 0x03;
/// A [`message::Request`] as JSON.
pub const REQUEST: u8 = 0x04;
/// A [`message::Reply`] as JSON.
pub const REPLY: u8 = 0x05;
/// A small file to install when the run finishes, see [`data::Put`].
pub const PUT: u8 = 0x06;

/// A part of a binary answer; the [`REPLY`] that belongs to it follows the last one.
pub const BLOB: u8 = 0x07;

/// How often each end pings.
pub const PING_INTERVAL: Duration = Duration::from_secs(3);

/// How long the control link may be silent.
pub const SILENCE: Duration = Duration::from_secs(30);

/// Most data links of one run.
pub const MAX_STREAMS: usize = 64;

/// Most batches of one data link that are asked for and not answered.
pub const MAX_ASKED: usize = 256;
