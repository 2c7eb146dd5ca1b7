//! Links within one process: bounded queues of frames.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::{Link, Sink, Source, check_length, closed};
use crate::error::Result;
use crate::sys::buffer::Buffer;
use crate::sys::cancel::Cancel;
use crate::sys::lock::lock;

/// Most bytes that wait in one direction.
const CAPACITY: usize = 3 << 20;

/// Most empty buffers kept for the next frames, so that a long run allocates only at its start.
const SPARES: usize = 4;

/// The two ends of a new link. Tripping `cancel` closes it.
pub fn pair(cancel: &Cancel) -> (Link, Link) {
    let there = Arc::new(Queue::default());
    let back = Arc::new(Queue::default());
    for queue in [&there, &back] {
        let queue = Arc::clone(queue);
        cancel.on_trip(Box::new(move || queue.close()));
    }
    let link = |out: &Arc<Queue>, inn: &Arc<Queue>| Link {
        sink: Box::new(PipeSink { queue: Arc::clone(out), cancel: cancel.clone() }),
        source: Box::new(PipeSource { queue: Arc::clone(inn), cancel: cancel.clone() }),
        peer: None,
    };
    (link(&there, &back), link(&back, &there))
}

#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    frames: VecDeque<(u8, Buffer)>,
    bytes: usize,
    closed: bool,
    spares: Vec<Buffer>,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }
}

struct PipeSink {
    queue: Arc<Queue>,
    cancel: Cancel,
}

impl PipeSink {
    /// Takes the content of `body` and leaves an empty buffer in its place.
    fn push(&self, kind: u8, body: &mut Buffer) -> Result<()> {
        let length = body.len();
        let mut state = self.queue.lock();
        while !state.closed && state.bytes > 0 && state.bytes + length > CAPACITY {
            state = self.queue.wait(state);
        }
        if state.closed {
            drop(state);
            self.cancel.check()?;
            return Err(closed("the local receiver"));
        }
        let spare = state.spares.pop().unwrap_or_default();
        state.bytes += length;
        state.frames.push_back((kind, std::mem::replace(body, spare)));
        drop(state);
        self.queue.changed.notify_all();
        Ok(())
    }
}

impl Sink for PipeSink {
    fn send(&mut self, kind: u8, parts: &[&[u8]]) -> Result<()> {
        check_length(parts.iter().map(|part| part.len()).sum())?;
        let mut body = self.queue.lock().spares.pop().unwrap_or_default();
        body.clear();
        for part in parts {
            body.extend_from_slice(part);
        }
        self.push(kind, &mut body)
    }

    fn send_buffer(&mut self, kind: u8, content: &mut Buffer, tail: &[u8]) -> Result<()> {
        check_length(content.len() + tail.len())?;
        content.extend_from_slice(tail);
        self.push(kind, content)
    }

    fn flush(&mut self) -> Result<()> {
        Ok(())
    }
}

impl Drop for PipeSink {
    fn drop(&mut self) {
        self.queue.close();
    }
}

struct PipeSource {
    queue: Arc<Queue>,
    cancel: Cancel,
}

impl Source for PipeSource {
    fn receive(&mut self, body: &mut Buffer) -> Result<Option<u8>> {
        let mut state = self.queue.lock();
        loop {
            self.cancel.check()?;
            if let Some((kind, frame)) = state.frames.pop_front() {
                state.bytes -= frame.len();
                let spare = std::mem::replace(body, frame);
                if state.spares.len() < SPARES {
                    state.spares.push(spare);
                }
                drop(state);
                self.queue.changed.notify_all();
                return Ok(Some(kind));
            }
            if state.closed {
                return Ok(None);
            }
            state = self.queue.wait(state);
        }
    }
}

impl Drop for PipeSource {
    fn drop(&mut self) {
        self.queue.close();
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::error::Kind;

    #[test]
    fn carries_frames_in_order_and_bounds_memory() {
        let cancel = Cancel::new();
        let (mut near, mut far) = pair(&cancel);
        let writer = thread::spawn(move || {
            for number in 0..50_u8 {
                near.sink.send(number, &[&[number; 100], &vec![number; 1 << 20]]).expect("send");
            }
        });
        let mut body = Buffer::new();
        for number in 0..50_u8 {
            assert_eq!(far.source.receive(&mut body).expect("receive"), Some(number));
            assert_eq!(body.len(), 100 + (1 << 20));
            assert!(body.iter().all(|&byte| byte == number));
        }
        assert_eq!(far.source.receive(&mut body).expect("end"), None);
        writer.join().expect("writer");
    }

    #[test]
    fn cancel_wakes_both_directions() {
        let cancel = Cancel::new();
        let (mut near, _far) = pair(&cancel);
        let trip = cancel.clone();
        let waker = thread::spawn(move || {
            thread::sleep(std::time::Duration::from_millis(50));
            trip.trip();
        });
        let error = near.source.receive(&mut Buffer::new()).expect_err("cancelled");
        assert_eq!(error.kind, Kind::Canceled);
        assert_eq!(near.sink.send(1, &[b"x"]).expect_err("cancelled").kind, Kind::Canceled);
        waker.join().expect("waker");
    }

    #[test]
    fn a_vanished_reader_fails_the_writer() {
        let cancel = Cancel::new();
        let (mut near, far) = pair(&cancel);
        drop(far);
        assert_eq!(near.sink.send(1, &[b"x"]).expect_err("closed").kind, Kind::ConnectionLost);
    }

    #[test]
    fn an_oversized_frame_is_refused() {
        let (mut near, _far) = pair(&Cancel::new());
        let body = vec![0; super::super::MAX_BODY + 1];
        assert_eq!(near.sink.send(1, &[&body]).expect_err("too long").kind, Kind::ProtocolViolation);
    }
}
