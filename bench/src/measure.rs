//! One timed run.

use std::fs;
use std::sync::Once;
use std::time::Instant;

use serde::Serialize;
use serde_json::Value;

use crate::contenders::{Contender, Wire};
use crate::interrupt::{Outcome, failed};
use crate::memory::Watch;
use crate::progress::say;
use crate::stage::Stage;
use crate::tree;

/// What one run took.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Sample {
    pub(crate) seconds: f64,
    /// Bytes between the two sides; None where they meet by files only.
    pub(crate) wire: Option<u64>,
    /// Peaks in KiB.
    pub(crate) primary_kib: u64,
    pub(crate) standby_kib: u64,
    /// What a work measures besides, by name.
    pub(crate) figures: Vec<(String, f64)>,
    /// What the contender itself tells.
    pub(crate) told: Value,
}

/// Runs a contender once. The clock runs from the call until the directory is durable.
pub(crate) fn run(stage: &Stage, contender: &mut dyn Contender, cold: bool) -> Outcome<Sample> {
    // One contender's dirty pages are not the next one's burden.
    rustix::fs::sync();
    if cold {
        drop_page_cache();
    } else {
        fill_page_cache(stage)?;
    }
    let watch = Watch::start(stage.postmaster(), stage.agent.as_ref().map(|agent| agent.pid()));
    contender.ready(stage)?;
    let before = stage.carried();
    let start = Instant::now();
    let told = contender.run(stage, &watch)?;
    let seconds = start.elapsed().as_secs_f64();
    let carried = stage.carried().saturating_sub(before);
    let peak = watch.finish();
    let wire = match contender.wire() {
        Wire::Interface => Some(carried),
        Wire::Told => told.wire,
        Wire::None => None,
    };
    Ok(Sample {
        seconds,
        wire,
        primary_kib: peak.primary,
        standby_kib: peak.standby,
        figures: Vec::new(),
        told: told.report,
    })
}

/// Reads both data directories, so that no contender finds less in memory than another: some go past the
/// page cache, and what they wrote is not in it.
fn fill_page_cache(stage: &Stage) -> Outcome<()> {
    for directory in [stage.primary.directory(), stage.target.directory()] {
        let read = tree::all(directory).and_then(|files| tree::read(&files, directory));
        if let Err(error) = read {
            return failed(format!("could not read {}: {error}", directory.display()));
        }
    }
    Ok(())
}

fn drop_page_cache() {
    static ONCE: Once = Once::new();
    if let Err(error) = fs::write("/proc/sys/vm/drop_caches", "3") {
        ONCE.call_once(|| {
            say(&format!("the page cache cannot be dropped here ({error}): the runs are warm"))
        });
    }
}
