//! The stages of a conversation. A step takes the stage before it and returns the stage after it; an error ends both.

use std::sync::Arc;
use std::time::Duration;

use pgdata::wal::Lsn;
use tracing::info;

use super::Conversation;
use super::open::{self, Directory};
use super::plan::Planned;
use super::{present, wal};
use crate::data_directory::DataDirectory;
use crate::error::{Error, Kind, Result};
use crate::host::starting::Tell;
use crate::host::{
    describe, fence_primary, launch, login, readiness, references, running, second_stage, server_log, stop,
    upstream, walreceiver,
};
use crate::manifest::list::{FileIndex, FileList};
use crate::manifest::path::RelPath;
use crate::manifest::plan;
use crate::receiver::incoming::{self, PERMISSIONS, Puts};
use crate::receiver::reconcile::{Reconciliation, reconcile};
use crate::receiver::run::Run;
use crate::receiver::{clone, finish, follow};
use crate::wire::protocol::message::{PlanHeader, Reply, Request};
use crate::wire::protocol::plan::{Entry, decode_plan};
use crate::wire::protocol::status::State;

/// Most files and directories of a plan: a bound on memory, far beyond any real cluster.
const MAX_PLAN: usize = 50_000_000;

/// How far a conversation has come, and what it has by then.
pub(super) enum Stage {
    /// Nothing is locked. The plan may come.
    Looked(Listed),
    /// The target is locked, nothing has changed. The plan may come.
    Held(Box<DataDirectory>, Listed),
    /// A plan was made for a view of the target, which nothing can change.
    Viewed(Planned),
    /// A plan was made for a locked target.
    Planned(Planned),
    /// What differs is being counted.
    DryRunning(Begun),
    /// The target is being rewritten.
    Begun(Begun),
    /// Data is complete, the end of the WAL and the last files are awaited.
    Reconciled(Reconciled),
    /// Nothing is held any more. Questions may come, and the server may be started.
    Released,
}

/// Directories and files of a plan, as far as it has come.
#[derive(Default)]
pub(super) struct Listed {
    pub(super) directories: Vec<plan::Directory>,
    pub(super) files: FileList,
}

impl Listed {
    /// Takes a part of the plan.
    fn add(mut self, part: &[u8], kept: &[RelPath]) -> Result<Self> {
        decode_plan(part, |entry| self.take(entry, kept))?;
        Ok(self)
    }

    fn take(&mut self, entry: Entry, kept: &[RelPath]) -> Result<()> {
        if self.directories.len() + self.files.len() == MAX_PLAN {
            return Err(Error::new(Kind::ProtocolViolation, format!("plan of more than {MAX_PLAN} files")));
        }
        match entry {
            Entry::Directory(plan::Directory { path, mode }) => {
                incoming::check_planned(&path, true, kept)?;
                self.directories.push(plan::Directory { path, mode: mode & PERMISSIONS });
            }
            Entry::File(plan::File { path, size, mode }) => {
                incoming::check_planned(&path, false, kept)?;
                self.files.push(&plan::File { path, size, mode: mode & PERMISSIONS });
            }
        }
        Ok(())
    }
}

/// A run whose data is awaited.
pub(super) struct Begun {
    pub(super) run: Arc<Run>,
    pub(super) directories: Vec<plan::Directory>,
    pub(super) index: FileIndex,
    pub(super) header: PlanHeader,
    /// Of what the target had, so much of pg_wal is gone already.
    pub(super) removed: u64,
}

impl Begun {
    /// Clones what can be cloned, of a target on the primary's own file system.
    fn clone_files(&self, conversation: &Conversation<'_>) -> Result<Reply> {
        let cloned = clone::clone(&self.run, conversation.receiver.policy().origin()?)?;
        Ok(Reply::Cloned { files: rows(&cloned) })
    }

    /// Gives every file its size and removes what is surplus, or counts that.
    fn reconcile(&self, directory: &Directory) -> Result<Reconciliation> {
        self.run.record.enter(State::Wal);
        let mut reconciliation =
            reconcile(&self.run, &self.directories, &self.index, &directory.keep, &self.header)?;
        reconciliation.removed += self.removed;
        Ok(reconciliation)
    }
}

/// A run whose data is complete.
pub(super) struct Reconciled {
    run: Arc<Run>,
    puts: Puts,
}

impl Reconciled {
    /// Makes the target complete and durable, and releases it before that is told, so that the caller can start the server
    /// at once.
    fn finish(
        mut self,
        conversation: &Conversation<'_>,
        directory: &Directory,
        wal_end: Lsn,
    ) -> Result<Reply> {
        self.run.record.enter(State::Durable);
        let warnings = finish::finish(&self.run, &directory.cluster, self.puts.take(), wal_end)?;
        self.run.record.succeed();
        info!(directory = %directory.cluster.data_directory.display(),
            "recovery ends: the directory is complete and durable");
        conversation.receiver.forget(&conversation.token);
        Ok(Reply::Durable { warnings })
    }
}

impl Stage {
    /// Whether the target is being changed: a conversation that ends now leaves it incomplete.
    pub(super) const fn changes(&self) -> bool {
        matches!(self, Self::Begun(_) | Self::Reconciled(_))
    }

    /// Whether a bad answer ends nothing.
    const fn only_looks(&self) -> bool {
        matches!(self, Self::Looked(_) | Self::Released)
    }

    /// Takes a part of a plan, which has no reply.
    pub(super) fn list(self, directory: &Directory, part: &[u8]) -> Result<Self> {
        let kept = directory.snapshot.kept();
        Ok(match self {
            Self::Looked(listed) => Self::Looked(listed.add(part, kept)?),
            Self::Held(target, listed) => Self::Held(target, listed.add(part, kept)?),
            _ => return Err(out_of_order("a directory where nothing has begun")),
        })
    }

    /// Does what is asked for.
    pub(super) fn step(
        self,
        conversation: &Conversation<'_>,
        directory: &Directory,
        request: Request,
    ) -> Result<(Self, Reply)> {
        let cluster = &directory.cluster;
        Ok(match (self, request) {
            (Self::Looked(listed), Request::PlanEnd(header)) => {
                let target =
                    Box::new(open::open_target(conversation, cluster, DataDirectory::open_read_only)?);
                let (planned, answer) = Planned::make(conversation, directory, target, listed, header)?;
                (Self::Viewed(planned), answer.into_reply())
            }
            (Self::Held(target, listed), Request::PlanEnd(header)) => {
                let (planned, answer) = Planned::make(conversation, directory, target, listed, header)?;
                (Self::Planned(planned), answer.demand()?.into_reply())
            }
            (_, Request::PlanEnd(_)) => return Err(out_of_order("a directory where nothing has begun")),

            (Self::Planned(planned), Request::Begin { marker, digest_key, wal }) => {
                let begun = planned.begin(conversation, directory, &marker, &digest_key, wal)?;
                (Self::Begun(begun), Reply::Ok)
            }
            (Self::Held(..), Request::Begin { .. }) => return Err(out_of_order("a plan")),
            (_, Request::Begin { .. }) => return Err(out_of_order("a locked directory")),

            (Self::Viewed(planned), Request::DryRun { digest_key }) => {
                (Self::DryRunning(planned.dry_run(conversation, &digest_key)?), Reply::Ok)
            }
            (_, Request::DryRun { .. }) => {
                return Err(out_of_order("a plan for a directory that was opened to look"));
            }

            // a target whose WAL cannot be read is compared
            (stage @ (Self::Looked(_) | Self::Held(..)), Request::ReadWal { source, from }) => {
                let reply = wal::read(conversation, directory, &source, from).unwrap_or_else(Reply::Error);
                (stage, reply)
            }
            (stage @ (Self::Looked(_) | Self::Held(..)), Request::DigestWal { timeline, next }) => {
                let reply = wal::digest(conversation, directory, timeline, next);
                (stage, reply.map_or_else(Reply::Error, |()| Reply::Ok))
            }
            (_, Request::ReadWal { .. } | Request::DigestWal { .. }) => {
                return Err(out_of_order("a directory where nothing has begun"));
            }

            (Self::Held(target, listed), Request::Follow(wanted)) => {
                let followed = follow::follow(&target, cluster, &wanted, &conversation.cancel)?;
                (Self::Held(target, listed), Reply::Followed(followed))
            }
            (_, Request::Follow(_)) => return Err(out_of_order("a locked directory")),

            (Self::Begun(begun), Request::Present) => {
                present::answer(conversation, &begun.run)?;
                (Self::Begun(begun), Reply::Ok)
            }
            (Self::DryRunning(begun), Request::Present) => {
                present::answer(conversation, &begun.run)?;
                (Self::DryRunning(begun), Reply::Ok)
            }
            (_, Request::Present) => return Err(out_of_order("a run that has begun")),

            (Self::Begun(begun), Request::LeftOut { bytes }) => {
                begun.run.record.leave_out(bytes);
                (Self::Begun(begun), Reply::Ok)
            }
            (_, Request::LeftOut { .. }) => return Err(out_of_order("a run that has begun")),

            (Self::Begun(begun), Request::Clone) => {
                let reply = begun.clone_files(conversation)?;
                (Self::Begun(begun), reply)
            }
            (_, Request::Clone) => return Err(out_of_order("a run that has begun")),

            (Self::Begun(begun), Request::Reconcile) => {
                let reconciliation = begun.reconcile(directory)?;
                info!(directory = %cluster.data_directory.display(), changed = reconciliation.changed,
                    removed = reconciliation.removed, "all data is there");
                let (run, puts) = (begun.run, Puts::default());
                (Self::Reconciled(Reconciled { run, puts }), reconciliation.into_reply())
            }
            (Self::DryRunning(begun), Request::Reconcile) => {
                (Self::Released, begun.reconcile(directory)?.into_reply())
            }
            (_, Request::Reconcile) => return Err(out_of_order("data")),

            (Self::Reconciled(reconciled), Request::Finish { wal_end }) => {
                (Self::Released, reconciled.finish(conversation, directory, wal_end)?)
            }
            (_, Request::Finish { .. }) => return Err(out_of_order("reconciled data")),

            (Self::Begun(_) | Self::Reconciled(_), Request::Leave) => {
                return Err(out_of_order("a directory where nothing has begun"));
            }
            // the target is released before that is told
            (stage, Request::Leave) => {
                drop(stage);
                (Self::Released, Reply::Ok)
            }

            (stage, question) => {
                let reply = stage.answer(conversation, directory, question)?;
                (stage, reply)
            }
        })
    }

    /// What may be asked in every stage.
    fn answer(
        &self,
        conversation: &Conversation<'_>,
        directory: &Directory,
        question: Request,
    ) -> Result<Reply> {
        let (cluster, cancel) = (&directory.cluster, &conversation.cancel);
        let data_directory = &cluster.data_directory;
        match question {
            Request::TestReplication { replication, system_identifier } => {
                // a running server has its own login: a peer that asks for another may be after the password only
                let login = running::server(data_directory).and_then(|running| match running {
                    Some(process) => Err(running::refusal(data_directory, process)),
                    None => {
                        references::demand_kept_passfile(
                            data_directory,
                            &replication.passfile,
                            &directory.keep,
                        )?;
                        login::test_replication(cluster, &replication, system_identifier, cancel)
                    }
                });
                match login {
                    // a bad answer ends a recovery, but not a conversation that only looks
                    Err(error) if self.only_looks() => Ok(Reply::Error(error)),
                    login => Ok(Reply::LoggedIn { warnings: login? }),
                }
            }
            // worth knowing, but no reason to end here
            Request::TestPort { port, addresses } => {
                Ok(readiness::test_port(port, &addresses, cancel).map_or_else(Reply::Error, |()| Reply::Ok))
            }
            Request::Start { timeout, tell } => {
                let timeout = Duration::from_secs(timeout.into());
                // of a link that is gone the start itself hears
                let mut hear = |starting| drop(conversation.answer(&Reply::Starting(starting)));
                let tell = tell.map(|every| Tell::every(Duration::from_millis(every.into()), &mut hear));
                let launched = launch::start(cluster, timeout, tell, cancel)?;
                info!(directory = %data_directory.display(), launched, "the server accepts connections");
                Ok(Reply::Started { launched })
            }
            Request::Describe => Ok(Reply::Described(Box::new(describe::describe(cluster, cancel)?))),
            Request::Upstream { time } => Ok(Reply::Upstream {
                told: upstream::of(cluster, Duration::from_millis(time.into()), cancel)?,
            }),
            Request::MayStop { asker } => {
                Ok(Reply::MayStop { role: stop::may_be_stopped(cluster, &asker, cancel)? })
            }
            Request::Stop { asker, timeout } => {
                // a run has its server stopped before it begins
                if !self.only_looks() {
                    return Err(out_of_order("a directory that was opened to look"));
                }
                let stopped = stop::stop(cluster, &asker, Duration::from_secs(timeout.into()), cancel)?;
                if let Some(stopped) = &stopped {
                    info!(directory = %data_directory.display(), role = ?stopped.role, mode = ?stopped.mode,
                        "the server was stopped");
                }
                Ok(Reply::Stopped { stopped })
            }
            Request::Fence { asker, by, timeout } => {
                if !self.only_looks() {
                    return Err(out_of_order("a directory that was opened to look"));
                }
                let timeout = Duration::from_secs(timeout.into());
                let fenced = fence_primary::fence(cluster, &asker, &by, timeout, cancel)?;
                info!(directory = %data_directory.display(), by, stopped = ?fenced.stopped,
                    checkpoint = ?fenced.checkpoint, "the old primary was fenced");
                Ok(Reply::Fenced { fenced })
            }
            Request::Promote(wanted) => {
                if !self.only_looks() {
                    return Err(out_of_order("a directory that was opened to look"));
                }
                let promoted = second_stage::promote(cluster, &wanted, cancel)?;
                info!(directory = %data_directory.display(), timeline = promoted.timeline,
                    "the standby was promoted: it is a server of its own");
                Ok(Reply::Promoted(promoted))
            }
            Request::Walreceiver => {
                let (found, startup) =
                    (walreceiver::find(data_directory), walreceiver::startup(data_directory));
                Ok(Reply::Walreceiver { found, startup })
            }
            Request::Log => Ok(Reply::Log { lines: server_log::tail(cluster) }),
            _ => Err(out_of_order("another step")),
        }
    }

    /// Takes a small file that is installed when the run finishes.
    pub(super) fn put(self, directory: &Directory, body: &[u8]) -> Result<Self> {
        let Self::Reconciled(mut reconciled) = self else {
            return Err(out_of_order("reconciled data"));
        };
        reconciled.puts.add(body, directory.snapshot.kept())?;
        Ok(Self::Reconciled(reconciled))
    }
}

impl Reconciliation {
    fn into_reply(self) -> Reply {
        let Self { removed, changed, warnings } = self;
        Reply::Reconciled { removed, changed, warnings }
    }
}

/// First and last position of each row of `true`.
fn rows(flags: &[bool]) -> Vec<(u32, u32)> {
    let mut rows: Vec<(u32, u32)> = Vec::new();
    for (position, _) in (0..).zip(flags).filter(|(_, flag)| **flag) {
        match rows.last_mut() {
            Some((_, last)) if *last + 1 == position => *last = position,
            _ => rows.push((position, position)),
        }
    }
    rows
}

fn out_of_order(wanted: &str) -> Error {
    Error::new(Kind::ProtocolViolation, format!("message out of order: it needs {wanted} first"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_one_row() {
        assert_eq!(rows(&[true, true, false, true, false]), [(0, 1), (3, 3)]);
        assert_eq!(rows(&[false]), []);
    }
}
