//! The sending half: a run as the primary drives it, one method a step.
//!
//! Every method blocks and may be called from any thread; tripping the [`Cancel`] brings it back.
//! All take the session exclusively: a run has one conversation.

use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::compare::digest::DigestKey;
use crate::error::{Error, Kind, Result};
use crate::manifest::path::RelPath;
use crate::manifest::plan::{Directory, File, Plan, Work};
use crate::progress::Progress;
use crate::replication::standby::Following;
use crate::replication::standby::Listening;
use crate::replication::streaming::Walreceiver;
use crate::sys::buffer::Buffer;
use crate::sys::cancel::Cancel;
use crate::sys::hexadecimal;
use crate::wire::link::control::Control;
use crate::wire::link::{Connector, Link};
use crate::wire::protocol::data::Put;
use crate::wire::protocol::message::{self, Marker, Purpose, Reply, Request, Target, Terms};
use crate::wire::protocol::{MAX_STREAMS, PUT, REPLY, REQUEST};

pub mod pack;
pub mod rate;

mod read;
mod stream;

pub use read::Checksums;

use pack::{Chooser, Compression};
use rate::Rate;
use stream::{Stream, Transfer, What};

/// Entries of the plan in one message.
const PLAN_PART: usize = 1000;

/// How long a session that ends before anything has begun waits for the receiver to let go of the target.
const LEAVING: Duration = Duration::from_secs(5);

/// How data is moved.
#[derive(Debug, Clone)]
pub struct Manner {
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

/// What [`Session::settle`] reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settled {
    /// Files and links removed on the target.
    pub removed: u64,
    /// Files written to, created or cut.
    pub changed: u64,
    /// What an operator should know.
    pub warnings: Vec<String>,
}

/// What [`Session::propose`] was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    /// Device and inode of every directory that is going to be written.
    pub locations: Vec<(u64, u64)>,
    /// Why there is no room for the plan.
    pub space: Option<Error>,
    /// What in the target could not be removed, entered or written.
    pub obstacle: Option<Error>,
}

/// A run, from looking at the target to its durability.
pub struct Session {
    connector: Arc<dyn Connector>,
    control: Control,
    cancel: Cancel,
    progress: Arc<Progress>,
    target: Target,
    /// The receiver holds the directory, and has changed nothing yet.
    is_held: bool,
    digest_key: DigestKey,
    rate: Rate,
    manner: Manner,
    streams: Vec<Link>,
    files: Vec<File>,
    /// First and last number of each row of files that were cloned.
    cloned: Vec<(u32, u32)>,
    place: String,
}

impl Session {
    /// Connects and looks at the target, locking it if it is going to be replaced.
    pub fn open(
        connector: Arc<dyn Connector>,
        directory: &Path,
        purpose: Purpose,
        keep: Vec<RelPath>,
        progress: Arc<Progress>,
        cancel: &Cancel,
    ) -> Result<Self> {
        let link = connector.connect(cancel)?;
        let place = connector.place();
        let control = Control::new(link, cancel.clone(), place.clone())?;
        let open = Request::Open { directory: directory.to_owned(), purpose, keep };
        let target = match request(&control, &open)? {
            Reply::Target(target) => *target,
            other => return Err(unexpected(&other)),
        };
        Ok(Self {
            connector,
            control,
            cancel: cancel.clone(),
            progress,
            target,
            is_held: purpose == Purpose::Recover,
            digest_key: DigestKey::random()?,
            rate: Rate::new(0),
            manner: Manner {
                jobs: 0,
                compression: Compression::Auto,
                max_rate: 0,
                clone: false,
                checksums: None,
            },
            streams: Vec::new(),
            files: Vec::new(),
            cloned: Vec::new(),
            place,
        })
    }

    /// What the receiver found.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Has the target's host log in to the primary for replication, as the standby will. Returns what an
    /// operator should know about a login that worked.
    pub fn test_replication(&mut self, following: &Following, system_identifier: u64) -> Result<Vec<String>> {
        let following = following.clone();
        match request(&self.control, &Request::TestReplication { following, system_identifier })? {
            Reply::LoggedIn { warnings } => Ok(warnings),
            other => Err(unexpected(&other)),
        }
    }

    /// Fails if something on the target's host listens where the standby will.
    pub fn test_port(&mut self, listening: &Listening) -> Result<()> {
        let Listening { port, addresses } = listening.clone();
        self.done(&Request::TestPort { port, addresses })
    }

    /// Sends the plan; fails if there is no room for it, or if something stands in its way. Returns device and inode of
    /// every directory that is going to be written. Nothing changes yet.
    pub fn plan(&mut self, plan: Plan, terms: Terms) -> Result<Vec<(u64, u64)>> {
        let Planned { locations, space, obstacle } = self.propose(plan, terms)?;
        space.or(obstacle).map_or(Ok(locations), Err)
    }

    /// Sends the plan. Of a directory that was opened to look every answer is told.
    pub fn propose(&mut self, plan: Plan, terms: Terms) -> Result<Planned> {
        self.send_plan(&plan.directories, &plan.files)?;
        let planned = match request(&self.control, &Request::PlanEnd(terms))? {
            Reply::Planned { locations, space, obstacle } => Planned { locations, space, obstacle },
            other => return Err(unexpected(&other)),
        };
        self.progress.set_total(plan.bytes());
        self.files = plan.files;
        Ok(planned)
    }

    /// Counts what differs between the plan and a directory that was opened to look: nothing is sent.
    pub fn survey(&mut self, data_directory: &Path, manner: Manner) -> Result<Settled> {
        let digest_key = hexadecimal::encode(&self.digest_key.to_bytes());
        self.done(&Request::Survey { digest_key })?;
        self.manner = manner;
        self.transfer(data_directory, 0, What::Survey)?;
        self.settle()
    }

    /// From here on the target cannot be started until [`Session::finish`].
    pub fn begin(&mut self, marker: Marker) -> Result<()> {
        self.is_held = false;
        let digest_key = hexadecimal::encode(&self.digest_key.to_bytes());
        self.done(&Request::Begin { marker, digest_key })
    }

    /// Compares all files of the plan and sends what differs; first clones what can be cloned.
    pub fn send_data(&mut self, data_directory: &Path, manner: Manner) -> Result<()> {
        self.rate = Rate::new(manner.max_rate);
        self.manner = manner;
        if self.manner.clone && !self.connector.is_remote() {
            self.clone_files()?;
        }
        self.transfer(data_directory, 0, What::Data)
    }

    /// Gives every file its size, and removes what the primary does not have.
    pub fn settle(&mut self) -> Result<Settled> {
        match request(&self.control, &Request::Settle)? {
            Reply::Settled { removed, changed, warnings } => Ok(Settled { removed, changed, warnings }),
            other => Err(unexpected(&other)),
        }
    }

    /// Sends WAL and what else belongs into pg_wal.
    pub fn send_wal(
        &mut self,
        data_directory: &Path,
        directories: &[Directory],
        files: Vec<File>,
    ) -> Result<()> {
        self.send_plan(directories, &files)?;
        self.done(&Request::WalEnd)?;
        let first = self.files.len();
        self.files.extend(files);
        self.transfer(data_directory, first, What::Wal)
    }

    /// Installs the last files (pg_control among them), makes everything durable and the target
    /// startable. Returns what an operator should know.
    pub fn finish(&mut self, puts: &[Put]) -> Result<Vec<String>> {
        self.streams.clear();
        for put in puts {
            self.control.send(PUT, &[&put.head(), &put.content])?;
        }
        match request(&self.control, &Request::Finish)? {
            Reply::Durable { warnings } => Ok(warnings),
            other => Err(unexpected(&other)),
        }
    }

    /// Starts the standby and waits until it accepts connections; false if it ran already.
    pub fn start(&mut self, timeout: u32) -> Result<bool> {
        match request(&self.control, &Request::Start { timeout })? {
            Reply::Started { launched } => Ok(launched),
            other => Err(unexpected(&other)),
        }
    }

    /// The process that receives WAL for the standby, and what its startup process says of itself.
    pub fn walreceiver(&mut self) -> Result<(Option<Walreceiver>, Option<String>)> {
        match request(&self.control, &Request::Walreceiver)? {
            Reply::Walreceiver { found, startup } => Ok((found, startup)),
            other => Err(unexpected(&other)),
        }
    }

    /// The last lines of the standby's own log.
    pub fn log_tail(&mut self) -> Result<String> {
        match request(&self.control, &Request::Log)? {
            Reply::Log { lines } => Ok(lines),
            other => Err(unexpected(&other)),
        }
    }

    fn clone_files(&mut self) -> Result<()> {
        let rows = match request(&self.control, &Request::Clone)? {
            Reply::Cloned { files } => files,
            other => return Err(unexpected(&other)),
        };
        let cloned = |&(first, last): &(u32, u32)| {
            let files = self.files.get(first as usize..=last as usize).unwrap_or_default();
            files.iter().map(|file| file.size).sum::<u64>()
        };
        let bytes = rows.iter().map(cloned).sum();
        self.progress.add_cloned(bytes);
        if self.manner.checksums.is_none() {
            self.progress.add_compared(bytes);
        }
        self.cloned = rows;
        Ok(())
    }

    fn send_plan(&self, directories: &[Directory], files: &[File]) -> Result<()> {
        let parts = directories.len().max(files.len()).div_ceil(PLAN_PART);
        for part in 0..parts {
            let slice = |length: usize| (part * PLAN_PART).min(length)..((part + 1) * PLAN_PART).min(length);
            self.send(&Request::Plan {
                directories: directories[slice(directories.len())].to_vec(),
                files: files[slice(files.len())].to_vec(),
            })?;
        }
        Ok(())
    }

    fn send(&self, message: &Request) -> Result<()> {
        self.control.send(REQUEST, &[&message::encode(message)?])
    }

    /// Moves the files from the one numbered `first` on.
    fn transfer(&mut self, data_directory: &Path, first: usize, what: What) -> Result<()> {
        let jobs = streams(self.manner.jobs, self.connector.is_remote());
        while self.streams.len() < jobs {
            let link = self.attach()?;
            self.streams.push(link);
        }
        self.progress.set_streams(u32::try_from(jobs).unwrap_or(u32::MAX));
        let chooser = Chooser::new(self.manner.compression, Instant::now());
        // cloned files are read only to be verified
        let skipped = if self.manner.checksums.is_none() { self.cloned.as_slice() } else { &[] };
        let work = Work::new(first, self.files.len(), jobs).without(skipped);
        let transfer = Transfer {
            data_directory,
            files: &self.files,
            work: Mutex::new(work),
            cloned: &self.cloned,
            what,
            digest_key: &self.digest_key,
            checksums: self.manner.checksums,
            chooser: &chooser,
            rate: &self.rate,
            progress: &self.progress,
            cancel: &self.cancel,
            is_remote: self.connector.is_remote(),
            place: &self.place,
        };
        let transfer = &transfer;
        let cancel = &self.cancel;
        std::thread::scope(|scope| {
            let workers: Vec<_> = self
                .streams
                .iter_mut()
                .enumerate()
                .map(|(number, link)| {
                    let work = move || {
                        // one stream that fails ends the others: they see the cause, not a broken link
                        Stream::new(transfer, number, link)
                            .run()
                            .inspect_err(|error| cancel.trip_with(error.clone()))
                    };
                    std::thread::Builder::new().name("send".to_owned()).spawn_scoped(scope, work)
                })
                .collect();
            let results: Vec<Result<()>> = workers
                .into_iter()
                .map(|worker| {
                    let worker = worker.map_err(Error::on("start a thread"))?;
                    worker.join().unwrap_or_else(|_| {
                        Err(Error::new(Kind::Internal, "a thread that sends data panicked"))
                    })
                })
                .collect();
            let finished: Result<()> = results.into_iter().collect();
            // the others failed because the first one did
            finished.map_err(|error| cancel.cause().unwrap_or(error))
        })
    }

    fn attach(&self) -> Result<Link> {
        let mut link = self.connector.connect(&self.cancel)?;
        let attach = Request::Attach { session: self.target.session.clone() };
        link.sink.send(REQUEST, &[&message::encode(&attach)?])?;
        link.sink.flush()?;
        let mut body = Buffer::new();
        match link.source.receive(&mut body)? {
            Some(REPLY) => match message::decode(&body)? {
                Reply::Ok => Ok(link),
                Reply::Error(error) => Err(error),
                other => Err(unexpected(&other)),
            },
            _ => Err(crate::wire::link::closed(&self.place)),
        }
    }

    fn done(&self, message: &Request) -> Result<()> {
        match request(&self.control, message)? {
            Reply::Ok => Ok(()),
            other => Err(unexpected(&other)),
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Whoever hears of a refusal finds the directory as it was, and may begin another run at once.
        if self.is_held && !self.cancel.is_tripped() && self.send(&Request::Leave).is_ok() {
            self.control.last_answer(LEAVING);
        }
        // closes every link of the run; threads that still work on it return
        self.cancel.trip();
    }
}

/// How many streams a setting of `jobs` means. Within one process they mostly wait for the disk, which
/// likes to have more to do than there are processors.
fn streams(jobs: u32, is_remote: bool) -> usize {
    let least = if is_remote { 2 } else { 4 };
    let wanted = match jobs {
        0 => std::thread::available_parallelism().map_or(least, |count| count.get().clamp(least, 16)),
        jobs => jobs as usize,
    };
    wanted.min(MAX_STREAMS)
}

fn request(control: &Control, message: &Request) -> Result<Reply> {
    control.send(REQUEST, &[&message::encode(message)?])?;
    match control.receive()? {
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

fn unexpected(reply: &Reply) -> Error {
    Error::new(Kind::ProtocolViolation, format!("unexpected reply: {reply:?}"))
}
