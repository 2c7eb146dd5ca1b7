//! The server that a standby follows, asked over the standby's own connection string: does it live, and as what?

use std::path::Path;
use std::time::{Duration, Instant};

use super::identify::{self, Identity};
use super::policy::Cluster;
use super::{control, describe, running};
use crate::error::{Error, Kind, Result};
use crate::replication::conninfo;
use crate::sys::cancel::Cancel;
use crate::sys::process;
use crate::wire::protocol::upstream::Answer;

/// How long one that starts or ends is left alone before it is asked again.
const PAUSE: Duration = Duration::from_millis(200);

/// What a server says that will soon say something else, or nothing.
const PASSING: [&str; 5] =
    ["shutting down", "starting up", "in recovery mode", "accepting connections", "terminating connection"];

/// What libpq says of a server that speaks with it and lets it in no further.
const UNWANTED: [&str; 3] = ["FATAL:", "fe_sendauth:", "server does not support SSL"];

/// Asks the server that the standby in a directory follows; `None` if none follows there.
pub(crate) fn of(cluster: &Cluster, time: Duration, cancel: &Cancel) -> Result<Option<Answer>> {
    let directory = &cluster.data_directory;
    if running::server(directory)?.is_none() {
        return Ok(None);
    }
    let Some(conninfo) = describe::primary_conninfo(cluster, cancel)? else { return Ok(None) };
    let (control, _) = control::read(directory)?;
    ask(&cluster.bin_directory, &conninfo, control.system_identifier, time, cancel).map(Some)
}

/// The server that a connection string leads to.
struct Upstream<'a> {
    bin_directory: &'a Path,
    /// Without its password.
    conninfo: String,
    password: Option<String>,
    /// Of the standby that follows it.
    system_identifier: u64,
}

/// Asks the server that `conninfo` leads to, as a walreceiver would; no other gets to see the credentials in it.
///
/// A server that is starting or shutting down is asked again until `time` is over.
pub fn ask(
    bin_directory: &Path,
    conninfo: &str,
    system_identifier: u64,
    time: Duration,
    cancel: &Cancel,
) -> Result<Answer> {
    let (conninfo, password) = conninfo::without_password(conninfo).ok_or_else(|| {
        Error::new(Kind::Unsupported, "primary_conninfo of this standby cannot be read")
            .hint("Write it as keywords and values: host=... port=... user=...")
    })?;
    let upstream = Upstream { bin_directory, conninfo, password, system_identifier };
    let end = Instant::now() + time;
    let mut refusal = None;
    loop {
        match upstream.ask(end.saturating_duration_since(Instant::now()), cancel) {
            Ok(Answer::Lives(text)) if PASSING.iter().any(|passing| text.contains(passing)) => {
                refusal = Some(text);
            }
            // no answer in time takes back nothing
            Err(error) if !is_refused(&error) => return refusal.map(Answer::Lives).ok_or(error),
            answer => return answer,
        }
        if cancel.is_tripped() || Instant::now() + PAUSE >= end {
            return refusal.map(Answer::Lives).ok_or_else(Error::canceled);
        }
        std::thread::sleep(PAUSE);
    }
}

/// Whether nothing listens where the server should be, which is more than that nothing answers.
pub fn is_refused(error: &Error) -> bool {
    let texts = ["Connection refused", "No such file or directory"];
    error.detail.as_ref().is_some_and(|detail| texts.iter().any(|text| detail.contains(text)))
}

impl Upstream<'_> {
    fn ask(&self, time: Duration, cancel: &Cancel) -> Result<Answer> {
        // a server in recovery is read-only whatever its settings say, and this one only then
        let conninfo = format!(
            "{} replication=true dbname=replication connect_timeout=4 options='-c default_transaction_read_only=off'",
            self.conninfo
        );
        let mut command =
            identify::command(self.bin_directory, &conninfo, Some("SHOW transaction_read_only"));
        if let Some(password) = &self.password {
            // an argument could be seen by every user of the host
            command.env("PGPASSWORD", password);
        }
        // what libpq says is read here
        command.env("LC_ALL", "C");
        let outcome = process::run(command, time, cancel)?;
        let silent = || Error::new(Kind::Unreachable, "the server that this standby follows does not answer");
        if !outcome.status.success() {
            let said = outcome.said();
            return if is_refusal(&said) { Ok(Answer::Lives(said)) } else { Err(silent().detail(said)) };
        }
        parse(&outcome.stdout, self.system_identifier).ok_or_else(|| silent().detail(outcome.said()))
    }
}

/// Whether a server has said that, not libpq for want of one: `connection to server at "db1" (10.0.0.1), port 5432 failed: FATAL:  ...`.
/// The server's word for FATAL may be of its own language; what follows it is a colon and two spaces in each.
fn is_refusal(said: &str) -> bool {
    let speaks = |line: &str| line.split_once(" failed: ").is_some_and(|(_, why)| why.contains(":  "));
    UNWANTED.iter().any(|unwanted| said.contains(unwanted)) || said.lines().any(speaks)
}

/// The answers: "7713200000000000001|1|0/3000148|" and "off".
fn parse(answer: &str, system_identifier: u64) -> Option<Answer> {
    let Identity { system_identifier: found, timeline, .. } = identify::parse(answer)?;
    let is_read_only = answer.lines().find_map(|line| match line.trim() {
        "on" => Some(true),
        "off" => Some(false),
        _ => None,
    })?;
    Some(match found == system_identifier {
        true if is_read_only => Answer::Standby,
        true => Answer::Primary(timeline),
        false => Answer::Other,
    })
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
        let answer = ask(top.path(), conninfo, 42, Duration::from_secs(2), &Cancel::new());
        (answer, std::fs::read_to_string(asked).unwrap_or_default())
    }

    #[test]
    fn a_primary_of_this_system_is_told_from_all_else() {
        let (answer, asked) = asked("echo '42|3|0/1|'; echo off");
        assert_eq!(answer, Ok(Answer::Primary(3)));
        assert!(asked.contains("host=db1 user=repl replication=true"), "{asked}");
        assert!(asked.ends_with("environment: se cret\n"), "{asked}");
        assert_eq!(asked.matches("se cret").count(), 1, "{asked}");
        assert_eq!(self::asked("echo '42|3|0/1|'; echo on").0, Ok(Answer::Standby));
        for read_only in ["on", "off"] {
            assert_eq!(self::asked(&format!("echo '43|3|0/1|'; echo {read_only}")).0, Ok(Answer::Other));
        }
    }

    #[test]
    fn silence_is_an_error() {
        let at = "psql: error: connection to server at \"db1\" (10.0.0.1), port 5432 failed:";
        for (answer, said) in [
            (format!("echo '{at} Connection refused' >&2; exit 2").as_str(), "Connection refused"),
            (format!("echo '{at} No route to host' >&2; exit 2").as_str(), "No route"),
            (format!("echo '{at} timeout expired' >&2; exit 2").as_str(), "timeout"),
            ("echo '42|3|0/1|'", "42"),
            ("echo off", "off"),
        ] {
            let error = asked(answer).0.expect_err("no answer");
            assert!(
                error.kind == Kind::Unreachable && error.detail.as_ref().is_some_and(|it| it.contains(said)),
                "{error:?}"
            );
        }
        let uri =
            ask(Path::new("/nonexistent"), "postgresql://db1/", 42, Duration::from_secs(2), &Cancel::new());
        assert_eq!(uri.expect_err("unread").kind, Kind::Unsupported);
    }

    const AT: &str = "psql: error: connection to server at \"db1\" (10.0.0.1), port 5432 failed:";

    #[test]
    fn a_refusal_comes_from_a_server_that_lives() {
        for why in [
            "FATAL:  sorry, too many clients already",
            "FATAL:  no pg_hba.conf entry for replication connection",
            "ВАЖНО:  some words in its own language",
            "fe_sendauth: no password supplied",
        ] {
            let answer = asked(&format!("echo '{AT} {why}' >&2; exit 2")).0.expect("an answer");
            assert!(matches!(&answer, Answer::Lives(text) if text.contains(why)), "{answer:?}");
        }
    }

    #[test]
    fn one_that_ends_or_starts_is_asked_again() {
        let first_then = |then: &str| {
            let begun = "$(dirname $0)/begun";
            asked(&format!("[ -e {begun} ] || {{ touch {begun}; echo '{AT} FATAL:  the database system is shutting down' >&2; exit 2; }}; {then}")).0
        };
        let gone = first_then(&format!("echo '{AT} Connection refused' >&2; exit 2"));
        assert!(gone.is_err_and(|error| is_refused(&error)));
        assert_eq!(first_then("echo '42|3|0/1|'; echo off"), Ok(Answer::Primary(3)));
        for then in ["sleep 60", &format!("echo '{AT} timeout expired' >&2; exit 2"), "exec false"] {
            let answer = first_then(then).expect("still an answer");
            assert!(matches!(&answer, Answer::Lives(text) if text.contains("shutting down")), "{answer:?}");
        }
    }
}
