//! Does the host that a caller names for the primary lead to this very server?
//!
//! A standby logs in where its `primary_conninfo` leads, with a password, and replays what it is sent there. A caller
//! who must not decide that may still name this server, as Pgpool-II does.

use std::net::IpAddr;

use crate::cancel::Cancel;
use crate::error::{Error, Result};
use crate::link::dial::resolve;

/// Where this server can be reached, as its settings say.
#[derive(Debug, Clone)]
pub struct Server {
    /// `listen_addresses`
    pub listen_addresses: String,
    /// `unix_socket_directories`
    pub socket_directories: String,
}

/// Where a host leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leads {
    /// Not to this server.
    Elsewhere,
    /// To this server, but not for the standby: it needs another address.
    HereOnly,
    /// To this server, as it is written.
    Here,
    /// To this server, at this address. Only with the address beside it, because who answers for the name may
    /// answer the standby differently.
    HereAt(IpAddr),
}

/// Where `host` leads. `is_local`: the standby is on this server's host. May ask the name service: not for the main
/// thread of a server.
pub fn leads(host: &str, server: &Server, is_local: bool, cancel: &Cancel) -> Result<Leads> {
    if host.starts_with('/') || host.starts_with('@') {
        // elsewhere another OS user may have made the socket
        let is_ours = list(&server.socket_directories).any(|directory| directory == host);
        return Ok(match (is_ours, is_local) {
            (false, _) => Leads::Elsewhere,
            (true, true) => Leads::Here,
            (true, false) => Leads::HereOnly,
        });
    }
    let interfaces = if_addrs::get_if_addrs().map_err(Error::on("list the network interfaces"))?;
    let addresses: Vec<IpAddr> = if is_localhost(host) {
        LOOPBACK.to_vec()
    } else {
        resolve(host, 0, cancel)?.iter().map(|address| address.ip().to_canonical()).collect()
    };
    let own: Vec<IpAddr> = addresses
        .into_iter()
        .filter(|address| {
            address.is_loopback() || interfaces.iter().any(|interface| interface.ip() == *address)
        })
        .collect();
    let mut listened = Vec::new();
    for address in list(&server.listen_addresses) {
        match address {
            "*" | "0.0.0.0" | "::" => {
                listened.extend(own.iter().filter(|own| match address {
                    "0.0.0.0" => own.is_ipv4(),
                    "::" => own.is_ipv6(),
                    _ => true,
                }));
            }
            // a name that is not known is none that the server listens on
            name => listened
                .extend(resolve(name, 0, cancel).unwrap_or_default().iter().map(|address| address.ip())),
        }
    }
    cancel.check()?;
    Ok(choose(host, &own, &listened, is_local))
}

/// What can be made of a host, of whose addresses `own` are this host's. The server listens on `listened`.
fn choose(host: &str, own: &[IpAddr], listened: &[IpAddr], is_local: bool) -> Leads {
    if own.is_empty() {
        return Leads::Elsewhere;
    }
    let is_name = host.parse::<IpAddr>().is_err() && !is_localhost(host);
    let written = |address: IpAddr| if is_name { Leads::HereAt(address) } else { Leads::Here };
    // an address that another process may have on this host is none of the server's
    let mut ours = own.iter().copied().filter(|address| listened.contains(address));
    match (ours.clone().find(|address| !is_of_this_host_only(*address)), is_local) {
        (Some(address), _) => written(address),
        (None, true) => ours.next().map_or(Leads::HereOnly, written),
        // Debian has the host's own name at 127.0.1.1; elsewhere it is the right name, at another address
        (None, false) if is_name => own
            .iter()
            .copied()
            .find(|address| is_of_this_host_only(*address))
            .map_or(Leads::HereOnly, Leads::HereAt),
        (None, false) => Leads::HereOnly,
    }
}

/// Whether an address means another host, or nothing, to other hosts.
pub fn is_of_this_host_only(address: IpAddr) -> bool {
    address.is_loopback() || matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

const LOOPBACK: [IpAddr; 2] =
    [IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), IpAddr::V6(std::net::Ipv6Addr::LOCALHOST)];

fn is_localhost(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost")
}

/// The elements of a setting that is a list.
fn list(setting: &str) -> impl Iterator<Item = &str> {
    setting.split(',').map(|element| element.trim().trim_matches('"')).filter(|element| !element.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().expect("an address")).collect()
    }

    fn at(text: &str) -> Leads {
        Leads::HereAt(text.parse().expect("an address"))
    }

    #[test]
    fn a_host_whose_addresses_are_all_others_leads_elsewhere() {
        for host in ["attacker", "192.0.2.1"] {
            for is_local in [true, false] {
                assert_eq!(choose(host, &[], &addresses(&["10.0.0.1"]), is_local), Leads::Elsewhere);
            }
        }
    }

    #[test]
    fn a_name_is_pinned_to_the_address_that_was_checked() {
        let own = addresses(&["127.0.1.1", "10.0.0.1", "10.0.1.1"]);
        for is_local in [true, false] {
            assert_eq!(choose("node1", &own, &own, is_local), at("10.0.0.1"));
            assert_eq!(choose("node1", &own, &addresses(&["10.0.1.1"]), is_local), at("10.0.1.1"));
            assert_eq!(
                choose("10.0.0.1", &own[1..2], &own, is_local),
                Leads::Here,
                "there is nothing to look up"
            );
        }
    }

    #[test]
    fn loopback_addresses_are_for_a_standby_on_this_host() {
        let loopback = addresses(&["127.0.1.1"]);
        assert_eq!(choose("node1", &loopback, &loopback, true), at("127.0.1.1"));
        // which address to use instead is known when the standby's host has answered
        assert_eq!(choose("node1", &loopback, &addresses(&["10.0.0.1"]), false), at("127.0.1.1"));
        for host in ["localhost", "127.0.0.1"] {
            let own = addresses(&["127.0.0.1"]);
            assert_eq!(choose(host, &own, &own, true), Leads::Here);
            assert_eq!(choose(host, &own, &own, false), Leads::HereOnly);
        }
        assert!(is_of_this_host_only("fe80::1".parse().expect("an address")));
    }

    #[test]
    fn an_address_where_the_server_does_not_listen_is_not_used() {
        let own = addresses(&["10.0.0.1"]);
        for is_local in [true, false] {
            assert_eq!(choose("node1", &own, &addresses(&["10.0.0.2"]), is_local), Leads::HereOnly);
            assert_eq!(choose("10.0.0.1", &own, &[], is_local), Leads::HereOnly);
        }
        assert_eq!(choose("localhost", &LOOPBACK, &[], true), Leads::HereOnly);
    }

    #[test]
    fn sockets_and_literals_are_told_without_a_name_service() {
        let server = |listen: &str| Server {
            listen_addresses: listen.to_owned(),
            socket_directories: "/run/postgresql, \"/srv/sockets\"".to_owned(),
        };
        let found = |host: &str, listen: &str, is_local| {
            leads(host, &server(listen), is_local, &Cancel::new()).expect("no name to look up")
        };
        assert_eq!(found("/srv/sockets", "", true), Leads::Here);
        assert_eq!(found("/run/postgresql", "", false), Leads::HereOnly);
        assert_eq!(found("/tmp/mine", "*", true), Leads::Elsewhere);
        assert_eq!(found("@mine", "*", true), Leads::Elsewhere);
        assert_eq!(found("localhost", "*", true), Leads::Here);
        assert_eq!(found("127.0.0.1", "0.0.0.0", true), Leads::Here);
        assert_eq!(found("127.0.0.1", "::", true), Leads::HereOnly);
        assert_eq!(found("::ffff:127.0.0.1", "127.0.0.1", true), Leads::Here);
        // TEST-NET-1 belongs to nobody, and 0.0.0.0 is no address to connect to
        for host in ["192.0.2.1", "0.0.0.0", "::"] {
            assert_eq!(found(host, "*", true), Leads::Elsewhere, "{host}");
        }
    }
}
