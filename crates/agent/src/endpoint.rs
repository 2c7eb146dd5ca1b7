//! The endpoint that Prometheus asks: HTTP, one resource, one request a connection.
//!
//! A fixed number of threads accept and answer, and each connection has a deadline: clients that are slow
//! or many wait for each other, and for nothing else do they make the agent wait or grow.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use pgpool_recovery_core::error::{Error, Result};
use tracing::{error, warn};

/// Connections served at a time; more wait in the kernel's queue, which is bounded.
const THREADS: usize = 8;

/// Most bytes of a request.
const REQUEST: usize = 8 << 10;

/// Most header lines of a request.
const HEADERS: usize = 64;

/// How long a connection may last.
const DEADLINE: Duration = Duration::from_secs(2);

/// How long its request may take to come. Every local user can connect: a full queue of those who say nothing is
/// through before Prometheus loses patience (10 s).
const REQUEST_DEADLINE: Duration = Duration::from_millis(250);

/// Starts to listen on `address`; `/metrics` is what `page` makes. Returns the address, for one with port 0.
pub(crate) fn start(
    address: SocketAddr,
    page: impl Fn() -> Result<String> + Send + Sync + 'static,
) -> Result<SocketAddr> {
    let listener = TcpListener::bind(address).map_err(|error| {
        Error::io(format_args!("listen on {address} for metrics"), &error)
            .hint("Choose another port with \"metrics\" in agent.toml.")
    })?;
    let address = listener.local_addr().map_err(Error::on("ask for the listening address"))?;
    let shared = Arc::new((listener, page));
    for _ in 0..THREADS {
        let shared = Arc::clone(&shared);
        let serve = move || {
            let (listener, page) = &*shared;
            loop {
                match listener.accept() {
                    // a client that left or was too slow is nothing to report
                    Ok((socket, _)) => {
                        let conversation = AssertUnwindSafe(|| converse(&socket, page));
                        if catch_unwind(conversation).is_err() {
                            error!("could not answer Prometheus: an internal error");
                        }
                    }
                    // out of file descriptors, most likely: let some connections end
                    Err(_) => std::thread::sleep(Duration::from_millis(100)),
                }
            }
        };
        let thread = std::thread::Builder::new().name("metrics".to_owned()).spawn(serve);
        thread.map_err(Error::on("start a thread"))?;
    }
    Ok(address)
}

fn converse(socket: &TcpStream, page: &impl Fn() -> Result<String>) -> io::Result<()> {
    let begun = Instant::now();
    let mut timed = Timed { socket, deadline: begun + REQUEST_DEADLINE };
    let mut bytes = Vec::new();
    let (asked, has_body) = read(&mut timed, &mut bytes)?;
    timed.deadline = begun + DEADLINE;
    let answer = match asked {
        Asked::Page => match page() {
            Ok(text) => {
                Answer { status: "200 OK", content: "text/plain; version=0.0.4; charset=utf-8", text }
            }
            Err(error) => {
                warn!("could not answer Prometheus: {error}");
                Answer::refusal("500 Internal Server Error")
            }
        },
        Asked::Other => Answer::refusal("404 Not Found"),
        Asked::Method => Answer::refusal("405 Method Not Allowed\r\nAllow: GET, HEAD"),
        Asked::Nonsense => Answer::refusal("400 Bad Request"),
    };
    answer.write(&mut timed, has_body)?;
    // what is left unread would make the kernel reset the connection, and the answer would be lost
    socket.shutdown(Shutdown::Write)?;
    timed.deadline = Instant::now() + REQUEST_DEADLINE;
    io::copy(&mut timed.take(REQUEST as u64), &mut io::sink())?;
    Ok(())
}

enum Asked {
    Page,
    Other,
    Method,
    Nonsense,
}

/// What is asked for, and whether the answer has a body.
fn read(timed: &mut Timed<'_>, bytes: &mut Vec<u8>) -> io::Result<(Asked, bool)> {
    let mut part = [0; 1024];
    loop {
        let count = timed.read(&mut part)?;
        bytes.extend_from_slice(&part[..count]);
        let mut headers = [httparse::EMPTY_HEADER; HEADERS];
        let mut request = httparse::Request::new(&mut headers);
        match request.parse(bytes) {
            Ok(httparse::Status::Complete(_)) => {
                return Ok((judge(&request), request.method != Some("HEAD")));
            }
            Ok(httparse::Status::Partial) if count > 0 && bytes.len() < REQUEST => {}
            Ok(httparse::Status::Partial) | Err(_) => return Ok((Asked::Nonsense, true)),
        }
    }
}

fn judge(request: &httparse::Request<'_, '_>) -> Asked {
    let path = request.path.unwrap_or_default();
    let path = path.split_once('?').map_or(path, |(path, _)| path);
    match (path, request.method) {
        ("/metrics", Some("GET" | "HEAD")) => Asked::Page,
        ("/metrics", _) => Asked::Method,
        _ => Asked::Other,
    }
}

struct Answer {
    /// The status line's end, and further header lines.
    status: &'static str,
    content: &'static str,
    text: String,
}

impl Answer {
    fn refusal(status: &'static str) -> Self {
        let text = "The metrics are at /metrics.\n".to_owned();
        Self { status, content: "text/plain; charset=utf-8", text }
    }

    fn write(&self, timed: &mut Timed<'_>, has_body: bool) -> io::Result<()> {
        let Self { status, content, text } = self;
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: {content}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            text.len()
        );
        timed.write_all(head.as_bytes())?;
        if has_body { timed.write_all(text.as_bytes()) } else { Ok(()) }
    }
}

/// A socket of which every use ends at one moment.
struct Timed<'a> {
    socket: &'a TcpStream,
    deadline: Instant,
}

impl Timed<'_> {
    fn left(&self) -> io::Result<Option<Duration>> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(Some(left)) }
    }
}

impl Read for Timed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.socket.set_read_timeout(self.left()?)?;
        self.socket.read(buffer)
    }
}

impl Write for Timed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.socket.set_write_timeout(self.left()?)?;
        self.socket.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint() -> SocketAddr {
        start(SocketAddr::from(([127, 0, 0, 1], 0)), || Ok("up 1\n".to_owned())).expect("listen")
    }

    fn ask(address: SocketAddr, request: &[u8]) -> String {
        let mut socket = TcpStream::connect(address).expect("connect");
        socket.set_read_timeout(Some(Duration::from_secs(60))).expect("a limit");
        socket.write_all(request).expect("ask");
        let mut answer = String::new();
        socket.read_to_string(&mut answer).expect("an answer");
        answer
    }

    #[test]
    fn one_resource_is_served_and_nothing_else() {
        let address = endpoint();
        let answer = ask(address, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\nup 1\n"), "{answer}");
        assert!(
            answer.contains("\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n"),
            "{answer}"
        );
        let answer = ask(address, b"HEAD /metrics?x=1 HTTP/1.0\r\n\r\n");
        assert!(
            answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("Length: 5\r\nConnection: close\r\n\r\n")
        );
        let answer = ask(address, b"HEAD / HTTP/1.1\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.1 404 ") && answer.ends_with("close\r\n\r\n"), "{answer}");
        let long = [b"GET /metrics HTTP/1.1\r\nX: ".as_slice(), &[b'x'; 2 * REQUEST]].concat();
        for (request, status) in [
            (b"GET / HTTP/1.1\r\n\r\n".as_slice(), "404 "),
            (b"GET /metrics/../../etc/passwd HTTP/1.1\r\n\r\n", "404 "),
            (b"POST /metrics HTTP/1.1\r\nContent-Length: 4\r\n\r\nbody", "405 "),
            (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "400 "),
            (&long, "400 "),
        ] {
            let answer = ask(address, request);
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
        }
    }

    #[test]
    fn those_who_say_nothing_do_not_keep_others_out() {
        let address = endpoint();
        let start = Instant::now();
        // as many as fit into the kernel's queue
        let silent: Vec<TcpStream> =
            (0..100 + THREADS).map(|_| TcpStream::connect(address).expect("connect")).collect();
        let answer = ask(address, b"GET /metrics HTTP/1.1\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
        drop(silent);
    }

    #[test]
    fn a_page_that_panics_costs_no_thread() {
        let calls = std::sync::atomic::AtomicUsize::new(0);
        let page = move || {
            let call = calls.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            assert!(call >= 2 * THREADS, "a bug");
            Ok(String::new())
        };
        let address = start(SocketAddr::from(([127, 0, 0, 1], 0)), page).expect("listen");
        for _ in 0..2 * THREADS {
            assert_eq!(ask(address, b"GET /metrics HTTP/1.1\r\n\r\n"), "");
        }
        let answer = ask(address, b"GET /metrics HTTP/1.1\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
}
