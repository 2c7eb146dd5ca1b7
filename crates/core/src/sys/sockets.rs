//! The kernel's tables of TCP sockets (proc_pid_net(5)).

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The state of a socket that listens (include/net/tcp_states.h).
const TCP_LISTEN: &str = "0A";

/// The addresses on which this process's user listens at a port; the unspecified address of a family stands for all of
/// it. What a server is told to listen on it may not have got: another program may have been there first.
pub fn listening(port: u16) -> io::Result<Vec<IpAddr>> {
    let user = rustix::process::geteuid().as_raw();
    let mut found = Vec::new();
    for table in ["tcp", "tcp6"] {
        let text = match fs::read_to_string(format!("/proc/self/net/{table}")) {
            // a kernel without IPv6
            Err(error) if error.kind() == io::ErrorKind::NotFound && table == "tcp6" => continue,
            text => text?,
        };
        found.extend(text.lines().filter_map(|line| listens(line, port, user)));
    }
    Ok(found)
}

/// Whether an address that is listened on stands for all of another one's family.
pub const fn is_all_of(listening: IpAddr, address: IpAddr) -> bool {
    listening.is_unspecified() && listening.is_ipv4() == address.is_ipv4()
}

/// The address of a line, if that is a socket of `user` that listens at the port.
fn listens(line: &str, port: u16, user: u32) -> Option<IpAddr> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let [_, local, _, TCP_LISTEN, _, _, _, owner, ..] = fields.as_slice() else {
        return None;
    };
    let local = address(local).filter(|local| local.port() == port)?;
    (owner.parse::<u32>().ok()? == user).then_some(local.ip())
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
    fn another_users_socket_does_not_count() {
        let line = |owner: u32| {
            format!(
                "   0: 00000000:1538 00000000:0000 0A 00000000:00000000 00:00000000 00000000  {owner} 0 1 1"
            )
        };
        assert_eq!(listens(&line(7), 0x1538, 7), Some(IpAddr::V4(Ipv4Addr::UNSPECIFIED)));
        assert_eq!(listens(&line(8), 0x1538, 7), None);
        assert_eq!(listens(&line(7), 0x1539, 7), None);
        assert_eq!(listens(&line(7).replace(" 0A ", " 01 "), 0x1538, 7), None);
        assert_eq!(listens("  sl  local_address rem_address", 0x1538, 7), None);
    }
}
