//! The report of a run, as `pgpool_recovery_1st_stage` returns it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use pgdata::wal;
use pgpool_recovery_core::manifest::plan::Plan;
use pgpool_recovery_core::progress::Progress;
use pgpool_recovery_core::sender::Settled;
use pgpool_recovery_core::wire::protocol::message::Target;
use serde_json::{Map, Value, json};

use crate::preflight::situation::Situation;
use crate::run::Run;

/// What is gathered on the way.
pub(crate) struct Summary {
    progress: Arc<Progress>,
    wire: Arc<AtomicU64>,
    started: Instant,
    last: Instant,
    durations: Map<String, Value>,
    files: usize,
    changed: u64,
    removed: u64,
    warnings: Vec<String>,
}

impl Summary {
    pub(crate) fn start(run: &Run<'_>) -> Self {
        let now = Instant::now();
        Self {
            progress: Arc::clone(run.progress()),
            wire: Arc::clone(run.wire()),
            started: now,
            last: now,
            durations: Map::new(),
            files: 0,
            changed: 0,
            removed: 0,
            warnings: Vec::new(),
        }
    }

    /// A phase ends.
    pub(crate) fn lap(&mut self, phase: &str) {
        let now = Instant::now();
        self.durations.insert(phase.to_owned(), json!((now - self.last).as_millis()));
        self.last = now;
    }

    pub(crate) fn plan(&mut self, plan: &Plan) {
        self.files = plan.files.len();
        self.warn(plan.warnings.clone());
    }

    pub(crate) fn settled(&mut self, settled: Settled) {
        self.changed = settled.changed;
        self.removed = settled.removed;
        self.warn(settled.warnings);
    }

    pub(crate) fn warn(&mut self, warnings: Vec<String>) {
        self.warnings.extend(warnings);
    }

    pub(crate) fn total_ms(&self) -> u128 {
        self.started.elapsed().as_millis()
    }

    /// What was done.
    pub(crate) fn report(
        &self,
        situation: &Situation,
        target: &Target,
        start_lsn: u64,
        stop_lsn: u64,
    ) -> Value {
        self.written(situation, target, Some((start_lsn, stop_lsn)))
    }

    /// What would be done: there is no backup, and of WAL nothing is known.
    pub(crate) fn dry_report(&self, situation: &Situation, target: &Target) -> Value {
        self.written(situation, target, None)
    }

    /// `backup`: where it started and stopped, if there was one.
    fn written(&self, situation: &Situation, target: &Target, backup: Option<(u64, u64)>) -> Value {
        let mut durations = self.durations.clone();
        durations.insert("total".to_owned(), json!(self.total_ms()));
        json!({
            "dry_run": backup.is_none(),
            "strategy": situation.strategy(target).name(),
            "source": {
                "system_identifier": situation.primary.system_identifier.to_string(),
                "timeline": situation.primary.timeline,
                "start_lsn": backup.map(|(start, _)| wal::lsn(start)),
                "stop_lsn": backup.map(|(_, stop)| wal::lsn(stop)),
            },
            "target": {
                "host": situation.request.dest_host,
                "dir": situation.request.dest_dir,
                "transport": situation.transport(),
            },
            "files": { "total": self.files, "changed": self.changed, "removed": self.removed },
            "bytes": {
                "total": self.progress.total(),
                "compared": self.progress.compared(),
                "sent": self.progress.sent(),
                "cloned": self.progress.cloned(),
                "wal": self.progress.wal(),
                "wire": self.wire.load(Ordering::Relaxed),
            },
            "slot": (!situation.slot_name.is_empty()).then_some(&situation.slot_name),
            "durations_ms": durations,
            "warnings": self.warnings,
        })
    }
}
