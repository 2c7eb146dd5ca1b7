//! Why something did not work: one line, because a line is what Pgpool-II's log has for it.

use std::fmt;

pub(crate) type Result<T, E = Failure> = std::result::Result<T, E>;

/// What a server, a program or this one said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Failure {
    /// What PostgreSQL's ERROR has.
    pub(crate) sqlstate: Option<String>,
    pub(crate) message: String,
    pub(crate) detail: Option<String>,
    pub(crate) hint: Option<String>,
}

impl Failure {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), ..Self::default() }
    }

    #[must_use]
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same with more words before it.
    #[must_use]
    pub(crate) fn at(mut self, place: impl fmt::Display) -> Self {
        self.message = format!("{place}: {}", self.message);
        self
    }

    pub(crate) fn is(&self, sqlstate: &str) -> bool {
        self.sqlstate.as_deref() == Some(sqlstate)
    }

    /// Whether it says only that nobody answered at any of the host's addresses. Anything else came from a server, or failed on this side, and
    /// answers nothing. psql runs in the C locale.
    pub(crate) fn is_silence(&self) -> bool {
        if self.sqlstate.is_some() {
            return false;
        }
        let lines = self.message.split(['\n', ';']).map(str::trim);
        let mut lines =
            lines.filter(|line| !line.is_empty() && !line.starts_with("Is the server running")).peekable();
        self.message.contains(NO_ANSWER) || lines.peek().is_some() && lines.all(is_silent)
    }
}

/// Whether a line of libpq's says that no connection could be made. A server, or a proxy, may end its own words in the same way.
fn is_silent(line: &str) -> bool {
    let why = line.split_once(" failed: ").map_or(line, |(_, why)| why);
    let why = why.strip_prefix("could not connect to server: ").unwrap_or(why);
    let is_unknown = |end: &&str| why.starts_with("could not translate host name ") && why.ends_with(*end);
    SILENCE.contains(&why) || NO_NAME.iter().any(is_unknown)
}

/// What this program says of a server that does not answer in time.
pub(crate) const NO_ANSWER: &str = " gave no answer within ";

/// What libpq says of a connection that could not be made.
const SILENCE: [&str; 8] = [
    "Connection refused",
    "No such file or directory",
    "timeout expired",
    "Connection timed out",
    "No route to host",
    "Network is unreachable",
    "Network is down",
    "Host is down",
];

/// And of a name that does not exist, which are the resolver's own words.
pub(crate) const NO_NAME: [&str; 2] =
    [": Name or service not known", ": No address associated with hostname"];

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&one_line(&self.message))?;
        if let Some(sqlstate) = &self.sqlstate {
            write!(f, " ({sqlstate})")?;
        }
        for (label, text) in [("DETAIL", &self.detail), ("HINT", &self.hint)] {
            if let Some(text) = text {
                write!(f, " {label}: {}", one_line(text))?;
            }
        }
        Ok(())
    }
}

/// Lines become one.
pub(crate) fn one_line(text: &str) -> String {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_closed_list_is_silence() {
        let at = "node 3: connection to server at \"db3\" (203.0.113.3), port 5432 failed: ";
        let asks = "Is the server running on that host and accepting TCP/IP connections?";
        for silence in [
            format!("{at}Connection refused; {asks}"),
            format!("{at}timeout expired"),
            format!("{at}timeout expired; {at}No route to host; {asks}"),
            "could not translate host name \"db3\" to address: Name or service not known".to_owned(),
            "db3:5432 gave no answer within 5 s".to_owned(),
        ] {
            assert!(Failure::new(&silence).is_silence(), "{silence}");
        }
        for other in [
            format!("{at}FATAL:  pg_hba.conf rejects connection for host \"203.0.113.1\""),
            format!("{at}timeout expired; {at}FATAL:  the database system is starting up"),
            format!("{at}server closed the connection unexpectedly"),
            format!("{at}FATAL:  server login failed: Connection refused"),
            "\n ; ".to_owned(),
            "could not translate host name \"db3\" to address: Temporary failure in name resolution"
                .to_owned(),
            "psql ended with exit status: 127: ".to_owned(),
            String::new(),
        ] {
            assert!(!Failure::new(&other).is_silence(), "{other}");
        }
        assert!(
            !Failure { sqlstate: Some("42501".to_owned()), ..Failure::new("x: timeout expired") }
                .is_silence()
        );
    }

    #[test]
    fn a_failure_is_one_line() {
        let failure = Failure {
            sqlstate: Some("55000".to_owned()),
            detail: Some("It is ahead.\n\n  By far.".to_owned()),
            ..Failure::new("no\n").hint("Rebuild it.").at("node 1")
        };
        assert_eq!(failure.to_string(), "node 1: no (55000) DETAIL: It is ahead.; By far. HINT: Rebuild it.");
        assert!(failure.is("55000"));
    }
}
