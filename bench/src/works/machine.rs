//! The machine's own limits, for comparison.

use super::{Lab, describe, stopped_standby};
use crate::contenders::Machine;
use crate::interrupt::Outcome;
use crate::report::Table;
use crate::rounds::Rounds;
use crate::stage::Stage;

pub(crate) fn bounds(lab: &mut Lab) -> Outcome<()> {
    let plan = lab.plan;
    let stage = lab.main()?;
    let mut table = Table::new("machine");
    describe(&mut table, stage)?;
    stopped_standby(stage)?;
    let keep = |_: &Stage, _| Ok(0);
    let rounds = Rounds { verify: false, ..Rounds::new(plan, stage, &keep) };
    rounds.run(&mut table, vec![Box::new(Machine::Compare)])?;
    let empty = |stage: &Stage, _| stage.empty_target();
    Rounds { reset: &empty, ..rounds }.run(&mut table, vec![Box::new(Machine::Copy)])?;
    stage.empty_target()?;
    lab.done(table);
    Ok(())
}
