//! A cluster of very many small tables.

use super::{Lab, describe, stopped_standby};
use crate::contenders::{Ours, Rsync};
use crate::data;
use crate::interrupt::Outcome;
use crate::progress::say;
use crate::report::Table;
use crate::rounds::Rounds;
use crate::stage::{Place, Stage};

pub(crate) fn refresh(lab: &mut Lab) -> Outcome<()> {
    let plan = lab.plan;
    say(&format!("making {} tables", plan.files));
    let stage = Stage::new(lab.scratch(), Place::of_many_files());
    data::one_page_tables(&stage.primary, 0, plan.files)?;
    stopped_standby(&stage)?;
    let mut table = Table::new("many-files");
    describe(&mut table, &stage)?;
    table.fact("tables", plan.files);
    let keep = |_: &Stage, _| Ok(0);
    let contenders = vec![Ours::agent(), Rsync::tutorial()];
    let repetitions = plan.few_repetitions();
    Rounds { repetitions, ..Rounds::new(plan, &stage, &keep) }.run(&mut table, contenders)?;
    lab.done(table);
    Ok(())
}
