//! Floods from the primary's own host, by threads that do nothing else.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pgpool_recovery_e2e::agent;
use pgpool_recovery_e2e::recovery::Report;
use pgpool_recovery_e2e::{Host, Scratch, Stage, Transport, process, wait};

use crate::agent::strangers::socket;

/// A flood ends with its test, also if that fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The first message of a primary with another secret.
fn hello_of_another_secret(scratch: &Scratch) -> Vec<u8> {
    let secret = agent::secret(scratch, "another");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound").to_string();
    let directory = scratch.join("nowhere");
    let config = scratch.write("another.toml", &agent::config(&address, &secret, &[&directory]), 0o600);
    let mut command = Host::here().agent();
    command.args(["status", "--config"]).arg(config);
    let asking = std::thread::spawn(move || process::run(command));
    let mut said = Vec::new();
    // it tries again when it is closed
    while said.is_empty() {
        let (mut socket, _) = listener.accept().expect("the one who asks");
        let mut buffer = [0; 4096];
        let count = socket.read(&mut buffer).expect("a first message");
        said.extend_from_slice(&buffer[..count]);
    }
    drop(listener);
    assert!(!asking.join().expect("asked").status.success());
    said
}

/// Whatever a crowd on the primary's own host does, a recovery begins and a status call is answered.
#[test]
fn no_flood_from_the_primarys_own_host_delays_a_recovery() {
    let stage = Stage::on(&Scratch::alone()).filled(2).through(Transport::Agent).build();
    let agent = stage.agent();
    let recovery = stage.recovery();
    let hello = hello_of_another_secret(&stage.scratch);
    let preflight = |report: Report| report.number("/durations_ms/preflight");
    let quiet = preflight(recovery.run(&stage.primary));
    let (memory, threads) = (agent.memory(), agent.threads());
    let floods: [(&str, &[u8]); 4] = [
        ("silence", b""),
        ("garbage", &[0xAA; 512]),
        ("half a handshake", &hello[..hello.len() / 2]),
        ("another secret", &hello),
    ];
    let address = SocketAddr::from(([127, 0, 0, 1], agent.port()));
    for (name, said) in floods {
        let stop = AtomicBool::new(false);
        let taken = std::sync::atomic::AtomicUsize::new(0);
        std::thread::scope(|scope| {
            let _guard = Stop(&stop);
            // each from four addresses of its own, and more of them than the agent keeps
            for number in 0..4 {
                let (stop, taken) = (&stop, &taken);
                scope.spawn(move || {
                    let mut crowd = std::collections::VecDeque::new();
                    while !stop.load(Ordering::Relaxed) {
                        for from in 4 * number + 1..=4 * number + 4 {
                            let socket = socket(from);
                            if socket.connect_timeout(&address.into(), Duration::from_millis(200)).is_err() {
                                continue;
                            }
                            let _ = (&socket).write_all(said);
                            crowd.push_back(socket);
                            taken.fetch_add(1, Ordering::Relaxed);
                        }
                        while crowd.len() > 200 {
                            crowd.pop_front();
                        }
                    }
                });
            }
            wait::until_true("the crowd to gather", wait::PATIENCE, || taken.load(Ordering::Relaxed) > 1000);
            let mut command = Host::here().agent();
            command.args(["status", "--config"]).arg(agent.config());
            process::run(command).ok();
            let busy = preflight(recovery.run(&stage.primary));
            assert!(busy < quiet + 2000, "{name}: {busy} ms, {quiet} without a flood");
            assert!(agent.threads() <= threads + 80, "{name}: {} threads", agent.threads());
        });
    }
    wait::until_true("the crowd's threads to end", wait::PATIENCE, || agent.threads() <= threads);
    assert!(agent.memory() < memory + (20 << 10), "{} kB, before {memory}", agent.memory());
    let lines = agent.log().lines().count();
    assert!(lines < 200, "{lines} lines in the log");
}
