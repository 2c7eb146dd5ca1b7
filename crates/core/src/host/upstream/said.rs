//! What psql said when it could not ask a server: is nobody there, does one live, or is it not known?
//!
//! Only a closed list counts as nobody. What is not on it came from a server, or from a failure here, which is no answer.

/// What is made of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Said {
    /// Nothing listens there.
    Refused,
    /// No connection came about, and nothing says more than that.
    Silent,
    /// A server spoke.
    Lives,
    /// A connection came about, and was closed without a word: by a server that ends, or by a proxy without one.
    Closed,
    /// The question failed before a server could answer, or in a way that tells nothing.
    Unclear,
}

/// connect(2) says these of a host where nothing listens, and of a socket that is not there.
const REFUSED: [&str; 2] = ["Connection refused", "No such file or directory"];

/// The same of a host that does not answer or cannot be reached; the first two are libpq's own.
const SILENT: [&str; 7] = [
    "timeout expired",
    "connection timeout expired",
    "Connection timed out",
    "No route to host",
    "Network is unreachable",
    "Network is down",
    "Host is down",
];

/// What a name service says of a host that it does not know. One that gives no answer says nothing of the host.
const UNKNOWN_HOST: &str = "could not translate host name ";
const NO_NAME: [&str; 2] = ["Name or service not known", "No address associated with hostname"];

/// Who was there is gone, or never spoke.
const CLOSED: [&str; 6] = [
    "server closed the connection",
    "Connection reset by peer",
    "EOF detected",
    "Broken pipe",
    "could not receive data from server",
    "could not send",
];

/// What fails on this side, although a connection came about or may have.
const LOCAL: [&str; 11] = [
    "certificate file",
    "private key",
    "home directory",
    "out of memory",
    "Cannot allocate memory",
    "Permission denied",
    "Operation not permitted",
    "Cannot assign requested address",
    "Too many open files",
    "could not create",
    "could not set",
];

/// What libpq before version 14, which names no connection in its errors, says of a server that speaks with it.
const SPOKEN: [&str; 6] = [
    "FATAL:",
    "ERROR:",
    "fe_sendauth:",
    "server does not support SSL",
    "certificate verify failed",
    "does not match host name",
];

/// The error of a host whose name service gave no answer, as libpq would tell it.
pub(super) fn no_name(host: &str) -> String {
    format!("{UNKNOWN_HOST}\"{host}\" to address: no answer in time")
}

/// Judges what psql wrote to its standard error.
pub(super) fn judge(said: &str) -> Said {
    let mut worst = None;
    // what libpq adds to an error is indented: "\tIs the server running on that host and accepting TCP/IP connections?"
    let lines = said.lines().filter(|line| !line.trim().is_empty() && !line.starts_with(char::is_whitespace));
    for said in lines.filter(|line| !is_aside(line)).map(judge_line) {
        let rank = |said: &Said| match said {
            Said::Refused => 0,
            Said::Silent => 1,
            Said::Unclear => 2,
            Said::Closed => 3,
            Said::Lives => 4,
        };
        worst = worst.into_iter().chain([said]).max_by_key(rank);
    }
    worst.unwrap_or(Said::Unclear)
}

/// Words of the loader's, and of libpq's about a password file.
fn is_aside(line: &str) -> bool {
    line.starts_with("WARNING: ") || line.contains("no version information available")
}

/// `psql: error: connection to server at "db1" (10.0.0.1), port 5432 failed: Connection refused`, or, before version 14,
/// `psql: error: could not connect to server: Connection refused`.
fn judge_line(line: &str) -> Said {
    let line = line.strip_prefix("psql: ").unwrap_or(line);
    let mut line = line.strip_prefix("error: ").unwrap_or(line);
    while let Some(rest) = line.strip_prefix("could not connect to server: ") {
        line = rest;
    }
    let connection =
        line.strip_prefix("connection to server ").and_then(|line| Some(line.split_once(" failed: ")?.1));
    let why = connection.unwrap_or(line).trim_end();
    let has = |texts: &[&str]| texts.iter().any(|text| why.contains(text));
    if REFUSED.contains(&why) {
        Said::Refused
    } else if SILENT.contains(&why)
        || why.starts_with(UNKNOWN_HOST) && NO_NAME.iter().any(|end| why.ends_with(&format!(": {end}")))
    {
        Said::Silent
    } else if has(&SPOKEN) || connection.is_some_and(|why| why.contains(":  ")) {
        // the server's word for FATAL may be of its own language; what follows it is a colon and two spaces in each
        Said::Lives
    } else if has(&CLOSED) {
        Said::Closed
    } else if connection.is_some() && !has(&LOCAL) {
        Said::Lives
    } else {
        Said::Unclear
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: &str = "psql: error: connection to server at \"db1\" (10.0.0.1), port 5432 failed:";
    const ASKS: &str = "\n\tIs the server running on that host and accepting TCP/IP connections?";

    #[track_caller]
    fn demand(expected: Said, texts: &[&str]) {
        for text in texts {
            assert_eq!(judge(text), expected, "{text}");
        }
    }

    #[test]
    fn nobody_is_there_where_no_connection_comes_about() {
        let of = |why: &str| format!("{AT} {why}{ASKS}");
        let socket = "psql: error: connection to server on socket \"/run/.s.PGSQL.5432\" failed: No such file or directory\n\tIs the server running locally?";
        let older = "psql: error: could not connect to server: could not connect to server: Connection refused\n\tIs the server running on host \"db1\" (10.0.0.1)?";
        demand(
            Said::Refused,
            &[
                &of("Connection refused"),
                socket,
                older,
                "psql: could not connect to server: Connection refused",
                &format!("WARNING: password file \"/x\" has group or world access\n{AT} Connection refused"),
                &format!(
                    "{AT} Connection refused{ASKS}\nconnection to server at \"db1\" (::1), port 5432 failed: Connection refused"
                ),
            ],
        );
        demand(
            Said::Silent,
            &[
                &of("Connection timed out"),
                &of("timeout expired"),
                &of("No route to host"),
                &of("Network is unreachable"),
                "psql: error: timeout expired",
                "psql: error: could not translate host name \"db1\" to address: Name or service not known",
                &format!(
                    "{AT} Connection refused{ASKS}\nconnection to server at \"db1\" (::1), port 5432 failed: timeout expired"
                ),
            ],
        );
    }

    #[test]
    fn whatever_else_a_connection_ends_with_a_server_said() {
        for why in [
            "FATAL:  sorry, too many clients already",
            "ВАЖНО:  some words in its own language",
            "fe_sendauth: no password supplied",
            "SSL error: certificate verify failed",
            "server certificate for \"db1\" does not match host name \"db2\"",
            "GSSAPI continuation error: No credentials were supplied",
            "authentication method requirement \"scram-sha-256\" failed: server requested a cleartext password",
            "session is read-only",
            "words that nobody has heard yet",
        ] {
            demand(
                Said::Lives,
                &[&format!("{AT} {why}"), &format!("{AT} Connection refused{ASKS}\n{AT} {why}")],
            );
        }
        demand(
            Said::Lives,
            &[
                "psql: error: could not connect to server: FATAL:  no pg_hba.conf entry",
                "psql: error: SSL error: certificate verify failed",
                "ERROR:  syntax error",
            ],
        );
    }

    #[test]
    fn an_error_here_is_no_answer() {
        demand(
            Said::Closed,
            &[
                &format!(
                    "{AT} server closed the connection unexpectedly\n\tThis probably means the server terminated abnormally"
                ),
                &format!("{AT} could not receive data from server: Connection reset by peer"),
                &format!("{AT} SSL SYSCALL error: EOF detected"),
            ],
        );
        demand(
            Said::Unclear,
            &[
                "",
                "psql: error while loading shared libraries: libpq.so.5: cannot open shared object file: No such file or directory",
                "psql: error: definition of service \"up\" not found",
                "psql: error: could not translate host name \"db1\" to address: Memory allocation failure",
                "psql: error: could not translate host name \"db1\" to address: Temporary failure in name resolution",
                &no_name("db1"),
                "psql: error: could not open certificate file \"/x\": No such file or directory",
                &format!("{AT} root certificate file \"/x\" does not exist"),
                &format!("{AT} could not read root certificate file \"/x\": No such file or directory"),
                &format!("{AT} Permission denied{ASKS}"),
                &format!("{AT} Connection refused{ASKS}\n{AT} Cannot assign requested address"),
                "psql: error: invalid port number: \"x\"",
            ],
        );
    }
}
