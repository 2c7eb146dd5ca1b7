//! How long it takes at least: a small cluster of which nothing changed, until the standby streams.

use super::{Lab, describe, stopped_standby};
use crate::contenders::{FirstStageAndStart, ThroughPgpool};
use crate::data;
use crate::interrupt::Outcome;
use crate::progress::say;
use crate::report::Table;
use crate::rounds::Rounds;
use crate::stage::{Place, Stage};

const MEGABYTES: u32 = 100;

pub(crate) fn start_up(lab: &mut Lab) -> Outcome<()> {
    let plan = lab.plan;
    say(&format!("making {MEGABYTES} MB of pgbench data"));
    let stage = data::pgbench_stage(lab.scratch(), Place::default(), MEGABYTES, plan.fill_factor)?;
    // Pgpool-II hands on no options.
    for (name, value) in [
        ("transport", "agent".to_owned()),
        ("agent_port", stage.agent().port().to_string()),
        ("application_name", "server%n".to_owned()),
        ("slot_name", "server%n".to_owned()),
    ] {
        stage.primary.append_conf(&format!("pgpool_recovery.{name}"), value);
    }
    stage.primary.reload();
    stopped_standby(&stage)?;
    let mut table = Table::new("small");
    describe(&mut table, &stage)?;
    let keep = |_: &Stage, _| Ok(0);
    Rounds::new(plan, &stage, &keep)
        .run(&mut table, vec![Box::<FirstStageAndStart>::default(), Box::<ThroughPgpool>::default()])?;
    lab.done(table);
    Ok(())
}
