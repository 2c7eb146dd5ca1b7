//! What a caller asks for: the arguments of the SQL functions, checked.

use std::net::IpAddr;

use pgpool_recovery_core::error::{Error, Kind, Result};

use crate::settings::Settings;

/// Longest host name, address or socket path accepted, in bytes (Pgpool-II sends at most 254).
pub(crate) const MAX_HOST: usize = 255;

/// Longest target directory accepted, in bytes (PostgreSQL's MAXPGPATH).
pub(crate) const MAX_DIR: usize = 1024;

/// How much of an unusable value an error message repeats, in characters.
const SHOWN: usize = 100;

/// One recovery: which target, from which address of this primary.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Request {
    /// Host of the target: name, address, unix-socket path, or empty for this host.
    pub(crate) dest_host: String,
    /// Data directory of the target: absolute, without `..`.
    pub(crate) dest_dir: String,
    /// The primary's port for `primary_conninfo`; `None`: that of the settings.
    pub(crate) port: Option<u16>,
    /// Pgpool-II's number of the node.
    pub(crate) node_id: Option<i32>,
    /// The target's own port.
    pub(crate) dest_port: Option<u16>,
    /// The primary's host for `primary_conninfo`, as Pgpool-II knows it.
    pub(crate) primary_host: Option<String>,
    /// Where that leads, if it must not be looked up again.
    pub(crate) primary_addresses: Vec<IpAddr>,
    /// Whether the standby is made to be promoted by a second stage.
    pub(crate) is_native: bool,
}

impl Request {
    /// With what the options of the call say about the target.
    pub(crate) fn of(self, settings: &Settings) -> Self {
        Self { node_id: settings.node_id, dest_port: settings.dest_port, is_native: settings.native, ..self }
    }
}

/// The value of an argument that must not be NULL.
pub(crate) fn required<T>(argument: &str, value: Option<T>) -> Result<T> {
    value.ok_or_else(|| {
        Error::new(Kind::NullArgument, format!("argument \"{argument}\" must not be null"))
            .hint("Pass a value; the functions of this extension have no null defaults.")
    })
}

/// A host name, an IP address, a unix-socket path, or nothing (this host).
pub(crate) fn host(argument: &str, text: &str) -> Result<String> {
    let socket_path = text.starts_with('/') || text.starts_with('@');
    let usable = |c: char| {
        c.is_ascii_alphanumeric()
            || matches!(c, '.' | '-' | '_' | ':')
            // the zone of an IPv6 address
            || c == '%' && text.contains(':')
            || socket_path && matches!(c, '/' | '@' | '+' | '~' | '=' | ',')
    };
    let problem = if text.len() > MAX_HOST {
        Some(format!("It is {} bytes long, the limit is {MAX_HOST}.", text.len()))
    } else if text.starts_with('-') {
        Some("A host does not start with a hyphen.".to_owned())
    } else {
        text.chars().find(|&c| !usable(c)).map(|c| {
            format!(
                "It contains {c:?}; a host is a name, an IP address or the path of a unix-socket directory."
            )
        })
    };
    match problem {
        None => Ok(text.to_owned()),
        Some(problem) => Err(invalid(argument, text).detail(problem)),
    }
}

/// The absolute path of a data directory.
pub(crate) fn directory(argument: &str, text: &str) -> Result<String> {
    let problem = if text.is_empty() {
        Some("It is empty.".to_owned())
    } else if text.len() > MAX_DIR {
        Some(format!("It is {} bytes long, the limit is {MAX_DIR}.", text.len()))
    } else if !text.starts_with('/') {
        Some("It is not absolute: it does not start with \"/\".".to_owned())
    } else if text.split('/').any(|part| part == "..") {
        Some("It has a \"..\" component.".to_owned())
    } else if text.split('/').all(|part| part.is_empty() || part == ".") {
        Some("It is the root directory.".to_owned())
    } else if text.chars().any(char::is_control) {
        Some("It contains a control character.".to_owned())
    } else {
        None
    };
    match problem {
        None => Ok(text.to_owned()),
        Some(problem) => Err(invalid(argument, text)
            .detail(problem)
            .hint("Pass the absolute path of the target's data directory, as in backend_data_directory of pgpool.conf.")),
    }
}

/// A TCP port written in decimal digits, as Pgpool-II sends it.
pub(crate) fn port(argument: &str, text: &str) -> Result<u16> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits
        .then(|| text.parse().ok())
        .flatten()
        .filter(|&port| port != 0)
        .ok_or_else(|| invalid(argument, text).detail("A port is a decimal number from 1 to 65535."))
}

/// A TCP port given as a number.
pub(crate) fn port_number(argument: &str, number: i32) -> Result<u16> {
    u16::try_from(number).ok().filter(|&port| port != 0).ok_or_else(|| {
        Error::new(Kind::InvalidArgument, format!("invalid value for argument \"{argument}\": {number}"))
            .detail("A port is a number from 1 to 65535.")
    })
}

/// Pgpool-II's number of a node.
pub(crate) fn node(argument: &str, number: i32) -> Result<i32> {
    if number >= 0 {
        return Ok(number);
    }
    Err(Error::new(Kind::InvalidArgument, format!("invalid value for argument \"{argument}\": {number}"))
        .detail("The number of a node is 0 or greater."))
}

/// A value as an error message shows it: quoted, unprintable characters escaped, long ones cut.
pub(crate) fn shown(text: &str) -> String {
    let head: String = text.chars().take(SHOWN).collect();
    let escaped: String = head.chars().flat_map(escape).collect();
    let dots = if head.len() < text.len() { "..." } else { "" };
    format!("\"{escaped}{dots}\"")
}

/// Keeps what a log line can hold, quotes and backslashes included (paths are easier to read so).
fn escape(c: char) -> impl Iterator<Item = char> {
    let (plain, escaped) = if c.is_control() { (None, Some(c.escape_unicode())) } else { (Some(c), None) };
    plain.into_iter().chain(escaped.into_iter().flatten())
}

fn invalid(argument: &str, text: &str) -> Error {
    Error::new(Kind::InvalidArgument, format!("invalid value for argument \"{argument}\": {}", shown(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts() {
        for good in
            ["", "localhost", "db-1.example.com", "10.0.0.1", "fe80::1%eth0", "/var/run/postgresql", "a_b"]
        {
            assert_eq!(host("h", good).as_deref(), Ok(good));
        }
        let long = "a".repeat(MAX_HOST + 1);
        for bad in ["a b", "%h", "a;b", "a'b", "$(x)", "a\nb", "h\u{e4}", "a/b", "-x", "`", long.as_str()] {
            let error = host("dest_host", bad).expect_err(bad);
            assert_eq!(error.kind, Kind::InvalidArgument);
            assert!(error.message.contains("\"dest_host\""), "{error}");
            assert!(error.detail.is_some());
            assert!(error.message.len() < 200 && !error.message.contains('\n'), "{error}");
        }
    }

    #[test]
    fn directories() {
        for good in ["/data", "/var/lib/postgresql/15/main/", "/with space/'quote'", "/\u{fc}ber", "/a..b"] {
            assert_eq!(directory("d", good).as_deref(), Ok(good));
        }
        let long = format!("/{}", "a".repeat(MAX_DIR));
        for bad in ["", "data", "./data", "/a/../b", "/..", "/", "//.", "/a\nb", "/a\0b", long.as_str()] {
            assert_eq!(directory("dest_dir", bad).expect_err(bad).kind, Kind::InvalidArgument);
        }
    }

    #[test]
    fn ports() {
        assert_eq!(port("p", "5432"), Ok(5432));
        assert_eq!(port("p", "65535"), Ok(65535));
        for bad in
            ["", "0", "65536", "-1", "+5432", " 5432", "5432 ", "54x", "99999999999999999999", "\u{0665}"]
        {
            assert_eq!(port("port", bad).expect_err(bad).kind, Kind::InvalidArgument);
        }
        assert_eq!(port_number("p", 1), Ok(1));
        for bad in [0, -1, 65536, i32::MIN] {
            assert!(port_number("port", bad).is_err());
        }
        assert_eq!(node("node_id", 0), Ok(0));
        assert_eq!(node("node_id", -1).expect_err("none").kind, Kind::InvalidArgument);
    }

    #[test]
    fn nulls_name_the_argument() {
        let error = required::<i32>("dest_dir", None).expect_err("null");
        assert_eq!(error.kind, Kind::NullArgument);
        assert_eq!(error.message, "argument \"dest_dir\" must not be null");
    }

    #[test]
    fn long_and_unprintable_values_are_shortened_and_escaped() {
        assert_eq!(shown("a\tb"), "\"a\\u{9}b\"");
        assert!(shown(&"x".repeat(5000)).len() < 120);
    }
}
