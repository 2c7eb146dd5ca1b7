//! A dry run: what a first stage would send now, and nothing changed on either side.

use std::sync::Arc;

use pgdata::wal::Lsn;
use pgpool_recovery_core::error::Result;
use pgpool_recovery_core::manifest::dropped::Directories;
use pgpool_recovery_core::progress::Phase;
use pgpool_recovery_core::sender::skip::Skip;
use pgpool_recovery_core::sender::state::Planned;
use pgpool_recovery_core::sender::{Session, TransferOptions};
use pgpool_recovery_core::wire::protocol::message::Purpose;
use serde_json::Value;

use crate::plan;
use crate::preflight::{self, Ready};
use crate::report::Report;
use crate::run::Run;
use crate::settings::Settings;
use crate::settings::request::Request;
use crate::unchanged::Unchanged;

/// Compares the target with this primary; returns the report of what differs.
pub(crate) fn dry_run(request: Request, settings: Settings) -> Result<Value> {
    let mut run = Run::watched(Arc::default(), None);
    let mut report = Report::start(&run);
    let Ready { facts, session, target, warnings, .. } =
        preflight::run(request, settings, Purpose::Look, &mut run)?;
    report.warn(warnings);
    report.lap("preflight");
    let (session, unchanged) = Unchanged::prove(&facts, &target, session, &mut run)?;
    // there is no backup: what would be left out is told of this moment
    let (unchanged, skip) = unchanged.complete(None, None, &mut run)?;
    // it writes nothing, so the files may lack what the primary has changed since its last checkpoint
    let written = facts.control.recovery.checkpoint.redo;
    let skip = skip.map(|skip| Skip { is_tried: written >= skip.reach.from, ..skip });
    if let Some(skip) = skip.as_ref().filter(|skip| !skip.is_tried) {
        report.warn(vec![format!(
            "skip_unchanged was not tried: the primary has not written all that it changed before {} yet; a CHECKPOINT on \
             the primary lets the next dry run try it",
            skip.reach.from
        )]);
    }
    report.lap("wal_map");

    run.enter(Phase::EstimateSize);
    let (plan, header) = plan::plan(&facts, &target, None, &mut run)?;
    report.plan(&plan);
    run.tablespaces(plan.tablespaces.len() + 1);
    let own = Directories::of(&facts.data_directory, &plan);
    let (session, ()) = run.step(session, None, |session: Session| {
        let (session, planned) = session.propose(plan, header.clone())?;
        // what this server knows better than the receiver comes first
        facts.demand_other_locations(&target, &planned.locations, &own)?;
        planned.demand()?;
        Ok((session, ()))
    })?;
    report.lap("scan");

    run.enter(Phase::Stream);
    // without a backup a page may be caught half-written: its checksum says nothing
    let options = TransferOptions { checksums: None, ..plan::transfer_options(&facts, Lsn(0)) };
    let (_finished, (reconciliation, skipped)) = run.step(session, None, |session: Session<Planned>| {
        let (session, reconciliation, skipped) = session.dry_run(&facts.data_directory, options, skip)?;
        Ok((session, (reconciliation, skipped)))
    })?;
    report.unchanged(&unchanged, skipped.as_ref());
    report.reconciled(reconciliation);
    report.lap("data");
    Ok(report.of_dry_run(&facts, &target))
}
