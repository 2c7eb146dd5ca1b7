//! Whether a server is silent: it speaks with clients at none of its host's addresses. psql tries them one after the other, and one that
//! was ended in the middle of that, or while the name was looked up or the login hung, has proved nothing.

use std::net::{IpAddr, ToSocketAddrs};
use std::process::Command;
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::{Duration, Instant};

use crate::event::Place;
use crate::failure::{Failure, Result};
use crate::program;

/// How long a name may take.
const LOOKUP: Duration = Duration::from_secs(2);

/// How long pg_isready may take for one address by its own clock, seconds: libpq takes no less. And by ours.
const CONNECT: &str = "2";
const LIMIT: Duration = Duration::from_secs(5);

/// What pg_isready ends with if there was no answer.
const NO_ANSWER: i32 = 2;

/// Fails unless nobody speaks there. It needs no login.
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

fn demand_at(place: &Place, address: Option<IpAddr>) -> Result<()> {
    let mut command = Command::new("pg_isready");
    command.args(["-q", "-t", CONNECT]);
    command.env("PGHOST", &place.host).env("PGPORT", place.port.to_string()).env_remove("PGHOSTADDR");
    let mut name = place.host.clone();
    if let Some(address) = address {
        name = address.to_string();
        command.env("PGHOSTADDR", &name);
    }
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

/// The addresses of a name; none of a directory of sockets, and of a name that libpq does not find either and says so. The system's
/// resolver cannot be interrupted: a thread that it holds up is left behind.
fn addresses(host: &str, port: u16) -> Result<Vec<IpAddr>> {
    if host.starts_with(['/', '@']) {
        return Ok(Vec::new());
    }
    let (answer, answered) = sync_channel(1);
    let name = host.to_owned();
    thread::spawn(move || {
        let found = (name.as_str(), port).to_socket_addrs().map(|all| all.map(|one| one.ip()).collect());
        let _ = answer.send(found);
    });
    match answered.recv_timeout(LOOKUP) {
        Ok(found) => {
            let mut addresses: Vec<IpAddr> = found.unwrap_or_default();
            addresses.sort_unstable();
            addresses.dedup();
            Ok(addresses)
        }
        Err(_) => Err(Failure::new(format!("no name service told the addresses of {host} in time"))),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn an_address_is_its_own_and_sockets_have_none() {
        let of = |host| addresses(host, 5432).expect("told at once");
        assert_eq!(of("203.0.113.7"), [IpAddr::from([203, 0, 113, 7])]);
        assert!(of("localhost").iter().all(IpAddr::is_loopback) && !of("localhost").is_empty());
        assert!(of("/var/run/postgresql").is_empty());
    }

    #[test]
    fn a_port_that_nobody_listens_on_is_silent() {
        let port = TcpListener::bind("127.0.0.1:0").and_then(|one| one.local_addr()).expect("a port").port();
        let place = Place { node: 1, host: "127.0.0.1".to_owned(), port };
        demand(&place).expect("silent");
    }
}
