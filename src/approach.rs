//! The way to a target: every pre-flight question, asked in order, by whoever goes there.
//!
//! A recovery takes the first bad answer for a refusal. `pgpool_recovery_check` lists all of them and ends only
//! where nothing more can be asked.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use pgpool_recovery_core::cancel::Cancel;
use pgpool_recovery_core::clock::now;
use pgpool_recovery_core::error::{Error, Kind, Result};
use pgpool_recovery_core::judge::{Finding, clocks};
use pgpool_recovery_core::progress::Progress;
use pgpool_recovery_core::protocol::message::{Purpose, Target};
use pgpool_recovery_core::sender::Session;
use pgpool_recovery_core::standby::Following;

use crate::outcomes::Memory;
use crate::pg::threads::{self, DropAside};
use crate::preflight::{self, Situation};
use crate::request::Request;
use crate::settings::Settings;

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

/// How one goes there.
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
    let (host, transport) = (request.dest_host.clone(), settings.transport);
    let is_local = threads::wait(cancel, tick, || preflight::is_local(&host, transport, cancel));
    let is_found = is_local.is_ok();
    let is_local = match is_local {
        Ok(is_local) => is_local,
        Err(error) => {
            audience.hear(Finding::new("target_host", Err(error)))?;
            // this server can still be asked about
            false
        }
    };
    let situation = match Situation::gather(request, settings, is_local) {
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
        // whoever recovers has the target's lock instead
        audience.hear(Finding::new("target_free", not_worked_on(&situation.request, &target)))?;
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
    let following = situation.following(&target);
    let conninfo = following.conninfo();
    let login = || session.test_replication(&conninfo, situation.primary.system_identifier);
    let login = threads::wait(cancel, tick, login);
    audience.hear(Finding::new("replication_login", login.map(|()| conninfo)))?;
    Ok(Some(Approach { situation, session, target, following }))
}

/// Whether nobody recovers the target now, as far as this server and the receiver know.
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
