//! The sending half: a run as the primary drives it, one method a step.
//!
//! A step takes the [`Session`] in the state before it and returns it in the state after it, so that steps in another order do
//! not compile; an error ends the session. Every step blocks and may be called from any thread; tripping the [`Cancel`] brings
//! it back.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use pgdata::wal::Lsn;

use crate::compare::digest::DigestKey;
use crate::error::{Error, Result};
use crate::manifest::path::RelPath;
use crate::manifest::plan::Plan;
use crate::progress::Progress;
use crate::replication::standby::Listening;
use crate::replication::standby::ReplicationConfig;
use crate::replication::streaming::Walreceiver;
use crate::sys::FileId;
use crate::sys::cancel::Cancel;
use crate::sys::hexadecimal;
use crate::wire::link::Connector;
use crate::wire::link::control::Control;
use crate::wire::protocol::PUT;
use crate::wire::protocol::data::Put;
use crate::wire::protocol::describe::{Description, Starting};
use crate::wire::protocol::fence::Fenced;
use crate::wire::protocol::follow::{Follow, Followed};
use crate::wire::protocol::message::{Marker, PlanHeader, Purpose, Reply, Request, TargetInfo};
use crate::wire::protocol::second_stage::{Promote, Promoted};
use crate::wire::protocol::stop::{Asker, Role, Stopped};
use crate::wire::protocol::upstream::Told;

mod pack;
pub mod proof;
mod rate;
pub mod skip;
pub mod state;

mod conversation;
mod read;
mod stream;
mod transfer;
mod wal;
mod wal_positions;
mod window;

pub use pack::Compression;
pub use read::Checksums;
pub use wal::WalSource;
pub use wal_positions::WalPositions;

use conversation::{Conversation, request, unexpected};
use rate::Rate;
use skip::{Skip, Skipped};
use state::{Begun, Complete, Finished, Opened, Reconciled, Sent};
use stream::What;
use transfer::Links;
use wal::WalStream;

/// How data is moved.
#[derive(Debug, Clone)]
pub struct TransferOptions {
    /// Parallel streams; 0 chooses by the number of processors.
    pub jobs: u32,
    /// How pages are packed.
    pub compression: Compression,
    /// Limit in kB/s for all streams together; 0 is none.
    pub max_rate: u64,
    /// Whether a target on the primary's own file system may share blocks with it.
    pub clone: bool,
    /// How the primary's pages are checked; `None` is not at all.
    pub checksums: Option<Checksums>,
}

/// What [`Session::reconcile`] reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reconciliation {
    /// Files and links removed on the target.
    pub removed: u64,
    /// Files written to, created or cut.
    pub changed: u64,
    /// What an operator should know.
    pub warnings: Vec<String>,
}

/// Device and inode of every directory that is going to be written.
pub type Locations = Vec<FileId>;

/// What [`Session::propose`] was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    /// Device and inode of every directory that is going to be written.
    pub locations: Locations,
    /// Why there is no room for the plan.
    pub space: Option<Error>,
    /// What in the target could not be removed, entered or written.
    pub obstacle: Option<Error>,
}

impl Planned {
    /// Fails if there is no room for the plan, or if something stands in its way.
    pub fn demand(self) -> Result<Locations> {
        self.space.or(self.obstacle).map_or(Ok(self.locations), Err)
    }
}

/// A run, from looking at the target to its durability. `S` is how far it has come.
pub struct Session<S = Opened> {
    conversation: Conversation,
    state: S,
}

impl<S> Session<S> {
    /// What ends the session.
    pub const fn cancel(&self) -> &Cancel {
        &self.conversation.cancel
    }

    /// What the receiver found.
    pub const fn target(&self) -> &TargetInfo {
        &self.conversation.target
    }

    fn digest_key(&self) -> String {
        hexadecimal::encode(&self.conversation.digest_key.to_bytes())
    }

    /// Gives every file its size, and removes what the primary does not have.
    fn request_reconcile(&self) -> Result<Reconciliation> {
        match self.conversation.request(&Request::Reconcile)? {
            Reply::Reconciled { removed, changed, warnings } => {
                Ok(Reconciliation { removed, changed, warnings })
            }
            other => Err(unexpected(&other)),
        }
    }
}

impl<S> fmt::Debug for Session<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("directory", &self.target().directory).finish_non_exhaustive()
    }
}

impl Session<Opened> {
    /// Connects and looks at the target, locking it if it is going to be replaced.
    pub fn open(
        connector: Arc<dyn Connector>,
        directory: &Path,
        purpose: Purpose,
        keep: Vec<RelPath>,
        progress: Arc<Progress>,
        cancel: &Cancel,
    ) -> Result<Self> {
        // the end of a session is not the end of the run that it belongs to
        let cancel = cancel.child();
        let link = connector.connect(&cancel)?;
        let place = connector.place();
        let control = Control::new(link, cancel.clone(), place.clone())?;
        let open = Request::Open { directory: directory.to_owned(), purpose, keep };
        let target = match request(&control, &open)? {
            Reply::Target(target) => *target,
            other => return Err(unexpected(&other)),
        };
        let conversation = Conversation {
            connector,
            control,
            cancel,
            progress,
            target,
            digest_key: DigestKey::random()?,
            place,
            is_held: purpose == Purpose::Recover,
        };
        Ok(Self { conversation, state: Opened(()) })
    }

    /// Has the target's host log in to the primary for replication, as the standby will. Returns what an
    /// operator should know about a login that worked.
    pub fn test_replication(
        &mut self,
        replication: &ReplicationConfig,
        system_identifier: u64,
    ) -> Result<Vec<String>> {
        let replication = replication.clone();
        match self.conversation.request(&Request::TestReplication { replication, system_identifier })? {
            Reply::LoggedIn { warnings } => Ok(warnings),
            other => Err(unexpected(&other)),
        }
    }

    /// Fails if something on the target's host listens where the standby will.
    pub fn test_port(&mut self, listening: &Listening) -> Result<()> {
        let Listening { port, addresses } = listening.clone();
        self.conversation.done(&Request::TestPort { port, addresses })
    }

    /// Sends the plan; fails if there is no room for it, or if something stands in its way. Returns device and inode of
    /// every directory that is going to be written, too. Nothing changes yet.
    pub fn plan(self, plan: Plan, header: PlanHeader) -> Result<(Session<state::Planned>, Locations)> {
        let (session, planned) = self.propose(plan, header)?;
        Ok((session, planned.demand()?))
    }

    /// Sends the plan. Of a directory that was opened to look every answer is told.
    pub fn propose(self, plan: Plan, header: PlanHeader) -> Result<(Session<state::Planned>, Planned)> {
        let Self { conversation, .. } = self;
        conversation.send_plan(&plan.directories, &plan.files)?;
        let planned = match conversation.request(&Request::PlanEnd(header))? {
            Reply::Planned { locations, space, obstacle } => Planned { locations, space, obstacle },
            other => return Err(unexpected(&other)),
        };
        conversation.progress.set_total(plan.bytes());
        Ok((Session { conversation, state: state::Planned { files: plan.files } }, planned))
    }

    /// Starts the standby and waits until it accepts connections, or makes no progress for so long; false if it ran already.
    /// Meanwhile `hear` is told how far it is.
    pub fn start(
        &mut self,
        timeout: Duration,
        tell: Duration,
        hear: &mut dyn FnMut(Starting),
    ) -> Result<bool> {
        let timeout = u32::try_from(timeout.as_secs()).unwrap_or(u32::MAX);
        let tell = u32::try_from(tell.as_millis()).ok();
        let mut reply = self.conversation.request(&Request::Start { timeout, tell })?;
        loop {
            reply = match reply {
                Reply::Starting(starting) => {
                    hear(starting);
                    self.conversation.next_reply()?
                }
                Reply::Started { launched } => return Ok(launched),
                other => return Err(unexpected(&other)),
            }
        }
    }

    /// What the directory and its server are, by its files and by its own word.
    pub fn describe(&mut self) -> Result<Description> {
        match self.conversation.request_new("describe", &Request::Describe)? {
            Reply::Described(found) => Ok(*found),
            other => Err(unexpected(&other)),
        }
    }

    /// What answers where the standby in the directory connects to; `None` if no standby runs there, or follows no server.
    pub fn upstream(&mut self, time: Duration) -> Result<Option<Told>> {
        let time = u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
        match self.conversation.request_new("upstream", &Request::Upstream { time })? {
            Reply::Upstream { told } => Ok(told),
            other => Err(unexpected(&other)),
        }
    }

    /// Has the server of a directory that was opened to be replaced follow this one instead.
    pub fn follow(&mut self, follow: Follow) -> Result<Followed> {
        match self.conversation.request_new("follow", &Request::Follow(Box::new(follow)))? {
            Reply::Followed(followed) => Ok(followed),
            other => Err(unexpected(&other)),
        }
    }

    /// What the server in the directory is, if one runs there. Fails if it may not be stopped.
    pub fn may_stop(&mut self, asker: Asker) -> Result<Option<Role>> {
        match self.conversation.request(&Request::MayStop { asker })? {
            Reply::MayStop { role } => Ok(role),
            other => Err(unexpected(&other)),
        }
    }

    /// Stops the server in the directory, if one runs there and may be stopped.
    pub fn stop(&mut self, asker: Asker, timeout: u32) -> Result<Option<Stopped>> {
        match self.conversation.request(&Request::Stop { asker, timeout })? {
            Reply::Stopped { stopped } => Ok(stopped),
            other => Err(unexpected(&other)),
        }
    }

    /// Stops the server in the directory for good, if it is the primary that `asker` has followed; `by` is what its mark calls
    /// the asker.
    pub fn fence(&mut self, asker: Asker, by: String, timeout: u32) -> Result<Fenced> {
        match self.conversation.request_new("fence", &Request::Fence { asker, by, timeout })? {
            Reply::Fenced { fenced } => Ok(fenced),
            other => Err(unexpected(&other)),
        }
    }

    /// Makes the standby in the directory a server of its own, if it was made for that.
    pub fn promote(&mut self, promote: Promote) -> Result<Promoted> {
        match self.conversation.request_new("promote", &Request::Promote(Box::new(promote)))? {
            Reply::Promoted(promoted) => Ok(promoted),
            other => Err(unexpected(&other)),
        }
    }

    /// The process that receives WAL for the standby, and what its startup process says of itself.
    pub fn walreceiver(&mut self) -> Result<(Option<Walreceiver>, Option<String>)> {
        match self.conversation.request(&Request::Walreceiver)? {
            Reply::Walreceiver { found, startup } => Ok((found, startup)),
            other => Err(unexpected(&other)),
        }
    }

    /// The last lines of the standby's own log.
    pub fn log_tail(&mut self) -> Result<String> {
        match self.conversation.request(&Request::Log)? {
            Reply::Log { lines } => Ok(lines),
            other => Err(unexpected(&other)),
        }
    }
}

impl Session<state::Planned> {
    /// Counts what differs between the plan and a directory that was opened to look: nothing is sent.
    pub fn dry_run(
        self,
        data_directory: &Path,
        options: TransferOptions,
        skip: Option<Skip>,
    ) -> Result<(Session<Finished>, Reconciliation, Option<Skipped>)> {
        let conversation = &self.conversation;
        conversation.done(&Request::DryRun { digest_key: self.digest_key() })?;
        let mut links = Links::attach(conversation, options, Rate::new(0))?;
        let files = (data_directory, &self.state.files);
        let skipped = skip::transfer(&mut links, conversation, files, &[], skip, What::DryRun)?;
        let reconciliation = self.request_reconcile()?;
        Ok((Session { conversation: self.conversation, state: Finished(()) }, reconciliation, skipped))
    }

    /// From here on the target cannot be started until [`Session::finish`].
    pub fn begin(self, marker: Marker, wal: WalSource) -> Result<Session<Begun>> {
        let digest_key = self.digest_key();
        let Self { mut conversation, state: state::Planned { files } } = self;
        conversation.is_held = false;
        conversation.done(&Request::Begin { marker, digest_key, wal: wal.start() })?;
        let wal = WalStream::start(&conversation, wal)?;
        Ok(Session { conversation, state: Begun { files, wal } })
    }
}

impl Session<Begun> {
    /// Compares the files of the plan and sends what differs; first clones what can be cloned. Without `skip` nothing is left out.
    pub fn send_data(
        self,
        data_directory: &Path,
        options: TransferOptions,
        skip: Option<Skip>,
    ) -> Result<(Session<Sent>, Option<Skipped>)> {
        let is_local = !self.conversation.connector.is_remote();
        let cloned = if options.clone && is_local { self.clone_files()? } else { Vec::new() };
        let Self { conversation, state: Begun { files, wal } } = self;
        let rate = Rate::new(options.max_rate);
        let mut links = Links::attach(&conversation, options, rate)?;
        let plan = (data_directory, &files);
        let skipped = skip::transfer(&mut links, &conversation, plan, &cloned, skip, What::Data)?;
        Ok((Session { conversation, state: Sent { wal } }, skipped))
    }

    /// Has files cloned. Returns first and last number of each row of neighbours.
    fn clone_files(&self) -> Result<Vec<(u32, u32)>> {
        match self.conversation.request(&Request::Clone)? {
            Reply::Cloned { files } => Ok(files),
            other => Err(unexpected(&other)),
        }
    }
}

impl Session<Sent> {
    /// Gives every file its size, and removes what the primary does not have.
    pub fn reconcile(self) -> Result<(Session<Reconciled>, Reconciliation)> {
        let reconciliation = self.request_reconcile()?;
        let Self { conversation, state: Sent { wal } } = self;
        Ok((Session { conversation, state: Reconciled { wal } }, reconciliation))
    }
}

impl Session<Reconciled> {
    /// The backup has ended here: the target needs no WAL beyond the end of that segment. Waits for nothing, and is called
    /// before [`WalPositions::set_flushed`] is again, or more would be on its way.
    pub fn end_wal(&self, stop: Lsn) {
        self.state.wal.end(stop);
    }

    /// Waits until all WAL that the target needs to become consistent is durable there; [`Self::end_wal`] says where it ends.
    pub fn complete_wal(self) -> Result<Session<Complete>> {
        let Self { conversation, state: Reconciled { wal } } = self;
        let wal_end = wal.complete()?;
        Ok(Session { conversation, state: Complete { wal_end } })
    }
}

impl Session<Complete> {
    /// Installs the last files (pg_control among them), makes everything durable and the target
    /// startable. Returns what an operator should know, too.
    pub fn finish(self, puts: &[Put]) -> Result<(Session<Finished>, Vec<String>)> {
        let Self { conversation, state: Complete { wal_end } } = self;
        for put in puts {
            conversation.control.send(PUT, &[&put.head(), &put.content])?;
        }
        match conversation.request(&Request::Finish { wal_end })? {
            Reply::Durable { warnings } => Ok((Session { conversation, state: Finished(()) }, warnings)),
            other => Err(unexpected(&other)),
        }
    }
}
