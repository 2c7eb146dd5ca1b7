//! Rebuilds of which WAL says what changed, over the size of the data: the amount of change is always the same.

use super::{Lab, copy, describe, put_back};
use crate::contenders::Ours;
use crate::data;
use crate::interrupt::Outcome;
use crate::progress::say;
use crate::report::Table;
use crate::rounds::Rounds;
use crate::stage::{Place, Stage};
use crate::works::unchanged::stopped_standby_with_wal;

const MEGABYTES: [u32; 4] = [300, 3000, 10_000, 30_000];

/// Rows that are changed, on as many pages.
const ROWS: u32 = 2000;

/// Large data are made of few rows.
const FILL_FACTOR: u32 = 10;

pub(crate) fn sizes(lab: &mut Lab) -> Outcome<()> {
    let plan = lab.plan;
    let mut all = Table::new("map-curve");
    for megabytes in MEGABYTES.into_iter().filter(|megabytes| *megabytes <= plan.map_curve_max) {
        say(&format!("making {megabytes} MB of pgbench data and a standby"));
        let mut stage = data::pgbench_stage(lab.scratch(), Place::default(), megabytes, FILL_FACTOR)?;
        stopped_standby_with_wal(&stage)?;
        let rows: i64 = stage.primary.get("SELECT max(aid)::bigint FROM pgbench_accounts", &[]);
        let every = rows / i64::from(ROWS);
        stage.primary.execute(&format!("UPDATE pgbench_accounts SET abalance = 1 WHERE aid % {every} = 0"));
        stage.primary.execute("CHECKPOINT");
        stage.expected.borrow_mut().clear();
        stage.at_rest = false;
        let saved = stage.scratch.join("saved");
        copy(stage.target.directory(), &saved)?;
        let reset = |stage: &Stage, _| put_back(&saved, stage);
        let mut table = Table::new(&format!("map-curve, {megabytes} MB"));
        describe(&mut table, &stage)?;
        let repetitions = plan.few_repetitions();
        let contenders = vec![Ours::skipping(Ours::agent()), Ours::agent()];
        Rounds { repetitions, ..Rounds::new(plan, &stage, &reset) }.run(&mut table, contenders)?;
        let bytes = table.facts.get("bytes").cloned().unwrap_or_default();
        all.fact(&format!("bytes of {megabytes} MB"), bytes);
        all.rows.extend(table.rows.into_iter().map(|mut row| {
            row.contender = format!("{} {megabytes} MB", row.contender);
            row
        }));
    }
    lab.done(all);
    Ok(())
}
