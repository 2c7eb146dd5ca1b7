//! Reaching an agent by name, without ever blocking beyond a cancel.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustls::ClientConfig;
use socket2::{Domain, Protocol, Socket, Type};

use super::tls;
use super::{Connector, Link};
use crate::error::{Error, Kind, Result};
use crate::sys::addresses::resolve;
use crate::sys::cancel::Cancel;
use crate::wire::secret::Secret;

/// How long each address may take to answer.
const DEADLINE: Duration = Duration::from_secs(10);

/// How often a wait looks at the cancel switch.
const TURN: Duration = Duration::from_millis(50);

/// After how long a connection that is not there yet is requested once more, and how often in all.
const REPEAT: Duration = Duration::from_millis(250);
const REQUESTS: usize = 6;

/// How often a connection is tried that the agent closes before both ends have proved the secret: under a flood
/// it makes room for newer connections.
const ATTEMPTS: u32 = 3;

/// Connects to one agent.
pub struct AgentConnector {
    host: String,
    port: u16,
    secret: Secret,
    config: Arc<ClientConfig>,
    wire: Arc<AtomicU64>,
    /// Of the connection that was made fastest, nanoseconds.
    round_trip: AtomicU64,
}

impl AgentConnector {
    /// A connector to the agent at `host`, which shares `secret`. `wire` counts what its links carry.
    pub fn new(host: &str, port: u16, secret: Secret, wire: Arc<AtomicU64>) -> Result<Self> {
        let round_trip = AtomicU64::new(u64::MAX);
        Ok(Self { host: host.to_owned(), port, secret, config: tls::client_config()?, wire, round_trip })
    }
}

impl AgentConnector {
    /// A link to this address; an error of the inner kind if something answers there.
    fn link(&self, address: SocketAddr, cancel: &Cancel) -> io::Result<Result<Link>> {
        let place = self.place();
        let started = Instant::now();
        let mut attempt = 1;
        loop {
            let dialled = Instant::now();
            let socket = connect(address, cancel)?;
            let round_trip = u64::try_from(dialled.elapsed().as_nanos()).unwrap_or(u64::MAX);
            self.round_trip.fetch_min(round_trip, Ordering::Relaxed);
            let linked =
                tls::connect(socket, &self.config, &self.secret, Arc::clone(&self.wire), cancel, &place);
            let is_final = attempt == ATTEMPTS || started.elapsed() >= DEADLINE || cancel.is_tripped();
            match linked {
                Err(error) if error.kind == Kind::ConnectionLost && !is_final => {
                    std::thread::sleep(TURN * attempt);
                    attempt += 1;
                }
                linked => return Ok(linked),
            }
        }
    }
}

impl Connector for AgentConnector {
    fn connect(&self, cancel: &Cancel) -> Result<Link> {
        let place = self.place();
        let addresses = resolve(&self.host, self.port, cancel)?;
        let mut last = None;
        for address in addresses {
            match self.link(address, cancel) {
                Ok(linked) => return linked,
                Err(error) => last = Some((address, error)),
            }
            cancel.check()?;
        }
        let (address, error) = last.ok_or_else(|| {
            Error::new(Kind::Unreachable, format!("no address for {place}"))
                .hint("Check the name service of this host.")
        })?;
        Err(Error::new(Kind::Unreachable, format!("could not connect to {place}: {error}"))
            .detail(format!("The last address tried was {address}."))
            .hint(
                "Check that pgpool-recovery-agent runs there, pgpool_recovery.agent_port, and the firewall.",
            ))
    }

    fn place(&self) -> String {
        format!("the agent at {}:{}", self.host, self.port)
    }

    fn is_remote(&self) -> bool {
        true
    }

    fn round_trip(&self) -> Duration {
        match self.round_trip.load(Ordering::Relaxed) {
            u64::MAX => Duration::ZERO,
            nanoseconds => Duration::from_nanos(nanoseconds),
        }
    }
}

/// Connects, by several attempts that overlap: the kernel of a flooded host drops some requests, and repeats its own
/// only after one second, three, and seven. The first one that succeeds is used.
fn connect(address: SocketAddr, cancel: &Cancel) -> io::Result<TcpStream> {
    let deadline = Instant::now() + DEADLINE;
    let turn = rustix::time::Timespec { tv_sec: 0, tv_nsec: i64::from(TURN.subsec_nanos()) };
    let mut sockets = Vec::new();
    let mut next = Instant::now();
    loop {
        if sockets.len() < REQUESTS && Instant::now() >= next {
            next = Instant::now() + REPEAT;
            let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
            socket.set_nonblocking(true)?;
            match socket.connect(&address.into()) {
                Ok(()) => return blocking(socket),
                Err(error) if error.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => {
                    sockets.push(socket);
                }
                Err(error) => return Err(error),
            }
        }
        let mut waiting: Vec<_> = sockets.iter().map(|socket| PollFd::new(socket, PollFlags::OUT)).collect();
        match poll(&mut waiting, Some(&turn)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready = waiting.iter().position(|waiting| !waiting.revents().is_empty());
        if let Some(ready) = ready {
            let socket = sockets.swap_remove(ready);
            return match socket.take_error()? {
                None => blocking(socket),
                Some(error) => Err(error),
            };
        }
        if cancel.is_tripped() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        if Instant::now() >= deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
    }
}

fn blocking(socket: Socket) -> io::Result<TcpStream> {
    socket.set_nonblocking(false)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A listener whose queue is full does not answer until there is room again.
    #[test]
    fn a_request_that_was_dropped_is_repeated_soon() {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("bind");
        socket.listen(0).expect("listen");
        let listener = std::net::TcpListener::from(socket);
        let address = listener.local_addr().expect("address");
        // with a backlog of 0 there is room for one
        let _first = TcpStream::connect(address).expect("connect");
        let started = Instant::now();
        let connected = std::thread::spawn(move || connect(address, &Cancel::new()));
        std::thread::sleep(Duration::from_millis(200));
        assert!(!connected.is_finished(), "there is no room yet");
        drop(listener.accept().expect("accept"));
        connected.join().expect("no panic").expect("connected");
        assert!(started.elapsed() < Duration::from_millis(900), "{:?}", started.elapsed());
    }

    #[test]
    fn a_closed_port_is_named() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
        let port = listener.local_addr().expect("address").port();
        drop(listener);
        let connector =
            AgentConnector::new("127.0.0.1", port, Secret::random().expect("secret"), Arc::default())
                .expect("set up");
        let error = connector.connect(&Cancel::new()).err().expect("refused");
        assert_eq!(error.kind, Kind::Unreachable);
        assert!(error.message.contains(&format!("127.0.0.1:{port}")) && error.hint.is_some(), "{error:?}");
    }
}
