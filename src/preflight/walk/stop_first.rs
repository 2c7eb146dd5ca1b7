//! Stopping the target's server before a recovery opens its directory (`stop_target`).
//!
//! A server that runs is worth more than a recovery that is refused: everything that can be asked while it runs is asked
//! first. What needs a stopped server, the login from its host, is asked after that, and a standby that was stopped in vain
//! is started again.

use std::path::Path;

use pgpool_recovery_core::error::Error;
use pgpool_recovery_core::preflight::Finding;
use pgpool_recovery_core::sender::Planned;
use pgpool_recovery_core::wire::protocol::message::Purpose;
use pgpool_recovery_core::wire::protocol::stop::Role;

use super::{Context, Stop, not_worked_on, open, unreachable_by};
use crate::pg::log;
use crate::plan;
use crate::preflight::{PrimaryFacts, one_host, reach, stop};
use crate::run::Run;
use crate::settings::Settings;
use crate::starting;

/// A target's server that was stopped for a recovery.
pub(super) struct Stopped {
    host: String,
    directory: String,
    is_local: bool,
    settings: Settings,
    role: Role,
}

impl Stopped {
    /// Starts a standby again that was stopped for a recovery which ends with this error before it begins.
    pub(super) fn start_again(&self, error: Error) -> Error {
        let outcome = match self.role {
            // it would be a second primary (S11)
            Role::FormerPrimary | Role::OwnPrimary => "and stays stopped".to_owned(),
            Role::Standby => {
                let mut run = Run::quiet();
                let directory = Path::new(&self.directory);
                let started = reach::look(&self.host, directory, self.is_local, &self.settings, &mut run)
                    .and_then(|mut session| {
                        one_host::demand_own_tablespaces_of(session.target().clone(), &mut run)?;
                        starting::start(&mut session, self.settings.start_timeout, &mut run)
                    });
                match started {
                    Ok(_) => "and was started again".to_owned(),
                    Err(why) => format!("and could not be started again: {}", why.message),
                }
            }
        };
        let said = format!("The target's server had been stopped for this recovery {outcome}.");
        log::log(&format!("pgpool_recovery: \"{}\" on host \"{}\": {said}", self.directory, self.host));
        let detail = error.detail.as_ref().map_or_else(|| said.clone(), |detail| format!("{detail}\n{said}"));
        error.detail(detail)
    }
}

impl PrimaryFacts {
    /// Stops the target's server, if that is wanted and one runs, once nothing else is known to refuse the recovery.
    /// `held`: see [`PrimaryFacts::may_be_due_to_target`].
    pub(super) fn stop_first(
        &self,
        held: Vec<Finding>,
        context: &mut Context<'_, '_>,
    ) -> Result<Option<Stopped>, Stop> {
        if !self.settings.stop_target {
            return Ok(None);
        }
        if !self.can_be_stopped_for(held, context)? {
            return Ok(None);
        }
        let (host, directory) = (&self.request.dest_host, &self.request.dest_dir);
        let mut run = Run::quiet();
        let done = reach::look(host, Path::new(directory), self.is_local, &self.settings, &mut run)
            .and_then(|mut session| stop::stop(&mut session, &self.settings, (host, directory), &mut run));
        let done = match done {
            Ok(done) => done,
            Err(error) => return Err(context.refuse("target_stopped", error)),
        };
        let Some(done) = done else { return Ok(None) };
        let stopped = Stopped {
            host: host.clone(),
            directory: directory.clone(),
            is_local: self.is_local,
            settings: self.settings.clone(),
            role: done.role,
        };
        match self.await_walsender() {
            Ok(()) => Ok(Some(stopped)),
            Err(error) => Err(Stop::Refused(stopped.start_again(error))),
        }
    }

    /// Asks everything that can be asked while the target's server runs; the first bad answer ends it. False: none runs.
    fn can_be_stopped_for(&self, held: Vec<Finding>, context: &mut Context<'_, '_>) -> Result<bool, Stop> {
        // the end of a session ends its run
        let mut run = Run::quiet();
        let (_connector, mut session) = match open(self, Purpose::Look, &mut run) {
            Ok(opened) => opened,
            Err(error) => return Err(context.refuse(unreachable_by(&error), error)),
        };
        let target = session.target().clone();
        // the recovery itself asks all this again, and tells what is advice then
        let mut before =
            Context { purpose: Purpose::Look, run: context.run, findings: None, warnings: Vec::new() };
        for finding in held {
            before.add(self.due_to_target(finding, &mut session, &target, &mut run)?)?;
        }
        if target.running.is_none() {
            return Ok(false);
        }
        let mut could_be_stopped = self.could_be_stopped(&mut session, &target, &mut run);
        for finding in self.target_findings(&target)? {
            let answer = could_be_stopped.take_if(|answer| answer.step == finding.step);
            before.add(answer.unwrap_or(finding))?;
        }
        before.add(Finding::new("target_free", not_worked_on(&self.request, &target)))?;
        if let Err(error) = self.replication(&target) {
            return Err(before.refuse("replication_login", error));
        }
        let plan = plan::plan(self, &target, None, &mut run);
        let proposed = plan.and_then(|plan| self.propose(&target, session, plan, &mut run));
        match proposed {
            Ok(Planned { space, obstacle, .. }) => match space.or(obstacle) {
                Some(error) => Err(before.refuse("target_writable", error)),
                None => Ok(true),
            },
            Err(error) => Err(before.refuse("target_writable", error)),
        }
    }
}
