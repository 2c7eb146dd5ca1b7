//! Beginning, reading the configuration again, and ending in order.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pgpool_recovery_core::error::{Error, Result};
use pgpool_recovery_core::host::policy::Policy;
use pgpool_recovery_core::wire::secret::Secret;
use signal_hook::consts::{SIGALRM, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::Signals;
use tracing::{error, info, warn};

use crate::agent::Agent;
use crate::config::Config;
use crate::{endpoint, metrics};

/// How long runs have to end after a signal.
const GRACE: Duration = Duration::from_secs(10);

/// Serves until SIGTERM, SIGINT or SIGQUIT. SIGHUP reads the file at `path` again.
pub(crate) fn serve(path: &Path) -> Result<()> {
    // before anything that takes time: a signal that is not awaited would end the agent
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGQUIT, SIGHUP, SIGUSR1, SIGUSR2, SIGALRM])
        .map_err(Error::on("install signal handlers"))?;
    let config = Config::read(path)?;
    let secret = Secret::read(&config.secret_file)?;
    for cluster in &config.clusters {
        info!("serving data directory \"{}\"", cluster.data_directory.display());
    }
    let agent = Arc::new(Agent::new(Policy::Listed(config.clusters.clone()), secret)?);
    let (door, closer) = agent.listen(config.listen)?;
    info!("listening on {}", door.address());
    if let Some(address) = config.metrics {
        let watched = Arc::clone(&agent);
        let address = endpoint::start(address, move || {
            metrics::page(&watched.receiver().status(), watched.open_connections(), watched.refused())
        })?;
        info!("metrics at http://{address}/metrics");
    }
    let reloaded = Arc::clone(&agent);
    let path = path.to_owned();
    std::thread::spawn(move || {
        let mut config = config;
        for signal in signals.forever() {
            match signal {
                SIGHUP => config = reload(&reloaded, &path, config),
                SIGTERM | SIGINT | SIGQUIT => break,
                // nothing that an agent does by these, and no reason to end
                _ => {}
            }
        }
        info!("stopping: recoveries in progress are interrupted, the next run of each completes it");
        drop(closer);
    });

    door.run()?;
    agent.stop();
    let deadline = Instant::now() + GRACE;
    while agent.open_connections() > 0 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    info!("stopped");
    Ok(())
}

/// Puts the configuration and the secret that are in the files now in place of `config`, and returns it; or keeps
/// that, if either is bad.
fn reload(agent: &Agent, path: &Path, config: Config) -> Config {
    let read = || {
        let new = Config::read(path)?;
        let secret = Secret::read(&new.secret_file)?;
        Ok((new, secret))
    };
    let (new, secret) = match read() {
        Ok(read) => read,
        Err(error) => {
            let Error { message, detail, hint, .. } = error;
            error!("not reloaded, configuration and secret stay as they were: {message}");
            for (label, text) in [("DETAIL", detail), ("HINT", hint)] {
                if let Some(text) = text {
                    error!("{label}: {text}");
                }
            }
            return config;
        }
    };
    if new.listen != config.listen {
        warn!("\"listen\" has changed: restart the agent to make it listen on {}", new.listen);
    }
    if new.metrics != config.metrics {
        warn!("\"metrics\" has changed: restart the agent for this setting to take effect");
    }
    agent.receiver().set_policy(Policy::Listed(new.clusters.clone()));
    let secret = if agent.set_secret(secret) { "the new secret" } else { "the same secret" };
    info!("reloaded: {} data directories, {secret}", new.clusters.len());
    for cluster in &new.clusters {
        info!("serving data directory \"{}\"", cluster.data_directory.display());
    }
    // what was not taken over is said again after the next reload
    Config { listen: config.listen, metrics: config.metrics, ..new }
}

/// How this host reaches what listens on `address`.
pub(crate) fn loopback(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        let loopback: std::net::IpAddr =
            if address.is_ipv4() { [127, 0, 0, 1].into() } else { std::net::Ipv6Addr::LOCALHOST.into() };
        address.set_ip(loopback);
    }
    address
}
