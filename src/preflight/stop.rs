//! Stopping the server of a target: before a recovery of it, or because that is all that is asked for. The order in which a
//! recovery does it is in `walk::stop_first`.

use std::path::Path;
use std::time::{Duration, Instant};

use pgdata::wal::Lsn;
use pgpool_recovery_core::compare::wal_map::Wal;
use pgpool_recovery_core::error::{Error, Kind, Result};
use pgpool_recovery_core::host::control;
use pgpool_recovery_core::preflight::Finding;
use pgpool_recovery_core::replication::naming;
use pgpool_recovery_core::replication::streaming::{self, Expected};
use pgpool_recovery_core::sender::Session;
use pgpool_recovery_core::sys::{FileId, machine};
use pgpool_recovery_core::wire::protocol::message::TargetInfo;
use pgpool_recovery_core::wire::protocol::stop::{Asker, Mode, Role, Stopped};

use crate::pg::{catalog, log, recovery, threads};
use crate::preflight::PrimaryFacts;
use crate::run::Run;
use crate::settings::Settings;

/// How long a walsender may take to notice that its standby has been stopped.
const WALSENDER: Duration = Duration::from_secs(10);

/// How often that is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// This server, as it asks for the end of another.
pub(crate) fn asker(run: &mut Run<'_>) -> Result<Asker> {
    let primary = catalog::primary()?;
    let timeline = primary.timeline;
    asker_on(primary, timeline, None, run)
}

/// This standby, as it asks for the end of the primary that it has followed.
pub(crate) fn asking_standby(run: &mut Run<'_>) -> Result<Asker> {
    let (timeline, replayed) = recovery::replayed();
    asker_on(catalog::primary()?, timeline, Some(replayed), run)
}

fn asker_on(
    primary: catalog::Primary,
    timeline: u32,
    replayed: Option<Lsn>,
    run: &mut Run<'_>,
) -> Result<Asker> {
    let directory = Path::new(&primary.data_directory);
    let metadata = std::fs::metadata(directory).map_err(Error::on_path("stat directory", directory))?;
    let (control, _) = control::read(directory)?;
    let wal_directory = directory.join("pg_wal");
    let wal = Wal::new(&wal_directory, &control);
    let history = wal.lineage(timeline)?;
    let pasts = run.blocking(|cancel| match replayed {
        Some(to) => wal.pasts_of_standby(&history, to, cancel),
        None => wal.pasts(&history, cancel),
    })?;
    Ok(Asker {
        system_identifier: primary.system_identifier,
        pasts,
        history,
        identity: FileId::from(&metadata),
        boot_id: machine::boot_id(),
    })
}

/// What the walsender that serves a target is known by.
pub(crate) fn expected(target: &TargetInfo) -> Result<Expected> {
    let standby = target.standby.clone().unwrap_or_default();
    Ok(Expected {
        port: catalog::own_port()?,
        slot_name: standby.slot_name.filter(|slot| !slot.is_empty()),
        // the walreceiver's own default, where nothing else is set
        application_name: naming::shown_application_name(
            standby.application_name.as_deref().filter(|name| !name.is_empty()).unwrap_or("walreceiver"),
            catalog::major_version()?,
        ),
    })
}

/// Stops the server in the directory of a session that looks, if one runs there, and says so.
pub(crate) fn stop(
    session: &mut Session,
    settings: &Settings,
    (host, directory): (&str, &str),
    run: &mut Run<'_>,
) -> Result<Option<Stopped>> {
    let asker = asker(run)?;
    let timeout = u32::try_from(settings.stop_timeout.as_secs()).unwrap_or(u32::MAX);
    let stopped = run.blocking(|_| session.stop(asker, timeout))?;
    if let Some(stopped) = &stopped {
        let Stopped { role, mode, milliseconds } = stopped;
        let text = format!(
            "pgpool_recovery: the server in \"{directory}\" on host \"{host}\", {}, was stopped ({}, {milliseconds} ms)",
            described(*role),
            mode_name(*mode),
        );
        log::log(&text);
        log::notice(&text);
    }
    Ok(stopped)
}

const fn described(role: Role) -> &'static str {
    match role {
        Role::Standby => "a standby",
        Role::FormerPrimary => "a primary that was replaced",
        Role::OwnPrimary => "the primary that this standby followed",
    }
}

/// As pg_ctl calls it.
pub(crate) const fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::Fast => "fast",
        Mode::Immediate => "immediate",
    }
}

impl PrimaryFacts {
    /// Whether a bad answer about this server may be due to the target's own server, which is going to be stopped.
    pub(super) fn may_be_due_to_target(&self, finding: &Finding) -> bool {
        let is_in_use = finding.answer.as_ref().is_err_and(|error| match error.kind {
            Kind::InUse => finding.step == "replication_slot",
            Kind::LimitExceeded => finding.step == "wal_senders",
            _ => false,
        });
        self.settings.stop_target && is_in_use
    }

    /// Such an answer, once the target is known: good if it is proved that the target's own server is the reason.
    pub(super) fn due_to_target(
        &self,
        finding: Finding,
        session: &mut Session,
        target: &TargetInfo,
        run: &mut Run<'_>,
    ) -> Result<Finding> {
        if target.running.is_none() {
            return Ok(finding);
        }
        // asked first: a connection is then never older than the walreceiver that made it
        let walsenders = catalog::walsenders()?;
        let (walreceiver, _) = run.blocking(|_| session.walreceiver())?;
        let Ok(own) = streaming::find_walsender(&walsenders, &expected(target)?, walreceiver.as_ref()) else {
            return Ok(finding);
        };
        let is_reason = finding.step != "replication_slot" || own.slot_name.as_ref() == Some(&self.slot_name);
        if !is_reason {
            return Ok(finding);
        }
        let answer =
            format!("in use by the target itself (process {} here), whose server is stopped first", own.pid);
        Ok(Finding::new(finding.step, Ok(answer)))
    }

    /// Waits until the walsender of a server that was stopped has gone: it may hold the slot that the standby is going to use.
    pub(super) fn await_walsender(&self) -> Result<()> {
        let end = Instant::now() + WALSENDER;
        loop {
            let used = u32::try_from(catalog::walsenders()?.len()).unwrap_or(u32::MAX);
            match self.replication_slot()?.and(self.wal_senders(used)) {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() >= end => return Err(error),
                Err(_) => threads::pause(LOOK),
            }
        }
    }

    /// Of a target that is only looked at: whether its server could be stopped, if that is what a recovery would do.
    pub(super) fn could_be_stopped(
        &self,
        session: &mut Session,
        target: &TargetInfo,
        run: &mut Run<'_>,
    ) -> Option<Finding> {
        if !self.settings.stop_target || target.running.is_none() {
            return None;
        }
        let may_stop = asker(run).and_then(|asker| run.blocking(|_| session.may_stop(asker)));
        let answer = may_stop.map(|role| match role {
            Some(role) => format!("{} runs there, which a recovery stops first", described(role)),
            None => "no server is running there".to_owned(),
        });
        Some(Finding::new("target_stopped", answer))
    }
}
