//! A first stage, step by step. docs/safety.md (S1 to S11) gives the reasons for the order, docs/architecture.md is the
//! map of what it calls.

use std::cell::RefCell;
use std::sync::Arc;

use pgpool_recovery_core::error::{Error, Kind, Result};
use pgpool_recovery_core::host::control;
use pgpool_recovery_core::manifest::dropped::Directories;
use pgpool_recovery_core::preflight::BACKUP_LABEL;
use pgpool_recovery_core::progress::{Phase, Progress};
use pgpool_recovery_core::sender::state::{Begun, Reconciled};
use pgpool_recovery_core::sender::{Session, WalPositions};
use pgpool_recovery_core::sys::size::pretty;
use pgpool_recovery_core::wire::protocol::message::Purpose;
use serde_json::Value;

use crate::commands::legacy_call::NATIVE;
use crate::commands::{dry_run, remote_start, script};
use crate::final_files::final_files;
use crate::history::{History, Recording};
use crate::pg::backup::Backup;
use crate::pg::raised::{self, Raised};
use crate::pg::slot::Slot;
use crate::pg::{cleanup, log};
use crate::plan;
use crate::preflight::PrimaryFacts;
use crate::preflight::one_host::{self, Tablespaces};
use crate::preflight::{self, Ready, authority};
use crate::report::Report;
use crate::retry::{self, Retry};
use crate::run::Run;
use crate::settings::Settings;
use crate::settings::request::Request;
use crate::unchanged::Unchanged;

/// What `pgpool_recovery_1st_stage` does: a dry run if the options ask for one.
pub(crate) fn first_stage_or_dry_run(request: Request, settings: Settings) -> Result<Value> {
    if settings.native {
        authority::demand_superuser_to_promote(&settings, NATIVE)?;
        if !settings.dry_run {
            let message = "option \"native\" is one of a check or a dry run";
            return Err(Error::new(Kind::InvalidArgument, message).hint(format!(
                "Pgpool-II calls the two stages itself: set recovery_1st_stage_command = '{NATIVE}' in pgpool.conf."
            )));
        }
    }
    if settings.dry_run {
        return dry_run::dry_run(request, settings);
    }
    script::forget(&request.dest_host, &request.dest_dir);
    first_stage(request, settings)
}

/// Rebuilds the target as this primary's standby; returns the report.
pub(crate) fn first_stage(request: Request, settings: Settings) -> Result<Value> {
    let (host, directory) = (request.dest_host.clone(), request.dest_dir.clone());
    let start_after = settings.start.then(|| settings.clone());
    let history = History::of_this_server()?;
    let progress = Arc::new(Progress::default());
    let recording = history.begin(&host, &directory, Arc::clone(&progress));
    let raised = RefCell::new(None::<Error>);
    let _unwound = cleanup::while_unwinding("log the end of the recovery", || {
        let end = match &*raised.borrow() {
            Some(error) if error.kind != Kind::Canceled => format!("failed: {}", error.message),
            _ => "was interrupted".to_owned(),
        };
        log::log(&format!("pgpool_recovery: recovery of \"{directory}\" on host \"{host}\" {end}"));
    });
    let note = |error: Raised| {
        raised.replace(Some(error.error()));
        recording.raise(error);
    };
    let done = raised::noting(|| rebuild_patiently(&request, &settings, progress, &recording), note);
    if let Err(error) = &done {
        let message = format!(
            "pgpool_recovery: recovery of \"{directory}\" on host \"{host}\" failed: {}",
            error.message
        );
        log::log_detail(&message, error.detail.as_deref(), error.hint.as_deref());
    }
    recording.finish(done.as_ref().map(drop).map_err(Clone::clone));
    if let (Ok(_), Some(settings)) = (&done, start_after) {
        remote_start::remote_start(&host, &directory, settings)?;
    }
    done
}

/// Rebuilds the target, in another attempt if its host is lost meanwhile.
///
/// Each attempt looks at everything again and has a backup of its own: what the last one has sent is equal by now, and its WAL is
/// not needed any more (docs/decisions/2026-11-30-a-retry-has-its-own-backup.md).
fn rebuild_patiently(
    request: &Request,
    settings: &Settings,
    progress: Arc<Progress>,
    recording: &Recording<'_>,
) -> Result<Value> {
    let mut run = Run::watched(progress, Some(recording));
    let mut report = Report::start(&run);
    let mut retry = Retry::new(settings.retry_for);
    loop {
        let mut is_reached = false;
        let attempt = Attempt { run: &mut run, report: &mut report, recording, is_reached: &mut is_reached };
        let error = match rebuild(request.clone(), settings.clone(), attempt) {
            Err(error) => error,
            done => return done,
        };
        let pause = retry.after(&error, is_reached, run.progress().done())?;
        let what = format!("the recovery of \"{}\" on host \"{}\"", request.dest_dir, request.dest_host);
        retry::tell(&what, &error, is_reached);
        recording.lost(error);
        run.next_attempt();
        run.pause(pause)?;
        if let Some((times, lost)) = retry.lost() {
            report.next_attempt(lost, times);
        }
    }
}

/// What an attempt gets.
struct Attempt<'a, 'b> {
    run: &'a mut Run<'b>,
    report: &'a mut Report,
    recording: &'a Recording<'b>,
    /// Set when the target was reached and may be replaced.
    is_reached: &'a mut bool,
}

/// Starts the backup and reserves its WAL, so that the standby finds all of it (S8). The slot comes second: an older
/// one, or one reserved from an earlier checkpoint, could be beyond max_slot_wal_keep_size when the backup's own
/// checkpoint looks at it, which would terminate this session.
fn start_backup(facts: &PrimaryFacts) -> Result<(Option<Slot>, Backup)> {
    let start = || Backup::start(BACKUP_LABEL, !facts.settings.wait_for_checkpoint);
    let backup = start()?;
    if facts.slot_name.is_empty() {
        return Ok((None, backup));
    }
    let mut slot = Slot::reserve(&facts.slot_name, backup.start_lsn)?;
    if slot.reserves_from_start() {
        return Ok((Some(slot), backup));
    }
    // another checkpoint came in between: the slot reserves from there, and the next backup starts after it
    drop(backup);
    let backup = start()?;
    slot.begin_at(backup.start_lsn);
    Ok((Some(slot), backup))
}

fn rebuild(request: Request, settings: Settings, attempt: Attempt<'_, '_>) -> Result<Value> {
    let Attempt { run, report, recording, is_reached } = attempt;

    // Is this a primary that can have a standby, and a target that may be replaced?
    let Ready { facts, session, target, replication, connector: _connector, warnings } =
        preflight::run(request, settings, Purpose::Recover, run)?;
    let replication = replication?;
    *is_reached = true;
    report.warn(warnings);
    let dir = &facts.request.dest_dir;
    recording.set_strategy(facts.transport(), facts.strategy(&target).name());
    report.lap("preflight");
    log::log(&format!(
        "pgpool_recovery: recovery of \"{dir}\" on host \"{}\" begins ({}, {})",
        facts.request.dest_host,
        facts.transport(),
        facts.strategy(&target).name(),
    ));

    let (session, unchanged) = Unchanged::prove(&facts, &target, session, run)?;
    report.lap("wal_map");

    // what is created from here on is in the WAL that the standby replays
    let tablespaces = Tablespaces::now(&facts, &target)?;

    // a slot keeps WAL from here on
    run.guard(one_host::wal_space(&facts)?);
    run.enter(Phase::WaitCheckpoint);
    let (slot, backup) = start_backup(&facts)?;
    let start_lsn = backup.start_lsn;
    report.lap("backup_start");

    let (unchanged, skip) = unchanged.complete(Some(start_lsn), slot.as_ref(), run)?;
    if let Some(message) = unchanged.notice() {
        log::log(&format!("pgpool_recovery: \"{dir}\": {message}"));
        log::notice(&format!("pgpool_recovery: {message}"));
    }

    // From here on what is read counts (S4). Until `begin` nothing changes on the target.
    run.enter(Phase::EstimateSize);
    let (plan, header) = plan::plan(&facts, &target, slot.as_ref(), run)?;
    report.plan(&plan);
    run.tablespaces(plan.tablespaces.len() + 1);
    log::log(&format!(
        "pgpool_recovery: backup for \"{dir}\" started at {}, comparing {} files, {}",
        start_lsn,
        plan.files.len(),
        pretty(plan.bytes()),
    ));
    let marker = plan::marker(&facts);
    let positions = Arc::new(WalPositions::default());
    let wal = plan::wal(&facts, start_lsn, Arc::clone(&positions))?;
    let own = Directories::of(&facts.data_directory, &plan);
    let (session, shared) = run.step(session, slot.as_ref(), |session: Session| {
        let (session, planned) = session.propose(plan, header.clone())?;
        facts.demand_other_locations(&target, &planned.locations, &own)?;
        let locations = planned.demand()?;
        let shared = one_host::shared_space(&facts, &target, &locations)?;
        Ok((session.begin(marker, wal)?, shared))
    })?;
    run.guard(shared);
    if let Some(slot) = &slot {
        slot.forget_older();
    }
    run.send_wal(Arc::clone(&positions));
    report.lap("scan");

    // Data: compared and sent by parallel streams, and WAL beside it as it is flushed; then sizes are set and what is surplus
    // goes.
    run.enter(Phase::Stream);
    let options = plan::transfer_options(&facts, start_lsn);
    let (session, (reconciliation, skipped)) =
        run.step(session, slot.as_ref(), |session: Session<Begun>| {
            let (session, skipped) = session.send_data(&facts.data_directory, options, skip)?;
            // before anything is removed that was not found
            own.demand_mounted()?;
            let (session, reconciliation) = session.reconcile()?;
            Ok((session, (reconciliation, skipped)))
        })?;
    if let Some(contradiction) = report.unchanged(&unchanged, skipped.as_ref()) {
        log::warning(&format!("pgpool_recovery: \"{dir}\": {contradiction}"));
    }
    recording.set_contradicted(unchanged.is_contradicted(skipped.as_ref()));
    run.data_done(header.tablespaces.len() + 1);
    log::log(&format!(
        "pgpool_recovery: data of \"{dir}\" is there, {} of {} sent, {} files removed",
        pretty(run.progress().sent()),
        pretty(run.progress().total()),
        reconciliation.removed,
    ));
    report.reconciled(reconciliation);
    report.lap("data");

    // pg_control is read after the last data byte, and only then may the backup end (S4).
    let (_, control) = control::read(&facts.data_directory)?;
    run.enter(Phase::WaitWalArchive);
    let stop = backup.stop()?;
    // before this thread looks again how far the server is: it may have gone on into the next segment
    session.end_wal(stop.stop_lsn);
    report.lap("backup_stop");

    // WAL, the standby's own files, durability, and pg_control last of all (S2, S10).
    run.enter(Phase::TransferWal);
    let histories = plan::histories(&facts)?;
    let puts = final_files(&facts, &target, &replication, &header, histories, &stop, control)?;
    let (_finished, warnings) = run.step(session, slot.as_ref(), |session: Session<Reconciled>| {
        let session = session.complete_wal()?;
        tablespaces.demand_unchanged()?;
        session.finish(&puts)
    })?;
    report.warn(warnings);
    if let Some(slot) = slot {
        // the standby has all WAL before that
        slot.follow(positions.durable(), positions.flushed())?;
        slot.keep()?;
    }
    if let Some(warning) = facts.former_slot(&target)? {
        log::log(&format!("pgpool_recovery: {warning}"));
        report.warn(vec![warning]);
    }
    report.lap("finish");
    let done = report.of_run(&facts, &target, start_lsn, stop.stop_lsn);
    log::log(&format!(
        "pgpool_recovery: recovery of \"{dir}\" is complete at {}, durable, in {} ms",
        stop.stop_lsn,
        report.total_ms(),
    ));
    Ok(done)
}
