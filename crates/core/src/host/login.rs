//! A trial login to the primary, exactly as the standby's walreceiver will: same libpq, same OS user, same password file.

use std::time::Duration;

use tracing::info;

use super::identify::{self, Identity};
use super::policy::Cluster;
use crate::error::{Error, Kind, Result};
use crate::replication::standby::ReplicationConfig;
use crate::sys::cancel::Cancel;
use crate::sys::process;

/// How long a trial login may take.
const LOGIN_DEADLINE: Duration = Duration::from_secs(15);

/// Most lines of psql's that become warnings.
const MAX_WARNINGS: usize = 10;

/// Logs in to the primary for replication and checks that the server there has the right system identifier.
/// Returns what psql said besides its answer.
pub(crate) fn test_replication(
    cluster: &Cluster,
    replication: &ReplicationConfig,
    system_identifier: u64,
    cancel: &Cancel,
) -> Result<Vec<String>> {
    replication.validate_connection()?;
    // A password may be sent to the host that was named, so the log has what was tried.
    info!(
        host = replication.host,
        port = replication.port,
        user = replication.user,
        passfile = replication.passfile,
        "trial login to the primary"
    );
    let conninfo =
        format!("{} replication=true dbname=replication connect_timeout=10", replication.conninfo());
    let command = identify::command(&cluster.bin_directory, &conninfo, None);
    let outcome = process::run(command, LOGIN_DEADLINE, cancel)?;
    let refused = || {
        Error::new(
            Kind::AuthenticationFailed,
            "replication login from the target's host to the primary failed",
        )
    };
    if !outcome.status.success() {
        return Err(refused().detail(outcome.said()).hint(
            "The standby would fail in the same way. Allow its host and the replication user in the primary's \
             pg_hba.conf (database \"replication\"), check listen_addresses, pgpool_recovery.primary_host, \
             pgpool_recovery.replication_user and the password file on the target's host.",
        ));
    }
    let Some(Identity { system_identifier: found, .. }) = identify::parse(&outcome.stdout) else {
        return Err(refused()
            .detail(format!(
                "The server there gave no answer to IDENTIFY_SYSTEM. psql said:\n{}",
                outcome.said()
            ))
            .hint("Run psql with the same connection on the target's host, as the OS user of PostgreSQL."));
    };
    if found == system_identifier {
        return Ok(warnings(&outcome.stderr));
    }
    Err(refused()
        .detail(format!(
            "The server there has system identifier {found}, this primary has {system_identifier}."
        ))
        .hint(
            "The host and port given for the primary lead to another server as seen from the target's host.",
        ))
}

fn warnings(said: &str) -> Vec<String> {
    let lines = said.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.take(MAX_WARNINGS).map(|line| format!("replication login from the target's host: {line}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A trial login with a program that runs this script in psql's place.
    fn login(script: &str, replication: &ReplicationConfig) -> Result<Vec<String>> {
        let top = tempfile::tempdir().expect("temporary directory");
        process::tests::script(&top.path().join("psql"), script);
        let cluster = Cluster::new("/nonexistent".into(), top.path().to_owned());
        test_replication(&cluster, replication, 77, &Cancel::new())
    }

    #[test]
    fn words_beside_the_answer_are_warnings() {
        let warned = login("echo 'WARNING: 99|1|' >&2; echo '77|1|0/1|'", &ReplicationConfig::example())
            .expect("logged in");
        assert_eq!(warned, ["replication login from the target's host: WARNING: 99|1|"]);
        assert_eq!(login("echo '77|1|0/1|'", &ReplicationConfig::example()), Ok(Vec::new()));
    }

    #[test]
    fn another_server_is_told_from_no_answer() {
        let error = login("echo '78|1|0/1|'", &ReplicationConfig::example()).expect_err("another server");
        assert_eq!(error.kind, Kind::AuthenticationFailed);
        assert!(error.detail.is_some_and(|detail| detail.contains("identifier 78, this primary has 77")));
        let error = login("echo '77|1|0/1|' >&2", &ReplicationConfig::example()).expect_err("no answer");
        assert!(error.detail.is_some_and(|detail| detail.contains("no answer") && detail.contains("77|1|")));
        let error = login("echo words; echo 'FATAL: no' >&2; exit 2", &ReplicationConfig::example())
            .expect_err("failed");
        assert!(error.detail.is_some_and(|detail| detail.contains("FATAL: no")));
    }

    #[test]
    fn fields_that_no_connection_has_never_reach_psql() {
        let bad = ReplicationConfig { host: "a\nb".to_owned(), ..ReplicationConfig::example() };
        assert_eq!(login("echo '77|1|0/1|'", &bad).expect_err("refused").kind, Kind::InvalidArgument);
    }
}
