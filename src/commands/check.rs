//! `pgpool_recovery_check`: every pre-flight question and its answer, nothing changed.

use std::sync::Arc;

use pgpool_recovery_core::error::{Error, Kind, Result};
use pgpool_recovery_core::preflight::judge::Finding;
use pgpool_recovery_core::sender::{Planned, Session};
use pgpool_recovery_core::sys::cancel::Cancel;
use pgpool_recovery_core::sys::size::pretty;
use pgpool_recovery_core::wire::protocol::message::Purpose;

use crate::contents;
use crate::pg::threads;
use crate::preflight::approach::{Approach, Audience, Way, approach};
use crate::settings::Settings;
use crate::settings::request::{self, Request};

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

/// The arguments of `pgpool_recovery_check` before they are checked, each as far as it could be read.
pub(crate) struct Arguments {
    pub(crate) host: Result<String>,
    pub(crate) directory: Result<String>,
    pub(crate) port: i32,
    /// The settings, with the options laid over them.
    pub(crate) settings: Result<Settings>,
    /// The first row: the caller may call.
    pub(crate) caller: CheckRow,
}

/// Checks the arguments, and everything else if they are good. A missing right stays an error; bad arguments are
/// findings like any other.
pub(crate) fn check_all(arguments: Arguments) -> Result<Vec<CheckRow>> {
    let mut rows = Vec::new();
    let mut good = |argument: Result<()>| match argument {
        Err(error) if error.kind == Kind::InvalidArgument => {
            rows.push(CheckRow::failed("arguments", error));
            Ok(())
        }
        argument => argument,
    };
    let (mut settings, mut request) = (Settings::default(), Request::default());
    good(arguments.settings.map(|found| settings = found))?;
    good(request::port_number("port", arguments.port).map(|port| request.port = Some(port)))?;
    let host = arguments.host.and_then(|host| request::host("dest_host", &host));
    good(host.map(|host| request.dest_host = host))?;
    let directory = arguments.directory.and_then(|directory| request::directory("dest_dir", &directory));
    good(directory.map(|directory| request.dest_dir = directory))?;
    if rows.is_empty() {
        rows.push(arguments.caller);
        check(request.of(&settings), settings, &mut rows)?;
    }
    Ok(rows)
}

/// Asks everything; a question that makes others unanswerable ends the list.
fn check(request: Request, settings: Settings, rows: &mut Vec<CheckRow>) -> Result<()> {
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

/// Whether a run could end: everything can be read here, and written there.
fn room(approach: Approach, cancel: &Cancel, rows: &mut Vec<CheckRow>) -> Result<()> {
    let Approach { situation, session, target, .. } = approach;
    let terms = match contents::terms(&situation) {
        Ok(terms) => terms,
        Err(error) => return rows.hear(Finding::new(asked_by(&error, "primary_files"), Err(error))),
    };
    let list = || contents::plan(&situation, &target, &terms, cancel);
    let plan = match threads::wait(cancel, &mut || Ok(()), list) {
        Ok(plan) => plan,
        Err(error) => return rows.hear(Finding::new("primary_files", Err(error))),
    };
    let (files, bytes) = (plan.files.len(), pretty(plan.bytes()));
    let readable = format!("{files} files, {bytes}, can be read");
    rows.hear(Finding::new("primary_files", Ok(readable)).warned(plan.warnings.clone()))?;
    let propose = |session: Session| {
        let (session, planned) = session.propose(plan, terms.clone())?;
        situation.demand_other_locations(&target, &planned.locations)?;
        Ok((session, planned))
    };
    let Planned { space, obstacle, .. } = match threads::step(session, cancel, &mut || Ok(()), propose) {
        Ok((_, planned)) => planned,
        Err(error) => return rows.hear(Finding::new(asked_by(&error, "target_writable"), Err(error))),
    };
    let answer = |refusal: Option<Error>, good: String| refusal.map_or(Ok(good), Err);
    let room = format!("there is room for {bytes}, what is there already counted");
    rows.hear(Finding::new("space", answer(space, room)))?;
    let writable = "nothing in the target is in the way of a recovery".to_owned();
    rows.hear(Finding::new("target_writable", answer(obstacle, writable)))
}

/// The question that an error answers: one of tablespaces, or else `step`.
fn asked_by(error: &Error, step: &'static str) -> &'static str {
    match error.kind {
        Kind::TargetRefused | Kind::InUse => "target_tablespaces",
        _ => step,
    }
}
