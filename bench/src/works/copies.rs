//! Refreshes of a standby, and full copies, of the data of --size.

use super::{Lab, describe, stopped_standby};
use crate::contenders::{BaseBackup, Ours, PgBackRest, Rsync};
use crate::damage;
use crate::interrupt::{Outcome, failed};
use crate::report::Table;
use crate::rounds::{Rounds, plain};
use crate::stage::Stage;

/// A stopped standby of which one in so many pages differs, or none.
pub(crate) fn refresh(lab: &mut Lab, work: &str, one_in: Option<u64>) -> Outcome<()> {
    let plan = lab.plan;
    let stage = lab.main()?;
    stopped_standby(stage)?;
    let mut table = Table::new(work);
    describe(&mut table, stage)?;
    let reset = |stage: &Stage, round: u32| match one_in {
        None => Ok(0),
        // Other pages in each round, the same for every contender.
        Some(one_in) => match damage::pages(stage.target.directory(), one_in, u64::from(round)) {
            Ok(pages) => Ok(pages),
            Err(error) => failed(format!("the standby could not be changed: {error}")),
        },
    };
    let contenders = vec![
        Ours::agent(),
        Ours::compressed("auto"),
        Ours::local(),
        Rsync::tutorial(),
        Rsync::delta(),
        PgBackRest::delta(),
    ];
    Rounds { plan, stage, repetitions: plan.repetitions, verify: true, reset: &reset, figures: &plain }
        .run(&mut table, contenders)?;
    lab.done(table);
    Ok(())
}

/// To an empty directory.
pub(crate) fn full(lab: &mut Lab) -> Outcome<()> {
    let plan = lab.plan;
    let stage = lab.main()?;
    let mut table = Table::new("full");
    describe(&mut table, stage)?;
    let reset = |stage: &Stage, _| stage.empty_target();
    let contenders = vec![
        Ours::agent(),
        Ours::compressed("auto"),
        Ours::local(),
        BaseBackup::plain(),
        BaseBackup::compressed("lz4"),
        BaseBackup::compressed("zstd"),
        Rsync::tutorial(),
        PgBackRest::delta(),
    ];
    Rounds { plan, stage, repetitions: plan.repetitions, verify: true, reset: &reset, figures: &plain }
        .run(&mut table, contenders)?;
    lab.done(table);
    Ok(())
}
