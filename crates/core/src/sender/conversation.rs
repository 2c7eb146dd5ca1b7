//! What all steps of a session share: the control link, and how a data link is made.

use std::sync::Arc;
use std::time::Duration;

use pgdata::wal::Lsn;

use crate::compare::digest::DigestKey;
use crate::error::{Error, Kind, Result};
use crate::manifest::list::FileList;
use crate::manifest::plan::Directory;
use crate::progress::Progress;
use crate::sys::buffer::Buffer;
use crate::sys::cancel::Cancel;
use crate::wire::link::control::Control;
use crate::wire::link::{Connector, Link};
use crate::wire::protocol::message::{self, Reply, Request, TargetInfo};
use crate::wire::protocol::plan::{PLAN, encode_plan};
use crate::wire::protocol::{BLOB, REPLY, REQUEST};

/// How long a session that ends before anything has begun waits for the receiver to release the target.
const LEAVING: Duration = Duration::from_secs(5);

pub(super) struct Conversation {
    pub(super) connector: Arc<dyn Connector>,
    pub(super) control: Control,
    pub(super) cancel: Cancel,
    pub(super) progress: Arc<Progress>,
    pub(super) target: TargetInfo,
    pub(super) digest_key: DigestKey,
    pub(super) place: String,
    /// The receiver has locked the target and changed nothing yet: it releases it when it is told to.
    pub(super) is_held: bool,
}

impl Conversation {
    /// Asks for something that is answered with [`Reply::Ok`].
    pub(super) fn done(&self, message: &Request) -> Result<()> {
        match self.request(message)? {
            Reply::Ok => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    pub(super) fn request(&self, message: &Request) -> Result<Reply> {
        request(&self.control, message)
    }

    /// A further answer to what was asked last.
    pub(super) fn next_reply(&self) -> Result<Reply> {
        reply(&self.control, self.control.receive()?)
    }

    /// Asks for something that an agent from before a version cannot do: it knows no request of that name.
    pub(super) fn request_new(&self, name: &str, message: &Request) -> Result<Reply> {
        let known =
            |error| if is_unknown(&error, name) { too_old(name, &self.target.version) } else { error };
        self.request(message).map_err(known)
    }

    /// Asks for something that is answered with bytes, at most so many, and a reply.
    pub(super) fn request_blob(&self, message: &Request, most: usize) -> Result<(Reply, Vec<u8>)> {
        let mut blob = Vec::new();
        let reply = self.request_parts(message, most, |part| blob.extend_from_slice(part))?;
        Ok((reply, blob))
    }

    /// The same; `take` gets the bytes as they come.
    pub(super) fn request_parts(
        &self,
        message: &Request,
        most: usize,
        mut take: impl FnMut(&[u8]),
    ) -> Result<Reply> {
        self.send(message)?;
        let mut left = most;
        loop {
            match self.control.receive()? {
                Some((BLOB, part)) if part.len() <= left => {
                    left -= part.len();
                    take(&part);
                }
                Some((BLOB, _)) => {
                    let message = format!("an answer of more than {most} bytes");
                    return Err(Error::new(Kind::ProtocolViolation, message));
                }
                frame => return reply(&self.control, frame),
            }
        }
    }

    pub(super) fn send_plan(&self, directories: &[Directory], files: &FileList) -> Result<()> {
        encode_plan(directories, files, |body| self.control.send(PLAN, &[body]))
    }

    fn send(&self, message: &Request) -> Result<()> {
        self.control.send(REQUEST, &[&message::encode(message)?])
    }

    /// What makes links that join the run.
    pub(super) fn entrance(&self) -> Entrance<'_> {
        Entrance {
            connector: &*self.connector,
            cancel: &self.cancel,
            session: &self.target.session,
            place: &self.place,
        }
    }
}

/// Makes links that join a run; threads may share it.
#[derive(Clone, Copy)]
pub(super) struct Entrance<'a> {
    connector: &'a dyn Connector,
    cancel: &'a Cancel,
    session: &'a str,
    place: &'a str,
}

impl Entrance<'_> {
    /// Makes a data link.
    pub(super) fn attach(self) -> Result<Link> {
        match self.join(&Request::Attach { session: self.session.to_owned() })? {
            (link, Reply::Ok) => Ok(link),
            (_, other) => Err(unexpected(&other)),
        }
    }

    /// Makes the link for WAL; returns what is durable on the target, too.
    pub(super) fn attach_wal(self) -> Result<(Link, Lsn)> {
        match self.join(&Request::AttachWal { session: self.session.to_owned() })? {
            (link, Reply::WalAttached { durable }) => Ok((link, durable)),
            (_, other) => Err(unexpected(&other)),
        }
    }

    /// Makes a link that joins the run: `join` is its first message. Where the run has ended meanwhile, why it has counts.
    fn join(self, join: &Request) -> Result<(Link, Reply)> {
        self.try_join(join).map_err(|error| self.cancel.cause().unwrap_or(error))
    }

    fn try_join(self, join: &Request) -> Result<(Link, Reply)> {
        let mut link = self.connector.connect(self.cancel)?;
        link.sink.allow_stalls()?;
        link.sink.send(REQUEST, &[&message::encode(join)?])?;
        link.sink.flush()?;
        let mut body = Buffer::new();
        match link.source.receive(&mut body)? {
            Some(REPLY) => match message::decode(&body)? {
                Reply::Error(error) => Err(error),
                reply => Ok((link, reply)),
            },
            _ => Err(crate::wire::link::closed(self.place)),
        }
    }
}

impl Drop for Conversation {
    fn drop(&mut self) {
        // A refusal is told when the directory is as it was, so that another run can begin at once.
        if self.is_held && !self.cancel.is_tripped() && self.send(&Request::Leave).is_ok() {
            self.control.last_answer(LEAVING);
        }
        // closes every link of the run; threads that still work on it return
        self.cancel.trip();
    }
}

pub(super) fn request(control: &Control, message: &Request) -> Result<Reply> {
    control.send(REQUEST, &[&message::encode(message)?])?;
    reply(control, control.receive()?)
}

fn reply(control: &Control, frame: Option<(u8, Vec<u8>)>) -> Result<Reply> {
    match frame {
        Some((REPLY, body)) => match message::decode(&body)? {
            Reply::Error(error) => Err(error),
            reply => Ok(reply),
        },
        Some((kind, _)) => {
            Err(Error::new(Kind::ProtocolViolation, format!("unexpected frame of kind {kind:#04x}")))
        }
        None => Err(control.closed()),
    }
}

/// Whether the other end has refused a request because it knows none of that name.
fn is_unknown(error: &Error, request: &str) -> bool {
    error.kind == Kind::ProtocolViolation && error.message.contains(&format!("unknown variant `{request}`"))
}

fn too_old(request: &str, version: &str) -> Error {
    let ours = env!("CARGO_PKG_VERSION");
    Error::new(Kind::ProtocolVersion, format!("the agent does not know the request \"{request}\""))
        .detail(format!("The agent has version {version}, this server's extension {ours}."))
        .hint("Install the same version of pgpool-recovery-agent on the target's host, and restart it.")
}

pub(super) fn unexpected(reply: &Reply) -> Error {
    Error::new(Kind::ProtocolViolation, format!("unexpected reply: {reply:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_that_does_not_know_a_request_is_told_from_a_broken_one() {
        let unknown = message::decode::<Request>(br#"{"request":"of_the_future"}"#).expect_err("unknown");
        assert!(is_unknown(&unknown, "of_the_future") && !is_unknown(&unknown, "describe"), "{unknown:?}");
        let broken = message::decode::<Request>(b"{").expect_err("broken");
        assert!(!is_unknown(&broken, "describe"), "{broken:?}");
        let error = too_old("describe", "1.9.0");
        assert_eq!(error.kind, Kind::ProtocolVersion);
        assert!(error.detail.is_some_and(|detail| detail.contains("1.9.0")) && error.hint.is_some());
    }
}
