//! `pgpool-recovery-agent check`: what would stop a recovery, before one is asked for.

use pgpool_recovery_core::error::{Error, Kind, Result};
use pgpool_recovery_core::host::configured;
use pgpool_recovery_core::host::inspect::inspect;
use pgpool_recovery_core::host::policy::{Cluster, Policy};
use pgpool_recovery_core::sys::cancel::Cancel;
use pgpool_recovery_core::wire::secret::Secret;
use tracing::warn;

use crate::config::Config;

/// Prints that configuration and secret are good, or fails; warns of what else will be missed.
pub(crate) fn print(config: Config) -> Result<()> {
    Secret::read(&config.secret_file)?;
    println!(
        "configuration and secret are good; {} cluster(s), listening on {}",
        config.clusters.len(),
        config.listen
    );
    let policy = Policy::Listed(config.clusters);
    for cluster in policy.listed() {
        for problem in problems(&policy, cluster) {
            warn!("{problem}");
        }
    }
    Ok(())
}

fn problems(policy: &Policy, cluster: &Cluster) -> Vec<Error> {
    let found = policy.cluster(&cluster.data_directory);
    let found = match found.and_then(|cluster| inspect(&cluster, &[], "", None, &Cancel::new())) {
        Ok(found) => found,
        Err(error) => return vec![error],
    };
    let configuration = cluster.config_file.as_ref().filter(|_| {
        // a recovery adds the line
        !found.includes_myrecovery && !found.configuration_can_be_extended
    });
    let configuration = configuration.map(|file| {
        let message = format!("config_file \"{}\" does not read myrecovery.conf", file.display());
        Error::new(Kind::TargetRefused, message)
            .detail(
                "Recoveries add the line, but the file is missing, too large, or not writable for this user.",
            )
            .hint("Run the check as the agent's user; correct config_file, or the file's owner and mode.")
    });
    let elsewhere = found
        .elsewhere
        .as_ref()
        .map(|elsewhere| configured::refusal(Kind::TargetRefused, &cluster.data_directory, elsewhere));
    let settings = &found.recovery_settings;
    let whose = "The configuration of the standby";
    let settings = [
        settings.demand_no_conflict(whose).err(),
        settings.demand_readable(whose, |path| path.starts_with(&cluster.data_directory)).err(),
        settings.advice().err(),
    ];
    configuration
        .into_iter()
        .chain(elsewhere)
        .chain(found.doubts.identity)
        .chain(settings.into_iter().flatten())
        .chain(found.starter.err())
        .collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn programs_of(cluster: &Cluster) -> std::path::PathBuf {
        cluster.bin_directory.join("postgres")
    }

    fn said(cluster: &Cluster) -> Vec<String> {
        let policy = Policy::Listed(vec![cluster.clone()]);
        problems(&policy, cluster).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_will_be_missed_is_told() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let file = |name: &str| directory.path().join(name);
        let programs = file("bin");
        std::fs::create_dir(&programs).expect("make");
        // what "postgres -C data_directory -D DIRECTORY" says where none is configured
        std::fs::write(programs.join("postgres"), "#!/bin/sh\necho \"$4\"\n").expect("write");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(programs.join("postgres"), mode).expect("set mode");
        let mut cluster = Cluster {
            config_file: Some(file("postgresql.conf")),
            start_command: Some(vec!["/nowhere/start".to_owned()]),
            ..Cluster::new(file("data"), programs)
        };
        let told = said(&cluster);
        assert!(
            told.len() == 2 && told[0].contains("postgresql.conf") && told[1].contains("/nowhere/start"),
            "{told:?}"
        );
        std::fs::write(file("postgresql.conf"), "port = 1\n").expect("write");
        cluster.start_command = Some(vec!["true".to_owned()]);
        assert_eq!(said(&cluster), [""; 0]);
        std::fs::write(file("postgresql.conf"), "include 'none.conf'\nrestore_command = 'x'\n")
            .expect("write");
        let told = said(&cluster);
        assert!(
            told.len() == 2 && told[0].contains("none.conf") && told[1].contains("restore_command"),
            "{told:?}"
        );
        std::fs::write(file("postgresql.conf"), "port = 1\n").expect("write");
        std::fs::write(programs_of(&cluster), "#!/bin/sh\necho /another/place\n").expect("write");
        let told = said(&cluster);
        assert!(told.len() == 1 && told[0].contains("belongs to another directory"), "{told:?}");
        std::fs::write(file("data"), "").expect("write");
        let told = said(&cluster);
        assert!(told.len() == 1 && told[0].contains("is not a directory"), "{told:?}");
        cluster.bin_directory = Path::new("/nowhere").to_owned();
        assert_eq!(said(&cluster).len(), 1);
    }
}
