//! The files that make a copy of a primary its standby: texts in, texts out.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};
use crate::exclude::MYRECOVERY_CONF;
use crate::protocol::message::{Listening, Standby};

/// How the standby connects.
///
/// A receiver is told these fields and writes the connection string itself ([`Following::conninfo`]), so that no
/// value can bring another keyword (`service`, `sslkey`, ...) along.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Following {
    /// Host name, address or socket directory of the primary.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Replication user.
    pub user: String,
    /// How the standby calls itself in `pg_stat_replication`.
    pub application_name: String,
    /// `passfile`, or empty.
    pub passfile: String,
    /// The slot on the primary, or empty. No part of the connection: a trial login is not told.
    #[serde(skip)]
    pub slot_name: String,
    /// `restore_command`, or empty. A trial login is not told.
    #[serde(skip)]
    pub restore_command: String,
}

/// Longest host, user or application name, bytes: what name resolution allows (NI_MAXHOST).
const MAX_NAME: usize = 1024;

/// Longest path of a password file, bytes (PATH_MAX).
const MAX_PATH: usize = 4095;

impl Following {
    /// Refuses fields that no connection has.
    pub fn validate_connection(&self) -> Result<()> {
        let fields = [
            ("host", &self.host, MAX_NAME),
            ("user", &self.user, MAX_NAME),
            ("application_name", &self.application_name, MAX_NAME),
            ("passfile", &self.passfile, MAX_PATH),
        ];
        for (name, value, limit) in fields {
            let problem = if value.len() > limit {
                format!("It has {} bytes; {limit} is the most.", value.len())
            } else if value.chars().any(char::is_control) {
                "It contains a control character.".to_owned()
            } else if value.is_empty() && matches!(name, "host" | "user") {
                "It is empty.".to_owned()
            } else if name == "passfile" && !value.is_empty() && !value.starts_with('/') {
                format!("\"{value}\" is not an absolute path: it would depend on where a program is run.")
            } else {
                continue;
            };
            let message = format!("invalid {name} for the connection to the primary");
            return Err(Error::new(Kind::InvalidArgument, message).detail(problem));
        }
        Ok(())
    }

    /// `primary_conninfo`: libpq's keyword/value form.
    pub fn conninfo(&self) -> String {
        let port = self.port.to_string();
        let mut pairs = vec![
            ("host", self.host.as_str()),
            ("port", &port),
            ("user", &self.user),
            ("application_name", &self.application_name),
        ];
        if !self.passfile.is_empty() {
            pairs.push(("passfile", &self.passfile));
        }
        let words: Vec<String> =
            pairs.into_iter().map(|(key, value)| format!("{key}={}", quote_conninfo(value))).collect();
        words.join(" ")
    }

    /// The content of myrecovery.conf.
    pub fn myrecovery_conf(&self) -> Result<String> {
        let mut text = String::from("# written by pgpool_recovery; the next recovery replaces it\n");
        let mut set = |name: &str, value: &str| -> Result<()> {
            text.push_str(&format!("{name} = {}\n", quote_setting(name, value)?));
            Ok(())
        };
        set("primary_conninfo", &self.conninfo())?;
        set("recovery_target_timeline", "latest")?;
        if !self.slot_name.is_empty() {
            set("primary_slot_name", &self.slot_name)?;
        }
        if !self.restore_command.is_empty() {
            set("restore_command", &self.restore_command)?;
        }
        Ok(text)
    }
}

/// The settings in postgresql.auto.conf and postgresql.conf that would override myrecovery.conf, or
/// end recovery where it must not end.
pub fn is_recovery_setting(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    matches!(name.as_str(), "primary_conninfo" | "primary_slot_name" | "restore_command")
        || name.starts_with("recovery_target")
}

/// Settings that say where files of one server are: a standby has its own places.
fn is_place(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    matches!(
        name.as_str(),
        "data_directory" | "config_file" | "hba_file" | "ident_file" | "external_pid_file"
    )
}

/// postgresql.auto.conf without the settings of a standby: it is read last and would win. `own_port`: the
/// standby has a port of its own, so the primary's goes, too.
pub fn without_recovery_settings(text: &str, own_port: bool) -> String {
    lines_except(text, |line| {
        setting_name(line)
            .is_some_and(|name| is_recovery_setting(name) || own_port && name.eq_ignore_ascii_case("port"))
    })
}

/// A primary's postgresql.conf made the standby's own: its port, and myrecovery.conf read last.
/// `include` is what the `include_if_exists` line names.
pub fn adopted_configuration(text: &str, port: Option<u16>, include: &str) -> String {
    // an absolute path here would point into the primary's own directory
    let mut adopted =
        lines_except(text, |line| includes_some_myrecovery(line) || setting_name(line).is_some_and(is_place));
    end_line(&mut adopted);
    if let Some(port) = port {
        adopted.push_str(&format!("port = {port}\n"));
    }
    adopted.push_str(&include_line(include));
    adopted
}

/// The configuration with the line that reads myrecovery.conf at its end; `None` if it reads it
/// already and nothing behind that overrides it.
pub fn with_include(text: &str, include: &str) -> Option<String> {
    if reads_myrecovery(text, include) {
        return None;
    }
    let mut extended = text.to_owned();
    end_line(&mut extended);
    extended.push_str(&include_line(include));
    Some(extended)
}

/// Whether a configuration reads the myrecovery.conf at `include` (absolute), or `myrecovery.conf`
/// beside itself, with no setting behind it that overrides it.
pub fn reads_myrecovery(text: &str, include: &str) -> bool {
    let mut reads = false;
    for line in text.lines() {
        match setting_name(line) {
            Some("include" | "include_if_exists") => {
                let value = setting_value(line);
                reads |= value == include || (value == MYRECOVERY_CONF && !include.is_empty());
            }
            Some(name) if is_recovery_setting(name) => reads = false,
            _ => {}
        }
    }
    reads
}

/// Where a server with this configuration listens, files that it includes not counted.
pub fn listening(text: &str) -> Listening {
    let mut listening = Listening { port: 5432, addresses: "localhost".to_owned() };
    for line in text.lines() {
        match setting_name(line) {
            Some("port") => listening.port = setting_value(line).parse().unwrap_or(listening.port),
            Some("listen_addresses") => listening.addresses = setting_value(line),
            _ => {}
        }
    }
    listening
}

/// What a myrecovery.conf (ours, or one of Pgpool-II's sample scripts) says about its standby.
pub fn parse_myrecovery(text: &str) -> Standby {
    let mut standby = Standby::default();
    for line in text.lines() {
        match setting_name(line) {
            Some("primary_slot_name") => standby.slot_name = Some(setting_value(line)),
            Some("primary_conninfo") => {
                standby.application_name = conninfo_value(&setting_value(line), "application_name");
            }
            _ => {}
        }
    }
    standby
}

/// tablespace_map as pg_backup_stop gives it, with the locations on the target.
/// Format: `OID location`, backslash before a line end in a location (basebackup).
pub fn mapped_tablespace_map(tablespaces: &[crate::plan::Tablespace]) -> String {
    tablespaces
        .iter()
        .map(|tablespace| {
            let escaped = tablespace.target.replace('\\', "\\\\").replace('\n', "\\\n");
            format!("{} {escaped}\n", tablespace.oid)
        })
        .collect()
}

fn quote_conninfo(value: &str) -> String {
    let plain = !value.is_empty()
        && value.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-:/%@+".contains(&byte));
    if plain { value.to_owned() } else { format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'")) }
}

/// A value in postgresql.conf: single quotes, doubled inside, backslashes doubled (guc-file.l).
fn quote_setting(name: &str, value: &str) -> Result<String> {
    if value.contains(['\n', '\r', '\0']) {
        return Err(Error::new(Kind::InvalidArgument, format!("value for \"{name}\" contains a line break")));
    }
    Ok(format!("'{}'", value.replace('\\', "\\\\").replace('\'', "''")))
}

fn include_line(include: &str) -> String {
    format!("include_if_exists = '{}'\n", include.replace('\\', "\\\\").replace('\'', "''"))
}

fn includes_some_myrecovery(line: &str) -> bool {
    matches!(setting_name(line), Some("include" | "include_if_exists"))
        && setting_value(line).rsplit('/').next() == Some(MYRECOVERY_CONF)
}

fn lines_except(text: &str, drop: impl Fn(&str) -> bool) -> String {
    text.split_inclusive('\n').filter(|line| !drop(line)).collect()
}

fn end_line(text: &mut String) {
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
}

/// The name a line of postgresql.conf sets.
fn setting_name(line: &str) -> Option<&str> {
    let line = line.trim_start();
    let end = line.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '.')).unwrap_or(line.len());
    (end > 0).then(|| &line[..end])
}

/// The value a line of postgresql.conf sets, unquoted.
fn setting_value(line: &str) -> String {
    let line = line.trim_start();
    let rest = line.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.');
    let rest = rest.trim_start().trim_start_matches('=').trim_start();
    let Some(quoted) = rest.strip_prefix('\'') else {
        return rest.split(['#', ' ', '\t', '\r', '\n']).next().unwrap_or_default().to_owned();
    };
    let mut value = String::new();
    let mut chars = quoted.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\'' if chars.peek() == Some(&'\'') => {
                value.push('\'');
                chars.next();
            }
            '\'' => break,
            '\\' => value.extend(chars.next()),
            _ => value.push(c),
        }
    }
    value
}

/// One keyword's value in a libpq keyword/value string.
fn conninfo_value(conninfo: &str, wanted: &str) -> Option<String> {
    let mut rest = conninfo.trim_start();
    while let Some((key, tail)) = rest.split_once('=') {
        let tail = tail.trim_start();
        let mut value = String::new();
        let mut chars = tail.char_indices();
        let quoted = tail.starts_with('\'');
        if quoted {
            chars.next();
        }
        let mut end = tail.len();
        while let Some((at, c)) = chars.next() {
            match c {
                '\\' => value.extend(chars.next().map(|(_, escaped)| escaped)),
                '\'' if quoted => {
                    end = at + 1;
                    break;
                }
                c if !quoted && c.is_whitespace() => {
                    end = at;
                    break;
                }
                c => value.push(c),
            }
        }
        if key.trim() == wanted {
            return Some(value);
        }
        rest = tail[end..].trim_start();
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn following() -> Following {
        Following {
            host: "10.0.0.1".to_owned(),
            port: 5432,
            user: "repl".to_owned(),
            application_name: "node 1's".to_owned(),
            passfile: String::new(),
            slot_name: "node1".to_owned(),
            restore_command: String::new(),
        }
    }

    #[test]
    fn myrecovery_conf_is_quoted_twice() {
        let text = following().myrecovery_conf().expect("valid");
        assert!(
            text.contains(
                r"primary_conninfo = 'host=10.0.0.1 port=5432 user=repl application_name=''node 1\\''s'''"
            ),
            "{text}"
        );
        assert!(text.contains("recovery_target_timeline = 'latest'\nprimary_slot_name = 'node1'\n"));
        assert!(!text.contains("restore_command"));
    }

    #[test]
    fn a_connection_has_only_values_that_can_be_written() {
        assert_eq!(following().validate_connection(), Ok(()));
        let absolute = Following { passfile: "/home/of a/'user'/.pgpass".to_owned(), ..following() };
        assert_eq!(absolute.validate_connection(), Ok(()));
        let refused = |change: &dyn Fn(&mut Following), word: &str| {
            let mut following = following();
            change(&mut following);
            let error = following.validate_connection().expect_err(word);
            assert_eq!(error.kind, Kind::InvalidArgument);
            assert!(error.message.contains(word), "{error}");
        };
        refused(&|following| following.host = "a\nb".to_owned(), "host");
        refused(&|following| following.host.clear(), "host");
        refused(&|following| following.user.clear(), "user");
        refused(&|following| following.user = "x".repeat(1025), "user");
        refused(&|following| following.application_name = "\0".to_owned(), "application_name");
        refused(&|following| following.passfile = ".pgpass".to_owned(), "passfile");
        refused(&|following| following.passfile = format!("/{}", "x".repeat(4095)), "passfile");
    }

    #[test]
    fn a_value_brings_no_keyword_along() {
        let following = Following {
            host: "h service=x".to_owned(),
            application_name: "a' sslkey='engine:x".to_owned(),
            passfile: "/x\\' passfile=/etc/shadow".to_owned(),
            ..following()
        };
        let conninfo = following.conninfo();
        for keyword in ["service", "sslkey"] {
            assert_eq!(conninfo_value(&conninfo, keyword), None, "{conninfo}");
        }
        assert_eq!(conninfo_value(&conninfo, "host").as_deref(), Some("h service=x"));
        assert_eq!(conninfo_value(&conninfo, "application_name").as_deref(), Some("a' sslkey='engine:x"));
        assert_eq!(conninfo_value(&conninfo, "passfile").as_deref(), Some("/x\\' passfile=/etc/shadow"));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(name in "[ -~é]{1,20}", slot in "[a-z0-9_]{1,10}") {
            let following = Following { application_name: name.clone(), slot_name: slot.clone(), ..following() };
            let standby = parse_myrecovery(&following.myrecovery_conf().expect("valid"));
            prop_assert_eq!(standby.application_name, Some(name));
            prop_assert_eq!(standby.slot_name, Some(slot));
        }

        #[test]
        fn parsers_never_panic(text in "[ -~\n\\\\'=é]{0,60}") {
            let _ = parse_myrecovery(&text);
            let _ = with_include(&text, "/x/myrecovery.conf");
            let _ = without_recovery_settings(&text, true);
        }
    }

    #[test]
    fn line_breaks_cannot_smuggle_a_setting() {
        let mut following = following();
        following.restore_command = "x'\narchive_command = 'y".to_owned();
        assert!(following.myrecovery_conf().is_err());
    }

    #[test]
    fn settings_that_would_override_are_dropped() {
        let text = "# c\nport = 5\nprimary_conninfo = 'x'\n Recovery_target_xid='7'\nrestore_command='cp'\nfoo.x = 1";
        assert_eq!(without_recovery_settings(text, false), "# c\nport = 5\nfoo.x = 1");
        assert_eq!(without_recovery_settings(text, true), "# c\nfoo.x = 1");
    }

    #[test]
    fn a_kept_configuration_gets_the_include_once() {
        let include = "/data/myrecovery.conf";
        let once = with_include("port = 1", include).expect("added");
        assert_eq!(once, "port = 1\ninclude_if_exists = '/data/myrecovery.conf'\n");
        assert_eq!(with_include(&once, include), None);
        assert_eq!(with_include("include_if_exists 'myrecovery.conf'\n", include), None);
        let overridden = format!("{once}primary_conninfo = 'host=old'\n");
        assert!(with_include(&overridden, include).is_some());
        assert!(with_include("#include_if_exists = '/data/myrecovery.conf'\n", include).is_some());
        assert!(with_include("include_if_exists = '/other/myrecovery.conf'\n", include).is_some());
    }

    #[test]
    fn a_copied_configuration_forgets_where_it_came_from() {
        let text = "port = 1\ndata_directory = '/primary'\ninclude_if_exists = '/primary/myrecovery.conf'\nwork_mem = '1MB'";
        let adopted = adopted_configuration(text, Some(7), "/standby/myrecovery.conf");
        assert_eq!(
            adopted,
            "port = 1\nwork_mem = '1MB'\nport = 7\ninclude_if_exists = '/standby/myrecovery.conf'\n"
        );
    }
}
