//! A control link: the steps of one run, in their order.
//!
//! [`Conversation`] is what all steps share, [`stage`] has the stages and the one `match` that says which request may come in
//! which of them. `open`, `plan` and `begin` are the longer steps.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Receiver, unexpected};
use crate::compare::digest::random_bytes;
use crate::error::{Error, Kind, Result};
use crate::manifest::path::RelPath;
use crate::sys::cancel::Cancel;
use crate::sys::hexadecimal;
use crate::wire::link::Link;
use crate::wire::link::control::Control;
use crate::wire::protocol::message::{self, Purpose, Reply};
use crate::wire::protocol::plan::PLAN;
use crate::wire::protocol::{BLOB, PUT, REPLY, REQUEST};

mod begin;
mod open;
mod plan;
mod present;
mod stage;
mod wal;

use open::Directory;
use stage::Stage;

/// How long the data links of an ended run may take to notice.
const STREAMS_END: Duration = Duration::from_secs(10);

/// Bytes of a part of a binary answer.
const BLOB_PART: usize = 1 << 20;

/// Serves a control link to its end.
pub(super) fn serve(
    receiver: &Receiver,
    link: Link,
    cancel: &Cancel,
    directory: PathBuf,
    purpose: Purpose,
    keep: Vec<RelPath>,
) -> Result<()> {
    let peer = link.peer;
    let place = peer.map_or_else(|| "the primary".to_owned(), |peer| format!("the primary at {peer}"));
    let control = Control::of_receiver(link, cancel.clone(), place)?;
    let token = hexadecimal::encode(&random_bytes()?);
    let conversation = Conversation { receiver, control, cancel: cancel.clone(), token, peer };
    let served = conversation.serve(&directory, purpose, keep);
    if let Err(error) = &served {
        conversation.fail(error);
    }
    served
}

/// The link, and the name under which data links find its run.
struct Conversation<'a> {
    receiver: &'a Receiver,
    control: Control,
    cancel: Cancel,
    token: String,
    peer: Option<IpAddr>,
}

impl Conversation<'_> {
    /// The stage is dropped on the way out, and the lock of a target with it: once a refusal is told, nothing is left of what
    /// it refuses. The receiver's list holds a run that has begun until the conversation ends.
    fn serve(&self, directory: &Path, purpose: Purpose, keep: Vec<RelPath>) -> Result<()> {
        let (directory, mut stage, found) = Directory::open(self, directory, purpose, keep)?;
        self.answer(&Reply::Target(Box::new(found)))?;
        while let Some((kind, body)) = self.next(&stage)? {
            stage = match kind {
                REQUEST => {
                    let (next, reply) = stage.step(self, &directory, message::decode(&body)?)?;
                    self.answer(&reply)?;
                    next
                }
                PLAN => stage.list(&directory, &body)?,
                PUT => stage.put(&directory, &body)?,
                other => return Err(unexpected(other)),
            }
        }
        if stage.changes() {
            return Err(Error::new(Kind::Canceled, "the primary gave up the recovery")
                .detail("The directory is not complete and cannot be started."));
        }
        Ok(())
    }

    /// The next frame. Where nothing is being changed a peer may just leave.
    fn next(&self, stage: &Stage) -> Result<Option<(u8, Vec<u8>)>> {
        match self.control.receive() {
            Err(error) if error.kind == Kind::ConnectionLost && !stage.changes() => Ok(None),
            received => received,
        }
    }

    fn answer(&self, reply: &Reply) -> Result<()> {
        self.control.send(REPLY, &[&message::encode(reply)?])
    }

    /// Sends a binary answer, before the reply that belongs to it.
    fn send_blob(&self, bytes: &[u8]) -> Result<()> {
        bytes.chunks(BLOB_PART).try_for_each(|part| self.control.send(BLOB, &[part]))
    }

    /// Tells the sender why the conversation ends.
    fn fail(&self, error: &Error) {
        if let Some(run) = self.receiver.find(&self.token) {
            run.record.fail(error);
        }
        // the link may be what failed
        if self.answer(&Reply::Error(error.clone())).is_ok() {
            // the answer must reach the sender before the link closes; it closes its end then
            while let Ok(Some((kind, _))) = self.control.receive() {
                // a sender that asks on is told the same, or it would wait for ever
                if kind == REQUEST && self.answer(&Reply::Error(error.clone())).is_err() {
                    break;
                }
            }
        }
    }
}

impl Drop for Conversation<'_> {
    /// Ends what is left of the run and releases the target, so that the next run can lock it.
    fn drop(&mut self) {
        if let Some(run) = self.receiver.forget(&self.token) {
            if Arc::strong_count(&run) > 1 {
                self.cancel.trip();
            }
            let deadline = Instant::now() + STREAMS_END;
            while Arc::strong_count(&run) > 1 && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    }
}
