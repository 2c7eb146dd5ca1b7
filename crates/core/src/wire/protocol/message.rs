//! Control messages, as JSON: rare, small, and readable in a trace.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use pgdata::control_file::ControlFile;
use pgdata::wal::Lsn;
use serde::{Deserialize, Serialize};

use crate::compare::wal_map::skip::TargetFacts;
use crate::compare::wal_map::{ChainFacts, Lineage, Next, Past};
use crate::error::{Error, Kind, Result};
use crate::manifest::path::RelPath;
use crate::manifest::plan::{Directory, Tablespace};
use crate::replication::hot_standby::HotStandby;
use crate::replication::recovery_settings::RecoverySettings;
use crate::replication::standby::{Listening, ReplicationConfig, Standby};
use crate::replication::streaming::Walreceiver;
use crate::sys::FileId;
use crate::sys::libraries::Libraries;
use crate::sys::space::Pool;
use crate::wire::protocol::describe::{Description, Starting};
use crate::wire::protocol::fence::Fenced;
use crate::wire::protocol::follow::{Follow, Followed};
use crate::wire::protocol::second_stage::{Promote, Promoted};
use crate::wire::protocol::status::{Run, Status};
use crate::wire::protocol::stop::{Asker, Role, Stopped};
use crate::wire::protocol::upstream::Told;

/// What the sender asks of the receiver.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum Request {
    /// First message of a control link: look at a directory. Answer: [`Reply::Target`].
    Open {
        /// The data directory, absolute.
        directory: PathBuf,
        /// What for.
        purpose: Purpose,
        /// Files of the standby's own that must survive (`keep_files`).
        keep: Vec<RelPath>,
    },
    /// First message of a data link: join the run with this token. Answer: [`Reply::Ok`].
    Attach {
        /// The token of [`TargetInfo::session`].
        session: String,
    },
    /// First message of the link that carries the WAL of the run with this token; a run has one. Answer:
    /// [`Reply::WalAttached`].
    AttachWal {
        /// The token of [`TargetInfo::session`].
        session: String,
    },
    /// First and only message of a link: how are you, and what has been done here? Nothing changes.
    /// Answer: [`Reply::Status`].
    Status,
    /// Log in to the primary for replication, as the standby will. Answer: [`Reply::LoggedIn`].
    TestReplication {
        /// What the connection string is made of.
        replication: ReplicationConfig,
        /// The system identifier that the server there must have.
        system_identifier: u64,
    },
    /// May a server listen here? Answer: [`Reply::Ok`], or an error of kind [`Kind::InUse`].
    TestPort {
        /// `port`
        port: u16,
        /// `listen_addresses`
        addresses: String,
    },
    /// The plan, which came in [`PLAN`](crate::wire::protocol::plan::PLAN) frames, is complete: is there room for it? Nothing changes yet. Answer: [`Reply::Planned`].
    PlanEnd(PlanHeader),
    /// Make the target unstartable, empty its pg_wal and get ready for data and WAL. Answer: [`Reply::Ok`].
    Begin {
        /// What the marker tells the reader who finds it.
        marker: Marker,
        /// Key of the digests, hexadecimal.
        digest_key: String,
        /// The WAL that is going to come.
        wal: WalStart,
    },
    /// Of a directory that was opened to look: get ready to tell what would differ. Answer: [`Reply::Ok`].
    DryRun {
        /// Key of the digests, hexadecimal.
        digest_key: String,
    },
    /// Read the WAL of the directory, in which nothing has begun. Answer: [`Reply::Wal`] after
    /// [`BLOB`](crate::wire::protocol::BLOB) frames, or an error that ends nothing.
    ReadWal {
        /// The primary's timelines.
        source: Lineage,
        /// From where on; without it from the target's redo point, or where the histories part as their files say.
        from: Option<Lsn>,
    },
    /// Digest some of its records. Answer: [`Reply::Ok`] after [`BLOB`](crate::wire::protocol::BLOB) frames with the groups.
    DigestWal {
        /// Along which timeline.
        timeline: u32,
        /// Which, and how.
        next: Next,
    },
    /// What is at the places of the plan's files? Nothing is opened. Answer: [`Reply::Ok`] after
    /// [`BLOB`](crate::wire::protocol::BLOB) frames with a u64 for each file: its bytes if it can be compared and written in
    /// place, else `u64::MAX`.
    Present,
    /// So much of the data will not be compared, because WAL proves it equal; it is only shown. Answer: [`Reply::Ok`].
    LeftOut {
        /// Bytes of data files.
        bytes: u64,
    },
    /// Of a receiver in the sender's process: clone what can be cloned. Answer: [`Reply::Cloned`].
    Clone,
    /// All data was sent: set sizes, remove what the primary does not have; in a dry run, count that.
    /// Answer: [`Reply::Reconciled`].
    Reconcile,
    /// Install the small files sent as PUT frames, sync everything, place pg_control, remove the marker; a configuration that the standby keeps is made to read myrecovery.conf.
    /// Answer: [`Reply::Durable`].
    Finish {
        /// Where the WAL ends that the standby needs to become consistent: the end of a segment. All of it must be there.
        wal_end: Lsn,
    },
    /// The last lines of the server's log. Answer: [`Reply::Log`].
    Log,
    /// Does the server in the opened directory receive WAL, and over which connection? Answer:
    /// [`Reply::Walreceiver`].
    Walreceiver,
    /// Start the server in the opened directory and wait until it accepts connections.
    /// Answer: [`Reply::Starting`] now and then, if that was asked for, and [`Reply::Started`].
    Start {
        /// How long to wait without progress, seconds.
        timeout: u32,
        /// How often to tell how far it is, milliseconds; `None`: never, as agents did before they knew this.
        #[serde(default)]
        tell: Option<u32>,
    },
    /// What is the server in the opened directory, by its files and, if it runs, by its own word? Answer: [`Reply::Described`].
    Describe,
    /// What answers where the standby in the opened directory connects to? Answer: [`Reply::Upstream`].
    Upstream {
        /// How long it may take, milliseconds.
        time: u32,
    },
    /// What is the server in a directory that was opened to look, and may it be stopped? Answer: [`Reply::MayStop`].
    MayStop {
        /// Who asks.
        asker: Asker,
    },
    /// Stop the server in a directory that was opened to look, if it is one that may be stopped. Answer: [`Reply::Stopped`].
    Stop {
        /// Who asks.
        asker: Asker,
        /// How long a fast shutdown may take before it becomes an immediate one, seconds.
        timeout: u32,
    },
    /// Stop the server in a directory that was opened to look for good, if it is the primary that the asker, a standby that is
    /// going to be promoted, has followed; mark the directory. Answer: [`Reply::Fenced`].
    Fence {
        /// Who asks.
        asker: Asker,
        /// What the mark calls it.
        by: String,
        /// How long a fast shutdown may take before it becomes an immediate one, seconds.
        timeout: u32,
    },
    /// Promote the standby in a directory that was opened to look, if it was made for that by the one that asks. Answer:
    /// [`Reply::Promoted`].
    Promote(Box<Promote>),
    /// Have the server of a locked directory follow the one that asks, without a copy. Answer: [`Reply::Followed`].
    Follow(Box<Follow>),
    /// Nothing will begin: release the directory and remove what was made for the plan. Answer: [`Reply::Ok`].
    Leave,
}

/// Why a directory is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// To replace its content: it is made if missing, and locked.
    Recover,
    /// To look, or to start its server: nothing changes.
    Look,
}

/// What the WAL of a directory tells, besides blocks and digests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wal {
    /// What else lies there.
    pub target: TargetFacts,
    /// Where the links of tablespaces lead, by OID. The keys are text, as JSON has them.
    pub links: BTreeMap<String, String>,
    /// Every timeline of which there is WAL, that of pg_control first.
    pub chains: Vec<ChainFacts>,
    /// Bytes of the groups of each.
    pub groups: Vec<usize>,
    /// Bytes of the map.
    pub map: usize,
    /// Whether nothing older is there.
    pub is_all: bool,
}

/// The WAL of a run: where it begins, and how its files are made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WalStart {
    /// The timeline that it is written on.
    pub timeline: u32,
    /// Bytes in a segment.
    pub segment_size: u32,
    /// The first byte of the segment in which the backup starts.
    pub from: Lsn,
    /// Permission bits of its files.
    pub mode: u32,
    /// Directories in pg_wal: `archive_status`, `summaries`.
    pub directories: Vec<Directory>,
}

/// What is needed to receive a plan.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanHeader {
    /// Tablespaces and where they go.
    pub tablespaces: Vec<Tablespace>,
    /// The directory of this cluster in each of them: `PG_15_202209061`.
    pub tablespace_version_directory: String,
    /// Directories left alone besides the usual ones.
    pub host_directories: Vec<RelPath>,
    /// Bytes that will come besides the plan: WAL.
    pub reserve: u64,
    /// Permission bits of the data directory.
    pub mode: u32,
    /// What a receiver on the primary's own host leaves the primary.
    #[serde(default)]
    pub primary_space: Option<PrimarySpace>,
}

/// Where a primary writes, and how much room it may want there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrimarySpace {
    /// The kernel's identifier of the boot of the primary's host.
    pub boot_id: Option<String>,
    /// Devices of the file systems it lies on.
    pub devices: Vec<u64>,
    /// Those of them that may share their space with others.
    #[serde(default)]
    pub pools: Vec<Pool>,
    /// `max_wal_size`, bytes.
    pub max_wal_size: u64,
}

/// What the receiver answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    /// Done.
    Ok,
    /// The login worked, and the primary's server is there.
    LoggedIn {
        /// What psql and libpq said besides.
        warnings: Vec<String>,
    },
    /// What is in the directory.
    Target(Box<TargetInfo>),
    /// What the WAL tells. The frames before it have the encoded map, then the groups of each timeline.
    Wal(Box<Wal>),
    /// The plan fits.
    Planned {
        /// Device and inode of every directory that is going to be written: the data directory, a linked
        /// pg_wal, tablespaces.
        locations: Vec<FileId>,
        /// Why there is no room for it. Of a directory that was opened to be replaced this is an error instead.
        #[serde(default)]
        space: Option<Error>,
        /// What stands in the way of a run. The same holds.
        #[serde(default)]
        obstacle: Option<Error>,
    },
    /// WAL may come.
    WalAttached {
        /// What is durable: it goes on from there.
        durable: Lsn,
    },
    /// Some files are there and need not be sent.
    Cloned {
        /// First and last number of each row of neighbours in the plan.
        files: Vec<(u32, u32)>,
    },
    /// Sizes are right and nothing is left over.
    Reconciled {
        /// Files and links removed.
        removed: u64,
        /// Files written to, created or truncated.
        changed: u64,
        /// What an operator should know.
        warnings: Vec<String>,
    },
    /// The target is complete and durable.
    Durable {
        /// What an operator should know.
        warnings: Vec<String>,
    },
    /// The server does not accept connections yet.
    Starting(Starting),
    /// The server accepts connections.
    Started {
        /// False if it ran already.
        launched: bool,
    },
    /// What the directory and its server are.
    Described(Box<Description>),
    /// To [`Request::Upstream`].
    Upstream {
        /// What answers; `None` if no standby runs there, or follows no server.
        told: Option<Told>,
    },
    /// The server has its files, and has been told to read them if it runs.
    Followed(Followed),
    /// The server may be stopped.
    MayStop {
        /// What it is; none if no server runs in the directory.
        role: Option<Role>,
    },
    /// No server runs in the directory.
    Stopped {
        /// The one that did.
        stopped: Option<Stopped>,
    },
    /// The server does not run, and the directory is marked.
    Fenced {
        /// How it ended.
        fenced: Fenced,
    },
    /// The standby has become a server of its own.
    Promoted(Promoted),
    /// The end of the server's log.
    Log {
        /// A few lines.
        lines: String,
    },
    /// The server's walreceiver; none if no server runs in the directory, or it receives nothing.
    Walreceiver {
        /// What was found.
        found: Option<Walreceiver>,
        /// What the server's startup process says of itself: `startup recovering 000000010000000000000003`.
        startup: Option<String>,
    },
    /// How the receiver is.
    Status(Box<Status>),
    /// It did not work.
    Error(Error),
}

/// What the receiver found in the directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetInfo {
    /// Token for the data links of this run.
    pub session: String,
    /// The directory, symbolic links resolved as far as it exists.
    pub directory: PathBuf,
    /// What kind of content it has.
    pub content: Content,
    /// pg_control, if it can be read (in place, or set aside by an interrupted recovery).
    pub control: Option<ControlFile>,
    /// Whether that is in its place: then it is the directory's own, whatever a marker says.
    pub control_in_place: bool,
    /// The latest timeline of which there is WAL, or which pg_control tells.
    pub timeline: Option<u32>,
    /// What that has sprung from, where its history file is there.
    #[serde(default)]
    pub history: Option<Lineage>,
    /// How many of its WAL and history files wait to be archived, or why that cannot be told.
    pub unarchived: Result<u32>,
    /// The system identifier in pg_control, or failing that in the target's WAL.
    pub system_identifier: Option<u64>,
    /// The marker of an interrupted recovery.
    pub marker: Option<Marker>,
    /// The process that runs on the directory.
    pub running: Option<u32>,
    /// The line `PG_VERSION` holds.
    pub pg_version: Option<String>,
    /// Major version of the server that will be started: `15`.
    pub server_version: Option<String>,
    /// Its release: `15.18`; `None` of an agent that does not tell it.
    #[serde(default)]
    pub server_release: Option<String>,
    /// What it would sort text with; `None` of an agent that does not tell it.
    #[serde(default)]
    pub libraries: Option<Libraries>,
    /// What directory that is.
    pub identity: Option<FileId>,
    /// Where its pg_wal leads, where that is a link.
    pub wal_directory: Option<PathBuf>,
    /// Whether the include line can be added to its configuration.
    pub configuration_can_be_extended: bool,
    /// What directory that is.
    pub wal_identity: Option<FileId>,
    /// The kernel's identifier of this boot: equal on one machine only.
    pub boot_id: Option<String>,
    /// Which of the files to keep are there, and what else the configuration that it keeps needs of its directory.
    pub kept: Vec<RelPath>,
    /// Settings of one host (port, addresses, certificates) that the configuration it keeps makes.
    #[serde(default)]
    pub own_settings: Vec<String>,
    /// Whether the configuration lives outside the data directory.
    pub external_configuration: Option<PathBuf>,
    /// Whether the configuration in use reads myrecovery.conf already.
    pub includes_myrecovery: bool,
    /// What the configuration that it keeps says about recovery.
    #[serde(default)]
    pub recovery_settings: RecoverySettings,
    /// What the configuration that it keeps says about parameters that hot standby needs.
    #[serde(default)]
    pub hot_standby: HotStandby,
    /// What the standby's myrecovery.conf says, if there is one.
    pub standby: Option<Standby>,
    /// What tells a base backup from a cluster in use.
    pub backup: BackupTraces,
    /// The sender's address as seen from here.
    pub peer: Option<IpAddr>,
    /// The addresses of the target's host; `None` where they cannot be listed.
    #[serde(default)]
    pub addresses: Option<Vec<IpAddr>>,
    /// The network namespace that has them ([`crate::sys::machine::network`]).
    #[serde(default)]
    pub network: Option<String>,
    /// Version of the receiver's software.
    pub version: String,
    /// The clock of the target's host, milliseconds since 1970.
    pub clock: u64,
    /// What starts the server, or why that cannot work.
    pub starter: Result<String>,
    /// The directory that the configuration it keeps leads to, if that is another one.
    pub elsewhere: Option<PathBuf>,
    /// What the configuration it keeps says about listening, if it keeps one.
    pub listening: Option<Listening>,
    /// The recovery that another session is at, of a directory that was opened to look.
    pub recovery: Option<Run>,
    /// Records that tell its last timeline from another one of the same number, of a cluster that is stopped.
    #[serde(default)]
    pub landmark: Option<Past>,
    /// What a pg_wal that is a link leads to.
    #[serde(default)]
    pub linked_wal: Option<LinkedWal>,
    /// What could not be told.
    #[serde(default)]
    pub doubts: Doubts,
}

/// What a directory holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Content {
    /// It does not exist.
    Missing,
    /// It exists and has no entries (a file system's `lost+found` does not count).
    Empty,
    /// A PostgreSQL data directory, whole or not.
    Cluster,
    /// The WAL of a cluster, and nothing else: it may be another server's.
    Wal,
    /// Something else.
    Other,
}

/// What a data directory has of a base backup, and of a server that ran in it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupTraces {
    /// `backup_label`, which a server renames when it starts from the backup; empty if it cannot be read.
    pub label: Option<String>,
    /// Whether there is a `backup_manifest`. A server leaves it where it is.
    pub has_manifest: bool,
    /// Whether there is a `standby.signal`.
    pub has_standby_signal: bool,
    /// Whether there is a `postmaster.opts`, which a server writes when it starts and no backup has.
    pub has_postmaster_opts: bool,
    /// Whether that is no older than the label: a copy of files may have brought one along.
    pub started_since: bool,
    /// When content, owner, mode or name of `PG_VERSION` last changed (ctime), seconds since 1970: a server leaves it as
    /// it is, and a copy does not bring this time along.
    #[serde(default)]
    pub version_changed: Option<i64>,
}

/// What could not be told about a directory. Each forbids what its answer might have permitted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Doubts {
    /// Whether a server is running there.
    pub server: Option<Error>,
    /// Whose cluster it is, or what it holds.
    pub identity: Option<Error>,
    /// Whether the directory that its pg_wal leads to is its own.
    pub wal: Option<Error>,
}

/// What a pg_wal that is a link leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkedWal {
    /// No WAL.
    Empty,
    /// WAL of the cluster with this system identifier, as its newest segment says.
    Of(u64),
    /// WAL that does not say whose it is.
    Unknown,
}

/// The content of the marker file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marker {
    /// Says in plain words what the file means.
    pub note: String,
    /// The primary's system identifier.
    pub system_identifier: u64,
    /// The primary's timeline.
    pub timeline: u32,
    /// When the recovery began, seconds since 1970.
    pub started: u64,
    /// Where it put the tablespaces, by OID: a power cut may have taken their links. The keys are text, as JSON has them.
    #[serde(default)]
    pub tablespaces: BTreeMap<String, String>,
}

/// Parses a message, refusing what is not one.
pub fn decode<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T> {
    serde_json::from_slice(body)
        .map_err(|error| Error::new(Kind::ProtocolViolation, format!("invalid message: {error}")))
}

/// Serialises a message.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>> {
    serde_json::to_vec(message)
        .map_err(|error| Error::new(Kind::Internal, format!("could not encode a message: {error}")))
}
