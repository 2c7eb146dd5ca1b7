//! `pgpool_recovery_check`: every pre-flight question and its answer, nothing changed.

use pgpool_recovery_core::error::{Error, Kind, Result};
use pgpool_recovery_core::preflight::Finding;
use pgpool_recovery_core::sender::Planned;
use pgpool_recovery_core::sys::size::pretty;
use pgpool_recovery_core::wire::protocol::message::Purpose;

use crate::commands::legacy_call::NATIVE;
use crate::commands::second_stage;
use crate::plan;
use crate::preflight::{self, Ready, authority, native};
use crate::run::Run;
use crate::settings::Settings;
use crate::settings::request::{self, Request};
use crate::unchanged::Unchanged;

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
        if settings.native {
            authority::demand_superuser_to_promote(&settings, NATIVE)?;
        }
        rows.push(arguments.caller);
        rows.extend(check(request.of(&settings), settings)?.into_iter().map(CheckRow::from));
    }
    Ok(rows)
}

/// Asks everything; a question that makes others unanswerable ends the list.
fn check(request: Request, settings: Settings) -> Result<Vec<Finding>> {
    let is_native = settings.native;
    let native = if is_native { native::findings()? } else { Vec::new() };
    if is_native && second_stage::stands(&request.dest_host, &request.dest_dir, &settings) {
        let stands = second_stage::is_there(&request.dest_dir);
        return Ok(std::iter::once(Finding::new("target_stands", Ok(stands))).chain(native).collect());
    }
    let mut run = Run::quiet();
    let (mut findings, ready) = preflight::run_all(request, settings, Purpose::Look, &mut run)?;
    if let Some(ready) = ready {
        let (ready, unchanged) = unchanged(ready, &mut run)?;
        findings.push(unchanged);
        findings.extend(room(ready, &mut run));
    }
    findings.extend(native);
    Ok(findings)
}

/// Whether blocks could be left out now. A recovery without is complete, too: bad news is no refusal.
fn unchanged(ready: Ready, run: &mut Run<'_>) -> Result<(Ready, Finding)> {
    let Ready { facts, session, target, .. } = ready;
    let (session, unchanged) = Unchanged::prove(&facts, &target, session, run)?;
    let (unchanged, _) = unchanged.complete(None, None, run)?;
    let ready = Ready { facts, session, target, ..ready };
    Ok((ready, Finding::advice("skip_unchanged", unchanged.answer())))
}

/// Whether a run could end: everything can be read here, and written there.
fn room(ready: Ready, run: &mut Run<'_>) -> Vec<Finding> {
    let Ready { facts, session, target, .. } = ready;
    let (plan, header) = match plan::plan(&facts, &target, None, run) {
        Ok(listed) => listed,
        Err(error) => return vec![Finding::new(asked_by(&error, "primary_files"), Err(error))],
    };
    let (files, bytes) = (plan.files.len(), pretty(plan.bytes()));
    let readable = format!("{files} files, {bytes}, can be read");
    let mut findings = vec![Finding::new("primary_files", Ok(readable)).warned(plan.warnings.clone())];
    let proposed = facts.propose(&target, session, (plan, header), run);
    let answer = |refusal: Option<Error>, good: String| refusal.map_or(Ok(good), Err);
    match proposed {
        Ok(Planned { space, obstacle, .. }) => {
            let room = format!("there is room for {bytes}, what is there already counted");
            findings.push(Finding::new("space", answer(space, room)));
            let writable = "nothing in the target is in the way of a recovery".to_owned();
            findings.push(Finding::new("target_writable", answer(obstacle, writable)));
        }
        Err(error) => findings.push(Finding::new(asked_by(&error, "target_writable"), Err(error))),
    }
    findings
}

/// The question that an error answers: one of tablespaces, or else `step`.
fn asked_by(error: &Error, step: &'static str) -> &'static str {
    match error.kind {
        Kind::TargetRefused | Kind::InUse => "target_tablespaces",
        _ => step,
    }
}
