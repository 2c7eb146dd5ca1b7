//! Listening: accept, authenticate, serve, and end in order.

use std::collections::HashMap;
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pgpool_recovery_core::cancel::Cancel;
use pgpool_recovery_core::error::{Error, Kind, Result};
use pgpool_recovery_core::link::tls;
use pgpool_recovery_core::receiver::Receiver;
use pgpool_recovery_core::receiver::policy::Policy;
use pgpool_recovery_core::secret::Secret;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tracing::{info, warn};

use crate::config::Config;
use crate::strangers::{Refusals, Stranger, Strangers};
use crate::{endpoint, metrics};

/// Most connections at all: sixteen runs of the most streams.
const CONNECTIONS: usize = 1024;

/// How long runs have to end after a signal.
const GRACE: Duration = Duration::from_secs(10);

/// Serves until SIGTERM or SIGINT.
pub(crate) fn serve(config: Config) -> Result<()> {
    let secret = Secret::read(&config.secret_file)?;
    let tls_config = tls::server_config()?;
    let listener = TcpListener::bind(config.listen).map_err(|error| {
        Error::io(format_args!("listen on {}", config.listen), &error)
            .hint("Is another agent running, or is the address not of this host?")
    })?;
    let address = listener.local_addr().map_err(Error::on("ask for the listening address"))?;
    for cluster in &config.clusters {
        info!("serving data directory \"{}\"", cluster.data_directory.display());
    }
    info!("listening on {address}");

    let agent = Arc::new(Agent {
        receiver: Receiver::new(Policy::Listed(config.clusters)),
        tls_config,
        secret,
        stopping: AtomicBool::new(false),
        strangers: Arc::default(),
        refusals: Refusals::default(),
        connections: Mutex::default(),
    });
    if let Some(address) = config.metrics {
        let watched = Arc::clone(&agent);
        let address = endpoint::start(address, move || {
            metrics::page(&watched.receiver.status(), watched.connections().len(), watched.refusals.count())
        })?;
        info!("metrics at http://{address}/metrics");
    }
    let mut signals = Signals::new([SIGTERM, SIGINT]).map_err(Error::on("install signal handlers"))?;
    let stopped = Arc::clone(&agent);
    std::thread::spawn(move || {
        if signals.forever().next().is_some() {
            info!("stopping: recoveries in progress are broken off, the next run of each completes it");
            stopped.stop();
            // wakes the accept below
            let _ = TcpStream::connect_timeout(&loopback(address), Duration::from_secs(1));
        }
    });

    for (number, socket) in (0_u64..).zip(listener.incoming()) {
        if agent.stopping.load(Ordering::SeqCst) {
            break;
        }
        match socket {
            Ok(socket) => agent.welcome(number, socket),
            Err(error) => {
                // out of file descriptors, most likely: let some connections end
                warn!("could not accept a connection: {error}");
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    }
    drop(listener);
    let deadline = Instant::now() + GRACE;
    while !agent.connections().is_empty() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    info!("stopped");
    Ok(())
}

struct Agent {
    receiver: Receiver,
    tls_config: Arc<rustls::ServerConfig>,
    secret: Secret,
    stopping: AtomicBool,
    strangers: Arc<Strangers>,
    refusals: Refusals,
    /// What closes each open connection.
    connections: Mutex<HashMap<u64, Cancel>>,
}

impl Agent {
    fn connections(&self) -> MutexGuard<'_, HashMap<u64, Cancel>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Breaks off every conversation.
    fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        for cancel in self.connections().values() {
            cancel.trip_with(
                Error::new(Kind::ConnectionLost, "the agent is being stopped")
                    .hint("Run the recovery again when the agent runs; it sends only what is missing."),
            );
        }
    }

    fn welcome(self: &Arc<Self>, number: u64, socket: TcpStream) {
        // who has gone already is nobody's guest
        let Ok(address) = socket.peer_addr() else { return };
        let peer = address.to_string();
        let stranger = self.strangers.admit(address.ip()).filter(|_| self.connections().len() < CONNECTIONS);
        let Some(stranger) = stranger else {
            self.refusals.tell(format_args!("connection from {peer} closed: too many connections"));
            return;
        };
        let connection = Connection::new(self, number);
        let thread = std::thread::Builder::new()
            .name("connection".to_owned())
            .spawn(move || connection.converse(socket, &peer, stranger));
        if let Err(error) = thread {
            warn!("could not start a thread: {error}");
        }
    }
}

/// An open connection, until it is dropped.
struct Connection {
    agent: Arc<Agent>,
    number: u64,
    cancel: Cancel,
}

impl Connection {
    fn new(agent: &Arc<Agent>, number: u64) -> Self {
        let cancel = Cancel::new();
        agent.connections().insert(number, cancel.clone());
        Self { agent: Arc::clone(agent), number, cancel }
    }

    fn converse(&self, socket: TcpStream, peer: &str, stranger: Stranger) {
        let agent = &self.agent;
        let link = match tls::accept(socket, &agent.tls_config, &agent.secret, &self.cancel, peer) {
            Ok(link) => link,
            Err(error) => {
                agent.refusals.tell(format_args!("connection from {peer} refused: {error}"));
                return;
            }
        };
        drop(stranger);
        if let Err(error) = agent.receiver.serve(link, &self.cancel) {
            warn!("connection from {peer} ended: {error}");
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.agent.connections().remove(&self.number);
    }
}

/// How this host reaches what listens on `address`.
pub(crate) fn loopback(mut address: std::net::SocketAddr) -> std::net::SocketAddr {
    if address.ip().is_unspecified() {
        let loopback: std::net::IpAddr =
            if address.is_ipv4() { [127, 0, 0, 1].into() } else { std::net::Ipv6Addr::LOCALHOST.into() };
        address.set_ip(loopback);
    }
    address
}
