//! Would a standby start with what its configuration says about the parameters that must be at least as large as on its
//! primary?

use serde::Deserialize;

use crate::error::{Error, Kind};
use crate::preflight::Finding;
use crate::replication::hot_standby::{HOT_STANDBY, Setting};
use crate::replication::recovery_settings::Place;

/// The step of the check that this is.
const STEP: &str = "standby_parameters";

/// One of the parameters as the primary has it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Required {
    /// Its name.
    pub name: String,
    /// What the primary runs with.
    pub value: i64,
    /// What a server of its version has if nothing sets it.
    pub default: i64,
    /// Whether the primary has it from its command line. Then the standby's command line may set it, too.
    pub is_on_command_line: bool,
}

/// Whether a standby whose server reads `main` and then `auto` starts as one of a primary that has `required`.
pub fn finding(main: &[Setting], auto: &[Setting], required: &[Required]) -> Finding {
    if let Some(off) = switched_off(main, auto) {
        let nothing = format!("nothing is compared: {HOT_STANDBY} is off in {}", off.place.at());
        return Finding::new(STEP, Ok(nothing));
    }
    let said = |name: &str| last(main, auto, name);
    let too_small: Vec<Short<'_>> = required
        .iter()
        .filter_map(|required| {
            let setting = said(&required.name).cloned();
            // a value that is no number keeps a server from reading its configuration, which is another question
            let value = setting.as_ref().map_or(Some(required.default), |setting| integer(&setting.value))?;
            (value < required.value).then_some(Short { required, value, place: setting.map(|s| s.place) })
        })
        .collect();
    let Some(first) = too_small.iter().find(|short| !short.may_be_overridden()).or(too_small.first()) else {
        return Finding::new(STEP, Ok("its parameters are at least as large as the primary's".to_owned()));
    };
    let all: Vec<String> = too_small.iter().map(Short::describe).collect();
    let detail = format!(
        "A server with hot_standby = on ends its recovery if it has less than its primary. Too small for this primary: {}.",
        all.join("; ")
    );
    let hints: Vec<String> = too_small.iter().map(Short::remedy).collect();
    let error = Error::new(Kind::TargetRefused, format!("the standby would not start: {}", first.describe()))
        .detail(detail)
        .hint(format!("{}.", hints.join("; ")));
    if first.may_be_overridden() { Finding::advice(STEP, Err(error)) } else { Finding::new(STEP, Err(error)) }
}

/// The setting with which the standby accepts no connections, if it has that.
pub fn switched_off<'a>(main: &'a [Setting], auto: &'a [Setting]) -> Option<&'a Setting> {
    last(main, auto, HOT_STANDBY).filter(|setting| is_off(&setting.value))
}

/// The setting of a parameter that counts.
fn last<'a>(main: &'a [Setting], auto: &'a [Setting], name: &str) -> Option<&'a Setting> {
    let of = |settings: &'a [Setting]| settings.iter().find(|setting| setting.place.what == name);
    of(auto).or_else(|| of(main))
}

/// A parameter of which the standby would have too little.
struct Short<'a> {
    required: &'a Required,
    value: i64,
    place: Option<Place>,
}

impl Short<'_> {
    /// Whether the standby's command line may say otherwise, because the primary's does.
    const fn may_be_overridden(&self) -> bool {
        self.required.is_on_command_line
    }

    fn describe(&self) -> String {
        let Self { required: Required { name, value: needed, .. }, value, place } = self;
        let place = place.as_ref().map_or_else(
            || "the default, no file of its configuration sets it".to_owned(),
            |place| format!("in {}", place.at()),
        );
        format!("{name} is {value} ({place}), and {needed} on the primary")
    }

    fn remedy(&self) -> String {
        let Self { required: Required { name, value: needed, .. }, place, .. } = self;
        let place = place.as_ref().map_or_else(
            || "the standby's postgresql.conf".to_owned(),
            |place| format!("\"{}\"", place.file),
        );
        format!("Set {name} to {needed} or more in {place}")
    }
}

/// A number as PostgreSQL's `parse_int` reads it (src/backend/utils/misc/guc.c); `None`: it would not.
fn integer(value: &str) -> Option<i64> {
    let value = value.trim_matches(|c: char| c.is_ascii_whitespace());
    let (is_negative, digits) = match value.as_bytes().first()? {
        b'-' => (true, &value[1..]),
        b'+' => (false, &value[1..]),
        _ => (false, value),
    };
    let is_number = digits.starts_with(|c: char| c.is_ascii_digit() || c == '.');
    let parsed = if let Some(hexadecimal) = digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        i64::from_str_radix(hexadecimal, 16).ok()
    } else if digits.len() > 1 && digits.starts_with('0') && digits.bytes().all(|byte| byte.is_ascii_digit())
    {
        i64::from_str_radix(digits, 8).ok()
    } else {
        // with a fraction or an exponent it is rounded
        let rounded = || digits.parse::<f64>().ok().filter(|number| number.abs() < 1e15);
        digits.parse().ok().or_else(|| rounded().map(|number| number.round_ties_even() as i64))
    };
    parsed.filter(|_| is_number).map(|number: i64| if is_negative { -number } else { number })
}

/// Whether PostgreSQL's `parse_bool` takes it for false.
fn is_off(value: &str) -> bool {
    let value = value.to_ascii_lowercase();
    let is_prefix = |word: &str, least| value.len() >= least && word.starts_with(&value);
    value == "0" || is_prefix("off", 2) || is_prefix("false", 1) || is_prefix("no", 1)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use pgdata::configuration::Reading;

    use super::*;
    use crate::replication::hot_standby::{PARAMETERS, settings};

    fn required(values: [i64; 5]) -> Vec<Required> {
        let defaults = [100, 8, 10, 0, 64];
        let required = |((name, value), default): ((&str, i64), i64)| Required {
            name: name.to_owned(),
            value,
            default,
            is_on_command_line: false,
        };
        PARAMETERS.into_iter().zip(values).zip(defaults).map(required).collect()
    }

    /// What postgresql.conf and postgresql.auto.conf with these lines say.
    fn said(main: &str, auto: &str) -> [Vec<Setting>; 2] {
        let directory = tempfile::tempdir().expect("temporary directory");
        [("postgresql.conf", main), ("postgresql.auto.conf", auto)].map(|(name, text)| {
            let file = directory.path().join(name);
            fs::write(&file, text).expect("write");
            fs::write(directory.path().join("more.conf"), "\n\nMAX_Connections = '7'\n").expect("write");
            settings(&Reading::of(&file, None))
        })
    }

    fn found(main: &str, auto: &str, values: [i64; 5]) -> Finding {
        let [main, auto] = said(main, auto);
        finding(&main, &auto, &required(values))
    }

    fn refusal(finding: Finding) -> String {
        let error = finding.answer.expect_err("too little");
        assert!(!finding.is_advice && error.kind == Kind::TargetRefused, "{error:?}");
        format!("{}\n{}\n{}", error.message, error.detail.expect("which"), error.hint.expect("what to do"))
    }

    const DEFAULTS: [i64; 5] = [100, 8, 10, 0, 64];

    #[test]
    fn as_much_as_the_primary_or_more_is_enough() {
        for (main, auto) in [
            ("", ""),
            ("max_connections = 100\n", ""),
            ("max_connections = 10\nmax_connections = 0x64\n", ""),
            (
                "max_connections = 10\nmax_wal_senders = 1\n",
                "max_connections = 200\nmax_wal_senders = '10'\n",
            ),
            ("max_connections = many\n", ""),
        ] {
            assert!(found(main, auto, DEFAULTS).answer.is_ok(), "{main} {auto}");
        }
    }

    #[test]
    fn each_parameter_that_is_too_small_is_named_by_file_and_line() {
        for (number, name) in PARAMETERS.into_iter().enumerate() {
            let mut values = DEFAULTS;
            values[number] = 1000;
            let told = refusal(found(&format!("# first\n{name} = 999\n"), "", values));
            assert!(told.contains(&format!("{name} is 999 (in \"")), "{told}");
            assert!(told.contains("postgresql.conf\" line 2), and 1000 on the primary"), "{told}");
            let told = refusal(found("", "", values));
            assert!(told.contains(&format!("{name} is {} (the default", DEFAULTS[number])), "{told}");
            assert!(told.contains(&format!("Set {name} to 1000 or more in the standby's")), "{told}");
        }
        let told = refusal(found("include 'more.conf'\nmax_worker_processes = 2\n", "", DEFAULTS));
        assert!(told.contains("more.conf\" line 3") && told.contains("max_worker_processes is 2"), "{told}");
        let told = refusal(found("max_connections = 100\n", "max_connections = 99\n", DEFAULTS));
        assert!(told.contains("postgresql.auto.conf\" line 1"), "{told}");
    }

    #[test]
    fn the_command_line_may_know_better() {
        let mut required = required([200, 8, 10, 0, 64]);
        required[0].is_on_command_line = true;
        let [main, auto] = said("max_connections = 100\n", "");
        let found = finding(&main, &auto, &required);
        assert!(found.is_advice && found.answer.is_err());
        // but not of another parameter
        let [main, auto] = said("max_connections = 100\nmax_wal_senders = 1\n", "");
        let told = refusal(finding(&main, &auto, &required));
        assert!(told.starts_with("the standby would not start: max_wal_senders is 1"), "{told}");
    }

    #[test]
    fn without_hot_standby_nothing_is_compared_and_that_is_told() {
        for off in ["off", "OF", "false", "f", "no", "0"] {
            let [main, auto] = said(&format!("max_connections = 1\nhot_standby = {off}\n"), "");
            assert_eq!(switched_off(&main, &auto).map(|setting| setting.place.line), Some(2), "{off}");
            let answer = finding(&main, &auto, &required(DEFAULTS)).answer.expect("no reason to refuse");
            assert!(answer.contains("hot_standby is off in") && answer.contains("line 2"), "{answer}");
        }
        for on in ["on", "true", "1", "o", "x"] {
            let [main, auto] = said(&format!("hot_standby = {on}\n"), "");
            assert_eq!(switched_off(&main, &auto), None, "{on}");
        }
        let [main, auto] = said("max_connections = 1\nhot_standby = off\n", "hot_standby = on\n");
        assert_eq!(switched_off(&main, &auto), None, "the file that is read last counts");
        assert!(finding(&main, &auto, &required(DEFAULTS)).answer.is_err());
    }

    #[test]
    fn numbers_are_read_as_postgresql_reads_them() {
        for (text, number) in [
            ("100", Some(100)),
            (" +7 ", Some(7)),
            ("-1", Some(-1)),
            ("010", Some(8)),
            ("0", Some(0)),
            ("0x10", Some(16)),
            ("1e2", Some(100)),
            ("2.5", Some(2)),
            ("99.6", Some(100)),
            ("", None),
            ("-", None),
            ("many", None),
            ("10kB", None),
            ("inf", None),
            ("1e300", None),
        ] {
            assert_eq!(integer(text), number, "{text}");
        }
    }
}
