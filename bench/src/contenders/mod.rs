//! What is measured: our engine, its peers, and the machine.

pub(crate) mod basebackup;
pub(crate) mod machine;
pub(crate) mod ours;
pub(crate) mod pgbackrest;
pub(crate) mod rewind;
pub(crate) mod rsync;
pub(crate) mod start_up;
pub(crate) mod tcp;

use serde_json::Value;

use crate::interrupt::Outcome;
use crate::memory::Watch;
use crate::stage::Stage;

pub(crate) use basebackup::BaseBackup;
pub(crate) use machine::Machine;
pub(crate) use ours::Ours;
pub(crate) use pgbackrest::PgBackRest;
pub(crate) use rewind::Rewind;
pub(crate) use rsync::Rsync;
pub(crate) use start_up::{FirstStageAndStart, ThroughPgpool};
pub(crate) use tcp::PlainTcp;

/// How the bytes between the two sides are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wire {
    /// By the kernel, at the network interface.
    Interface,
    /// By the tool, because it uses pipes here.
    Told,
    /// There is no wire.
    None,
}

/// What a run tells about itself.
#[derive(Debug, Default)]
pub(crate) struct Told {
    pub(crate) wire: Option<u64>,
    pub(crate) report: Value,
}

/// Something that rebuilds the target of a stage.
pub(crate) trait Contender {
    /// As in tables and for `--contenders`.
    fn name(&self) -> &str;

    /// Why it cannot run on this machine.
    fn missing(&self) -> Option<String> {
        None
    }

    fn wire(&self) -> Wire {
        Wire::Interface
    }

    /// Once before a work's first round, with the primary as the runs will find it.
    /// The text goes beside the contender's row.
    fn prepare(&mut self, _stage: &Stage) -> Outcome<Option<String>> {
        Ok(None)
    }

    /// Before each run, outside of the timed section: a session on the primary, for instance.
    fn ready(&mut self, _stage: &Stage) -> Outcome<()> {
        Ok(())
    }

    /// Rebuilds the target: returns when its directory is durable and a server can be started on it.
    fn run(&mut self, stage: &Stage, watch: &Watch) -> Outcome<Told>;
}
