//! WAL, sent while data is, on a link of its own: from where the backup starts to where it ends, as the server flushes it.
//!
//! PostgreSQL's code belongs to the main thread of a backend, which says how far the server has flushed its WAL; a thread here
//! reads it from pg_wal and sends it, as a walsender does, and another hears how far it is durable on the target.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use pgdata::wal::{Lsn, segment_end, segment_name, segment_start};

use super::conversation::Conversation;
use super::pack::Compression;
use super::wal_positions::WalPositions;
use crate::error::{Error, Kind, Result};
use crate::manifest::plan::Directory;
use crate::progress::Progress;
use crate::sys::FileId;
use crate::sys::buffer::Buffer;
use crate::sys::cancel::Cancel;
use crate::wire::compress::Compressor;
use crate::wire::link::{Link, Sink, Source, closed};
use crate::wire::protocol::data::{Codec, FAILED};
use crate::wire::protocol::message::{self, WalStart};
use crate::wire::protocol::wal::{MAX_WAL, WAL, WAL_DURABLE, WalTail, decode_durable};

/// The WAL of a run: where it is, and how it is sent.
#[derive(Debug)]
pub struct WalSource {
    /// The primary's pg_wal.
    pub directory: PathBuf,
    /// The timeline that it is written on.
    pub timeline: u32,
    /// Bytes in a segment.
    pub segment_size: u32,
    /// Where the backup starts.
    pub start: Lsn,
    /// Permission bits of its files on the target.
    pub mode: u32,
    /// Directories in the target's pg_wal.
    pub directories: Vec<Directory>,
    /// How it is packed. It does not take part in the trials of `auto`, which measure how far data comes: it is packed with
    /// LZ4 then, where bytes leave the process.
    pub compression: Compression,
    /// How far the server and the target are.
    pub positions: Arc<WalPositions>,
}

impl WalSource {
    /// What the receiver is told of it.
    pub(super) fn start(&self) -> WalStart {
        WalStart {
            timeline: self.timeline,
            segment_size: self.segment_size,
            from: segment_start(self.start, self.segment_size),
            mode: self.mode,
            directories: self.directories.clone(),
        }
    }

    fn codec(&self, is_remote: bool) -> Codec {
        match self.compression {
            _ if !is_remote => Codec::Plain,
            Compression::Off => Codec::Plain,
            Compression::Auto | Compression::Lz4 => Codec::Lz4,
            Compression::Zstd => Codec::Zstd,
        }
    }
}

/// Threads that send WAL. Dropping them ends the run if they have not come to its end.
pub(super) struct WalStream {
    positions: Arc<WalPositions>,
    cancel: Cancel,
    threads: Vec<JoinHandle<()>>,
    segment_size: u32,
}

impl WalStream {
    /// Begins to send what is flushed from where the target goes on.
    pub(super) fn start(conversation: &Conversation, source: WalSource) -> Result<Self> {
        let (Link { sink, source: answers, .. }, durable) = conversation.entrance().attach_wal()?;
        let cancel = conversation.cancel.clone();
        let positions = Arc::clone(&source.positions);
        positions.begin(segment_start(source.start, source.segment_size), durable)?;
        let wake = Arc::clone(&positions);
        cancel.on_trip(Box::new(move || wake.wake()));
        let place = conversation.place.clone();
        let acknowledged = Acknowledged { source: answers, positions: Arc::clone(&positions), place };
        let segment_size = source.segment_size;
        let shipping = Shipping {
            codec: source.codec(conversation.connector.is_remote()),
            segments: Segments { source, open: None },
            sink,
            progress: Arc::clone(&conversation.progress),
            cancel: cancel.clone(),
        };
        let mut stream = Self { positions, cancel, threads: Vec::new(), segment_size };
        let ends = stream.cancel.clone();
        stream.spawn("wal-durable", move || {
            let _ = acknowledged.run().inspect_err(|error| ends.trip_with(error.clone()));
        })?;
        let ends = stream.cancel.clone();
        stream.spawn("send-wal", move || match shipping.run(durable) {
            // the other thread hears why, or that nothing more comes
            Err(error) if error.kind == Kind::ConnectionLost => {}
            shipped => drop(shipped.inspect_err(|error| ends.trip_with(error.clone()))),
        })?;
        Ok(stream)
    }

    fn spawn(&mut self, name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(work);
        self.threads.push(thread.map_err(|error| Error::no_thread(&error))?);
        Ok(())
    }

    /// The backup has ended here, and the WAL up to the end of that segment is flushed: no more is sent.
    pub(super) fn end(&self, stop: Lsn) {
        self.positions.end_at(segment_end(stop, self.segment_size));
    }

    /// Waits until all WAL up to its end is durable; returns where that is.
    pub(super) fn complete(self) -> Result<Lsn> {
        self.positions.await_end(&self.cancel)
    }
}

impl Drop for WalStream {
    fn drop(&mut self) {
        if !self.positions.has_ended() {
            self.cancel.trip();
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// The sending direction.
struct Shipping {
    segments: Segments,
    codec: Codec,
    sink: Box<dyn Sink>,
    progress: Arc<Progress>,
    cancel: Cancel,
}

impl Shipping {
    fn run(mut self, mut position: Lsn) -> Result<()> {
        let positions = Arc::clone(&self.segments.source.positions);
        let size = self.segments.source.segment_size;
        let (mut buffer, mut compressor) = (Buffer::new(), Compressor::default());
        while let Some(flushed) = positions.await_beyond(position, &self.cancel)? {
            let end =
                flushed.min(segment_end(Lsn(position.0 + 1), size)).min(Lsn(position.0 + u64::from(MAX_WAL)));
            let span = u32::try_from(end.0 - position.0).unwrap_or(MAX_WAL);
            buffer.resize(span as usize);
            self.segments.read(position, &mut buffer)?;
            let length = without_zeros(&buffer);
            buffer.resize(length);
            let packed = compressor.pack(self.codec, &buffer)?;
            let codec = if packed.is_some() { self.codec } else { Codec::Plain };
            let length = u32::try_from(length).unwrap_or(MAX_WAL);
            let tail = WalTail { position, span, length, codec }.encode();
            match packed {
                Some(packed) => self.sink.send(WAL, &[packed, &tail])?,
                None => self.sink.send_buffer(WAL, &mut buffer, &tail)?,
            }
            self.sink.flush()?;
            self.progress.add_wal(span.into());
            position = end;
            positions.set_sent(position);
        }
        // dropping one direction closes the other as well
        positions.await_end(&self.cancel).map(drop)
    }
}

/// The length without the zeros at the end, in steps of 8 bytes: so much of the header of a segment stays together.
fn without_zeros(content: &[u8]) -> usize {
    let last = content.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    last.next_multiple_of(8).min(content.len())
}

/// The other direction: how far the target is.
struct Acknowledged {
    source: Box<dyn Source>,
    positions: Arc<WalPositions>,
    place: String,
}

impl Acknowledged {
    fn run(mut self) -> Result<()> {
        let mut body = Buffer::new();
        while !self.positions.has_ended() {
            let received = self.source.receive(&mut body);
            // the end may have been set meanwhile, where the target was already; then the link closes
            if self.positions.has_ended() {
                break;
            }
            match received? {
                Some(WAL_DURABLE) => self.positions.set_durable(decode_durable(&body)?)?,
                Some(FAILED) => return Err(message::decode(&body)?),
                Some(other) => {
                    let message = format!("unexpected frame of kind {other:#04x} from {}", self.place);
                    return Err(Error::new(Kind::ProtocolViolation, message));
                }
                None => return Err(closed(&self.place)),
            }
        }
        Ok(())
    }
}

/// The primary's segments; keeps one open.
struct Segments {
    source: WalSource,
    open: Option<(Lsn, File)>,
}

impl Segments {
    /// Reads WAL within one segment.
    fn read(&mut self, position: Lsn, buffer: &mut [u8]) -> Result<()> {
        let WalSource { directory, timeline, segment_size, .. } = &self.source;
        let begin = segment_start(position, *segment_size);
        let name = segment_name(*timeline, begin.0 / u64::from(*segment_size), *segment_size);
        let path = directory.join(&name);
        let unreadable = |error: std::io::Error| match error.kind() {
            std::io::ErrorKind::NotFound => removed(&name),
            _ => Error::at("read WAL file", &path, &error),
        };
        let file = match &self.open {
            Some((open, file)) if *open == begin => file,
            _ => &self.open.insert((begin, File::open(&path).map_err(unreadable)?)).1,
        };
        file.read_exact_at(buffer, position.0 - begin.0).map_err(unreadable)?;
        // The server may have given the file to a later segment meanwhile, which it does by renaming it, before it writes there.
        let (opened, there) = (file.metadata().map_err(unreadable)?, path.metadata().map_err(unreadable)?);
        if FileId::from(&opened) == FileId::from(&there) { Ok(()) } else { Err(removed(&name)) }
    }
}

fn removed(name: &str) -> Error {
    Error::new(Kind::SlotLost, format!("WAL file \"{name}\" was removed on the primary before it was sent"))
        .detail("The standby needs it to reach consistency.")
        .hint("Use a replication slot (pgpool_recovery.slot_name), or increase wal_keep_size.")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u32 = 1 << 20;

    fn source(directory: &std::path::Path) -> WalSource {
        WalSource {
            directory: directory.to_owned(),
            timeline: 1,
            segment_size: SIZE,
            start: Lsn(u64::from(SIZE) + 40),
            mode: 0o600,
            directories: Vec::new(),
            compression: Compression::Auto,
            positions: Arc::default(),
        }
    }

    #[test]
    fn a_segment_that_is_removed_or_recycled_is_noticed() {
        let top = tempfile::tempdir().expect("temporary directory");
        let path = |number: u64| top.path().join(segment_name(1, number, SIZE));
        std::fs::write(path(1), vec![7; SIZE as usize]).expect("write");
        let mut segments = Segments { source: source(top.path()), open: None };
        let (at, mut buffer) = (Lsn(u64::from(SIZE)), vec![0; 100]);
        segments.read(at, &mut buffer).expect("it is there");
        assert_eq!(buffer, [7; 100]);
        // as RemoveXlogFile() does it
        std::fs::rename(path(1), path(9)).expect("rename");
        assert_eq!(segments.read(at, &mut buffer).expect_err("recycled").kind, Kind::SlotLost);
        std::fs::write(path(1), vec![8; SIZE as usize]).expect("write");
        assert_eq!(segments.read(at, &mut buffer).expect_err("another file").kind, Kind::SlotLost);
        let error = segments.read(Lsn(5 * u64::from(SIZE)), &mut buffer).expect_err("removed");
        assert_eq!(error.kind, Kind::SlotLost);
        assert!(error.message.contains("000000010000000000000005"), "{error}");
    }

    #[test]
    fn zeros_at_the_end_are_left_out_and_a_header_stays_whole() {
        assert_eq!(without_zeros(&[0; 100]), 0);
        assert_eq!(without_zeros(&[1; 100]), 100);
        assert_eq!(without_zeros(&[&[1; 9][..], &[0; 50]].concat()), 16);
        let mut header = [0; 512];
        header[36..40].copy_from_slice(&8192_u32.to_le_bytes());
        assert_eq!(without_zeros(&header), 40);
    }
}
