//! Links across a network: TLS 1.3 over TCP, both ends proving the shared secret.
//!
//! The certificate is made by the agent at start and verified by neither end: what authenticates the
//! peers is the secret. After the TLS handshake each end sends a keyed hash of the session's exporter
//! value (RFC 8446 section 7.5, RFC 9266 uses the same for channel binding). A man in the middle has
//! two TLS sessions with two exporter values and cannot make either proof without the secret. The
//! primary proves first: a stranger who connects to an agent learns nothing but that it is there.
//!
//! Before any of this the agent looks for a ticket in the server name of the primary's first message
//! ([`super::admission`]), and answers only those who show one.
//!
//! The protocol version is agreed by ALPN, so peers of different versions part before any proof.

use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustls::crypto::CryptoProvider;
use rustls::pki_types::PrivateKeyDer;
use rustls::server::Accepted;
use rustls::{AlertDescription, ClientConfig, ClientConnection, Connection, ServerConfig, ServerConnection};

use super::certificate::SecretInsteadOfCertificate;
use super::{Link, MAX_BODY, Sink, Source, admission, check_length, closed, lost};
use crate::compare::digest::{Proof, Role, proof};
use crate::error::{Error, Kind, Result};
use crate::sys::buffer::Buffer;
use crate::sys::cancel::Cancel;
use crate::sys::lock::lock;
use crate::wire::secret::Secret;

/// The protocol and its version, as ALPN carries it.
pub const ALPN: &[u8] = b"pgpool-recovery/3";

/// How long a peer may take over the whole handshake.
pub const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);

/// How long sent bytes may wait for the peer to take them before the connection counts as dead. The kernel does not tell
/// a host that is gone from a process that reads nothing.
const UNACKNOWLEDGED: Duration = Duration::from_secs(30);

/// The same where the peer reads nothing while its disk is held up: a fail-over of storage takes a minute or two.
const STALLED: Duration = Duration::from_secs(600);

const EXPORTER_LABEL: &[u8] = b"EXPORTER-pgpool-recovery";
const PROOF: u8 = 0x01;
const REFUSED: u8 = 0x02;

/// Plain bytes encrypted at a time.
const ENCRYPT: usize = 64 << 10;

/// Plain bytes gathered before they are written to the socket.
const GATHER: usize = 256 << 10;

/// The agent's half of TLS: a certificate made for this process.
pub fn server_config() -> Result<Arc<ServerConfig>> {
    let internal = |error: String| Error::new(Kind::Internal, format!("could not set up TLS: {error}"));
    let certified = rcgen::generate_simple_self_signed(["pgpool-recovery-agent".to_owned()])
        .map_err(|error| internal(error.to_string()))?;
    let key = PrivateKeyDer::try_from(certified.signing_key.serialize_der())
        .map_err(|error| internal(error.to_owned()))?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| internal(error.to_string()))?
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key)
        .map_err(|error| internal(error.to_string()))?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// The primary's half of TLS.
pub fn client_config() -> Result<Arc<ClientConfig>> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| Error::new(Kind::Internal, format!("could not set up TLS: {error}")))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(SecretInsteadOfCertificate(provider())))
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

/// Connects over `socket`: TLS, then the proofs. `place` names the agent in errors.
pub fn connect(
    socket: TcpStream,
    config: &Arc<ClientConfig>,
    secret: &Secret,
    wire: Arc<AtomicU64>,
    cancel: &Cancel,
    place: &str,
) -> Result<Link> {
    let connection = ClientConnection::new(Arc::clone(config), admission::ticket(secret)?)
        .map_err(|error| Error::new(Kind::Internal, format!("could not set up TLS: {error}")))?;
    let deadline = Instant::now() + HANDSHAKE_DEADLINE;
    let mut ends = Ends::open(socket, connection.into(), wire, cancel, place, deadline)?;
    let binding = ends.binding()?;
    ends.sink.send(PROOF, &[proof(secret.bytes(), Role::Client, &binding).as_bytes()])?;
    ends.sink.flush()?;
    match ends.proof()? {
        Some(theirs) if theirs == proof(secret.bytes(), Role::Server, &binding) => ends.finish(),
        None => Err(refused(place)),
        Some(_) => Err(Error::new(Kind::AuthenticationFailed, format!("{place} could not prove the secret"))
            .detail("Something that does not know the cluster's secret listens there.")
            .hint("Check the address and that every host has the same secret file.")),
    }
}

/// Accepts a primary on `socket`: TLS, then the proofs. Its ticket is not looked at.
pub fn accept(
    socket: TcpStream,
    config: &Arc<ServerConfig>,
    secret: &Secret,
    cancel: &Cancel,
    place: &str,
) -> Result<Link> {
    let connection = ServerConnection::new(Arc::clone(config))
        .map_err(|error| Error::new(Kind::Internal, format!("could not set up TLS: {error}")))?;
    let deadline = Instant::now() + HANDSHAKE_DEADLINE;
    answer(socket, connection, secret, cancel, place, deadline)
}

/// Goes on with a primary whose first message has been read and found good ([`admission::Door`]). The socket must
/// block; all of the handshake ends at `deadline`.
pub fn accept_admitted(
    mut socket: TcpStream,
    hello: Accepted,
    config: &Arc<ServerConfig>,
    secret: &Secret,
    cancel: &Cancel,
    place: &str,
    deadline: Instant,
) -> Result<Link> {
    let connection = hello.into_connection(Arc::clone(config)).map_err(|(error, mut alert)| {
        // some 7 bytes into an empty buffer: this does not block
        let _ = alert.write_all(&mut socket);
        refine(&io::Error::new(io::ErrorKind::InvalidData, error), place, cancel)
    })?;
    answer(socket, connection, secret, cancel, place, deadline)
}

fn answer(
    socket: TcpStream,
    connection: ServerConnection,
    secret: &Secret,
    cancel: &Cancel,
    place: &str,
    deadline: Instant,
) -> Result<Link> {
    let mut ends = Ends::open(socket, connection.into(), Arc::default(), cancel, place, deadline)?;
    let binding = ends.binding()?;
    if ends.proof()? != Some(proof(secret.bytes(), Role::Client, &binding)) {
        ends.sink.send(REFUSED, &[])?;
        ends.sink.flush()?;
        return Err(Error::new(Kind::AuthenticationFailed, format!("{place} could not prove the secret")));
    }
    ends.sink.send(PROOF, &[proof(secret.bytes(), Role::Server, &binding).as_bytes()])?;
    ends.sink.flush()?;
    ends.finish()
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Both directions of a connection that is still being established.
struct Ends {
    sink: TlsSink,
    source: TlsSource,
    peer: SocketAddr,
}

impl Ends {
    fn open(
        socket: TcpStream,
        mut connection: Connection,
        wire: Arc<AtomicU64>,
        cancel: &Cancel,
        place: &str,
        deadline: Instant,
    ) -> Result<Self> {
        let prepare = |error: io::Error| Error::io(format_args!("set up the connection to {place}"), &error);
        let peer = socket.peer_addr().map_err(prepare)?;
        socket.set_nodelay(true).map_err(prepare)?;
        let options = socket2::SockRef::from(&socket);
        let keepalive = socket2::TcpKeepalive::new()
            .with_time(Duration::from_secs(10))
            .with_interval(Duration::from_secs(5))
            .with_retries(4);
        options.set_tcp_keepalive(&keepalive).map_err(prepare)?;
        options.set_tcp_user_timeout(Some(UNACKNOWLEDGED)).map_err(prepare)?;
        let closer = socket.try_clone().map_err(prepare)?;
        cancel.on_trip(Box::new(move || {
            // the peer may have closed it already
            let _ = closer.shutdown(Shutdown::Both);
        }));

        connection.set_buffer_limit(None);
        let mut timed = Timed { socket: &socket, deadline };
        while connection.is_handshaking() {
            connection.complete_io(&mut timed).map_err(|error| refine(&error, place, cancel))?;
        }
        if connection.alpn_protocol() != Some(ALPN) {
            return Err(version_mismatch(place));
        }
        let shared = Arc::new(Shared {
            connection: Mutex::new(connection),
            socket,
            wire,
            cancel: cancel.clone(),
            place: place.to_owned(),
        });
        let sink = TlsSink { shared: Arc::clone(&shared), cipher: Vec::with_capacity(GATHER + MAX_BODY / 4) };
        let source =
            TlsSource { shared, cipher: vec![0; 128 << 10], filled: 0, fed: 0, deadline: Some(deadline) };
        Ok(Self { sink, source, peer })
    }

    /// The value only the two ends of this TLS session know.
    fn binding(&self) -> Result<[u8; 32]> {
        lock(&self.sink.shared.connection)
            .export_keying_material([0; 32], EXPORTER_LABEL, None)
            .map_err(|error| Error::new(Kind::Internal, format!("could not bind the channel: {error}")))
    }

    /// The peer's proof; `None` if it refused ours.
    fn proof(&mut self) -> Result<Option<Proof>> {
        let mut body = Buffer::new();
        let place = self.sink.shared.place.clone();
        match self.source.receive_at_most(&mut body, 32)? {
            Some(PROOF) => {
                let bytes: [u8; 32] = (*body).try_into().map_err(|_| not_an_agent(&place))?;
                Ok(Some(Proof::from_bytes(bytes)))
            }
            Some(REFUSED) => Ok(None),
            Some(_) => Err(not_an_agent(&place)),
            None => Err(closed(&place)),
        }
    }

    fn finish(mut self) -> Result<Link> {
        self.source.deadline = None;
        self.sink
            .shared
            .socket
            .set_read_timeout(None)
            .map_err(Error::on(format_args!("set up the connection to {}", self.sink.shared.place)))?;
        Ok(Link { sink: Box::new(self.sink), source: Box::new(self.source), peer: Some(self.peer.ip()) })
    }
}

struct Shared {
    connection: Mutex<Connection>,
    socket: TcpStream,
    wire: Arc<AtomicU64>,
    cancel: Cancel,
    place: String,
}

struct TlsSink {
    shared: Arc<Shared>,
    /// Records that are encrypted but not yet written. Only the sink writes to the socket after
    /// the handshake, so records leave in the order they were encrypted.
    cipher: Vec<u8>,
}

impl Sink for TlsSink {
    fn send(&mut self, kind: u8, parts: &[&[u8]]) -> Result<()> {
        let length = parts.iter().map(|part| part.len()).sum();
        check_length(length)?;
        let mut head = [kind, 0, 0, 0, 0];
        head[1..].copy_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
        let mut slices = Vec::with_capacity(parts.len() + 1);
        slices.push(IoSlice::new(&head));
        slices.extend(parts.iter().map(|part| IoSlice::new(part)));
        let encrypted = encrypt(&mut lock(&self.shared.connection), slices, &mut self.cipher);
        encrypted.map_err(|error| refine(&error, &self.shared.place, &self.shared.cancel))?;
        if self.cipher.len() >= GATHER { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<()> {
        let written = (&self.shared.socket).write_all(&self.cipher);
        written.map_err(|error| refine(&error, &self.shared.place, &self.shared.cancel))?;
        self.shared.wire.fetch_add(self.cipher.len() as u64, Ordering::Relaxed);
        self.cipher.clear();
        Ok(())
    }

    fn allow_stalls(&self) -> Result<()> {
        let Shared { socket, place, .. } = &*self.shared;
        let set = socket2::SockRef::from(socket).set_tcp_user_timeout(Some(STALLED));
        set.map_err(Error::on(format_args!("set up the connection to {place}")))
    }
}

impl Drop for TlsSink {
    fn drop(&mut self) {
        // A close_notify lets the peer tell an end from a cut; if it cannot be sent, it is a cut.
        let mut connection = lock(&self.shared.connection);
        connection.send_close_notify();
        let encrypted = encrypt(&mut connection, Vec::new(), &mut self.cipher);
        drop(connection);
        if encrypted.is_ok() && self.shared.socket.set_write_timeout(Some(Duration::from_millis(200))).is_ok()
        {
            let _ = (&self.shared.socket).write_all(&self.cipher);
        }
        let _ = self.shared.socket.shutdown(Shutdown::Write);
    }
}

/// Encrypts what `slices` hold and appends the records to `out`.
fn encrypt(connection: &mut Connection, mut slices: Vec<IoSlice<'_>>, out: &mut Vec<u8>) -> io::Result<()> {
    let mut rest = slices.as_mut_slice();
    loop {
        // a few records at a time: rustls keeps them until they are taken
        let mut count = 0;
        let mut bytes = 0;
        while count < rest.len() && (count == 0 || bytes + rest[count].len() <= ENCRYPT) {
            bytes += rest[count].len();
            count += 1;
        }
        let written = match &rest[..count] {
            [long] if long.len() > ENCRYPT => connection.writer().write(&long[..ENCRYPT])?,
            some => connection.writer().write_vectored(some)?,
        };
        IoSlice::advance_slices(&mut rest, written);
        while connection.wants_write() {
            connection.write_tls(out)?;
        }
        if rest.iter().all(|slice| slice.is_empty()) {
            return Ok(());
        }
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
    }
}

struct TlsSource {
    shared: Arc<Shared>,
    /// What was read from the socket; of its first `filled` bytes rustls has had `fed`.
    cipher: Vec<u8>,
    filled: usize,
    fed: usize,
    /// Set until the peer has proved the secret.
    deadline: Option<Instant>,
}

impl Source for TlsSource {
    fn receive(&mut self, body: &mut Buffer) -> Result<Option<u8>> {
        self.receive_at_most(body, MAX_BODY)
    }
}

impl TlsSource {
    fn receive_at_most(&mut self, body: &mut Buffer, limit: usize) -> Result<Option<u8>> {
        let mut head = [0; 5];
        match self.read(&mut head)? {
            0 => return Ok(None),
            5 => {}
            _ => return Err(closed(&self.shared.place)),
        }
        let length = u32::from_le_bytes([head[1], head[2], head[3], head[4]]) as usize;
        if length > limit {
            return Err(Error::new(
                Kind::ProtocolViolation,
                format!("frame of {length} bytes from {}", self.shared.place),
            ));
        }
        body.resize(length);
        if self.read(body)? < length {
            return Err(closed(&self.shared.place));
        }
        Ok(Some(head[0]))
    }

    /// Fills `plain`; less only if the peer said that it is done.
    fn read(&mut self, plain: &mut [u8]) -> Result<usize> {
        let mut count = 0;
        while count < plain.len() {
            let cipher = &self.cipher[self.fed..self.filled];
            let decrypted = decrypt(&mut lock(&self.shared.connection), cipher, &mut plain[count..])
                .map_err(|error| refine(&error, &self.shared.place, &self.shared.cancel))?;
            self.fed += decrypted.fed;
            count += decrypted.plain;
            // what has been decrypted is taken before more is waited for
            if decrypted.fed == 0 && decrypted.plain == 0 {
                if decrypted.ended {
                    break;
                }
                self.fill()?;
            }
        }
        Ok(count)
    }

    /// Waits for bytes on the socket.
    fn fill(&mut self) -> Result<()> {
        let shared = &self.shared;
        let mut reader: &TcpStream = &shared.socket;
        loop {
            let read = match self.deadline {
                Some(deadline) => Timed { socket: reader, deadline }.read(&mut self.cipher),
                None => reader.read(&mut self.cipher),
            };
            let count = match read {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(refine(&error, &shared.place, &shared.cancel)),
            };
            shared.wire.fetch_add(count as u64, Ordering::Relaxed);
            if count == 0 {
                // without a close_notify this is a cut
                shared.cancel.check()?;
                return Err(closed(&shared.place));
            }
            (self.filled, self.fed) = (count, 0);
            return Ok(());
        }
    }
}

/// How far a [`decrypt`] came.
struct Decrypted {
    /// Bytes of the cipher that rustls took.
    fed: usize,
    /// Plain bytes it gave.
    plain: usize,
    /// Whether the peer said that it is done.
    ended: bool,
}

/// Decrypts into `plain` until that is full or all of `cipher` is taken.
fn decrypt(connection: &mut Connection, cipher: &[u8], plain: &mut [u8]) -> io::Result<Decrypted> {
    let mut rest = cipher;
    let mut filled = 0;
    loop {
        let state = connection
            .process_new_packets()
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        let available = state.plaintext_bytes_to_read().min(plain.len() - filled);
        connection.reader().read_exact(&mut plain[filled..filled + available])?;
        filled += available;
        // rustls takes nothing more while it holds a record's plain bytes
        let is_drained = state.plaintext_bytes_to_read() == available;
        if rest.is_empty() || !is_drained || (filled == plain.len() && available > 0) {
            let ended = state.peer_has_closed() && is_drained;
            return Ok(Decrypted { fed: cipher.len() - rest.len(), plain: filled, ended });
        }
        if connection.read_tls(&mut rest)? == 0 {
            // after the peer's last word rustls takes nothing more: what follows it is ignored
            return Ok(Decrypted { fed: cipher.len(), plain: filled, ended: true });
        }
    }
}

/// A socket that gives up at a point in time, however slowly the peer dribbles.
struct Timed<'a> {
    socket: &'a TcpStream,
    deadline: Instant,
}

impl Timed<'_> {
    fn left(&self) -> io::Result<Duration> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
    }
}

impl Read for Timed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.socket.set_read_timeout(Some(self.left()?))?;
        let mut socket = self.socket;
        socket.read(buffer)
    }
}

impl Write for Timed<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(buffer)])
    }

    // rustls tells a peer why it fails with one last write: all of it must leave
    fn write_vectored(&mut self, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
        self.socket.set_write_timeout(Some(self.left()?))?;
        let mut socket = self.socket;
        let written = socket.write_vectored(buffers);
        self.socket.set_write_timeout(None)?;
        written
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Turns what the socket or TLS said into what an operator can act on.
fn refine(error: &io::Error, place: &str, cancel: &Cancel) -> Error {
    if let Some(cause) = cancel.cause() {
        return cause;
    }
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol)) => {
            version_mismatch(place)
        }
        Some(rustls::Error::NoApplicationProtocol) => version_mismatch(place),
        Some(rustls::Error::AlertReceived(AlertDescription::AccessDenied)) => refused(place),
        Some(rustls::Error::DecryptError) => {
            Error::new(Kind::ConnectionLost, format!("data from {place} was altered on the way"))
                .hint("Try again; if it happens again, look for a faulty network card, switch or proxy.")
        }
        Some(_) => not_an_agent(place).detail(format!("TLS says: {error}.")),
        None if matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock) => {
            Error::new(Kind::Unreachable, format!("{place} did not answer in time"))
                .detail(format!(
                    "The peer was silent for {} s during the handshake, or took nothing for {} s after it, or for {} s on a link for data.",
                    HANDSHAKE_DEADLINE.as_secs(),
                    UNACKNOWLEDGED.as_secs(),
                    STALLED.as_secs()
                ))
                .hint("Check that a pgpool-recovery-agent listens there and that no firewall is in the way.")
        }
        None => lost(format!("connection to {place} broke: {error}")),
    }
}

fn refused(place: &str) -> Error {
    Error::new(Kind::AuthenticationFailed, format!("{place} refused this server's secret"))
        .detail("The secret of this server and the secret of the agent differ.")
        .hint("Copy the same secret file to every host of the cluster.")
}

fn version_mismatch(place: &str) -> Error {
    Error::new(Kind::ProtocolVersion, format!("{place} speaks another version of the protocol"))
        .detail(format!("This end speaks \"{}\".", String::from_utf8_lossy(ALPN)))
        .hint("Install the same version of pgpool_recovery on every host.")
}

fn not_an_agent(place: &str) -> Error {
    Error::new(
        Kind::ProtocolViolation,
        format!("{place} does not speak the protocol of pgpool-recovery-agent"),
    )
    .hint("Check that a pgpool-recovery-agent, and nothing else, listens on pgpool_recovery.agent_port.")
}
