//! pg_isready: whether a server speaks with clients, in whatever language it does, and without a login.

use std::path::Path;
use std::time::Instant;

use super::MARGIN;
use crate::error::{Error, Kind, Result};
use crate::replication::conninfo::escaped;
use crate::sys::cancel::Cancel;
use crate::sys::process;

/// What a server does with clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ready {
    /// It lets them in, or asks them who they are.
    Accepts,
    /// It starts, ends, or recovers (SQLSTATE 57P03), and will soon do something else.
    Rejects,
    /// There was no answer in time.
    Silent,
}

/// Asks the server at a host, which may be a directory of sockets, and a port.
pub fn ask_at(bin_directory: &Path, host: &str, port: u16, end: Instant, cancel: &Cancel) -> Result<Ready> {
    ask(bin_directory, &format!("host='{}' port={port}", escaped(host)), end, cancel)
}

/// Asks the server that a connection string leads to.
pub(super) fn ask(bin_directory: &Path, conninfo: &str, end: Instant, cancel: &Cancel) -> Result<Ready> {
    let time = end.saturating_duration_since(Instant::now());
    // libpq takes no less than 2 s for a connection
    let seconds = time.saturating_sub(MARGIN).as_secs().max(2).to_string();
    let question =
        process::command(&bin_directory.join("pg_isready"), ["-q", "-t", &seconds, "-d", conninfo]);
    let Some(outcome) = process::run_for(question, time, cancel)? else { return Ok(Ready::Silent) };
    match outcome.status.code() {
        Some(0) => Ok(Ready::Accepts),
        Some(1) => Ok(Ready::Rejects),
        Some(2) => Ok(Ready::Silent),
        _ => Err(Error::new(Kind::StartFailed, format!("pg_isready {}", outcome.describe()))),
    }
}
