//! What is measured between two hosts: each as a script that one of them runs.

use serde_json::{Value, json};

use super::Plan;
use super::pair::Pair;
use super::remote::{Remote, quoted};
use crate::interrupt::{Outcome, Stop, failed};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Contender {
    /// Compression, and whether what WAL proves equal is left out.
    Ours(&'static str, bool),
    BaseBackup,
    Rsync,
}

impl Contender {
    /// As in `make bench`.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Ours("off", false) => "ours-agent",
            Self::Ours("off", true) => "ours-agent-skip",
            Self::Ours(_, false) => "ours-agent-auto",
            Self::Ours(_, true) => "ours-agent-auto-skip",
            Self::BaseBackup => "pg_basebackup",
            Self::Rsync => "rsync-ssh",
        }
    }

    /// Why it cannot run.
    pub(super) fn missing(self, pair: &Pair, plan: &Plan) -> Outcome<Option<String>> {
        if self != Self::Rsync {
            return Ok(None);
        }
        for remote in [&pair.primary, &pair.standby] {
            if remote.run("command -v rsync || true")?.is_empty() {
                return Ok(Some(format!("not installed on {}", remote.destination())));
            }
        }
        let reached = pair.primary.run(&format!(
            "{} </dev/null >/dev/null 2>&1 && echo yes || true",
            between(pair, plan, "true")
        ))?;
        Ok(reached.is_empty().then(|| "no ssh from the primary to the standby".to_owned()))
    }

    /// Rebuilds the target. Seconds by the clock of the host that calls, and what it says of itself.
    pub(super) fn run(self, pair: &Pair, plan: &Plan) -> Outcome<(f64, Value)> {
        match self {
            Self::Ours(compression, skips) => ours(pair, compression, skips),
            Self::BaseBackup => {
                let bin = quoted(&pair.standby_bin);
                let connection = quoted(&pair.conninfo());
                let copy = format!(
                    "{bin}/pg_basebackup -c fast -X stream -R -D \"$PWD/target\" -d {connection} </dev/null"
                );
                let (seconds, _) = timed(&pair.standby, &copy)?;
                Ok((seconds, Value::Null))
            }
            Self::Rsync => rsync(pair, plan),
        }
    }
}

/// A script's seconds and output.
fn timed(remote: &Remote, script: &str) -> Outcome<(f64, String)> {
    let said =
        remote.run(&format!("begin=$(date +%s%N)\n{script}\necho; echo $(($(date +%s%N) - begin))"))?;
    let (output, nanoseconds) = said.trim_end().rsplit_once('\n').unwrap_or_default();
    match nanoseconds.parse::<f64>() {
        Ok(nanoseconds) => Ok((nanoseconds / 1e9, output.trim().to_owned())),
        Err(_) => failed(format!("the clock of {} says {nanoseconds}", remote.destination())),
    }
}

fn ours(pair: &Pair, compression: &str, skips: bool) -> Outcome<(f64, Value)> {
    let options = json!({
        "transport": "agent",
        "agent_port": pair.port + 1,
        "dest_port": pair.port,
        "primary_host": pair.primary_address,
        "primary_port": pair.port,
        "passfile": pair.standby.path("pgpass"),
        "compression": compression,
        "skip_unchanged": if skips { "on" } else { "off" },
    });
    let literal = |text: &str| format!("'{}'", text.replace('\'', "''"));
    let call = format!(
        "SELECT pgpool_recovery_1st_stage({}, {}, {}, {}::jsonb)",
        literal(&pair.standby_address),
        literal(&pair.standby.path("target")),
        pair.port,
        literal(&options.to_string())
    );
    let (seconds, said) = timed(&pair.primary, &format!("{} -c {} </dev/null", pair.psql(), quoted(&call)))?;
    let report: Value = serde_json::from_str(&said)
        .map_err(|error| Stop::Failed(format!("the report is no JSON: {error}: {said}")))?;
    if skips && report["skip"]["rule"] != "wal_map" {
        return failed(format!("nothing was left out: {}", report["skip"]));
    }
    Ok((seconds, report))
}

/// A call of ssh on the primary that runs a command on the standby.
fn between(pair: &Pair, plan: &Plan, command: &str) -> String {
    format!("{} {} {}", shell(plan), login(pair), quoted(command))
}

fn shell(plan: &Plan) -> String {
    format!("{} -o BatchMode=yes", plan.ssh_between)
}

/// The standby's login, as the primary reaches it.
fn login(pair: &Pair) -> String {
    match pair.standby.destination().rsplit_once('@') {
        Some((user, _)) => format!("{user}@{}", pair.standby_address),
        None => pair.standby_address.clone(),
    }
}

/// As in the sample scripts Pgpool-II came with. One session holds the backup; its `\!` runs rsync.
fn rsync(pair: &Pair, plan: &Plan) -> Outcome<(f64, Value)> {
    const EXCLUDED: &str = "--exclude=postmaster.pid --exclude=postmaster.opts --exclude=pg_log --exclude=log \
        --exclude=recovery.conf --exclude=recovery.done --exclude=recovery.signal --exclude=/pg_replslot/* \
        --exclude=/pg_wal/*";
    let (start, stop) = if pair.major < 15 {
        ("pg_start_backup('rsync', true, false)", "pg_stop_backup(false)")
    } else {
        ("pg_backup_start('rsync', true)", "pg_backup_stop()")
    };
    let (target, shell) = (pair.standby.path("target"), shell(plan));
    let to = format!("{}:{target}", login(pair));
    let copy = format!(
        "set -f\nrsync -C -a -c --delete {EXCLUDED} -e {} primary/ {} || touch failed\n",
        quoted(&shell),
        quoted(&format!("{to}/"))
    );
    pair.primary.run_with("cat >copy.sh; rm -f failed", &copy)?;
    let session = format!(
        "SELECT {start} \\g /dev/null
\\! sh copy.sh
SELECT labelfile AS label, pg_walfile_name(lsn) AS last FROM {stop} \\gset
\\o label
\\qecho :label
\\o last
\\qecho :last
"
    );
    pair.primary.run_with("cat >session.sql", &session)?;
    let finish = format!(
        "cat >{target}/backup_label && : >{target}/standby.signal && echo {} >>{target}/postgresql.auto.conf && sync -f {target}",
        quoted(&format!("primary_conninfo = '{}'", pair.conninfo()))
    );
    let script = format!(
        "{psql} -f session.sql </dev/null
[ ! -e failed ]
first=$(sed -n 's/.*(file \\([0-9A-F]*\\)).*/\\1/p' label | head -n 1)
last=$(cat last)
for segment in primary/pg_wal/*; do
    name=${{segment##*/}}
    if [ ${{#name}} = 24 ] && ! expr \"x$name\" '<' \"x$first\" >/dev/null && ! expr \"x$name\" '>' \"x$last\" >/dev/null; then
        set -- \"$@\" \"$segment\"
    fi
done
rsync -a -e {} \"$@\" {}
{} <label",
        quoted(&shell),
        quoted(&format!("{to}/pg_wal/")),
        between(pair, plan, &finish),
        psql = pair.psql(),
    );
    let (seconds, _) = timed(&pair.primary, &script)?;
    Ok((seconds, Value::Null))
}
