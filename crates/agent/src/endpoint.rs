//! The endpoint that Prometheus asks: HTTP, one resource, one request a connection.
//!
//! One thread serves all connections, none of which it waits for ([`crate::door`]): clients that are slow or many
//! make the agent neither wait nor grow, and keep no other client out.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use pgpool_recovery_core::error::{Error, Result};
use tracing::{error, warn};

use crate::door::{Door, End, Reception, Step, Visit};

/// Connections served at a time. Another one displaces the oldest.
const CONNECTIONS: usize = 256;

/// Most bytes of a request.
const REQUEST: usize = 8 << 10;

/// Most header lines of a request.
const HEADERS: usize = 64;

/// How long a connection may last.
const DEADLINE: Duration = Duration::from_secs(2);

/// How long a page is good for: making one takes a look at every data directory.
const GOOD: Duration = Duration::from_millis(100);

/// Starts to listen on `address`; `/metrics` is what `page` makes. Returns the address, for one with port 0.
pub(crate) fn start(
    address: SocketAddr,
    page: impl Fn() -> Result<String> + Send + 'static,
) -> Result<SocketAddr> {
    let (door, closer) =
        Door::open(address, CONNECTIONS, DEADLINE, Endpoint { page, made: None }).map_err(|error| {
            Error::io(format_args!("listen on {address} for metrics"), &error)
                .hint("Choose another port with \"metrics\" in agent.toml.")
        })?;
    let address = door.address();
    let serve = move || {
        let _open = closer;
        if let Err(error) = door.run() {
            error!("no more metrics: {error}");
        }
    };
    let thread = std::thread::Builder::new().name("metrics".to_owned()).spawn(serve);
    thread.map_err(|error| Error::no_thread(&error))?;
    Ok(address)
}

struct Endpoint<F> {
    page: F,
    /// The last page.
    made: Option<(Instant, String)>,
}

impl<F: Fn() -> Result<String>> Endpoint<F> {
    fn answer(&mut self, asked: &Asked) -> Answer {
        match asked {
            Asked::Page => match self.page() {
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
        }
    }

    fn page(&mut self) -> Result<String> {
        if let Some((made, text)) = &self.made
            && made.elapsed() < GOOD
        {
            return Ok(text.clone());
        }
        let text = (self.page)()?;
        self.made = Some((Instant::now(), text.clone()));
        Ok(text)
    }
}

/// How far the conversation with a client has come.
enum Exchange {
    /// What there is of the request.
    Asking(Vec<u8>),
    /// The rest of the answer.
    Answering(io::Cursor<Vec<u8>>),
    /// Bytes that may still come. What is left unread would make the kernel reset the connection, and the answer
    /// would be lost.
    Closing(usize),
}

impl<F: Fn() -> Result<String>> Reception for Endpoint<F> {
    type Guest = Exchange;

    fn welcome(&mut self) -> Exchange {
        Exchange::Asking(Vec::new())
    }

    fn advance(&mut self, visit: &mut Visit<Exchange>) -> Step {
        loop {
            let step = match &mut visit.guest {
                Exchange::Asking(bytes) => read(&visit.socket, bytes).map(|(asked, has_body)| {
                    Exchange::Answering(io::Cursor::new(self.answer(&asked).encode(has_body)))
                }),
                Exchange::Answering(rest) => write(&visit.socket, rest).map(|()| Exchange::Closing(REQUEST)),
                Exchange::Closing(rest) => match drain(&visit.socket, rest) {
                    Ok(()) => return Step::Ended,
                    Err(error) => Err(error),
                },
            };
            match step {
                Ok(next) => visit.guest = next,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let is_writing = matches!(visit.guest, Exchange::Answering(_));
                    return if is_writing { Step::Write } else { Step::Read };
                }
                // a client that left or was too slow is nothing to report
                Err(_) => return Step::Ended,
            }
        }
    }

    fn leave(&mut self, _visit: Visit<Exchange>, _end: End) {}
}

fn write(mut socket: &TcpStream, rest: &mut io::Cursor<Vec<u8>>) -> io::Result<()> {
    loop {
        let at = usize::try_from(rest.position()).unwrap_or(usize::MAX);
        let left = rest.get_ref().get(at..).unwrap_or_default();
        if left.is_empty() {
            return socket.shutdown(Shutdown::Write);
        }
        let count = socket.write(left)?;
        rest.set_position(rest.position() + count as u64);
    }
}

fn drain(mut socket: &TcpStream, rest: &mut usize) -> io::Result<()> {
    let mut part = [0; 1024];
    while *rest > 0 {
        let count = socket.read(&mut part)?;
        if count == 0 {
            break;
        }
        *rest = rest.saturating_sub(count);
    }
    Ok(())
}

enum Asked {
    Page,
    Other,
    Method,
    Nonsense,
}

/// What is asked for, and whether the answer has a body.
fn read(mut socket: &TcpStream, bytes: &mut Vec<u8>) -> io::Result<(Asked, bool)> {
    let mut part = [0; 1024];
    loop {
        let count = socket.read(&mut part)?;
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

    fn encode(&self, has_body: bool) -> Vec<u8> {
        let Self { status, content, text } = self;
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: {content}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            text.len()
        );
        [head.as_bytes(), if has_body { text.as_bytes() } else { b"" }].concat()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::atomic::{AtomicBool, Ordering};

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

    /// Ends the floods of a test, also if it fails.
    struct Stop<'a>(&'a AtomicBool);

    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    /// Connections without an end, of which each says `said`.
    fn flood(address: SocketAddr, said: &[u8], stop: &AtomicBool) {
        let mut crowd = VecDeque::new();
        while !stop.load(Ordering::Relaxed) {
            if let Ok(mut socket) = TcpStream::connect_timeout(&address, Duration::from_millis(100)) {
                let _ = socket.write_all(said);
                crowd.push_back(socket);
            }
            if crowd.len() > CONNECTIONS {
                crowd.pop_front();
            }
        }
    }

    /// Prometheus asks again after a while if it gets no answer.
    fn scrape(address: SocketAddr) -> io::Result<String> {
        let mut socket = TcpStream::connect_timeout(&address, Duration::from_secs(10))?;
        socket.set_read_timeout(Some(Duration::from_secs(10)))?;
        socket.write_all(b"GET /metrics HTTP/1.1\r\n\r\n")?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer)?;
        Ok(answer)
    }

    #[test]
    fn a_flood_keeps_nobody_out() {
        let address = endpoint();
        for said in [&b""[..], b"GET /metrics HTTP/1.1\r\nX: ", b"GET /metrics HTTP/1.1\r\n\r\n", b"\x16\x03"]
        {
            let stop = AtomicBool::new(false);
            std::thread::scope(|scope| {
                let guard = Stop(&stop);
                for _ in 0..2 {
                    scope.spawn(|| flood(address, said, &stop));
                }
                let answers: Vec<_> = (0..10)
                    .filter_map(|_| scrape(address).ok())
                    .filter(|answer| answer.starts_with("HTTP/1.1 200 "))
                    .collect();
                drop(guard);
                assert!(answers.len() >= 7, "{} of 10 are answered", answers.len());
            });
        }
    }

    #[test]
    fn a_page_that_panics_costs_no_thread() {
        let calls = std::sync::atomic::AtomicUsize::new(0);
        let page = move || {
            let call = calls.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            assert!(call >= 3, "a bug");
            Ok(String::new())
        };
        let address = start(SocketAddr::from(([127, 0, 0, 1], 0)), page).expect("listen");
        for _ in 0..3 {
            assert_eq!(ask(address, b"GET /metrics HTTP/1.1\r\n\r\n"), "");
        }
        let answer = ask(address, b"GET /metrics HTTP/1.1\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }

    #[test]
    fn a_client_that_reads_late_gets_all_of_a_long_page() {
        let long = "up 1\n".repeat(2 << 20);
        let page = long.clone();
        let address = start(SocketAddr::from(([127, 0, 0, 1], 0)), move || Ok(page.clone())).expect("listen");
        let answer = ask(address, b"GET /metrics HTTP/1.1\r\n\r\n");
        assert!(answer.ends_with(&long), "{} bytes", answer.len());
    }
}
