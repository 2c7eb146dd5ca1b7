//! The way to a target: every pre-flight question, in order.
//!
//! A recovery takes the first bad answer for a refusal. `pgpool_recovery_check` lists all of them and ends only
//! where nothing more can be asked.

use std::path::Path;
use std::sync::Arc;

use pgpool_recovery_core::error::{Error, Kind, Result};
use pgpool_recovery_core::host::launch;
use pgpool_recovery_core::preflight::{Finding, clocks};
use pgpool_recovery_core::replication::naming;
use pgpool_recovery_core::replication::standby::ReplicationConfig;
use pgpool_recovery_core::sender::Session;
use pgpool_recovery_core::sys::cancel::Cancel;
use pgpool_recovery_core::sys::clock::now;
use pgpool_recovery_core::wire::link::Connector;
use pgpool_recovery_core::wire::protocol::message::{Purpose, TargetInfo};

use crate::history::History;
use crate::pg::threads::DropAside;
use crate::pg::{catalog, postmaster};
use crate::preflight::authority;
use crate::preflight::{PrimaryFacts, reach};
use crate::run::Run;
use crate::settings::Settings;
use crate::settings::request::Request;

mod stop_first;

/// What is there when every question has been asked.
pub(crate) struct Ready {
    pub(crate) facts: PrimaryFacts,
    pub(crate) session: DropAside<Session>,
    pub(crate) target: TargetInfo,
    /// How the standby will connect; a recovery has this answer, or has ended.
    pub(crate) replication: Result<ReplicationConfig>,
    /// What reaches the target. While it is kept the end of a session waits for no receiver in this process, which may
    /// have a slow disk to wait for.
    pub(crate) connector: DropAside<Arc<dyn Connector>>,
    /// Bad news that is no reason to refuse.
    pub(crate) warnings: Vec<String>,
}

/// Asks everything; the first bad answer is the error.
pub(crate) fn run(
    request: Request,
    settings: Settings,
    purpose: Purpose,
    run: &mut Run<'_>,
) -> Result<Ready> {
    let mut context = Context { purpose, run, findings: None, warnings: Vec::new() };
    match walk(request, settings, &mut context) {
        Ok(ready) => Ok(Ready { warnings: context.warnings, ..ready }),
        Err(Stop::Refused(error) | Stop::Failed(error)) => Err(error),
    }
}

/// Asks everything and returns every answer. `None`: a bad answer made the others impossible.
pub(crate) fn run_all(
    request: Request,
    settings: Settings,
    purpose: Purpose,
    run: &mut Run<'_>,
) -> Result<(Vec<Finding>, Option<Ready>)> {
    let mut context = Context { purpose, run, findings: Some(Vec::new()), warnings: Vec::new() };
    let ready = match walk(request, settings, &mut context) {
        Ok(ready) => Some(ready),
        Err(Stop::Refused(_)) => None,
        Err(Stop::Failed(error)) => return Err(error),
    };
    Ok((context.findings.unwrap_or_default(), ready))
}

/// Why the questions end early.
enum Stop {
    /// A bad answer.
    Refused(Error),
    /// No answer at all: a missing right, or an error of this server.
    Failed(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// What the questions are asked with, and what becomes of the answers.
struct Context<'a, 'b> {
    purpose: Purpose,
    run: &'a mut Run<'b>,
    /// Where every answer goes; without it the first bad one ends the questions.
    findings: Option<Vec<Finding>>,
    warnings: Vec<String>,
}

impl Context<'_, '_> {
    fn add(&mut self, finding: Finding) -> std::result::Result<(), Stop> {
        if let Some(findings) = &mut self.findings {
            findings.push(finding);
            return Ok(());
        }
        self.warnings.extend(finding.warnings);
        match finding.answer {
            Err(error) if finding.is_advice => self.warnings.push(error.to_string()),
            Err(error) => return Err(Stop::Refused(error)),
            Ok(_) => {}
        }
        Ok(())
    }

    /// A bad answer that makes the others impossible.
    fn refuse(&mut self, step: &'static str, error: Error) -> Stop {
        match self.add(Finding::new(step, Err(error.clone()))) {
            Ok(()) => Stop::Refused(error),
            Err(stop) => stop,
        }
    }
}

fn walk(
    request: Request,
    settings: Settings,
    context: &mut Context<'_, '_>,
) -> std::result::Result<Ready, Stop> {
    let own = catalog::own_address()?;
    let (host, directory) = (request.dest_host.clone(), request.dest_dir.clone());
    let (transport, reach) = (settings.transport, settings.reach()?);
    let is_local =
        context.run.blocking(|cancel| reach::is_local(&host, transport, &reach, &directory, cancel));
    let mut unknown_host = None;
    let is_local = match is_local {
        Ok(is_local) => is_local,
        // a missing right is no answer to a question
        Err(error) if error.kind == Kind::InsufficientPrivilege => return Err(Stop::Failed(error)),
        Err(error) => {
            context.add(Finding::new("target_host", Err(error.clone())))?;
            unknown_host = Some(error);
            // this server can still be asked about
            false
        }
    };
    if let Purpose::Recover = context.purpose
        && is_local
        && settings.start
        && let Err(error) = launch::demand_reaper(postmaster::is_process_1())
    {
        // before a server that runs there is stopped
        return Err(context.refuse("start_command", error));
    }
    let mut request = request;
    let named =
        |cancel: &Cancel| authority::demand_own_address(&mut request, &settings, &own, is_local, cancel);
    match context.run.blocking(named) {
        Ok(()) => {}
        Err(error) if error.kind == Kind::InsufficientPrivilege => return Err(Stop::Failed(error)),
        Err(error) => {
            return Err(context.refuse("primary_host", error));
        }
    }
    let facts = match PrimaryFacts::gather(request, settings, own.server, is_local) {
        Ok(facts) => facts,
        Err(error) => {
            return Err(context.refuse("names", error));
        }
    };
    // a mapped directory may lie on a disk that answers no more
    let tablespaces = context.run.blocking(|_| facts.tablespaces());
    // what the target's own server may be the reason for is answered when the target is known
    let mut held = Vec::new();
    for finding in facts.primary_findings(tablespaces)? {
        if facts.may_be_due_to_target(&finding) {
            held.push(finding);
        } else {
            context.add(finding)?;
        }
    }
    let other_directory = match unknown_host {
        Some(error) => Err(Stop::Refused(error)),
        None => {
            let demanded = context.run.blocking(|_| facts.demand_other_directory());
            demanded.map_err(|error| context.refuse("target_is_not_primary", error))
        }
    };
    if let Err(stop) = other_directory {
        held.into_iter().try_for_each(|finding| context.add(finding))?;
        return Err(stop);
    }
    if let Purpose::Look = context.purpose {
        return ask_target(facts, held, context);
    }
    let Some(stopped) = facts.stop_first(held, context)? else {
        return ask_target(facts, Vec::new(), context);
    };
    ask_target(facts, Vec::new(), context).map_err(|stop| match stop {
        Stop::Refused(error) => Stop::Refused(stopped.start_again(error)),
        Stop::Failed(error) => Stop::Failed(stopped.start_again(error)),
    })
}

/// What opens the target: what reaches it, and the session.
type Opened = (DropAside<Arc<dyn Connector>>, DropAside<Session>);

fn open(facts: &PrimaryFacts, purpose: Purpose, run: &mut Run<'_>) -> Result<Opened> {
    let connector = DropAside::new(facts.connector(Arc::clone(run.wire()))?);
    let (directory, keep) = (Path::new(&facts.request.dest_dir), facts.keep()?);
    let (progress, reaches) = (Arc::clone(run.progress()), Arc::clone(&connector));
    // an interrupt that comes with the end of the job must not end the session on this thread
    let open = |cancel: &Cancel| {
        Session::open(reaches, directory, purpose, keep, progress, cancel).map(DropAside::new)
    };
    Ok((connector, run.blocking(open)?))
}

/// Everything about the target, and the login from its host. `held`: see [`PrimaryFacts::may_be_due_to_target`].
fn ask_target(
    facts: PrimaryFacts,
    held: Vec<Finding>,
    context: &mut Context<'_, '_>,
) -> std::result::Result<Ready, Stop> {
    let asked = now();
    let (connector, mut session) = match open(&facts, context.purpose, context.run) {
        Ok(opened) => opened,
        Err(error) => {
            held.into_iter().try_for_each(|finding| context.add(finding))?;
            return Err(context.refuse(unreachable_by(&error), error));
        }
    };
    let target = session.target().clone();
    let clocks = clocks(&target, asked, now());
    for finding in held {
        let finding = facts.due_to_target(finding, &mut session, &target, context.run)?;
        context.add(finding)?;
    }
    let reached = format!("\"{}\", {}", target.directory.display(), facts.transport());
    context.add(Finding::new("target_reachable", Ok(reached)))?;
    if !facts.is_local() {
        let secret = format!("both sides know \"{}\"", facts.settings.secret_file);
        context.add(Finding::new("secret", Ok(secret)))?;
        let ours = env!("CARGO_PKG_VERSION");
        let versions = format!("agent {}, extension {ours}", target.version);
        context.add(Finding::new("agent_version", Ok(versions)))?;
    }
    context.add(clocks)?;
    let mut could_be_stopped = match context.purpose {
        Purpose::Look => facts.could_be_stopped(&mut session, &target, context.run),
        Purpose::Recover => None,
    };
    for finding in facts.target_findings(&target)? {
        let answer = could_be_stopped.take_if(|answer| answer.step == finding.step);
        context.add(answer.unwrap_or(finding))?;
    }
    if let Purpose::Look = context.purpose {
        // a recovery has the target's lock instead
        context.add(Finding::new("target_free", not_worked_on(&facts.request, &target)))?;
        // a recovery says it when it has ended, with what the slot retains then
        let left = facts.former_slot(&target)?.map_or_else(
            || Ok("no slot of its own is left behind".to_owned()),
            |warning| {
                let hint = "A recovery under this name leaves it as it is.";
                Err(Error::new(Kind::WrongState, warning).hint(hint))
            },
        );
        context.add(Finding::advice("former_slot", left))?;
    }
    if target.running.is_none() {
        let listening = facts.listening(&target);
        match context.run.blocking(|_| session.test_port(&listening)) {
            Err(error) if error.kind != Kind::InUse => {
                return Err(context.refuse("target_reachable", error));
            }
            tested => {
                let free = tested.map(|()| format!("{} is free on the target's host", listening.port));
                context.add(Finding::advice("port", free))?;
            }
        }
    }
    let replication = facts.replication(&target);
    if target.running.is_none() {
        let (login, mut warnings) = match &replication {
            Ok(replication) => {
                let identifier = facts.primary.system_identifier;
                match context.run.blocking(|_| session.test_replication(replication, identifier)) {
                    Ok(warnings) => (Ok(replication.conninfo()), warnings),
                    Err(error) => (Err(error), Vec::new()),
                }
            }
            Err(error) => (Err(error.clone()), Vec::new()),
        };
        warnings.extend(shown_otherwise(&facts.application_name, facts.primary.server_version_num));
        context.add(Finding::new("replication_login", login).warned(warnings))?;
    }
    Ok(Ready { facts, session, target, replication, connector, warnings: Vec::new() })
}

/// Warns of a name that Pgpool-II would not find.
fn shown_otherwise(application_name: &str, server_version_num: u32) -> Option<String> {
    let shown = naming::shown_application_name(application_name, server_version_num / 10_000);
    (shown != application_name).then(|| {
        format!(
            "pg_stat_replication will show application_name \"{application_name}\" as \"{shown}\"; Pgpool-II's \
             backend_application_nameN must be that"
        )
    })
}

/// Whether no recovery of the target is running, as far as this server and the receiver know.
fn not_worked_on(request: &Request, target: &TargetInfo) -> Result<String> {
    let last = History::of_this_server()?.recall(&request.dest_host, &request.dest_dir);
    let detail = match (last.as_ref().and_then(|entry| entry.other_worker()), &target.recovery) {
        (Some(worker), _) => format!("Process {} of this server works on it.", worker.pid),
        (None, Some(run)) => match run.primary {
            Some(primary) => format!("The primary at {primary} works on it."),
            None => "Another server of its host works on it.".to_owned(),
        },
        (None, None) => return Ok("no recovery of it is known to be running".to_owned()),
    };
    let message = format!("a recovery of \"{}\" is running", request.dest_dir);
    Err(Error::new(Kind::InUse, message).detail(detail).hint(
        "Wait until it ends; the view pgpool_recovery_status shows it, and \"pgpool-recovery-agent status\" on the \
         target's host.",
    ))
}

/// The question that an error on the way to the target answers.
fn unreachable_by(error: &Error) -> &'static str {
    match error.kind {
        Kind::AuthenticationFailed => "secret",
        Kind::ProtocolVersion => "agent_version",
        _ => "target_reachable",
    }
}
