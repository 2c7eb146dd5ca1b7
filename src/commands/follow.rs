//! `pgpool_recovery_follow`: a server follows this primary, without a copy where that can be. Returns only if Pgpool-II may attach
//! it; every other end is an error.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pgpool_recovery_core::error::{Error, Kind, Result};
use pgpool_recovery_core::host::launch;
use pgpool_recovery_core::preflight::follow::{Place, Standing};
use pgpool_recovery_core::replication::streaming::Expected;
use pgpool_recovery_core::sender::Session;
use pgpool_recovery_core::sys::cancel::Cancel;
use pgpool_recovery_core::wire::protocol::follow::Follow;
use pgpool_recovery_core::wire::protocol::message::Purpose;
use pgpool_recovery_core::wire::protocol::stop::{Asker, Role};
use serde_json::{Value, json};

use crate::commands::remote_start::Wait;
use crate::commands::{first_stage, script};
use crate::pg::slot::{self, Slot};
use crate::pg::threads::{self, DropAside};
use crate::pg::{catalog, log};
use crate::plan::file_mode;
use crate::preflight::follow::{Own, demand_cluster, walsender};
use crate::preflight::{PrimaryFacts, authority, reach, stop};
use crate::run::Run;
use crate::settings::request::Request;
use crate::settings::{OnDiverged, Settings};
use crate::starting;

/// How often replication is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// What a walreceiver says that its primary refuses, or does not hear: a restart changes nothing about that.
const REFUSED: &str = "could not connect to the primary server";

/// Has the server that `request` names follow this one.
pub(crate) fn follow(request: Request, settings: Settings) -> Result<Value> {
    let others = [("dry_run", settings.dry_run), ("start", settings.start), ("native", settings.native)];
    if let Some((option, _)) = others.into_iter().find(|(_, is_set)| *is_set) {
        return Err(Error::new(
            Kind::InvalidArgument,
            format!("option \"{option}\" is not one of this function"),
        )
        .hint("Leave it out: a recovery has it."));
    }
    let mut run = Run::quiet();
    prepare(request, settings, &mut run)?.run(&mut run)
}

/// Tells the server to follow this one, and waits for nothing. It is neither restarted nor rebuilt, and one that was fenced is
/// started only if it `rejoins`.
pub(crate) fn tell(
    request: Request,
    settings: Settings,
    rejoins: bool,
    run: &mut Run<'_>,
) -> Result<std::result::Result<Value, Told>> {
    let following = prepare(request, Settings { on_diverged: OnDiverged::Report, ..settings }, run)?;
    following.tell_or_report(rejoins, run)
}

/// Of a server that was fenced, but not for the promotion that names it.
fn stays_stopped(directory: &str) -> Error {
    let message = format!("the server in \"{directory}\" was fenced before and stays stopped");
    Error::new(Kind::WrongState, message)
        .detail("It is not the old primary of this promotion: why nothing has had it follow since is not known here.")
        .hint("pgpool_recovery_follow on the new primary has it back; then attach it.")
}

fn prepare(request: Request, settings: Settings, run: &mut Run<'_>) -> Result<Following> {
    let begin = Instant::now();
    let own = catalog::own_address()?;
    let (host, directory) = (request.dest_host.clone(), request.dest_dir.clone());
    let (transport, reach) = (settings.transport, settings.reach()?);
    let is_local = run.blocking(|cancel| reach::is_local(&host, transport, &reach, &directory, cancel))?;
    let mut named = request.clone();
    run.blocking(|cancel| authority::demand_own_address(&mut named, &settings, &own, is_local, cancel))?;
    let facts = PrimaryFacts::gather(named, settings, own.server, is_local)?;
    facts.demand_may_be_followed()?;
    run.blocking(|_| facts.demand_other_directory())?;
    let (asker, expected) = (stop::asker(run)?, facts.expected()?);
    Ok(Following { request, facts, asker, expected, begin })
}

/// A server that has been told to follow, and is not seen to yet.
pub(crate) struct Told {
    following: Following,
    session: DropAside<Session>,
    rejoins: bool,
}

impl Told {
    /// What a follow would return, once it streams; until then why it does not.
    pub(crate) fn look(&mut self, run: &mut Run<'_>) -> Result<std::result::Result<Value, String>> {
        let Following { expected, asker, .. } = &self.following;
        Ok(match walsender(&mut self.session, expected, asker, run)? {
            Ok(own) if own.is_streaming => Ok(self.following.report(how(self.rejoins), &own)),
            Ok(own) => Err(format!("Its walsender is in state \"{}\".", own.state)),
            Err(why) => Err(why),
        })
    }

    /// Why it is not waited for any longer.
    pub(crate) fn given_up(&mut self, why: &str, run: &mut Run<'_>) -> Error {
        let lines = run.blocking(|_| self.session.log_tail()).unwrap_or_default();
        let lines = if self.rejoins { lines.as_str() } else { since_reload(&lines) };
        self.following.not_streaming(why, lines, "It was not restarted.")
    }
}

/// How a server that follows has come to that.
const fn how(rejoins: bool) -> &'static str {
    if rejoins { "rejoined" } else { "following" }
}

/// One server on its way to follow this one.
struct Following {
    /// As the caller named it.
    request: Request,
    facts: PrimaryFacts,
    asker: Asker,
    expected: Expected,
    begin: Instant,
}

impl Following {
    fn run(self, run: &mut Run<'_>) -> Result<Value> {
        let mut session = match self.meet(run)? {
            Ok(report) => return Ok(report),
            Err(session) => session,
        };
        match self.facts.standing(&mut session, &self.asker, false, run)? {
            Standing::Follows(place) => self.attach(session, place, false, run),
            Standing::Rejoins(place) => self.attach(session, place, true, run),
            Standing::Diverged(error) => self.diverged(session, error, run),
            Standing::Primary(place) => {
                self.stop_primary(&mut session, place, run)?;
                let mut session = self.look(run)?;
                let stopped = |error: Error| {
                    error.add_detail("It ran as a primary that this server has replaced, and was stopped.")
                };
                match self.facts.standing(&mut session, &self.asker, true, run)? {
                    Standing::Rejoins(place) => self.attach(session, place, true, run),
                    Standing::Diverged(error) => self.diverged(session, stopped(error), run),
                    Standing::Follows(place) | Standing::Primary(place) => Err(self
                        .runs_as_primary(place)
                        .detail("It was stopped, and something has started it again.")),
                }
            }
        }
    }

    /// The report of a server that streams from this one already; else a session with it.
    fn meet(&self, run: &mut Run<'_>) -> Result<std::result::Result<Value, DropAside<Session>>> {
        let mut session = self.look(run)?;
        demand_cluster(session.target())?;
        let target = session.target();
        let is_kin = target.system_identifier == Some(self.asker.system_identifier);
        if is_kin
            && target.running.is_some()
            && let Ok(own) = walsender(&mut session, &self.expected, &self.asker, run)?
            && own.is_streaming
        {
            return Ok(Ok(self.report("following", &own)));
        }
        Ok(Err(session))
    }

    /// A session that looks at the directory, or starts or stops its server.
    fn look(&self, run: &mut Run<'_>) -> Result<DropAside<Session>> {
        let Request { dest_host, dest_dir, .. } = &self.request;
        reach::look(dest_host, Path::new(dest_dir), self.facts.is_local(), &self.facts.settings, run)
    }

    fn runs_as_primary(&self, place: Place) -> Error {
        let Request { dest_host, dest_dir, .. } = &self.request;
        let message = format!("the server in \"{dest_dir}\" on host \"{dest_host}\" runs as a primary");
        let Place { timeline, position } = place;
        let own = self.asker.history.timeline();
        Error::new(Kind::WrongState, message)
            .detail(format!("It is on timeline {timeline} at {position}; this server is on timeline {own}."))
            .hint("Decide which of the two is the primary, and stop the other one.")
    }

    /// Stops a primary that this server has replaced, if the caller may and that is proved; no other.
    fn stop_primary(&self, session: &mut Session, place: Place, run: &mut Run<'_>) -> Result<()> {
        let refused = |why: Error| {
            let sentence = format!("It is not stopped: {}. {}", why.message, why.detail.unwrap_or_default());
            or_hint(self.runs_as_primary(place).add_detail(&sentence), why.hint)
        };
        authority::demand_may_stop(&self.facts.settings).map_err(refused)?;
        let asker = self.asker.clone();
        let role = run.blocking(|_| session.may_stop(asker)).map_err(|why| match why.kind {
            Kind::TargetRefused | Kind::InsufficientPrivilege => refused(why),
            _ => why,
        })?;
        if role == Some(Role::Standby) {
            return Err(self
                .runs_as_primary(place)
                .detail("It says that it is no standby, and its files say that it is one."));
        }
        let (host, directory) = (&self.request.dest_host, &self.request.dest_dir);
        let mut session = self.look(run)?;
        stop::stop(&mut session, &self.facts.settings, (host, directory), run).map(drop)
    }

    /// Reports a server that cannot follow, or rebuilds it.
    fn diverged(self, session: DropAside<Session>, error: Error, run: &mut Run<'_>) -> Result<Value> {
        if self.facts.settings.on_diverged == OnDiverged::Report {
            return Err(error);
        }
        let is_running = session.target().running.is_some();
        drop(session);
        if is_running && let Err(why) = authority::demand_may_stop(&self.facts.settings) {
            let error = error.add_detail(&format!("It is not rebuilt: {}.", why.message));
            return Err(or_hint(error, why.hint));
        }
        let directory = &self.request.dest_dir;
        let text = format!("pgpool_recovery: {} and is rebuilt", error.message);
        log::log_detail(&text, error.detail.as_deref(), None);
        log::notice_detail(&text, error.detail.as_deref(), None);
        let own = &self.facts.settings;
        let settings = Settings { stop_target: own.stop_target || is_running, start: true, ..own.clone() };
        script::forget(&self.request.dest_host, directory);
        first_stage::first_stage(self.request.clone(), settings)?;
        let mut session = self.look(run)?;
        match walsender(&mut session, &self.expected, &self.asker, run)? {
            Ok(own) => Ok(self.report("rebuilt", &own)),
            Err(why) => Err(self.not_streaming(&why, "", "")),
        }
    }

    /// Gives the server its files; it is started if it rejoins.
    fn tell(
        &self,
        session: &mut DropAside<Session>,
        place: Place,
        rejoins: bool,
        run: &mut Run<'_>,
    ) -> Result<()> {
        let made = self.reserve(session, place, run)?;
        if let Err(error) = self.write(session, rejoins, run) {
            if made {
                slot::drop_idle(&self.facts.slot_name);
            }
            return Err(error);
        }
        if rejoins {
            starting::start(session, self.facts.settings.start_timeout, run)?;
        }
        Ok(())
    }

    /// The same as [`Self::run`] without what takes long: the report of a server that streams already, or the server that was told.
    fn tell_or_report(self, may_rejoin: bool, run: &mut Run<'_>) -> Result<std::result::Result<Value, Told>> {
        let mut session = match self.meet(run)? {
            Ok(report) => return Ok(Ok(report)),
            Err(session) => session,
        };
        let (place, rejoins) = match self.facts.standing(&mut session, &self.asker, false, run)? {
            Standing::Follows(place) => (place, false),
            Standing::Rejoins(place) if may_rejoin => (place, true),
            Standing::Rejoins(_) => return Err(stays_stopped(&self.request.dest_dir)),
            Standing::Diverged(error) => return Err(error),
            Standing::Primary(place) => return Err(self.runs_as_primary(place)),
        };
        self.tell(&mut session, place, rejoins, run)?;
        Ok(Err(Told { following: self, session, rejoins }))
    }

    /// Gives the server its files, and waits until it streams.
    fn attach(
        self,
        mut session: DropAside<Session>,
        place: Place,
        rejoins: bool,
        run: &mut Run<'_>,
    ) -> Result<Value> {
        self.tell(&mut session, place, rejoins, run)?;
        let why = match self.await_streaming(&mut session, run)? {
            Ok(own) => return Ok(self.report(how(rejoins), &own)),
            Err(why) => why,
        };
        let lines = run.blocking(|_| session.log_tail())?;
        let lines = since_reload(&lines);
        if rejoins {
            return Err(self.not_streaming(&why, lines, ""));
        }
        if lines.contains(REFUSED) {
            return Err(self.not_streaming(
                &why,
                lines,
                "It was not restarted: its primary did not let it in, or did not answer.",
            ));
        }
        if let Err(no_start) = &session.target().starter {
            let message = &no_start.message;
            return Err(self.not_streaming(&why, lines, &format!("It was not restarted: {message}.")));
        }
        let stopped = authority::demand_may_stop(&self.facts.settings).and_then(|()| {
            let (host, directory) = (self.request.dest_host.as_str(), self.request.dest_dir.as_str());
            stop::stop(&mut session, &self.facts.settings, (host, directory), run)
        });
        if let Err(not) = stopped {
            if not.kind != Kind::InsufficientPrivilege {
                return Err(not);
            }
            return Err(self.not_streaming(&why, lines, &format!("It was not restarted: {}.", not.message)));
        }
        let mut session = self.look(run)?;
        starting::start(&mut session, self.facts.settings.start_timeout, run)?;
        match self.await_streaming(&mut session, run)? {
            Ok(own) => Ok(self.report("restarted", &own)),
            Err(why) => {
                let lines = run.blocking(|_| session.log_tail())?;
                Err(self.not_streaming(&why, &lines, "It was restarted, which did not help."))
            }
        }
    }

    /// Reserves the WAL that the standby needs with its slot. True if the slot was made for that.
    fn reserve(&self, session: &mut Session, place: Place, run: &mut Run<'_>) -> Result<bool> {
        let name = &self.facts.slot_name;
        if name.is_empty() {
            return Ok(false);
        }
        let is_served = |session: &mut Session, run: &mut Run<'_>| {
            walsender(session, &self.expected, &self.asker, run).map(|found| found.is_ok())
        };
        // the standby uses it already, but has not caught up
        if is_served(session, run)? {
            return Ok(false);
        }
        let slot = match Slot::reserve(name, place.position) {
            // the standby's walreceiver may have come back just now
            Err(error) if error.kind == Kind::InUse && is_served(session, run)? => return Ok(false),
            reserved => reserved?,
        };
        let made = slot.is_new();
        slot.keep()?;
        Ok(made)
    }

    /// Has the files written, under the lock that a recovery has.
    fn write(&self, session: &Session, rejoins: bool, run: &mut Run<'_>) -> Result<()> {
        let replication = self.facts.replication(session.target())?;
        let wanted = Follow {
            asker: self.asker.clone(),
            myrecovery: replication.myrecovery_conf(self.facts.primary.server_version_num / 10_000)?,
            mode: file_mode(&self.facts),
            rejoins,
        };
        let connector = DropAside::new(self.facts.connector(Arc::clone(run.wire()))?);
        let (directory, keep) = (Path::new(&self.request.dest_dir), self.facts.keep()?);
        let reaches = Arc::clone(&connector);
        let open = |cancel: &Cancel| {
            Session::open(reaches, directory, Purpose::Recover, keep, Arc::default(), cancel)
                .map(DropAside::new)
        };
        let mut session = run.blocking(open)?;
        let followed = run.blocking(|_| session.follow(wanted))?;
        for warning in followed.warnings {
            log::notice(&format!("pgpool_recovery: {warning}"));
        }
        Ok(())
    }

    /// Waits until the standby streams on this server's timeline, or until it has come no further for `follow_timeout`.
    fn await_streaming(
        &self,
        session: &mut Session,
        run: &mut Run<'_>,
    ) -> Result<std::result::Result<Own, String>> {
        let mut wait = Wait::new(self.facts.settings.follow_timeout);
        loop {
            let why = match walsender(session, &self.expected, &self.asker, run)? {
                Ok(own) if own.is_streaming => return Ok(Ok(own)),
                Ok(own) => {
                    own.position.into_iter().for_each(|position| wait.progress(position.to_string()));
                    format!("Its walsender is in state \"{}\".", own.state)
                }
                Err(why) => why,
            };
            if wait.is_over() {
                return Ok(Err(why));
            }
            threads::pause(LOOK);
        }
    }

    fn report(&self, result: &str, own: &Own) -> Value {
        let Request { dest_host, dest_dir, .. } = &self.request;
        let seconds = self.begin.elapsed().as_secs_f64();
        let timeline = self.asker.history.timeline();
        log::log(&format!(
            "pgpool_recovery: the standby in \"{dest_dir}\" on host \"{dest_host}\" streams from this primary on timeline {timeline} ({result}, {seconds:.1} s)"
        ));
        let slot = Some(&self.facts.slot_name).filter(|slot| !slot.is_empty());
        json!({
            "result": result,
            "timeline": timeline,
            "lsn": own.position.map(|position| position.to_string()),
            "slot": slot,
            "seconds": (seconds * 1000.0).round() / 1000.0,
        })
    }

    fn not_streaming(&self, why: &str, lines: &str, restart: &str) -> Error {
        let (directory, seconds) = (&self.request.dest_dir, self.facts.settings.follow_timeout.as_secs());
        // Pgpool-II's log shows the message first: the cause belongs there
        let cause = launch::cause(lines).map_or_else(String::new, |cause| format!(": {cause}"));
        let message = format!(
            "the standby in \"{directory}\" does not stream from this primary after {seconds} s{cause}"
        );
        let restart = if restart.is_empty() { String::new() } else { format!("{restart} ") };
        Error::new(Kind::StartFailed, message)
            .detail(format!("{why} {restart}The last lines of its log are:\n{lines}"))
            .hint("Its myrecovery.conf names this server. Check pg_hba.conf here, the replication user and the password file there; then call again.")
    }
}

/// An error with another HINT, if there is one.
fn or_hint(error: Error, hint: Option<String>) -> Error {
    Error { hint: hint.or(error.hint), ..error }
}

/// What a server logged since it last read its configuration because of a signal: what is before is about its former primary.
fn since_reload(lines: &str) -> &str {
    lines.rfind("received SIGHUP, reloading configuration files").map_or(lines, |at| &lines[at..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_of_the_former_primary_is_no_reason() {
        let log = "FATAL:  could not connect to the primary server: old\nLOG:  received SIGHUP, reloading configuration files\nLOG:  x";
        assert!(!since_reload(log).contains(REFUSED));
        assert!(since_reload(&format!("{log}\nFATAL:  {REFUSED}: new")).contains("new"));
        assert_eq!(since_reload("LOG:  y"), "LOG:  y");
    }
}
