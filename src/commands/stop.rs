//! `pgpool_recovery_stop`: stops a server that is no primary any more, or never was one.

use std::path::Path;

use pgpool_recovery_core::error::Result;
use pgpool_recovery_core::wire::protocol::stop::Stopped;
use serde_json::{Value, json};

use crate::preflight::{authority, reach, stop};
use crate::run::Run;
use crate::settings::Settings;

/// Stops the server in `directory` on `host`; returns what it was and how it ended.
pub(crate) fn stop(host: &str, directory: &str, settings: &Settings) -> Result<Value> {
    authority::demand_may_stop(settings)?;
    let mut run = Run::quiet();
    let (transport, reach) = (settings.transport, settings.reach()?);
    let is_local = run.blocking(|cancel| reach::is_local(host, transport, &reach, directory, cancel))?;
    let mut session = reach::look(host, Path::new(directory), is_local, settings, &mut run)?;
    let stopped = stop::stop(&mut session, settings, (host, directory), &mut run)?;
    Ok(match stopped {
        None => json!({ "stopped": false, "role": null, "mode": null, "seconds": 0.0 }),
        Some(Stopped { role, mode, milliseconds }) => json!({
            "stopped": true,
            "role": role,
            "mode": mode,
            "seconds": milliseconds as f64 / 1000.0,
        }),
    })
}
