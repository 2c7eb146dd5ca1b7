//! What the WAL of one side tells besides the blocks that it changes.

use pgdata::control_file::{Checkpoint, ControlFile};
use pgdata::wal::Lsn;
use pgdata::wal::reader::Record;
use pgdata::wal::special::{Effect, WalLevel};
use serde::{Deserialize, Serialize};

use super::block_map::BlockMap;
use super::lineage::Lineage;

/// Checkpoints that are remembered, the latest.
const MAX_CHECKPOINTS: usize = 256;

/// Ends of transactions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ends {
    /// How many there were.
    pub count: u64,
    /// Where the record of the first begins.
    pub first: Lsn,
    /// Where the record of the last begins.
    pub last: Lsn,
}

/// A record that changes files in a way that is not understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unknown {
    /// Where it begins.
    pub at: Lsn,
    /// The number of its resource manager; an extension's is 128 or more.
    pub resource_manager: u8,
    /// Its kind.
    pub info: u8,
}

/// A checkpoint whose record was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Completed {
    /// Where the record begins.
    pub start: Lsn,
    /// Where it ends.
    pub end: Lsn,
    /// Where replay from it begins.
    pub redo: Lsn,
    /// The timeline on which it lies.
    pub timeline: u32,
}

/// What was found where pg_control says that its checkpoint lies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ControlRecord {
    /// No record.
    #[default]
    Missing,
    /// Another one.
    Other,
    /// The first record of all, which pg_resetwal writes.
    Reset,
    /// The checkpoint.
    Found {
        /// Where its record ends.
        end: Lsn,
    },
}

impl std::fmt::Display for ControlRecord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Missing => f.write_str("there is no record"),
            Self::Other => f.write_str("there is another record"),
            Self::Reset => f.write_str("pg_resetwal wrote what is there"),
            Self::Found { end } => write!(f, "it is there, and ends at {end}"),
        }
    }
}

/// What the WAL along one timeline and its ancestors tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainFacts {
    /// The timelines.
    pub lineage: Lineage,
    /// Where the first record begins that was read; `None`: there was none where the WAL should begin.
    pub from: Option<Lsn>,
    /// Where the last one ends.
    pub end: Lsn,
    /// Why no record follows.
    pub why: String,
    /// Behind the end: a page that was written at its place, so that something is missing before it.
    pub beyond: Option<Lsn>,
    /// A record whose CRC is right and that cannot be read.
    pub malformed: Option<String>,
    /// A record that changes files in an unknown way, the first one.
    pub unknown: Option<Unknown>,
    /// Ends of transactions.
    pub ends: Ends,
    /// Where wal_level was `minimal`, the first place that says so.
    pub minimal: Option<Lsn>,
    /// Where wal_log_hints was switched off, the last place that says so.
    pub hints_off: Option<Lsn>,
    /// Where parameters changed, the last place.
    pub parameters: Option<Lsn>,
    /// Where full_page_writes was off, the first place that says so.
    pub full_page_writes_off: Option<Lsn>,
    /// The latest checkpoints.
    pub checkpoints: Vec<Completed>,
    /// The last image of a page of which only hints had changed.
    pub hint_image: Option<Lsn>,
    /// Where the WAL of the server's last run begins, if it was started within this WAL.
    pub started: Option<Lsn>,
    /// The checkpoint of pg_control, if it was looked for.
    pub control_record: ControlRecord,
    /// The server has stopped or was promoted here: what follows is another run's.
    #[serde(skip)]
    stopped: bool,
}

impl ChainFacts {
    pub(super) fn new(lineage: Lineage, from: Lsn) -> Self {
        Self {
            lineage,
            from: None,
            end: from,
            why: String::new(),
            beyond: None,
            malformed: None,
            unknown: None,
            ends: Ends::default(),
            minimal: None,
            hints_off: None,
            parameters: None,
            full_page_writes_off: None,
            checkpoints: Vec::new(),
            hint_image: None,
            started: None,
            control_record: ControlRecord::Missing,
            stopped: false,
        }
    }

    /// Bytes of WAL that were read.
    pub fn bytes(&self) -> u64 {
        self.from.map_or(0, |from| self.end.0.saturating_sub(from.0))
    }

    /// The next record.
    pub(super) fn add(&mut self, record: &Record<'_>, control: Option<&ControlFile>) {
        let at = record.start;
        self.from.get_or_insert(at);
        self.end = record.end;
        if std::mem::take(&mut self.stopped) {
            self.started = Some(at);
        }
        if let Some(control) = control
            && control.recovery.checkpoint_at == at
        {
            self.control_record = control_record(record, control);
        }
        match &record.effect {
            Effect::TransactionEnd { .. } => {
                if self.ends.count == 0 {
                    self.ends.first = at;
                }
                self.ends.count += 1;
                self.ends.last = at;
            }
            Effect::Checkpoint { redo, timeline, full_page_writes, wal_level, is_shutdown } => {
                if self.checkpoints.len() == MAX_CHECKPOINTS {
                    self.checkpoints.remove(0);
                }
                self.checkpoints.push(Completed {
                    start: at,
                    end: record.end,
                    redo: *redo,
                    timeline: *timeline,
                });
                self.full_page_writes(at, *full_page_writes);
                self.wal_level(at, *wal_level);
                self.stopped = *is_shutdown;
            }
            Effect::Promotion { wal_level, .. } => {
                self.wal_level(at, *wal_level);
                self.stopped = true;
            }
            Effect::Redo { wal_level } => self.wal_level(at, Some(*wal_level)),
            Effect::Parameters { wal_level, wal_log_hints } => {
                self.wal_level(at, Some(*wal_level));
                self.parameters = Some(at);
                if !wal_log_hints {
                    self.hints_off = Some(at);
                }
            }
            Effect::FullPageWrites(is_on) => self.full_page_writes(at, *is_on),
            Effect::HintImage => self.hint_image = Some(at),
            Effect::Unknown => {
                let (resource_manager, info) = (record.header.resource_manager, record.header.info);
                self.unknown.get_or_insert(Unknown { at, resource_manager, info });
            }
            Effect::None
            | Effect::Created { .. }
            | Effect::Truncated { .. }
            | Effect::Database { .. }
            | Effect::Switch
            | Effect::Overwrite { .. } => {}
        }
    }

    fn wal_level(&mut self, at: Lsn, level: Option<WalLevel>) {
        if level == Some(WalLevel::Minimal) {
            self.minimal.get_or_insert(at);
        }
    }

    fn full_page_writes(&mut self, at: Lsn, is_on: bool) {
        if !is_on {
            self.full_page_writes_off.get_or_insert(at);
        }
    }
}

fn control_record(record: &Record<'_>, control: &ControlFile) -> ControlRecord {
    let is_checkpoint = matches!(record.effect, Effect::Checkpoint { .. });
    let found = Checkpoint::parse(record.data, control.pg_control_version);
    if !is_checkpoint || found.as_ref() != Some(&control.recovery.checkpoint) {
        ControlRecord::Other
    } else if record.header.previous == Lsn(0) {
        ControlRecord::Reset
    } else {
        ControlRecord::Found { end: record.end }
    }
}

impl BlockMap {
    /// Lists what a record changes.
    pub fn add_record(&mut self, record: &Record<'_>) {
        use pgdata::wal::record::MAIN_FORK;
        for block in record.blocks.iter().filter(|block| block.fork == MAIN_FORK) {
            self.add(block.locator, block.block);
        }
        match &record.effect {
            Effect::TransactionEnd { dropped, .. } => dropped.iter().for_each(|gone| self.limit(*gone, 0)),
            Effect::Created { locator, fork: MAIN_FORK } => self.limit(*locator, 0),
            Effect::Truncated { locator, blocks: Some(kept) } => self.limit(*locator, *kept),
            Effect::Database { tablespace, database } => self.database(*tablespace, *database),
            _ => {}
        }
    }
}
