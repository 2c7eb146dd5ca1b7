//! The report of a run, as `pgpool_recovery_1st_stage` returns it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use pgdata::wal::Lsn;
use pgpool_recovery_core::error::Error;
use pgpool_recovery_core::manifest::plan::Plan;
use pgpool_recovery_core::progress::Progress;
use pgpool_recovery_core::sender::Reconciliation;
use pgpool_recovery_core::sender::skip::Skipped;
use pgpool_recovery_core::wire::protocol::message::TargetInfo;
use serde_json::{Map, Value, json};

use crate::preflight::PrimaryFacts;
use crate::run::Run;
use crate::unchanged::{Unchanged, refutations};

/// What is gathered on the way.
pub(crate) struct Report {
    progress: Arc<Progress>,
    wire: Arc<AtomicU64>,
    started: Instant,
    last: Instant,
    durations: Map<String, Value>,
    files: usize,
    changed: u64,
    removed: u64,
    skip: Value,
    /// Attempts before this one that had reached the target.
    retries: u32,
    warnings: Vec<String>,
}

impl Report {
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
            skip: Value::Null,
            retries: 0,
            warnings: Vec::new(),
        }
    }

    /// Another attempt begins. What was found and done in those before it does not count, but for what was sent. `lost`: why the
    /// last one ended that had reached the target.
    pub(crate) fn next_attempt(&mut self, lost: &Error, retries: u32) {
        self.retries = retries;
        let times = if retries == 1 { "once".to_owned() } else { format!("{retries} times, at last") };
        self.warnings = vec![format!("the connection was lost {times}: {}", lost.message)];
        self.durations.clear();
        self.last = self.started;
        self.lap("lost");
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

    pub(crate) fn reconciled(&mut self, reconciliation: Reconciliation) {
        self.changed = reconciliation.changed;
        self.removed = reconciliation.removed;
        self.warn(reconciliation.warnings);
    }

    /// What was left out because WAL proves it equal, or why not.
    /// Returns what contradicts that.
    pub(crate) fn unchanged(&mut self, unchanged: &Unchanged, skipped: Option<&Skipped>) -> Option<String> {
        self.skip = unchanged.report(skipped);
        let skipped = skipped.filter(|skipped| skipped.refuted > 0)?;
        let first = refutations(skipped).next().unwrap_or_default();
        let contradiction = format!(
            "{} pages contradict what the WAL of both sides says, so everything was compared: {first}",
            skipped.refuted
        );
        self.warn(vec![contradiction.clone()]);
        Some(contradiction)
    }

    pub(crate) fn warn(&mut self, warnings: Vec<String>) {
        self.warnings.extend(warnings);
    }

    pub(crate) fn total_ms(&self) -> u128 {
        self.started.elapsed().as_millis()
    }

    /// What was done.
    pub(crate) fn of_run(
        &self,
        facts: &PrimaryFacts,
        target: &TargetInfo,
        start_lsn: Lsn,
        stop_lsn: Lsn,
    ) -> Value {
        self.written(facts, target, Some((start_lsn, stop_lsn)))
    }

    /// What would be done: there is no backup, and of WAL nothing is known.
    pub(crate) fn of_dry_run(&self, facts: &PrimaryFacts, target: &TargetInfo) -> Value {
        self.written(facts, target, None)
    }

    /// `backup`: where it started and stopped, if there was one.
    fn written(&self, facts: &PrimaryFacts, target: &TargetInfo, backup: Option<(Lsn, Lsn)>) -> Value {
        let mut durations = self.durations.clone();
        durations.insert("total".to_owned(), json!(self.total_ms()));
        json!({
            "dry_run": backup.is_none(),
            "strategy": facts.strategy(target).name(),
            "source": {
                "system_identifier": facts.primary.system_identifier.to_string(),
                "timeline": facts.primary.timeline,
                "start_lsn": backup.map(|(start, _)| start.to_string()),
                "stop_lsn": backup.map(|(_, stop)| stop.to_string()),
            },
            "target": {
                "host": facts.request.dest_host,
                "dir": facts.request.dest_dir,
                "transport": facts.transport(),
            },
            "files": { "total": self.files, "changed": self.changed, "removed": self.removed },
            "bytes": {
                "total": self.progress.total(),
                "compared": self.progress.compared(),
                "sent": self.progress.sent(),
                "cloned": self.progress.cloned(),
                "known": self.progress.known(),
                "wal": self.progress.wal(),
                "wire": self.wire.load(Ordering::Relaxed),
            },
            "slot": (!facts.slot_name.is_empty()).then_some(&facts.slot_name),
            "skip": self.skip,
            "retries": self.retries,
            "durations_ms": durations,
            "warnings": self.warnings,
        })
    }
}
