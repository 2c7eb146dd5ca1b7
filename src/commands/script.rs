//! Recovery scripts in the data directory, as the C extension ran them.
//!
//! What differs: no shell in between (so nothing in an argument is ever interpreted), a script that
//! can be cancelled, and its output and exit code where the operator looks for them.

use std::cell::RefCell;
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use pgpool_recovery_core::error::{Error, Kind, Result};

use crate::pg::{catalog, log};
use crate::process;
use crate::settings::request::shown;

/// The script that starts a standby, next to those that recover it. Pgpool-II knows no other name.
pub(crate) const REMOTE_START: &str = "pgpool_remote_start";

/// Longest script name, in bytes.
const MAX_NAME: usize = 255;

thread_local! {
    /// Targets recovered by a script in this session, as host and directory. Their start is the
    /// business of the operator's script, too. Main thread only.
    static RECOVERED: RefCell<HashSet<(String, String)>> = RefCell::default();
}

/// Runs `$PGDATA/<name>` with the data directory as its first argument and `arguments` after it, the
/// way the C extension's `pgpool_recovery` does.
pub(crate) fn recover(name: &str, arguments: &[String]) -> Result<()> {
    let data_directory = PathBuf::from(catalog::data_directory()?);
    let first = data_directory.to_string_lossy().into_owned();
    let all: Vec<&str> =
        std::iter::once(first.as_str()).chain(arguments.iter().map(String::as_str)).collect();
    run(&data_directory, name, &all)?;
    if let [host, directory, ..] = arguments {
        RECOVERED.with_borrow_mut(|targets| targets.insert((host.clone(), directory.clone())));
    }
    Ok(())
}

/// Runs `$PGDATA/pgpool_remote_start` if a script recovered this target in this session and there is
/// one. Whether it did.
pub(crate) fn remote_start(host: &str, directory: &str) -> Result<bool> {
    let target = (host.to_owned(), directory.to_owned());
    if !RECOVERED.with_borrow(|targets| targets.contains(&target)) {
        return Ok(false);
    }
    let data_directory = PathBuf::from(catalog::data_directory()?);
    if !data_directory.join(REMOTE_START).exists() {
        return Ok(false);
    }
    run(&data_directory, REMOTE_START, &[host, directory])?;
    Ok(true)
}

/// Forgets that a script recovered this target: the engine has taken over.
pub(crate) fn forget(host: &str, directory: &str) {
    RECOVERED.with_borrow_mut(|targets| targets.remove(&(host.to_owned(), directory.to_owned())));
}

fn run(data_directory: &Path, name: &str, arguments: &[&str]) -> Result<()> {
    let path = locate(data_directory, name)?;
    let title = format!("script \"{name}\"");
    process::check_program(
        &title,
        &path,
        "Check the name, or set recovery_1st_stage_command = 'pgpool_recovery_1st_stage' in pgpool.conf.",
    )?;
    log::log(&format!("{title}: running {} {}", path.display(), quoted(arguments)));
    let mut command = Command::new(&path);
    command.args(arguments).current_dir(data_directory);
    process::run(&title, command)?;
    log::log(&format!("{title}: done"));
    Ok(())
}

/// Where the script of that name is; it must be in the data directory.
fn locate(data_directory: &Path, name: &str) -> Result<PathBuf> {
    let problem = if name.is_empty() {
        "It is empty"
    } else if name.len() > MAX_NAME {
        "It is longer than 255 bytes"
    } else if name.chars().any(char::is_control) {
        "It contains a control character"
    } else if name.starts_with('/') {
        "It is absolute"
    } else if name.split('/').any(|part| matches!(part, "" | "." | "..")) {
        "It has an empty, \".\" or \"..\" component"
    } else {
        return Ok(data_directory.join(name));
    };
    Err(Error::new(Kind::InvalidArgument, format!("invalid script name {}", shown(name)))
        .detail(format!("{problem}; a script is named relative to the data directory."))
        .hint("Set recovery_1st_stage_command = 'pgpool_recovery_1st_stage' in pgpool.conf to recover without a script."))
}

fn quoted(arguments: &[&str]) -> String {
    arguments.iter().map(|argument| shown(argument)).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_are_in_the_data_directory() {
        let data = Path::new("/data");
        assert_eq!(locate(data, "recovery_1st_stage"), Ok(PathBuf::from("/data/recovery_1st_stage")));
        assert_eq!(locate(data, "bin/first stage.sh"), Ok(PathBuf::from("/data/bin/first stage.sh")));
        let long = "x".repeat(5000);
        for bad in ["", "/bin/sh", "../x", "a/../../x", "a\0b", "a\nb", ".", "a//b", long.as_str()] {
            assert_eq!(locate(data, bad).expect_err(bad).kind, Kind::InvalidArgument);
        }
    }
}
