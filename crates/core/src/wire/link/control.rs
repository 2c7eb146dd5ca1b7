//! The control link: messages in order, and the certainty that the other end is alive.
//!
//! A thread reads, a thread pings. Either one that finds the peer gone trips the run's [`Cancel`], which
//! closes every link of the run: a read that would block for ever on a dead host comes back.

use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{Link, Sink, Source, closed};
use crate::error::{Error, Kind, Result};
use crate::sys::buffer::Buffer;
use crate::sys::cancel::Cancel;
use crate::sys::lock::lock;
use crate::wire::protocol::{PING, PING_INTERVAL, SILENCE};

/// Frames that wait to be handled; the reader stops reading when so many do.
const INBOX: usize = 16;

/// One end of a control link.
pub(crate) struct Control {
    sink: Arc<Mutex<Box<dyn Sink>>>,
    inbox: Receiver<Result<(u8, Vec<u8>)>>,
    cancel: Cancel,
    place: String,
    threads: Vec<JoinHandle<()>>,
    /// Wakes the pinger at the end.
    stop: Option<SyncSender<()>>,
}

impl Control {
    /// Takes a link over. `cancel` is the run's switch and must close the link when it trips; `place`
    /// names the peer in errors.
    pub(crate) fn new(link: Link, cancel: Cancel, place: String) -> Result<Self> {
        let (deliver, inbox) = sync_channel(INBOX);
        let (stop, stopped) = sync_channel(1);
        let sink = Arc::new(Mutex::new(link.sink));
        let waiting = Arc::new(Mutex::new(Some(Instant::now())));
        let reader = Reader { source: link.source, deliver, waiting: Arc::clone(&waiting) };
        let pinger = Pinger {
            sink: Arc::clone(&sink),
            waiting,
            stopped,
            cancel: cancel.clone(),
            place: place.clone(),
        };
        let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new().name(name.to_owned()).spawn(work).map_err(Error::on("start a thread"))
        };
        let mut control = Self { sink, inbox, cancel, place, threads: Vec::new(), stop: Some(stop) };
        control.threads.push(spawn("control-reader", Box::new(move || reader.run()))?);
        control.threads.push(spawn("control-pinger", Box::new(move || pinger.run()))?);
        Ok(control)
    }

    /// Sends one frame at once.
    pub(crate) fn send(&self, kind: u8, parts: &[&[u8]]) -> Result<()> {
        let mut sink = lock(&self.sink);
        sink.send(kind, parts)?;
        sink.flush()
    }

    /// Waits for the next frame that is not a ping; `None` when the peer ended the link in order.
    pub(crate) fn receive(&self) -> Result<Option<(u8, Vec<u8>)>> {
        match self.inbox.recv() {
            Ok(Ok(frame)) => Ok(Some(frame)),
            // a link that was closed by the run's end fails with the reason for that end
            Ok(Err(error)) => Err(self.cancel.cause().unwrap_or(error)),
            Err(_) => self.cancel.check().map(|()| None),
        }
    }

    /// Waits so long at most for the peer to answer, or to be gone; what it says does not matter any more.
    pub(crate) fn last_answer(&self, time: Duration) {
        let _ = self.inbox.recv_timeout(time);
    }

    /// The error for a peer that left in the middle of something.
    pub(crate) fn closed(&self) -> Error {
        closed(&self.place)
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.stop.take();
        // ends the reader: nothing is awaited any more
        self.cancel.trip();
        // the reader may be blocked in delivering
        while self.inbox.try_recv().is_ok() {}
        for thread in self.threads.drain(..) {
            while !thread.is_finished() {
                let _ = self.inbox.recv_timeout(Duration::from_millis(20));
            }
            let _ = thread.join();
        }
    }
}

struct Reader {
    source: Box<dyn Source>,
    deliver: SyncSender<Result<(u8, Vec<u8>)>>,
    /// Since when the peer has been awaited; `None` while a frame is being delivered.
    waiting: Arc<Mutex<Option<Instant>>>,
}

impl Reader {
    fn run(mut self) {
        let mut body = Buffer::new();
        loop {
            *lock(&self.waiting) = Some(Instant::now());
            let received = self.source.receive(&mut body);
            *lock(&self.waiting) = None;
            let delivered = match received {
                Ok(Some(PING)) => continue,
                Ok(Some(kind)) => self.deliver.send(Ok((kind, body.to_vec()))),
                Ok(None) => return,
                Err(error) => {
                    let _ = self.deliver.send(Err(error));
                    return;
                }
            };
            if delivered.is_err() {
                return;
            }
        }
    }
}

struct Pinger {
    sink: Arc<Mutex<Box<dyn Sink>>>,
    waiting: Arc<Mutex<Option<Instant>>>,
    stopped: Receiver<()>,
    cancel: Cancel,
    place: String,
}

impl Pinger {
    fn run(self) {
        while self.stopped.recv_timeout(PING_INTERVAL) == Err(RecvTimeoutError::Timeout) {
            let silent = lock(&self.waiting).is_some_and(|since| since.elapsed() > SILENCE);
            if silent {
                self.cancel.trip_with(
                    Error::new(Kind::ConnectionLost, format!("{} went silent", self.place))
                        .detail(format!("Nothing arrived for {} seconds.", SILENCE.as_secs()))
                        .hint("Check the network and the other host. Then run the recovery again; it sends only what is missing."),
                );
                return;
            }
            let mut sink = lock(&self.sink);
            if sink.send(PING, &[]).and_then(|()| sink.flush()).is_err() {
                // the reader learns why
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::link::pipe;

    #[test]
    fn messages_arrive_and_an_end_is_noticed() {
        let cancel = Cancel::new();
        let (near, far) = pipe::pair(&cancel);
        let near = Control::new(near, cancel.clone(), "far".to_owned()).expect("control");
        let far = Control::new(far, cancel, "near".to_owned()).expect("control");
        near.send(9, &[b"a", b"b"]).expect("send");
        assert_eq!(far.receive().expect("receive"), Some((9, b"ab".to_vec())));
        drop(near);
        assert_eq!(far.receive().expect_err("the end").kind, Kind::Canceled);
    }

    #[test]
    fn a_full_inbox_does_not_hang_the_end() {
        let cancel = Cancel::new();
        let (near, far) = pipe::pair(&cancel);
        let near = Control::new(near, cancel.clone(), "far".to_owned()).expect("control");
        let far = Control::new(far, cancel, "near".to_owned()).expect("control");
        for _ in 0..INBOX * 4 {
            near.send(9, &[b"x"]).expect("send");
        }
        drop(far);
        drop(near);
    }
}
