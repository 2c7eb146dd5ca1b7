//! Does the host that a caller names for the primary lead to this very server?
//!
//! A standby logs in where its `primary_conninfo` leads, with a password, and replays what it is sent there. A caller
//! who must not decide that may still name this server, as Pgpool-II does.

use std::net::IpAddr;

use crate::error::{Error, Kind, Result};
use crate::sys::addresses::{LOOPBACK, resolve};
use crate::sys::cancel::Cancel;
use crate::sys::sockets::is_all_of;

/// Where this server can be reached.
#[derive(Debug, Clone)]
pub struct Server {
    /// The addresses on which it listens ([`crate::sys::sockets::listening_of`]).
    pub listening: Vec<IpAddr>,
    /// `unix_socket_directories`
    pub socket_directories: String,
}

impl Server {
    /// Whether a connection to an address of this host reaches the server.
    pub fn listens_on(&self, address: IpAddr) -> bool {
        self.listening.iter().any(|own| *own == address || is_all_of(*own, address))
    }

    /// Whether it has a socket in this directory.
    pub fn has_socket_in(&self, host: &str) -> bool {
        list(&self.socket_directories).any(|directory| is_same_directory(directory, host))
    }
}

/// Where a host leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Leads {
    /// Not to this server.
    Elsewhere,
    /// To this server, but not for the standby: it needs another address.
    HereOnly,
    /// To this server, as it is written.
    Here,
    /// To this server's socket in this directory, which the server itself names. The caller's name of it may be a link
    /// that leads elsewhere tomorrow.
    HereIn(String),
    /// To this server, at these addresses. Only with the addresses beside it, because who answers for the name may
    /// answer the standby differently.
    HereAt(Vec<IpAddr>),
}

/// Where `host` leads. `is_local`: the standby is on this server's host. May ask the name service: not for the main
/// thread of a server.
pub fn leads(host: &str, server: &Server, is_local: bool, cancel: &Cancel) -> Result<Leads> {
    if host.starts_with('/') || host.starts_with('@') {
        // elsewhere another OS user may have made the socket
        let ours = list(&server.socket_directories).find(|directory| is_same_directory(directory, host));
        return Ok(match (ours, is_local) {
            (None, _) => Leads::Elsewhere,
            (Some(directory), true) => Leads::HereIn(directory.to_owned()),
            (Some(_), false) => Leads::HereOnly,
        });
    }
    let interfaces = if_addrs::get_if_addrs().map_err(Error::on("list the network interfaces"))?;
    let interfaces: Vec<IpAddr> = interfaces.iter().map(|interface| interface.ip()).collect();
    let addresses: Vec<IpAddr> = if is_localhost(host) {
        LOOPBACK.to_vec()
    } else {
        resolve(host, 0, cancel)?.iter().map(|address| address.ip().to_canonical()).collect()
    };
    let is_own = |address: &IpAddr| address.is_loopback() || interfaces.contains(address);
    let own: Vec<IpAddr> = addresses.into_iter().filter(is_own).collect();
    cancel.check()?;
    Ok(choose(host, &own, &interfaces, server, is_local))
}

/// What can be made of a host, of whose addresses `own` are this host's; all that this host has are `interfaces`.
fn choose(host: &str, own: &[IpAddr], interfaces: &[IpAddr], server: &Server, is_local: bool) -> Leads {
    if own.is_empty() {
        return Leads::Elsewhere;
    }
    // an address that another process may have on this host is none of the server's
    let listened = |addresses: &[IpAddr], is_of_this_host: bool| -> Vec<IpAddr> {
        let of_kind = addresses.iter().filter(|address| is_of_this_host_only(**address) == is_of_this_host);
        of_kind.copied().filter(|address| server.listens_on(*address)).collect()
    };
    let mut ours = listened(own, false);
    if is_local {
        ours.extend(listened(own, true));
    } else if ours.is_empty() && !is_localhost(host) {
        // Debian has the host's own name at 127.0.1.1; elsewhere it is the right name, at another address
        ours = listened(interfaces, false);
    }
    let is_literal = host.parse::<IpAddr>().is_ok();
    match ours.as_slice() {
        [] => Leads::HereOnly,
        [only] if is_literal && own.contains(only) => Leads::Here,
        _ if is_literal => Leads::HereOnly,
        _ => Leads::HereAt(ours),
    }
}

/// The loopback addresses at which a standby on this host reaches the server as "localhost".
pub fn as_localhost(server: &Server) -> Vec<IpAddr> {
    LOOPBACK.into_iter().filter(|address| server.listens_on(*address)).collect()
}

/// Of the addresses at which a host leads to this server, those that a standby is given: the one at which its host has
/// seen this server (`peer`) first, and none that is its host's own, too (`theirs`), as a bridge for containers has one address on
/// many hosts. There another program may listen, or its own server, which it would follow for good.
pub fn for_standby(own: &[IpAddr], peer: Option<IpAddr>, theirs: &[IpAddr], most: usize) -> Vec<IpAddr> {
    let peer = peer.map(|peer| peer.to_canonical());
    let mut addresses: Vec<IpAddr> =
        own.iter().copied().filter(|address| !is_among(*address, theirs)).collect();
    addresses.sort_by_key(|address| Some(*address) != peer);
    addresses.truncate(most);
    addresses
}

/// The address at which a standby's host has seen this server (`peer`), for want of a better one. Where it is one of that
/// host's own (`theirs`), a program there stands between the two: a standby that logged in to it would follow itself, or show it the
/// password. `None`: that host cannot list its addresses, and any of them might be this one.
pub fn seen_at(peer: IpAddr, theirs: Option<&[IpAddr]>) -> Result<IpAddr> {
    let peer = peer.to_canonical();
    let why = match theirs {
        Some(theirs) if !is_among(peer, theirs) => return Ok(peer),
        Some(_) => format!(
            "The agent saw this server's connection come from {peer}, an address of its own host: a proxy on that host passes \
             it on, or both hosts have that address."
        ),
        None => format!(
            "The agent saw this server's connection come from {peer}, but could not list the addresses of its own host, so \
             this may be one of them."
        ),
    };
    Err(Error::new(Kind::TargetRefused, "it is not known where the standby reaches this server")
        .detail(why)
        .hint("Set pgpool_recovery.primary_host to the host or address at which the standby's host reaches this server."))
}

/// Refuses an address at which a standby's host has seen this server, unless it is one of this host (`interfaces`) at which
/// the server listens. Elsewhere, behind address translation for one, another program may listen on this server's port.
pub fn demand_own(seen: IpAddr, interfaces: &[IpAddr], server: &Server) -> Result<()> {
    let why = if !is_among(seen, interfaces) && !seen.is_loopback() {
        "which is no address of this server's host"
    } else if !server.listens_on(seen) {
        "where this server does not listen"
    } else {
        return Ok(());
    };
    Err(Error::new(Kind::TargetRefused, "it is not known where the standby reaches this server")
        .detail(format!("The agent saw this server's connection come from {seen}, {why}."))
        .hint("Set pgpool_recovery.primary_host, and pgpool_recovery.primary_port if the port is translated, to where the standby's host reaches this server."))
}

/// Whether an address is one of these, in whichever notation.
pub fn is_among(address: IpAddr, others: &[IpAddr]) -> bool {
    others.iter().any(|other| other.to_canonical() == address.to_canonical())
}

/// Whether an address means another host, or nothing, to other hosts.
fn is_of_this_host_only(address: IpAddr) -> bool {
    address.is_loopback() || matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

/// Whether a name is that of the loopback addresses.
pub fn is_localhost(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost")
}

/// Whether two paths lead to one directory, as /run and /var/run do.
fn is_same_directory(one: &str, other: &str) -> bool {
    let real = |path: &str| std::fs::canonicalize(path).ok();
    one == other || real(one).is_some_and(|one| real(other) == Some(one))
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

    fn server(listening: &[&str]) -> Server {
        Server {
            listening: addresses(listening),
            socket_directories: "/run/postgresql, \"/srv/sockets\"".to_owned(),
        }
    }

    fn at(texts: &[&str]) -> Leads {
        Leads::HereAt(addresses(texts))
    }

    const INTERFACES: [&str; 4] = ["127.0.0.1", "::1", "10.0.0.1", "fd00::1"];

    fn chosen(host: &str, own: &[&str], listening: &[&str], is_local: bool) -> Leads {
        choose(host, &addresses(own), &addresses(&INTERFACES), &server(listening), is_local)
    }

    #[test]
    fn a_host_whose_addresses_are_all_others_leads_elsewhere() {
        for host in ["attacker", "192.0.2.1"] {
            for is_local in [true, false] {
                assert_eq!(chosen(host, &[], &["0.0.0.0", "::"], is_local), Leads::Elsewhere);
            }
        }
    }

    #[test]
    fn a_name_is_pinned_to_every_address_that_was_checked() {
        let own = ["127.0.1.1", "10.0.0.1", "fd00::1"];
        assert_eq!(chosen("node1", &own, &["0.0.0.0", "::"], false), at(&["10.0.0.1", "fd00::1"]));
        assert_eq!(chosen("node1", &own, &["0.0.0.0"], false), at(&["10.0.0.1"]), "nothing is known of ::");
        assert_eq!(chosen("node1", &own, &["fd00::1"], false), at(&["fd00::1"]));
        assert_eq!(
            chosen("node1", &own, &["0.0.0.0", "::"], true),
            at(&["10.0.0.1", "fd00::1", "127.0.1.1"])
        );
        assert_eq!(chosen("10.0.0.1", &["10.0.0.1"], &["0.0.0.0"], false), Leads::Here, "nothing to look up");
    }

    #[test]
    fn loopback_addresses_are_for_a_standby_on_this_host() {
        assert_eq!(chosen("node1", &["127.0.1.1"], &["0.0.0.0"], true), at(&["127.0.1.1"]));
        assert_eq!(chosen("node1", &["127.0.1.1"], &["0.0.0.0"], false), at(&["10.0.0.1"]));
        assert_eq!(chosen("node1", &["127.0.1.1"], &["10.0.0.1", "127.0.0.1"], false), at(&["10.0.0.1"]));
        assert_eq!(chosen("node1", &["127.0.1.1"], &["127.0.0.1"], false), Leads::HereOnly);
        assert_eq!(chosen("127.0.0.1", &["127.0.0.1"], &["0.0.0.0"], true), Leads::Here);
        for host in ["localhost", "127.0.0.1"] {
            assert_eq!(chosen(host, &["127.0.0.1"], &["0.0.0.0"], false), Leads::HereOnly, "{host}");
        }
    }

    #[test]
    fn a_standby_is_given_no_address_of_its_own_host() {
        let own = addresses(&["172.17.0.1", "10.1.0.1", "10.0.0.1", "fd00::1"]);
        let given = |peer: &str, theirs: &[&str], most| {
            for_standby(&own, peer.parse().ok(), &addresses(theirs), most)
        };
        let bridge = ["10.0.0.2", "172.17.0.1", "::ffff:10.1.0.1"];
        assert_eq!(given("10.0.0.1", &bridge, 4), addresses(&["10.0.0.1", "fd00::1"]));
        let first = given("::ffff:10.0.0.1", &[], 2);
        assert_eq!(first, addresses(&["10.0.0.1", "172.17.0.1"]), "it is known to lead here");
        assert_eq!(given("192.0.2.1", &["10.0.0.2"], 4), own, "behind address translation");
        let all = ["172.17.0.1", "10.1.0.1", "10.0.0.1", "fd00::1"];
        assert!(given("fd00::1", &all, 4).is_empty(), "none leads here from there");
        assert_eq!(given("", &[], 4), own);
    }

    #[test]
    fn an_address_of_the_standbys_own_host_does_not_lead_here() {
        let theirs = addresses(&["127.0.0.1", "10.0.0.2", "fd00::2"]);
        for (peer, leads_here) in
            [("10.0.0.1", true), ("::ffff:10.0.0.1", true), ("10.0.0.2", false), ("::ffff:10.0.0.2", false)]
        {
            let seen = seen_at(peer.parse().expect("an address"), Some(&theirs));
            assert_eq!(seen.is_ok(), leads_here, "{peer}: {seen:?}");
            match seen {
                Ok(address) => assert_eq!(address, addresses(&["10.0.0.1"])[0], "in its usual notation"),
                Err(error) => assert!(error.hint.is_some_and(|hint| hint.contains("primary_host"))),
            }
        }
    }

    #[test]
    fn an_address_is_not_used_where_those_of_the_standbys_host_are_unknown() {
        let peer = addresses(&["10.0.0.1"])[0];
        let error = seen_at(peer, None).expect_err("it cannot be told");
        assert_eq!(error.kind, Kind::TargetRefused);
        assert!(error.detail.is_some_and(|detail| detail.contains("10.0.0.1")));
        assert!(error.hint.is_some_and(|hint| hint.contains("pgpool_recovery.primary_host")));
        assert_eq!(seen_at(peer, Some(&[])), Ok(peer), "known to have none");
    }

    #[test]
    fn an_address_that_was_seen_is_used_only_where_the_server_listens() {
        let interfaces = addresses(&INTERFACES);
        for (seen, listening, is_own) in [
            ("10.0.0.1", "0.0.0.0", true),
            ("127.0.0.66", "127.0.0.66", true),
            ("10.0.0.1", "fd00::1", false),
            ("127.0.0.1", "127.0.0.66", false),
            ("192.0.2.1", "0.0.0.0", false),
        ] {
            let found = demand_own(addresses(&[seen])[0], &interfaces, &server(&[listening]));
            assert_eq!(found.is_ok(), is_own, "{seen}: {found:?}");
        }
    }

    #[test]
    fn another_program_may_have_the_other_localhost() {
        let both = ["127.0.0.1", "::1"];
        assert_eq!(chosen("localhost", &both, &["127.0.0.1"], true), at(&["127.0.0.1"]));
        assert_eq!(chosen("localhost", &both, &["0.0.0.0"], true), at(&["127.0.0.1"]));
        assert_eq!(chosen("localhost", &both, &["::"], true), at(&["::1"]));
        assert_eq!(chosen("localhost", &both, &[], true), Leads::HereOnly);
        assert_eq!(as_localhost(&server(&["0.0.0.0"])), addresses(&["127.0.0.1"]));
        assert!(as_localhost(&server(&["10.0.0.1"])).is_empty());
    }

    #[test]
    fn an_address_where_the_server_does_not_listen_is_not_used() {
        for is_local in [true, false] {
            assert_eq!(chosen("10.0.0.1", &["10.0.0.1"], &[], is_local), Leads::HereOnly);
            assert_eq!(chosen("10.0.0.1", &["10.0.0.1"], &["fd00::1"], is_local), Leads::HereOnly);
        }
        assert_eq!(chosen("node1", &["10.0.0.1"], &["127.0.0.1"], true), Leads::HereOnly);
    }

    #[test]
    fn sockets_and_literals_are_told_without_a_name_service() {
        let found = |host: &str, listening: &[&str], is_local| {
            leads(host, &server(listening), is_local, &Cancel::new()).expect("no name to look up")
        };
        assert_eq!(found("/srv/sockets", &[], true), Leads::HereIn("/srv/sockets".to_owned()));
        assert_eq!(found("/run/postgresql", &[], false), Leads::HereOnly);
        assert_eq!(found("/tmp/mine", &["0.0.0.0"], true), Leads::Elsewhere);
        assert_eq!(found("@mine", &["0.0.0.0"], true), Leads::Elsewhere);
        assert_eq!(found("localhost", &["0.0.0.0"], true), at(&["127.0.0.1"]));
        assert_eq!(found("127.0.0.1", &["0.0.0.0"], true), Leads::Here);
        assert_eq!(found("127.0.0.1", &["::"], true), Leads::HereOnly);
        assert_eq!(found("::ffff:127.0.0.1", &["127.0.0.1"], true), Leads::Here);
        // TEST-NET-1 belongs to no host, and 0.0.0.0 is no address to connect to
        for host in ["192.0.2.1", "0.0.0.0", "::"] {
            assert_eq!(found(host, &["0.0.0.0", "::"], true), Leads::Elsewhere, "{host}");
        }
        let top = tempfile::tempdir().expect("temporary directory");
        std::os::unix::fs::symlink(top.path(), top.path().join("run")).expect("link");
        let link = top.path().join("run").display().to_string();
        assert!(is_same_directory(&link, &top.path().display().to_string()));
        let server = Server { listening: vec![], socket_directories: top.path().display().to_string() };
        let by_link = leads(&link, &server, true, &Cancel::new()).expect("no name to look up");
        assert_eq!(by_link, Leads::HereIn(server.socket_directories), "the link may lead elsewhere tomorrow");
        assert!(!is_same_directory(&link, "/not/there") && !is_same_directory("/not/here", "/not/there"));
    }
}
