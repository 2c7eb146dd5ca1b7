//! Who does not know the secret: crowds, silence, and what was recorded before.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use pgpool_recovery_e2e::agent::Agent;
use pgpool_recovery_e2e::{Stage, Transport, wait};

fn stage() -> Stage {
    Stage::builder().filled(2).through(Transport::Agent).build()
}

/// From another loopback address than everybody else.
fn knock(agent: &Agent, from: u8) -> TcpStream {
    let socket = socket(from);
    let to: std::net::SocketAddr = ([127, 0, 0, 1], agent.port()).into();
    socket.connect(&to.into()).expect("the agent listens");
    socket.into()
}

pub(crate) fn socket(from: u8) -> socket2::Socket {
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
