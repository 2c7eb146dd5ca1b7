//! A primary that works while it is copied.

use std::process::Command;
use std::time::Duration;

use pgpool_recovery_e2e::process::Daemon;
use rustix::process::Signal;

use super::{Lab, describe};
use crate::contenders::{BaseBackup, Contender, Ours, Told, Wire};
use crate::held_back::{HeldBack, Looking};
use crate::interrupt::{Outcome, check, failed};
use crate::measure::{self, Sample};
use crate::memory::Watch;
use crate::plan::Plan;
use crate::progress::{doing, say};
use crate::report::{Row, Table};
use crate::rounds::named;
use crate::stage::{Place, Stage};
use crate::{data, tool, tree, verify};

/// How long pgbench runs before anything is measured, and how long without a copy.
const SETTLED: Duration = Duration::from_secs(2);
const WITHOUT: Duration = Duration::from_secs(5);

pub(crate) fn during_a_copy(lab: &mut Lab) -> Outcome<()> {
    let plan = lab.plan;
    say(&format!("making {} MB of pgbench data", plan.size));
    let mut stage = data::pgbench_stage(lab.scratch(), Place::default(), plan.size, plan.fill_factor)?;
    stage.at_rest = false;
    let mut table = Table::new("load");
    describe(&mut table, &stage)?;
    table.fact("clients", 4);
    let contenders = [Box::new(NoCopy) as Box<dyn Contender>, Ours::agent(), BaseBackup::plain()];
    let mut contenders: Vec<_> = contenders.into_iter().filter(|one| plan.wants(one.name())).collect();
    table.rows.extend(contenders.iter().map(|contender| Row::new(contender.name())));
    for round in 0..=plan.few_repetitions() {
        for (index, contender) in contenders.iter_mut().enumerate() {
            check()?;
            doing(format!("{} in work load, round {round}", contender.name()));
            let sample = named(once(plan, &stage, contender.as_mut()))?;
            say(&format!("load: {} {:.2} s", contender.name(), sample.seconds));
            if round > 0 {
                table.rows[index].samples.push(sample);
            }
        }
    }
    lab.done(table);
    Ok(())
}

fn once(plan: &Plan, stage: &Stage, contender: &mut dyn Contender) -> Outcome<Sample> {
    stage.empty_target()?;
    stage.primary.execute("CHECKPOINT");
    let load = start_load(stage);
    std::thread::sleep(SETTLED);
    let cached = cached_megabytes(stage)?;
    let mut counted = Counted { contender, transactions: 0, held_back: HeldBack::default() };
    let mut sample = measure::run(stage, &mut counted, plan.cold)?;
    let per_second = counted.transactions as f64 / sample.seconds;
    let copies = counted.contender.name() != NoCopy.name();
    let after = cached_megabytes(stage)?;
    drop(load);
    sample.figures = vec![
        ("tps".to_owned(), per_second),
        ("WAL retained MB".to_owned(), counted.held_back.wal as f64 / 1e6),
        ("xmin age".to_owned(), counted.held_back.transactions as f64),
        ("cached MB before".to_owned(), cached),
        ("cached MB after".to_owned(), after),
    ];
    if copies {
        // The load has changed what the primary holds.
        stage.expected.borrow_mut().clear();
        verify::check(stage)?;
    }
    Ok(sample)
}

/// pgbench's own mix: it ends with the value.
fn start_load(stage: &Stage) -> Daemon {
    let primary = &stage.primary;
    let mut command: Command = primary.host().pg("pgbench");
    command.arg("-h").arg(stage.scratch.sockets()).args(["-p", &primary.port().to_string()]);
    command.args(["-U", "postgres", "-n", "-c", "4", "-j", "2", "-T", "86400", "postgres"]);
    Daemon::spawn(command, &stage.scratch.join("pgbench.log"), Signal::TERM)
}

/// How much of the primary's relations is in the page cache.
fn cached_megabytes(stage: &Stage) -> Outcome<f64> {
    let files = match tree::relations(stage.primary.directory()) {
        Ok(files) => files,
        Err(error) => return failed(error.to_string()),
    };
    let names: Vec<_> = files.keys().collect();
    let mut bytes = 0;
    for names in names.chunks(500) {
        let mut command = Command::new("fincore");
        command.args(["--bytes", "--noheadings", "--raw", "--output", "RES"]);
        command.args(names.iter().map(|name| stage.primary.directory().join(name)));
        let said = tool::run(command, None)?;
        bytes += said.lines().filter_map(|line| line.trim().parse::<u64>().ok()).sum::<u64>();
    }
    Ok(bytes as f64 / 1e6)
}

/// A contender, the transactions that were done meanwhile, and what it held back.
struct Counted<'a> {
    contender: &'a mut dyn Contender,
    transactions: i64,
    held_back: HeldBack,
}

/// Each of pgbench's transactions takes a number, and hardly anything else does.
fn next_transaction(stage: &Stage) -> i64 {
    stage.primary.get("SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint", &[])
}

impl Contender for Counted<'_> {
    fn name(&self) -> &str {
        self.contender.name()
    }

    fn wire(&self) -> Wire {
        self.contender.wire()
    }

    fn ready(&mut self, stage: &Stage) -> Outcome<()> {
        self.contender.ready(stage)
    }

    fn run(&mut self, stage: &Stage, watch: &Watch) -> Outcome<Told> {
        let looking = Looking::at(&stage.primary);
        let before = next_transaction(stage);
        let told = self.contender.run(stage, watch)?;
        self.transactions = next_transaction(stage) - before;
        self.held_back = looking.most();
        Ok(told)
    }
}

/// Nothing, for comparison.
struct NoCopy;

impl Contender for NoCopy {
    fn name(&self) -> &str {
        "no-copy"
    }

    fn wire(&self) -> Wire {
        Wire::None
    }

    fn run(&mut self, _stage: &Stage, _watch: &Watch) -> Outcome<Told> {
        std::thread::sleep(WITHOUT);
        Ok(Told::default())
    }
}
