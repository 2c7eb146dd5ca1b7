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

/// How long the addresses of a host may take to answer.
const DEADLINE: Duration = Duration::from_secs(10);

/// How often a wait looks at the cancel switch.
const TURN: Duration = Duration::from_millis(50);

/// After how long a connection that is not there yet is requested once more, and how often from each address.
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
    /// A link to one of these addresses; an error of the inner kind if something answers there.
    fn link(
        &self,
        addresses: &[SocketAddr],
        cancel: &Cancel,
    ) -> std::result::Result<Result<Link>, (SocketAddr, io::Error)> {
        let place = self.place();
        let started = Instant::now();
        let mut attempt = 1;
        loop {
            let dialled = Instant::now();
            let socket = connect(addresses, cancel)?;
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
        if addresses.is_empty() {
            return Err(Error::new(Kind::Unreachable, format!("no address for {place}"))
                .hint("Check the name service of this host."));
        }
        let (address, error) = match self.link(&addresses, cancel) {
            Ok(linked) => return linked,
            Err(failed) => failed,
        };
        cancel.check()?;
        let unreachable = Error::new(Kind::Unreachable, format!("could not connect to {place}: {error}"))
            .detail(format!("The last address tried was {address}."))
            .hint(
                "Check that pgpool-recovery-agent runs there, pgpool_recovery.agent_port, and the firewall.",
            );
        let is_known = is_of_the_other_end(&error);
        Err(if is_known { unreachable } else { Error { kind: Kind::NotAsked, ..unreachable } })
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

/// Whether no connection came about because of the other host, or of the way to it. Anything else failed here, and says nothing of it.
fn is_of_the_other_end(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let said = [
        Errno::CONNREFUSED,
        Errno::TIMEDOUT,
        Errno::HOSTUNREACH,
        Errno::NETUNREACH,
        Errno::HOSTDOWN,
        Errno::NETDOWN,
    ];
    error.kind() == io::ErrorKind::TimedOut
        || Errno::from_io_error(error).is_some_and(|errno| said.contains(&errno))
}

/// Connects, by several attempts that overlap: the kernel of a flooded host drops some requests, and repeats its own
/// only after one second, three, and seven; and an address that answers nothing must not take the time of the next one (RFC 8305).
/// The first one that succeeds is used. Fails with what the last address said of itself.
fn connect(
    addresses: &[SocketAddr],
    cancel: &Cancel,
) -> std::result::Result<TcpStream, (SocketAddr, io::Error)> {
    let deadline = Instant::now() + DEADLINE;
    let mut requests = addresses.iter().copied().cycle().take(REQUESTS * addresses.len());
    let mut sockets: Vec<(SocketAddr, Socket)> = Vec::new();
    let mut failed: Vec<(SocketAddr, io::Error)> = Vec::new();
    let mut next = Instant::now();
    loop {
        if Instant::now() >= next
            && let Some(address) = requests.by_ref().find(|address| !has(&failed, address))
        {
            next = Instant::now() + REPEAT;
            match request(address) {
                Ok((socket, true)) => return blocking(socket).map_err(|error| (address, error)),
                Ok((socket, false)) => sockets.push((address, socket)),
                Err(error) => failed.push((address, error)),
            }
        }
        if let Some(ready) = ready(&sockets).map_err(|error| (addresses[0], error))? {
            let (address, socket) = sockets.swap_remove(ready);
            match socket.take_error() {
                Ok(None) => return blocking(socket).map_err(|error| (address, error)),
                Ok(Some(error)) | Err(error) => failed.push((address, error)),
            }
        }
        // the other requests of an address that has failed would fail as well
        sockets.retain(|(address, _)| !has(&failed, address));
        if sockets.is_empty() {
            // the next address has its turn at once; an error of this host says more than that of another one
            next = Instant::now();
            if addresses.iter().all(|address| has(&failed, address)) {
                let here = failed.iter().position(|(_, error)| !is_of_the_other_end(error));
                return Err(failed.swap_remove(here.unwrap_or(failed.len() - 1)));
            }
        }
        if cancel.is_tripped() {
            return Err((addresses[0], io::ErrorKind::Interrupted.into()));
        }
        if Instant::now() >= deadline {
            return Err((addresses[0], io::ErrorKind::TimedOut.into()));
        }
    }
}

/// Whether an address is among those that have failed.
fn has(failed: &[(SocketAddr, io::Error)], address: &SocketAddr) -> bool {
    failed.iter().any(|(other, _)| other == address)
}

/// Waits a little for one of them to tell how its request has ended.
fn ready(sockets: &[(SocketAddr, Socket)]) -> io::Result<Option<usize>> {
    if sockets.is_empty() {
        return Ok(None);
    }
    let turn = rustix::time::Timespec { tv_sec: 0, tv_nsec: i64::from(TURN.subsec_nanos()) };
    let mut waiting: Vec<_> = sockets.iter().map(|(_, socket)| PollFd::new(socket, PollFlags::OUT)).collect();
    match poll(&mut waiting, Some(&turn)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(waiting.iter().position(|waiting| !waiting.revents().is_empty()))
}

/// Requests a connection; whether it is there already.
fn request(address: SocketAddr) -> io::Result<(Socket, bool)> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    match socket.connect(&address.into()) {
        Ok(()) => Ok((socket, true)),
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => {
            Ok((socket, false))
        }
        Err(error) => Err(error),
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
        let connected = std::thread::spawn(move || connect(&[address], &Cancel::new()));
        std::thread::sleep(Duration::from_millis(200));
        assert!(!connected.is_finished(), "there is no room yet");
        drop(listener.accept().expect("accept"));
        connected.join().expect("no panic").expect("connected");
        assert!(started.elapsed() < Duration::from_millis(900), "{:?}", started.elapsed());
    }

    /// A closed port, kept from others by a socket that is bound to it and does not listen.
    fn closed() -> (SocketAddr, Socket) {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("bind");
        (socket.local_addr().expect("address").as_socket().expect("of IPv4"), socket)
    }

    /// A listener whose queue is full answers nothing, as an address behind a firewall.
    #[test]
    fn an_address_that_answers_nothing_takes_no_time_of_the_next_one() {
        let full = |host: [u8; 4]| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
            socket.bind(&SocketAddr::from((host, 0)).into()).expect("bind");
            socket.listen(0).expect("listen");
            let listener = std::net::TcpListener::from(socket);
            let first = TcpStream::connect(listener.local_addr().expect("address")).expect("connect");
            (listener, first)
        };
        let (mute, _first) = full([127, 0, 0, 1]);
        let (closed, _reserved) = closed();
        let good = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
        let good = (good.local_addr().expect("address"), good);
        let mute = (mute.local_addr().expect("address"), mute);
        for addresses in [vec![mute.0, good.0], vec![closed, mute.0, good.0], vec![closed, good.0]] {
            let started = Instant::now();
            let stream = connect(&addresses, &Cancel::new()).expect("connected");
            assert_eq!(stream.peer_addr().expect("address"), good.0);
            assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
        }
        let (address, error) = connect(&[closed], &Cancel::new()).expect_err("refused");
        assert!(address == closed && is_of_the_other_end(&error), "{error}");
    }

    #[test]
    fn what_fails_here_says_nothing_of_the_other_end() {
        use rustix::io::Errno;
        let of = |errno: Errno| is_of_the_other_end(&errno.into());
        assert!([Errno::CONNREFUSED, Errno::TIMEDOUT, Errno::HOSTUNREACH].into_iter().all(of));
        assert!(
            ![Errno::MFILE, Errno::NOBUFS, Errno::ADDRNOTAVAIL, Errno::PERM, Errno::ACCESS]
                .into_iter()
                .any(of)
        );
    }

    #[test]
    fn a_closed_port_is_named() {
        let (address, _reserved) = closed();
        let port = address.port();
        let connector =
            AgentConnector::new("127.0.0.1", port, Secret::random().expect("secret"), Arc::default())
                .expect("set up");
        let error = connector.connect(&Cancel::new()).err().expect("refused");
        assert_eq!(error.kind, Kind::Unreachable);
        assert!(error.message.contains(&format!("127.0.0.1:{port}")) && error.hint.is_some(), "{error:?}");
    }
}
