//! The end-to-end tests: one binary, one folder a subject. Each folder's `mod.rs` says what its modules test.
//!
//! `make test-e2e TESTS=refusals::check` runs one module.

mod agent;
mod alone;
mod faults;
mod files;
mod harness;
mod outage;
mod pgpool;
mod refusals;
mod runs;
mod starts;
mod unchanged;
