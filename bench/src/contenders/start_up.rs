//! Both halves of an online recovery, until the standby streams: called directly, and by Pgpool-II.

use pgpool_recovery_e2e::Host;
use pgpool_recovery_e2e::pgpool::{Pgpool, Setup};
use postgres::Client;

use super::ours::through_agent;
use super::{Contender, Told, Wire};
use crate::interrupt::{Outcome, Stop, failed};
use crate::memory::Watch;
use crate::stage::Stage;
use crate::tool;

/// `pgpool_recovery_1st_stage` and `pgpool_remote_start`, through the agent.
#[derive(Default)]
pub(crate) struct FirstStageAndStart {
    client: Option<Client>,
}

impl Contender for FirstStageAndStart {
    fn name(&self) -> &str {
        "ours-agent"
    }

    /// The interface also carries the standby's streaming.
    fn wire(&self) -> Wire {
        Wire::Told
    }

    fn ready(&mut self, stage: &Stage) -> Outcome<()> {
        self.client = Some(stage.primary.connect());
        Ok(())
    }

    fn run(&mut self, stage: &Stage, _watch: &Watch) -> Outcome<Told> {
        let mut client = self.client.take().expect("connected when made ready");
        let sql = |error: postgres::Error| Stop::Failed(format!("{error:?}"));
        let report = through_agent(stage).option("node_id", 1).call(&mut client).map_err(sql)?;
        let start = "SELECT pgpool_remote_start($1, $2)";
        client.query(start, &[&stage.target.host().address(), &stage.target.dir()]).map_err(sql)?;
        Ok(Told { wire: report.0["bytes"]["wire"].as_u64(), report: report.0 })
    }
}

/// `pcp_recovery_node`: what an operator types.
#[derive(Default)]
pub(crate) struct ThroughPgpool {
    pgpool: Option<Pgpool>,
}

impl Contender for ThroughPgpool {
    fn name(&self) -> &str {
        "pgpool"
    }

    fn wire(&self) -> Wire {
        Wire::None
    }

    fn missing(&self) -> Option<String> {
        tool::version("pgpool", "--version").is_none().then(|| "not installed".to_owned())
    }

    fn prepare(&mut self, stage: &Stage) -> Outcome<Option<String>> {
        let backends = [&stage.primary, &stage.target];
        let pgpool = Setup::new(&stage.scratch, &Host::here(), &backends).start();
        pgpool.wait_for_node(0, "up", "primary", "");
        self.pgpool = Some(pgpool);
        Ok(Some("whole time of pcp_recovery_node; Pgpool-II's own waiting is in it".to_owned()))
    }

    fn ready(&mut self, _stage: &Stage) -> Outcome<()> {
        let pgpool = self.pgpool.as_ref().expect("made when prepared");
        pgpool.wait_for_node(1, "down", "standby", "");
        Ok(())
    }

    fn run(&mut self, stage: &Stage, _watch: &Watch) -> Outcome<Told> {
        match self.pgpool.as_ref().expect("made when prepared").recover(1) {
            Ok(()) => Ok(Told::default()),
            Err(error) => failed(format!("{error}\n{}", stage.primary.log())),
        }
    }
}
