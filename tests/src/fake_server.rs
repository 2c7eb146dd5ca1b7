//! A server that asks everyone for a password, and keeps it.

use std::io::{self, Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// SSLRequest and GSSENCRequest, before the startup message (libpq's pqcomm.h).
const ENCRYPTION_REQUESTS: [u32; 2] = [80_877_103, 80_877_104];

/// AuthenticationCleartextPassword.
const ASK_FOR_PASSWORD: [u8; 9] = [b'R', 0, 0, 0, 8, 0, 0, 0, 3];

/// What a fake server was told.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Heard {
    pub connections: usize,
    pub passwords: Vec<String>,
}

/// A listener that ends with this value.
#[derive(Debug)]
pub struct FakeServer {
    heard: Arc<Mutex<Heard>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl FakeServer {
    /// On an address and port that nothing listens on.
    pub fn on_tcp(address: &str, port: u16) -> Self {
        let listener = TcpListener::bind((address, port)).expect("a free address");
        listener.set_nonblocking(true).expect("a listener");
        Self::serve(move || listener.accept().map(|(stream, _)| stream))
    }

    /// In a directory, under the name that a server with this port would use.
    pub fn on_socket(directory: &Path, port: u16) -> Self {
        let path = directory.join(format!(".s.PGSQL.{port}"));
        let listener = UnixListener::bind(&path).expect("a free name");
        crate::account::give(&path);
        listener.set_nonblocking(true).expect("a listener");
        Self::serve(move || listener.accept().map(|(stream, _)| stream))
    }

    fn serve<S: Read + Write + Timeouts>(accept: impl Fn() -> io::Result<S> + Send + 'static) -> Self {
        let (heard, stop) = (Arc::<Mutex<Heard>>::default(), Arc::new(AtomicBool::new(false)));
        let thread = {
            let (heard, stop) = (Arc::clone(&heard), Arc::clone(&stop));
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let Ok(mut stream) = accept() else {
                        std::thread::sleep(Duration::from_millis(20));
                        continue;
                    };
                    lock(&heard).connections += 1;
                    // a client that does not play along has said all it will
                    if let Ok(password) = stream.limit().and_then(|()| ask(&mut stream)) {
                        lock(&heard).passwords.push(password);
                    }
                }
            })
        };
        Self { heard, stop, thread: Some(thread) }
    }

    pub fn heard(&self) -> Heard {
        lock(&self.heard).clone()
    }
}

impl Drop for FakeServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn lock(heard: &Mutex<Heard>) -> std::sync::MutexGuard<'_, Heard> {
    heard.lock().unwrap_or_else(PoisonError::into_inner)
}

trait Timeouts {
    /// Bounds how long a client may take.
    fn limit(&self) -> io::Result<()>;
}

const PATIENCE: Option<Duration> = Some(Duration::from_secs(5));

impl Timeouts for std::net::TcpStream {
    fn limit(&self) -> io::Result<()> {
        self.set_nonblocking(false)?;
        self.set_read_timeout(PATIENCE)
    }
}

impl Timeouts for std::os::unix::net::UnixStream {
    fn limit(&self) -> io::Result<()> {
        self.set_nonblocking(false)?;
        self.set_read_timeout(PATIENCE)
    }
}

/// The password of one client.
fn ask(stream: &mut (impl Read + Write)) -> io::Result<String> {
    loop {
        let body = message(stream)?;
        let code = body.first_chunk().map(|code| u32::from_be_bytes(*code));
        if !code.is_some_and(|code| ENCRYPTION_REQUESTS.contains(&code)) {
            break;
        }
        stream.write_all(b"N")?;
    }
    stream.write_all(&ASK_FOR_PASSWORD)?;
    let mut kind = [0];
    stream.read_exact(&mut kind)?;
    Ok(String::from_utf8_lossy(&message(stream)?).trim_end_matches('\0').to_owned())
}

/// What follows a length that counts itself.
fn message(stream: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    let mut body = vec![0; length.saturating_sub(4).min(10_000)];
    stream.read_exact(&mut body)?;
    Ok(body)
}
