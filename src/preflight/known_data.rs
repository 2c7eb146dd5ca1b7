//! Databases and tablespaces that the catalogs know and the scan did not find: lost, unless they are being dropped.
//!
//! The scan sees only what is there. Where a database's directory is an empty mount point, nothing tells it that files are
//! missing, and the standby's copy of them would be removed.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use pgpool_recovery_core::error::{Error, Kind, Result};
use pgpool_recovery_core::manifest::list::FileIndex;
use pgpool_recovery_core::manifest::path::RelPath;
use pgpool_recovery_core::manifest::plan::Plan;

use crate::pg::catalog::{self, Place};
use crate::preflight::PrimaryFacts;
use crate::run::Run;

/// How long a command that drops or moves one is waited for: its files go before its transaction has ended.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often that is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// `pg_default`, whose databases lie in `base` (DEFAULTTABLESPACE_OID).
const PG_DEFAULT: u32 = 1663;

/// What the catalogs know before a scan.
pub(crate) struct KnownData(Vec<Place>);

impl KnownData {
    /// As it is now. Main thread only.
    pub(crate) fn now() -> Result<Self> {
        catalog::places().map(Self)
    }

    /// Fails if the plan, which was made since, lacks something of it that the catalogs still know. Main thread only.
    pub(crate) fn demand_in(&self, facts: &PrimaryFacts, plan: &Plan, run: &Run<'_>) -> Result<()> {
        let missing = self.missing(&facts.tablespace_version_directory(), plan)?;
        let end = Instant::now() + PATIENCE;
        while !missing.is_empty() {
            let now = catalog::places()?;
            let Some((place, path)) = missing.iter().find(|(place, _)| now.contains(place)) else { break };
            if Instant::now() >= end {
                return Err(lost(*place, &facts.data_directory.join(path).display().to_string()));
            }
            run.pause(LOOK)?;
        }
        Ok(())
    }

    fn missing(&self, version: &str, plan: &Plan) -> Result<Vec<(Place, RelPath)>> {
        let index = FileIndex::new(&plan.files)?;
        let directories: HashSet<&str> =
            plan.directories.iter().map(|directory| directory.path.as_str()).collect();
        let mut missing = Vec::new();
        for place in &self.0 {
            let directory = match (place.tablespace, place.database) {
                (PG_DEFAULT, Some(database)) => format!("base/{database}"),
                (tablespace, Some(database)) => format!("pg_tblspc/{tablespace}/{version}/{database}"),
                (tablespace, None) => format!("pg_tblspc/{tablespace}/{version}"),
            };
            let is_there = match place.database {
                // PostgreSQL refuses a connection without it (ValidatePgVersion)
                Some(_) => {
                    index.find(&plan.files, &RelPath::parse(&format!("{directory}/PG_VERSION"))?).is_some()
                }
                None => directories.contains(directory.as_str()),
            };
            if !is_there {
                missing.push((*place, RelPath::parse(&directory)?));
            }
        }
        Ok(missing)
    }
}

fn lost(place: Place, directory: &str) -> Error {
    let (what, has) = match place.database {
        Some(database) => (format!("database {database}"), "no PG_VERSION"),
        None => (format!("tablespace {}", place.tablespace), "not the directory of this server's version"),
    };
    Error::new(Kind::MissingFile, format!("the files of {what} are missing on the primary"))
        .detail(format!(
            "\"{directory}\" is missing or has {has}, although the catalogs know it. The standby's copy would be removed."
        ))
        .hint(
            "Mount the file system that it lies on. If a command that drops or moves it is running, repeat the recovery when it \
             has ended.",
        )
}

#[cfg(test)]
mod tests {
    use pgpool_recovery_core::manifest::plan::{Directory, File};

    use super::*;

    #[test]
    fn what_the_catalogs_know_must_be_in_the_plan() {
        let path = |text: &str| RelPath::parse(text).expect("valid");
        let directory = |text: &str| Directory { path: path(text), mode: 0o700 };
        let file = |text: &str| File { path: path(text), size: 3, mode: 0o600 };
        let plan = Plan {
            directories: ["base", "base/5", "base/6", "pg_tblspc/20/PG_15_1"].map(directory).into(),
            files: ["base/5/PG_VERSION", "base/6/1"].map(file).into_iter().collect(),
            ..Plan::default()
        };
        let place = |tablespace, database| Place { tablespace, database };
        let missing = |place| {
            let missing = KnownData(vec![place]).missing("PG_15_1", &plan).expect("valid");
            missing.first().map(|(_, path)| path.to_string())
        };
        assert_eq!(missing(place(PG_DEFAULT, Some(5))), None);
        assert_eq!(missing(place(20, None)), None);
        for (place, lost) in [
            // an empty mount point, a directory that is not there, and the same in tablespaces
            (place(PG_DEFAULT, Some(6)), "base/6"),
            (place(PG_DEFAULT, Some(7)), "base/7"),
            (place(20, Some(5)), "pg_tblspc/20/PG_15_1/5"),
            (place(21, None), "pg_tblspc/21/PG_15_1"),
        ] {
            assert_eq!(missing(place).as_deref(), Some(lost));
        }
    }
}
