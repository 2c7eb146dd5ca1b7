//! Refreshes of a standby, and full copies, of the data of --size.

use super::{Lab, describe, stopped_standby};
use crate::contenders::{BaseBackup, Ours, PgBackRest, Rsync};
use crate::damage;
use crate::interrupt::Outcome;
use crate::report::Table;
use crate::rounds::Rounds;
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
        Some(one_in) => damage::standby(stage, one_in, round),
    };
    let contenders = vec![
        Ours::agent(),
        Ours::compressed("auto"),
        Ours::local(),
        Rsync::tutorial(),
        Rsync::delta(),
        PgBackRest::delta(),
    ];
    Rounds::new(plan, stage, &reset).run(&mut table, contenders)?;
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
    Rounds::new(plan, stage, &reset).run(&mut table, contenders)?;
    lab.done(table);
    Ok(())
}
