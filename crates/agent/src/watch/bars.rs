//! Progress bars on a terminal.

use std::io::Write as _;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::Screen;
use super::sight::{Shown, Sight};

/// Drawings a second that are let through: all, since there is one for each change that was asked for.
const DRAWINGS: u8 = u8::MAX;

/// A bar for each directory, below a line for the agent.
pub(super) struct Bars {
    screen: MultiProgress,
    heading: ProgressBar,
    bars: Vec<Bar>,
}

struct Bar {
    name: String,
    bar: ProgressBar,
}

impl Bars {
    pub(super) fn new() -> Self {
        Self::on(ProgressDrawTarget::stdout_with_hz(DRAWINGS))
    }

    fn on(target: ProgressDrawTarget) -> Self {
        let screen = MultiProgress::with_draw_target(target);
        let heading = screen.add(ProgressBar::no_length().with_style(style("{msg}")));
        Self { screen, heading, bars: Vec::new() }
    }

    fn is_same(&self, sights: &[Sight]) -> bool {
        self.bars.iter().map(|bar| &bar.name).eq(sights.iter().map(|sight| &sight.name))
    }
}

impl Screen for Bars {
    fn show(&mut self, heading: &str, sights: &[Sight]) -> std::io::Result<()> {
        self.heading.set_message(heading.to_owned());
        if !self.is_same(sights) {
            for gone in self.bars.drain(..) {
                gone.bar.finish_and_clear();
                self.screen.remove(&gone.bar);
            }
            for sight in sights {
                let bar = self.screen.add(ProgressBar::new(0).with_prefix(sight.name.clone()));
                self.bars.push(Bar { name: sight.name.clone(), bar });
            }
        }
        for (Bar { bar, .. }, sight) in self.bars.iter().zip(sights) {
            // The words first: a step that draws must not show them below what they do not belong to.
            match &sight.state {
                Shown::Running { phase, done, total, facts, .. } => {
                    // nothing to compare is all compared
                    let (done, total) = if *total == 0 { (1, 1) } else { (*done, *total) };
                    bar.set_message(format!("{phase}, {facts}"));
                    bar.set_style(
                        style("{prefix}\n  [{wide_bar}] {percent:>3} %\n  {msg}").progress_chars("#>-"),
                    );
                    bar.set_length(total);
                    bar.set_position(done);
                }
                Shown::Words(words) => {
                    bar.set_message(words.clone());
                    bar.set_style(style("{prefix}\n  {msg}"));
                }
            }
            bar.tick();
        }
        Ok(())
    }

    /// What was seen last stays, and the prompt comes below.
    fn leave(&mut self) {
        self.heading.abandon();
        for Bar { bar, .. } in &self.bars {
            bar.abandon();
        }
        // the terminal may be gone
        let _ = writeln!(std::io::stdout());
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("a template that a test has read")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::tests::{idle, running};
    use crate::watch::sight::Sights;

    #[test]
    fn every_state_has_a_template_that_can_be_read() {
        let mut bars = Bars::on(ProgressDrawTarget::hidden());
        let mut sights = Sights::default();
        for status in [running(), idle(), running()] {
            sights.take(&status);
            bars.show("the agent", sights.all()).expect("it is hidden");
            let names: Vec<_> = bars.bars.iter().map(|bar| bar.bar.prefix()).collect();
            assert_eq!(names, [sights.all()[0].name.clone()], "one for each directory");
        }
        let bar = &bars.bars[0].bar;
        assert_eq!((bar.position(), bar.length()), (1 << 20, Some(4 << 20)));
        assert!(bar.message().starts_with("data, "), "{}", bar.message());
    }
}
