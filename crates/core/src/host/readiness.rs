//! Will the server start here once its directory is complete?

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use socket2::{Domain, Protocol, Socket, Type};

use super::launch::demand_reaper;
use super::policy::Cluster;
use crate::error::{Error, Kind, Result};
use crate::sys::addresses::resolve;
use crate::sys::cancel::Cancel;

/// What starts the server, if it is there.
pub(crate) fn starter(cluster: &Cluster) -> Result<String> {
    let pg_ctl;
    let words = match &cluster.start_command {
        Some(words) => words.as_slice(),
        None => {
            pg_ctl = [cluster.bin_directory.join("pg_ctl").display().to_string(), "start".to_owned()];
            &pg_ctl
        }
    };
    let program = words.first().map_or("", String::as_str);
    if find(program).is_none() {
        return Err(Error::new(Kind::MissingFile, format!("start command \"{program}\" is not there"))
            .detail("It is neither a program's path nor found in PATH of the receiver.")
            .hint("Correct start_command or bin_directory in agent.toml."));
    }
    demand_reaper(cluster.orphans_go_to_primary)?;
    Ok(words.join(" "))
}

/// Refuses a port that something listens on, and addresses none of which this host has: a server ends if it can listen on
/// no address. A server that is stopped holds none. A name that leads nowhere counts as none.
pub(crate) fn test_port(port: u16, addresses: &str, cancel: &Cancel) -> Result<()> {
    let (mut foreign, mut own) = (Vec::new(), 0);
    for address in addresses.split(',').map(str::trim).filter(|address| !address.is_empty()) {
        let wanted = match address {
            "*" => vec!["0.0.0.0", "::"],
            other => vec![other],
        };
        for address in wanted.into_iter().filter_map(|name| resolve(name, port, cancel).ok()).flatten() {
            let Err(error) = bind(address) else {
                own += 1;
                continue;
            };
            if error.kind() == io::ErrorKind::AddrNotAvailable {
                foreign.push(address.ip().to_string());
            } else if error.kind() == io::ErrorKind::AddrInUse {
                return Err(Error::new(Kind::InUse, format!("port {port} is in use on the target's host"))
                    .detail(format!("Something listens on {address} already, so the standby could not start."))
                    .hint("Stop it, or give the standby another port: in its own postgresql.conf, or with dest_port."));
            }
        }
    }
    cancel.check()?;
    if own > 0 || foreign.is_empty() {
        return Ok(());
    }
    Err(Error::new(
        Kind::InUse,
        format!("port {port} cannot be listened on: the target's host has none of the addresses"),
    )
    .detail(format!("The standby would listen on {}, which do not belong to that host.", foreign.join(", ")))
    .hint("Set listen_addresses in the standby's own postgresql.conf."))
}

/// Bound, but never listening: a server that starts at this moment is not in its way.
fn bind(address: SocketAddr) -> io::Result<()> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        // as PostgreSQL does: else "::" would mean all of IPv4 as well
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())
}

/// The executable file that a command line's first word means.
fn find(program: &str) -> Option<PathBuf> {
    let runs = |path: &Path| {
        path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
    };
    if program.contains('/') {
        return Some(PathBuf::from(program)).filter(|path| runs(path));
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join(program)).find(|path| runs(path))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn cluster(start_command: Option<&[&str]>) -> Cluster {
        Cluster {
            start_command: start_command.map(|words| words.iter().map(|&word| word.to_owned()).collect()),
            ..Cluster::new("/d".into(), "/nowhere".into())
        }
    }

    #[test]
    fn a_server_whose_orphans_the_primary_would_get_has_no_starter() {
        let cluster = Cluster { orphans_go_to_primary: true, ..cluster(Some(&["/bin/sh"])) };
        assert_eq!(starter(&cluster).map_err(|error| error.kind), Err(Kind::WrongState));
    }

    #[test]
    fn a_start_command_must_be_there() {
        assert_eq!(starter(&cluster(Some(&["sh", "-c", "x"]))), Ok("sh -c x".to_owned()));
        assert_eq!(starter(&cluster(Some(&["/bin/sh"]))), Ok("/bin/sh".to_owned()));
        for missing in [Some(["no-such-program"].as_slice()), Some(&["/etc/passwd"]), None] {
            assert_eq!(starter(&cluster(missing)).map_err(|error| error.kind), Err(Kind::MissingFile));
        }
    }

    #[test]
    fn a_port_that_somebody_listens_on_is_in_use() {
        // below the ports that the kernel gives to connections, which would be in use again at once
        let is_free = |port: &u16| TcpListener::bind(("0.0.0.0", *port)).is_ok();
        let port = (15_000..20_000).find(is_free).expect("a free port");
        let other = TcpListener::bind(("127.0.0.1", port)).expect("listen");
        for addresses in ["127.0.0.1", "*", "localhost", "0.0.0.0, ::1"] {
            let tested = test_port(port, addresses, &Cancel::new()).map_err(|error| error.kind);
            assert_eq!(tested, Err(Kind::InUse), "{addresses}");
        }
        for addresses in ["", "127.0.0.2", "no.such.host.invalid"] {
            assert_eq!(test_port(port, addresses, &Cancel::new()), Ok(()), "{addresses}");
        }
        drop(other);
        assert_eq!(test_port(port, "*", &Cancel::new()), Ok(()));
    }

    #[test]
    fn an_address_of_another_host_is_told() {
        // TEST-NET-1 belongs to no host
        let error = test_port(15_432, "192.0.2.1", &Cancel::new()).expect_err("not of this host");
        assert!(error.detail.is_some_and(|detail| detail.contains("192.0.2.1")), "{}", error.message);
        assert_eq!(test_port(15_432, "192.0.2.1, 127.0.0.3", &Cancel::new()), Ok(()), "one is enough");
    }
}
