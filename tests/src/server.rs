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
    has_contrib: bool,
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
        let has_contrib = Path::new(&ask("--sharedir")).join("extension/amcheck.control").exists();
        Server { programs: ask("--bindir").into(), major, has_contrib }
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

/// Whether PostgreSQL's own extensions are installed with it (some packages leave them out).
pub fn has_contrib() -> bool {
    server().has_contrib
}

/// Whether Debian's tools for clusters know it.
pub fn is_debians() -> bool {
    programs().starts_with("/usr/lib/postgresql")
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
