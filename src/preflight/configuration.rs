//! Which configuration the standby will have, its own or one made of the primary's, and whether a standby with it follows.

use std::path::{Path, PathBuf};

use pgdata::configuration::{self, Reading};
use pgpool_recovery_core::error::{Error, Kind, Result};
use pgpool_recovery_core::host::configured;
use pgpool_recovery_core::host::inspect::myrecovery_path;
use pgpool_recovery_core::manifest::exclude::{AUTO_CONF, MYRECOVERY_CONF, POSTGRESQL_CONF};
use pgpool_recovery_core::manifest::path::RelPath;
use pgpool_recovery_core::preflight::{Finding, conflicting_settings, standby_parameters};
use pgpool_recovery_core::replication::hot_standby::{self, Setting};
use pgpool_recovery_core::replication::recovery_settings::RecoverySettings;
use pgpool_recovery_core::replication::recovery_settings::judge_copies;
use pgpool_recovery_core::wire::protocol::message::TargetInfo;

use crate::preflight::PrimaryFacts;

/// Whether the target keeps a file of its own.
pub(crate) fn keeps(target: &TargetInfo, name: &str) -> bool {
    target.kept.iter().any(|kept| kept.as_str() == name)
}

impl PrimaryFacts {
    /// Questions about the standby's configuration.
    pub(crate) fn configuration_findings(&self, target: &TargetInfo) -> Vec<Finding> {
        let said = self.recovery_settings(target);
        let answer = self.configuration(target).and_then(|found| {
            let own = [target.directory.as_path(), Path::new(&self.request.dest_dir)];
            said.demand_own_directory("The configuration that the standby would have", &own)?;
            let is_copied = |path: &Path| self.is_copied(target, path);
            said.demand_readable("The configuration that the standby would have", is_copied)?;
            Ok(found)
        });
        let settings = self.hot_standby(target);
        let off = settings.as_ref().and_then(|(main, auto)| standby_parameters::switched_off(main, auto));
        let mut findings =
            vec![Finding::new("configuration", answer), conflicting_settings::finding(&said, off)];
        findings.extend(settings.as_ref().map(|settings| self.standby_parameters(target, settings)));
        findings
    }

    /// Whether the server would start as a standby of this one.
    fn standby_parameters(
        &self,
        target: &TargetInfo,
        (main, auto): &(Vec<Setting>, Vec<Setting>),
    ) -> Finding {
        let found = standby_parameters::finding(main, auto, &self.hot_standby);
        // what a file says that the copy is going to bring is not known yet; a start tells
        let is_complete =
            !target.hot_standby.absent.iter().any(|path| self.is_copied(target, Path::new(path)));
        if is_complete { found } else { Finding::advice(found.step, found.answer) }
    }

    /// What the server will read about hot standby, first in its main configuration and then in postgresql.auto.conf; `None`: its
    /// configuration is not known.
    fn hot_standby(&self, target: &TargetInfo) -> Option<(Vec<Setting>, Vec<Setting>)> {
        let copied = |file: &Path| hot_standby::settings(&Reading::of(file, None));
        let main = if self.keeps_main_configuration(target) {
            target.hot_standby.main.clone()?
        } else if self.config_is_inside() {
            copied(Path::new(&self.primary.config_file))
        } else {
            return None;
        };
        let auto = if keeps(target, AUTO_CONF) {
            target.hot_standby.auto.clone()?
        } else {
            copied(&self.data_directory.join(AUTO_CONF))
        };
        Some((main, auto))
    }

    /// Whether the copy brings this file of the target's.
    fn is_copied(&self, target: &TargetInfo, path: &Path) -> bool {
        let inside = path.strip_prefix(&target.directory).ok();
        inside.is_some_and(|inside| self.data_directory.join(inside).exists())
    }

    /// Whether the target's main configuration stays as it is.
    pub(crate) fn keeps_main_configuration(&self, target: &TargetInfo) -> bool {
        target.external_configuration.is_some() || keeps(target, POSTGRESQL_CONF)
    }

    /// What all files of the standby's configuration will say about recovery: those that it keeps, as its host reads
    /// them, and those that it gets from here.
    fn recovery_settings(&self, target: &TargetInfo) -> RecoverySettings {
        let own = PathBuf::from(&self.primary.config_file);
        let main = (!self.keeps_main_configuration(target) && self.config_is_inside()).then_some(own);
        let auto = (!keeps(target, AUTO_CONF)).then(|| self.data_directory.join(AUTO_CONF));
        let mark = self.data_directory.join(MYRECOVERY_CONF);
        target.recovery_settings.clone().and(judge_copies(main.as_deref(), auto.as_deref(), &mark))
    }

    /// A configuration for the standby: its own, or one that can be made of the primary's.
    fn configuration(&self, target: &TargetInfo) -> Result<String> {
        if let Some(elsewhere) = &target.elsewhere {
            return Err(configured::refusal(Kind::TargetRefused, &target.directory, elsewhere));
        }
        if self.keeps_main_configuration(target) {
            let kept = match &target.external_configuration {
                Some(file) => format!("\"{}\"", file.display()),
                None => "the standby's own postgresql.conf".to_owned(),
            };
            let listed = &self.settings.keep_files;
            let needed = target
                .kept
                .iter()
                .map(RelPath::as_str)
                .filter(|path| !listed.iter().any(|name| name == path));
            let needed: Vec<String> = needed.map(|path| format!("\"{path}\"")).collect();
            let with =
                if needed.is_empty() { String::new() } else { format!(", with {}", needed.join(", ")) };
            if target.includes_myrecovery {
                return Ok(format!("{kept} is kept{with} and reads myrecovery.conf last"));
            }
            if target.configuration_can_be_extended {
                return Ok(format!(
                    "{kept} is kept{with}; a line that reads myrecovery.conf will be added at its end"
                ));
            }
            let include = myrecovery_path(&target.directory);
            return Err(Error::new(Kind::TargetRefused, format!("{kept} cannot be extended"))
                .detail("It does not read myrecovery.conf after all other settings of recovery, and it is a link or a mount point, missing, too large, or not writable for the receiver.")
                .hint(format!("Add this line at its end: include_if_exists = '{include}'")));
        }
        if !self.config_is_inside() {
            return Err(Error::new(Kind::TargetRefused, "the standby would have no postgresql.conf")
                .detail(format!(
                    "The target has none, and the primary's (\"{}\") lies outside its data directory.",
                    self.primary.config_file
                ))
                .hint("Put a postgresql.conf into the target directory, or use an agent whose configuration names config_file."));
        }
        if let Err(error) =
            configuration::content(Path::new(&self.primary.config_file), configuration::MAX_BYTES)
        {
            return Err(Error::new(Kind::TargetRefused, "the standby would have no postgresql.conf")
                .detail(format!(
                    "The target has none, and the primary's (\"{}\") cannot be read: {error}.",
                    self.primary.config_file
                ))
                .hint("Put the file back that the primary was started with, or a postgresql.conf into the target directory."));
        }
        let outside = self.included_from_outside();
        if self.is_local() || outside.is_empty() {
            return Ok("the primary's postgresql.conf is copied".to_owned());
        }
        Ok(format!(
            "the primary's postgresql.conf is copied; it includes files that are not: {}",
            outside.join(", ")
        ))
    }

    /// The files that the primary's configuration includes from other directories.
    fn included_from_outside(&self) -> Vec<String> {
        let file = Path::new(&self.primary.config_file);
        let is_inside = |path: &PathBuf| {
            path.canonicalize().is_ok_and(|path| path.starts_with(&self.data_directory))
                || path.starts_with(&self.primary.data_directory)
        };
        let files = Reading::of(file, Some(&self.data_directory.join(MYRECOVERY_CONF))).files;
        files.iter().filter(|path| !is_inside(path)).map(|path| format!("\"{}\"", path.display())).collect()
    }
}
