//! The engine of pgpool_recovery.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod error;
