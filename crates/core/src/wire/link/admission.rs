//! The ticket: what a primary shows in its first message, so that an agent answers no one else.
//!
//! An agent's port can be reached by anyone on the network and on its own host. A TLS handshake costs a
//! thread, a key exchange and a signature, and it takes some round trips in which a connection of a
//! primary looks like any other. The ticket is a keyed hash of a nonce, sent as the server name of the
//! ClientHello. Verifying it costs a hash, and a connection without one is refused with an alert.
//!
//! A ticket proves less than the proofs that follow: it is not bound to the session, so someone who listens
//! on the network can show it again once the agent has forgotten its nonce. That buys a handshake, no more.

use std::collections::{HashSet, VecDeque};
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Mutex;

use rustls::pki_types::ServerName;
use rustls::server::{Accepted, Acceptor};

use super::tls::ALPN;
use crate::compare::digest::{Proof, random_bytes, ticket as hash};
use crate::error::{Error, Kind, Result};
use crate::sys::hexadecimal;
use crate::sys::lock::lock;
use crate::wire::secret::Secret;

/// The end of the name, so that it reads as what it is in a packet dump.
const SUFFIX: &str = "pgpool-recovery";

/// Nonces of tickets that were shown before; the oldest is forgotten first.
const REMEMBERED: usize = 4096;

/// Most bytes that are read for a ClientHello. Ours has about 350.
const HELLO: usize = 4 << 10;

/// A fatal alert as one plaintext record (RFC 8446, sections 5.1 and 6).
const fn alert(description: u8) -> [u8; 7] {
    [21, 3, 3, 0, 2, 2, description]
}

/// The alerts `access_denied` and `no_application_protocol`.
const ACCESS_DENIED: [u8; 7] = alert(49);
const NO_APPLICATION_PROTOCOL: [u8; 7] = alert(120);

type Nonce = [u8; 16];

/// A new ticket: `t<nonce>.<half of the hash>.<the other half>.pgpool-recovery`. A label of a name has at most 63
/// bytes, so the 64 digits of the hash take two.
pub fn ticket(secret: &Secret) -> Result<ServerName<'static>> {
    let random = random_bytes()?;
    let nonce: &Nonce = random.first_chunk().expect("16 of 32 bytes");
    ServerName::try_from(name(secret, nonce))
        .map_err(|error| Error::new(Kind::Internal, format!("could not set up TLS: {error}")))
}

fn name(secret: &Secret, nonce: &Nonce) -> String {
    let hash = hexadecimal::encode(hash(secret.bytes(), nonce).as_bytes());
    let (first, second) = hash.split_at(32);
    format!("t{}.{first}.{second}.{SUFFIX}", hexadecimal::encode(nonce))
}

/// Nonce and hash of a name that has the form of a ticket.
fn parse(name: &str) -> Option<(Nonce, Proof)> {
    let mut labels = name.strip_prefix('t')?.split('.');
    let (nonce, first, second) = (labels.next()?, labels.next()?, labels.next()?);
    if labels.next() != Some(SUFFIX) || labels.next().is_some() || first.len() != second.len() {
        return None;
    }
    let hash = hexadecimal::decode([first, second].concat().as_bytes())?;
    Some((hexadecimal::decode(nonce.as_bytes())?, Proof::from_bytes(hash)))
}

/// Verifies tickets, and takes each only once while it remembers it.
pub struct Door {
    secret: Secret,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    order: VecDeque<Nonce>,
    all: HashSet<Nonce>,
}

impl Door {
    /// A door for those who know `secret`.
    pub fn new(secret: Secret) -> Self {
        Self { secret, seen: Mutex::default() }
    }

    /// Whether this server name is a ticket that was not shown before.
    pub fn admits(&self, name: &str) -> bool {
        let Some((nonce, shown)) = parse(name) else { return false };
        // a stranger's nonces are not remembered: they would displace those of primaries
        if hash(self.secret.bytes(), &nonce) != shown {
            return false;
        }
        let mut seen = lock(&self.seen);
        if !seen.all.insert(nonce) {
            return false;
        }
        seen.order.push_back(nonce);
        if seen.order.len() > REMEMBERED
            && let Some(oldest) = seen.order.pop_front()
        {
            seen.all.remove(&oldest);
        }
        true
    }
}

/// A connection whose ClientHello is awaited.
#[derive(Default)]
pub struct Greeting {
    acceptor: Acceptor,
    taken: usize,
}

/// How far a greeting came.
pub enum Greeted<A> {
    /// There is nothing more to read for now.
    Waits,
    /// Shows a good ticket: the message, and what is known of those who show such a ticket.
    Admitted(Box<Accepted>, A),
    /// Does not, and has been told so.
    Refused(&'static str),
    /// Closed the connection, after so many bytes.
    Left(usize),
}

impl Greeting {
    /// Reads what there is on the socket, which must not block, and judges what was read. `admit` judges the
    /// ticket ([`Door::admits`]).
    pub fn advance<A>(
        &mut self,
        mut socket: &TcpStream,
        admit: impl FnOnce(&str) -> Option<A>,
    ) -> Greeted<A> {
        // some bytes into an empty buffer; a peer that cannot take them has gone
        let refuse = |alert: &[u8], why| {
            let _ = (&*socket).write(alert);
            Greeted::<A>::Refused(why)
        };
        loop {
            let room = HELLO - self.taken;
            if room == 0 {
                return refuse(&ACCESS_DENIED, "its first message is too long");
            }
            match self.acceptor.read_tls(&mut Read::take(socket, room as u64)) {
                Ok(0) => return Greeted::Left(self.taken),
                Ok(count) => self.taken += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Greeted::Waits,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return Greeted::Left(self.taken),
            }
            match self.acceptor.accept() {
                Ok(None) => {}
                Ok(Some(hello)) => {
                    let client = hello.client_hello();
                    if !client.alpn().is_some_and(|mut names| names.any(|name| name == ALPN)) {
                        return refuse(&NO_APPLICATION_PROTOCOL, "it speaks another version of the protocol");
                    }
                    return match client.server_name().and_then(admit) {
                        Some(admitted) => Greeted::Admitted(Box::new(hello), admitted),
                        None => refuse(&ACCESS_DENIED, "it does not know the secret"),
                    };
                }
                Err((_, mut alert)) => {
                    let _ = alert.write(&mut socket);
                    return Greeted::Refused("it does not speak the protocol");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use proptest::prelude::*;

    use super::*;

    fn secret() -> Secret {
        Secret::random().expect("random")
    }

    fn shown(secret: &Secret) -> String {
        ticket(secret).expect("a ticket").to_str().into_owned()
    }

    #[test]
    fn a_ticket_is_good_once_and_for_one_secret() {
        let secret = secret();
        let (door, other) = (Door::new(secret.clone()), Door::new(self::secret()));
        let ticket = shown(&secret);
        assert!(ticket.split('.').all(|label| (1..=63).contains(&label.len())), "{ticket}");
        assert!(!other.admits(&ticket));
        assert!(door.admits(&ticket));
        assert!(!door.admits(&ticket) && !door.admits(&ticket.to_uppercase().replacen('T', "t", 1)));
        assert!(door.admits(&shown(&secret)), "the next one is good, too");
    }

    #[test]
    fn the_last_nonces_are_remembered_and_no_more() {
        let secret = secret();
        let door = Door::new(secret.clone());
        let first = shown(&secret);
        assert!(door.admits(&first));
        for _ in 1..REMEMBERED {
            assert!(door.admits(&shown(&secret)));
            // what strangers show is not remembered
            assert!(!door.admits(&shown(&self::secret())));
        }
        assert!(!door.admits(&first), "the oldest of those that are remembered");
        assert!(door.admits(&shown(&secret)));
        assert!(door.admits(&first), "forgotten: the proof decides");
        let seen = lock(&door.seen);
        assert_eq!((seen.order.len(), seen.all.len()), (REMEMBERED, REMEMBERED));
    }

    proptest! {
        #[test]
        fn no_other_name_is_a_ticket(
            name in "\\PC*",
            nonce in "[0-9a-fA-F]{30,33}",
            hash in "[0-9a-f]{31,33}\\.[0-9a-f]{31,33}",
        ) {
            let door = Door::new(secret());
            prop_assert!(!door.admits(&name));
            let like_one = format!("t{nonce}.{hash}.{SUFFIX}");
            prop_assert!(!door.admits(&like_one));
        }

        #[test]
        fn a_ticket_that_was_changed_is_none(nonce: [u8; 16], at in 0..100_usize, byte in "[ -~]") {
            let secret = secret();
            let door = Door::new(secret.clone());
            let mut ticket = name(&secret, &nonce);
            let at = at.min(ticket.len() - 1);
            let was = ticket[at..=at].to_owned();
            ticket.replace_range(at..=at, &byte);
            let same = was.eq_ignore_ascii_case(&byte) && at > 0 && at < ticket.len() - SUFFIX.len();
            prop_assert_eq!(door.admits(&ticket), same || was == byte, "{}", ticket);
        }

        #[test]
        fn what_is_written_is_read(nonce: [u8; 16]) {
            let secret = secret();
            let (read, hash) = parse(&name(&secret, &nonce)).expect("a ticket");
            prop_assert_eq!(read, nonce);
            prop_assert!(hash == super::hash(secret.bytes(), &nonce));
        }
    }

    /// Both ends of a connection, the second one not blocking.
    fn sockets() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let near = TcpStream::connect(listener.local_addr().expect("address")).expect("connect");
        let (far, _) = listener.accept().expect("accept");
        far.set_nonblocking(true).expect("a socket");
        (near, far)
    }

    fn hello(secret: &Secret, alpn: &[u8]) -> Vec<u8> {
        let mut config = (*super::super::tls::client_config().expect("configuration")).clone();
        config.alpn_protocols = vec![alpn.to_vec()];
        let name = ticket(secret).expect("a ticket");
        let mut client = rustls::ClientConnection::new(std::sync::Arc::new(config), name).expect("TLS");
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).expect("memory");
        bytes
    }

    /// What becomes of a greeting of these bytes, and what the peer reads.
    fn greet(door: &Door, said: &[u8]) -> (Greeted<()>, Vec<u8>) {
        let (mut near, far) = sockets();
        near.write_all(said).expect("sent");
        near.shutdown(std::net::Shutdown::Write).expect("a socket");
        let mut greeting = Greeting::default();
        let greeted = loop {
            match greeting.advance(&far, |name| door.admits(name).then_some(())) {
                Greeted::Waits => std::thread::yield_now(),
                other => break other,
            }
        };
        drop(far);
        let mut answer = Vec::new();
        // a connection that is closed with bytes unread is reset
        let _ = near.read_to_end(&mut answer);
        (greeted, answer)
    }

    #[test]
    fn a_hello_with_a_ticket_is_admitted_in_whatever_pieces_it_comes() {
        let secret = secret();
        let door = Door::new(secret.clone());
        let said = hello(&secret, ALPN);
        assert!(said.len() < HELLO / 2, "{} bytes", said.len());
        let (mut near, far) = sockets();
        let mut greeting = Greeting::default();
        let admit = |name: &str| door.admits(name).then_some(());
        assert!(matches!(greeting.advance(&far, admit), Greeted::Waits));
        for (number, byte) in said.iter().enumerate() {
            near.write_all(&[*byte]).expect("sent");
            let (mut peeked, mut greeted) = (0, Greeted::Waits);
            // until the byte has crossed the loopback interface
            while peeked == 0 {
                peeked = far.peek(&mut [0]).unwrap_or(0);
            }
            while matches!(greeted, Greeted::Waits) && greeting.taken <= number {
                greeted = greeting.advance(&far, admit);
            }
            let is_last = number + 1 == said.len();
            assert_eq!(matches!(greeted, Greeted::Admitted(..)), is_last, "after {number} bytes");
        }
        // the same bytes again, as from someone who has listened
        let (greeted, answer) = greet(&door, &said);
        assert!(matches!(greeted, Greeted::Refused(_)) && answer == ACCESS_DENIED, "{answer:?}");
    }

    #[test]
    fn a_stranger_costs_no_more_than_an_alert() {
        let door = Door::new(secret());
        let own = hello(&secret(), ALPN);
        let (greeted, answer) = greet(&door, &own);
        assert!(
            matches!(greeted, Greeted::Refused(why) if why.contains("secret")) && answer == ACCESS_DENIED
        );
        let (greeted, answer) = greet(&door, &hello(&secret(), b"pgpool-recovery/999"));
        assert!(matches!(greeted, Greeted::Refused(why) if why.contains("version")));
        assert_eq!(answer, NO_APPLICATION_PROTOCOL);
        for nonsense in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xAA; 512]] {
            let (greeted, answer) = greet(&door, nonsense);
            assert!(matches!(greeted, Greeted::Refused(_)) && answer.len() <= 7, "{answer:?}");
        }
        assert!(matches!(greet(&door, b"").0, Greeted::Left(0)));
        assert!(matches!(greet(&door, &own[..100]).0, Greeted::Left(100)));
        // a record that goes on and on
        let (greeted, _) =
            greet(&door, &[&[0x16, 3, 1, 0x3f, 0xff, 1, 0, 0x3f, 0xf0][..], &[0; 9000]].concat());
        assert!(matches!(greeted, Greeted::Refused(why) if why.contains("long")));
    }
}
