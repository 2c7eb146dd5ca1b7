//! Names and addresses of hosts, this one's too.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use dns_lookup::{AddrInfo, AddrInfoHints, LookupErrorKind, SockType, getaddrinfo};

use crate::error::{Error, Kind, Result};
use crate::sys::cancel::Cancel;

/// How long a name may take.
const DEADLINE: Duration = Duration::from_secs(10);

/// How often a cancel is looked for.
const TURN: Duration = Duration::from_millis(50);

/// The loopback addresses that `localhost` stands for.
pub(crate) const LOOPBACK: [IpAddr; 2] =
    [IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), IpAddr::V6(std::net::Ipv6Addr::LOCALHOST)];

/// Whether `host` is this machine: a socket path, nothing, `localhost`, or a name or address that
/// belongs to its interfaces. A name that leads to this host and to another one is refused.
pub fn is_this_host(host: &str, cancel: &Cancel) -> Result<bool> {
    if is_local_word(host) {
        return Ok(true);
    }
    let own = if_addrs::get_if_addrs().map_err(Error::on("list the network interfaces"))?;
    let own: Vec<Own> = own.iter().map(|interface| (interface.ip(), interface.index)).collect();
    are_own(host, &resolve(host, 0, cancel)?, &own)
}

/// An address of this host, and the number of its interface.
type Own = (IpAddr, Option<u32>);

/// Whether the addresses of a name are this host's, all of which are `own`.
fn are_own(host: &str, addresses: &[SocketAddr], own: &[Own]) -> Result<bool> {
    let is_own = |address: &SocketAddr| {
        let ip = address.ip().to_canonical();
        // one link-local address may be this host's on one network and another host's on the next
        let scope = match address {
            SocketAddr::V6(address) => address.scope_id(),
            SocketAddr::V4(_) => 0,
        };
        let is_it =
            |(own, interface): &Own| own.to_canonical() == ip && (scope == 0 || *interface == Some(scope));
        ip.is_loopback() || ip.is_unspecified() || own.iter().any(is_it)
    };
    let (ours, others): (Vec<&SocketAddr>, Vec<&SocketAddr>) = addresses.iter().partition(|one| is_own(one));
    if ours.is_empty() || others.is_empty() {
        return Ok(!ours.is_empty());
    }
    let listed = |addresses: &[&SocketAddr]| {
        // the same address comes once for each kind of socket
        let addresses: BTreeSet<IpAddr> =
            addresses.iter().map(|address| address.ip().to_canonical()).collect();
        addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    };
    let message = format!("cannot tell whether host \"{host}\" is this host or another one");
    Err(Error::new(Kind::InvalidArgument, message)
        .detail(format!("This host has {}, but not {}.", listed(&ours), listed(&others)))
        .hint(
            "Name the standby's host by an address or by a name that leads to one host only (backend_hostname in pgpool.conf), \
             or set pgpool_recovery.transport to local or agent.",
        ))
}

/// Where a host is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Whereabouts {
    /// Whether it is this one, by one of its addresses.
    pub is_here: bool,
    addresses: BTreeSet<IpAddr>,
}

impl Whereabouts {
    /// Whether one port of both is that of one server. On this host each address may have a server of its own at that port, unless
    /// one listens on `all` of them.
    pub fn is_one_server_with(&self, other: &Self, all: impl Fn(IpAddr) -> bool) -> bool {
        let is_on_all = |place: &Self| place.is_here && place.addresses.iter().any(|address| all(*address));
        !self.addresses.is_disjoint(&other.addresses) || is_on_all(self) && is_on_all(other)
    }

    /// Its addresses; none of a directory of sockets.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.addresses.iter().copied()
    }

    /// Whether one of its addresses is such a one.
    pub fn has(&self, is_such: impl Fn(IpAddr) -> bool) -> bool {
        self.addresses.iter().any(|address| is_such(*address))
    }
}

/// Where the host of this name or address, or with this directory of sockets, is. May take a while.
pub fn whereabouts(host: &str, cancel: &Cancel) -> Result<Whereabouts> {
    if is_local_word(host) {
        let is_name = host.eq_ignore_ascii_case("localhost");
        let loopback = LOOPBACK.into_iter().filter(|_| is_name);
        return Ok(Whereabouts { is_here: true, addresses: loopback.collect() });
    }
    let own = own_addresses().map_err(Error::on("list the network interfaces"))?;
    let found = resolve(host, 0, cancel)?;
    let addresses: BTreeSet<IpAddr> = found.iter().map(|address| address.ip().to_canonical()).collect();
    let is_here = addresses
        .iter()
        .any(|address| address.is_loopback() || own.iter().any(|own| own.to_canonical() == *address));
    Ok(Whereabouts { is_here, addresses })
}

/// Whether it means this host without being resolved: nothing, a directory of sockets, `localhost`.
fn is_local_word(host: &str) -> bool {
    host.is_empty() || host.starts_with(['/', '@']) || host.eq_ignore_ascii_case("localhost")
}

/// The addresses of this host's interfaces.
pub fn own_addresses() -> io::Result<Vec<IpAddr>> {
    Ok(if_addrs::get_if_addrs()?.iter().map(if_addrs::Interface::ip).collect())
}

/// The addresses of a name. The system's resolver cannot be interrupted, so it runs in a thread of its
/// own; if it is not done in time, that thread is left behind: it touches nothing but its answer. A name that does not exist is
/// [`Kind::Unreachable`], a name service that fails [`Kind::NotAsked`].
pub(crate) fn resolve(host: &str, port: u16, cancel: &Cancel) -> Result<Vec<SocketAddr>> {
    resolve_within(DEADLINE, host, port, cancel)
}

/// Fails with [`Kind::NotAsked`] if the name service does not answer soon. Otherwise the time for a question would run out while the name is
/// looked up, which looks like a silent host.
pub fn demand_told(host: &str, cancel: &Cancel) -> Result<()> {
    const TIME: Duration = Duration::from_secs(2);
    if is_local_word(host) {
        return Ok(());
    }
    resolve_within(TIME, host, 0, cancel).map(drop)
}

fn resolve_within(time: Duration, host: &str, port: u16, cancel: &Cancel) -> Result<Vec<SocketAddr>> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    let name = host.to_owned();
    let (answer, answered) = sync_channel(1);
    std::thread::Builder::new()
        .name("resolver".to_owned())
        .spawn(move || {
            let _ = answer.send(look_up(&name, port));
        })
        .map_err(|error| Error::no_thread(&error))?;
    let unresolved = |why: &str| {
        Error::new(Kind::Unreachable, format!("could not resolve host name \"{host}\": {why}")).hint(
            "Check backend_hostname in pgpool.conf, or the name given, and the name service of this host.",
        )
    };
    let not_asked = |why: &str| Error { kind: Kind::NotAsked, ..unresolved(why) };
    let deadline = Instant::now() + time;
    loop {
        match answered.recv_timeout(TURN) {
            Ok(Ok(addresses)) => return Ok(addresses),
            Ok(Err((kind, error))) => return Err(Error { kind, ..unresolved(&error.to_string()) }),
            Err(RecvTimeoutError::Disconnected) => return Err(not_asked("the resolver failed")),
            Err(RecvTimeoutError::Timeout) if Instant::now() >= deadline => {
                return Err(not_asked("no answer from the name service"));
            }
            Err(RecvTimeoutError::Timeout) => cancel.check()?,
        }
    }
}

/// Asks the system's resolver.
fn look_up(name: &str, port: u16) -> std::result::Result<Vec<SocketAddr>, (Kind, io::Error)> {
    let hints = AddrInfoHints { socktype: SockType::Stream.into(), ..AddrInfoHints::default() };
    let found = getaddrinfo(Some(name), None, Some(hints))
        .map_err(|error| (kind_of(error.kind()), io::Error::from(error)))?;
    let with_port = |found: io::Result<AddrInfo>| {
        let mut address = found.map_err(|error| (Kind::NotAsked, error))?.sockaddr;
        address.set_port(port);
        Ok(address)
    };
    found.map(with_port).collect()
}

/// Only "no such name" is an answer.
const fn kind_of(failure: LookupErrorKind) -> Kind {
    match failure {
        LookupErrorKind::NoName | LookupErrorKind::NoData => Kind::Unreachable,
        _ => Kind::NotAsked,
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddrV6;

    use super::*;

    #[test]
    fn knows_this_host() {
        let cancel = Cancel::new();
        for host in ["", "/tmp", "localhost", "LOCALHOST", "127.0.0.1", "127.1.2.3", "::1"] {
            assert!(is_this_host(host, &cancel).expect("resolves"), "{host:?}");
        }
        // TEST-NET-1 is assigned to no host
        assert!(!is_this_host("192.0.2.1", &cancel).expect("an address"));
        let error = is_this_host("no-such-host.invalid", &cancel).expect_err("no such name");
        // as the name service of the machine has it
        assert!(matches!(error.kind, Kind::Unreachable | Kind::NotAsked), "{error:?}");
        assert_eq!(error.kind.sqlstate(), "08001");
    }

    #[test]
    fn a_name_service_that_fails_says_nothing_of_a_host() {
        // of the C library, whose numbers they are
        assert_eq!(kind_of(LookupErrorKind::new(libc_names::EAI_NONAME)), Kind::Unreachable);
        for failed in [libc_names::EAI_AGAIN, libc_names::EAI_FAIL, libc_names::EAI_SYSTEM] {
            assert_eq!(kind_of(LookupErrorKind::new(failed)), Kind::NotAsked);
        }
        assert_eq!(look_up("localhost", 5432).expect("it is in /etc/hosts")[0].port(), 5432);
    }

    /// netdb.h
    mod libc_names {
        pub(super) const EAI_NONAME: i32 = -2;
        pub(super) const EAI_AGAIN: i32 = -3;
        pub(super) const EAI_FAIL: i32 = -4;
        pub(super) const EAI_SYSTEM: i32 = -11;
    }

    fn own(texts: &[&str]) -> Vec<Own> {
        (1..).zip(texts).map(|(number, text)| (text.parse().expect("an address"), Some(number))).collect()
    }

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| SocketAddr::new(text.parse().expect("an address"), 0)).collect()
    }

    #[test]
    fn a_name_is_this_hosts_if_all_its_addresses_are() {
        let own = own(&["127.0.0.1", "::1", "10.0.0.1", "fd00::1"]);
        let told = |texts: &[&str]| are_own("node1", &addresses(texts), &own);
        for ours in [
            &["10.0.0.1"][..],
            &["127.0.1.1"],
            // Debian's /etc/hosts and the name service
            &["127.0.1.1", "10.0.0.1"],
            &["fd00::1", "::ffff:10.0.0.1", "10.0.0.1"],
        ] {
            assert_eq!(told(ours), Ok(true), "{ours:?}");
        }
        for others in [&["10.0.0.2"][..], &["fd00::2", "::ffff:10.0.0.2"], &[]] {
            assert_eq!(told(others), Ok(false), "{others:?}");
        }
    }

    #[test]
    fn a_name_that_leads_to_two_hosts_is_refused_with_its_addresses() {
        let own = own(&["127.0.0.1", "10.0.0.1"]);
        for mixed in [["10.0.0.1", "10.0.0.2"], ["10.0.0.2", "10.0.0.1"], ["127.0.1.1", "10.0.0.2"]] {
            let error = are_own("node1", &addresses(&mixed), &own).expect_err("both");
            assert_eq!(error.kind.sqlstate(), "22023");
            let detail = error.detail.expect("the addresses");
            assert!(mixed.iter().all(|address| detail.contains(address)), "{detail}");
            assert!(error.hint.is_some_and(|hint| hint.contains("pgpool_recovery.transport")));
        }
    }

    #[test]
    fn a_link_local_address_is_this_hosts_on_its_own_network_only() {
        let own = own(&["fe80::1", "fe80::2"]);
        let told = |scope| {
            let address = SocketAddrV6::new("fe80::1".parse().expect("an address"), 0, 0, scope);
            are_own("fe80::1%eth", &[address.into()], &own).expect("one address")
        };
        assert!(told(1) && told(0));
        assert!(!told(2), "another host's, on the second network");
    }
}
