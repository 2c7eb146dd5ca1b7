//! The machine's own limit: two threads that do nothing but what cannot be left out.

use std::io;

use serde_json::Value;

use super::{Contender, Told, Wire};
use crate::interrupt::{Outcome, failed};
use crate::memory::Watch;
use crate::stage::Stage;
use crate::tree;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Machine {
    /// Reads the primary's files and writes them to the empty target, durably.
    Copy,
    /// Reads both sides and compares them.
    Compare,
}

impl Machine {
    fn go(self, stage: &Stage) -> io::Result<()> {
        let (from, to) = (stage.primary.directory(), stage.target.directory());
        let files = tree::data(from)?;
        match self {
            Self::Copy => tree::copy(&files, from, to),
            Self::Compare => tree::differing(&files, from, to).map(drop),
        }
    }
}

impl Contender for Machine {
    fn name(&self) -> &str {
        match self {
            Self::Copy => "machine-copy",
            Self::Compare => "machine-compare",
        }
    }

    fn wire(&self) -> Wire {
        Wire::None
    }

    fn run(&mut self, stage: &Stage, _watch: &Watch) -> Outcome<Told> {
        match self.go(stage) {
            Ok(()) => Ok(Told { wire: None, report: Value::Null }),
            Err(error) => failed(error.to_string()),
        }
    }
}
