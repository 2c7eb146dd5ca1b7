//! Where connections come in: one thread accepts them all and waits for the first message of each.
//!
//! It never waits for a single one, and it keeps a bounded number: when there are more, one that has not said
//! enough goes ([`Pool::displace`]), after a last look at what has arrived from it. A connection whose
//! message has come is handed on at once. So what a flood can do to someone else's first message is to
//! delay it by the time that accepting the connections before it takes.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use pgpool_recovery_core::error::{Error, Result};
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::time::Timespec;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tracing::{error, warn};

use crate::strangers::{Group, OwnAddresses, Pool};

/// Connections that wait in the kernel until they are accepted; `net.core.somaxconn` may allow less. A flood
/// that is faster than the door fills this queue, and what does not fit waits for a second to be repeated.
const BACKLOG: i32 = 4096;

/// Connections accepted at a time.
const BATCH: usize = 64;

/// How long nothing is accepted when the system has no resources left.
const PAUSE: Duration = Duration::from_millis(100);

/// The longest sleep.
const TURN: Duration = Duration::from_secs(10);

const LISTENER: u64 = u64::MAX;
const WAKER: u64 = u64::MAX - 1;

/// What is done with those who come in.
pub(crate) trait Reception {
    /// What is kept for each of them.
    type Guest;

    /// Begins with a new one.
    fn welcome(&mut self) -> Self::Guest;

    /// Goes on as far as the socket, which does not block, lets it.
    fn advance(&mut self, visit: &mut Visit<Self::Guest>) -> Step;

    /// Takes one over whose visit has ended.
    fn leave(&mut self, visit: Visit<Self::Guest>, end: End);

    /// Called now and then.
    fn turn(&mut self) {}
}

/// A connection at the door.
pub(crate) struct Visit<G> {
    pub(crate) socket: TcpStream,
    pub(crate) peer: SocketAddr,
    pub(crate) group: Group,
    pub(crate) since: Instant,
    pub(crate) guest: G,
    flags: EventFlags,
}

/// What a visit waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    Read,
    Write,
    Ended,
}

/// Why a visit has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// [`Reception::advance`] said so.
    Done,
    /// It took too long.
    Late,
    /// There were too many, and it was the oldest of the fullest group.
    Displaced,
}

/// A listener, and those who wait at it.
pub(crate) struct Door<R: Reception> {
    reception: R,
    listener: TcpListener,
    address: SocketAddr,
    epoll: OwnedFd,
    /// Readable when the closer is gone.
    _woken: UnixStream,
    /// Most connections that wait, and how long each may.
    most: usize,
    patience: Duration,
    number: u64,
    visits: Pool<Visit<R::Guest>>,
    own: OwnAddresses,
    /// While nothing is accepted.
    paused: Option<Instant>,
}

/// Closes a door from another thread, when it is dropped.
pub(crate) struct Closer {
    _stream: UnixStream,
}

impl<R: Reception> Door<R> {
    /// Listens on `address`. At most `most` connections wait, each for `patience` at most. The door is open until
    /// the closer is dropped.
    pub(crate) fn open(
        address: SocketAddr,
        most: usize,
        patience: Duration,
        reception: R,
    ) -> io::Result<(Self, Closer)> {
        let listener = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        listener.set_reuse_address(true)?;
        listener.bind(&address.into())?;
        listener.listen(BACKLOG)?;
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from(listener);
        let address = listener.local_addr()?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let (closer, woken) = UnixStream::pair()?;
        epoll::add(&epoll, &listener, EventData::new_u64(LISTENER), EventFlags::IN)?;
        epoll::add(&epoll, &woken, EventData::new_u64(WAKER), EventFlags::IN)?;
        let door = Self {
            reception,
            listener,
            address,
            epoll,
            _woken: woken,
            most,
            patience,
            number: 0,
            visits: Pool::default(),
            own: OwnAddresses::new(),
            paused: None,
        };
        Ok((door, Closer { _stream: closer }))
    }

    /// Where it listens, also if it was opened on port 0.
    pub(crate) const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Receives until the closer is dropped.
    pub(crate) fn run(mut self) -> Result<()> {
        let mut events = Vec::with_capacity(2 * BATCH);
        loop {
            events.clear();
            let timeout = self.timeout();
            let timeout =
                Timespec { tv_sec: timeout.as_secs().cast_signed(), tv_nsec: timeout.subsec_nanos().into() };
            match epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&timeout)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(Error::io("wait for connections", &error.into())),
            }
            let mut is_open = false;
            for event in &events {
                match event.data.u64() {
                    WAKER => return Ok(()),
                    LISTENER => is_open = true,
                    number => self.advance(number),
                }
            }
            // what came before the deadline has been looked at
            while let Some((number, visit)) = self.visits.first()
                && visit.since.elapsed() >= self.patience
            {
                self.end(number, End::Late);
            }
            if self.paused.is_some_and(|until| Instant::now() >= until) {
                self.paused = None;
                self.listen(EventFlags::IN)?;
            }
            if is_open {
                self.accept()?;
            }
            self.reception.turn();
        }
    }

    fn timeout(&self) -> Duration {
        let deadline = self.visits.first().map(|(_, visit)| visit.since + self.patience);
        let next = [deadline, self.paused].into_iter().flatten().min();
        // a whole millisecond more: an early end of the wait would be followed by some of no length
        next.map_or(TURN, |next| next.saturating_duration_since(Instant::now()) + Duration::from_millis(1))
            .min(TURN)
    }

    fn listen(&self, flags: EventFlags) -> Result<()> {
        epoll::modify(&self.epoll, &self.listener, EventData::new_u64(LISTENER), flags)
            .map_err(|error| Error::io("wait for connections", &error.into()))
    }

    fn accept(&mut self) -> Result<()> {
        let mut failures = 0;
        for _ in 0..BATCH {
            match self.listener.accept() {
                Ok((socket, peer)) => self.admit(socket, peer),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => {
                    let is_short = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM]
                        .iter()
                        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()));
                    // what has been taken from those who wait is enough for the newcomer
                    if is_short && self.displace() {
                        continue;
                    }
                    // any other error is that of one connection, unless it comes again and again
                    failures += 1;
                    if is_short || failures == BATCH / 2 {
                        warn!("could not accept a connection: {error}");
                        self.paused = Some(Instant::now() + PAUSE);
                        return self.listen(EventFlags::empty());
                    }
                }
            }
        }
        Ok(())
    }

    fn admit(&mut self, socket: TcpStream, peer: SocketAddr) {
        if socket.set_nonblocking(true).is_err() {
            return;
        }
        let (group, guest) = (self.own.group(peer.ip()), self.reception.welcome());
        let flags = EventFlags::empty();
        let mut visit = Visit { socket, peer, group, since: Instant::now(), guest, flags };
        // its message may have come while it waited in the kernel
        let step = advance(&mut self.reception, &mut visit);
        if step == Step::Ended {
            return self.reception.leave(visit, End::Done);
        }
        while self.visits.len() >= self.most && self.displace() {}
        let number = self.number;
        self.number += 1;
        visit.flags = flags_of(step);
        if epoll::add(&self.epoll, &visit.socket, EventData::new_u64(number), visit.flags).is_ok() {
            self.visits.insert(number, group, visit);
        } else {
            self.reception.leave(visit, End::Displaced);
        }
    }

    fn advance(&mut self, number: u64) {
        // it may have been displaced since the event
        let Some(visit) = self.visits.get_mut(number) else { return };
        let step = advance(&mut self.reception, visit);
        let flags = flags_of(step);
        let is_waiting = step != Step::Ended
            && (flags == visit.flags
                || epoll::modify(&self.epoll, &visit.socket, EventData::new_u64(number), flags).is_ok());
        if is_waiting {
            visit.flags = flags;
        } else {
            self.end(number, End::Done);
        }
    }

    fn end(&mut self, number: u64, end: End) {
        if let Some(visit) = self.visits.remove(number) {
            self.leave(visit, end);
        }
    }

    /// Makes room by ending one visit; false if there is none.
    fn displace(&mut self) -> bool {
        let Some(mut visit) = self.visits.displace() else { return false };
        let end = match advance(&mut self.reception, &mut visit) {
            Step::Ended => End::Done,
            Step::Read | Step::Write => End::Displaced,
        };
        self.leave(visit, end);
        true
    }

    fn leave(&mut self, visit: Visit<R::Guest>, end: End) {
        // the socket may live on with someone else
        let _ = epoll::delete(&self.epoll, &visit.socket);
        if end != End::Done {
            // a reset: neither end keeps anything of a connection that came to nothing
            let _ = SockRef::from(&visit.socket).set_linger(Some(Duration::ZERO));
        }
        self.reception.leave(visit, end);
    }
}

fn flags_of(step: Step) -> EventFlags {
    match step {
        Step::Read => EventFlags::IN,
        Step::Write => EventFlags::OUT,
        Step::Ended => EventFlags::empty(),
    }
}

/// A bug that a peer can reach must not close the door for the others.
fn advance<R: Reception>(reception: &mut R, visit: &mut Visit<R::Guest>) -> Step {
    catch_unwind(AssertUnwindSafe(|| reception.advance(visit))).unwrap_or_else(|_| {
        error!("could not answer {}: an internal error", visit.peer);
        Step::Ended
    })
}
