//! SQL by psql: its libpq finds passwords, certificates and services as every other client of this user does.

use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::event::Place;
use crate::failure::{Failure, NO_ANSWER, Result, one_line};
use crate::program;

/// How long a connection to each address of a host may take, seconds.
const CONNECT: &str = "5";

/// No timeout of a role or a database ends a statement of ours: between a fence and its promotion that would leave no primary.
/// Nor does a statement find what others have made in the database, in `public` say: it would run as our role, a superuser
/// often. No NOTICE comes before an ERROR: its DETAIL may have lines of a server's log that look like one.
const SETTINGS: &str = "-c statement_timeout=0 -c lock_timeout=0 -c idle_in_transaction_session_timeout=0 \
                        -c search_path=pg_catalog,pg_temp -c client_min_messages=warning";

/// The timeouts that only later versions have, and the schema of the extension's functions, `:"extension"`. They are called with
/// arguments of exactly their types, because others may have made functions of the same names in the same schema.
const BEFORE: &str = "SELECT count(set_config(name, '0', false)) AS unlimited FROM pg_settings \
                      WHERE name IN ('transaction_timeout', 'idle_session_timeout') \\gset\n\
                      SELECT COALESCE((SELECT n.nspname FROM pg_extension AS e JOIN pg_namespace AS n ON n.oid = e.extnamespace \
                      WHERE e.extname = 'pgpool_recovery'), 'public') AS extension \\gset\n";

/// As whom, and to which database.
#[derive(Debug, Clone)]
pub(crate) struct Login {
    /// libpq's default without it.
    pub(crate) user: Option<String>,
    pub(crate) database: String,
}

impl Login {
    /// The JSON that a statement gives, by `end`. `:'name'` in the statement is one of the values.
    pub(crate) fn json(
        &self,
        place: &Place,
        sql: &str,
        values: &[(&str, &str)],
        end: Instant,
    ) -> Result<Value> {
        let text = self.text(place, sql, values, end)?;
        serde_json::from_str(&text).map_err(|error| {
            Failure::new(format!("{}:{} gave an unexpected answer: {error}", place.host, place.port))
        })
    }

    fn text(&self, place: &Place, sql: &str, values: &[(&str, &str)], end: Instant) -> Result<String> {
        if place.host.is_empty() {
            // libpq would take the local socket
            return Err(Failure::new(format!("node {} has no host", place.node)));
        }
        let mut command = Command::new("psql");
        command.args(["-X", "-q", "-A", "-t", "-w", "-v", "ON_ERROR_STOP=1", "-v", "VERBOSITY=verbose"]);
        for (name, value) in values {
            command.arg("-v").arg(format!("{name}={value}"));
        }
        // not on the command line, where a database could be a connection string
        command.env("PGHOST", &place.host).env("PGPORT", place.port.to_string());
        command.env("PGDATABASE", &self.database).env("PGAPPNAME", "pgpool-recovery-hook");
        command.env("PGCLIENTENCODING", "UTF8").env("LC_ALL", "C").env_remove("PGHOSTADDR");
        let options = std::env::var("PGOPTIONS").unwrap_or_default();
        command.env("PGOPTIONS", format!("{options} {SETTINGS}"));
        if let Some(user) = &self.user {
            command.env("PGUSER", user);
        }
        if std::env::var_os("PGCONNECT_TIMEOUT").is_none() {
            command.env("PGCONNECT_TIMEOUT", CONNECT);
        }
        let left = end.saturating_duration_since(Instant::now());
        let finished = program::run(command, &format!("{BEFORE}{sql};\n"), end)?.ok_or_else(|| {
            Failure::new(format!("{}:{}{NO_ANSWER}{} s", place.host, place.port, left.as_secs_f32().round()))
                .hint("Is the host up, and does its server take connections?")
        })?;
        for warning in warnings(&finished.stderr) {
            eprintln!("pgpool-recovery-hook: {}:{}: {warning}", place.host, place.port);
        }
        if finished.status.success() {
            return Ok(finished.stdout);
        }
        Err(failure(&finished.stderr).unwrap_or_else(|| {
            Failure::new(format!("psql ended with {}: {}", finished.status, one_line(&finished.stderr)))
        }))
    }
}

/// The lines of a label, without it, up to the next one.
fn labelled(text: &str, labels: &[&str]) -> Option<String> {
    const ALL: &[&str] = &[
        "ERROR:",
        "FATAL:",
        "PANIC:",
        "WARNING:",
        "NOTICE:",
        "INFO:",
        "LOG:",
        "DETAIL:",
        "HINT:",
        "CONTEXT:",
        "STATEMENT:",
        "LOCATION:",
        "QUERY:",
        "LINE ",
    ];
    let mut found: Option<Vec<&str>> = None;
    for line in text.lines() {
        let of = |labels: &[&str]| labels.iter().find_map(|label| line.strip_prefix(label));
        match (&mut found, of(labels)) {
            (None, Some(rest)) => found = Some(vec![rest.trim()]),
            (Some(_), _) if of(ALL).is_some() => break,
            (Some(lines), _) => lines.push(line.trim()),
            (None, None) => {}
        }
    }
    Some(found?.join("\n").trim().to_owned())
}

/// What psql says of an ERROR: label, SQLSTATE, message, DETAIL, HINT. Failed connections have no SQLSTATE.
fn failure(stderr: &str) -> Option<Failure> {
    if let Some(text) = labelled(stderr, &["ERROR:", "FATAL:", "PANIC:"]) {
        let (sqlstate, message) = match text.split_once(": ") {
            Some((state, message)) if is_sqlstate(state) => (Some(state.to_owned()), message.to_owned()),
            _ => (None, text),
        };
        let (_, after) = stderr.split_once(message.lines().next().unwrap_or_default())?;
        return Some(Failure {
            sqlstate,
            message,
            detail: labelled(after, &["DETAIL:"]),
            hint: labelled(after, &["HINT:"]),
        });
    }
    let said = stderr.lines().find_map(|line| line.strip_prefix("psql: error: "))?;
    let more = stderr.lines().skip_while(|line| !line.starts_with("psql: error: ")).skip(1);
    let said = [said].into_iter().chain(more).collect::<Vec<_>>().join("\n");
    Some(Failure::new(one_line(&said)))
}

fn is_sqlstate(text: &str) -> bool {
    text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit() || byte.is_ascii_uppercase())
}

fn warnings(stderr: &str) -> impl Iterator<Item = String> {
    let lines = stderr.lines().filter_map(|line| line.strip_prefix("WARNING:"));
    lines.map(|line| line.trim().split_once(": ").map_or(line.trim(), |(_, text)| text).to_owned())
}

/// The end of a step: `limit` from now on, and not later than that of the whole.
pub(crate) fn within(limit: Duration, end: Instant) -> Instant {
    (Instant::now() + limit).min(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_taken_apart() {
        let said = "WARNING:  01000: not so good\nLOCATION:  f, x.c:1\nERROR:  55000: node 2 has received more\nDETAIL:  It has 0/5,\nthis one 0/4.\n\
                    HINT:  Promote that.\nLOCATION:  report, log.rs:1\n";
        let failure = failure(said).expect("an ERROR");
        assert!(failure.is("55000"));
        assert_eq!(failure.message, "node 2 has received more");
        assert_eq!(failure.detail.as_deref(), Some("It has 0/5,\nthis one 0/4."));
        assert_eq!(failure.hint.as_deref(), Some("Promote that."));
        assert_eq!(warnings(said).collect::<Vec<_>>(), ["not so good"]);
    }

    #[test]
    fn a_failed_connection_is_told_in_libpqs_words() {
        let said =
            "psql: error: connection to server at \"a\" (10.0.0.1), port 5432 failed: timeout expired\n";
        let failure = failure(said).expect("a failure");
        assert_eq!(failure.sqlstate, None);
        assert!(
            failure.message.starts_with("connection to server at \"a\"")
                && failure.message.contains("timeout")
        );
        let said =
            "psql: error: connection to server at \"a\", port 1 failed: FATAL:  no pg_hba.conf entry\nmore\n";
        assert!(super::failure(said).expect("a failure").message.contains("no pg_hba.conf entry; more"));
    }

    #[test]
    fn an_empty_host_is_never_the_local_socket() {
        let login = Login { user: None, database: "postgres".to_owned() };
        let place = Place { node: 1, host: String::new(), port: 5432 };
        let failure = login.json(&place, "SELECT 1", &[], Instant::now()).expect_err("no host");
        assert!(failure.message.contains("no host"));
    }
}
