//! Carrying frames between the two halves of a run.
//!
//! A [`Link`] is a pair of directions that two threads may use at the same time. There are two
//! kinds: an in-process queue ([`pipe`]) and an authenticated TLS connection ([`tls`]); the halves of
//! the engine cannot tell them apart.

use std::net::IpAddr;
use std::time::Duration;

use crate::error::{Error, Kind, Result};
use crate::sys::buffer::Buffer;
use crate::sys::cancel::Cancel;

pub mod admission;
pub(crate) mod control;
pub mod dial;
pub mod pipe;
pub mod tls;

mod certificate;

/// Longest frame body, bytes. Checked before anything is allocated.
pub const MAX_BODY: usize = 2 << 20;

/// The sending direction.
pub trait Sink: Send {
    /// Queues one frame, its body given in parts. Blocks while the other end does not keep up.
    fn send(&mut self, kind: u8, parts: &[&[u8]]) -> Result<()>;

    /// Queues one frame whose body is `content` followed by `tail`. What `content` holds afterwards is left
    /// open: within one process the buffer itself changes hands, so that nothing is copied.
    fn send_buffer(&mut self, kind: u8, content: &mut Buffer, tail: &[u8]) -> Result<()> {
        self.send(kind, &[content, tail])
    }

    /// Makes sure that what was queued is on its way.
    fn flush(&mut self) -> Result<()>;

    /// From now on this link carries data or WAL: either end may take nothing for minutes, because its disk is held up. That
    /// it is alive is told by the control link.
    fn allow_stalls(&self) -> Result<()> {
        Ok(())
    }
}

/// The receiving direction.
pub trait Source: Send {
    /// Waits for a frame, puts its body into `body` and returns its kind.
    /// `None` if the other end closed the link between two frames.
    fn receive(&mut self, body: &mut Buffer) -> Result<Option<u8>>;
}

/// Both directions, and who is at the other end.
pub struct Link {
    /// Towards the peer.
    pub sink: Box<dyn Sink>,
    /// From the peer.
    pub source: Box<dyn Source>,
    /// The peer's address; `None` within one process.
    pub peer: Option<IpAddr>,
}

/// Makes links to one receiver.
pub trait Connector: Send + Sync {
    /// A new, authenticated link. Fails at once when `cancel` is tripped, which also closes the
    /// link later on.
    fn connect(&self, cancel: &Cancel) -> Result<Link>;

    /// Where the receiver is, for error messages.
    fn place(&self) -> String;

    /// Whether bytes leave this process.
    fn is_remote(&self) -> bool;

    /// The shortest round trip to the receiver that a connection has shown so far.
    fn round_trip(&self) -> Duration {
        Duration::ZERO
    }
}

/// The error for a link whose other end went away in the middle.
pub fn closed(place: &str) -> Error {
    lost(format!("connection to {place} was closed unexpectedly"))
}

/// The error for a link that broke.
fn lost(message: String) -> Error {
    Error::new(Kind::ConnectionLost, message)
        .hint("See the log of the other host. Run the recovery again; it sends only what is missing.")
}

fn check_length(length: usize) -> Result<()> {
    if length > MAX_BODY {
        return Err(Error::new(Kind::ProtocolViolation, format!("frame of {length} bytes"))
            .detail(format!("At most {MAX_BODY} bytes are allowed.")));
    }
    Ok(())
}
