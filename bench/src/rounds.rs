//! Contenders in alternation: the first run of each, the second run of each, and so on.

use crate::contenders::Contender;
use crate::interrupt::{Outcome, Stop, check};
use crate::measure::{self, Sample};
use crate::plan::Plan;
use crate::progress::{doing, say};
use crate::report::{Row, Table};
use crate::stage::Stage;
use crate::verify;

/// Seconds from the call until the standby has started and replayed all WAL.
pub(crate) const CAUGHT_UP: &str = "caught up s";

/// How a work is done.
pub(crate) struct Rounds<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) stage: &'a Stage,
    pub(crate) repetitions: u32,
    /// False for what makes no standby.
    pub(crate) verify: bool,
    /// Whether the time until the standby has caught up is told, too.
    pub(crate) counts_catching_up: bool,
    /// Brings the target into the state a run begins with; the number is the round's.
    pub(crate) reset: &'a dyn Fn(&Stage, u32) -> Outcome<u64>,
    /// Adds figures of the work's own to a sample.
    pub(crate) figures: &'a dyn Fn(&mut Sample),
}

impl<'a> Rounds<'a> {
    /// As most works are done: as often as the plan says, and with no figures of their own.
    pub(crate) fn new(
        plan: &'a Plan,
        stage: &'a Stage,
        reset: &'a dyn Fn(&Stage, u32) -> Outcome<u64>,
    ) -> Self {
        Self {
            plan,
            stage,
            repetitions: plan.repetitions,
            verify: true,
            counts_catching_up: false,
            reset,
            figures: &plain,
        }
    }

    /// Adds a row to `table` for each contender that was asked for. Round 0 warms up and is not counted.
    pub(crate) fn run(&self, table: &mut Table, contenders: Vec<Box<dyn Contender>>) -> Outcome<()> {
        let mut present = Vec::new();
        for mut contender in contenders {
            if !self.plan.wants(contender.name()) {
                continue;
            }
            check()?;
            let mut row = Row::new(contender.name());
            doing(format!("{} in work {}, preparing", contender.name(), table.work));
            if let Some(reason) = contender.missing() {
                row.skipped = Some(reason);
                table.rows.push(row);
                continue;
            }
            row.note = named(contender.prepare(self.stage))?;
            present.push((table.rows.len(), contender));
            table.rows.push(row);
        }
        for round in 0..=self.repetitions {
            // The first one finds the target as the last one left it: each is the first once.
            if round > 0 && !present.is_empty() {
                present.rotate_left(1);
            }
            for (index, contender) in &mut present {
                check()?;
                let name = contender.name().to_owned();
                doing(format!("{name} in work {}, round {round}", table.work));
                let sample = named(self.once(table, contender.as_mut(), round))?;
                let warm_up = if round == 0 { " (warm-up)" } else { "" };
                say(&format!("{}: {name} {:.2} s{warm_up}", table.work, sample.seconds));
                if round > 0 {
                    table.rows[*index].samples.push(sample);
                }
            }
        }
        Ok(())
    }

    fn once(&self, table: &mut Table, contender: &mut dyn Contender, round: u32) -> Outcome<Sample> {
        let changed = (self.reset)(self.stage, round)?;
        if changed > 0 {
            table.fact("changed pages", changed);
        }
        let mut sample = measure::run(self.stage, contender, self.plan.cold)?;
        if self.verify {
            let catching_up = verify::check(self.stage)?;
            if self.counts_catching_up {
                let seconds = sample.seconds + catching_up.as_secs_f64();
                sample.figures.push((CAUGHT_UP.to_owned(), seconds));
            }
        }
        (self.figures)(&mut sample);
        Ok(sample)
    }
}

/// An error with the contender and the work it belongs to.
pub(crate) fn named<T>(outcome: Outcome<T>) -> Outcome<T> {
    outcome.map_err(|stop| match stop {
        Stop::Failed(text) => Stop::Failed(format!("{}: {text}", crate::progress::what())),
        Stop::Interrupted => Stop::Interrupted,
    })
}

/// No figures of a work's own.
fn plain(_: &mut Sample) {}
