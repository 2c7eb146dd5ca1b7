//! TCP ports that no two tests use at once, whatever runs in parallel.

use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::sync::atomic::{AtomicU16, Ordering};

/// Below the ports the kernel hands out by itself (32768 and up), so that no client connection takes one.
const FIRST: u16 = 21_000;
const COUNT: u16 = 9_000;

/// A port of our own for as long as this value lives.
///
/// The claim is an abstract unix socket: it leaves nothing behind, whatever becomes of the process,
/// and keeps the port while its server is stopped.
#[derive(Debug)]
pub struct Port {
    number: u16,
    _claim: UnixListener,
}

impl Port {
    pub fn claim() -> Self {
        static NEXT: AtomicU16 = AtomicU16::new(0);
        // Test binaries run at once start at different places.
        let offset = (std::process::id() % 89) as u16 * 101;
        for _ in 0..COUNT {
            let step = NEXT.fetch_add(1, Ordering::Relaxed);
            let number = FIRST + (offset + step) % COUNT;
            let name = format!("pgpool-recovery-e2e-port-{number}");
            let address = SocketAddr::from_abstract_name(name).expect("a short name");
            let Ok(claim) = UnixListener::bind_addr(&address) else { continue };
            if TcpListener::bind(("127.0.0.1", number)).is_ok() {
                return Self { number, _claim: claim };
            }
        }
        panic!("no free TCP port from {FIRST} on");
    }

    /// So many ports in a row.
    pub fn claim_run(count: u16) -> Vec<Self> {
        let mut run: Vec<Self> = Vec::new();
        while run.len() < usize::from(count) {
            let next = Self::claim();
            if run.last().is_some_and(|last| last.number + 1 != next.number) {
                run.clear();
            }
            run.push(next);
        }
        run
    }

    pub fn number(&self) -> u16 {
        self.number
    }
}
