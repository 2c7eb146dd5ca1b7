//! `pgpool_remote_start`: starts the standby and waits until it streams from this primary (S10).

use std::collections::HashSet;
use std::path::Path;
use std::time::{Duration, Instant};

use pgdata::wal::Lsn;
use pgpool_recovery_core::error::{Error, Kind, Result};
use pgpool_recovery_core::host::launch;
use pgpool_recovery_core::replication::streaming::{self, Expected, Replay};
use pgpool_recovery_core::sender::Session;
use pgpool_recovery_core::sys::size::pretty;
use pgpool_recovery_core::wire::protocol::describe::{HeldUp, Said};
use pgpool_recovery_core::wire::protocol::message::TargetInfo;

use crate::commands::{script, second_stage};
use crate::history::{Entry, History, Outcome};
use crate::pg::{backup, catalog, log, threads};
use crate::preflight::{one_host, reach, stop};
use crate::retry::{self, Retry};
use crate::run::Run;
use crate::settings::{Scripts, Settings, request};
use crate::starting;

/// How often replication is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// How long replay may stand still before that is said: longer than wal_receiver_status_interval, 10 s.
const REPLAY: Duration = Duration::from_secs(12);

/// Runs the operator's script where one recovered this target in this session, and else starts the standby.
pub(crate) fn script_or_standby(host: &str, directory: &str, settings: Settings) -> Result<()> {
    if settings.scripts == Scripts::Run
        && settings.caller_is_superuser
        && script::remote_start(host, directory)?
    {
        return Ok(());
    }
    let host = request::host("remote_host", host)?;
    let directory = request::directory("remote_data_directory", directory)?;
    remote_start(&host, &directory, settings)
}

/// Starts the standby in `directory` on `host`. Succeeds if it runs and streams already. Goes on if its host is lost meanwhile.
pub(crate) fn remote_start(host: &str, directory: &str, settings: Settings) -> Result<()> {
    let mut retry = Retry::new(settings.retry_for);
    loop {
        let mut is_asked = false;
        let error = match start(host, directory, settings.clone(), &mut is_asked) {
            Err(error) => error,
            done => return done,
        };
        let pause = retry.after(&error, is_asked, 0)?;
        retry::tell(&format!("the start of \"{directory}\" on host \"{host}\""), &error, is_asked);
        Run::quiet().pause(pause)?;
    }
}

/// `is_asked` is set when the host is asked to start it.
fn start(host: &str, directory: &str, settings: Settings, is_asked: &mut bool) -> Result<()> {
    let mut run = Run::quiet();
    let (transport, reach) = (settings.transport, settings.reach()?);
    let is_local = run.blocking(|cancel| reach::is_local(host, transport, &reach, directory, cancel));
    if let Err(error) = &is_local
        && error.kind == Kind::InsufficientPrivilege
    {
        return Err(error.clone());
    }
    let last = History::of_this_server()?.recall(host, directory);
    let failure = last.as_ref().map_or(Ok(None), failure)?;
    // why it was not reached may be why it is not
    let or_failure = |error| failure.clone().unwrap_or(error);
    let is_local = is_local.map_err(or_failure)?;
    let mut session =
        reach::look(host, Path::new(directory), is_local, &settings, &mut run).map_err(or_failure)?;
    if !is_complete_standby(session.target())
        && let Some(Outcome::Promoted { timeline }) = last.map(|last| last.outcome)
    {
        return second_stage::demand_runs(&mut session, timeline, &mut run);
    }
    // a standby that is complete by now was recovered under another name of its host, or by another primary
    if let Some(failure) = failure.filter(|_| !is_complete_standby(session.target())) {
        return Err(failure);
    }
    one_host::demand_own_tablespaces_of(session.target().clone(), &mut run)?;
    let expected = stop::expected(session.target())?;
    *is_asked = true;
    let launched = starting::start(&mut session, settings.start_timeout, &mut run)?;
    let mut wait = Wait::new(settings.start_timeout);
    let mut catch_up = CatchUp::new(settings.start_timeout);
    while let Err(why) = streams(&mut session, &expected, &mut wait, &mut run)? {
        if wait.is_over() {
            let lines = run.blocking(|_| session.log_tail())?;
            let held_up = catch_up.held_up(&mut session, &mut run);
            return Err(not_streaming(directory, &settings, &why, held_up, &lines));
        }
        catch_up.look(&mut session, &mut wait, &mut run);
        threads::pause(LOOK);
    }
    // Replay of a server that was just started has only asked for WAL because it had replayed all that was there.
    if !launched && replay_stands(&mut session, &expected, &mut run)? {
        let held_up = CatchUp::new(settings.start_timeout).held_up(&mut session, &mut run);
        let (why, hint) =
            held_up.map_or_else(Default::default, |held| (format!(": {}", held.why), held.hint));
        log::notice_detail(
            &format!("replay on the standby in \"{directory}\" stands still{why}"),
            Some(&format!(
                "It streams from this primary, but has replayed nothing of the WAL it has received for {} s.",
                REPLAY.as_secs()
            )),
            Some(if hint.is_empty() {
                "A query on the standby may hold it up: see pg_stat_activity there."
            } else {
                &hint
            }),
        );
    }
    let how = if launched { "was started" } else { "ran already" };
    log::log(&format!(
        "pgpool_recovery: the standby in \"{directory}\" on host \"{host}\" {how} and streams from this primary"
    ));
    Ok(())
}

/// Whether a standby could be started, as far as a first stage decides that.
fn is_complete_standby(target: &TargetInfo) -> bool {
    target.control_in_place && target.marker.is_none() && target.backup.has_standby_signal
}

/// A stage that failed is why the start must: Pgpool-II shows this error, not that one. One that is running refuses
/// the start at once.
fn failure(last: &Entry) -> Result<Option<Error>> {
    let directory = &last.directory;
    if let Some(worker) = last.other_worker() {
        return Err(Error::new(Kind::InUse, format!("a recovery of \"{directory}\" is running"))
            .detail(format!("Process {} works on it.", worker.pid))
            .hint("Wait until it ends; the view pgpool_recovery_status shows it."));
    }
    let stage = last.stage.name();
    Ok(match last.outcome.clone() {
        Outcome::Succeeded | Outcome::Promoted { .. } => None,
        Outcome::Failed { error, .. } => Some(Error {
            // Pgpool-II cuts what it shows after some 200 characters: the cause comes first
            message: format!("{stage} failed: {}", error.message),
            detail: Some(match error.detail {
                Some(detail) => format!("{detail} The target is \"{directory}\"."),
                None => format!("The target is \"{directory}\"."),
            }),
            hint: error.hint.or_else(|| Some("Run the recovery again when the cause is removed.".to_owned())),
            ..error
        }),
        Outcome::Running(worker) => Some(
            Error::new(Kind::Canceled, format!("{stage} of \"{directory}\" was interrupted"))
                .detail(format!("Process {}, which worked on it, was terminated.", worker.pid))
                .hint("Run the recovery again; it sends only what is missing."),
        ),
    })
}

/// The time a standby has to stream, counted from its last progress.
pub(super) struct Wait {
    timeout: Duration,
    deadline: Instant,
    /// Signs of progress that were seen: a segment that replay has come to, a position that was sent.
    seen: HashSet<String>,
}

impl Wait {
    pub(super) fn new(timeout: Duration) -> Self {
        Self { timeout, deadline: Instant::now() + timeout, seen: HashSet::new() }
    }

    pub(super) fn progress(&mut self, sign: String) {
        if self.seen.insert(sign) {
            self.deadline = Instant::now() + self.timeout;
        }
    }

    pub(super) fn is_over(&self) -> bool {
        Instant::now() >= self.deadline
    }
}

/// What the standby says of its replay while it does not stream yet.
struct CatchUp {
    /// How often it is asked.
    interval: Duration,
    asked: Instant,
    /// When it was heard of last, and how far it had come.
    last: Option<(Instant, Lsn)>,
}

impl CatchUp {
    fn new(timeout: Duration) -> Self {
        Self { interval: starting::interval(timeout), asked: Instant::now(), last: None }
    }

    /// Tells now and then how far it is. What it replays is progress; a server that says nothing may be busy.
    fn look(&mut self, session: &mut Session, wait: &mut Wait, run: &mut Run<'_>) {
        if self.asked.elapsed() < self.interval {
            return;
        }
        self.asked = Instant::now();
        let Ok(description) = run.blocking(|_| session.describe()) else { return };
        let Some(Ok(Said { replayed: Some(replayed), .. })) = description.said else { return };
        wait.progress(format!("replayed {replayed}"));
        let target = backup::flushed();
        let last = self.last.replace((self.asked, replayed));
        let moved = last.map(|(then, before)| (then.elapsed(), replayed.0.saturating_sub(before.0)));
        if let Some((_, 0)) = moved
            && let Some(HeldUp { why, hint }) = description.held_up()
        {
            let detail = format!(
                "It has replayed WAL up to {replayed}, and this server has written it up to {target}."
            );
            let message = format!("pgpool_recovery: replay on the standby stands still: {why}");
            log::notice_detail(&message, Some(&detail), Some(&hint));
            return;
        }
        let rate = moved.map_or_else(String::new, |(time, bytes)| {
            let rate = bytes as f64 / time.as_secs_f64().max(0.001);
            format!(", {}/s", pretty(rate as u64))
        });
        log::notice(&format!(
            "pgpool_recovery: the standby has replayed WAL up to {replayed} of {target}{rate}"
        ));
    }

    /// What holds its replay up, unless it has moved since it was asked last.
    fn held_up(&self, session: &mut Session, run: &mut Run<'_>) -> Option<HeldUp> {
        let description = run.blocking(|_| session.describe()).ok()?;
        let replayed = description.said.as_ref().and_then(|said| said.as_ref().ok()?.replayed);
        let has_moved = self.last.zip(replayed).is_some_and(|((_, before), now)| now > before);
        description.held_up().filter(|_| !has_moved)
    }
}

/// Whether this standby streams from this server, or why that is not proved.
fn streams(
    session: &mut Session,
    expected: &Expected,
    wait: &mut Wait,
    run: &mut Run<'_>,
) -> Result<std::result::Result<(), String>> {
    let walsenders = catalog::walsenders()?;
    // Asked after the walsenders: a connection is then never older than the walreceiver that made it.
    let (walreceiver, startup) = run.blocking(|_| session.walreceiver())?;
    if walreceiver.is_none() {
        // it replays what it has, or what restore_command brings
        startup.into_iter().for_each(|sign| wait.progress(sign));
    }
    Ok(match streaming::find_walsender(&walsenders, expected, walreceiver.as_ref()) {
        Ok(walsender) if walsender.is_streaming() => Ok(()),
        Ok(walsender) => {
            walsender.sent.into_iter().for_each(|sent| wait.progress(sent.to_string()));
            Err(format!("Its walsender (process {}) is in state \"{}\".", walsender.pid, walsender.state))
        }
        Err(why) => Err(why),
    })
}

/// Whether there is WAL to replay on the standby and nothing of it has been replayed for some time. A standby
/// tells its position at least every wal_receiver_status_interval.
fn replay_stands(session: &mut Session, expected: &Expected, run: &mut Run<'_>) -> Result<bool> {
    let end = Instant::now() + REPLAY;
    let mut replay = Replay::default();
    loop {
        let walsenders = catalog::walsenders()?;
        let (walreceiver, _) = run.blocking(|_| session.walreceiver())?;
        let found = streaming::find_walsender(&walsenders, expected, walreceiver.as_ref());
        if !found.is_ok_and(|walsender| replay.is_stalled(walsender)) {
            return Ok(false);
        }
        if Instant::now() >= end {
            return Ok(true);
        }
        threads::pause(LOOK);
    }
}

fn not_streaming(
    directory: &str,
    settings: &Settings,
    why: &str,
    held_up: Option<HeldUp>,
    lines: &str,
) -> Error {
    let seconds = settings.start_timeout.as_secs();
    // Pgpool-II shows the message alone
    let cause = launch::cause(lines).map_or_else(String::new, |cause| format!(": {cause}"));
    let hint = if cause.contains("has already been removed") {
        "Run the recovery again, with a slot (pgpool_recovery.slot_name), so that the primary keeps the WAL."
    } else {
        "Is it a standby of this primary? See its primary_conninfo, and pg_stat_replication here."
    };
    let (cause, hint) = match held_up {
        // a replay that stands still asks for no WAL
        Some(HeldUp { why, hint }) => (format!(": {why}"), hint),
        None => (cause, hint.to_owned()),
    };
    let message = format!("standby runs but does not stream from this primary after {seconds} s{cause}");
    Error::new(Kind::StartFailed, message)
        .detail(format!("{why} The last lines of the log in \"{directory}\" are:\n{lines}"))
        .hint(hint)
}
