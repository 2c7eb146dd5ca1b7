//! Whether a server is silent: it speaks with clients at none of its host's addresses. psql tries them one after the other, and one that
//! was ended in the middle of that, or while the name was looked up or the login hung, has proved nothing.

use std::net::{SocketAddr, ToSocketAddrs};
use std::process::Command;
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::{Duration, Instant};

use crate::event::Place;
use crate::failure::{Failure, NO_NAME, Result};
use crate::program;

/// How long a name may take.
const LOOKUP: Duration = Duration::from_secs(2);

/// How long pg_isready may take for one address by its own clock, seconds: libpq takes no less. And by ours.
const CONNECT: &str = "2";
const LIMIT: Duration = Duration::from_secs(5);

/// What pg_isready ends with if there was no answer.
const NO_ANSWER: i32 = 2;

/// Fails if a server speaks with clients at any address of the host, or if that cannot be told. Needs no login.
pub(crate) fn demand(place: &Place) -> Result<()> {
    let addresses = addresses(&place.host, place.port)?;
    let asked = if addresses.is_empty() { vec![None] } else { addresses.into_iter().map(Some).collect() };
    let ask = |address| demand_at(place, address);
    thread::scope(|scope| {
        let asked: Vec<_> = asked.into_iter().map(|address| scope.spawn(move || ask(address))).collect();
        let failed = |_| Err(Failure::new("the question failed"));
        asked.into_iter().try_for_each(|question| question.join().unwrap_or_else(failed))
    })
}

fn demand_at(place: &Place, address: Option<String>) -> Result<()> {
    let mut command = Command::new("pg_isready");
    command.args(["-q", "-t", CONNECT]);
    command.env("PGHOST", &place.host).env("PGPORT", place.port.to_string()).env_remove("PGHOSTADDR");
    if let Some(address) = &address {
        command.env("PGHOSTADDR", address);
    }
    let name = address.unwrap_or_else(|| place.host.clone());
    let finished = program::run(command, "", Instant::now() + LIMIT)?
        .ok_or_else(|| Failure::new(format!("pg_isready did not end for {name}:{}", place.port)))?;
    match finished.status.code() {
        Some(NO_ANSWER) => Ok(()),
        Some(0 | 1) => Err(Failure::new(format!("a server speaks with clients at {name}:{}", place.port))),
        _ => {
            Err(Failure::new(format!("pg_isready for {name}:{} ended with {}", place.port, finished.status)))
        }
    }
}

/// The addresses of a name, as libpq reads them; none of a directory of sockets, and of a name that does not exist. The system's
/// resolver cannot be interrupted: a thread that it holds up is left behind.
fn addresses(host: &str, port: u16) -> Result<Vec<String>> {
    if host.starts_with(['/', '@']) {
        return Ok(Vec::new());
    }
    let (answer, answered) = sync_channel(1);
    let name = host.to_owned();
    thread::spawn(move || {
        let found = (name.as_str(), port).to_socket_addrs();
        let _ = answer.send(found.map(|all| all.map(text).collect::<Vec<_>>()));
    });
    match answered.recv_timeout(LOOKUP) {
        Ok(Ok(mut addresses)) => {
            addresses.sort_unstable();
            addresses.dedup();
            Ok(addresses)
        }
        Ok(Err(error)) => not_found(host, &error.to_string()),
        Err(_) => not_found(host, &format!("there was no answer within {} s", LOOKUP.as_secs())),
    }
}

/// A name service that says that there is no such name has answered; any other failure says nothing of the host.
fn not_found(host: &str, why: &str) -> Result<Vec<String>> {
    if NO_NAME.iter().any(|end| why.ends_with(end)) {
        return Ok(Vec::new());
    }
    Err(Failure::new(format!("no name service told the addresses of {host}: {why}")))
}

/// A link-local address is one only together with its network.
fn text(address: SocketAddr) -> String {
    match address {
        SocketAddr::V6(address) if address.scope_id() != 0 => {
            format!("{}%{}", address.ip(), address.scope_id())
        }
        other => other.ip().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn an_address_is_its_own_and_sockets_have_none() {
        let of = |host| addresses(host, 5432).expect("told at once");
        assert_eq!(of("203.0.113.7"), ["203.0.113.7"]);
        let is_loopback =
            |address: &String| address.parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback());
        assert!(of("localhost").iter().all(is_loopback) && !of("localhost").is_empty());
        assert!(of("/var/run/postgresql").is_empty());
    }

    #[test]
    fn a_name_service_that_fails_tells_nothing() {
        let said = |why: &str| not_found("db3", &format!("failed to lookup address information: {why}"));
        assert_eq!(said("Name or service not known"), Ok(Vec::new()));
        let failure = said("Temporary failure in name resolution").expect_err("no answer");
        assert!(failure.message.contains("db3") && !failure.is_silence(), "{failure}");
    }

    #[test]
    fn a_link_local_address_keeps_its_network() {
        let address = std::net::SocketAddrV6::new("fe80::1".parse().expect("an address"), 5432, 0, 2);
        assert_eq!(text(address.into()), "fe80::1%2");
    }

    #[test]
    fn a_port_that_nobody_listens_on_is_silent() {
        let port = TcpListener::bind("127.0.0.1:0").and_then(|one| one.local_addr()).expect("a port").port();
        let place = Place { node: 1, host: "127.0.0.1".to_owned(), port };
        demand(&place).expect("silent");
    }
}
