//! pgpool_recovery: online recovery for Pgpool-II as SQL functions.
//!
//! This crate is the part that runs inside PostgreSQL and the only one that names pgrx:
//!
//! ```text
//!  api        SQL functions: arguments in, one call, result or ERROR out
//!  settings   how it is done: settings, the options of a call, the request
//!  commands   a file for each thing that is asked for: first_stage, dry_run, check, remote_start, status, ...
//!  preflight  may it be done? asked in order, or shown
//!  plan       which files travel, and how        final_files   the files made for the standby
//!  unchanged  blocks that WAL proves equal
//!  run        blocking work beside the backend
//!  watch      progress while it goes on          report        the report after it
//!  history    what became of recoveries          process       programs and scripts
//!  ereport    errors as PostgreSQL raises them
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
mod commands;
mod ereport;
mod final_files;
mod history;
mod pg;
mod plan;
mod preflight;
mod process;
mod report;
mod retry;
mod run;
mod settings;
mod starting;
mod unchanged;
mod watch;

use pgrx::pg_guard;

// The `name, version` form of pgrx 0.18.1's macro stores the version in the name's place.
::pgrx::pg_module_magic!(name = c"pgpool_recovery", version = c"2.0.0");

/// Called once by each server process that loads the library.
#[pg_guard]
#[expect(clippy::disallowed_methods, reason = "an ERROR, which the guard raises")]
pub extern "C-unwind" fn _PG_init() {
    if let Err(error) = pg::memory::grow_stack() {
        ereport::ereport(error).report(pgrx::PgLogLevel::ERROR);
    }
    settings::define();
}

#[cfg(any(test, feature = "pg_test"))]
#[path = "../pgrx-tests/mod.rs"]
mod server_tests;

#[cfg(test)]
#[path = "../pgrx-tests/harness.rs"]
pub mod pg_test;
