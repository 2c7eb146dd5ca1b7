//! A full copy on a file system that can clone.

use pgpool_recovery_e2e::xfs::Xfs;

use super::{Lab, describe};
use crate::contenders::{BaseBackup, Ours};
use crate::data;
use crate::interrupt::Outcome;
use crate::progress::say;
use crate::report::Table;
use crate::rounds::Rounds;
use crate::stage::{Place, Stage};

pub(crate) fn full(lab: &mut Lab) -> Outcome<()> {
    let plan = lab.plan;
    let scratch = lab.scratch();
    // Both trees, and the WAL of filling the first.
    let xfs = match Xfs::new(&scratch, 3 * u64::from(plan.size) + 10_000) {
        Ok(xfs) => xfs,
        Err(reason) => {
            say(&format!("full-clone: not run: {reason}"));
            lab.done(Table::skipped("full-clone", reason));
            return Ok(());
        }
    };
    say(&format!("making {} MB of pgbench data on XFS", plan.size));
    let place = Place { directory: Some(xfs.path().to_owned()), ..Place::default() };
    let stage = data::pgbench_stage(scratch, place, plan.size, plan.fill_factor)?;
    let mut table = Table::new("full-clone");
    describe(&mut table, &stage)?;
    let reset = |stage: &Stage, _| stage.empty_target();
    let contenders = vec![Ours::local(), BaseBackup::plain()];
    Rounds::new(plan, &stage, &reset).run(&mut table, contenders)?;
    lab.done(table);
    // The servers on it end before the file system goes.
    drop(stage);
    drop(xfs);
    Ok(())
}
