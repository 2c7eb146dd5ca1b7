//! Time and memory over the size of the data and over the number of files.

use super::{Lab, describe, stopped_standby};
use crate::contenders::Ours;
use crate::data;
use crate::interrupt::Outcome;
use crate::plan::Plan;
use crate::progress::say;
use crate::report::Table;
use crate::rounds::Rounds;
use crate::stage::{Place, Stage};

const MEGABYTES: [u32; 4] = [100, 1000, 3000, 10_000];
const FILES: [u32; 3] = [1000, 10_000, 100_000];
/// So many files are no tables.
const MANY_FILES: u32 = 1_000_000;

pub(crate) fn sizes_and_files(lab: &mut Lab) -> Outcome<()> {
    let plan = lab.plan;
    let mut table = Table::new("curve");
    for megabytes in MEGABYTES.into_iter().filter(|megabytes| *megabytes <= plan.curve_max) {
        say(&format!("making {megabytes} MB of pgbench data"));
        let stage = data::pgbench_stage(lab.scratch(), Place::default(), megabytes, plan.fill_factor)?;
        point(plan, &stage, &mut table, &format!("{megabytes} MB"), &|stage, _| stage.empty_target())?;
    }
    let stage = Stage::new(lab.scratch(), Place::of_many_files());
    let mut made = 0;
    for files in FILES.into_iter().filter(|files| *files <= plan.files) {
        say(&format!("making {files} tables"));
        data::one_page_tables(&stage.primary, made, files)?;
        made = files;
        stage.expected.borrow_mut().clear();
        point(plan, &stage, &mut table, &format!("{files} tables"), &|stage, _| stage.fresh_target())?;
    }
    if plan.files >= MANY_FILES {
        say(&format!("making {MANY_FILES} files"));
        data::files_like_tables(&stage.primary, MANY_FILES)?;
        stage.expected.borrow_mut().clear();
        point(plan, &stage, &mut table, &format!("{MANY_FILES} files"), &|stage, _| stage.fresh_target())?;
    }
    lab.done(table);
    Ok(())
}

/// A full copy and a refresh of the same data.
fn point(
    plan: &Plan,
    stage: &Stage,
    all: &mut Table,
    name: &str,
    empty: &dyn Fn(&Stage, u32) -> Outcome<u64>,
) -> Outcome<()> {
    let keep = |_: &Stage, _| Ok(0);
    let repetitions = plan.repetitions.min(2);
    let rounds = Rounds { repetitions, ..Rounds::new(plan, stage, empty) };
    let mut full = Table::new(&format!("curve, full, {name}"));
    rounds.run(&mut full, vec![Ours::agent()])?;
    stopped_standby(stage)?;
    let mut refresh = Table::new(&format!("curve, refresh-0, {name}"));
    describe(&mut refresh, stage)?;
    Rounds { reset: &keep, ..rounds }.run(&mut refresh, vec![Ours::agent()])?;
    let bytes = refresh.facts.get("bytes").cloned().unwrap_or_default();
    all.fact(&format!("bytes of {name}"), bytes);
    for (table, kind) in [(full, "full"), (refresh, "refresh-0")] {
        all.rows.extend(table.rows.into_iter().map(|mut row| {
            row.contender = format!("{} {kind} {name}", row.contender);
            row
        }));
    }
    Ok(())
}
