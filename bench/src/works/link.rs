//! Between two hosts, over a link of a known speed.

use pgpool_recovery_e2e::netns::Network;

use super::{Lab, describe, stopped_standby};
use crate::contenders::{BaseBackup, Contender, Ours, PlainTcp};
use crate::interrupt::Outcome;
use crate::measure::Sample;
use crate::progress::say;
use crate::report::Table;
use crate::rounds::Rounds;
use crate::stage::{Place, Stage};
use crate::{damage, data};

pub(crate) fn copies(lab: &mut Lab) -> Outcome<()> {
    let plan = lab.plan;
    say(&format!("making {} MB of pgbench data behind a link of {} Mbit/s", plan.link_size(), plan.rate));
    let network = Network::new(2);
    network.limit(plan.rate);
    let place = Place { network: Some(network), ..Place::default() };
    let stage = data::pgbench_stage(lab.scratch(), place, plan.link_size(), plan.fill_factor)?;
    let bytes_per_second = f64::from(plan.rate) * 1e6 / 8.0;
    let figures = |sample: &mut Sample| {
        let sent = sample.wire.unwrap_or(0) as f64 / sample.seconds;
        sample.figures.push(("wire MB/s".to_owned(), sent / 1e6));
        sample.figures.push(("% of link".to_owned(), sent / bytes_per_second * 100.0));
    };
    let empty = |stage: &Stage, _| stage.empty_target();
    let repetitions = plan.few_repetitions();
    let rounds = Rounds { repetitions, figures: &figures, ..Rounds::new(plan, &stage, &empty) };

    let mut table = link_table("link-full", &stage, plan.rate)?;
    // What TCP itself gets through.
    let probe = PlainTcp::new(u64::from(plan.link_size()) << 20);
    Rounds { verify: false, ..rounds }.run(&mut table, vec![Box::new(probe)])?;
    let mut contenders = ours();
    contenders.push(BaseBackup::plain());
    contenders.extend(["lz4", "zstd"].map(BaseBackup::compressed));
    rounds.run(&mut table, contenders)?;
    lab.done(table);

    stopped_standby(&stage)?;
    let mut table = link_table("link-refresh-10", &stage, plan.rate)?;
    let reset = |stage: &Stage, round| damage::standby(stage, 10, round);
    Rounds { reset: &reset, ..rounds }.run(&mut table, ours())?;
    lab.done(table);
    Ok(())
}

fn ours() -> Vec<Box<dyn Contender>> {
    let mut all: Vec<Box<dyn Contender>> = vec![Ours::agent()];
    for compression in ["auto", "lz4", "zstd"] {
        all.push(Ours::compressed(compression));
    }
    all
}

fn link_table(work: &str, stage: &Stage, rate: u32) -> Outcome<Table> {
    let mut table = Table::new(work);
    describe(&mut table, stage)?;
    table.fact("link Mbit/s", rate);
    Ok(table)
}
