//! The options of one call, a JSON object laid over the settings.

use std::ffi::CStr;
use std::ops::RangeInclusive;

use pgpool_recovery_core::error::{Error, Kind, Result};
use serde_json::Value;

use crate::settings::Settings;
use crate::settings::macros::{OptionRow, Who};
use crate::settings::request::shown;
use crate::settings::table::OPTIONS;

/// Every option a call may pass, in the order in which they are listed.
fn all() -> impl Iterator<Item = &'static OptionRow> {
    OPTIONS.iter().filter(|option| option.who != Who::NoOne)
}

/// Their names, as a HINT lists them.
fn names() -> String {
    let names: Vec<&str> = all().map(|option| option.name).collect();
    names.join(", ")
}

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
            let Some(option) = all().find(|option| option.name == key) else {
                return Err(Error::new(Kind::InvalidArgument, format!("unrecognized option {}", shown(key)))
                    .hint(format!("Options are: {}.", names())));
            };
            if !self.caller_is_superuser && option.who == Who::Superusers {
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
            (option.set)(&mut self, key, value)?;
        }
        if self.start && self.dry_run {
            return Err(Error::new(
                Kind::InvalidArgument,
                "options \"start\" and \"dry_run\" exclude each other",
            )
            .detail("A dry run changes nothing, so there is nothing to start.")
            .hint("Leave one of them out."));
        }
        if self.native {
            // as its first stage has it
            self.restore_command.clear();
        }
        Ok(self)
    }
}

pub(super) fn text(key: &str, value: &Value) -> Result<String> {
    let expected = "Expected a string without control characters, of at most 8192 bytes";
    let text = value.as_str().ok_or_else(|| invalid(key, value, expected))?;
    if text.len() > MAX_TEXT || text.chars().any(char::is_control) {
        return Err(invalid(key, value, expected));
    }
    Ok(text.to_owned())
}

pub(super) fn integer(key: &str, value: &Value, range: &RangeInclusive<i32>) -> Result<i32> {
    value
        .as_i64()
        .and_then(|number| i32::try_from(number).ok())
        .filter(|number| range.contains(number))
        .ok_or_else(|| {
            let (min, max) = (range.start(), range.end());
            invalid(key, value, &format!("Expected an integer from {min} to {max}"))
        })
}

pub(super) fn number(key: &str, value: &Value, range: &RangeInclusive<f64>) -> Result<f64> {
    value.as_f64().filter(|number| range.contains(number)).ok_or_else(|| {
        let (min, max) = (range.start(), range.end());
        invalid(key, value, &format!("Expected a number from {min} to {max}"))
    })
}

pub(super) fn boolean(key: &str, value: &Value) -> Result<bool> {
    value.as_bool().ok_or_else(|| invalid(key, value, "Expected true or false"))
}

pub(super) fn choice<T: Copy>(key: &str, value: &Value, choices: &[(&CStr, T)]) -> Result<T> {
    let is = |word: &CStr| value.as_str().is_some_and(|text| word.to_bytes() == text.as_bytes());
    choices.iter().find(|(word, _)| is(word)).map(|&(_, choice)| choice).ok_or_else(|| {
        let words: Vec<String> =
            choices.iter().map(|(word, _)| format!("\"{}\"", word.to_string_lossy())).collect();
        invalid(key, value, &format!("Expected one of {}", words.join(", ")))
    })
}

pub(super) fn invalid(key: &str, value: &Value, expected: &str) -> Error {
    Error::new(Kind::InvalidArgument, format!("invalid value for option \"{key}\""))
        .detail(format!("{expected}; found {}.", found(value)))
        .hint(format!("Options are: {}.", names()))
}

pub(super) fn found(value: &Value) -> String {
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
    use std::collections::BTreeSet;
    use std::time::Duration;

    use serde_json::json;

    use super::*;
    use crate::settings::{Compression, Fence, Overwrite, Scripts, Transport};

    fn overlay(options: Value) -> Result<Settings> {
        Settings { caller_is_superuser: true, ..Settings::default() }.overlay(&options)
    }

    #[test]
    fn every_option_is_taken() {
        let settings = overlay(json!({
            "agent_port": 1, "secret_file": "/s", "transport": "local", "replication_user": "repl",
            "primary_host": "db1", "primary_port": 15432, "application_name": "server%n", "slot_name": "", "passfile": "/p",
            "restore_command": "cp %f %p", "overwrite": "any_cluster", "keep_files": "a, b",
            "tablespace_mapping": "/a=/b", "jobs": 3, "compression": "zstd", "max_rate": 1024,
            "clone": false, "verify_checksums": false, "scripts": "refuse", "start_timeout": 5, "retry_for": 0, "node_id": 2,
            "fence": "required", "deadline": 3600, "nodes": [], "dest_port": 65535, "wait_for_checkpoint": true, "start": true, "native": false, "dry_run": false
        }))
        .expect("valid options");
        let expected = Settings {
            agent_port: 1,
            secret_file: "/s".into(),
            transport: Transport::Local,
            replication_user: "repl".into(),
            primary_host: "db1".into(),
            primary_port: 15432,
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
            retry_for: Duration::ZERO,
            fence: Fence::Required,
            deadline: Duration::from_secs(3600),
            caller_is_superuser: true,
            node_id: Some(2),
            dest_port: Some(65535),
            wait_for_checkpoint: true,
            start: true,
            ..Settings::default()
        };
        assert_eq!(settings, expected);
    }

    #[test]
    fn every_key_refuses_a_wrong_type_by_name() {
        for key in all().map(|option| option.name) {
            for value in [json!(null), json!([]), json!({}), json!(-1.5), json!(-1)] {
                if key == "nodes" && value == json!([]) {
                    continue;
                }
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
            ("primary_port", 65535, 65536),
            ("primary_port", 0, -1),
            ("dest_port", 65535, 65536),
            ("dest_port", 1, 0),
            ("jobs", 64, 65),
            ("max_rate", 2_147_483_647, 2_147_483_648_i64),
            ("start_timeout", 1, 0),
            ("start_timeout", 86_400, 86_401),
            ("retry_for", 0, -1),
            ("retry_for", 86_400, 86_401),
            ("node_id", 2_147_483_647, 2_147_483_648),
        ] {
            assert!(overlay(json!({ key: good })).is_ok(), "{key} {good}");
            assert!(overlay(json!({ key: bad })).is_err(), "{key} {bad}");
        }
        for (key, good, bad) in [("skip_sample", 0.01, 0.0099), ("skip_sample", 100.0, 100.1)] {
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
    fn a_node_of_its_own_needs_no_archive() {
        let settings = overlay(json!({ "restore_command": "cp %f %p", "native": true })).expect("valid");
        assert!(settings.native && settings.restore_command.is_empty());
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
        for option in all() {
            let key = option.name;
            let refused = Settings::default().overlay(&json!({ key: null })).expect_err("no key takes null");
            let expected = match option.who {
                Who::Superusers => Kind::InsufficientPrivilege,
                Who::All | Who::NoOne => Kind::InvalidArgument,
            };
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

    #[test]
    fn a_setting_that_is_no_option_is_not_recognized() {
        let error = overlay(json!({ "local_directories": "/srv" })).expect_err("unknown");
        assert_eq!(error.message, "unrecognized option \"local_directories\"");
        assert!(!error.hint.expect("hint").contains("local_directories"));
    }

    /// What a text has in backquotes.
    fn quoted(text: &str) -> BTreeSet<&str> {
        text.split('`').skip(1).step_by(2).collect()
    }

    #[test]
    fn the_reference_says_what_options_there_are_and_who_may_pass_them() {
        let reference = include_str!("../../docs/reference.md");
        let (table, text) =
            reference.split_once("\n`options` takes each of these names").expect("the options");
        let settings = table.rsplit_once("## Settings").expect("the settings").1;
        let settings: BTreeSet<&str> =
            settings.lines().filter_map(|line| Some(line.strip_prefix("| `")?.split_once('`')?.0)).collect();
        let (text, _) = text.split_once("\n\n").expect("a paragraph");
        let (everyone, superusers) =
            text.split_once("Only superusers may pass").expect("the restricted ones");
        let (exceptions, others) = everyone.split_once(" without the prefix").expect("the exceptions");

        let names = |who| {
            OPTIONS
                .iter()
                .filter(|option| option.who == who)
                .map(|option| option.name)
                .collect::<BTreeSet<_>>()
        };
        assert_eq!(quoted(superusers), names(Who::Superusers));
        assert_eq!(quoted(exceptions), names(Who::NoOne));
        let rows: BTreeSet<&str> = OPTIONS.iter().map(|option| option.name).collect();
        assert!(settings.is_subset(&rows), "settings without a row: {settings:?}");
        for option in rows.difference(&settings) {
            assert!(quoted(others).contains(option), "the reference does not have {option}");
        }
    }
}
