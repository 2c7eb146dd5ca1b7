//! The link's own limit: bytes from one host to the other and nothing else.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd as _;

use pgpool_recovery_e2e::Host;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;

use super::{Contender, Told};
use crate::interrupt::{Outcome, failed};
use crate::memory::Watch;
use crate::stage::Stage;

const CHUNK: usize = 128 << 10;

pub(crate) struct PlainTcp {
    bytes: u64,
}

impl PlainTcp {
    pub(crate) fn new(bytes: u64) -> Self {
        Self { bytes }
    }

    fn send(&self, stage: &Stage) -> io::Result<()> {
        let (from, to) = (stage.primary.host(), stage.target.host());
        let listener = inside(from, || TcpListener::bind((from.address(), 0)))?;
        let port = listener.local_addr()?.port();
        let sender = || -> io::Result<()> {
            let (mut stream, _) = listener.accept()?;
            let (chunk, mut left) = (vec![0; CHUNK], self.bytes);
            while left > 0 {
                let length = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
                stream.write_all(&chunk[..length])?;
                left -= length as u64;
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let sender = scope.spawn(sender);
            let mut stream = inside(to, || TcpStream::connect((from.address(), port)))?;
            let mut chunk = vec![0; CHUNK];
            while stream.read(&mut chunk)? > 0 {}
            sender.join().expect("no panic there")
        })
    }
}

/// Opens a socket in a host's network: a socket stays in the network it was made in, so a thread of its
/// own enters it, makes the socket and ends.
fn inside<T: Send>(host: &Host, open: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    let enter = || {
        if let Some(namespace) = host.namespace() {
            move_into_link_name_space(File::open(namespace)?.as_fd(), Some(LinkNameSpaceType::Network))?;
        }
        open()
    };
    std::thread::scope(|scope| scope.spawn(enter).join().expect("no panic there"))
}

impl Contender for PlainTcp {
    fn name(&self) -> &str {
        "machine-tcp"
    }

    fn run(&mut self, stage: &Stage, _watch: &Watch) -> Outcome<Told> {
        match self.send(stage) {
            Ok(()) => Ok(Told { wire: None, report: Value::Null }),
            Err(error) => failed(error.to_string()),
        }
    }
}
