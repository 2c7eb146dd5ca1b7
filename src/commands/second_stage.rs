//! The two stages of Pgpool-II's native replication and snapshot isolation modes, in which every node is a server of its own.
//!
//! The first makes a standby and lets it catch up while clients write. The second is called when Pgpool-II has let its clients
//! go: nobody writes, so the standby can get all there is, and is promoted beside this server, which lives on (S11). Whatever
//! refuses does so before that. Afterwards only a transaction that was not expected is an error.

use std::cell::RefCell;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pgdata::wal::Lsn;
use pgpool_recovery_core::error::{Error, Kind, Result};
use pgpool_recovery_core::host::second_stage::demand_promotable;
use pgpool_recovery_core::replication::streaming::{self, Expected, Walsender};
use pgpool_recovery_core::sender::Session;
use pgpool_recovery_core::wire::protocol::describe::{Description, Said};
use pgpool_recovery_core::wire::protocol::second_stage::{Promote, Promoted};
use pgpool_recovery_core::wire::protocol::stop::Asker;

use crate::commands::clock::{Clock, LOOK};
use crate::commands::first_stage;
use crate::commands::remote_start::Wait;
use crate::history::{History, Stage};
use crate::pg::raised::{self, Raised};
use crate::pg::threads::{self, DropAside};
use crate::pg::{backup, catalog, cleanup, log, recovery, sequences, slot, wal};
use crate::preflight::{reach, stop};
use crate::run::Run;
use crate::settings::Settings;
use crate::settings::request::Request;

/// What a promotion has at least, whatever has been used up before.
const LEAST: Duration = Duration::from_secs(10);

/// How long the walsender of a standby that was promoted may take to go.
const WALSENDER: Duration = Duration::from_secs(10);

/// The restore point up to which the standby must have replayed.
const RESTORE_POINT: &str = "pgpool_recovery_2nd_stage";

/// Makes a standby that is going to be promoted, starts it, and waits until it has caught up.
pub(crate) fn first_stage(request: Request, settings: Settings) -> Result<()> {
    let (host, directory) = (request.dest_host.clone(), request.dest_dir.clone());
    if stands(&host, &directory, &settings) {
        log::notice(&is_there(&directory));
    } else {
        // the slot keeps what the standby needs; an archive may hold the timeline of the server that it was before
        let settings = Settings { start: true, restore_command: String::new(), ..settings.clone() };
        first_stage::first_stage(request, settings)?;
    }
    catch_up(&host, &directory, &settings)
}

/// What is said of a target that [`stands`].
pub(super) fn is_there(directory: &str) -> String {
    format!(
        "the standby in \"{directory}\" was made by an earlier first stage and streams from this server: nothing is copied"
    )
}

/// Whether the target is what an earlier first stage has made, and streams from this server. What cannot be told a first stage
/// says better.
pub(super) fn stands(host: &str, directory: &str, settings: &Settings) -> bool {
    if recovery::goes_on() {
        return false;
    }
    let look = || -> Result<bool> {
        let mut run = Run::quiet();
        let mut standby = Standby::open(host, directory, settings, &mut run)?;
        if standby.session.target().running.is_none() {
            return Ok(false);
        }
        standby.demand_promotable(Lsn::default(), &mut run)?;
        Ok(standby.walsender(&mut run)?.is_ok_and(|walsender| walsender.is_streaming()))
    };
    raised::caught(look).unwrap_or(false)
}

/// Waits until the standby has replayed what there is now: what is left for the second stage, in which clients wait, is little.
fn catch_up(host: &str, directory: &str, settings: &Settings) -> Result<()> {
    let mut run = Run::quiet();
    let mut standby = Standby::open(host, directory, settings, &mut run)?;
    let end = backup::flushed();
    let mut wait = Wait::new(settings.start_timeout);
    loop {
        let why = match standby.walsender(&mut run)? {
            Ok(walsender) => {
                let replayed = walsender.replayed.unwrap_or_default();
                if replayed >= end {
                    return Ok(());
                }
                wait.progress(replayed.to_string());
                format!("It has replayed up to {replayed} of {end}.")
            }
            Err(why) => why,
        };
        if wait.is_over() {
            let message = format!("the standby in \"{directory}\" does not catch up with this primary");
            return Err(Error::new(Kind::StartFailed, message).detail(why).hint(
                "See its log: a query there, or recovery_min_apply_delay, can hold replay up. Then run the recovery again: it is not copied a second time.",
            ));
        }
        threads::pause(LOOK);
    }
}

/// Makes a server of its own of the standby that the first stage has made.
pub(crate) fn second_stage(host: &str, directory: &str, settings: &Settings) -> Result<()> {
    let history = History::of_this_server()?;
    let recording = history.begin_stage(Stage::Second, host, directory, Arc::default());
    let raised = RefCell::new(None::<Error>);
    let story =
        |end: &str| format!("pgpool_recovery: second stage of \"{directory}\" on host \"{host}\" {end}");
    let _unwound = cleanup::while_unwinding("log the end of the second stage", || {
        let end = match &*raised.borrow() {
            Some(error) if error.kind != Kind::Canceled => format!("failed: {}", error.message),
            _ => "was interrupted".to_owned(),
        };
        log::log(&story(&end));
    });
    let note = |error: Raised| {
        raised.replace(Some(error.error()));
        recording.raise(error);
    };
    log::log(&story("begins"));
    let begin = Instant::now();
    match raised::noting(|| promote(host, directory, settings), note) {
        Ok(timeline) => {
            log::log(&story(&format!(
                "is complete: a server of its own, on timeline {timeline}, in {} ms",
                begin.elapsed().as_millis()
            )));
            recording.promoted(timeline);
            Ok(())
        }
        Err(error) => {
            log::log_detail(
                &story(&format!("failed: {}", error.message)),
                error.detail.as_deref(),
                error.hint.as_deref(),
            );
            recording.finish(Err(error.clone()));
            Err(error)
        }
    }
}

fn promote(host: &str, directory: &str, settings: &Settings) -> Result<u32> {
    if recovery::goes_on() {
        return Err(Error::new(Kind::WrongState, "this server is a standby: nothing is promoted beside it")
            .detail("Recovery is in progress here.")
            .hint("The second stage is called where the first was: on the node that Pgpool-II calls main."));
    }
    let mut run = Run::quiet();
    let clock = Clock::new(settings.deadline);
    let mut standby = Standby::open(host, directory, settings, &mut run)?;
    standby.demand_promotable(Lsn::default(), &mut run)?;
    let walsender = standby.walsender(&mut run)?.map_err(|why| standby.not_ours(&why))?;
    warn_of_subscriptions()?;
    let Still { end, next } = still(&mut standby, &clock, &mut run)?;
    let timeout = u32::try_from(clock.left().max(LEAST).as_secs()).unwrap_or(u32::MAX);
    let wanted = Promote { asker: standby.asker.clone(), replayed: end, timeout };
    // the last look: from here on the standby goes its own way
    if wal::next_transaction() != next {
        return Err(restless(&clock, None));
    }
    let Promoted { timeline, warnings } = run.blocking(|_| standby.session.promote(wanted))?;
    for warning in warnings {
        warn(&warning);
    }
    if let Some(slot) = &walsender.slot_name {
        drop_slot(slot);
    }
    if wal::next_transaction() != next {
        return Err(Error::new(Kind::WrongState, "a transaction began on this server while the standby was promoted")
            .detail(format!("The server in \"{directory}\" may lack what it wrote, and is not to be attached: it runs as a server of its own, on timeline {timeline}."))
            .hint("Stop it, see that nobody writes to this server beside Pgpool-II, and run the recovery again."));
    }
    Ok(timeline)
}

/// A standby of this server, and what it is known by.
struct Standby {
    session: DropAside<Session>,
    directory: String,
    asker: Asker,
    expected: Expected,
}

impl Standby {
    fn open(host: &str, directory: &str, settings: &Settings, run: &mut Run<'_>) -> Result<Self> {
        let (transport, reach) = (settings.transport, settings.reach()?);
        let is_local = run.blocking(|cancel| reach::is_local(host, transport, &reach, directory, cancel))?;
        let session = reach::look(host, Path::new(directory), is_local, settings, run)?;
        let expected = stop::expected(session.target())?;
        Ok(Self { session, directory: directory.to_owned(), asker: stop::asker(run)?, expected })
    }

    /// Refuses what is not a standby that was made to be promoted, or has not replayed up to `replayed`.
    fn demand_promotable(&mut self, replayed: Lsn, run: &mut Run<'_>) -> Result<()> {
        if self.session.target().running.is_none() {
            let message = format!("no server is running in \"{}\": nothing is promoted", self.directory);
            return Err(Error::new(Kind::WrongState, message)
                .detail("A second stage promotes the standby that the first stage has made and started.")
                .hint("Run the recovery from its first stage, with recovery_1st_stage_command = 'pgpool_recovery_1st_stage_native' in pgpool.conf."));
        }
        let found = run.blocking(|_| self.session.describe())?;
        demand_promotable(&found, &self.asker, replayed, Path::new(&self.directory))
    }

    /// The walsender that serves the standby, or why none is proved to.
    fn walsender(&mut self, run: &mut Run<'_>) -> Result<std::result::Result<Walsender, String>> {
        let walsenders = catalog::walsenders()?;
        // Asked after the walsenders: a connection is then never older than the walreceiver that made it.
        let (walreceiver, _) = run.blocking(|_| self.session.walreceiver())?;
        Ok(streaming::find_walsender(&walsenders, &self.expected, walreceiver.as_ref()).cloned())
    }

    fn not_ours(&self, why: &str) -> Error {
        let message = format!("the server in \"{}\" is no standby of this one", self.directory);
        Error::new(Kind::TargetRefused, message)
            .detail(why.to_owned())
            .hint("Was there a failover between the stages? Stop that server, and run the recovery again from its first stage.")
    }
}

/// The error of a server on which transactions go on.
fn restless(clock: &Clock, who: Option<String>) -> Error {
    let message = "transactions go on on this server: nothing is promoted";
    let who = who.unwrap_or_else(|| "New transactions begin again and again.".to_owned());
    Error::new(Kind::WrongState, message)
        .detail(format!("{who} The second stage waits up to {} s for a moment without.", clock.seconds()))
        .hint("See that nobody writes beside Pgpool-II, end what goes on (pg_stat_activity, pg_prepared_xacts), and run the recovery again.")
}

/// A moment after which nothing has been written.
struct Still {
    /// Where the WAL ends that the standby must have, and has.
    end: Lsn,
    /// The number that the next transaction gets, if one begins after all.
    next: u64,
}

/// Flushes sequences and waits until the standby has all; once more if a transaction began meanwhile.
fn still(standby: &mut Standby, clock: &Clock, run: &mut Run<'_>) -> Result<Still> {
    let mut has_warned = false;
    loop {
        await_no_transaction(clock)?;
        let next = wal::next_transaction();
        // To flush takes a number, too: only a look that finds nothing to flush shows that nobody used a sequence after its turn.
        if flush_sequences(&mut has_warned)? == 0 && wal::next_transaction() == next {
            // one that has its number already has it from before
            await_no_transaction(clock)?;
            let end = wal::flush_to_restore_point(RESTORE_POINT)?;
            if await_replay(standby, end, next, clock, run)? && wal::next_transaction() == next {
                return Ok(Still { end, next });
            }
        }
        if clock.left().is_zero() {
            return Err(restless(clock, None));
        }
    }
}

fn await_no_transaction(clock: &Clock) -> Result<()> {
    while let Some(who) = catalog::open_transaction()? {
        if clock.left().is_zero() {
            return Err(restless(clock, Some(who)));
        }
        threads::pause(LOOK);
    }
    Ok(())
}

/// Flushes the sequences of every database exactly. Returns of how many WAL had a later value.
fn flush_sequences(has_warned: &mut bool) -> Result<u64> {
    let mut all = 0;
    for database in catalog::databases()? {
        let flushed = sequences::flush(&database)?;
        all += flushed.sequences;
        if flushed.sequences > 0 {
            let (count, name) = (flushed.sequences, &database.name);
            log::log(&format!("pgpool_recovery: {count} sequences of database \"{name}\" were flushed"));
        }
        if flushed.unlogged > 0 && !*has_warned {
            *has_warned = true;
            warn(&format!(
                "database \"{}\" has unlogged relations ({}): they are empty on the node that is recovered",
                database.name, flushed.unlogged
            ));
        }
    }
    Ok(all)
}

/// Waits until the standby has replayed up to `end`. False if a transaction began meanwhile.
fn await_replay(
    standby: &mut Standby,
    end: Lsn,
    next: u64,
    clock: &Clock,
    run: &mut Run<'_>,
) -> Result<bool> {
    loop {
        let why = match standby.walsender(run)? {
            Ok(walsender) if walsender.replayed.is_some_and(|replayed| replayed >= end) => return Ok(true),
            Ok(walsender) => {
                let replayed = walsender.replayed.unwrap_or_default();
                format!("It has replayed up to {replayed}, as far as is known here, of {end}.")
            }
            Err(why) => why,
        };
        if wal::next_transaction() != next {
            return Ok(false);
        }
        if clock.left().is_zero() {
            // it knows more of it
            standby.demand_promotable(end, run)?;
            let message = format!("the standby in \"{}\" has not replayed all in time", standby.directory);
            return Err(Error::new(Kind::WrongState, message)
                .detail(why)
                .hint("See its log, then run the recovery again; pgpool_recovery.deadline is how long a second stage waits."));
        }
        threads::pause(LOOK);
    }
}

fn warn_of_subscriptions() -> Result<()> {
    let count = catalog::enabled_subscriptions()?;
    if count > 0 {
        warn(&format!(
            "this server has {count} enabled subscriptions: the node that is recovered gets them, too, and receives the same changes a second time"
        ));
    }
    Ok(())
}

fn warn(text: &str) {
    log::warning(&format!("pgpool_recovery: {text}"));
}

/// Drops the slot that nothing uses any more. That it stays is no reason to refuse the node.
fn drop_slot(name: &str) {
    let end = Instant::now() + WALSENDER;
    loop {
        slot::drop_idle(name);
        match catalog::slot(name) {
            Ok(None) => return,
            _ if Instant::now() < end => threads::pause(LOOK),
            _ => break,
        }
    }
    warn(&format!(
        "replication slot \"{name}\" could not be dropped and retains WAL: drop it with SELECT pg_drop_replication_slot('{name}')"
    ));
}

/// Refuses a target that a second stage has made a server of its own, unless it still is one and runs.
pub(crate) fn demand_runs(session: &mut Session, timeline: u32, run: &mut Run<'_>) -> Result<()> {
    let directory = session.target().directory.display().to_string();
    let failed = |why: &str| {
        let message = format!("the server in \"{directory}\" is not what the second stage has made of it");
        Error::new(Kind::StartFailed, message).detail(why.to_owned()).hint(
            "See its log. If it is to be a server of its own, start it there; otherwise run the recovery again.",
        )
    };
    if session.target().running.is_none() {
        return Err(failed("It was promoted, and does not run any more."));
    }
    let Description { said, control, .. } = run.blocking(|_| session.describe())?;
    let said = said.transpose()?;
    if control.system_identifier != catalog::primary()?.system_identifier {
        return Err(failed("It belongs to another cluster."));
    }
    match said {
        Some(Said { in_recovery: false, timeline: found, .. }) if found == timeline => {
            log::log(&format!(
                "pgpool_recovery: the server in \"{directory}\" runs on its own timeline {timeline}, as the second stage has left it"
            ));
            Ok(())
        }
        Some(Said { timeline: found, .. }) => {
            Err(failed(&format!("It was promoted to timeline {timeline}, and is on timeline {found}.")))
        }
        None => Err(failed("It was promoted, and does not run any more.")),
    }
}
