//! The receiving half: looks at a target, digests what it has, writes what differs, makes it durable.
//!
//! One [`Receiver`] serves any number of links. A control link becomes a session ([`session`]), a
//! data link joins the run of a session by its token ([`stream`]), and so does the one that brings WAL ([`wal_link`]).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::error::{Error, Kind, Result};
use crate::host::policy::{self, Policy, resolve};
use crate::host::{inspect, running};
use crate::sys::buffer::Buffer;
use crate::sys::cancel::Cancel;
use crate::sys::lock::lock;
use crate::sys::timely;
use crate::wire::link::{Link, Sink, closed};
use crate::wire::protocol::message::{self, Reply, Request};
use crate::wire::protocol::status::{Directory, Status};
use crate::wire::protocol::{REPLY, REQUEST};

mod clone;
mod digest;
mod durable;
mod finish;
mod follow;
mod identity;
mod incoming;
mod ledger;
mod obstacles;
mod parallel;
mod planned;
mod prune;
mod read;
mod reconcile;
mod room;
mod run;
mod segments;
mod session;
mod sink;
mod snapshot;
mod stream;
mod wal_link;
mod wal_sink;
mod write;

use ledger::Ledger;
use run::Run;

/// Serves links to one host's targets.
pub struct Receiver {
    policy: Mutex<Arc<Policy>>,
    runs: Mutex<HashMap<String, Arc<Run>>>,
    ledger: Arc<Ledger>,
}

impl Receiver {
    /// A receiver that writes what `policy` allows.
    pub fn new(policy: Policy) -> Self {
        Self { policy: Mutex::new(Arc::new(policy)), runs: Mutex::default(), ledger: Arc::new(Ledger::new()) }
    }

    /// What this receiver may write now.
    pub fn policy(&self) -> Arc<Policy> {
        Arc::clone(&lock(&self.policy))
    }

    /// Replaces it. Sessions that have opened a directory keep what they know of that.
    pub fn set_policy(&self, policy: Policy) {
        *lock(&self.policy) = Arc::new(policy);
    }

    /// Whether data links may come for a run.
    pub fn has_runs(&self) -> bool {
        !self.runs().is_empty()
    }

    /// Serves one link of a peer whose secret is no longer valid. It may go on with a run that began before, and
    /// do nothing else.
    pub fn serve_former(&self, mut link: Link, cancel: &Cancel) -> Result<()> {
        match first_request(&mut link)? {
            None => Ok(()),
            Some(Request::Attach { session }) => self.attach(&session, link, stream::serve, cancel),
            Some(Request::AttachWal { session }) => self.attach(&session, link, wal_link::serve, cancel),
            Some(_) => {
                let error = Error::new(Kind::AuthenticationFailed, "the secret has been replaced")
                    .detail("This server has the secret that the agent had before.")
                    .hint("Copy the same secret file to every host of the cluster.");
                reply(&mut *link.sink, &Reply::Error(error.clone()))?;
                Err(error)
            }
        }
    }

    /// Serves a link that joins a run.
    fn attach(
        &self,
        session: &str,
        mut link: Link,
        serve: fn(&Run, Link, &Cancel) -> Result<()>,
        cancel: &Cancel,
    ) -> Result<()> {
        match self.find(session) {
            Some(run) => {
                link.sink.allow_stalls()?;
                let served = serve(&run, link, cancel);
                served.inspect_err(|error| run.record.fail_link(error))
            }
            None => {
                let error = Error::new(Kind::ProtocolViolation, "no such run");
                reply(&mut *link.sink, &Reply::Error(error.clone()))?;
                Err(error)
            }
        }
    }

    /// Serves one link to its end. `cancel` closes this link.
    pub fn serve(&self, mut link: Link, cancel: &Cancel) -> Result<()> {
        match first_request(&mut link)? {
            // a peer that only wanted to know whether the secrets agree
            None => Ok(()),
            Some(Request::Open { directory, purpose, keep }) => {
                session::serve(self, link, cancel, directory, purpose, keep)
            }
            Some(Request::Attach { session }) => self.attach(&session, link, stream::serve, cancel),
            Some(Request::AttachWal { session }) => self.attach(&session, link, wal_link::serve, cancel),
            Some(Request::Status) => reply(&mut *link.sink, &Reply::Status(Box::new(self.status()))),
            Some(other) => Err(Error::new(Kind::ProtocolViolation, format!("{other:?} cannot come first"))),
        }
    }

    /// How the receiver and its listed directories are.
    pub fn status(&self) -> Status {
        let look = |cluster: &policy::Cluster| {
            let (listed, asked) = (&cluster.data_directory, cluster.data_directory.clone());
            let found = timely::ask(listed, move || {
                let directory = resolve(&asked);
                // one that cannot be looked at cannot be started either
                let (incomplete, marker) = inspect::marker(&directory).unwrap_or((true, None));
                let server = running::find(&directory);
                let server = server.map_err(|error| error.detail.unwrap_or(error.message));
                (directory, incomplete, marker, server)
            });
            let (directory, incomplete, marker, server) = found.unwrap_or_else(|| {
                let unknown = format!("\"{}\" does not answer.", listed.display());
                (listed.clone(), true, None, Err(unknown))
            });
            Directory {
                data_directory: cluster.data_directory.clone(),
                server: server.as_ref().ok().copied().flatten(),
                server_unknown: server.err(),
                incomplete,
                marker,
                account: self.ledger.account(&directory),
            }
        };
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started: self.ledger.started(),
            uptime: self.ledger.uptime().as_secs(),
            directories: self.policy().listed().iter().map(look).collect(),
        }
    }

    fn find(&self, session: &str) -> Option<Arc<Run>> {
        self.runs().get(session).cloned()
    }

    /// Lets data links join a run by its token.
    fn remember(&self, session: &str, run: &Arc<Run>) {
        self.runs().insert(session.to_owned(), Arc::clone(run));
    }

    /// No data link can join the run any more. What is returned may be the last that holds its target.
    fn forget(&self, session: &str) -> Option<Arc<Run>> {
        self.runs().remove(session)
    }

    fn runs(&self) -> MutexGuard<'_, HashMap<String, Arc<Run>>> {
        lock(&self.runs)
    }
}

/// What a peer asks for first; `None` if it closed the link without a word.
fn first_request(link: &mut Link) -> Result<Option<Request>> {
    let mut body = Buffer::new();
    match link.source.receive(&mut body)? {
        Some(REQUEST) => message::decode(&body).map(Some),
        Some(kind) => Err(unexpected(kind)),
        None => Ok(None),
    }
}

fn reply(sink: &mut dyn Sink, reply: &Reply) -> Result<()> {
    sink.send(REPLY, &[&message::encode(reply)?])?;
    sink.flush()
}

fn unexpected(kind: u8) -> Error {
    Error::new(Kind::ProtocolViolation, format!("unexpected frame of kind {kind:#04x}"))
}

/// The error of a data link that ended without a barrier.
fn connection_closed() -> Error {
    closed("the primary")
}
