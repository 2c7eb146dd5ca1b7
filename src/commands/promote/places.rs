//! Whose server is found where a standby looks for the one that it follows: hosts are compared by their addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use pgpool_recovery_core::preflight::chain::Whose;
use pgpool_recovery_core::sys::addresses::{self, Whereabouts};
use pgpool_recovery_core::sys::cancel::Cancel;
use pgpool_recovery_core::sys::parallel::{self, Job};
use pgpool_recovery_core::wire::protocol::upstream::Endpoint;

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

    /// Whose server is at an endpoint that the node at a place of the list, or this standby, has in its string.
    pub(super) fn whose(
        &self,
        endpoint: &Endpoint,
        by: Option<usize>,
        nodes: &[OtherNode],
        own_port: u16,
    ) -> Whose {
        if endpoint.host.is_empty() {
            return Whose::Unknown;
        }
        let host = meant(endpoint, by.map(|at| nodes[at].host.as_str()));
        let Some(found) = self.0.get(host) else { return Whose::Unknown };
        let is_there = |node: &OtherNode| {
            node.port.to_string() == endpoint.port
                && self.0.get(&node.host).is_some_and(|place| place.is_one_with(found))
        };
        if found.is_here && endpoint.port == own_port.to_string() {
            return Whose::Own;
        }
        let mut there = (0..nodes.len()).filter(|&at| is_there(&nodes[at]));
        match (there.next(), there.next()) {
            (Some(at), None) => Whose::Node(at),
            _ => Whose::Unknown,
        }
    }
}

/// The host that an endpoint means which the host `by` has named: a socket, or a loopback address, is that host's own.
pub(super) fn meant<'a>(endpoint: &'a Endpoint, by: Option<&'a str>) -> &'a str {
    let host = endpoint.host.as_str();
    let is_loopback = host.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback());
    let is_its_own = host.starts_with(['/', '@']) || host.eq_ignore_ascii_case("localhost") || is_loopback;
    match by {
        Some(by) if is_its_own => by,
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(host: &str, port: u16) -> Endpoint {
        Endpoint { host: host.to_owned(), port: port.to_string() }
    }

    #[test]
    fn a_server_is_known_by_address_and_port() {
        let node = |host: &str, port: u16| OtherNode {
            id: None,
            host: host.to_owned(),
            port,
            directory: "/d".to_owned(),
        };
        let nodes = [node("203.0.113.1", 5432), node("203.0.113.2", 5432), node("localhost", 5433)];
        let hosts = ["203.0.113.1", "203.0.113.2", "203.0.113.3", "localhost", "127.0.0.1", "/run"];
        let places = Places::find(hosts.map(str::to_owned).into(), &Cancel::new());
        let whose =
            |host: &str, port: u16, by: Option<usize>| places.whose(&endpoint(host, port), by, &nodes, 5432);
        assert_eq!(whose("203.0.113.2", 5432, None), Whose::Node(1));
        assert_eq!(whose("203.0.113.2", 5433, None), Whose::Unknown);
        assert_eq!(whose("203.0.113.3", 5432, None), Whose::Unknown);
        assert_eq!(whose("unheard-of.invalid", 5432, None), Whose::Unknown);
        for here in ["127.0.0.1", "localhost", "/run"] {
            assert_eq!(whose(here, 5432, None), Whose::Own, "{here}");
            assert_eq!(whose(here, 5433, None), Whose::Node(2), "{here}");
            assert_eq!(whose(here, 5432, Some(1)), Whose::Node(1), "it is that host's own: {here}");
        }
    }
}
