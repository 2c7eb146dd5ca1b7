//! Rebuilds of which WAL says what changed (`skip_unchanged = on`): nothing, or one block in a hundred.

use pgpool_recovery_e2e::cluster::Stop as StopMode;

use super::{Lab, copy, describe, put_back, stopped_standby};
use crate::contenders::{Ours, PgBackRest, Rsync};
use crate::data;
use crate::interrupt::Outcome;
use crate::progress::say;
use crate::report::Table;
use crate::rounds::Rounds;
use crate::stage::{Place, Stage};

/// A stopped standby that has WAL which tells whose it is: in that of two servers at rest there are no times.
pub(super) fn stopped_standby_with_wal(stage: &Stage) -> Outcome<()> {
    stopped_standby(stage)?;
    stage.target.start();
    stage.target.wait_for_replay(&stage.primary);
    stage.target.stop(StopMode::Fast);
    Ok(())
}

/// A standby that was stopped; since then nothing has changed on the primary, or about `percent` of its blocks.
pub(crate) fn rebuild(lab: &mut Lab, work: &str, percent: Option<u32>) -> Outcome<()> {
    let plan = lab.plan;
    say(&format!("making {} MB of pgbench data and a standby", plan.size));
    let mut stage = data::pgbench_stage(lab.scratch(), Place::default(), plan.size, plan.fill_factor)?;
    stopped_standby_with_wal(&stage)?;
    if let Some(percent) = percent {
        let every = data::rows_of_a_page(plan.fill_factor) * 100 / percent;
        stage
            .primary
            .execute(&format!("UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid % {every} = 0"));
        // every row is read, so that no reader sets a hint bit later
        stage.primary.execute("VACUUM pgbench_accounts");
        stage.primary.execute("CHECKPOINT");
        // what the first standby was compared with
        stage.expected.borrow_mut().clear();
    }
    stage.at_rest = false;
    let saved = stage.scratch.join("saved");
    copy(stage.target.directory(), &saved)?;
    let mut table = Table::new(work);
    describe(&mut table, &stage)?;
    let reset = |stage: &Stage, _| put_back(&saved, stage);
    let contenders = vec![
        Ours::skipping(Ours::agent()),
        Ours::skipping(Ours::local()),
        Ours::agent(),
        Ours::local(),
        Rsync::tutorial(),
        Rsync::delta(),
        PgBackRest::delta(),
    ];
    Rounds::new(plan, &stage, &reset).run(&mut table, contenders)?;
    lab.done(table);
    Ok(())
}
