//! The way to a target: every pre-flight question, in order.
//!
//! A recovery takes the first bad answer for a refusal. `pgpool_recovery_check` lists all of them and ends only
//! where nothing more can be asked.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use pgpool_recovery_core::error::{Error, Kind, Result};
use pgpool_recovery_core::preflight::judge::{Finding, clocks};
use pgpool_recovery_core::progress::Progress;
use pgpool_recovery_core::replication::naming;
use pgpool_recovery_core::replication::standby::Following;
use pgpool_recovery_core::sender::Session;
use pgpool_recovery_core::sys::cancel::Cancel;
use pgpool_recovery_core::sys::clock::now;
use pgpool_recovery_core::wire::protocol::message::{Purpose, Target};

use crate::history::Memory;
use crate::pg::catalog;
use crate::pg::threads::{self, DropAside};
use crate::preflight::authority;
use crate::preflight::situation::{self, Situation};
use crate::settings::Settings;
use crate::settings::request::Request;

/// Who hears the answers.
pub(crate) trait Audience {
    /// An answer; an error ends the questions.
    fn hear(&mut self, finding: Finding) -> Result<()>;
}

/// A recovery: bad answers are errors, bad news is a warning.
#[derive(Default)]
pub(crate) struct Demand {
    pub(crate) warnings: Vec<String>,
}

impl Audience for Demand {
    fn hear(&mut self, finding: Finding) -> Result<()> {
        self.warnings.extend(finding.warnings);
        match finding.answer {
            Err(error) if finding.is_advice => {
                self.warnings.push(error.to_string());
                Ok(())
            }
            answer => answer.map(drop),
        }
    }
}

/// What is there when every question has been asked.
pub(crate) struct Approach {
    pub(crate) situation: Situation,
    pub(crate) session: DropAside<Session>,
    pub(crate) target: Target,
    pub(crate) following: Following,
}

/// How a target is reached.
pub(crate) struct Way<'a> {
    pub(crate) purpose: Purpose,
    pub(crate) progress: &'a Arc<Progress>,
    /// Counts what the links carry.
    pub(crate) wire: Arc<AtomicU64>,
    pub(crate) cancel: &'a Cancel,
    pub(crate) tick: &'a mut dyn FnMut() -> Result<()>,
}

/// Asks everything. `None`: an answer made the others impossible, and the audience did not mind.
pub(crate) fn approach(
    request: Request,
    settings: Settings,
    way: Way<'_>,
    audience: &mut dyn Audience,
) -> Result<Option<Approach>> {
    let Way { purpose, progress, wire, cancel, tick } = way;
    let own = catalog::own_address()?;
    authority::demand_own_port(&request, &settings, &own)?;
    let (host, directory) = (request.dest_host.clone(), request.dest_dir.clone());
    let (transport, reach) = (settings.transport, settings.reach()?);
    let is_local =
        threads::wait(cancel, tick, || situation::is_local(&host, transport, &reach, &directory, cancel));
    let is_found = is_local.is_ok();
    let is_local = match is_local {
        Ok(is_local) => is_local,
        // a missing right is no answer to a question
        Err(error) if error.kind == Kind::InsufficientPrivilege => return Err(error),
        Err(error) => {
            audience.hear(Finding::new("target_host", Err(error)))?;
            // this server can still be asked about
            false
        }
    };
    let mut request = request;
    let named = || authority::demand_own_host(&mut request, &settings, &own, is_local, cancel);
    match threads::wait(cancel, tick, named) {
        Ok(()) => {}
        Err(error) if error.kind == Kind::InsufficientPrivilege => return Err(error),
        Err(error) => {
            audience.hear(Finding::new("primary_host", Err(error)))?;
            return Ok(None);
        }
    }
    let situation = match Situation::gather(request, settings, &own.server, is_local) {
        Ok(situation) => situation,
        Err(error) => {
            audience.hear(Finding::new("names", Err(error)))?;
            return Ok(None);
        }
    };
    for finding in situation.primary_findings()? {
        audience.hear(finding)?;
    }
    if !is_found {
        return Ok(None);
    }
    if let Err(error) = situation.demand_other_directory() {
        audience.hear(Finding::new("target_is_not_primary", Err(error)))?;
        return Ok(None);
    }
    let asked = now();
    let opened = situation.connector(wire).and_then(|connector| {
        let (directory, keep) = (Path::new(&situation.request.dest_dir), situation.keep()?);
        let open = || Session::open(connector, directory, purpose, keep, Arc::clone(progress), cancel);
        threads::wait(cancel, tick, open)
    });
    let mut session = match opened {
        Ok(session) => DropAside::new(session),
        Err(error) => {
            audience.hear(Finding::new(unreachable_by(&error), Err(error)))?;
            return Ok(None);
        }
    };
    let target = session.target().clone();
    let clocks = clocks(&target, asked, now());
    let reached = format!("\"{}\", {}", target.directory.display(), situation.transport());
    audience.hear(Finding::new("target_reachable", Ok(reached)))?;
    if !situation.is_local() {
        let secret = format!("both sides know \"{}\"", situation.settings.secret_file);
        audience.hear(Finding::new("secret", Ok(secret)))?;
        let ours = env!("CARGO_PKG_VERSION");
        let versions = format!("agent {}, extension {ours}", target.version);
        audience.hear(Finding::new("agent_version", Ok(versions)))?;
    }
    audience.hear(clocks)?;
    for finding in situation.target_findings(&target) {
        audience.hear(finding)?;
    }
    if let Purpose::Look = purpose {
        // a recovery has the target's lock instead
        audience.hear(Finding::new("target_free", not_worked_on(&situation.request, &target)))?;
        // a recovery says it when it has ended, with what the slot retains then
        let left = situation.former_slot(&target)?.map_or_else(
            || Ok("no slot of its own is left behind".to_owned()),
            |warning| {
                let hint = "A recovery under this name leaves it as it is.";
                Err(Error::new(Kind::WrongState, warning).hint(hint))
            },
        );
        audience.hear(Finding::advice("former_slot", left))?;
    }
    if target.running.is_none() {
        let listening = situation.listening(&target);
        match threads::wait(cancel, tick, || session.test_port(&listening)) {
            Err(error) if error.kind != Kind::InUse => {
                audience.hear(Finding::new("target_reachable", Err(error)))?;
                return Ok(None);
            }
            tested => {
                let free = tested.map(|()| format!("{} is free on the target's host", listening.port));
                audience.hear(Finding::advice("port", free))?;
            }
        }
    }
    let following = match situation.following(&target) {
        Ok(following) => following,
        Err(error) => {
            audience.hear(Finding::new("replication_login", Err(error)))?;
            return Ok(None);
        }
    };
    if target.running.is_some() {
        return Ok(Some(Approach { situation, session, target, following }));
    }
    let login = || session.test_replication(&following, situation.primary.system_identifier);
    let (login, mut warnings) = match threads::wait(cancel, tick, login) {
        Ok(warnings) => (Ok(following.conninfo()), warnings),
        Err(error) => (Err(error), Vec::new()),
    };
    warnings.extend(shown_otherwise(&following.application_name, situation.primary.server_version_num));
    audience.hear(Finding::new("replication_login", login).warned(warnings))?;
    Ok(Some(Approach { situation, session, target, following }))
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
fn not_worked_on(request: &Request, target: &Target) -> Result<String> {
    let last = Memory::of_this_server()?.recall(&request.dest_host, &request.dest_dir);
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

/// For those who mind every bad answer: [`approach`] gives them no `None`.
pub(crate) fn unheard() -> Error {
    Error::new(Kind::Internal, "a refusal was not heard")
}
