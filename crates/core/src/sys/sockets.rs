//! The kernel's tables of TCP sockets (proc_pid_net(5)).

use std::collections::HashSet;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The state of a socket that listens (include/net/tcp_states.h).
const TCP_LISTEN: &str = "0A";

/// The addresses on which servers of this process's user listen at a port; the unspecified address of a family stands for all of
/// it.
pub fn listening(port: u16) -> io::Result<Vec<IpAddr>> {
    let user = rustix::process::geteuid().as_raw();
    listeners(|listener| listener.user == user && listener.port == port)
}

/// The addresses on which a process listens at a port. What a server is told to listen on it may not have got: another program
/// may have been there first.
pub fn listening_of(process: u32, port: u16) -> io::Result<Vec<IpAddr>> {
    let own = sockets_of(process)?;
    listeners(|listener| listener.port == port && own.contains(&listener.inode))
}

/// The sockets that a process has open, by their inodes (proc_pid_fd(5)).
fn sockets_of(process: u32) -> io::Result<HashSet<u64>> {
    let mut found = HashSet::new();
    for entry in fs::read_dir(format!("/proc/{process}/fd"))? {
        match fs::read_link(entry?.path()) {
            Ok(target) => found.extend(inode(&target.to_string_lossy())),
            // closed meanwhile
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// The inode in `socket:[1234]`.
fn inode(target: &str) -> Option<u64> {
    target.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// The addresses of such sockets that listen.
fn listeners(is_such: impl Fn(&Listener) -> bool) -> io::Result<Vec<IpAddr>> {
    let mut found = Vec::new();
    for table in ["tcp", "tcp6"] {
        let text = match fs::read_to_string(format!("/proc/self/net/{table}")) {
            // a kernel without IPv6
            Err(error) if error.kind() == io::ErrorKind::NotFound && table == "tcp6" => continue,
            text => text?,
        };
        let such = text.lines().filter_map(Listener::parse).filter(&is_such);
        found.extend(such.map(|listener| listener.address));
    }
    Ok(found)
}

/// A socket that listens.
#[derive(Debug, PartialEq, Eq)]
struct Listener {
    address: IpAddr,
    port: u16,
    user: u32,
    inode: u64,
}

impl Listener {
    /// What a line of a table says, if it is of such a socket.
    fn parse(line: &str) -> Option<Self> {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, local, _, TCP_LISTEN, _, _, _, user, _, inode, ..] = fields.as_slice() else {
            return None;
        };
        let local = address(local)?;
        let (address, port) = (local.ip(), local.port());
        Some(Self { address, port, user: user.parse().ok()?, inode: inode.parse().ok()? })
    }
}

/// Whether an address that is listened on stands for all of another one's family.
pub const fn is_all_of(listening: IpAddr, address: IpAddr) -> bool {
    listening.is_unspecified() && listening.is_ipv4() == address.is_ipv4()
}

/// An address as /proc/net/tcp writes it: groups of 32 bits in network order, each printed as one number of the
/// processor's order, and the port.
pub(crate) fn address(text: &str) -> Option<SocketAddr> {
    let (host, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let group = |at: usize| -> Option<[u8; 4]> {
        Some(u32::from_str_radix(host.get(at..at + 8)?, 16).ok()?.to_ne_bytes())
    };
    let ip = match host.len() {
        8 => IpAddr::V4(Ipv4Addr::from(group(0)?)),
        32 => {
            let groups = [group(0)?, group(8)?, group(16)?, group(24)?].concat();
            IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(groups).ok()?))
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip.to_canonical(), port))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::process::Command;

    use super::*;

    #[test]
    fn what_listens_is_found_and_nothing_else() {
        let one = TcpListener::bind("127.0.0.1:0").expect("listen");
        let port = one.local_addr().expect("address").port();
        assert_eq!(listening(port).expect("read"), ["127.0.0.1".parse::<IpAddr>().expect("an address")]);
        drop(one);
        assert_eq!(listening(port).expect("read"), Vec::<IpAddr>::new());
    }

    #[test]
    fn each_process_has_sockets_of_its_own() {
        let one = TcpListener::bind("127.0.0.1:0").expect("listen");
        let port = one.local_addr().expect("address").port();
        let own = std::process::id();
        assert_eq!(
            listening_of(own, port).expect("read"),
            ["127.0.0.1".parse::<IpAddr>().expect("an address")]
        );
        // of the same user, and at the same port, but another process's
        let mut other = Command::new("sleep").arg("60").spawn().expect("start");
        let of_another = listening_of(other.id(), port);
        other.kill().expect("kill");
        other.wait().expect("wait");
        assert_eq!(of_another.expect("read"), Vec::<IpAddr>::new());
        assert!(listening_of(other.id(), port).is_err(), "an error is no answer");
    }

    #[test]
    fn only_lines_of_sockets_that_listen_count() {
        let line = "   0: 00000000:1538 00000000:0000 0A 00000000:00000000 00:00000000 00000000  7 0 4321 1";
        let listener =
            Listener { address: IpAddr::V4(Ipv4Addr::UNSPECIFIED), port: 0x1538, user: 7, inode: 4321 };
        assert_eq!(Listener::parse(line), Some(listener));
        assert_eq!(Listener::parse(&line.replace(" 0A ", " 01 ")), None);
        assert_eq!(Listener::parse("  sl  local_address rem_address"), None);
        assert_eq!(
            (inode("socket:[4321]"), inode("pipe:[4321]"), inode("/dev/null")),
            (Some(4321), None, None)
        );
    }
}
