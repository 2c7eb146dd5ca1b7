//! pgpool_recovery: online recovery for Pgpool-II as SQL functions.
//!
//! This crate is the part that runs inside PostgreSQL and the only one that names pgrx:
//!
//! ```text
//!  api        SQL functions: arguments in, one call, result or ERROR out
//!  request    what is to be recovered          settings, options   how
//!  caller     who asks for it                  authority           what the caller decides
//!  preflight  may it be done?                  approach            asked in order
//!  check      the answers shown                survey              what would be sent
//!  configuration  which one the standby has
//!  one_host   what a target beside the primary must not do to it
//!  recovery   a first stage, step by step      contents            what it sends besides data files
//!  start      the standby starts and streams   outcomes            why it did not
//!  watch      progress while it goes on        summary             the report after it
//!  status     what became of all of them
//!  script, pgctl  what the C extension did     report              error -> SQLSTATE
//!  pg         everything unsafe
//! ```
//!
//! What needs no server lives in `crates/core`.
#![deny(ffi_unwind_calls)]
// they panic where the server's stderr is a closed pipe or a full disk
#![deny(clippy::print_stderr, clippy::print_stdout)]

#[cfg(not(panic = "unwind"))]
compile_error!("pgrx turns panics into PostgreSQL errors: build with panic = \"unwind\"");

mod api;
mod approach;
mod authority;
mod caller;
mod check;
mod configuration;
mod contents;
mod one_host;
mod options;
mod outcomes;
mod pg;
mod pgctl;
mod preflight;
mod process;
mod recovery;
mod report;
mod request;
mod script;
mod settings;
mod start;
mod status;
mod summary;
mod survey;
mod watch;

use pgrx::pg_guard;

// The `name, version` form of pgrx 0.18.1's macro stores the version in the name's place.
::pgrx::pg_module_magic!(name = c"pgpool_recovery", version = c"2.0.0");

/// Called once by each server process that loads the library.
#[pg_guard]
pub extern "C-unwind" fn _PG_init() {
    settings::define();
}

#[cfg(any(test, feature = "pg_test"))]
#[path = "../pgrx-tests/mod.rs"]
mod server_tests;

#[cfg(test)]
#[path = "../pgrx-tests/harness.rs"]
pub mod pg_test;
