//! The files that make a copy of a primary its standby: texts in, texts out.

use std::net::IpAddr;
use std::path::Path;

use pgdata::configuration::line::{self, Line};
use pgdata::configuration::{self, Reading, is_named};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};
use crate::manifest::exclude::{MYRECOVERY_CONF, is_of_the_copy};
use crate::manifest::path::{RelPath, normalize_directory};
use crate::replication::{conninfo, places, recovery_settings};

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listening {
    /// `port`
    pub port: u16,
    /// `listen_addresses`
    pub addresses: String,
}

/// How the standby is set to follow its primary.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standby {
    /// `application_name` in `primary_conninfo`.
    pub application_name: Option<String>,
    /// `primary_slot_name`.
    pub slot_name: Option<String>,
}

/// How the standby connects.
///
/// A receiver is told these fields and writes the connection string itself ([`ReplicationConfig::conninfo`]), so that no
/// value can bring another keyword (`service`, `sslkey`, ...) along.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicationConfig {
    /// Host name, address or socket directory of the primary.
    pub host: String,
    /// Where `host` leads, if its name must not be looked up again: the owner of the name could lead the
    /// standby, and its password, to another server.
    pub host_addresses: Vec<IpAddr>,
    /// Its port.
    pub port: u16,
    /// Replication user.
    pub user: String,
    /// How the standby calls itself in `pg_stat_replication`.
    pub application_name: String,
    /// `passfile`, or empty.
    pub passfile: String,
    /// Whether libpq (16 and later) must not send the password in clear.
    pub forbids_cleartext_password: bool,
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

impl ReplicationConfig {
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
        // libpq tries one address after the other; a password file is asked for the name of each
        let addresses: Vec<String> = self.host_addresses.iter().map(ToString::to_string).collect();
        let (hosts, addresses) =
            (vec![self.host.as_str(); addresses.len().max(1)].join(","), addresses.join(","));
        let mut pairs = vec![("host", hosts.as_str())];
        if !addresses.is_empty() {
            pairs.push(("hostaddr", &addresses));
        }
        pairs.extend([
            ("port", port.as_str()),
            ("user", &self.user),
            ("application_name", &self.application_name),
        ]);
        if !self.passfile.is_empty() {
            pairs.push(("passfile", &self.passfile));
        }
        if self.forbids_cleartext_password {
            pairs.push(("require_auth", "!password"));
        }
        let words: Vec<String> =
            pairs.into_iter().map(|(key, value)| format!("{key}={}", conninfo::quoted(value))).collect();
        words.join(" ")
    }

    /// The content of myrecovery.conf for a server of this major version: every parameter that could keep a standby from
    /// following, whatever is said about it in files that are read before.
    pub fn myrecovery_conf(&self, major: u32) -> Result<String> {
        let mut text = String::from("# written by pgpool_recovery; the next recovery replaces it\n");
        for parameter in recovery_settings::of_version(major) {
            let name = parameter.name;
            let value = match name {
                "primary_conninfo" => self.conninfo(),
                "primary_slot_name" => self.slot_name.clone(),
                "restore_command" => self.restore_command.clone(),
                _ => parameter.neutral.to_owned(),
            };
            text.push_str(&format!("{name} = {}\n", quote_setting(name, &value)?));
        }
        Ok(text)
    }
}

/// The password file as a path in the standby's data directory, if it lies there by its name and may be kept. Only the
/// standby's host can follow links.
pub fn passfile_inside(passfile: &str, directory: &Path) -> Option<RelPath> {
    let passfile = normalize_directory(passfile).ok()?;
    let inside = passfile.strip_prefix(directory).ok()?;
    RelPath::parse(inside.to_str()?).ok().filter(|path| !is_of_the_copy(path.as_str()))
}

/// The primary's postgresql.auto.conf without the settings of a standby: it is read last and would win. `own`: settings
/// that the standby has of its own, and that the primary's must not override.
pub fn without_recovery_settings(text: &[u8], own: &[String]) -> Vec<u8> {
    configuration::without(text, |name, _| {
        // ALTER SYSTEM sets hba_file and ident_file, too
        recovery_settings::named(name).is_some()
            || places::is_place(name)
            || own.iter().any(|own| is_named(name, own))
    })
}

/// A primary's postgresql.conf made the standby's own: its port, and myrecovery.conf read last.
/// `include` is what the `include_if_exists` line names, `places` what [`places::own_places`] gave.
pub fn adopted_configuration(text: &[u8], port: Option<u16>, places: &str, include: &str) -> Vec<u8> {
    let mut adopted = configuration::without(text, |name, value| {
        // an absolute path here would point into the primary's own directory
        places::is_place(name)
            || recovery_settings::named(name).is_some()
            || includes_some_myrecovery(name, value)
    });
    if let Some(port) = port {
        let line = at_end(&adopted, &format!("port = {port}\n"));
        adopted.extend(line);
    }
    let lines = at_end(&adopted, places);
    adopted.extend(lines);
    let line = include_at_end(&adopted, include);
    adopted.extend(line);
    adopted
}

/// What makes a configuration read myrecovery.conf when it is appended to it.
pub fn include_at_end(text: &[u8], include: &str) -> Vec<u8> {
    at_end(text, &format!("include_if_exists = {}\n", places::quoted(include)))
}

/// Where a server with this configuration listens.
pub fn listening(configuration: &Reading) -> Listening {
    let text = |name| configuration.value(name).map(|value| String::from_utf8_lossy(value).into_owned());
    Listening {
        port: text("port").and_then(|port| port.parse().ok()).unwrap_or(5432),
        addresses: text("listen_addresses").unwrap_or_else(|| "localhost".to_owned()),
    }
}

/// What a myrecovery.conf (ours, or one of Pgpool-II's sample scripts) says about its standby.
pub fn parse_myrecovery(text: &[u8]) -> Standby {
    let mut standby = Standby::default();
    for line in text.split(|byte| *byte == b'\n') {
        let Line::Setting { name, value } = line::parse(line) else {
            continue;
        };
        let value = String::from_utf8_lossy(&value).into_owned();
        if is_named(&name, "primary_slot_name") {
            // empty: none is used
            standby.slot_name = Some(value).filter(|name| !name.is_empty());
        } else if is_named(&name, "primary_conninfo") {
            standby.application_name = conninfo_value(&value, "application_name");
        }
    }
    standby
}

/// tablespace_map as pg_backup_stop gives it, with the locations on the target.
/// Format: `OID location`, backslash before a line end in a location (basebackup).
pub fn mapped_tablespace_map(tablespaces: &[crate::manifest::plan::Tablespace]) -> String {
    tablespaces
        .iter()
        .map(|tablespace| {
            let escaped = tablespace.target.replace('\\', "\\\\").replace('\n', "\\\n");
            format!("{} {escaped}\n", tablespace.oid)
        })
        .collect()
}

/// A value in postgresql.conf: single quotes, doubled inside, backslashes doubled (guc-file.l).
fn quote_setting(name: &str, value: &str) -> Result<String> {
    if value.contains(['\n', '\r', '\0']) {
        return Err(Error::new(Kind::InvalidArgument, format!("value for \"{name}\" contains a line break"))
            .detail("The standby gets it in a configuration file, where a setting takes one line.")
            .hint(format!("Remove the line break from pgpool_recovery.{name}.")));
    }
    Ok(format!("'{}'", value.replace('\\', "\\\\").replace('\'', "''")))
}

fn includes_some_myrecovery(name: &[u8], value: &[u8]) -> bool {
    (is_named(name, "include") || is_named(name, "include_if_exists"))
        && configuration::path(value).file_name().is_some_and(|name| name == MYRECOVERY_CONF)
}

/// A line as it is appended to a text whose last line may lack its end.
fn at_end(text: &[u8], line: &str) -> Vec<u8> {
    let unfinished = !text.is_empty() && !text.ends_with(b"\n");
    [if unfinished { "\n" } else { "" }, line].concat().into_bytes()
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
impl ReplicationConfig {
    /// One whose values need quoting.
    pub(crate) fn example() -> Self {
        Self {
            host: "10.0.0.1".to_owned(),
            host_addresses: Vec::new(),
            port: 5432,
            user: "repl".to_owned(),
            application_name: "node 1's".to_owned(),
            passfile: String::new(),
            forbids_cleartext_password: false,
            slot_name: "node1".to_owned(),
            restore_command: String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn myrecovery_conf_is_quoted_twice() {
        let text = ReplicationConfig::example().myrecovery_conf(15).expect("valid");
        assert!(
            text.contains(
                r"primary_conninfo = 'host=10.0.0.1 port=5432 user=repl application_name=''node 1\\''s'''"
            ),
            "{text}"
        );
        assert!(text.contains("\nprimary_slot_name = 'node1'\nrestore_command = ''\n"), "{text}");
    }

    #[test]
    fn myrecovery_conf_leaves_nothing_to_other_files() {
        let own =
            ReplicationConfig { restore_command: "cp /a/%f %p".to_owned(), ..ReplicationConfig::example() };
        for major in 13..=19 {
            let text = own.myrecovery_conf(major).expect("valid");
            assert_eq!(text.contains("promote_trigger_file = ''\n"), major <= 15, "{major}: {text}");
            for line in [
                "restore_command = 'cp /a/%f %p'",
                "archive_cleanup_command = ''",
                "recovery_end_command = ''",
                "recovery_min_apply_delay = '0'",
                "recovery_target = ''",
                "recovery_target_name = ''",
                "recovery_target_time = ''",
                "recovery_target_xid = ''",
                "recovery_target_lsn = ''",
                "recovery_target_inclusive = 'on'",
                "recovery_target_action = 'pause'",
                "recovery_target_timeline = 'latest'",
            ] {
                assert!(text.contains(&format!("\n{line}\n")), "{major}: no {line} in {text}");
            }
        }
    }

    #[test]
    fn no_slot_is_written_and_read_as_none() {
        let text = ReplicationConfig { slot_name: String::new(), ..ReplicationConfig::example() }
            .myrecovery_conf(15)
            .expect("valid");
        assert!(text.contains("primary_slot_name = ''\n"), "{text}");
        assert_eq!(parse_myrecovery(text.as_bytes()).slot_name, None);
        assert_eq!(parse_myrecovery(b"primary_slot_name = 'a'\nPRIMARY_SLOT_NAME ''\n").slot_name, None);
    }

    #[test]
    fn the_connection_is_pinned_and_guarded_where_that_is_asked() {
        let replication = ReplicationConfig {
            host: "node1".to_owned(),
            host_addresses: vec![
                "10.0.0.1".parse().expect("an address"),
                "fd00::1".parse().expect("an address"),
            ],
            application_name: "a".to_owned(),
            forbids_cleartext_password: true,
            ..ReplicationConfig::example()
        };
        assert_eq!(
            replication.conninfo(),
            "host=node1,node1 hostaddr=10.0.0.1,fd00::1 port=5432 user=repl application_name=a require_auth='!password'"
        );
    }

    #[test]
    fn a_connection_has_only_values_that_can_be_written() {
        assert_eq!(ReplicationConfig::example().validate_connection(), Ok(()));
        let absolute = ReplicationConfig {
            passfile: "/home/of a/'user'/.pgpass".to_owned(),
            ..ReplicationConfig::example()
        };
        assert_eq!(absolute.validate_connection(), Ok(()));
        let refused = |change: &dyn Fn(&mut ReplicationConfig), word: &str| {
            let mut replication = ReplicationConfig::example();
            change(&mut replication);
            let error = replication.validate_connection().expect_err(word);
            assert_eq!(error.kind, Kind::InvalidArgument);
            assert!(error.message.contains(word), "{error}");
        };
        refused(&|replication| replication.host = "a\nb".to_owned(), "host");
        refused(&|replication| replication.host.clear(), "host");
        refused(&|replication| replication.user.clear(), "user");
        refused(&|replication| replication.user = "x".repeat(1025), "user");
        refused(&|replication| replication.application_name = "\0".to_owned(), "application_name");
        refused(&|replication| replication.passfile = ".pgpass".to_owned(), "passfile");
        refused(&|replication| replication.passfile = format!("/{}", "x".repeat(4095)), "passfile");
    }

    #[test]
    fn a_password_file_in_the_data_directory_is_one_of_the_standbys_own() {
        let inside = |passfile| passfile_inside(passfile, Path::new("/data"));
        assert_eq!(inside("/data/.pgpass").as_ref().map(RelPath::as_str), Some(".pgpass"));
        assert_eq!(inside("//data/./secrets//pgpass").as_ref().map(RelPath::as_str), Some("secrets/pgpass"));
        for other in ["", "/data", "/database/.pgpass", "/home/.pgpass", ".pgpass", "/data/global/pgpass"] {
            assert_eq!(inside(other), None, "{other}");
        }
    }

    #[test]
    fn a_value_brings_no_keyword_along() {
        let replication = ReplicationConfig {
            host: "h service=x".to_owned(),
            application_name: "a' sslkey='engine:x".to_owned(),
            passfile: "/x\\' passfile=/etc/shadow".to_owned(),
            ..ReplicationConfig::example()
        };
        let conninfo = replication.conninfo();
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
            let replication = ReplicationConfig { application_name: name.clone(), slot_name: slot.clone(), ..ReplicationConfig::example() };
            let standby = parse_myrecovery(replication.myrecovery_conf(15).expect("valid").as_bytes());
            prop_assert_eq!(standby.application_name, Some(name));
            prop_assert_eq!(standby.slot_name, Some(slot));
        }

        #[test]
        fn parsers_never_panic(text in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = parse_myrecovery(&text);
            let _ = adopted_configuration(&text, Some(1), "", "/x/myrecovery.conf");
            let _ = without_recovery_settings(&text, &[]);
        }

        #[test]
        fn the_conninfo_parser_never_panics(text in "[ -~\n\\\\'=é]{0,60}") {
            let _ = conninfo_value(&text, "application_name");
        }
    }

    #[test]
    fn line_breaks_cannot_smuggle_a_setting() {
        let mut replication = ReplicationConfig::example();
        replication.restore_command = "x'\narchive_command = 'y".to_owned();
        assert!(replication.myrecovery_conf(15).is_err());
    }

    #[test]
    fn settings_that_would_override_are_dropped() {
        let text = b"# gr\xfcn\nport = 5\nprimary_conninfo = 'x'\n Recovery_target_xid='7'\nrestore_command='cp'\n\
            recovery_min_apply_delay = 5min\npromote_trigger_file 'p'\nrecovery_end_command = 'x'\nfoo.x = '\xfc'";
        assert_eq!(without_recovery_settings(text, &[]), b"# gr\xfcn\nport = 5\nfoo.x = '\xfc'");
        assert_eq!(without_recovery_settings(text, &["port".to_owned()]), b"# gr\xfcn\nfoo.x = '\xfc'");
    }

    #[test]
    fn the_line_is_added_at_the_end() {
        let include = "/da'ta/myrecovery.conf";
        assert_eq!(
            include_at_end(b"port = 1", include),
            b"\ninclude_if_exists = '/da''ta/myrecovery.conf'\n"
        );
        assert_eq!(
            include_at_end(b"port = 1\n", include),
            b"include_if_exists = '/da''ta/myrecovery.conf'\n"
        );
        assert_eq!(include_at_end(b"", "/m.conf"), b"include_if_exists = '/m.conf'\n");
    }

    #[test]
    fn a_copied_configuration_forgets_where_it_came_from() {
        let text = b"port = 1\ndata_directory = '/primary'\ninclude_if_exists = '/primary/myrecovery.conf'\n\
            recovery_target = 'immediate'\nRecovery_Target_Action = promote\n# recovery_target = ''\n\
            work_mem = '1MB' # gr\xfcn";
        let adopted = adopted_configuration(text, Some(7), "", "/standby/myrecovery.conf");
        assert_eq!(
            adopted,
            b"port = 1\n# recovery_target = ''\nwork_mem = '1MB' # gr\xfcn\nport = 7\n\
              include_if_exists = '/standby/myrecovery.conf'\n"
        );
    }
}
