//! pg_isready: whether a server speaks with clients, in whatever language it does, and without a login.

use std::path::Path;
use std::time::Instant;

use super::MARGIN;
use crate::error::{Error, Kind, Result};
use crate::replication::conninfo::escaped;
use crate::sys::cancel::Cancel;
use crate::sys::parallel::{self, Job};
use crate::sys::process;

/// What a server does with clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ready {
    /// There was no answer in time.
    Silent,
    /// It starts, ends, or recovers (SQLSTATE 57P03), and will soon do something else.
    Rejects,
    /// It lets them in, or asks them who they are.
    Accepts,
}

/// Asks the server at a host, which may be a directory of sockets, and a port.
pub fn ask_at(bin_directory: &Path, host: &str, port: u16, end: Instant, cancel: &Cancel) -> Result<Ready> {
    ask(bin_directory, &format!("host='{}' port={port}", escaped(host)), end, cancel)
}

/// Asks the servers at all these hosts side by side, which libpq would try one after the other; silence is that of all of them.
pub fn ask_at_all(
    bin_directory: &Path,
    hosts: &[String],
    port: u16,
    end: Instant,
    cancel: &Cancel,
) -> Result<Ready> {
    let job = |host: &String| {
        let host = host.clone();
        let time = end.saturating_duration_since(Instant::now()) + MARGIN;
        let name = format!("the server at {host}:{port}");
        let ask = move |cancel: &Cancel| ask_at(bin_directory, &host, port, end, cancel);
        Job { name, time, work: Box::new(ask) }
    };
    let answers = parallel::ask(hosts.iter().map(job).collect(), cancel);
    let loudest = answers.iter().filter_map(|answer| answer.as_ref().ok().copied()).max();
    match (loudest, answers.into_iter().find_map(Result::err)) {
        (Some(Ready::Accepts | Ready::Rejects), _) | (_, None) => Ok(loudest.unwrap_or(Ready::Silent)),
        (_, Some(error)) => Err(error),
    }
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
