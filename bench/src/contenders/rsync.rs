//! rsync between pg_backup_start and pg_backup_stop, as in the sample scripts Pgpool-II came with.
//!
//! It runs on one machine without ssh, so it pays neither for a cipher nor for a login.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use pgpool_recovery_e2e::scratch::write_as_postgres;
use pgpool_recovery_e2e::server;
use postgres::Client;
use serde_json::{Value, json};

use super::{Contender, Told, Wire};
use crate::interrupt::{Outcome, failed};
use crate::memory::{Side, Watch};
use crate::stage::Stage;
use crate::{tool, tree};

/// What the scripts leave out; the contents of `pg_wal` follow by themselves.
const EXCLUDED: [&str; 9] = [
    "postmaster.pid",
    "postmaster.opts",
    "pg_log",
    "log",
    "recovery.conf",
    "recovery.done",
    "recovery.signal",
    "/pg_replslot/*",
    "/pg_wal/*",
];

pub(crate) struct Rsync {
    /// By its delta algorithm, which it uses between two hosts only.
    delta: bool,
    client: Option<Client>,
    shell: PathBuf,
}

impl Rsync {
    /// `rsync -C -a -c --delete`, from directory to directory.
    pub(crate) fn tutorial() -> Box<dyn Contender> {
        Box::new(Self { delta: false, client: None, shell: PathBuf::new() })
    }

    /// The same through a remote shell that is none, with blocks as large as pages.
    pub(crate) fn delta() -> Box<dyn Contender> {
        Box::new(Self { delta: true, client: None, shell: PathBuf::new() })
    }

    fn copy(&self, stage: &Stage, watch: &Watch) -> Outcome<String> {
        let mut command = stage.primary.host().command("rsync");
        command.args(["-C", "-a", "-c", "--delete", "--stats"]);
        command.args(EXCLUDED.map(|name| format!("--exclude={name}")));
        let from = format!("{}/", stage.primary.dir());
        let mut to = format!("{}/", stage.target.dir());
        if self.delta {
            command.args(["--no-whole-file", "--block-size=8192", "-e"]).arg(&self.shell);
            to = format!("localhost:{to}");
        }
        tool::run(with(command, &[&from, &to]), Some((watch, Side::RootSends)))
    }

    /// The segments from the backup's start to its end.
    fn copy_wal(&self, stage: &Stage, first: &str, last: &str, watch: &Watch) -> Outcome<()> {
        let from = stage.primary.directory().join("pg_wal");
        let mut command = stage.primary.host().command("rsync");
        command.arg("-a");
        for entry in fs::read_dir(&from).expect("the primary's pg_wal") {
            let name = entry.expect("a readable directory").file_name().into_string().unwrap_or_default();
            if name.len() == first.len() && name.as_str() >= first && name.as_str() <= last {
                command.arg(from.join(name));
            }
        }
        let to = format!("{}/pg_wal/", stage.target.dir());
        tool::run(with(command, &[&to]), Some((watch, Side::RootSends))).map(drop)
    }
}

fn with(mut command: Command, arguments: &[&str]) -> Command {
    command.args(arguments);
    command
}

impl Contender for Rsync {
    fn name(&self) -> &str {
        if self.delta { "rsync-delta" } else { "rsync" }
    }

    fn missing(&self) -> Option<String> {
        tool::version("rsync", "--version").is_none().then(|| "not installed".to_owned())
    }

    fn wire(&self) -> Wire {
        Wire::Told
    }

    fn prepare(&mut self, stage: &Stage) -> Outcome<Option<String>> {
        // It gets the host's name and the remote command, as ssh would.
        let text = "#!/bin/sh\nshift\nexec sh -c \"$*\"\n";
        self.shell = stage.scratch.write("no-remote-shell", text, 0o700);
        Ok(None)
    }

    fn ready(&mut self, stage: &Stage) -> Outcome<()> {
        self.client = Some(stage.primary.connect());
        Ok(())
    }

    fn run(&mut self, stage: &Stage, watch: &Watch) -> Outcome<Told> {
        let mut client = self.client.take().expect("connected when made ready");
        let sql = |error: postgres::Error| crate::interrupt::Stop::Failed(error.to_string());
        client.query(&format!("SELECT {}", server::backup_start("rsync")), &[]).map_err(sql)?;
        let said = self.copy(stage, watch)?;
        let stop =
            format!("SELECT labelfile, spcmapfile, pg_walfile_name(lsn) FROM {}", server::backup_stop());
        let row = client.query_one(&stop, &[]).map_err(sql)?;
        let (label, map, last): (String, String, String) = (row.get(0), row.get(1), row.get(2));
        // START WAL LOCATION: 0/2000028 (file 000000010000000000000002)
        let Some(first) = label.split_once("(file ").and_then(|(_, rest)| rest.split(')').next()) else {
            return failed(format!("an unknown backup label: {label}"));
        };
        self.copy_wal(stage, first, &last, watch)?;
        let target = stage.target.directory();
        write_as_postgres(&target.join("backup_label"), &label, 0o600);
        if !map.trim().is_empty() {
            write_as_postgres(&target.join("tablespace_map"), &map, 0o600);
        }
        write_as_postgres(&target.join("standby.signal"), "", 0o600);
        let conninfo = format!("primary_conninfo = '{}'\n", stage.conninfo());
        write_as_postgres(&target.join("myrecovery.conf"), &conninfo, 0o600);
        stage.target.append_conf("include_if_exists", "myrecovery.conf");
        if let Err(error) = tree::sync(target) {
            return failed(format!("syncfs: {error}"));
        }
        let bytes = ["Total bytes sent: ", "Total bytes received: "].map(|label| number(&said, label));
        Ok(Told { wire: Some(bytes.iter().sum()), report: stats(&said) })
    }
}

/// A number of rsync's `--stats`, which groups digits by commas.
fn number(said: &str, label: &str) -> u64 {
    let line = said.lines().find_map(|line| line.strip_prefix(label));
    let digits: String = line.unwrap_or_default().chars().filter(char::is_ascii_digit).collect();
    digits.parse().unwrap_or(0)
}

fn stats(said: &str) -> Value {
    json!({
        "transferred": number(said, "Number of regular files transferred: "),
        "literal": number(said, "Literal data: "),
    })
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn rsync_groups_digits() {
        assert_eq!(number("x\nTotal bytes sent: 1,234,567\n", "Total bytes sent: "), 1_234_567);
    }
}
