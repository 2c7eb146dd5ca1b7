//! A dry run: what a first stage would send now, and nothing changed on either side.

use std::sync::Arc;

use pgpool_recovery_core::error::Result;
use pgpool_recovery_core::progress::{Phase, Progress};
use pgpool_recovery_core::sender::state::Planned;
use pgpool_recovery_core::sender::{Manner, Session};
use pgpool_recovery_core::sys::cancel::Cancel;
use pgpool_recovery_core::wire::protocol::message::Purpose;
use serde_json::Value;

use crate::contents;
use crate::pg::threads;
use crate::preflight::approach::{Approach, Demand, Way, approach, unheard};
use crate::settings::Settings;
use crate::settings::request::Request;
use crate::summary::Summary;
use crate::watch::Watch;

/// Compares the target with this primary; returns the report of what differs.
pub(crate) fn dry_run(request: Request, settings: Settings) -> Result<Value> {
    let cancel = Cancel::new();
    let progress = Arc::new(Progress::default());
    let mut summary = Summary::start(Arc::clone(&progress));
    let mut watch = Watch::start(Arc::clone(&progress), None);
    let mut demand = Demand::default();
    let way = Way {
        purpose: Purpose::Look,
        progress: &progress,
        wire: summary.wire(),
        cancel: &cancel,
        tick: &mut || watch.tick(None),
    };
    let Approach { situation, session, target, .. } =
        approach(request, settings, way, &mut demand)?.ok_or_else(unheard)?;
    summary.warn(demand.warnings);
    summary.lap("preflight");

    watch.enter(Phase::EstimateSize);
    let terms = contents::terms(&situation)?;
    let list = || contents::plan(&situation, &target, &terms, &cancel);
    let plan = threads::wait(&cancel, &mut || watch.tick(None), list)?;
    summary.plan(&plan);
    watch.tablespaces(plan.tablespaces.len() + 1);
    let announce = |session: Session| {
        let (session, locations) = session.plan(plan, terms.clone())?;
        situation.demand_other_locations(&target, &locations)?;
        Ok((session, ()))
    };
    let (session, ()) = threads::step(session, &cancel, &mut || watch.tick(None), announce)?;
    summary.lap("scan");

    watch.enter(Phase::Stream);
    // without a backup a page may be caught half-written: its checksum says nothing
    let manner = Manner { checksums: None, ..contents::manner(&situation, 0) };
    let compare = |session: Session<Planned>| session.survey(&situation.data_directory, manner);
    let (_finished, settled) = threads::step(session, &cancel, &mut || watch.tick(None), compare)?;
    summary.settled(settled);
    summary.lap("data");
    Ok(summary.dry_report(&situation, &target))
}
