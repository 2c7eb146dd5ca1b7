//! pgBackRest: a backup into a repository beforehand, then a delta restore from it.

use std::fs;
use std::process::Command;
use std::time::Instant;

use serde_json::Value;

use super::{Contender, Told, Wire};
use crate::interrupt::Outcome;
use crate::memory::{Side, Watch};
use crate::stage::Stage;
use crate::tool;

pub(crate) struct PgBackRest;

impl PgBackRest {
    pub(crate) fn delta() -> Box<dyn Contender> {
        Box::new(Self)
    }
}

const REPOSITORY: &str = "repository";

fn command(stage: &Stage, directory: &str, action: &str) -> Command {
    let mut command = stage.primary.host().command("pgbackrest");
    let scratch = |name| stage.scratch.join(REPOSITORY).join(name).display().to_string();
    command.args(["--stanza=bench", "--log-level-file=off", "--log-level-console=warn"]);
    command.arg(format!("--repo1-path={}", scratch("backups")));
    command.arg(format!("--lock-path={}", scratch("lock")));
    command.arg(format!("--pg1-path={directory}"));
    command.arg(action);
    command
}

fn on_primary(stage: &Stage, action: &str) -> Command {
    let mut command = command(stage, stage.primary.dir(), action);
    command.arg(format!("--pg1-port={}", stage.primary.port()));
    command.arg(format!("--pg1-socket-path={}", stage.scratch.sockets().display()));
    command.arg("--pg1-user=postgres");
    command
}

impl Contender for PgBackRest {
    fn name(&self) -> &str {
        "pgbackrest"
    }

    fn missing(&self) -> Option<String> {
        tool::version("pgbackrest", "version").is_none().then(|| "not installed".to_owned())
    }

    fn wire(&self) -> Wire {
        Wire::None
    }

    fn prepare(&mut self, stage: &Stage) -> Outcome<Option<String>> {
        let start = Instant::now();
        // A backup of its own for each work: the primary keeps WAL for so long only.
        let _ = fs::remove_dir_all(stage.scratch.join(REPOSITORY));
        stage.scratch.mkdir(REPOSITORY);
        tool::run(on_primary(stage, "stanza-create"), None)?;
        let mut backup = on_primary(stage, "backup");
        // Uncompressed, which is quickest to restore from; WAL comes from the primary.
        backup.args(["--process-max=2", "--type=full", "--start-fast", "--compress-type=none"]);
        backup.arg("--no-archive-check");
        tool::run(backup, None)?;
        Ok(Some(format!("its backup beforehand took {:.1} s", start.elapsed().as_secs_f64())))
    }

    fn run(&mut self, stage: &Stage, watch: &Watch) -> Outcome<Told> {
        let mut restore = command(stage, stage.target.dir(), "restore");
        restore.args([
            "--process-max=2",
            "--delta",
            "--type=standby",
            "--recovery-option=restore_command=false",
        ]);
        restore.arg(format!("--recovery-option=primary_conninfo={}", stage.conninfo()));
        tool::run(restore, Some((watch, Side::Standby)))?;
        Ok(Told { wire: None, report: Value::Null })
    }
}
