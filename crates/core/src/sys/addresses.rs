//! Names and addresses of hosts, this one's too.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use crate::error::{Error, Kind, Result};
use crate::sys::cancel::Cancel;

/// How long a name may take.
const DEADLINE: Duration = Duration::from_secs(10);

/// How often a cancel is looked for.
const TURN: Duration = Duration::from_millis(50);

/// Whether `host` is this machine: a socket path, nothing, `localhost`, or a name or address that
/// belongs to one of its interfaces.
pub fn is_this_host(host: &str, cancel: &Cancel) -> Result<bool> {
    if host.is_empty()
        || host.starts_with('/')
        || host.starts_with('@')
        || host.eq_ignore_ascii_case("localhost")
    {
        return Ok(true);
    }
    let own = own_addresses().map_err(Error::on("list the network interfaces"))?;
    let is_local =
        |address: IpAddr| address.is_loopback() || address.is_unspecified() || own.contains(&address);
    Ok(resolve(host, 0, cancel)?.iter().any(|address| is_local(address.ip())))
}

/// The addresses of this host's interfaces.
pub fn own_addresses() -> io::Result<Vec<IpAddr>> {
    Ok(if_addrs::get_if_addrs()?.iter().map(if_addrs::Interface::ip).collect())
}

/// The addresses of a name. The system's resolver cannot be interrupted, so it runs in a thread of its
/// own; if it is not done in time, that thread is left behind: it touches nothing but its answer.
pub(crate) fn resolve(host: &str, port: u16, cancel: &Cancel) -> Result<Vec<SocketAddr>> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    let name = host.to_owned();
    let (answer, answered) = sync_channel(1);
    std::thread::Builder::new()
        .name("resolver".to_owned())
        .spawn(move || {
            let _ = answer.send((name.as_str(), port).to_socket_addrs().map(Iterator::collect::<Vec<_>>));
        })
        .map_err(Error::on("start a thread"))?;
    let unresolved = |why: &str| {
        Error::new(Kind::Unreachable, format!("could not resolve host name \"{host}\": {why}")).hint(
            "Check backend_hostname in pgpool.conf, or the name given, and the name service of this host.",
        )
    };
    let deadline = Instant::now() + DEADLINE;
    loop {
        match answered.recv_timeout(TURN) {
            Ok(Ok(addresses)) => return Ok(addresses),
            Ok(Err(error)) => return Err(unresolved(&error.to_string())),
            Err(RecvTimeoutError::Disconnected) => return Err(unresolved("the resolver failed")),
            Err(RecvTimeoutError::Timeout) if Instant::now() >= deadline => {
                return Err(unresolved("no answer from the name service"));
            }
            Err(RecvTimeoutError::Timeout) => cancel.check()?,
        }
    }
}

#[cfg(test)]
mod tests {
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
        assert_eq!(error.kind, Kind::Unreachable);
    }
}
