//! The old primary after a failover: both sides have written what the other lacks.

use pgpool_recovery_e2e::cluster::Stop as StopMode;
use pgpool_recovery_e2e::{Cluster, Host, agent};

use super::{Lab, copy, describe, put_back};
use crate::contenders::{Ours, Rewind};
use crate::data;
use crate::interrupt::Outcome;
use crate::progress::say;
use crate::report::Table;
use crate::rounds::Rounds;
use crate::stage::{Stage, cluster};

/// Transactions on each side after they parted: two clients with half of them each.
const HALF: &str = "1000";

/// Megabytes of which all rows are looked at after each run; of more data it is a sample.
const ALL_ROWS: u32 = 3000;

pub(crate) fn rebuild(lab: &mut Lab) -> Outcome<()> {
    let plan = lab.plan;
    say(&format!("making {} MB of pgbench data and a failover", plan.size));
    let scratch = lab.scratch();
    let secret = agent::secret(&scratch, "secret");
    // pg_rewind wants to see the changes of hint bits.
    let old = cluster(&scratch, &Host::here(), "old", &secret).with("wal_log_hints", "on").into_primary();
    data::pgbench_tables(&old, plan.size, plan.fill_factor)?;
    let new = Cluster::standby_by_basebackup(&old, &Host::here(), "new");
    new.wait_for_replay(&old);
    new.promote();
    for side in [&old, &new] {
        data::pgbench(side, &["-n", "-c", "2", "-t", HALF])?;
    }
    old.stop(StopMode::Fast);
    new.execute("CHECKPOINT");
    let saved = scratch.join("saved");
    copy(old.directory(), &saved)?;

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
