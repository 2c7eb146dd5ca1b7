//! `pgpool_remote_start`: starts the standby and waits until it streams from this primary (S10).

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pgpool_recovery_core::cancel::Cancel;
use pgpool_recovery_core::error::{Error, Kind, Result};
use pgpool_recovery_core::local::LocalConnector;
use pgpool_recovery_core::protocol::message::{Purpose, Standby};
use pgpool_recovery_core::sender::Session;

use crate::one_host;
use crate::outcomes::{Entry, Memory, Outcome};
use crate::pg::threads::DropAside;
use crate::pg::{catalog, log, threads};
use crate::preflight;
use crate::settings::Settings;

/// How often replication is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// Starts the standby in `directory` on `host`. Succeeds if it runs and streams already.
pub(crate) fn remote_start(host: &str, directory: &str, settings: Settings) -> Result<()> {
    if let Some(failure) = Memory::of_this_server()?.recall(host, directory).as_ref().and_then(failure) {
        return Err(failure);
    }
    let started = Instant::now();
    let cancel = Cancel::new();
    let tick = &mut || Ok(());
    let is_local = || preflight::is_local(host, settings.transport, &cancel);
    let is_local = threads::wait(&cancel, tick, is_local)?;
    let local = if is_local {
        Some(LocalConnector::new(catalog::bin_directory()?.into(), catalog::data_directory()?.into()))
    } else {
        None
    };
    let connector = preflight::connector(host, &settings, local, Arc::default())?;
    let open =
        || Session::open(connector, Path::new(directory), Purpose::Look, Vec::new(), Arc::default(), &cancel);
    let mut session = DropAside::new(threads::wait(&cancel, tick, open)?);
    one_host::demand_own_tablespaces(Path::new(&catalog::data_directory()?), session.target())?;
    let standby = session.target().standby.clone().unwrap_or_default();
    let timeout = u32::try_from(settings.start_timeout.as_secs()).unwrap_or(u32::MAX);
    let launched = threads::wait(&cancel, tick, || session.start(timeout))?;
    let deadline = started + settings.start_timeout;
    while !streams(&standby)? {
        if Instant::now() >= deadline {
            let lines = threads::wait(&cancel, tick, || session.log_tail())?;
            return Err(not_streaming(directory, &settings, &lines));
        }
        threads::pause(LOOK);
    }
    let how = if launched { "was started" } else { "ran already" };
    log::log(&format!(
        "pgpool_recovery: the standby in \"{directory}\" on host \"{host}\" {how} and streams from this primary"
    ));
    Ok(())
}

/// A first stage that failed is why the start must: Pgpool-II shows this error, not that one.
fn failure(last: &Entry) -> Option<Error> {
    let directory = &last.directory;
    if let Some(worker) = last.other_worker() {
        return Some(
            Error::new(Kind::InUse, format!("a recovery of \"{directory}\" is running"))
                .detail(format!("Process {} works on it.", worker.pid))
                .hint("Wait until it ends; the view pgpool_recovery_status shows it."),
        );
    }
    match last.outcome.clone() {
        Outcome::Succeeded => None,
        Outcome::Failed { error } => Some(Error {
            // Pgpool-II cuts what it shows after some 200 characters: the cause comes first
            message: format!("first stage failed: {}", error.message),
            detail: Some(match error.detail {
                Some(detail) => format!("{detail} The target is \"{directory}\"."),
                None => format!("The target is \"{directory}\"."),
            }),
            hint: error.hint.or_else(|| Some("Run the recovery again when the cause is removed.".to_owned())),
            ..error
        }),
        Outcome::Running(worker) => Some(
            Error::new(Kind::Canceled, format!("first stage of \"{directory}\" was broken off"))
                .detail(format!("Process {}, which worked on it, was terminated.", worker.pid))
                .hint("Run the recovery again; it sends only what is missing."),
        ),
    }
}

fn streams(standby: &Standby) -> Result<bool> {
    // the walreceiver's own default, where nothing else is set
    let name = standby.application_name.as_deref().unwrap_or("walreceiver");
    let status = catalog::replication_status(standby.slot_name.as_deref(), name)?;
    Ok(status.is_some_and(|status| status.state == "streaming"))
}

fn not_streaming(directory: &str, settings: &Settings, lines: &str) -> Error {
    Error::new(
        Kind::StartFailed,
        format!(
            "standby runs but does not stream from this primary after {} s",
            settings.start_timeout.as_secs()
        ),
    )
    .detail(format!("The last lines of the log in \"{directory}\" are:\n{lines}"))
    .hint("Is it a standby of this primary? See its primary_conninfo, and pg_stat_replication here.")
}
