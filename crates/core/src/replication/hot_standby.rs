//! The parameters that must be at least as large on a standby as on its primary: with a smaller one and `hot_standby = on`
//! PostgreSQL ends the standby's recovery before it accepts connections (`CheckRequiredParameterValues` in
//! src/backend/access/transam/xlog.c, `RecoveryRequiresIntParameter` in xlogrecovery.c; the same five in 13 to 19).

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::{fs, io};

use pgdata::configuration::{Item, Reading, What, is_named};
use serde::{Deserialize, Serialize};

use super::recovery_settings::Place;

/// The switch: without it nothing is compared, and the standby accepts no connections.
pub const HOT_STANDBY: &str = "hot_standby";

/// Most absent files that are reported of one configuration.
const MAX_ABSENT: usize = 100;

/// The parameters, in PostgreSQL's order.
pub const PARAMETERS: [&str; 5] = [
    "max_connections",
    "max_worker_processes",
    "max_wal_senders",
    "max_prepared_transactions",
    "max_locks_per_transaction",
];

/// What a configuration says about the parameters that hot standby needs: of each the
/// last setting, of all files that are included, too.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HotStandby {
    /// In the main configuration; `None`: it keeps none.
    pub main: Option<Vec<Setting>>,
    /// In `postgresql.auto.conf`, which is read last; `None`: it keeps none.
    pub auto: Option<Vec<Setting>>,
    /// Files and directories that the kept ones include and that do not exist, absolute: a copy may bring them.
    #[serde(default)]
    pub absent: Vec<String>,
}

impl HotStandby {
    /// What the configuration files that a target keeps say.
    pub fn of_kept(main: Option<&Reading>, auto: Option<&Reading>) -> Self {
        let kept = main.into_iter().chain(auto);
        let included = kept.flat_map(|reading| reading.files.iter().chain(&reading.directories));
        let is_absent =
            |path: &&PathBuf| fs::metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
        let absent: BTreeSet<String> =
            included.filter(is_absent).map(|path| path.display().to_string()).collect();
        Self {
            main: main.map(settings),
            auto: auto.map(settings),
            absent: absent.into_iter().take(MAX_ABSENT).collect(),
        }
    }
}

/// A setting in a configuration file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    /// The parameter, in lower case, and the line that sets it.
    pub place: Place,
    /// Without quotes.
    pub value: String,
}

/// What a configuration says about these parameters: the last setting of each counts.
pub fn settings(configuration: &Reading) -> Vec<Setting> {
    let last = |name: &&str| {
        configuration.items.iter().rev().find_map(|item: &Item| match &item.what {
            What::Setting { name: set, value } if is_named(set, name) => Some(Setting {
                place: Place {
                    what: (*name).to_owned(),
                    file: item.file.display().to_string(),
                    line: item.line,
                },
                value: String::from_utf8_lossy(value).into_owned(),
            }),
            _ => None,
        })
    };
    PARAMETERS.iter().chain(&[HOT_STANDBY]).filter_map(last).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_kept_files_include_and_does_not_exist_is_told() {
        let top = tempfile::tempdir().expect("temporary directory");
        let main = top.path().join("postgresql.conf");
        let text = "include 'there.conf'\ninclude 'a.conf'\ninclude_if_exists 'b.conf'\ninclude_dir 'c'\n";
        fs::write(&main, text).expect("write");
        fs::write(top.path().join("there.conf"), "max_connections = 7\n").expect("write");
        let kept = HotStandby::of_kept(Some(&Reading::of(&main, None)), None);
        let absent = ["a.conf", "b.conf", "c"].map(|name| top.path().join(name).display().to_string());
        assert_eq!(kept.absent, absent);
        assert!(kept.auto.is_none() && kept.main.is_some_and(|main| main.len() == 1));
    }
}
