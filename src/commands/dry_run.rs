//! A dry run: what a first stage would send now, and nothing changed on either side.

use std::sync::Arc;

use pgpool_recovery_core::error::Result;
use pgpool_recovery_core::progress::Phase;
use pgpool_recovery_core::sender::state::Planned;
use pgpool_recovery_core::sender::{Manner, Session};
use pgpool_recovery_core::wire::protocol::message::Purpose;
use serde_json::Value;

use crate::contents;
use crate::preflight::{self, Ready};
use crate::run::Run;
use crate::settings::Settings;
use crate::settings::request::Request;
use crate::summary::Summary;

/// Compares the target with this primary; returns the report of what differs.
pub(crate) fn dry_run(request: Request, settings: Settings) -> Result<Value> {
    let mut run = Run::watched(Arc::default(), None);
    let mut summary = Summary::start(&run);
    let Ready { situation, session, target, warnings, .. } =
        preflight::run(request, settings, Purpose::Look, &mut run)?;
    summary.warn(warnings);
    summary.lap("preflight");

    run.enter(Phase::EstimateSize);
    let terms = contents::plan_header(&situation)?;
    let plan = run.blocking(|cancel| contents::plan(&situation, &target, &terms, cancel))?;
    summary.plan(&plan);
    run.tablespaces(plan.tablespaces.len() + 1);
    let (session, ()) = run.step(session, None, |session: Session| {
        let (session, locations) = session.plan(plan, terms.clone())?;
        situation.demand_other_locations(&target, &locations)?;
        Ok((session, ()))
    })?;
    summary.lap("scan");

    run.enter(Phase::Stream);
    // without a backup a page may be caught half-written: its checksum says nothing
    let manner = Manner { checksums: None, ..contents::transfer_options(&situation, 0) };
    let (_finished, settled) = run
        .step(session, None, |session: Session<Planned>| session.survey(&situation.data_directory, manner))?;
    summary.settled(settled);
    summary.lap("data");
    Ok(summary.dry_report(&situation, &target))
}
