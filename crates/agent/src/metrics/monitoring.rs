//! The rules in `packaging/prometheus` and the dashboard in `packaging/grafana` ask for what is served. `scripts/test.sh
//! monitoring` shows that they find it, in series whose names and labels are compared here, too.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use serde_json::Value;

use super::{Run, State, page};
use crate::status::tests::{idle, run, running};

const RULES: &str = "packaging/prometheus/pgpool_recovery_rules.yml";
const OURS: &str = "pgpool_recovery_agent_";
/// Prometheus gives these to every sample.
const OF_TARGET: [&str; 2] = ["instance", "job"];
/// Of postgres_exporter's metrics those that are used: `queries.go` and `pg_replication_slot.go` of 0.16 to 0.19,
/// `collector/pg_replication_slots.go` of 0.20.
const OF_EXPORTER: [(&str, &[&str]); 5] = [
    ("pg_replication_slots_pg_wal_lsn_diff", &["slot_name", "database"]),
    ("pg_replication_slot_safe_wal_size_bytes", &["slot_name", "slot_type"]),
    ("pg_replication_slots_safe_wal_size_bytes", &["slot_name", "slot_type"]),
    ("pg_replication_slot_wal_status", &["slot_name", "slot_type", "wal_status"]),
    ("pg_replication_slots_wal_status", &["slot_name", "slot_type", "wal_status"]),
];

/// A metric and what is said about its labels, in a query or of a sample.
#[derive(Debug)]
struct Selector {
    name: String,
    labels: BTreeMap<String, String>,
}

fn project(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(file);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every metric of ours or postgres_exporter's that the text names.
fn selectors(text: &str) -> Vec<Selector> {
    let of_word = |char: char| char.is_ascii_alphanumeric() || char == '_';
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find(of_word) {
        let word = &rest[start..];
        let end = word.find(|char| !of_word(char)).unwrap_or(word.len());
        let (name, after) = word.split_at(end);
        rest = after;
        if name.starts_with(OURS) || name.starts_with("pg_") {
            let labels = match after.strip_prefix('{') {
                Some(inside) => labels(inside),
                None => BTreeMap::new(),
            };
            found.push(Selector { name: name.to_owned(), labels });
        }
    }
    found
}

/// What is in the braces of which this is the inside, and what follows them.
fn labels(mut inside: &str) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::new();
    while !inside.starts_with('}') {
        let (label, quoted) = inside.split_once('"').expect("a quoted value");
        let mut escaped = false;
        let end = quoted.find(|char| {
            let ends = char == '"' && !escaped;
            escaped = char == '\\' && !escaped;
            ends
        });
        let (value, after) = quoted.split_at(end.expect("its second quote"));
        let label = label.trim_matches([',', ' ', '=', '!', '~']).to_owned();
        assert_eq!(labels.insert(label, value.to_owned()), None, "twice in {{{inside}");
        inside = &after[1..];
    }
    labels
}

/// What an agent serves: every metric with its labels, and the outcomes.
fn served() -> (BTreeMap<String, BTreeSet<String>>, BTreeSet<String>) {
    let mut recovered = idle();
    recovered.directories[0].account.last = Some(run(State::Succeeded));
    let mut given_up = running();
    given_up.directories[0].account.last = Some(Run { ended: Some(1), ..run(State::GivenUp) });
    let pages = [idle(), running(), recovered, given_up].map(|status| page(&status, 0, 0).expect("a page"));
    let samples: Vec<&str> =
        pages.iter().flat_map(|page| page.lines()).filter(|line| !line.starts_with('#')).collect();
    let mut metrics = BTreeMap::new();
    let mut outcomes = BTreeSet::new();
    for Selector { name, labels } in selectors(&samples.join("\n")) {
        outcomes.extend(labels.get("outcome").cloned());
        let labels: BTreeSet<String> = labels.into_keys().collect();
        let before = metrics.insert(name.clone(), labels.clone());
        assert!(before.is_none_or(|before| before == labels), "{name} has {labels:?} now");
    }
    (metrics, outcomes)
}

/// That, and what of postgres_exporter is used.
fn known() -> BTreeMap<String, BTreeSet<String>> {
    let of_exporter = OF_EXPORTER.map(|(name, labels)| {
        (name.to_owned(), labels.iter().map(|label| (*label).to_owned()).collect::<BTreeSet<_>>())
    });
    served().0.into_iter().chain(of_exporter).collect()
}

/// The expressions of the rules: `expr: ...`, or the lines below `expr: |`.
fn of_rules() -> Vec<String> {
    let text = project(RULES);
    let indent = |line: &str| line.len() - line.trim_start().len();
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        match line.trim_start().strip_prefix("expr: ") {
            Some("|") => {
                let below = lines[at + 1..].iter().take_while(|below| indent(below) > indent(line));
                found.push(below.copied().collect::<Vec<_>>().join("\n"));
            }
            Some(expression) => found.push(expression.to_owned()),
            None => {}
        }
    }
    assert_eq!(found.len(), text.matches("- alert: ").count(), "an expression each");
    found
}

/// The queries of the dashboard's panels and variables.
fn of_dashboard() -> Vec<String> {
    fn collect(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    match value {
                        Value::String(text) if name == "expr" || name == "query" => found.push(text.clone()),
                        _ => collect(value, found),
                    }
                }
            }
            Value::Array(values) => values.iter().for_each(|value| collect(value, found)),
            _ => {}
        }
    }
    let text = project("packaging/grafana/dashboard.json");
    let mut found = Vec::new();
    collect(&serde_json::from_str(&text).expect("JSON"), &mut found);
    found
}

/// The series that the tests of promtool begin with.
fn of_tests() -> Vec<String> {
    let rules = project("packaging/prometheus/pgpool_recovery_rules_test.yml");
    let quoted = rules.split("series: '").skip(1).filter_map(|rest| rest.split('\'').next());
    let dashboard = project("packaging/grafana/dashboard_series.json");
    let dashboard: BTreeMap<String, String> = serde_json::from_str(&dashboard).expect("JSON");
    quoted.map(str::to_owned).chain(dashboard.into_keys()).collect()
}

#[test]
fn rules_and_dashboard_ask_for_what_is_served() {
    let (known, outcomes) = (known(), served().1);
    for (place, queries, distinct) in [("rules", of_rules(), 10), ("dashboard", of_dashboard(), 20)] {
        let asked: Vec<Selector> = queries.iter().flat_map(|query| selectors(query)).collect();
        for Selector { name, labels } in &asked {
            let of_metric = known.get(name).unwrap_or_else(|| panic!("{place}: {name} is not served"));
            for label in labels.keys() {
                let there = of_metric.contains(label) || OF_TARGET.contains(&label.as_str());
                assert!(there, "{place}: {name} has no label {label}");
            }
            let outcome = labels.get("outcome");
            assert!(outcome.is_none_or(|outcome| outcomes.contains(outcome)), "{place}: no {outcome:?}");
        }
        let names: BTreeSet<&String> = asked.iter().map(|asked| &asked.name).collect();
        assert!(names.len() >= distinct, "{place}: {names:?} only");
    }
}

#[test]
fn the_tests_of_rules_and_dashboard_have_series_that_are_served() {
    let (known, outcomes) = (known(), served().1);
    let series: Vec<Selector> = of_tests().iter().flat_map(|series| selectors(series)).collect();
    assert!(series.len() > 80, "{} only", series.len());
    for Selector { name, labels } in series {
        let of_metric = known.get(&name).unwrap_or_else(|| panic!("{name} is not served"));
        let outcome = labels.get("outcome");
        assert!(outcome.is_none_or(|outcome| outcomes.contains(outcome)), "{name}: no {outcome:?}");
        let labels: BTreeSet<String> =
            labels.into_keys().filter(|label| !OF_TARGET.contains(&label.as_str())).collect();
        assert_eq!(&labels, of_metric, "{name}");
    }
}

#[test]
fn the_reference_has_every_metric_with_its_labels_and_every_alert() {
    let reference = project("docs/reference.md");
    let rows: Vec<&str> = reference.lines().filter(|line| line.starts_with("| `")).collect();
    for (name, labels) in served().0 {
        let short = format!("`{}`", name.trim_start_matches(OURS));
        let expected = labels.iter().map(|label| format!("`{label}`")).collect::<Vec<_>>().join(", ");
        let row = rows.iter().find(|row| {
            let mut cells = row.split('|').skip(1).map(str::trim);
            cells.next().is_some_and(|names| names.contains(&short)) && cells.next() == Some(&expected)
        });
        assert!(row.is_some(), "no row for {short} with {expected}");
    }
    let rules = project(RULES);
    for alert in rules.lines().filter_map(|line| line.trim_start().strip_prefix("- alert: ")) {
        assert!(rows.iter().any(|row| row.starts_with(&format!("| `{alert}` |"))), "no row for {alert}");
    }
}
