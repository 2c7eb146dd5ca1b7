//! pg_basebackup: PostgreSQL's own full copy.

use serde_json::Value;

use super::{Contender, Told};
use crate::interrupt::Outcome;
use crate::memory::{Side, Watch};
use crate::stage::Stage;
use crate::tool;

/// Plain format, WAL streamed beside, fast checkpoint, everything synced: what a careful script calls.
pub(crate) struct BaseBackup {
    name: String,
    compression: Option<&'static str>,
}

impl BaseBackup {
    pub(crate) fn plain() -> Box<dyn Contender> {
        Box::new(Self { name: "pg_basebackup".to_owned(), compression: None })
    }

    /// Compressed by the server, decompressed by the client.
    pub(crate) fn compressed(compression: &'static str) -> Box<dyn Contender> {
        let name = format!("pg_basebackup-{compression}");
        Box::new(Self { name, compression: Some(compression) })
    }
}

impl Contender for BaseBackup {
    fn name(&self) -> &str {
        &self.name
    }

    fn run(&mut self, stage: &Stage, watch: &Watch) -> Outcome<Told> {
        let mut command = stage.target.host().pg("pg_basebackup");
        command.args(["-c", "fast", "-X", "stream", "-R", "-D"]).arg(stage.target.directory());
        command.args(["-d", &stage.conninfo()]);
        if let Some(compression) = self.compression {
            command.arg(format!("--compress=server-{compression}"));
        }
        tool::run(command, Some((watch, Side::Standby)))?;
        Ok(Told { wire: None, report: Value::Null })
    }
}
