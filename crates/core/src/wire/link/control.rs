//! The control link: messages in order, and the certainty that the other end is alive.
//!
//! A thread reads, a thread pings. Either one that finds the peer gone trips the run's [`Cancel`], which
//! closes every link of the run: a read that would block for ever on a dead host comes back, and what the receiver does for a
//! sender that has left ends.

use std::sync::atomic::{AtomicBool, Ordering};
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
    /// Whether the peer ended the link in order.
    has_ended: Arc<AtomicBool>,
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
        Self::open(link, cancel, place, false)
    }

    /// The same for a receiver: the end of the link trips the switch, in order or not, so that no step goes on for a sender
    /// that has left.
    pub(crate) fn of_receiver(link: Link, cancel: Cancel, place: String) -> Result<Self> {
        Self::open(link, cancel, place, true)
    }

    fn open(link: Link, cancel: Cancel, place: String, trips_at_end: bool) -> Result<Self> {
        let (deliver, inbox) = sync_channel(INBOX);
        let (stop, stopped) = sync_channel(1);
        let sink = Arc::new(Mutex::new(link.sink));
        let waiting = Arc::new(Mutex::new(Some(Instant::now())));
        let has_ended = Arc::new(AtomicBool::new(false));
        let reader = Reader {
            source: link.source,
            deliver,
            waiting: Arc::clone(&waiting),
            has_ended: Arc::clone(&has_ended),
            at_end: trips_at_end.then(|| (cancel.clone(), place.clone())),
        };
        let pinger = Pinger {
            sink: Arc::clone(&sink),
            waiting,
            stopped,
            cancel: cancel.clone(),
            place: place.clone(),
        };
        let switch = cancel.clone();
        let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| {
            // kept: what it owns closes the link, not before the reason is known to a peer in this process
            let kept = Arc::new(Mutex::new(Some(work)));
            let taken = Arc::clone(&kept);
            let run = move || {
                let work = lock(&taken).take();
                if let Some(work) = work {
                    work();
                }
            };
            std::thread::Builder::new().name(name.to_owned()).spawn(run).map_err(|error| {
                let error = Error::no_thread(&error);
                switch.trip_with(error.clone());
                error
            })
        };
        let mut control =
            Self { sink, inbox, has_ended, cancel, place, threads: Vec::new(), stop: Some(stop) };
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
            Err(_) if self.has_ended.load(Ordering::SeqCst) => Ok(None),
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
    has_ended: Arc<AtomicBool>,
    /// What the end of the link trips, and whose end it is.
    at_end: Option<(Cancel, String)>,
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
                Ok(None) => {
                    self.has_ended.store(true, Ordering::SeqCst);
                    if let Some((cancel, place)) = &self.at_end {
                        cancel.trip_with(Error::new(
                            Kind::Canceled,
                            format!("{place} has closed the connection"),
                        ));
                    }
                    return;
                }
                Err(error) => {
                    if let Some((cancel, _)) = &self.at_end {
                        cancel.trip_with(error.clone());
                    }
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

    /// The two ends of a link, each with a switch of its own.
    fn apart() -> (Link, Cancel, Link, Cancel) {
        let (near_cancel, far_cancel) = (Cancel::new(), Cancel::new());
        // tripping one end's switch closes the link, as it does with a socket
        let (near, far) = pipe::pair(&far_cancel);
        (near, near_cancel, far, far_cancel)
    }

    fn tripped(cancel: &Cancel) -> Error {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            if let Some(cause) = cancel.cause() {
                return cause;
            }
            assert!(Instant::now() < deadline, "the end was not noticed");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn what_a_receiver_does_ends_with_the_link_although_nothing_is_received() {
        let (near, _near_cancel, far, far_cancel) = apart();
        let far = Control::of_receiver(far, far_cancel.clone(), "the primary".to_owned()).expect("control");
        drop(near);
        let cause = tripped(&far_cancel);
        assert!(cause.message.contains("the primary has closed"), "{cause}");
        assert_eq!(far.receive().expect("in order"), None);
    }

    #[test]
    fn what_a_receiver_does_ends_with_a_cut_as_well() {
        struct Cut;
        impl Source for Cut {
            fn receive(&mut self, _body: &mut Buffer) -> Result<Option<u8>> {
                Err(closed("the primary"))
            }
        }
        let (near, _near_cancel, far, far_cancel) = apart();
        let far = Link { source: Box::new(Cut), ..far };
        let far = Control::of_receiver(far, far_cancel.clone(), "the primary".to_owned()).expect("control");
        assert_eq!(tripped(&far_cancel).kind, Kind::ConnectionLost);
        assert_eq!(far.receive().expect_err("cut").kind, Kind::ConnectionLost);
        drop(near);
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
