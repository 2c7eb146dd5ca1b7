//! Whose server is found where a standby looks for the one that it follows: hosts are compared by their addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
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
        let is_there = |node: &OtherNode| {
            let is_one_with = |found: &Whereabouts| {
                self.0.get(&node.host).is_some_and(|place| place.is_one_server_with(found, all))
            };
            let is_named_so = endpoint.address.is_empty() && node.host.eq_ignore_ascii_case(host);
            node.port == port && (is_named_so || found.is_some_and(is_one_with))
        };
        let mut there = (0..nodes.len()).filter(|&at| is_there(&nodes[at]));
        match (there.next(), there.next()) {
            (Some(at), None) => Whose::Node(at),
            _ => Whose::Unknown,
        }
    }
}

/// Whether this standby listens there, at its own port.
fn is_own(host: &str, found: Option<&Whereabouts>, own: &Own) -> bool {
    if host.starts_with(['/', '@']) {
        return own.server.has_socket_in(host);
    }
    let found = found.filter(|found| found.is_here);
    found.is_some_and(|found| found.has(|address| own.server.listens_on(address)))
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
        let whose =
            |host: &str, port: u16, by: Option<usize>| places.whose(&endpoint(host, port), by, &nodes, &own);
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
        assert_eq!(places.whose(&endpoint("DB9.invalid", 5432), None, &gone, &own), Whose::Node(0));
    }

    #[test]
    fn each_address_of_a_host_may_have_a_server_of_its_own() {
        let hosts = ["127.0.0.1", "127.0.0.2", "127.0.0.3"];
        let own = own(&["127.0.0.3"]);
        let places = Places::find(hosts.map(str::to_owned).into(), &Cancel::new());
        let nodes = [node("127.0.0.1", 5432)];
        let whose = |host: &str| places.whose(&endpoint(host, 5432), None, &nodes, &own);
        // one name for all of them
        let of_all = |address: &str| {
            let endpoint = Endpoint { address: address.to_owned(), ..endpoint("all", 5432) };
            places.whose(&endpoint, None, &nodes, &own)
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
            assert_eq!(places.whose(&endpoint("127.0.0.2", port), None, &nodes, &own), expected);
        }
    }
}
