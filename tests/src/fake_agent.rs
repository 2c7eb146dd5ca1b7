//! What may stand where an agent should: things that listen and behave badly.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::ports::Port;

/// How a connection is treated.
#[derive(Debug, Clone)]
pub enum TransferOptions {
    /// Accepts, reads, and never says a word.
    Silent,
    /// Reads a first message and closes.
    Closes,
    /// Reads a first message, answers these bytes and closes.
    Says(Vec<u8>),
}

/// A listener on 127.0.0.1 that ends with this value.
#[derive(Debug)]
pub struct FakeAgent {
    port: Port,
    stop: Arc<AtomicBool>,
    connections: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl FakeAgent {
    pub fn start(options: TransferOptions) -> Self {
        let port = Port::claim();
        let listener = TcpListener::bind(("127.0.0.1", port.number())).expect("a claimed port");
        listener.set_nonblocking(true).expect("a listener");
        let stop = Arc::new(AtomicBool::new(false));
        let connections = Arc::new(AtomicUsize::new(0));
        let thread = {
            let (stop, connections) = (Arc::clone(&stop), Arc::clone(&connections));
            std::thread::spawn(move || serve(&listener, &options, &stop, &connections))
        };
        Self { port, stop, connections, thread: Some(thread) }
    }

    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// How many connections came in.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

impl Drop for FakeAgent {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(
    listener: &TcpListener,
    options: &TransferOptions,
    stop: &Arc<AtomicBool>,
    connections: &AtomicUsize,
) {
    let mut workers = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((stream, _)) => {
                connections.fetch_add(1, Ordering::Relaxed);
                let (options, stop) = (options.clone(), Arc::clone(stop));
                workers.push(std::thread::spawn(move || {
                    // The peer may go at any time: that is its right.
                    let _ = treat(stream, &options, &stop);
                }));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
    for worker in workers {
        let _ = worker.join();
    }
}

fn treat(mut stream: TcpStream, options: &TransferOptions, stop: &AtomicBool) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_millis(50)))?;
    match options {
        TransferOptions::Silent => while read_some(&mut stream, stop)?.is_some() {},
        TransferOptions::Closes => drop(read_some(&mut stream, stop)?),
        TransferOptions::Says(answer) => {
            read_some(&mut stream, stop)?;
            stream.write_all(answer)?;
            stream.shutdown(Shutdown::Write)?;
            while read_some(&mut stream, stop)?.is_some() {}
        }
    }
    Ok(())
}

/// Some bytes; None at the end of the stream or of the test.
fn read_some(stream: &mut TcpStream, stop: &AtomicBool) -> std::io::Result<Option<Vec<u8>>> {
    let mut buffer = [0; 16 * 1024];
    while !stop.load(Ordering::Relaxed) {
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(None),
            Ok(count) => return Ok(Some(buffer[..count].to_vec())),
            Err(error) if is_timeout(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

fn is_timeout(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut)
}
