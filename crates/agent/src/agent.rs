//! The agent's connections: who is let in, who makes room, and what is served.

use std::collections::HashMap;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use pgpool_recovery_core::error::{Error, Kind, Result};
use pgpool_recovery_core::host::policy::Policy;
use pgpool_recovery_core::receiver::Receiver;
use pgpool_recovery_core::sys::cancel::Cancel;
use pgpool_recovery_core::sys::lock::lock;
use pgpool_recovery_core::wire::link::admission::{self, Greeted, Greeting};
use pgpool_recovery_core::wire::link::tls;
use pgpool_recovery_core::wire::secret::Secret;
use rustls::server::Accepted;
use tracing::warn;

use crate::door::{Closer, Door, End, Reception, Step, Visit};
use crate::strangers::{Group, Pool, Refusals};

/// Most connections that have said nothing useful yet. Another one displaces one of them.
const STRANGERS: usize = 256;

/// How long the first message may take to come.
const HELLO_DEADLINE: Duration = Duration::from_secs(1);

/// Most connections that showed a ticket and have not proved the secret yet, in the same way.
const UNPROVEN: usize = 256;

/// How long the proof may take to come, counted from the connection's beginning: some three round trips.
const PROOF_DEADLINE: Duration = Duration::from_secs(3);

/// Most connections that are served at all: sixteen runs of the most streams, and those on their way.
const CONNECTIONS: usize = 1024 + UNPROVEN;

/// A secret, and the tickets that were shown for it.
struct Identity {
    secret: Secret,
    door: admission::Door,
}

impl Identity {
    fn new(secret: Secret) -> Self {
        Self { door: admission::Door::new(secret.clone()), secret }
    }
}

/// The secret, and the one before it, which is good for the links of runs that began with it.
struct Identities {
    current: Arc<Identity>,
    former: Option<Arc<Identity>>,
}

/// A running agent.
pub(crate) struct Agent {
    receiver: Receiver,
    tls_config: Arc<rustls::ServerConfig>,
    identities: Mutex<Identities>,
    refusals: Refusals,
    /// How many wait at the door.
    strangers: AtomicUsize,
    /// What closes each connection that has shown a ticket and not proved the secret.
    unproven: Mutex<Pool<Cancel>>,
    /// What closes each connection that has shown a ticket.
    connections: Mutex<HashMap<u64, Cancel>>,
    sequence: AtomicU64,
}

impl Agent {
    pub(crate) fn new(policy: Policy, secret: Secret) -> Result<Self> {
        Ok(Self {
            receiver: Receiver::new(policy),
            tls_config: tls::server_config()?,
            identities: Mutex::new(Identities { current: Arc::new(Identity::new(secret)), former: None }),
            refusals: Refusals::default(),
            strangers: AtomicUsize::new(0),
            unproven: Mutex::default(),
            connections: Mutex::default(),
            sequence: AtomicU64::new(0),
        })
    }

    pub(crate) fn listen(self: &Arc<Self>, address: SocketAddr) -> Result<(Door<Greeter>, Closer)> {
        Door::open(address, STRANGERS, HELLO_DEADLINE, Greeter(Arc::clone(self))).map_err(|error| {
            Error::io(format_args!("listen on {address}"), &error)
                .hint("Is another agent running, or is the address not of this host?")
        })
    }

    fn identities(&self) -> MutexGuard<'_, Identities> {
        lock(&self.identities)
    }

    /// Whose ticket this is; and whether their secret has been replaced.
    fn admit(&self, ticket: &str) -> Option<(Arc<Identity>, bool)> {
        let Identities { current, former } = &*self.identities();
        if current.door.admits(ticket) {
            return Some((Arc::clone(current), false));
        }
        let former = former.as_ref().filter(|_| self.receiver.has_runs())?;
        former.door.admits(ticket).then(|| (Arc::clone(former), true))
    }

    /// Replaces the secret; false if it is the same.
    pub(crate) fn set_secret(&self, secret: Secret) -> bool {
        let mut identities = self.identities();
        let is_new = identities.current.secret.bytes() != secret.bytes();
        if is_new {
            let current = Arc::new(Identity::new(secret));
            identities.former = Some(std::mem::replace(&mut identities.current, current));
        }
        is_new
    }

    fn connections(&self) -> MutexGuard<'_, HashMap<u64, Cancel>> {
        lock(&self.connections)
    }

    fn unproven(&self) -> MutexGuard<'_, Pool<Cancel>> {
        lock(&self.unproven)
    }

    pub(crate) const fn receiver(&self) -> &Receiver {
        &self.receiver
    }

    /// How many connections have been turned away.
    pub(crate) fn refused(&self) -> u64 {
        self.refusals.count()
    }

    pub(crate) fn open_connections(&self) -> usize {
        self.connections().len() + self.strangers.load(Ordering::Relaxed)
    }

    /// Ends every conversation.
    pub(crate) fn stop(&self) {
        for cancel in self.connections().values() {
            cancel.trip_with(
                Error::new(Kind::ConnectionLost, "the agent is being stopped")
                    .hint("Run the recovery again when the agent runs; it sends only what is missing."),
            );
        }
    }
}

/// Waits for the ticket of each connection, and starts a thread for those who show one.
pub(crate) struct Greeter(Arc<Agent>);

/// A connection at the door, and what its first message was.
#[derive(Default)]
pub(crate) struct Newcomer {
    greeting: Greeting,
    judged: Option<std::result::Result<Ticket, &'static str>>,
}

impl Reception for Greeter {
    type Guest = Newcomer;

    fn welcome(&mut self) -> Newcomer {
        self.0.strangers.fetch_add(1, Ordering::Relaxed);
        Newcomer::default()
    }

    fn advance(&mut self, visit: &mut Visit<Newcomer>) -> Step {
        let Newcomer { greeting, judged } = &mut visit.guest;
        match greeting.advance(&visit.socket, |ticket| self.0.admit(ticket)) {
            Greeted::Waits => return Step::Read,
            Greeted::Admitted(hello, (identity, is_former)) => {
                *judged = Some(Ok(Ticket { hello, identity, is_former }));
            }
            Greeted::Refused(why) => *judged = Some(Err(why)),
            Greeted::Left(0) => {}
            Greeted::Left(_) => *judged = Some(Err("it was closed in the middle of its first message")),
        }
        Step::Ended
    }

    fn leave(&mut self, visit: Visit<Newcomer>, end: End) {
        let agent = &self.0;
        agent.strangers.fetch_sub(1, Ordering::Relaxed);
        let Visit { socket, peer, group, since, guest, .. } = visit;
        let why = match (end, guest.judged) {
            (End::Done, Some(Ok(ticket))) => {
                let newcomer = Admitted { socket, peer, group, ticket, deadline: since + PROOF_DEADLINE };
                match newcomer.serve(agent) {
                    Ok(()) => return,
                    Err(error) => error.to_string(),
                }
            }
            (End::Done, Some(Err(why))) => why.to_owned(),
            // a health check, or a primary that was let in by another of its requests
            (End::Done, None) => return,
            (End::Late, _) => format!("its first message took more than {} s", HELLO_DEADLINE.as_secs()),
            (End::Displaced, _) => "newer connections came before its first message".to_owned(),
        };
        agent.refusals.tell(group, format_args!("connection from {peer} refused: {why}"));
    }

    fn turn(&mut self) {
        self.0.refusals.sum_up();
    }
}

/// A first message with a ticket.
struct Ticket {
    hello: Box<Accepted>,
    /// Whose it is, and whether their secret has been replaced.
    identity: Arc<Identity>,
    is_former: bool,
}

/// A connection that has shown a ticket.
struct Admitted {
    socket: TcpStream,
    peer: SocketAddr,
    group: Group,
    ticket: Ticket,
    deadline: Instant,
}

impl Admitted {
    /// Starts a thread for it.
    fn serve(self, agent: &Arc<Agent>) -> Result<()> {
        if agent.connections().len() >= CONNECTIONS {
            return Err(Error::new(Kind::Internal, "there are too many connections"));
        }
        self.socket.set_nonblocking(false).map_err(Error::on("set up a connection"))?;
        let connection = Connection::new(agent, self.group);
        std::thread::Builder::new()
            .name("connection".to_owned())
            .spawn(move || connection.converse(self))
            .map_err(|error| Error::no_thread(&error))?;
        Ok(())
    }
}

/// A connection with a thread, until it is dropped.
struct Connection {
    agent: Arc<Agent>,
    number: u64,
    cancel: Cancel,
}

impl Connection {
    fn new(agent: &Arc<Agent>, group: Group) -> Self {
        let (number, cancel) = (agent.sequence.fetch_add(1, Ordering::Relaxed), Cancel::new());
        agent.connections().insert(number, cancel.clone());
        let displaced = {
            let mut unproven = agent.unproven();
            let displaced = (unproven.len() >= UNPROVEN).then(|| unproven.displace()).flatten();
            unproven.insert(number, group, cancel.clone());
            displaced
        };
        if let Some(displaced) = displaced {
            displaced.trip_with(Error::new(Kind::ConnectionLost, "newer connections came before its proof"));
        }
        Self { agent: Arc::clone(agent), number, cancel }
    }

    fn converse(&self, newcomer: Admitted) {
        let agent = &self.agent;
        let Admitted { socket, peer, group, ticket, deadline } = newcomer;
        let Ticket { hello, identity, is_former } = ticket;
        let place = peer.to_string();
        let (config, secret) = (&agent.tls_config, &identity.secret);
        let link = tls::accept_admitted(socket, *hello, config, secret, &self.cancel, &place, deadline);
        agent.unproven().remove(self.number);
        match link {
            Ok(link) => {
                let served = if is_former {
                    agent.receiver.serve_former(link, &self.cancel)
                } else {
                    agent.receiver.serve(link, &self.cancel)
                };
                if let Err(error) = served {
                    warn!("connection from {peer} ended: {error}");
                }
            }
            Err(error) => agent.refusals.tell(group, format_args!("connection from {peer} refused: {error}")),
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.agent.unproven().remove(self.number);
        self.agent.connections().remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::sync::atomic::AtomicBool;

    use pgpool_recovery_core::wire::inquiry;
    use pgpool_recovery_core::wire::link::Connector;
    use pgpool_recovery_core::wire::link::dial::AgentConnector;

    use super::*;

    /// An agent without directories, in this process.
    struct Served {
        agent: Arc<Agent>,
        address: SocketAddr,
        closer: Option<Closer>,
        thread: Option<std::thread::JoinHandle<Result<()>>>,
    }

    impl Served {
        fn start(secret: &Secret) -> Self {
            let agent = Arc::new(Agent::new(Policy::Listed(Vec::new()), secret.clone()).expect("set up"));
            let (door, closer) = agent.listen(SocketAddr::from(([127, 0, 0, 1], 0))).expect("listen");
            let address = door.address();
            let thread = std::thread::spawn(move || door.run());
            Self { agent, address, closer: Some(closer), thread: Some(thread) }
        }

        fn connector(&self, secret: &Secret) -> AgentConnector {
            let (host, port) = (self.address.ip().to_string(), self.address.port());
            AgentConnector::new(&host, port, secret.clone(), Arc::default()).expect("set up")
        }

        /// Waits until no connection is left.
        fn reconcile(&self) {
            let start = Instant::now();
            while self.agent.open_connections() > 0 || self.agent.unproven().len() > 0 {
                assert!(
                    start.elapsed() < Duration::from_secs(20),
                    "{} are left",
                    self.agent.open_connections()
                );
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }

    impl Drop for Served {
        fn drop(&mut self) {
            self.closer.take();
            if let Some(thread) = self.thread.take() {
                let _ = thread.join();
            }
        }
    }

    fn secret() -> Secret {
        Secret::random().expect("random")
    }

    /// A connection from the loopback address 127.0.`from`.1.
    fn knock(address: SocketAddr, from: u8) -> std::io::Result<TcpStream> {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
        socket.bind(&SocketAddr::from(([127, 0, from, 1], 0)).into())?;
        socket.connect_timeout(&address.into(), Duration::from_millis(100))?;
        Ok(socket.into())
    }

    /// Ends the floods of a test, also if it fails.
    struct Stop<'a>(&'a AtomicBool);

    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    /// Asks for the status again and again while `flood` runs in two threads until it is told to stop.
    fn is_answered_during(name: &str, flood: impl Fn(&Served, &AtomicBool) + Sync) {
        let secret = secret();
        let served = Served::start(&secret);
        let connector = served.connector(&secret);
        let stop = AtomicBool::new(false);
        let mut times = std::thread::scope(|scope| {
            let _guard = Stop(&stop);
            for _ in 0..2 {
                scope.spawn(|| flood(&served, &stop));
            }
            let mut times = Vec::new();
            for number in 0..16 {
                let start = Instant::now();
                let status = inquiry::status(&connector, &Cancel::new());
                status.unwrap_or_else(|error| panic!("{name}, call {number}: {error} {error:?}"));
                times.push(start.elapsed());
                std::thread::sleep(Duration::from_millis(20));
            }
            times
        });
        times.sort();
        // all of them, where nothing else runs; a busy machine may be late now and then
        assert!(times[8] < Duration::from_secs(2), "{name}: {times:?}");
        served.reconcile();
    }

    fn until(stop: &AtomicBool, mut work: impl FnMut()) {
        while !stop.load(Ordering::Relaxed) {
            work();
        }
    }

    /// As many connections as a flood holds; the oldest is dropped for a new one.
    fn hold(crowd: &mut std::collections::VecDeque<TcpStream>, socket: TcpStream) {
        crowd.push_back(socket);
        if crowd.len() > 2 * STRANGERS {
            crowd.pop_front();
        }
    }

    #[test]
    fn silent_connections_from_many_addresses_keep_nobody_out() {
        is_answered_during("silence", |served, stop| {
            let mut crowd = std::collections::VecDeque::new();
            let mut from = 0;
            until(stop, || {
                from = (from + 1) % 16;
                if let Ok(socket) = knock(served.address, from) {
                    hold(&mut crowd, socket);
                }
            });
        });
    }

    #[test]
    fn garbage_and_half_handshakes_keep_nobody_out() {
        let nonsense: &[&[u8]] =
            &[&[0xAA; 512], &[0x16, 3, 1, 0xff, 0xff], &[0x16, 3, 1, 0, 200, 1, 0, 0, 196, 3, 3]];
        is_answered_during("garbage", |served, stop| {
            let mut crowd = std::collections::VecDeque::new();
            let mut said = nonsense.iter().cycle();
            until(stop, || {
                if let (Ok(mut socket), Some(said)) = (knock(served.address, 0), said.next()) {
                    let _ = socket.write_all(said);
                    hold(&mut crowd, socket);
                }
            });
        });
    }

    #[test]
    fn connections_that_come_and_go_keep_nobody_out() {
        is_answered_during("churn", |served, stop| {
            until(stop, || drop(knock(served.address, 0)));
        });
    }

    #[test]
    fn peers_with_another_secret_keep_nobody_out_and_cost_no_thread() {
        let most = AtomicUsize::new(0);
        is_answered_during("another secret", |served, stop| {
            let connector = served.connector(&secret());
            until(stop, || {
                let error = connector.connect(&Cancel::new()).err().expect("refused");
                let is_refused = [Kind::AuthenticationFailed, Kind::ConnectionLost, Kind::Unreachable];
                assert!(is_refused.contains(&error.kind), "{error}");
                most.fetch_max(served.agent.connections().len(), Ordering::Relaxed);
            });
        });
        assert!(most.into_inner() <= 2, "connections that got a thread, one of them the call's");
    }

    #[test]
    fn peers_with_a_ticket_that_say_no_more_keep_nobody_out() {
        let secret = secret();
        let served = Served::start(&secret);
        let connector = served.connector(&secret);
        let mut crowd = Vec::new();
        let mut most = 0;
        for _ in 0..3 * UNPROVEN {
            // as someone would who could copy the first messages of a primary
            let name = admission::ticket(&secret).expect("a ticket");
            let config = tls::client_config().expect("configuration");
            let mut client = rustls::ClientConnection::new(config, name).expect("TLS");
            let mut socket = knock(served.address, 0).expect("connect");
            client.write_tls(&mut socket).expect("sent");
            crowd.push(socket);
            most = most.max(served.agent.unproven().len());
        }
        assert!(most <= UNPROVEN, "{most}");
        let start = Instant::now();
        inquiry::status(&connector, &Cancel::new()).expect("an answer");
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
        served.reconcile();
        // a peer learns no more than the handshake of TLS
        for mut socket in crowd {
            socket.set_read_timeout(Some(Duration::from_secs(10))).expect("a limit");
            let mut answer = Vec::new();
            let _ = socket.read_to_end(&mut answer);
            assert!(answer.len() < 2000, "{} bytes", answer.len());
        }
    }

    #[test]
    fn those_who_say_nothing_are_gone_after_their_time() {
        let secret = secret();
        let served = Served::start(&secret);
        let mut socket = knock(served.address, 3).expect("connect");
        socket.set_read_timeout(Some(Duration::from_secs(20))).expect("a limit");
        let ended = socket.read(&mut [0]);
        assert!(
            matches!(ended, Ok(0))
                || ended.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset)
        );
        served.reconcile();
        assert_eq!(served.agent.refusals.count(), 1);
    }

    #[test]
    fn another_secret_is_named_as_such() {
        let served = Served::start(&secret());
        let error = served.connector(&secret()).connect(&Cancel::new()).err().expect("refused");
        assert_eq!(error.kind, Kind::AuthenticationFailed);
        assert!(error.message.contains("refused this server's secret"), "{error}");
    }
}
