//! The link that brings a run's WAL, while others bring its data.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};

use super::run::Run;
use super::wal_sink::WalSink;
use super::{reply, unexpected};
use crate::error::{Error, Kind, Result};
use crate::sys::buffer::Buffer;
use crate::sys::cancel::Cancel;
use crate::sys::lock::lock;
use crate::wire::compress::Decompressor;
use crate::wire::link::{Link, Sink, Source};
use crate::wire::protocol::data::FAILED;
use crate::wire::protocol::message::{self, Reply};
use crate::wire::protocol::wal::{WAL, WAL_DURABLE, WalTail, encode_durable};

/// The WAL of a run, and whether a link brings it.
pub(super) struct Wal {
    sink: Mutex<WalSink>,
    is_attached: AtomicBool,
}

impl Wal {
    pub(super) const fn new(sink: WalSink) -> Self {
        Self { sink: Mutex::new(sink), is_attached: AtomicBool::new(false) }
    }

    pub(super) fn sink(&self) -> MutexGuard<'_, WalSink> {
        lock(&self.sink)
    }
}

/// Serves the link until the sender closes it.
pub(super) fn serve(run: &Run, link: Link, cancel: &Cancel) -> Result<()> {
    let Link { mut sink, mut source, .. } = link;
    let close = cancel.clone();
    run.cancel.on_trip(Box::new(move || close.trip()));
    let taken = run.wal().filter(|wal| !wal.is_attached.swap(true, Ordering::AcqRel));
    let Some(wal) = taken else {
        let error = Error::new(Kind::ProtocolViolation, "the run awaits no WAL, or has a link for it");
        reply(&mut *sink, &Reply::Error(error.clone()))?;
        return Err(error);
    };
    let durable = wal.sink().durable();
    reply(&mut *sink, &Reply::WalAttached { durable })?;
    let received = receive(run, wal, &mut *source, &mut *sink);
    wal.is_attached.store(false, Ordering::Release);
    received.inspect_err(|error| {
        // the link may be what failed
        let told =
            message::encode(error).and_then(|text| sink.send(FAILED, &[&text])).and_then(|()| sink.flush());
        if told.is_ok() {
            // the words must reach the sender before the link closes; it closes its end then
            let mut body = Buffer::new();
            while let Ok(Some(_)) = source.receive(&mut body) {}
        }
    })
}

fn receive(run: &Run, wal: &Wal, source: &mut dyn Source, sink: &mut dyn Sink) -> Result<()> {
    let (mut body, mut content) = (Buffer::new(), Buffer::new());
    let mut decompressor = Decompressor::default();
    while let Some(kind) = source.receive(&mut body)? {
        if kind != WAL {
            return Err(unexpected(kind));
        }
        let (tail, packed) = WalTail::decode(&body)?;
        body.resize(packed);
        decompressor.unpack(tail.codec, &mut body, tail.length.into(), &mut content)?;
        run.record.add_wal(tail.span.into());
        let durable = wal.sink().write(&run.target, &tail, &content)?;
        run.record.add_written(tail.span.into());
        if let Some(durable) = durable {
            sink.send(WAL_DURABLE, &[&encode_durable(durable)])?;
            sink.flush()?;
        }
    }
    Ok(())
}
