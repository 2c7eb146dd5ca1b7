//! `pgpool_pgctl` and `pgpool_switch_xlog`: the C extension's helpers for pgpoolAdmin and old scripts.

use std::io;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use pgpool_recovery_core::error::{Error, Kind, Result};

use crate::pg::interrupts::{self, ClientWatch};
use crate::pg::{catalog, log};
use crate::process;
use crate::settings;
use crate::settings::request::shown;

/// What pgpoolAdmin and scripts ask for.
const ACTIONS: [&str; 5] = ["start", "stop", "restart", "reload", "status"];

/// Shutdown modes and their short forms, as pg_ctl takes them; empty: pg_ctl's default.
const STOP_MODES: [&str; 7] = ["", "s", "smart", "f", "fast", "i", "immediate"];

/// A complete segment's size is a multiple of this many bytes (the smallest WAL segment size).
const SEGMENT_UNIT: u64 = 1 << 20;

/// Runs pg_ctl on this very server.
///
/// `reload` and `status` are waited for and their failure is an error. `stop`, `restart` and `start`
/// end or outlive this session, so they run detached and nothing is known about their success.
pub(crate) fn pgctl(action: &str, stop_mode: &str) -> Result<()> {
    one_of("action", action, &ACTIONS)?;
    one_of("stop_mode", stop_mode, &STOP_MODES)?;
    let mut program = settings::pg_ctl()?;
    if program.is_empty() {
        program = format!("{}/pg_ctl", catalog::bin_directory()?);
    }
    let name = format!("pg_ctl {action}");
    process::check_program(&name, Path::new(&program), "Check pgpool.pg_ctl in postgresql.conf.")?;
    let mut command = Command::new(&program);
    command.args([action, "-D", &catalog::data_directory()?]);
    match action {
        "reload" | "status" => process::run(&name, command),
        _ => {
            if action != "start" && !stop_mode.is_empty() {
                command.args(["-m", stop_mode]);
            }
            process::detach(&name, command)
        }
    }
}

/// Ends the current WAL segment and waits until its archived copy is complete in `directory`; returns
/// the copy's path.
pub(crate) fn switch_xlog(directory: &str) -> Result<String> {
    if directory.is_empty() || directory.len() > crate::settings::request::MAX_DIR {
        return Err(Error::new(
            Kind::InvalidArgument,
            format!("invalid value for argument \"archive_dir\": {}", shown(directory)),
        )
        .detail("A directory's path has 1 to 1024 bytes."));
    }
    stat(directory)?;
    let path = format!("{directory}/{}", catalog::switch_wal()?);
    log::log(&format!("pgpool_switch_xlog: waiting for \"{path}\""));
    let mut client = ClientWatch::new();
    loop {
        interrupts::check();
        client.check()?;
        if std::fs::metadata(&path).is_ok_and(|file| file.len() > 0 && file.len() % SEGMENT_UNIT == 0) {
            return Ok(path);
        }
        sleep(Duration::from_millis(100));
    }
}

fn stat(path: &str) -> Result<()> {
    let Err(error) = std::fs::metadata(path) else { return Ok(()) };
    // The SQLSTATEs of PostgreSQL's errcode_for_file_access().
    let kind = match error.kind() {
        io::ErrorKind::NotFound => Kind::MissingFile,
        io::ErrorKind::PermissionDenied => Kind::PermissionDenied,
        _ => Kind::Io,
    };
    Err(Error::new(kind, format!("could not stat file {}: {}", shown(path), reason(&error)))
        .hint("Pass the directory that archive_command fills."))
}

/// The system's words without Rust's "(os error 2)", as `%m` has them.
fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_owned()
}

fn one_of(argument: &str, value: &str, allowed: &[&str]) -> Result<()> {
    if allowed.contains(&value) {
        return Ok(());
    }
    let names: Vec<String> = allowed.iter().map(|name| format!("\"{name}\"")).collect();
    Err(Error::new(
        Kind::InvalidArgument,
        format!("invalid value for argument \"{argument}\": {}", shown(value)),
    )
    .detail(format!("Expected one of {}.", names.join(", "))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_known_words_reach_pg_ctl() {
        for bad in ["", "promote; rm -rf /", "-D", "Stop"] {
            assert_eq!(one_of("action", bad, &ACTIONS).expect_err(bad).kind, Kind::InvalidArgument);
        }
        assert!(one_of("stop_mode", "fast", &STOP_MODES).is_ok());
    }

    #[test]
    fn a_missing_directory_is_told_in_postgres_words() {
        let error = stat("/nonexistent").expect_err("missing");
        assert_eq!(error.message, "could not stat file \"/nonexistent\": No such file or directory");
        assert_eq!(error.kind, Kind::MissingFile);
    }
}
