//! The way between a primary and an agent, with weather.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::ports::Port;

/// What happens to what is on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Weather {
    /// It arrives.
    Fair,
    /// Connections are closed, new ones too.
    Cut,
    /// Nothing arrives, without an error at either end.
    Hole,
    /// One bit of what the primary sends is flipped, then it is fair again.
    Flip,
    /// The proxy ends.
    End,
}

/// How often the weather is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// Passes connections on to an agent; ends with this value.
#[derive(Debug)]
pub struct Proxy {
    port: Port,
    weather: Arc<AtomicU8>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    /// A way to the agent at this port of 127.0.0.1.
    pub fn to(agent: u16) -> Self {
        Self::cutting_after(usize::MAX, agent)
    }

    /// The same, cutting each connection when the agent has answered so many bytes.
    pub fn cutting_after(bytes: usize, agent: u16) -> Self {
        let port = Port::claim();
        let listener = TcpListener::bind(("127.0.0.1", port.number())).expect("a claimed port");
        listener.set_nonblocking(true).expect("a listener");
        let weather = Arc::new(AtomicU8::new(Weather::Fair as u8));
        let seen = Arc::clone(&weather);
        let thread = std::thread::spawn(move || serve(&listener, agent, bytes, &seen));
        Self { port, weather, thread: Some(thread) }
    }

    pub fn port(&self) -> u16 {
        self.port.number()
    }

    pub fn set(&self, weather: Weather) {
        self.weather.store(weather as u8, Ordering::SeqCst);
    }

    /// Whether the weather has become fair by itself.
    pub fn is_fair(&self) -> bool {
        is(&self.weather, Weather::Fair)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.set(Weather::End);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn is(weather: &AtomicU8, what: Weather) -> bool {
    weather.load(Ordering::SeqCst) == what as u8
}

fn serve(listener: &TcpListener, agent: u16, most: usize, weather: &Arc<AtomicU8>) {
    let mut ways = Vec::new();
    while !is(weather, Weather::End) {
        let Ok((primary, _)) = listener.accept() else {
            std::thread::sleep(LOOK);
            continue;
        };
        // who finds no agent is told by the end of the connection
        let Ok(behind) = TcpStream::connect(("127.0.0.1", agent)) else { continue };
        let (Ok(back), Ok(forth)) = (primary.try_clone(), behind.try_clone()) else { continue };
        for (from, to, most, is_to_agent) in [(primary, forth, usize::MAX, true), (behind, back, most, false)]
        {
            let weather = Arc::clone(weather);
            ways.push(std::thread::spawn(move || {
                // either end may go at any time
                let _ = pass(&from, &to, most, is_to_agent, &weather);
                let _ = from.shutdown(Shutdown::Both);
                let _ = to.shutdown(Shutdown::Both);
            }));
        }
    }
    for way in ways {
        let _ = way.join();
    }
}

/// Waits while nothing arrives; whether anything will.
fn wait_out(weather: &AtomicU8) -> bool {
    while is(weather, Weather::Hole) {
        std::thread::sleep(LOOK);
    }
    !is(weather, Weather::End) && !is(weather, Weather::Cut)
}

fn pass(
    mut from: &TcpStream,
    mut to: &TcpStream,
    most: usize,
    is_to_agent: bool,
    weather: &AtomicU8,
) -> std::io::Result<()> {
    from.set_nonblocking(false)?;
    from.set_read_timeout(Some(LOOK))?;
    let mut buffer = vec![0; 64 << 10];
    let mut left = most;
    loop {
        if left == 0 || !wait_out(weather) {
            return Ok(());
        }
        let room = buffer.len().min(left);
        let count = match from.read(&mut buffer[..room]) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => continue,
            Err(error) => return Err(error),
        };
        // it may have changed while this was waited for
        if !wait_out(weather) {
            return Ok(());
        }
        let (flip, fair) = (Weather::Flip as u8, Weather::Fair as u8);
        if is_to_agent
            && count > 1000
            && weather.compare_exchange(flip, fair, Ordering::SeqCst, Ordering::SeqCst).is_ok()
        {
            buffer[count / 2] ^= 1;
        }
        to.write_all(&buffer[..count])?;
        left -= count;
    }
}
