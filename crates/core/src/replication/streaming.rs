//! Does a standby stream from this primary? The primary's walsenders and the standby's walreceiver, put together.
//!
//! A name proves nothing: two standbys may have one name, and a slot may be used by another standby. What proves it
//! is that both processes are the two ends of one connection.

use std::net::SocketAddr;

use pgdata::wal::Lsn;
use serde::{Deserialize, Serialize};

/// How much older than the walreceiver its connection may seem, milliseconds: for the resolution of the clocks. The
/// walsenders are looked at first, so that their ages are the smaller ones.
const SLACK: u64 = 100;

/// The process that receives WAL for a standby, as its host's kernel shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Walreceiver {
    /// Its process id on the standby's host.
    pub pid: u32,
    /// How long it has been running, milliseconds.
    pub age: u64,
    /// Its connections; `None` if the receiver may not look at them.
    pub connections: Option<Connections>,
}

/// The established connections of one process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connections {
    /// Its own ends of TCP connections.
    pub tcp: Vec<SocketAddr>,
    /// The other ends of these.
    #[serde(default)]
    pub peers: Vec<SocketAddr>,
    /// Whether it has a unix socket.
    pub unix: bool,
}

/// A process of the primary that sends WAL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Walsender {
    /// Its process id.
    pub pid: i32,
    /// `startup`, `catchup`, `streaming`, ...
    pub state: String,
    /// As the primary shows it, see [`crate::replication::naming::shown_application_name`].
    pub application_name: String,
    /// The replication slot that it uses.
    pub slot_name: Option<String>,
    /// The other end of its connection; `None` for a unix socket.
    pub client: Option<SocketAddr>,
    /// How long ago its connection was made, milliseconds.
    pub age: u64,
    /// What it has sent.
    pub sent: Option<Lsn>,
    /// What the standby has synced, as it last reported.
    pub flushed: Option<Lsn>,
    /// What the standby has replayed, as it last reported.
    pub replayed: Option<Lsn>,
}

impl Walsender {
    /// Whether it has sent all that there is: else it is catching up.
    pub fn is_streaming(&self) -> bool {
        self.state == "streaming"
    }
}

/// What the standby's walsender is known by, besides its connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    /// The slot that the standby must use.
    pub slot_name: Option<String>,
    /// As the primary shows it.
    pub application_name: String,
    /// The port on which this primary listens.
    pub port: u16,
}

impl Expected {
    fn matches(&self, walsender: &Walsender) -> bool {
        match &self.slot_name {
            Some(slot) => walsender.slot_name.as_ref() == Some(slot),
            None => walsender.application_name == self.application_name,
        }
    }

    fn shown(&self) -> String {
        match &self.slot_name {
            Some(slot) => format!("replication slot \"{slot}\""),
            None => format!("application_name \"{}\"", self.application_name),
        }
    }
}

/// The walsender that serves `walreceiver`, or a sentence that says why it cannot be found.
///
/// 1. The walsender whose client is the walreceiver's own end of a TCP connection. If the standby has a slot, that
///    walsender must use it.
/// 2. Where the two ends cannot be compared (a unix socket, address translation or a proxy between them, a kernel
///    that does not show the walreceiver's connections), the walsender that has the standby's slot or name, if no other
///    has it, nothing speaks against it, and its connection is not older than the walreceiver, which makes one
///    connection in its life.
pub fn find_walsender<'a>(
    walsenders: &'a [Walsender],
    expected: &Expected,
    walreceiver: Option<&Walreceiver>,
) -> Result<&'a Walsender, String> {
    let Some(walreceiver) = walreceiver else {
        return Err("The standby runs no walreceiver.".to_owned());
    };
    let connections = walreceiver.connections.as_ref();
    if connections.is_some_and(|connections| connections.tcp.is_empty() && !connections.unix) {
        return Err(format!("The standby's walreceiver (process {}) has no connection.", walreceiver.pid));
    }
    let is_other_end = |walsender: &&Walsender| {
        let client = walsender.client.map(canonical);
        connections.is_some_and(|known| known.tcp.iter().any(|own| Some(canonical(*own)) == client))
    };
    if let Some(own) = walsenders.iter().find(is_other_end) {
        if expected.slot_name.is_some() && !expected.matches(own) {
            let slot = own.slot_name.as_ref().map_or("no slot".to_owned(), |slot| format!("slot \"{slot}\""));
            let pid = own.pid;
            return Err(format!("Process {pid} serves it with {slot} instead of {}.", expected.shown()));
        }
        return Ok(own);
    }
    let named: Vec<&Walsender> = walsenders.iter().filter(|walsender| expected.matches(walsender)).collect();
    match named.as_slice() {
        [] => Err(format!("No walsender of this primary serves {}.", expected.shown())),
        [one] => match contradiction(one, expected, walreceiver) {
            Some(why) => Err(format!(
                "Process {} serves {}, but not this standby (walreceiver: process {}): {why}.",
                one.pid,
                expected.shown(),
                walreceiver.pid
            )),
            None => Ok(one),
        },
        several => Err(format!(
            "{} walsenders serve {}, and none is known to serve this standby. Standbys need names of their own.",
            several.len(),
            expected.shown()
        )),
    }
}

/// What speaks against a walsender's being the other end of a connection that it was not recognised by.
fn contradiction(
    walsender: &Walsender,
    expected: &Expected,
    walreceiver: &Walreceiver,
) -> Option<&'static str> {
    if let Some(Connections { tcp, peers, unix }) = &walreceiver.connections {
        let Some(client) = walsender.client.map(canonical) else {
            if !unix {
                return Some("its client uses a unix socket, the standby does not");
            }
            return is_older(walsender, walreceiver);
        };
        if tcp.is_empty() {
            return Some("its client uses TCP, the standby does not");
        }
        // Had the address been translated on the way, it would be another one. A proxy on the standby's own host
        // leaves the address and changes the port; the standby connects to the proxy's port then.
        let is_direct = peers.iter().any(|peer| peer.port() == expected.port);
        if is_direct && tcp.iter().any(|own| canonical(*own).ip() == client.ip()) {
            return Some("its client is another process of the same host");
        }
    }
    is_older(walsender, walreceiver)
}

fn is_older(walsender: &Walsender, walreceiver: &Walreceiver) -> Option<&'static str> {
    // the two hosts' clocks may run at slightly different speeds
    let limit = walreceiver.age + SLACK + walreceiver.age / 1000;
    (walsender.age > limit).then_some("its connection is older than the standby's walreceiver")
}

/// What is known of a standby's replay since it was first looked at.
#[derive(Debug, Clone, Copy, Default)]
pub struct Replay {
    first: Option<Lsn>,
}

impl Replay {
    /// Whether there is WAL to replay and none has been replayed since the first look.
    pub fn is_stalled(&mut self, walsender: &Walsender) -> bool {
        let (Some(flushed), Some(replayed)) = (walsender.flushed, walsender.replayed) else {
            return false;
        };
        let first = *self.first.get_or_insert(replayed);
        replayed <= first && replayed < flushed
    }
}

/// IPv4 in IPv6's notation is IPv4, and PostgreSQL shows no scope of a link-local address.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sender(pid: i32, name: &str, client: &str, age: u64) -> Walsender {
        Walsender {
            pid,
            state: "streaming".to_owned(),
            application_name: name.to_owned(),
            slot_name: None,
            client: (!client.is_empty()).then(|| client.parse().expect("an address")),
            age,
            sent: None,
            flushed: None,
            replayed: None,
        }
    }

    fn receiver(age: u64, tcp: &[&str], unix: bool) -> Walreceiver {
        let tcp: Vec<_> = tcp.iter().map(|address| address.parse().expect("an address")).collect();
        let peers = vec!["10.0.0.1:5432".parse().expect("an address")];
        Walreceiver { pid: 77, age, connections: Some(Connections { tcp, peers, unix }) }
    }

    fn named(name: &str) -> Expected {
        Expected { slot_name: None, application_name: name.to_owned(), port: 5432 }
    }

    fn with_slot(walsender: Walsender, slot: &str) -> Walsender {
        Walsender { slot_name: Some(slot.to_owned()), ..walsender }
    }

    #[track_caller]
    fn assert_not_proved(
        walsenders: &[Walsender],
        expected: &Expected,
        walreceiver: Option<&Walreceiver>,
        why: &str,
    ) {
        let reason = find_walsender(walsenders, expected, walreceiver).expect_err(why);
        assert!(reason.contains(why), "{reason}");
    }

    #[test]
    fn the_two_ends_of_one_connection_are_found_among_equal_names() {
        let senders = [sender(1, "n", "10.0.0.2:40000", 9_000), sender(2, "n", "10.0.0.2:40001", 10)];
        let proved = |tcp| {
            find_walsender(&senders, &named("n"), Some(&receiver(5, &[tcp], false))).map(|found| found.pid)
        };
        assert_eq!(proved("10.0.0.2:40000"), Ok(1));
        assert_eq!(proved("[::ffff:10.0.0.2]:40001"), Ok(2));
        // the walreceiver's name may be cluster_name, which is not known here
        let receiver = receiver(5, &["10.0.0.2:40000"], false);
        assert_eq!(
            find_walsender(&senders, &named("walreceiver"), Some(&receiver)).map(|found| found.pid),
            Ok(1)
        );
    }

    #[test]
    fn a_neighbour_of_the_same_name_is_another_standby() {
        let neighbour = [sender(1, "localhost", "127.0.0.1:40000", 10)];
        let expected = named("localhost");
        assert_not_proved(&neighbour, &expected, None, "runs no walreceiver");
        assert_not_proved(&neighbour, &expected, Some(&receiver(10, &[], false)), "has no connection");
        let elsewhere = receiver(10, &["127.0.0.1:50000"], false);
        assert_not_proved(&neighbour, &expected, Some(&elsewhere), "another process of the same host");
        let through_a_proxy = Expected { port: 5433, ..expected.clone() };
        assert_eq!(
            find_walsender(&neighbour, &through_a_proxy, Some(&elsewhere)).map(|found| found.pid),
            Ok(1)
        );
        let unix = receiver(10, &[], true);
        assert_not_proved(&neighbour, &expected, Some(&unix), "uses TCP, the standby does not");
    }

    #[test]
    fn a_slot_that_is_expected_must_be_used() {
        let expected = Expected { slot_name: Some("s".to_owned()), ..named("n") };
        let own = receiver(10, &["10.0.0.2:40000"], false);
        let without = sender(1, "n", "10.0.0.2:40000", 10);
        assert_not_proved(std::slice::from_ref(&without), &expected, Some(&own), "with no slot instead of");
        let other = with_slot(sender(2, "m", "10.0.0.3:40000", 10), "s");
        assert_not_proved(&[without.clone(), other], &expected, Some(&own), "with no slot instead of");
        let used = [with_slot(without, "s")];
        assert_eq!(find_walsender(&used, &expected, Some(&own)).map(|found| found.pid), Ok(1));
    }

    #[test]
    fn where_ends_cannot_be_compared_name_and_age_decide() {
        // a unix socket
        let local = [sender(1, "n", "", 5_000)];
        let proved = |age, unix| {
            find_walsender(&local, &named("n"), Some(&receiver(age, &[], unix))).map(|found| found.pid)
        };
        assert_eq!(proved(5_000, true), Ok(1));
        assert_not_proved(&local, &named("n"), Some(&receiver(1_000, &[], true)), "older than the standby's");
        let tcp = receiver(5_000, &["10.0.0.2:1"], false);
        assert_not_proved(&local, &named("n"), Some(&tcp), "uses a unix socket, the standby does not");
        // address translation, and a kernel that does not show connections
        let translated = [sender(1, "n", "192.0.2.1:33333", 5_000), sender(2, "m", "192.0.2.1:44444", 1)];
        let found = |expected: &str, walreceiver: &Walreceiver| {
            find_walsender(&translated, &named(expected), Some(walreceiver)).map(|found| found.pid)
        };
        assert_eq!(found("n", &receiver(5_000, &["10.0.0.2:40000"], false)), Ok(1));
        let hidden = Walreceiver { pid: 77, age: 4_950, connections: None };
        assert_eq!(found("n", &hidden), Ok(1));
        let retrying = [sender(1, "n", "192.0.2.1:33333", 500)];
        assert_not_proved(&retrying, &named("n"), Some(&Walreceiver { age: 10, ..hidden }), "older than");
        assert_not_proved(
            &translated,
            &named("x"),
            Some(&receiver(9, &["10.0.0.2:4"], false)),
            "No walsender",
        );
        let twins = [sender(1, "n", "", 10), sender(2, "n", "", 10)];
        assert_not_proved(&twins, &named("n"), Some(&receiver(10, &[], true)), "2 walsenders");
    }

    #[test]
    fn catching_up_is_not_streaming_yet() {
        let sender = Walsender { state: "catchup".to_owned(), ..sender(1, "n", "10.0.0.2:40000", 10) };
        let own = receiver(10, &["10.0.0.2:40000"], false);
        let senders = [sender];
        let found = find_walsender(&senders, &named("n"), Some(&own)).expect("it serves the standby");
        assert!(!found.is_streaming());
    }

    #[test]
    fn replay_moves_or_has_nothing_to_do() {
        let at = |flushed, replayed| Walsender {
            flushed: Some(Lsn(flushed)),
            replayed: Some(Lsn(replayed)),
            ..sender(1, "n", "", 10)
        };
        let mut replay = Replay::default();
        assert!(!replay.is_stalled(&at(10, 10)), "nothing to do");
        assert!(replay.is_stalled(&at(20, 10)));
        assert!(replay.is_stalled(&at(30, 10)), "WAL comes, replay stays");
        assert!(!replay.is_stalled(&at(30, 11)), "it moves");
        assert!(!replay.is_stalled(&Walsender { flushed: None, ..at(30, 11) }), "it has not said");
    }
}
