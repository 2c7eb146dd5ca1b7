//! pgpool_recovery itself, as it is installed.

use pgpool_recovery_e2e::Recovery;
use postgres::Client;

use super::{Contender, Told, Wire};
use crate::interrupt::{Outcome, failed};
use crate::memory::Watch;
use crate::stage::Stage;

pub(crate) struct Ours {
    name: String,
    /// None: a local target.
    compression: Option<&'static str>,
    /// Leaves out what WAL proves equal.
    skips: bool,
    client: Option<Client>,
}

impl Ours {
    /// Through an agent, nothing compressed: the bytes on the wire compare to those of peers.
    pub(crate) fn agent() -> Box<Self> {
        Box::new(Self { name: "ours-agent".to_owned(), compression: Some("off"), skips: false, client: None })
    }

    /// Through an agent with a compression; `auto` is the product's default.
    pub(crate) fn compressed(compression: &'static str) -> Box<Self> {
        let name = format!("ours-agent-{compression}");
        Box::new(Self { name, compression: Some(compression), skips: false, client: None })
    }

    /// The same, and what WAL proves equal is left out.
    pub(crate) fn skipping(ours: Box<Self>) -> Box<dyn Contender> {
        Box::new(Self { name: format!("{}-skip", ours.name), skips: true, ..*ours })
    }

    /// Both halves in the primary's backend.
    pub(crate) fn local() -> Box<Self> {
        Box::new(Self { name: "ours-local".to_owned(), compression: None, skips: false, client: None })
    }
}

impl Contender for Ours {
    fn name(&self) -> &str {
        &self.name
    }

    fn wire(&self) -> Wire {
        if self.compression.is_some() { Wire::Interface } else { Wire::None }
    }

    fn ready(&mut self, stage: &Stage) -> Outcome<()> {
        self.client = Some(stage.primary.connect());
        Ok(())
    }

    fn run(&mut self, stage: &Stage, _watch: &Watch) -> Outcome<Told> {
        let recovery = match self.compression {
            Some(compression) => through_agent(stage).option("compression", compression),
            None => Recovery::of(&stage.target, &stage.primary).option("transport", "local"),
        };
        let recovery = if self.skips { recovery.option("skip_unchanged", "on") } else { recovery };
        let client = self.client.as_mut().expect("connected when made ready");
        match recovery.option("dest_port", stage.target.port()).call(client) {
            Ok(report) if self.skips && report.0["skip"]["rule"] != "wal_map" => {
                failed(format!("nothing was left out: {}", report.0["skip"]))
            }
            Ok(report) => Ok(Told { wire: report.0["bytes"]["wire"].as_u64(), report: report.0 }),
            Err(error) => failed(match error.as_db_error() {
                Some(error) => format!(
                    "{}; {}; {}",
                    error.message(),
                    error.detail().unwrap_or_default(),
                    error.hint().unwrap_or_default()
                ),
                None => error.to_string(),
            }),
        }
    }
}

/// The call of a first stage for the target of a stage, through the stage's agent.
pub(crate) fn through_agent(stage: &Stage) -> Recovery {
    Recovery::to(stage.target.host().address(), stage.target.dir(), stage.primary.port())
        .option("transport", "agent")
        .option("agent_port", stage.agent().port())
}
