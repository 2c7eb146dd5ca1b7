//! Stopping the server of a target: before a recovery of it, or because that is all that is asked for.

use std::path::Path;

use pgpool_recovery_core::compare::wal_map::Wal;
use pgpool_recovery_core::error::{Error, Result};
use pgpool_recovery_core::host::control;
use pgpool_recovery_core::preflight::Finding;
use pgpool_recovery_core::sender::Session;
use pgpool_recovery_core::sys::{FileId, machine};
use pgpool_recovery_core::wire::protocol::message::TargetInfo;
use pgpool_recovery_core::wire::protocol::stop::{Asker, Mode, Role, Stopped};

use crate::pg::{catalog, log};
use crate::preflight::PrimaryFacts;
use crate::preflight::reach;
use crate::run::Run;
use crate::settings::Settings;

/// This server, as it asks for the end of another.
fn asker(run: &mut Run<'_>) -> Result<Asker> {
    let primary = catalog::primary()?;
    let directory = Path::new(&primary.data_directory);
    let metadata = std::fs::metadata(directory).map_err(Error::on_path("stat directory", directory))?;
    let (control, _) = control::read(directory)?;
    let wal_directory = directory.join("pg_wal");
    let wal = Wal::new(&wal_directory, &control);
    let history = wal.lineage(primary.timeline)?;
    Ok(Asker {
        system_identifier: primary.system_identifier,
        pasts: run.blocking(|cancel| wal.pasts(&history, cancel))?,
        history,
        identity: FileId::from(&metadata),
        boot_id: machine::boot_id(),
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
    }
}

/// As pg_ctl calls it.
const fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::Fast => "fast",
        Mode::Immediate => "immediate",
    }
}

impl PrimaryFacts {
    /// Stops the target's server before a recovery opens its directory, if that is wanted.
    pub(super) fn stop_target(&self) -> Result<()> {
        if !self.settings.stop_target {
            return Ok(());
        }
        // the end of a session ends its run
        let mut run = Run::quiet();
        let (host, directory) = (&self.request.dest_host, &self.request.dest_dir);
        let mut session = reach::look(host, Path::new(directory), self.is_local, &self.settings, &mut run)?;
        stop(&mut session, &self.settings, (host, directory), &mut run).map(drop)
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
