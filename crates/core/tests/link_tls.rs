//! The TLS link over real sockets: what a peer without the secret, without the protocol, or with
//! bad intentions gets.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use pgpool_recovery_core::error::{Error, Kind};
use pgpool_recovery_core::internal::Buffer;
use pgpool_recovery_core::sys::cancel::Cancel;
use pgpool_recovery_core::wire::link::dial::AgentConnector;
use pgpool_recovery_core::wire::link::{Connector, Link, tls};
use pgpool_recovery_core::wire::secret::Secret;

fn listener() -> (TcpListener, std::net::SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = listener.local_addr().expect("address");
    (listener, address)
}

fn serve(listener: TcpListener, secret: Secret) -> thread::JoinHandle<Result<Link, Error>> {
    thread::spawn(move || {
        let config = tls::server_config().expect("server configuration");
        let (socket, _) = listener.accept().expect("accept");
        tls::accept(socket, &config, &secret, &Cancel::new(), "primary")
    })
}

fn dial(address: std::net::SocketAddr, secret: &Secret, cancel: &Cancel) -> Result<Link, Error> {
    let config = tls::client_config().expect("client configuration");
    let socket = TcpStream::connect(address).expect("connect");
    tls::connect(socket, &config, secret, Arc::default(), cancel, "agent")
}

#[test]
fn frames_pass_both_ways_at_once() {
    let secret = Secret::random().expect("secret");
    let (listener, address) = listener();
    let server = serve(listener, secret.clone());
    let mut near = dial(address, &secret, &Cancel::new()).expect("connect");
    let mut far = server.join().expect("server thread").expect("accept");

    let big = vec![0x5A; 1 << 20];
    thread::scope(|scope| {
        // each direction carries more than any socket buffer, and neither end reads before it has written
        let near_sink = &mut near.sink;
        let far_sink = &mut far.sink;
        let big = &big;
        scope.spawn(move || {
            (0..40).for_each(|_| near_sink.send(7, &[b"head", big]).expect("send"));
            near_sink.flush().expect("flush");
        });
        scope.spawn(move || {
            (0..40).for_each(|_| far_sink.send(8, &[big]).expect("send"));
            far_sink.flush().expect("flush");
        });
        let far_source = &mut far.source;
        scope.spawn(move || {
            let mut body = Buffer::new();
            for _ in 0..40 {
                assert_eq!(far_source.receive(&mut body).expect("receive"), Some(7));
                assert_eq!((body.len(), &body[..4]), (4 + big.len(), &b"head"[..]));
            }
        });
        let mut body = Buffer::new();
        for _ in 0..40 {
            assert_eq!(near.source.receive(&mut body).expect("receive"), Some(8));
            assert_eq!(&body[..], &big[..]);
        }
    });
    drop(near);
    assert_eq!(far.source.receive(&mut Buffer::new()).expect("an orderly end"), None);
}

#[test]
fn another_secret_is_refused_by_the_agent() {
    let (listener, address) = listener();
    let server = serve(listener, Secret::random().expect("secret"));
    let error = dial(address, &Secret::random().expect("secret"), &Cancel::new()).err().expect("refused");
    assert_eq!(error.kind, Kind::AuthenticationFailed);
    assert!(error.message.contains("refused this server's secret"), "{error}");
    let error = server.join().expect("server thread").err().expect("refused");
    assert_eq!(error.kind, Kind::AuthenticationFailed);
}

/// A man in the middle ends TLS on both sides and passes the frames on: the proofs are bound to two
/// different sessions and do not fit.
#[test]
fn a_man_in_the_middle_gains_nothing() {
    let secret = Secret::random().expect("secret");
    let (agent_listener, agent_address) = listener();
    let agent = serve(agent_listener, secret.clone());
    let (listener, address) = listener();
    let middle = thread::spawn(move || {
        let (victim, _) = listener.accept().expect("accept");
        let server = rustls::ServerConnection::new(tls::server_config().expect("config")).expect("server");
        let mut towards_primary = rustls::StreamOwned::new(server, victim);
        let client = rustls::ClientConnection::new(
            tls::client_config().expect("config"),
            "x.example".try_into().expect("name"),
        );
        let socket = TcpStream::connect(agent_address).expect("connect");
        let mut towards_agent = rustls::StreamOwned::new(client.expect("client"), socket);
        let mut proof = [0; 37];
        towards_primary.read_exact(&mut proof).expect("the primary's proof");
        towards_agent.write_all(&proof).expect("replay");
        towards_agent.flush().expect("replay");
        let mut answer = Vec::new();
        let _ = towards_agent.read_to_end(&mut answer);
        assert_eq!(answer, [2, 0, 0, 0, 0], "the agent must say nothing but no");
        let _ = towards_primary.write_all(&proof);
        let _ = towards_primary.flush();
        let _ = towards_primary.read(&mut proof);
    });
    let error = dial(address, &secret, &Cancel::new()).err().expect("the replayed proof is not the agent's");
    assert_eq!(error.kind, Kind::AuthenticationFailed);
    assert!(error.message.contains("could not prove the secret"), "{error}");
    middle.join().expect("middle");
    assert_eq!(agent.join().expect("agent").err().expect("refused").kind, Kind::AuthenticationFailed);
}

#[test]
fn something_else_on_the_port_is_named_as_such() {
    let (listener, address) = listener();
    let other = thread::spawn(move || {
        let (mut socket, _) = listener.accept().expect("accept");
        socket.write_all(b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n").expect("write");
        let _ = socket.read(&mut [0; 1024]);
    });
    let error = dial(address, &Secret::random().expect("secret"), &Cancel::new()).err().expect("refused");
    assert_eq!(error.kind, Kind::ProtocolViolation);
    assert!(error.message.contains("does not speak the protocol"), "{error}");
    other.join().expect("other");
}

#[test]
fn another_protocol_version_is_named_as_such() {
    let secret = Secret::random().expect("secret");
    let (listener, address) = listener();
    let other = thread::spawn(move || {
        let mut config = (*tls::server_config().expect("config")).clone();
        config.alpn_protocols = vec![b"pgpool-recovery/999".to_vec()];
        let (socket, _) = listener.accept().expect("accept");
        tls::accept(socket, &Arc::new(config), &Secret::random().expect("secret"), &Cancel::new(), "primary")
    });
    let error = dial(address, &secret, &Cancel::new()).err().expect("refused");
    assert_eq!(error.kind, Kind::ProtocolVersion, "{error}");
    assert!(other.join().expect("other").is_err());
}

#[test]
fn a_peer_that_closes_during_the_handshake_is_an_error() {
    let (listener, address) = listener();
    let other = thread::spawn(move || drop(listener.accept().expect("accept")));
    let error = dial(address, &Secret::random().expect("secret"), &Cancel::new()).err().expect("refused");
    assert_eq!(error.kind, Kind::ConnectionLost, "{error}");
    other.join().expect("other");
}

#[test]
fn a_silent_peer_is_given_up_and_can_be_cancelled_before() {
    let (listener, address) = listener();
    let cancel = Cancel::new();
    let trip = cancel.clone();
    let started = Instant::now();
    let waker = thread::spawn(move || {
        thread::sleep(Duration::from_millis(200));
        trip.trip();
    });
    let error = dial(address, &Secret::random().expect("secret"), &cancel).err().expect("cancelled");
    assert_eq!(error.kind, Kind::Canceled);
    assert!(started.elapsed() < Duration::from_secs(5));
    waker.join().expect("waker");

    let error = dial(address, &Secret::random().expect("secret"), &Cancel::new()).err().expect("timed out");
    assert_eq!(error.kind, Kind::Unreachable, "{error}");
    assert!(started.elapsed() < Duration::from_secs(20));
    drop(listener);
}

/// One byte a second would hold a connection for hours if only silence were limited.
#[test]
fn a_dribbling_peer_is_given_up() {
    let (listener, address) = listener();
    let server = serve(listener, Secret::random().expect("secret"));
    let started = Instant::now();
    let mut socket = TcpStream::connect(address).expect("connect");
    while started.elapsed() < Duration::from_secs(15)
        && socket.write_all(&[0x16]).is_ok()
        && !server.is_finished()
    {
        thread::sleep(Duration::from_millis(500));
    }
    assert!(server.join().expect("server").is_err());
    assert!(started.elapsed() < Duration::from_secs(13), "took {:?}", started.elapsed());
}

/// After its close_notify TLS takes nothing more of a peer, whatever arrives with it.
#[test]
fn bytes_after_the_peers_last_word_end_the_link() {
    let (listener, address) = listener();
    let server = serve(listener, Secret::random().expect("secret"));
    let config = tls::client_config().expect("client configuration");
    let name = "pgpool-recovery-agent".try_into().expect("a name");
    let mut stranger = rustls::ClientConnection::new(config, name).expect("TLS");
    let mut socket = TcpStream::connect(address).expect("connect");
    while stranger.is_handshaking() {
        stranger.complete_io(&mut socket).expect("the handshake");
    }
    stranger.send_close_notify();
    let mut last = Vec::new();
    while stranger.wants_write() {
        stranger.write_tls(&mut last).expect("memory");
    }
    last.resize(last.len() + 20_000, 0x17);
    socket.write_all(&last).expect("sent");
    let started = Instant::now();
    while !server.is_finished() {
        assert!(started.elapsed() < Duration::from_secs(8), "the agent still works on it");
        thread::sleep(Duration::from_millis(10));
    }
    assert!(server.join().expect("server").is_err());
}

#[test]
fn a_byte_altered_on_the_wire_is_noticed() {
    let secret = Secret::random().expect("secret");
    let (agent_listener, agent_address) = listener();
    let agent = serve(agent_listener, secret.clone());
    let (listener, address) = listener();
    let proxy = thread::spawn(move || {
        let (mut near, _) = listener.accept().expect("accept");
        let mut far = TcpStream::connect(agent_address).expect("connect");
        let (mut back, mut forth) = (near.try_clone().expect("clone"), far.try_clone().expect("clone"));
        let back_copy = thread::spawn(move || {
            let _ = std::io::copy(&mut forth, &mut back);
        });
        let mut buffer = vec![0; 65_536];
        let mut passed = 0;
        while let Ok(count @ 1..) = near.read(&mut buffer) {
            // the handshake takes less than 4 kB
            if passed > 40_000 {
                buffer[count / 2] ^= 1;
            }
            passed += count;
            if far.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
        let _ = far.shutdown(std::net::Shutdown::Both);
        back_copy.join().expect("copy");
    });
    let mut near = dial(address, &secret, &Cancel::new()).expect("connect");
    let mut far = agent.join().expect("agent").expect("accept");
    let writer = thread::spawn(move || {
        for _ in 0..64 {
            if near.sink.send(9, &[&[7; 16_384]]).and_then(|()| near.sink.flush()).is_err() {
                break;
            }
        }
    });
    let mut body = Buffer::new();
    let error = loop {
        match far.source.receive(&mut body) {
            Ok(Some(9)) => assert!(body.iter().all(|&byte| byte == 7), "an altered byte came through"),
            Ok(other) => panic!("unexpected {other:?}"),
            Err(error) => break error,
        }
    };
    assert!(error.message.contains("altered"), "{error}");
    drop(far);
    writer.join().expect("writer");
    proxy.join().expect("proxy");
}

/// An agent that is flooded closes connections that have said too little; a primary's may be one of them.
#[test]
fn a_connection_that_is_closed_in_the_handshake_is_made_again() {
    let secret = Secret::random().expect("secret");
    let (listener, address) = listener();
    let agent = thread::spawn({
        let secret = secret.clone();
        move || {
            // one is reset before it says anything, the next one after its first message
            drop(listener.accept().expect("accept"));
            let (mut socket, _) = listener.accept().expect("accept");
            let _ = socket.read(&mut [0; 4096]);
            drop(socket);
            let config = tls::server_config().expect("server configuration");
            let (socket, _) = listener.accept().expect("accept");
            tls::accept(socket, &config, &secret, &Cancel::new(), "primary").map(drop)
        }
    });
    let connector = |secret: &Secret| {
        AgentConnector::new("127.0.0.1", address.port(), secret.clone(), Arc::default()).expect("set up")
    };
    connector(&secret).connect(&Cancel::new()).expect("the third attempt");
    agent.join().expect("agent").expect("accept");

    let listener = TcpListener::bind(address).expect("the same port");
    let count = thread::spawn(move || {
        let closed = listener.incoming().take(3).filter(|socket| socket.is_ok()).count();
        listener.set_nonblocking(true).expect("a listener");
        thread::sleep(Duration::from_millis(500));
        closed + usize::from(listener.accept().is_ok())
    });
    let error = connector(&secret).connect(&Cancel::new()).err().expect("closed");
    assert_eq!(error.kind, Kind::ConnectionLost, "{error}");
    assert_eq!(count.join().expect("count"), 3);
}

/// The alert by which an agent refuses those without a ticket.
#[test]
fn a_refusal_by_alert_names_the_secret_and_is_final() {
    let (listener, address) = listener();
    let agent = thread::spawn(move || {
        let (mut socket, _) = listener.accept().expect("accept");
        let _ = socket.read(&mut [0; 4096]);
        socket.write_all(&[21, 3, 3, 0, 2, 2, 49]).expect("sent");
        listener.set_nonblocking(true).expect("a listener");
        listener
    });
    let secret = Secret::random().expect("secret");
    let connector = AgentConnector::new("127.0.0.1", address.port(), secret, Arc::default()).expect("set up");
    let error = connector.connect(&Cancel::new()).err().expect("refused");
    assert_eq!(error.kind, Kind::AuthenticationFailed);
    assert!(error.message.contains("refused this server's secret"), "{error}");
    assert!(agent.join().expect("agent").accept().is_err(), "it does not try again");
}
