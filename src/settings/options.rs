//! The options of one call, a JSON object laid over the settings.

use std::time::Duration;

use pgpool_recovery_core::error::{Error, Kind, Result};
use serde_json::Value;

use crate::settings::request::shown;
use crate::settings::{
    Compression, MAX_JOBS, MAX_START_TIMEOUT, Overwrite, Scripts, Settings, Transport, keep_files,
    tablespace_mapping,
};

/// Every key an options object may have.
pub(crate) const KEYS: [&str; 24] = [
    "agent_port",
    "secret_file",
    "transport",
    "replication_user",
    "primary_host",
    "application_name",
    "slot_name",
    "passfile",
    "restore_command",
    "overwrite",
    "keep_files",
    "tablespace_mapping",
    "jobs",
    "compression",
    "max_rate",
    "clone",
    "verify_checksums",
    "scripts",
    "start_timeout",
    "node_id",
    "dest_port",
    "wait_for_checkpoint",
    "start",
    "dry_run",
];

/// Keys for superusers: they name files, commands or policies of the server's OS user, or decide where a credential
/// and the data go, or how much of this server a recovery takes.
pub(crate) const RESTRICTED: [&str; 12] = [
    "agent_port",
    "transport",
    "replication_user",
    "primary_host",
    "jobs",
    "secret_file",
    "passfile",
    "restore_command",
    "scripts",
    "overwrite",
    "keep_files",
    "tablespace_mapping",
];

/// Longest text value, in bytes.
const MAX_TEXT: usize = 8192;

impl Settings {
    /// These settings with the options of one call laid over them.
    pub(crate) fn overlay(mut self, options: &Value) -> Result<Self> {
        let Value::Object(fields) = options else {
            return Err(Error::new(Kind::InvalidArgument, "options are not a JSON object")
                .detail(format!("Found {}.", found(options)))
                .hint("Pass an object such as '{\"jobs\": 4}', or '{}'."));
        };
        for (key, value) in fields {
            if !KEYS.contains(&key.as_str()) {
                return Err(Error::new(Kind::InvalidArgument, format!("unrecognized option {}", shown(key)))
                    .hint(format!("Options are: {}.", KEYS.join(", "))));
            }
            if !self.caller_is_superuser && RESTRICTED.contains(&key.as_str()) {
                return Err(Error::new(
                    Kind::InsufficientPrivilege,
                    format!("permission denied to pass option \"{key}\""),
                )
                .detail(
                    "Only superusers may pass options that name a file, a command or a policy, decide where data or a \
                     password goes, or set the number of streams.",
                )
                .hint(format!("Ask an administrator to set pgpool_recovery.{key}.")));
            }
            self.set(key, value)?;
        }
        if self.start && self.dry_run {
            return Err(Error::new(
                Kind::InvalidArgument,
                "options \"start\" and \"dry_run\" exclude each other",
            )
            .detail("A dry run changes nothing, so there is nothing to start.")
            .hint("Leave one of them out."));
        }
        Ok(self)
    }

    fn set(&mut self, key: &str, value: &Value) -> Result<()> {
        match key {
            "agent_port" => self.agent_port = port(key, value)?,
            "secret_file" => self.secret_file = text(key, value)?,
            "transport" => {
                self.transport = choice(
                    key,
                    value,
                    &[("auto", Transport::Auto), ("agent", Transport::Agent), ("local", Transport::Local)],
                )?;
            }
            "replication_user" => self.replication_user = text(key, value)?,
            "primary_host" => self.primary_host = crate::settings::request::host(key, &text(key, value)?)?,
            "application_name" => self.application_name = text(key, value)?,
            "slot_name" => self.slot_name = text(key, value)?,
            "passfile" => self.passfile = text(key, value)?,
            "restore_command" => self.restore_command = text(key, value)?,
            "overwrite" => {
                self.overwrite =
                    choice(key, value, &[("same", Overwrite::Same), ("any_cluster", Overwrite::AnyCluster)])?;
            }
            "keep_files" => self.keep_files = keep_files(&text(key, value)?)?,
            "tablespace_mapping" => self.tablespace_mapping = tablespace_mapping(&text(key, value)?)?,
            "jobs" => self.jobs = integer(key, value, 0, i64::from(MAX_JOBS))? as usize,
            "compression" => {
                self.compression = choice(
                    key,
                    value,
                    &[
                        ("auto", Compression::Auto),
                        ("off", Compression::Off),
                        ("lz4", Compression::Lz4),
                        ("zstd", Compression::Zstd),
                    ],
                )?;
            }
            "max_rate" => self.max_rate = integer(key, value, 0, i64::from(i32::MAX))? as u64,
            "clone" => self.clone = boolean(key, value)?,
            "verify_checksums" => self.verify_checksums = boolean(key, value)?,
            "scripts" => {
                self.scripts = choice(
                    key,
                    value,
                    &[("run", Scripts::Run), ("ignore", Scripts::Ignore), ("refuse", Scripts::Refuse)],
                )?;
            }
            "start_timeout" => {
                let seconds = integer(key, value, 1, i64::from(MAX_START_TIMEOUT))?;
                self.start_timeout = Duration::from_secs(seconds as u64);
            }
            "node_id" => self.node_id = Some(integer(key, value, 0, i64::from(i32::MAX))? as i32),
            "dest_port" => self.dest_port = Some(port(key, value)?),
            "wait_for_checkpoint" => self.wait_for_checkpoint = boolean(key, value)?,
            "start" => self.start = boolean(key, value)?,
            "dry_run" => self.dry_run = boolean(key, value)?,
            _ => {
                return Err(Error::new(
                    Kind::Internal,
                    format!("option \"{key}\" is listed but not handled"),
                ));
            }
        }
        Ok(())
    }
}

fn text(key: &str, value: &Value) -> Result<String> {
    let expected = "Expected a string without control characters, of at most 8192 bytes";
    let text = value.as_str().ok_or_else(|| invalid(key, value, expected))?;
    if text.len() > MAX_TEXT || text.chars().any(char::is_control) {
        return Err(invalid(key, value, expected));
    }
    Ok(text.to_owned())
}

fn integer(key: &str, value: &Value, min: i64, max: i64) -> Result<i64> {
    value
        .as_i64()
        .filter(|number| (min..=max).contains(number))
        .ok_or_else(|| invalid(key, value, &format!("Expected an integer from {min} to {max}")))
}

fn port(key: &str, value: &Value) -> Result<u16> {
    Ok(integer(key, value, 1, 65_535)? as u16)
}

fn boolean(key: &str, value: &Value) -> Result<bool> {
    value.as_bool().ok_or_else(|| invalid(key, value, "Expected true or false"))
}

fn choice<T: Copy>(key: &str, value: &Value, choices: &[(&str, T)]) -> Result<T> {
    let chosen = value.as_str().and_then(|text| choices.iter().find(|(name, _)| *name == text));
    chosen.map(|&(_, choice)| choice).ok_or_else(|| {
        let names: Vec<String> = choices.iter().map(|(name, _)| format!("\"{name}\"")).collect();
        invalid(key, value, &format!("Expected one of {}", names.join(", ")))
    })
}

fn invalid(key: &str, value: &Value, expected: &str) -> Error {
    Error::new(Kind::InvalidArgument, format!("invalid value for option \"{key}\""))
        .detail(format!("{expected}; found {}.", found(value)))
        .hint(format!("Options are: {}.", KEYS.join(", ")))
}

fn found(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(truth) => truth.to_string(),
        Value::Number(number) => format!("the number {number}"),
        Value::String(text) => format!("the string {}", shown(text)),
        Value::Array(_) => "an array".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn overlay(options: Value) -> Result<Settings> {
        Settings { caller_is_superuser: true, ..Settings::default() }.overlay(&options)
    }

    #[test]
    fn every_option_is_taken() {
        let settings = overlay(json!({
            "agent_port": 1, "secret_file": "/s", "transport": "local", "replication_user": "repl",
            "primary_host": "db1", "application_name": "server%n", "slot_name": "", "passfile": "/p",
            "restore_command": "cp %f %p", "overwrite": "any_cluster", "keep_files": "a, b",
            "tablespace_mapping": "/a=/b", "jobs": 3, "compression": "zstd", "max_rate": 1024,
            "clone": false, "verify_checksums": false, "scripts": "refuse", "start_timeout": 5, "node_id": 2,
            "dest_port": 65535, "wait_for_checkpoint": true, "start": true, "dry_run": false
        }))
        .expect("valid options");
        let expected = Settings {
            agent_port: 1,
            secret_file: "/s".into(),
            transport: Transport::Local,
            replication_user: "repl".into(),
            primary_host: "db1".into(),
            application_name: "server%n".into(),
            slot_name: String::new(),
            passfile: "/p".into(),
            restore_command: "cp %f %p".into(),
            overwrite: Overwrite::AnyCluster,
            keep_files: vec!["a".into(), "b".into()],
            tablespace_mapping: vec![("/a".into(), "/b".into())],
            jobs: 3,
            compression: Compression::Zstd,
            max_rate: 1024,
            clone: false,
            verify_checksums: false,
            scripts: Scripts::Refuse,
            start_timeout: Duration::from_secs(5),
            local_directories: String::new(),
            caller_is_superuser: true,
            node_id: Some(2),
            dest_port: Some(65535),
            wait_for_checkpoint: true,
            start: true,
            dry_run: false,
        };
        assert_eq!(settings, expected);
    }

    #[test]
    fn every_key_refuses_a_wrong_type_by_name() {
        for key in KEYS {
            for value in [json!(null), json!([]), json!({}), json!(1.5), json!(-1)] {
                let error = overlay(json!({ key: value })).expect_err(key);
                assert_eq!(error.kind, Kind::InvalidArgument, "{key}: {error}");
                assert!(error.message.contains(&format!("\"{key}\"")), "{error}");
                assert!(error.detail.is_some() && error.hint.is_some(), "{error:?}");
            }
        }
    }

    #[test]
    fn ranges_end_where_documented() {
        for (key, good, bad) in [
            ("agent_port", 65535, 65536),
            ("agent_port", 1, 0),
            ("dest_port", 65535, 65536),
            ("dest_port", 1, 0),
            ("jobs", 64, 65),
            ("max_rate", 2_147_483_647, 2_147_483_648_i64),
            ("start_timeout", 1, 0),
            ("start_timeout", 86_400, 86_401),
            ("node_id", 2_147_483_647, 2_147_483_648),
        ] {
            assert!(overlay(json!({ key: good })).is_ok(), "{key} {good}");
            assert!(overlay(json!({ key: bad })).is_err(), "{key} {bad}");
        }
    }

    #[test]
    fn what_is_not_done_is_not_started() {
        assert!(overlay(json!({ "dry_run": true })).expect("valid").dry_run);
        let error = overlay(json!({ "start": true, "dry_run": true })).expect_err("refused");
        assert_eq!(error.kind, Kind::InvalidArgument);
    }

    #[test]
    fn unknown_keys_are_named_and_the_known_ones_listed() {
        let error = overlay(json!({ "job": 1 })).expect_err("unknown");
        assert_eq!(error.message, "unrecognized option \"job\"");
        assert!(error.hint.expect("hint").contains("start_timeout"));
        assert_eq!(overlay(json!([])).expect_err("array").kind, Kind::InvalidArgument);
    }

    #[test]
    fn who_is_no_superuser_decides_about_the_target_and_the_pace_alone() {
        let free = [
            "application_name",
            "slot_name",
            "compression",
            "max_rate",
            "clone",
            "verify_checksums",
            "start_timeout",
            "node_id",
            "dest_port",
            "wait_for_checkpoint",
            "start",
            "dry_run",
        ];
        for key in KEYS {
            let refused = Settings::default().overlay(&json!({ key: null })).expect_err("no key takes null");
            let expected =
                if free.contains(&key) { Kind::InvalidArgument } else { Kind::InsufficientPrivilege };
            assert_eq!(refused.kind, expected, "{key}");
            assert!(refused.detail.is_some() && refused.hint.is_some(), "{refused:?}");
        }
        assert!(Settings::default().overlay(&json!({ "max_rate": 1, "start": true })).is_ok());
    }

    #[test]
    fn control_characters_and_long_texts_are_refused() {
        for value in ["a\nb".to_owned(), "x".repeat(MAX_TEXT + 1)] {
            let error = overlay(json!({ "restore_command": value })).expect_err("refused");
            assert!(error.detail.expect("detail").len() < 400);
        }
    }
}
