//! The old primary after a failover: both sides have written what the other lacks.

use pgpool_recovery_e2e::cluster::Stop as StopMode;

use super::{Lab, copy, describe, put_back, stopped_standby};
use crate::contenders::{Ours, Rewind};
use crate::data;
use crate::interrupt::Outcome;
use crate::progress::say;
use crate::report::Table;
use crate::rounds::Rounds;
use crate::stage::{Place, Stage};

/// Transactions on each side after they parted: two clients with half of them each.
const HALF: &str = "1000";

/// Megabytes of which all rows are looked at after each run; of more data it is a sample.
const ALL_ROWS: u32 = 3000;

pub(crate) fn rebuild(lab: &mut Lab) -> Outcome<()> {
    let plan = lab.plan;
    say(&format!("making {} MB of pgbench data and a failover", plan.size));
    // pg_rewind wants to see the changes of hint bits.
    let place = Place { settings: vec![("wal_log_hints", "on".to_owned())], ..Place::default() };
    let parted = data::pgbench_stage(lab.scratch(), place, plan.size, plan.fill_factor)?;
    stopped_standby(&parted)?;
    parted.target.start();
    parted.target.wait_for_replay(&parted.primary);
    parted.target.promote();
    let Stage { primary: old, target: new, scratch, .. } = parted;
    for side in [&old, &new] {
        data::pgbench(side, &["-n", "-c", "2", "-t", HALF])?;
    }
    old.stop(StopMode::Fast);
    new.execute("CHECKPOINT");
    let saved = scratch.join("saved");
    copy(old.directory(), &saved)?;

    let secret = scratch.join("secret");
    let mut stage = Stage::of(scratch, new, old, &secret, None);
    // Readers still set hint bits, so the rows have to tell.
    (stage.at_rest, stage.all_rows) = (false, plan.size <= ALL_ROWS);
    let mut table = Table::new("failover");
    describe(&mut table, &stage)?;
    table.fact("transactions on each side", 2000);
    let reset = |stage: &Stage, _| put_back(&saved, stage);
    let contenders = vec![
        Ours::skipping(Ours::agent()),
        Ours::skipping(Ours::local()),
        Ours::agent(),
        Ours::compressed("auto"),
        Ours::local(),
        Rewind::plain(),
    ];
    Rounds { counts_catching_up: true, ..Rounds::new(plan, &stage, &reset) }.run(&mut table, contenders)?;
    lab.done(table);
    Ok(())
}
