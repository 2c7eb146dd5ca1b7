//! The parameters by which a configuration ends, delays, redirects or stops a standby's recovery, and what a
//! configuration says about them.
//!
//! They are PostgreSQL's groups `WAL_ARCHIVE_RECOVERY` and `WAL_RECOVERY_TARGET`, and those of `REPLICATION_STANDBY`
//! that decide whether a standby follows (src/backend/utils/misc/guc_tables.c; guc.c up to 15). A primary ignores them,
//! so what was once written for a restore stays in its files for years.
//!
//! Not among them are settings that only tune a standby that follows: `hot_standby` (whether it accepts connections),
//! `hot_standby_feedback`, `max_standby_archive_delay` and `max_standby_streaming_delay` (how long queries hold up
//! replay, which goes on when they end), `wal_receiver_*`, `wal_retrieve_retry_interval`, `recovery_prefetch`,
//! `recovery_init_sync_method`, `sync_replication_slots`.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;

use pgdata::configuration::{Item, Reading, What, is_named, path};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};
use crate::manifest::exclude::MYRECOVERY_CONF;

/// Most places that are reported of one configuration.
const MAX_PLACES: usize = 20;

/// How an operator gets another value than the neutral one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// Not at all: a standby with another value does not follow.
    Never,
    /// By a setting of ours, from which myrecovery.conf has it.
    Setting(&'static str),
    /// By ALTER SYSTEM on the standby, whose postgresql.auto.conf must be kept: the standby still follows.
    AutoConf,
}

/// One parameter of PostgreSQL.
#[derive(Debug)]
pub struct Parameter {
    /// Its name, in lower case.
    pub name: &'static str,
    /// The last major version that knows it.
    pub until: u32,
    /// The value with which it does nothing.
    pub neutral: &'static str,
    /// How to have another one.
    pub asked: Asked,
}

const fn parameter(name: &'static str, neutral: &'static str, asked: Asked) -> Parameter {
    Parameter { name, until: u32::MAX, neutral, asked }
}

/// The parameters of PostgreSQL 13 and later, in the order of myrecovery.conf.
pub const PARAMETERS: &[Parameter] = &[
    // redirects: which server it streams from
    parameter("primary_conninfo", "", Asked::Setting("pgpool_recovery.primary_host")),
    // stops: without that slot on the primary nothing streams
    parameter("primary_slot_name", "", Asked::Setting("pgpool_recovery.slot_name")),
    // redirects: WAL and timelines of some other archive, and a command that hangs stops everything
    parameter("restore_command", "", Asked::Setting("pgpool_recovery.restore_command")),
    // removes WAL from an archive at every restartpoint; dormant in a primary's file
    parameter("archive_cleanup_command", "", Asked::AutoConf),
    // holds up a promotion while it runs; dormant in a primary's file
    parameter("recovery_end_command", "", Asked::AutoConf),
    // delays
    parameter("recovery_min_apply_delay", "0", Asked::AutoConf),
    // end, at consistency, a restore point, a time, a transaction or a WAL location. At most one may be set
    parameter("recovery_target", "", Asked::Never),
    parameter("recovery_target_name", "", Asked::Never),
    parameter("recovery_target_time", "", Asked::Never),
    parameter("recovery_target_xid", "", Asked::Never),
    parameter("recovery_target_lsn", "", Asked::Never),
    // what happens there: the default neither promotes nor shuts down
    parameter("recovery_target_inclusive", "on", Asked::Never),
    parameter("recovery_target_action", "pause", Asked::Never),
    // redirects: a standby that does not follow a timeline switch is lost at the next failover
    parameter("recovery_target_timeline", "latest", Asked::Never),
    // ends, as soon as that file exists
    Parameter { name: "promote_trigger_file", until: 15, neutral: "", asked: Asked::Never },
];

/// Those that a server of this major version knows.
pub fn of_version(major: u32) -> impl Iterator<Item = &'static Parameter> {
    PARAMETERS.iter().filter(move |parameter| major <= parameter.until)
}

/// The parameter of this name, in any case.
pub fn named(name: &[u8]) -> Option<&'static Parameter> {
    PARAMETERS.iter().find(|parameter| is_named(name, parameter.name))
}

/// Whether a setting of this name in a postgresql.auto.conf, whatever its value, keeps myrecovery.conf from saying what a standby
/// does. What an operator may ask for only there is none of these.
pub fn is_overriding(name: &[u8]) -> bool {
    named(name).is_some_and(|parameter| !matches!(parameter.asked, Asked::AutoConf))
}

impl Parameter {
    /// Whether this value does nothing.
    fn is_neutral(&self, value: &[u8]) -> bool {
        let value = String::from_utf8_lossy(value);
        match self.name {
            "recovery_min_apply_delay" => {
                let digits = value.trim().trim_end_matches(|c: char| c.is_ascii_alphabetic() || c == ' ');
                digits.parse::<f64>().is_ok_and(|delay| delay == 0.0)
            }
            "recovery_target_inclusive" => {
                ["on", "true", "yes", "1"].iter().any(|on| value.eq_ignore_ascii_case(on))
            }
            "recovery_target_action" => value.eq_ignore_ascii_case(self.neutral),
            _ => value == self.neutral,
        }
    }

    /// Whether it is one of those of which PostgreSQL allows only one.
    fn is_target(&self) -> bool {
        ["", "_name", "_time", "_xid", "_lsn"]
            .iter()
            .any(|kind| self.name.strip_prefix("recovery_target") == Some(kind))
    }
}

/// Whether the configuration reads myrecovery.conf (its mark), and nothing behind that could override it.
pub fn reads_last(configuration: &Reading) -> bool {
    let behind = configuration.items.iter().rev().take_while(|item| item.what != What::Mark);
    let overrides = |item: &Item| match &item.what {
        What::Setting { name, .. } => named(name).is_some(),
        // the server may have a right that we lack
        What::Mark | What::Missing(_) | What::Skipped(_) | What::Problem(_) => true,
    };
    configuration.items.iter().any(|item| item.what == What::Mark) && !behind.into_iter().any(overrides)
}

/// What a configuration says about recovery, besides myrecovery.conf.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoverySettings {
    /// Settings that would keep the standby from following, and that myrecovery.conf cannot override.
    pub conflicts: Vec<Place>,
    /// The data_directory that a file to be copied sets (in `what`): the standby would use that one.
    pub data_directory: Option<Place>,
    /// Settings that myrecovery.conf overrides.
    pub overridden: Vec<Place>,
    /// Settings that count although myrecovery.conf has others, and with which the standby follows.
    pub chosen: Vec<Place>,
    /// Why the configuration cannot be read.
    pub problems: Vec<Place>,
    /// The files and directories among the problems that do not exist, absolute.
    pub missing: Vec<String>,
}

/// A line of a configuration file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The parameter that it sets, or what is wrong with it.
    pub what: String,
    /// The file.
    pub file: String,
    /// The line, counted from 1; 0: the whole file.
    pub line: u32,
}

/// What a main configuration and a postgresql.auto.conf say about recovery, once myrecovery.conf is read at the end of
/// the first: the second is read after it.
pub fn judge(main: Option<&Reading>, auto: Option<&Reading>) -> RecoverySettings {
    let mut said = RecoverySettings::default();
    // what the server skips in the first, or reads although we may not, is overridden
    for item in auto.into_iter().flat_map(|reading| &reading.items) {
        if let What::Skipped(problem) = &item.what {
            said.problems.push(place(item, problem.clone()));
        }
    }
    for item in main.into_iter().chain(auto).flat_map(|reading| &reading.items) {
        match &item.what {
            What::Missing(path) => {
                let path = path.display().to_string();
                said.problems.push(place(item, does_not_exist(&path)));
                said.missing.push(path);
            }
            What::Problem(problem) => said.problems.push(place(item, problem.clone())),
            What::Setting { .. } | What::Skipped(_) | What::Mark => {}
        }
    }
    for (parameter, item, value) in last(main) {
        // PostgreSQL drops earlier settings of one spelling only, and refuses a second kind of target
        let spelling = matches!(&item.what, What::Setting { name, .. } if name != parameter.name.as_bytes());
        if parameter.is_target() && spelling && !value.is_empty() {
            said.conflicts.push(place(item, parameter.name.to_owned()));
        } else if !parameter.is_neutral(value)
            && !matches!(parameter.name, "primary_conninfo" | "primary_slot_name")
        {
            said.overridden.push(place(item, parameter.name.to_owned()));
        }
    }
    for (parameter, item, value) in last(auto) {
        match parameter.asked {
            Asked::Never | Asked::AutoConf if parameter.is_neutral(value) => {}
            Asked::AutoConf => said.chosen.push(place(item, parameter.name.to_owned())),
            Asked::Never | Asked::Setting(_) => said.conflicts.push(place(item, parameter.name.to_owned())),
        }
    }
    for places in [&mut said.conflicts, &mut said.overridden, &mut said.chosen, &mut said.problems] {
        places.truncate(MAX_PLACES);
    }
    said.missing.truncate(MAX_PLACES);
    said
}

/// The setting by which a server that reads these two in full, myrecovery.conf included, would end its recovery by itself.
pub fn end<'a>(main: &'a Reading, auto: &'a Reading, data_directory: &Path) -> Option<&'a Item> {
    let mut last: HashMap<&str, (&Item, &[u8])> = HashMap::new();
    for item in main.items.iter().chain(&auto.items) {
        if let What::Setting { name, value } = &item.what
            && let Some(parameter) = named(name)
        {
            last.insert(parameter.name, (item, value));
        }
    }
    let ends = |(name, value): (&str, &[u8])| match name {
        "promote_trigger_file" => {
            // what cannot be told may be there
            !value.is_empty() && data_directory.join(path(value)).try_exists().unwrap_or(true)
        }
        name => !value.is_empty() && named(name.as_bytes()).is_some_and(Parameter::is_target),
    };
    let found = last.into_iter().filter(|(name, (_, value))| ends((name, value)));
    found.map(|(_, (item, _))| item).min_by_key(|item| (&item.file, item.line))
}

/// What the files of a primary say that its standby gets a copy of, without what
/// [`crate::replication::standby::adopted_configuration`] and [`crate::replication::standby::without_recovery_settings`] leave out.
/// `mark`: the primary's own myrecovery.conf.
pub fn judge_copies(main_file: Option<&Path>, auto: Option<&Path>, mark: &Path) -> RecoverySettings {
    let main = main_file.map(|file| {
        let mut reading = Reading::of(file, Some(mark));
        for item in reading.items.iter_mut().filter(|item| *item.file == *file) {
            if let What::Setting { name, .. } = &mut item.what {
                // a spelling of its own does not matter where the line is left out
                name.make_ascii_lowercase();
            }
        }
        reading
    });
    let auto = auto.map(|file| {
        let mut reading = Reading::of(file, None);
        let is_left_out = |item: &Item| {
            *item.file == *file && matches!(&item.what, What::Setting { name, .. } if named(name).is_some())
        };
        reading.items.retain(|item| !is_left_out(item));
        reading
    });
    let mut said = judge(main.as_ref(), auto.as_ref());
    // of the main file the line is left out, those that it includes are copied as they are
    let copied = main.iter().flat_map(|reading| &reading.items);
    let copied = copied.filter(|item| main_file.is_some_and(|file| *item.file != *file));
    said.data_directory = copied
        .filter_map(|item| match &item.what {
            What::Setting { name, value } if is_named(name, "data_directory") => {
                Some(place(item, path(value).display().to_string()))
            }
            _ => None,
        })
        .next_back();
    said
}

/// A setting of one of the parameters.
type Set<'a> = (&'static Parameter, &'a Item, &'a [u8]);

/// The last setting of each parameter of ours, by spelling.
fn last(configuration: Option<&Reading>) -> Vec<Set<'_>> {
    let mut last: HashMap<&[u8], (usize, Set<'_>)> = HashMap::new();
    for (number, item) in configuration.into_iter().flat_map(|reading| &reading.items).enumerate() {
        if let What::Setting { name, value } = &item.what
            && let Some(parameter) = named(name)
        {
            last.insert(name, (number, (parameter, item, value)));
        }
    }
    let mut found: Vec<_> = last.into_values().collect();
    found.sort_by_key(|(number, _)| *number);
    found.into_iter().map(|(_, found)| found).collect()
}

fn place(item: &Item, what: String) -> Place {
    Place { what, file: item.file.display().to_string(), line: item.line }
}

impl RecoverySettings {
    /// What two parts of one configuration say.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.conflicts.extend(other.conflicts);
        self.data_directory = other.data_directory.or(self.data_directory);
        self.overridden.extend(other.overridden);
        self.chosen.extend(other.chosen);
        self.problems.extend(other.problems);
        self.missing.extend(other.missing);
        self
    }

    /// Refuses settings with which the standby would not follow. `whose`: the configuration, as a subject.
    pub fn demand_no_conflict(&self, whose: &str) -> Result<()> {
        let Some(first) = self.conflicts.first() else {
            return Ok(());
        };
        let remedy = match named(first.what.as_bytes()).map(|parameter| parameter.asked) {
            Some(Asked::Setting(setting)) => {
                format!("Remove it there; {setting} says what the standby gets.")
            }
            _ => "Remove it there.".to_owned(),
        };
        Err(Error::new(
            Kind::TargetRefused,
            format!("{} in {} would keep the standby from following", first.what, first.at()),
        )
        .detail(format!(
            "{whose} has settings that {MYRECOVERY_CONF} cannot override: {}.",
            list(&self.conflicts)
        ))
        .hint(remedy))
    }

    /// Refuses a copy of a configuration that leads to another data directory than the standby's, which has the names
    /// `own`. `whose`: the configuration, as a subject.
    pub fn demand_own_directory(&self, whose: &str, own: &[&Path]) -> Result<()> {
        let leads_elsewhere = |set: &&Place| !own.contains(&Path::new(&set.what));
        let Some(set) = self.data_directory.as_ref().filter(leads_elsewhere) else {
            return Ok(());
        };
        Err(Error::new(Kind::TargetRefused, format!("data_directory in {} would be copied", set.at()))
            .detail(format!("{whose} would lead the server to \"{}\" instead of its own directory.", set.what))
            .hint("Set data_directory in the main configuration file, from which a copy leaves it out, or not at all."))
    }

    /// Refuses a configuration that no server can start with, or whose content cannot be told. `will_come`: whether the
    /// copy brings a file or directory that is missing now.
    pub fn demand_readable(&self, whose: &str, will_come: impl Fn(&Path) -> bool) -> Result<()> {
        let comes = |place: &Place| {
            let missing = self.missing.iter().find(|path| place.what == does_not_exist(path));
            missing.is_some_and(|path| will_come(Path::new(path)))
        };
        let Some(first) = self.problems.iter().find(|place| !comes(place)) else {
            return Ok(());
        };
        Err(Error::new(
            Kind::TargetRefused,
            format!("configuration in {} cannot be read: {}", first.at(), first.what),
        )
        .detail(format!(
            "{whose} could hold settings that end or redirect its recovery, or keep it from starting."
        ))
        .hint("Correct the file or its permissions."))
    }

    /// What an operator should know although the standby follows.
    pub fn advice(&self) -> Result<String> {
        if self.overridden.is_empty() && self.chosen.is_empty() {
            return Ok(format!("no other file sets what {MYRECOVERY_CONF} sets"));
        }
        let mut clauses = Vec::new();
        if !self.overridden.is_empty() {
            clauses.push(format!("{MYRECOVERY_CONF} overrides {}", list(&self.overridden)));
        }
        if !self.chosen.is_empty() {
            clauses.push(format!("the standby keeps {}", list(&self.chosen)));
        }
        let mut remedies: Vec<String> = Vec::new();
        for place in &self.overridden {
            let remedy = match named(place.what.as_bytes()).map(|parameter| parameter.asked) {
                Some(Asked::Setting(setting)) => {
                    format!("{setting} on the primary says which {} the standby gets.", place.what)
                }
                Some(Asked::AutoConf) => format!(
                    "To have {} on the standby, use ALTER SYSTEM there, and add postgresql.auto.conf to \
                     pgpool_recovery.keep_files so that recoveries keep it.",
                    place.what
                ),
                Some(Asked::Never) | None => {
                    format!(
                        "Remove {}: where {MYRECOVERY_CONF} is lost, the standby stops or promotes itself.",
                        place.what
                    )
                }
            };
            if !remedies.contains(&remedy) {
                remedies.push(remedy);
            }
        }
        let error = Error::new(Kind::WrongState, clauses.join("; "));
        Err(if remedies.is_empty() { error } else { error.detail(remedies.join(" ")) })
    }
}

impl Place {
    /// The place of an item, as it is shown.
    pub fn of(item: &Item) -> String {
        place(item, String::new()).at()
    }

    /// File and line, as a message names them.
    pub fn at(&self) -> String {
        if self.line == 0 {
            format!("\"{}\"", self.file)
        } else {
            format!("\"{}\" line {}", self.file, self.line)
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.at(), self.what)
    }
}

fn does_not_exist(path: &str) -> String {
    format!("\"{path}\" does not exist")
}

fn list(places: &[Place]) -> String {
    let shown: Vec<String> = places.iter().map(|place| format!("{} ({})", place.what, place.at())).collect();
    shown.join(", ")
}

#[cfg(test)]
mod tests;
