//! Reaching an agent by name, without ever blocking beyond a cancel.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustls::ClientConfig;
use socket2::{Domain, Protocol, Socket, Type};

use super::tls;
use super::{Connector, Link};
use crate::cancel::Cancel;
use crate::error::{Error, Kind, Result};
use crate::secret::Secret;

/// How long a name may take to resolve, and each address to answer.
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
}

impl AgentConnector {
    /// A connector to the agent at `host`, which shares `secret`. `wire` counts what its links carry.
    pub fn new(host: &str, port: u16, secret: Secret, wire: Arc<AtomicU64>) -> Result<Self> {
        Ok(Self { host: host.to_owned(), port, secret, config: tls::client_config()?, wire })
    }
}

impl AgentConnector {
    /// A link to this address; an error of the inner kind if something answers there.
    fn link(&self, address: SocketAddr, cancel: &Cancel) -> io::Result<Result<Link>> {
        let place = self.place();
        let started = Instant::now();
        let mut attempt = 1;
        loop {
            let socket = connect(address, cancel)?;
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
}

/// Whether `host` is this machine: a socket path, nothing, `localhost`, or a name or address that
/// belongs to one of its interfaces.
pub fn is_this_host(host: &str, cancel: &Cancel) -> Result<bool> {
    if host.is_empty()
        || host.starts_with('/')
        || host.starts_with('@')
        || host.eq_ignore_ascii_case("localhost")
    {
        return Ok(true);
    }
    let own = own_addresses().map_err(Error::on("list the network interfaces"))?;
    let is_local =
        |address: IpAddr| address.is_loopback() || address.is_unspecified() || own.contains(&address);
    Ok(resolve(host, 0, cancel)?.iter().any(|address| is_local(address.ip())))
}

/// The addresses of this host's interfaces.
pub fn own_addresses() -> io::Result<Vec<IpAddr>> {
    Ok(if_addrs::get_if_addrs()?.iter().map(if_addrs::Interface::ip).collect())
}

/// The addresses of a name. The system's resolver cannot be interrupted, so it runs in a thread of its
/// own; if it is not done in time, that thread is left behind: it touches nothing but its answer.
pub(crate) fn resolve(host: &str, port: u16, cancel: &Cancel) -> Result<Vec<SocketAddr>> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    let name = host.to_owned();
    let (answer, answered) = sync_channel(1);
    std::thread::Builder::new()
        .name("resolver".to_owned())
        .spawn(move || {
            let _ = answer.send((name.as_str(), port).to_socket_addrs().map(Iterator::collect::<Vec<_>>));
        })
        .map_err(Error::on("start a thread"))?;
    let unresolved = |why: &str| {
        Error::new(Kind::Unreachable, format!("could not resolve host name \"{host}\": {why}")).hint(
            "Check backend_hostname in pgpool.conf, or the name given, and the name service of this host.",
        )
    };
    let deadline = Instant::now() + DEADLINE;
    loop {
        match answered.recv_timeout(TURN) {
            Ok(Ok(addresses)) => return Ok(addresses),
            Ok(Err(error)) => return Err(unresolved(&error.to_string())),
            Err(RecvTimeoutError::Disconnected) => return Err(unresolved("the resolver failed")),
            Err(RecvTimeoutError::Timeout) if Instant::now() >= deadline => {
                return Err(unresolved("no answer from the name service"));
            }
            Err(RecvTimeoutError::Timeout) => cancel.check()?,
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

    #[test]
    fn knows_this_host() {
        let cancel = Cancel::new();
        for host in ["", "/tmp", "localhost", "LOCALHOST", "127.0.0.1", "127.1.2.3", "::1"] {
            assert!(is_this_host(host, &cancel).expect("resolves"), "{host:?}");
        }
        // TEST-NET-1 belongs to nobody
        assert!(!is_this_host("192.0.2.1", &cancel).expect("an address"));
        let error = is_this_host("no-such-host.invalid", &cancel).expect_err("no such name");
        assert_eq!(error.kind, Kind::Unreachable);
    }

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
