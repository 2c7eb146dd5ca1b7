//! Who does not know the secret: floods, silence, and what was recorded before.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use pgpool_recovery_e2e::agent::{self, Agent};
use pgpool_recovery_e2e::recovery::Report;
use pgpool_recovery_e2e::{Host, Scratch, Stage, Transport, process, wait};

fn stage() -> Stage {
    Stage::on(&Scratch::alone()).filled(2).through(Transport::Agent).build()
}

/// From another loopback address than everybody else.
fn knock(agent: &Agent, from: u8) -> TcpStream {
    let socket = socket(from);
    let to: std::net::SocketAddr = ([127, 0, 0, 1], agent.port()).into();
    socket.connect(&to.into()).expect("the agent listens");
    socket.into()
}

fn socket(from: u8) -> socket2::Socket {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    let own: std::net::SocketAddr = ([127, 0, 0, from], 0).into();
    socket.bind(&own.into()).expect("a loopback address");
    socket
}

#[test]
fn a_host_that_floods_keeps_nobody_out() {
    let stage = stage();
    let agent = stage.agent();
    let recovery = stage.recovery();
    let before = agent.memory();
    let mut crowd: Vec<TcpStream> = (0..400).map(|_| knock(agent, 9)).collect();
    // some say something: a record of the greatest length, and nonsense
    for (number, stranger) in crowd.iter_mut().enumerate() {
        let said: &[u8] = if number % 2 == 0 { &[0x16, 3, 1, 0xff, 0xff] } else { &[0xAA; 512] };
        let _ = stranger.write_all(said);
    }
    recovery.run(&stage.primary);
    assert!(agent.memory() < before + (20 << 10), "{} kB, before {before}", agent.memory());
    // all are gone after the deadline of a first message
    for mut stranger in crowd {
        stranger.set_read_timeout(Some(Duration::from_secs(15))).expect("a timeout");
        let mut answer = Vec::new();
        let _ = stranger.read_to_end(&mut answer);
        assert!(answer.len() < 200, "the agent told a stranger {} bytes", answer.len());
    }
    let refused =
        agent.log().lines().filter(|line| line.contains("too many") || line.contains("refused")).count();
    assert!((1..=40).contains(&refused), "{refused} lines in the log");
    recovery.run(&stage.primary);
}

#[test]
fn a_stranger_who_speaks_slowly_is_given_up() {
    let stage = stage();
    let agent = stage.agent();
    let mut stranger = knock(agent, 8);
    let start = Instant::now();
    // a record of 200 bytes that never ends
    stranger.write_all(&[0x16, 3, 1, 0, 200]).expect("sent");
    wait::until_true("the agent to hang up", Duration::from_secs(20), || {
        std::thread::sleep(Duration::from_millis(200));
        stranger.write_all(&[1]).is_err()
    });
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
}

/// What a primary said is of no use when it is replayed.
#[test]
fn a_conversation_cannot_be_replayed() {
    let mut stage = stage();
    let recovery = stage.recovery();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let (port, real) = (listener.local_addr().expect("bound").port(), stage.agent().port());
    let said = std::thread::spawn(move || {
        let (primary, _) = listener.accept().expect("the primary");
        let behind = TcpStream::connect(("127.0.0.1", real)).expect("the agent");
        let (mut from, mut to) = (primary.try_clone().expect("it"), behind.try_clone().expect("it"));
        let back = std::thread::spawn({
            let (mut from, mut to) = (behind, primary);
            move || drop(std::io::copy(&mut from, &mut to))
        });
        let (mut said, mut buffer) = (Vec::new(), [0; 4096]);
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            said.extend_from_slice(&buffer[..count]);
            if to.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(std::net::Shutdown::Both);
        let _ = back.join();
        said
    });
    // no data link can be made at that port: the run ends after its first conversation
    let error = recovery.option("agent_port", port).fail(&stage.primary);
    assert!(["08001", "08006"].contains(&error.sqlstate.as_str()), "{error:?}");
    let said = said.join().expect("a conversation");
    assert!(said.len() > 1000, "{} bytes", said.len());
    let before: Vec<_> = fs::read_dir(stage.target.directory()).expect("it").collect();
    let repeat = |agent: &Agent, from| {
        let mut stranger = knock(agent, from);
        stranger.set_read_timeout(Some(Duration::from_secs(15))).expect("a timeout");
        let _ = stranger.write_all(&said);
        let mut answer = Vec::new();
        let _ = stranger.read_to_end(&mut answer);
        wait::until_true("the refusal in the log", wait::PATIENCE, || {
            agent.log().contains(&format!("127.0.0.{from}"))
        });
        answer.len()
    };
    assert!(repeat(stage.agent(), 6) < 10, "its ticket has been used");
    stage.agent_mut().stop();
    stage.agent_mut().restart();
    // the ticket is forgotten: its owner gets the agent's part of a handshake that leads nowhere
    assert!(repeat(stage.agent(), 7) > 100);
    assert!(!stage.agent().log().lines().any(|line| line.contains("127.0.0.6") && line.contains("begins")));
    assert!(!stage.agent().log().lines().any(|line| line.contains("127.0.0.7") && line.contains("begins")));
    assert_eq!(fs::read_dir(stage.target.directory()).expect("it").count(), before.len());
}

/// A floods ends with its test, also if that fails.
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
    let stage = stage();
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

/// Two hundred and fifty-six that say nothing, from sixteen addresses, are no more than one.
#[test]
fn silence_from_many_addresses_is_that_of_one_host() {
    let stage = stage();
    let agent = stage.agent();
    let recovery = stage.recovery();
    let crowd: Vec<TcpStream> = (0..256).map(|number| knock(agent, number as u8 % 16 + 1)).collect();
    recovery.run(&stage.primary);
    drop(crowd);
}
