//! `pgpool_recovery_check`: every pre-flight question and its answer, nothing changed.

use std::sync::Arc;

use pgpool_recovery_core::error::{Error, Kind, Result};
use pgpool_recovery_core::preflight::judge::Finding;
use pgpool_recovery_core::sys::cancel::Cancel;
use pgpool_recovery_core::sys::size::pretty;
use pgpool_recovery_core::wire::protocol::message::Purpose;

use crate::contents;
use crate::pg::threads;
use crate::preflight::approach::{Approach, Audience, Way, approach};
use crate::settings::Settings;
use crate::settings::request::Request;

/// One question and its answer.
pub(crate) struct CheckRow {
    pub(crate) step: String,
    pub(crate) ok: bool,
    pub(crate) detail: String,
    pub(crate) hint: Option<String>,
}

impl From<Finding> for CheckRow {
    fn from(Finding { step, answer, warnings, .. }: Finding) -> Self {
        match answer {
            Ok(detail) => {
                let lines: Vec<String> = std::iter::once(detail)
                    .chain(warnings.into_iter().map(|warning| format!("WARNING: {warning}")))
                    .collect();
                Self { step: step.to_owned(), ok: true, detail: lines.join("\n"), hint: None }
            }
            Err(error) => Self::failed(step, error),
        }
    }
}

impl CheckRow {
    pub(crate) fn failed(step: &str, error: Error) -> Self {
        let Error { message, detail, hint, .. } = error;
        let detail = detail.map_or_else(|| message.clone(), |detail| format!("{message}: {detail}"));
        Self { step: step.to_owned(), ok: false, detail, hint }
    }
}

impl Audience for Vec<CheckRow> {
    fn hear(&mut self, finding: Finding) -> Result<()> {
        self.push(finding.into());
        Ok(())
    }
}

/// Asks everything; a question that makes others unanswerable ends the list.
pub(crate) fn check(request: Request, settings: Settings, rows: &mut Vec<CheckRow>) -> Result<()> {
    let cancel = Cancel::new();
    let progress = Arc::default();
    let way = Way {
        purpose: Purpose::Look,
        progress: &progress,
        wire: Arc::default(),
        cancel: &cancel,
        tick: &mut || Ok(()),
    };
    if let Some(approach) = approach(request, settings, way, rows)? {
        room(approach, &cancel, rows)?;
    }
    Ok(())
}

/// Whether the target's file systems have room for what the primary has now.
fn room(approach: Approach, cancel: &Cancel, rows: &mut Vec<CheckRow>) -> Result<()> {
    let Approach { situation, mut session, target, .. } = approach;
    let planned = contents::terms(&situation).and_then(|terms| {
        threads::wait(cancel, &mut || Ok(()), || {
            let plan = contents::plan(&situation, &target, &terms, cancel)?;
            let bytes = plan.bytes();
            let locations = session.plan(plan, terms)?;
            situation.demand_other_locations(&target, &locations)?;
            Ok(bytes)
        })
    });
    let step = match &planned {
        Err(error) if error.kind == Kind::TargetRefused => "target_tablespaces",
        _ => "space",
    };
    let room = planned
        .map(|planned| format!("there is room for {}, what is there already counted", pretty(planned)));
    rows.hear(Finding::new(step, room))
}
