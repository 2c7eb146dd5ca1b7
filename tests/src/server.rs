//! The PostgreSQL under test: that of `PG_CONFIG` (default Debian's PostgreSQL 15), and what differs
//! between its versions.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::process;

const DEFAULT_PG_CONFIG: &str = "/usr/lib/postgresql/15/bin/pg_config";

#[derive(Debug)]
struct Server {
    programs: PathBuf,
    major: u32,
}

fn server() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| {
        let pg_config = std::env::var_os("PG_CONFIG").unwrap_or_else(|| DEFAULT_PG_CONFIG.into());
        let ask = |what: &str| {
            let mut command = Command::new(&pg_config);
            command.arg(what);
            process::run(command).ok().trim().to_owned()
        };
        let version = ask("--version");
        // "PostgreSQL 15.20 (Debian ...)", "PostgreSQL 18beta1"
        let digits = version.trim_start_matches(|c: char| !c.is_ascii_digit());
        let digits = digits.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
        let major = digits.parse().unwrap_or_else(|_| panic!("no version in \"{version}\""));
        Server { programs: ask("--bindir").into(), major }
    })
}

/// Its major version.
pub fn major() -> u32 {
    server().major
}

/// The directory of its programs.
pub fn programs() -> &'static Path {
    &server().programs
}

/// One of its programs, by name.
pub fn program(name: &str) -> PathBuf {
    programs().join(name)
}

/// The call that starts a fast backup of this label (a literal without quotes in it).
pub fn backup_start(label: &str) -> String {
    match major() {
        ..15 => format!("pg_start_backup('{label}', true, false)"),
        _ => format!("pg_backup_start('{label}', true)"),
    }
}

/// The call that ends a backup without waiting for the archiver.
pub fn backup_stop() -> &'static str {
    match major() {
        ..15 => "pg_stop_backup(false, false)",
        _ => "pg_backup_stop(false)",
    }
}
