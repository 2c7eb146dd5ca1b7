//! pg_rewind: PostgreSQL's own way back for a primary that was cleanly stopped.

use serde_json::Value;

use super::{Contender, Told};
use crate::interrupt::Outcome;
use crate::memory::{Side, Watch};
use crate::stage::Stage;
use crate::tool;

pub(crate) struct Rewind;

impl Rewind {
    pub(crate) fn plain() -> Box<dyn Contender> {
        Box::new(Self)
    }
}

impl Contender for Rewind {
    fn name(&self) -> &str {
        "pg_rewind"
    }

    fn run(&mut self, stage: &Stage, watch: &Watch) -> Outcome<Told> {
        let mut command = stage.target.host().pg("pg_rewind");
        command.arg("-R").arg("-D").arg(stage.target.directory());
        command.arg(format!("--source-server={} dbname=postgres", stage.conninfo()));
        tool::run(command, Some((watch, Side::Standby)))?;
        Ok(Told { wire: None, report: Value::Null })
    }
}
