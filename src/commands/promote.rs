//! `pgpool_recovery_promote`: makes this standby the primary, and no second one.
//!
//! Everything that can refuse is asked before the old primary is stopped, and asked again after that where the answer may have
//! changed. Once this server is promoted nothing is an error any more: the report says what did not work.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use pgdata::wal::Lsn;
use pgpool_recovery_core::compare::wal_map::Wal;
use pgpool_recovery_core::error::{Error, Kind, Result};
use pgpool_recovery_core::host::turn::{self, Turn};
use pgpool_recovery_core::host::{control, fence as mark, stopped_startup, upstream};
use pgpool_recovery_core::preflight::promote::{Fencing, OldPrimary, Own};
use pgpool_recovery_core::sender::Session;
use pgpool_recovery_core::wire::protocol::describe::HeldUp;
use pgpool_recovery_core::wire::protocol::fence::Fenced;
use pgpool_recovery_core::wire::protocol::stop::{Role, Stopped};
use serde_json::{Value, json};

use crate::commands::clock::{Clock, LOOK};
use crate::pg::threads::{self, DropAside};
use crate::pg::{catalog, log, recovery};
use crate::preflight::stop::{asking_standby, mode_name};
use crate::run::Run;
use crate::settings::request::{self, required};
use crate::settings::{Fence, Settings};

mod asked;
mod followers;
mod heard;
mod places;
mod questions;
mod told;

use asked::Asked;
use heard::{Verdict, Wait};
use questions::QUESTIONS;

/// How long the old primary may take to be stopped: a fast shutdown, and after it an immediate one, which the host gives 10 s.
const FAST: Duration = Duration::from_secs(6);
const STOP: Duration = Duration::from_secs(16);

/// What is left of the time for what follows.
const AFTER: Duration = Duration::from_secs(3);

/// How long another promotion is left alone before it is looked at again, at least, and up to twice of that and of what a look takes.
const BETWEEN: Duration = Duration::from_millis(250);

/// How long WAL that another standby has already may be on its way to this one.
const ON_ITS_WAY: Duration = Duration::from_secs(2);

/// The primary in whose place this standby is promoted, as the caller calls it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Old {
    host: String,
    directory: String,
    port: u16,
}

impl Old {
    /// Reads the arguments; all are NULL where no primary is known.
    pub(crate) fn read(
        host: Option<String>,
        directory: Option<String>,
        port: Option<i32>,
    ) -> Result<Option<Self>> {
        if host.is_none() && directory.is_none() && port.is_none() {
            return Ok(None);
        }
        Ok(Some(Self {
            host: request::host("old_host", &required("old_host", host)?)?,
            directory: request::directory("old_dir", &required("old_dir", directory)?)?,
            port: request::port_number("old_port", required("old_port", port)?)?,
        }))
    }

    fn name(&self) -> String {
        let host = if self.host.is_empty() { "localhost" } else { &self.host };
        format!("the old primary ({host}:{})", self.port)
    }
}

impl Fence {
    pub(crate) const fn fencing(self) -> Fencing {
        match self {
            Self::BestEffort => Fencing::BestEffort,
            Self::Required => Fencing::Required,
            Self::Off => Fencing::Off,
        }
    }
}

/// Promotes this standby in the place of `old`.
pub(crate) fn promote(old: Option<&Old>, settings: &Settings) -> Result<Value> {
    let clock = Clock::new(settings.deadline);
    followers::demand_names(settings)?;
    if !recovery::goes_on() && settings.nodes.is_empty() {
        return already(old, settings, &clock);
    }
    let directory = catalog::data_directory()?;
    // that of a primary is of a fence that is at work
    if recovery::goes_on() {
        remove_own_mark(Path::new(&directory));
    }
    let mut turn = take_turn(Path::new(&directory), &clock)?;
    if !recovery::goes_on() {
        return already(old, settings, &clock);
    }
    demand_replay_not_paused()?;
    demand_startup_runs(Path::new(&directory))?;
    let fencing = settings.fence.fencing();
    demand_time_to_ask(&clock)?;
    let mut asked = Asked::ask(old, settings, &clock)?;
    let warnings = demand_foremost(&asked, &clock)?;
    warnings.iter().for_each(|warning| log::warning(warning));
    // an end of the old primary that is followed by a refusal leaves nobody to write to
    let stops = fencing != Fencing::Off && asked.old_runs();
    if stops {
        demand_time_to_stop(&clock)?;
    }
    await_replay(&clock, if stops { STOP + AFTER } else { Duration::ZERO })?;
    if stops {
        await_old(&asked, &clock)?;
    }
    let gone = fence(&mut asked, fencing, &clock)?;
    if gone.own_has_ended() {
        settle(clock.left().min(AFTER))?;
        gone.lost(own()?.received).iter().for_each(|warning| log::warning(warning));
    } else {
        await_replay(&clock, Duration::ZERO)?;
    }
    let mut gone = look_again(&mut asked, fencing, gone, &clock)?;
    // two that are promoted at once may both see a standby in the other: each has its turn before it looks for the last time
    while let Some(rival) = rival(&asked)? {
        drop(turn);
        give_way(&mut asked, &rival, &clock)?;
        turn = take_turn(Path::new(&directory), &clock)?;
        if !recovery::goes_on() {
            return already(old, settings, &clock);
        }
        gone = look_again(&mut asked, fencing, gone, &clock)?;
    }
    if let Some(warning) = gone.demand_gone(fencing)? {
        log::warning(&warning);
    }
    // a request that waits for that cannot be taken back, whatever becomes of the other nodes meanwhile
    demand_startup_runs(Path::new(&directory))?;
    let clock = clock.with_at_least(AFTER);
    become_primary(&clock)?;
    let (timeline, begin) = here()?;
    log::log(&format!("pgpool_recovery: this standby was promoted: timeline {timeline} begins at {begin}"));
    let nodes = followers::lead(settings, old, (&asked.silent(), &asked.fenced()), Some(begin), &clock);
    Ok(json!({
        "result": "promoted",
        "timeline": timeline,
        "lsn": begin.to_string(),
        "fenced": gone.fenced.as_ref().map(told),
        "nodes": nodes,
        "seconds": clock.elapsed().as_secs_f64(),
    }))
}

/// The report of a call on a primary. A call that was given up may have left its nodes to this one.
fn already(old: Option<&Old>, settings: &Settings, clock: &Clock) -> Result<Value> {
    let (timeline, begin) = here()?;
    log::notice("this server is a primary already: nothing was promoted");
    let nodes = followers::lead(settings, old, (&[], &[]), None, clock);
    Ok(json!({
        "result": "already_primary",
        "already_primary": true,
        "timeline": timeline,
        "lsn": begin.to_string(),
        "fenced": null,
        "nodes": nodes,
        "seconds": clock.elapsed().as_secs_f64(),
    }))
}

/// The timeline of this primary, and where it begins.
fn here() -> Result<(u32, Lsn)> {
    let primary = catalog::primary()?;
    let directory = Path::new(&primary.data_directory);
    let (control, _) = control::read(directory)?;
    let history = Wal::new(&directory.join("pg_wal"), &control).lineage(primary.timeline)?;
    Ok((primary.timeline, history.begin()))
}

/// On a standby the mark of an earlier fence has no use any more, and would keep it from being started once it is the primary.
fn remove_own_mark(directory: &Path) {
    if matches!(mark::read(directory), Ok(None)) {
        return;
    }
    if let Err(error) = mark::remove(directory) {
        log::warning(&format!("the mark of an earlier fence was not removed: {}", error.message));
    }
}

/// One promotion at a time: another call waits, and then finds a primary.
fn take_turn(directory: &Path, clock: &Clock) -> Result<Turn> {
    loop {
        if let Some(turn) = turn::take(directory)? {
            return Ok(turn);
        }
        if clock.left().is_zero() {
            return Err(Error::new(Kind::InUse, "another promotion of this standby is going on")
                .detail("Or something else of pgpool_recovery's has locked its data directory.")
                .hint("See pg_stat_activity for the call, and wait until it has ended."));
        }
        threads::pause(LOOK);
    }
}

/// The name of another standby that may be about to be promoted.
fn rival(asked: &Asked<'_>) -> Result<Option<String>> {
    Ok(own()?.rival(&asked.nodes).map(str::to_owned))
}

/// Waits until another standby has been promoted, which is a refusal, or its promotion was given up. Both may be waiting, each for a
/// time of its own, while neither has its turn.
fn give_way(asked: &mut Asked<'_>, rival: &str, clock: &Clock) -> Result<()> {
    log::log(&format!("pgpool_recovery: {rival} may be about to be promoted: this promotion waits"));
    let mut name = rival.to_owned();
    // where a look takes longer than the two pauses differ, each of two that wait would see the other one looking every time
    let mut look = Duration::ZERO;
    loop {
        threads::pause((BETWEEN + look).mul_f64(1.0 + jitter()).min(clock.left()));
        if clock.left().is_zero() {
            return Err(Error::new(Kind::InUse, format!("{name} may be about to be promoted"))
                .detail(
                    "Its data directory is locked, as it is while a standby is promoted or told to follow.",
                )
                .hint("See pg_stat_activity on that node, and call again if it is no primary then."));
        }
        let begin = Instant::now();
        asked.ask_again(clock)?;
        demand_foremost(asked, clock)?;
        match self::rival(asked)? {
            Some(still) => name = still,
            None => return Ok(()),
        }
        look = begin.elapsed();
    }
}

/// Something between 0 and 1 that two hosts hardly have in common.
fn jitter() -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    f64::from(now.subsec_nanos() ^ std::process::id().rotate_left(13)) % 1e6 / 1e6
}

/// Refuses a standby whose replay somebody has paused, and who may have had a reason.
fn demand_replay_not_paused() -> Result<()> {
    if !catalog::replay()?.is_paused {
        return Ok(());
    }
    Err(Error::new(Kind::WrongState, "replay on this standby is paused: nothing is promoted")
        .detail("A promotion would end the pause, and with it what it was made for.")
        .hint("Call pg_wal_replay_resume() here, then promote again."))
}

/// Refuses a standby whose replay a signal has stopped: it looks as if there were nothing to replay, and no promotion would come to an end.
fn demand_startup_runs(directory: &Path) -> Result<()> {
    let Some(held_up) = stopped_startup(directory).map(HeldUp::stopped) else { return Ok(()) };
    let message = "replay on this standby stands still: nothing is promoted";
    Err(Error::new(Kind::WrongState, message)
        .detail(format!("It is held up: {}.", held_up.why))
        .hint(held_up.hint))
}

/// This standby, as others are compared with it.
fn own() -> Result<Own> {
    let primary = catalog::primary()?;
    let (timeline, replayed) = recovery::replayed();
    let directory = Path::new(&primary.data_directory);
    let (control, _) = control::read(directory)?;
    Ok(Own {
        system_identifier: primary.system_identifier,
        history: Wal::new(&directory.join("pg_wal"), &control).lineage(timeline)?,
        received: replayed.max(catalog::replay()?.received.unwrap_or_default()),
    })
}

/// Refuses to promote this standby beside another primary, after another promotion, or before one that has more.
fn demand_foremost(asked: &Asked<'_>, clock: &Clock) -> Result<Vec<String>> {
    let (begin, nodes) = (Instant::now(), &asked.nodes);
    loop {
        let own = own()?;
        asked.demand_old_not_replaced(&own)?;
        if !own.lacks(nodes) || begin.elapsed() >= ON_ITS_WAY.min(clock.left()) {
            return own.demand_foremost(nodes);
        }
        threads::pause(LOOK);
    }
}

/// Refuses a call that would take those for silent who had no time to answer.
fn demand_time_to_ask(clock: &Clock) -> Result<()> {
    let (left, needed) = (clock.left(), QUESTIONS);
    if left >= needed {
        return Ok(());
    }
    let message = "too little time is left to ask the other nodes: nothing is promoted";
    Err(Error::new(Kind::Canceled, message)
        .detail(format!(
            "They have {} s for their answers, and {:.1} s are left of {} s.",
            needed.as_secs(),
            left.as_secs_f64(),
            clock.seconds()
        ))
        .hint("Option \"deadline\" gives it more."))
}

/// Waits until this standby has received what the old primary had, and refuses to stop one that has more.
fn await_old(asked: &Asked<'_>, clock: &Clock) -> Result<()> {
    let begin = Instant::now();
    loop {
        let own = own()?;
        let Some(theirs) = asked.old_position(&own).filter(|theirs| *theirs > own.received) else {
            return Ok(());
        };
        let streams = catalog::walreceiver()?.received.is_some();
        if clock.left() <= STOP + AFTER || !streams && begin.elapsed() >= ON_ITS_WAY {
            let message = "the old primary has WAL that this standby has not received: nothing is promoted";
            return Err(Error::new(Kind::WrongState, message)
                .detail(format!(
                    "It has written WAL up to {theirs}, this standby has received WAL up to {}; what lies between would be lost.",
                    own.received
                ))
                .hint("Let this standby catch up. To give up what it lacks, stop that server on its own host, and promote again."));
        }
        threads::pause(LOOK);
    }
}

/// Refuses a call that might have to leave the old primary half stopped.
fn demand_time_to_stop(clock: &Clock) -> Result<()> {
    let (left, needed) = (clock.left(), STOP + AFTER);
    if left >= needed {
        return Ok(());
    }
    let message = "too little time is left to stop the old primary: nothing was stopped";
    Err(Error::new(Kind::Canceled, message)
        .detail(format!(
            "It may take {} s, and {:.1} s are left of {} s.",
            needed.as_secs(),
            left.as_secs_f64(),
            clock.seconds()
        ))
        .hint("Option \"deadline\" gives it more."))
}

/// Stops the old primary for good, as far as that is wanted and it can be reached. Fails if it lives on.
fn fence(asked: &mut Asked<'_>, fencing: Fencing, clock: &Clock) -> Result<OldPrimary> {
    let fenced = match &mut asked.old {
        Some(Ok(session)) if fencing != Fencing::Off => Some(stop_for_good(session, clock)),
        Some(Err(error)) if fencing != Fencing::Off => Some(Err(error.clone())),
        _ => None,
    };
    let own_has_ended = matches!(&fenced, Some(Ok(fenced)) if fenced.role == Role::OwnPrimary);
    if own_has_ended {
        // what it sent until its end is no sign of another one
        asked.hear_anew()?;
    }
    if matches!(&fenced, Some(Ok(fenced)) if fenced.stopped.is_some()) {
        asked.old_has_stopped(own_has_ended);
    }
    let may_live = asked.upstream_lives().or_else(|| asked.upstream_unknown()).is_some();
    match (&fenced, &asked.old) {
        (Some(Ok(_)), _) if own_has_ended && may_live => asked.ask_upstream_again(clock)?,
        // the look that was taken before the attempt says nothing of now
        (Some(Err(_)), Some(Ok(_))) => asked.ask_old_again(clock)?,
        _ => {}
    }
    demand_gone(asked, fencing, fenced, clock)
}

/// Refuses to go on beside an old primary that lives.
fn demand_gone(
    asked: &Asked<'_>,
    fencing: Fencing,
    fenced: Option<Result<Fenced>>,
    clock: &Clock,
) -> Result<OldPrimary> {
    let system_identifier = catalog::primary()?.system_identifier;
    let mut gone = OldPrimary { fenced, lives: asked.upstream_lives(), unknown: asked.upstream_unknown() };
    let wait = if gone.own_has_ended() { Wait::Fenced } else { Wait::Unfenced };
    if !gone.is_fenced() {
        gone.lives = asked.old_lives(system_identifier).or(gone.lives);
    }
    // a directory that was fenced may not be that of the server which listens there
    gone.lives = gone.lives.or_else(|| asked.old_speaks());
    if gone.lives.is_none() {
        match asked.upstream_heard(wait, clock, AFTER)? {
            Verdict::Lives => {
                gone.lives = Some(format!(
                    "The server that this standby follows (primary_conninfo) lives: {}.",
                    upstream::HEARD
                ));
            }
            Verdict::Unknown(why) => {
                gone.unknown = gone.unknown.or(Some(format!(
                    "It is not known whether the server that this standby follows (primary_conninfo) lives: {why}."
                )));
            }
            Verdict::Silent => {}
        }
    }
    gone.demand_gone(fencing)?;
    if !gone.own_has_ended()
        && let Some(why) = asked.open_end(&own()?)?
    {
        let message = "this standby follows another standby: nothing is promoted";
        return Err(Error::new(Kind::WrongState, message)
            .detail(format!("Nobody tells whether the primary beyond that one (primary_conninfo) lives: {why}."))
            .hint("Promote that standby; or name it in \"nodes\" by host and port, so that it is asked what it follows; or name the primary, which is none of \"nodes\", as the old one."));
    }
    Ok(gone)
}

/// The last look before the promotion: the shutdown of the old primary has sent more WAL, perhaps not to all; another standby
/// may have been promoted; something may have started the old primary again. That one is stopped again.
fn look_again(
    asked: &mut Asked<'_>,
    fencing: Fencing,
    gone: OldPrimary,
    clock: &Clock,
) -> Result<OldPrimary> {
    asked.ask_last()?;
    demand_foremost(asked, clock)?;
    if fencing != Fencing::Off && asked.old_runs_as_primary(catalog::primary()?.system_identifier) {
        return fence(asked, fencing, clock);
    }
    demand_gone(asked, fencing, gone.fenced, clock)
}

fn stop_for_good(session: &mut DropAside<Session>, clock: &Clock) -> Result<Fenced> {
    let mut run = Run::quiet();
    let asker = asking_standby(&mut run)?;
    let by = format!("the standby in \"{}\", port {}", catalog::data_directory()?, catalog::own_port()?);
    let time = STOP.min(clock.left());
    let fast = u32::try_from(FAST.min(time).as_secs()).unwrap_or(0).max(1);
    let directory = session.target().directory.display().to_string();
    let (cancel, end) = (session.cancel().clone(), Instant::now() + time);
    let mut tick = || if Instant::now() < end { Ok(()) } else { Err(not_stopped(&directory, time)) };
    let fenced = threads::wait(&cancel, &mut tick, || session.fence(asker, by, fast))?;
    log::log(&match &fenced.stopped {
        Some(Stopped { mode, milliseconds, .. }) => format!(
            "pgpool_recovery: the old primary in \"{directory}\" was fenced ({}, {milliseconds} ms)",
            mode_name(*mode)
        ),
        None => format!("pgpool_recovery: the old primary in \"{directory}\" was not running and is fenced"),
    });
    Ok(fenced)
}

fn not_stopped(directory: &str, time: Duration) -> Error {
    let message = format!("the server in \"{directory}\" was not stopped within {} s", time.as_secs());
    Error::new(Kind::InUse, message).hint("See on its host whether it is stopping.")
}

/// What the report says of a fence.
fn told(fenced: &Result<Fenced>) -> Value {
    match fenced {
        Ok(Fenced { stopped, checkpoint, .. }) => json!({
            "fenced": true,
            "was_running": stopped.is_some(),
            "mode": stopped.as_ref().map(|stopped| mode_name(stopped.mode)),
            "seconds": stopped.as_ref().map_or(0.0, |stopped| stopped.milliseconds as f64 / 1000.0),
            "lsn": checkpoint.map(|checkpoint| checkpoint.to_string()),
        }),
        Err(error) => json!({ "fenced": false, "error": error.message, "detail": error.detail }),
    }
}

/// Waits until everything that is received by now is replayed. Fails when only `reserve` is left of the time.
fn await_replay(clock: &Clock, reserve: Duration) -> Result<()> {
    let received = catalog::replay()?.received.unwrap_or_default();
    let goes_on = || demand_replay_not_paused().map(|()| clock.left() > reserve);
    match missed(received, goes_on)? {
        None => Ok(()),
        Some(replayed) => Err(Error::new(Kind::WrongState, "this standby has not replayed all that it has received")
            .detail(format!("It has received WAL up to {received} and replayed it up to {replayed}."))
            .hint("A query here, or recovery_min_apply_delay, can hold replay up. Promote again when it is done; \"deadline\" is how long a call waits.")),
    }
}

/// Gives replay a moment for the old primary's last WAL. What is left PostgreSQL replays before it ends recovery: nobody is the
/// primary any more, so this refuses nothing.
fn settle(time: Duration) -> Result<()> {
    let end = Instant::now() + time;
    missed(catalog::replay()?.received.unwrap_or_default(), || Ok(Instant::now() < end)).map(drop)
}

/// How far replay has come, if it does not get to a position while `goes_on` says so. The end of what was received may be half a
/// record, which never is replayed.
fn missed(received: Lsn, goes_on: impl Fn() -> Result<bool>) -> Result<Option<Lsn>> {
    let mut idle_at = None;
    loop {
        let goes_on = recovery::goes_on() && goes_on()?;
        let (replay, (_, replayed)) = (catalog::replay()?, recovery::replayed());
        let is_idle = replay.waits_for_wal && idle_at == Some(replayed);
        if replayed >= received || is_idle || !recovery::goes_on() {
            return Ok(None);
        }
        if !goes_on {
            return Ok(Some(replayed));
        }
        idle_at = replay.waits_for_wal.then_some(replayed);
        threads::pause(LOOK);
    }
}

/// Ends the recovery.
fn become_primary(clock: &Clock) -> Result<()> {
    if recovery::goes_on() {
        catalog::request_promotion()?;
    }
    while recovery::goes_on() {
        clock.wait("the promotion").map_err(|error| {
            error.hint(
                "It was requested and goes on: see the log of this server, and call again to wait for it.",
            )
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_primary_is_known_or_not() {
        assert_eq!(Old::read(None, None, None), Ok(None));
        let text = |text: &str| Some(text.to_owned());
        let old = Old::read(text("db1"), text("/srv/data"), Some(5432)).expect("valid").expect("known");
        assert_eq!(old.name(), "the old primary (db1:5432)");
        for (host, directory, port, kind) in [
            (None, text("/srv"), Some(1), Kind::NullArgument),
            (text("db1"), None, Some(1), Kind::NullArgument),
            (text("db1"), text("/srv"), None, Kind::NullArgument),
            (text("a b"), text("/srv"), Some(1), Kind::InvalidArgument),
            (text("db1"), text("srv"), Some(1), Kind::InvalidArgument),
            (text("db1"), text("/srv"), Some(0), Kind::InvalidArgument),
        ] {
            assert_eq!(Old::read(host, directory, port).expect_err("refused").kind, kind);
        }
    }
}
