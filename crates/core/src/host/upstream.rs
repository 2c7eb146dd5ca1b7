//! The server that a standby follows, asked over the standby's own connection string: does it live, and as what?

use std::path::Path;
use std::time::Duration;

use crate::error::{Error, Kind, Result};
use crate::replication::conninfo;
use crate::sys::cancel::Cancel;
use crate::sys::process;

/// How long the answer may take.
const DEADLINE: Duration = Duration::from_secs(5);

/// What answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// A primary of this system, on this timeline.
    Primary(u32),
    /// Something else: a standby, or a server of another system.
    Other,
}

/// Asks the server that `conninfo` leads to, as a walreceiver would; no other gets to see the credentials in it.
pub fn ask(bin_directory: &Path, conninfo: &str, system_identifier: u64, cancel: &Cancel) -> Result<Answer> {
    let (shown, password) = conninfo::without_password(conninfo).ok_or_else(|| {
        Error::new(Kind::Unsupported, "primary_conninfo of this standby cannot be read")
            .hint("Write it as keywords and values: host=... port=... user=...")
    })?;
    // a server in recovery is read-only whatever its settings say, and this one only then
    let conninfo = format!(
        "{shown} replication=true dbname=replication connect_timeout=4 options='-c default_transaction_read_only=off'"
    );
    let arguments = [
        "-X",
        "-A",
        "-t",
        "-w",
        "-d",
        &conninfo,
        "-c",
        "IDENTIFY_SYSTEM",
        "-c",
        "SHOW transaction_read_only",
    ];
    let mut command = process::command(&bin_directory.join("psql"), arguments);
    if let Some(password) = password {
        // an argument could be seen by every user of the host
        command.env("PGPASSWORD", password);
    }
    let outcome = process::run(command, DEADLINE, cancel)?;
    let silent = || Error::new(Kind::Unreachable, "the server that this standby follows does not answer");
    if !outcome.status.success() {
        return Err(silent().detail(outcome.said()));
    }
    parse(&outcome.stdout, system_identifier).ok_or_else(|| silent().detail(outcome.said()))
}

/// The answers: "7713200000000000001|1|0/3000148|" and "off".
fn parse(answer: &str, system_identifier: u64) -> Option<Answer> {
    let lines: Vec<&str> = answer.lines().map(str::trim).collect();
    let (identifier, timeline) = lines.iter().find_map(|line| {
        let mut columns = line.split('|');
        Some((columns.next()?.parse::<u64>().ok()?, columns.next()?.parse::<u32>().ok()?))
    })?;
    let is_read_only = lines.iter().find_map(|line| match *line {
        "on" => Some(true),
        "off" => Some(false),
        _ => None,
    })?;
    let is_primary = identifier == system_identifier && !is_read_only;
    Some(if is_primary { Answer::Primary(timeline) } else { Answer::Other })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::process::tests::script;

    /// What is made of the answer of a script in psql's place, and how it was called.
    fn asked(answer: &str) -> (Result<Answer>, String) {
        let top = tempfile::tempdir().expect("temporary directory");
        let asked = top.path().join("asked");
        script(
            &top.path().join("psql"),
            &format!("echo \"$* password in its environment: $PGPASSWORD\" > {}; {answer}", asked.display()),
        );
        let conninfo = "host=db1 password='se cret' user=repl";
        let answer = ask(top.path(), conninfo, 42, &Cancel::new());
        (answer, std::fs::read_to_string(asked).unwrap_or_default())
    }

    #[test]
    fn a_primary_of_this_system_is_told_from_all_else() {
        let (answer, asked) = asked("echo '42|3|0/1|'; echo off");
        assert_eq!(answer, Ok(Answer::Primary(3)));
        assert!(asked.contains("host=db1 user=repl replication=true"), "{asked}");
        assert!(asked.ends_with("environment: se cret\n"), "{asked}");
        assert_eq!(asked.matches("se cret").count(), 1, "{asked}");
        for other in ["echo '42|3|0/1|'; echo on", "echo '43|3|0/1|'; echo off"] {
            assert_eq!(self::asked(other).0, Ok(Answer::Other), "{other}");
        }
    }

    #[test]
    fn silence_is_an_error() {
        for (answer, said) in
            [("echo 'FATAL: no' >&2; exit 2", "FATAL: no"), ("echo '42|3|0/1|'", "42"), ("echo off", "off")]
        {
            let error = asked(answer).0.expect_err("no answer");
            assert!(
                error.kind == Kind::Unreachable && error.detail.as_ref().is_some_and(|it| it.contains(said)),
                "{error:?}"
            );
        }
        let uri =
            ask(Path::new("/nonexistent"), "postgresql://db1/", 42, &Cancel::new()).expect_err("unread");
        assert_eq!(uri.kind, Kind::Unsupported);
    }
}
