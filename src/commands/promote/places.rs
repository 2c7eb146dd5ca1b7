//! Whose server is found where a standby looks for the one that it follows: hosts are compared by their addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use pgpool_recovery_core::preflight::chain::Whose;
use pgpool_recovery_core::sys::addresses::{self, Whereabouts};
use pgpool_recovery_core::sys::cancel::Cancel;
use pgpool_recovery_core::sys::parallel::{self, Job};
use pgpool_recovery_core::sys::sockets::{self, is_all_of};
use pgpool_recovery_core::wire::protocol::upstream::Endpoint;

use crate::preflight::authority::Own;
use crate::settings::OtherNode;

/// How long a name may take.
const NAME: Duration = Duration::from_secs(2);

/// Where the hosts of nodes and endpoints are; those that nobody knows are missing.
pub(super) struct Places(BTreeMap<String, Whereabouts>);

impl Places {
    /// Asks for all of them at once. It may take a while.
    pub(super) fn find(hosts: BTreeSet<String>, cancel: &Cancel) -> Self {
        let job = |host: &String| {
            let host = host.clone();
            Job {
                name: "the name service".to_owned(),
                time: NAME,
                work: Box::new(move |cancel: &Cancel| addresses::whereabouts(&host, cancel)),
            }
        };
        let found = parallel::ask(hosts.iter().map(job).collect(), cancel);
        Self(hosts.into_iter().zip(found).filter_map(|(host, found)| Some((host, found.ok()?))).collect())
    }

    /// Whose server is at an endpoint that the node at a place of the list, or this standby, has in its string. A port is not enough: each
    /// address of a host may have a server of its own there.
    pub(super) fn whose(
        &self,
        endpoint: &Endpoint,
        by: Option<usize>,
        nodes: &[OtherNode],
        old: Option<&OtherNode>,
        own: &Own,
    ) -> Whose {
        let host = endpoint.host.as_str();
        let is_here = |node: &OtherNode| self.0.get(&node.host).is_some_and(|place| place.is_here);
        // which of that host's servers it is only that host knows
        let is_of_another_host = is_own_of_each(host) && by.is_some_and(|at| !is_here(&nodes[at]));
        let Ok(port) = endpoint.port.parse() else { return Whose::Unknown };
        if host.is_empty() || is_of_another_host {
            return Whose::Unknown;
        }
        let found = self.0.get(if endpoint.address.is_empty() { host } else { &endpoint.address });
        if port == own.port && is_own(host, found, own) {
            return Whose::Own;
        }
        let all = |address: IpAddr| match sockets::listening(port) {
            Ok(listening) => listening.iter().any(|own| is_all_of(*own, address)),
            Err(_) => false,
        };
        let has_address = |node: &OtherNode| {
            let is_one_with = |found: &Whereabouts| {
                self.0.get(&node.host).is_some_and(|place| place.is_one_server_with(found, all))
            };
            node.port == port && found.is_some_and(is_one_with)
        };
        let is_named_so = |node: &OtherNode| node.port == port && node.host.eq_ignore_ascii_case(host);
        let only = |is_such: &dyn Fn(&OtherNode) -> bool| {
            let mut such = (0..nodes.len()).filter(|&at| is_such(&nodes[at]));
            such.next().filter(|_| such.next().is_none())
        };
        // another host may have another address for the name
        match only(&has_address).or_else(|| only(&is_named_so)) {
            Some(at) => Whose::Node(at),
            None if old.is_some_and(|old| has_address(old) || is_named_so(old)) => Whose::Old,
            None => Whose::Unknown,
        }
    }
}

/// Whether this standby listens there, at its own port.
fn is_own(host: &str, found: Option<&Whereabouts>, own: &Own) -> bool {
    if host.starts_with(['/', '@']) {
        return own.server.has_socket_in(host);
    }
    let found = found.filter(|found| found.is_here);
    let is_own_name = |found: &Whereabouts| {
        let has_own = found.has(|address| address == OF_OWN_NAME) && host.parse::<IpAddr>().is_err();
        has_own || nodename().is_some_and(|own| is_name_of(host, &own))
    };
    found.is_some_and(|found| found.has(|address| own.server.listens_on(address)) || is_own_name(found))
}

/// Where Debian's /etc/hosts has the host's own name lead to. Nothing need listen there.
const OF_OWN_NAME: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 1, 1));

/// The name of this host.
fn nodename() -> Option<String> {
    rustix::system::uname().nodename().to_str().ok().map(str::to_owned)
}

/// Whether a name is that of a host, either with or without a domain.
fn is_name_of(name: &str, host: &str) -> bool {
    let first = |name: &str| name.split('.').next().unwrap_or_default().to_ascii_lowercase();
    let is_address = name.parse::<IpAddr>().is_ok();
    !is_address && !name.is_empty() && first(name) == first(host)
}

/// Whether a host means whichever host it is said on: a socket, or a loopback address.
fn is_own_of_each(host: &str) -> bool {
    let is_loopback = host.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback());
    host.starts_with(['/', '@']) || host.eq_ignore_ascii_case("localhost") || is_loopback
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use pgpool_recovery_core::replication::own_address::Server;

    use super::*;

    fn endpoint(host: &str, port: u16) -> Endpoint {
        Endpoint::new(host, port.to_string())
    }

    fn node(host: &str, port: u16) -> OtherNode {
        OtherNode { id: None, host: host.to_owned(), port, directory: "/d".to_owned() }
    }

    fn own(listening: &[&str]) -> Own {
        let listening = listening.iter().map(|address| address.parse().expect("an address")).collect();
        Own { port: 5432, server: Server { listening, socket_directories: "/run, /tmp".to_owned() } }
    }

    #[test]
    fn a_server_is_known_by_address_and_port() {
        let nodes = [node("203.0.113.1", 5432), node("203.0.113.2", 5432), node("localhost", 5433)];
        let hosts = ["203.0.113.1", "203.0.113.2", "203.0.113.3", "localhost", "127.0.0.1", "127.0.0.2"];
        let own = own(&["0.0.0.0", "::"]);
        let places = Places::find(hosts.map(str::to_owned).into(), &Cancel::new());
        let whose = |host: &str, port: u16, by: Option<usize>| {
            places.whose(&endpoint(host, port), by, &nodes, None, &own)
        };
        assert_eq!(whose("203.0.113.2", 5432, None), Whose::Node(1));
        assert_eq!(whose("203.0.113.2", 5433, None), Whose::Unknown);
        assert_eq!(whose("203.0.113.3", 5432, None), Whose::Unknown);
        assert_eq!(whose("unheard-of.invalid", 5432, None), Whose::Unknown);
        for here in ["127.0.0.1", "localhost", "127.0.0.2"] {
            assert_eq!(whose(here, 5432, None), Whose::Own, "{here}");
            assert_eq!(whose(here, 5432, Some(1)), Whose::Unknown, "it is that host's own: {here}");
            assert_eq!(whose(here, 5432, Some(2)), Whose::Own, "{here}");
        }
        assert_eq!((whose("/tmp", 5432, None), whose("/tmp", 5433, None)), (Whose::Own, Whose::Unknown));
        assert_eq!(whose("/elsewhere", 5432, None), Whose::Unknown);
        assert_eq!(whose("127.0.0.1", 5433, None), Whose::Node(2));
        assert_eq!(whose("localhost", 5433, Some(2)), Whose::Node(2));
        // a name that nobody knows any more
        let gone = [node("db9.invalid", 5432)];
        assert_eq!(places.whose(&endpoint("DB9.invalid", 5432), None, &gone, None, &own), Whose::Node(0));
    }

    #[test]
    fn the_named_old_primary_is_known_by_its_name_and_its_address() {
        let old = node("203.0.113.9", 5432);
        let hosts = ["203.0.113.9", "203.0.113.8"];
        let places = Places::find(hosts.map(str::to_owned).into(), &Cancel::new());
        let own = own(&["0.0.0.0"]);
        let whose = |host: &str, address: &str, port: u16| {
            let endpoint = Endpoint { address: address.to_owned(), ..endpoint(host, port) };
            places.whose(&endpoint, None, &[], Some(&old), &own)
        };
        assert_eq!(whose("203.0.113.9", "", 5432), Whose::Old);
        assert_eq!(whose("db9", "203.0.113.9", 5432), Whose::Old);
        assert_eq!(whose("203.0.113.9", "203.0.113.8", 5432), Whose::Old, "its name leads elsewhere there");
        assert_eq!(whose("db9", "203.0.113.8", 5432), Whose::Unknown);
        assert_eq!(whose("203.0.113.9", "", 5433), Whose::Unknown);
    }

    #[test]
    fn the_hosts_own_name_is_its_own() {
        let places = Places::find(["127.0.1.1", "127.0.0.9"].map(str::to_owned).into(), &Cancel::new());
        let whose = |host: &str, address: &str, port: u16| {
            let endpoint = Endpoint { address: address.to_owned(), ..endpoint(host, port) };
            places.whose(&endpoint, None, &[], None, &own(&["127.0.0.2"]))
        };
        assert_eq!(whose("me", "127.0.1.1", 5432), Whose::Own);
        assert_eq!(whose("me", "127.0.1.1", 5433), Whose::Unknown);
        assert_eq!(whose("127.0.1.1", "127.0.1.1", 5432), Whose::Unknown, "it was meant so");
        assert_eq!(whose("other", "127.0.0.9", 5432), Whose::Unknown);
        assert!(
            is_name_of("db2", "db2") && is_name_of("DB2.example.com", "db2") && is_name_of("db2", "db2.lan")
        );
        assert!(!is_name_of("db22", "db2") && !is_name_of("db1", "db2"));
        assert!(!is_name_of("10.0.0.1", "10") && !is_name_of("", ""));
    }

    #[test]
    fn each_address_of_a_host_may_have_a_server_of_its_own() {
        let hosts = ["127.0.0.1", "127.0.0.2", "127.0.0.3"];
        let own = own(&["127.0.0.3"]);
        let places = Places::find(hosts.map(str::to_owned).into(), &Cancel::new());
        let nodes = [node("127.0.0.1", 5432)];
        let whose = |host: &str| places.whose(&endpoint(host, 5432), None, &nodes, None, &own);
        // one name for all of them
        let of_all = |address: &str| {
            let endpoint = Endpoint { address: address.to_owned(), ..endpoint("all", 5432) };
            places.whose(&endpoint, None, &nodes, None, &own)
        };
        assert_eq!(
            ["127.0.0.3", "127.0.0.2", "127.0.0.1"].map(of_all),
            [Whose::Own, Whose::Unknown, Whose::Node(0)]
        );
        assert_eq!(whose("127.0.0.3"), Whose::Own);
        assert_eq!(whose("127.0.0.2"), Whose::Unknown, "somebody else has that address");
        assert_eq!(whose("127.0.0.1"), Whose::Node(0));
        // one that listens on all of them is one
        let all = TcpListener::bind("0.0.0.0:0").expect("listen");
        let one = TcpListener::bind("127.0.0.1:0").expect("listen");
        for (listener, expected) in [(&all, Whose::Node(0)), (&one, Whose::Unknown)] {
            let port = listener.local_addr().expect("address").port();
            let nodes = [node("127.0.0.1", port)];
            assert_eq!(places.whose(&endpoint("127.0.0.2", port), None, &nodes, None, &own), expected);
        }
    }
}
