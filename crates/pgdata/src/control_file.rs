//! Reading `global/pg_control` (src/include/catalog/pg_control.h).
//!
//! The head of the file has not moved since PostgreSQL 9.x. The fields behind it that this crate needs sit at the same
//! offsets from PostgreSQL 13 to 18; 19 has a longer checkpoint before them ([`Layout`]). The CRC guards these assumptions.

use serde::{Deserialize, Serialize};

use crate::bytes::{u32_at, u64_at};
use crate::wal::Lsn;

/// Why a pg_control could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// It is too short, its checksum does not match, or it holds what PostgreSQL does not write.
    #[error("invalid pg_control file: {0}")]
    Damaged(String),
    /// A version of PostgreSQL wrote it that this crate does not know.
    #[error("unknown pg_control version {0}")]
    UnknownVersion(u32),
}

/// Where pg_control lies in a data directory.
pub const PG_CONTROL: &str = "global/pg_control";

/// The physical size of the file (PG_CONTROL_FILE_SIZE).
pub const PG_CONTROL_FILE_SIZE: usize = 8192;

/// What the cluster was doing when pg_control was last written (DBState).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// DB_STARTUP: just initialised by initdb, or about to start.
    Startup,
    /// DB_SHUTDOWNED
    ShutDown,
    /// DB_SHUTDOWNED_IN_RECOVERY
    ShutDownInRecovery,
    /// DB_SHUTDOWNING
    ShuttingDown,
    /// DB_IN_CRASH_RECOVERY
    InCrashRecovery,
    /// DB_IN_ARCHIVE_RECOVERY
    InArchiveRecovery,
    /// DB_IN_PRODUCTION
    InProduction,
}

/// The fields of pg_control that decide whether two data directories belong together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlFile {
    /// Made by initdb, shared by a primary and all its standbys.
    pub system_identifier: u64,
    /// PG_CONTROL_VERSION: 1300, 1700, 1800, 1905.
    pub pg_control_version: u32,
    /// CATALOG_VERSION_NO of the server that made the cluster.
    pub catalog_version: u32,
    /// What the cluster was doing.
    pub state: State,
    /// Timeline of the latest checkpoint.
    pub timeline: u32,
    /// Of a server that replays: the timeline up to which it must replay again before it is consistent
    /// (minRecoveryPointTLI). It may be later than that of the checkpoint; 0 if the server was none.
    pub min_recovery_timeline: u32,
    /// Size of a data page, bytes.
    pub block_size: u32,
    /// Pages in one segment file of a relation.
    pub relation_segment_blocks: u32,
    /// Size of a WAL segment, bytes.
    pub wal_segment_size: u32,
    /// 0: data pages carry no checksums.
    pub checksum_version: u32,
    /// From where to where the server would replay WAL.
    #[serde(default)]
    pub recovery: Recovery,
}

/// What pg_control says about replay, and about the WAL that the server wrote.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recovery {
    /// Where the record of the latest checkpoint begins (checkPoint).
    pub checkpoint_at: Lsn,
    /// The latest checkpoint, or that of the latest restartpoint (checkPointCopy).
    pub checkpoint: Checkpoint,
    /// Of a server that replays: it is consistent once it has replayed up to here (minRecoveryPoint); 0 if it was none.
    pub min_recovery_point: Lsn,
    /// Start of the backup of which the server is a copy that is not consistent yet (backupStartPoint); else 0.
    pub backup_start_point: Lsn,
    /// End of the standby's backup of which it is such a copy (backupEndPoint); else 0.
    pub backup_end_point: Lsn,
    /// It is such a copy, of a primary's backup (backupEndRequired).
    pub backup_end_required: bool,
    /// wal_log_hints. Of a standby this is its primary's.
    pub wal_log_hints: bool,
    /// Alignment of the platform (maxAlign).
    pub max_alignment: u32,
    /// Size of a WAL page, bytes (xlog_blcksz).
    pub wal_block_size: u32,
}

/// A checkpoint, as its record and pg_control describe it (CheckPoint), without its next transaction: in pg_control of a
/// standby that is the latest which it has seen (xlog_redo in src/backend/access/transam/xlog.c).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Where replay from it begins.
    pub redo: Lsn,
    /// The timeline.
    pub timeline: u32,
    /// The timeline before it, if the record begins the timeline.
    pub previous_timeline: u32,
    /// full_page_writes.
    pub full_page_writes: bool,
    /// Seconds since 1970.
    pub time: u64,
    /// The next OID, the next MultiXact and its offset, the oldest transaction and its database, the oldest MultiXact and
    /// its database; the oldest and the newest transaction with a commit timestamp, and the oldest one that is active.
    pub counters: [u64; 10],
}

/// Where the fields lie that have moved, in bytes from the beginning.
struct Layout {
    /// Length of a checkpoint (sizeof(CheckPoint)).
    checkpoint: usize,
    /// In a checkpoint: that of its next OID.
    counters: usize,
    /// The offset of a MultiXact has 64 bits.
    long_multixact_offset: bool,
    /// xlog_blcksz; the size of a segment follows.
    wal_block_size: usize,
    checksum_version: usize,
    crc: usize,
}

impl Layout {
    const fn of(pg_control_version: u32) -> Option<Self> {
        let until_18 = Self {
            checkpoint: 88,
            counters: 32,
            long_multixact_offset: false,
            wal_block_size: 224,
            checksum_version: 252,
            crc: 288,
        };
        match pg_control_version {
            1300 | 1700 => Some(until_18),
            // default_char_signedness is new
            1800 => Some(Self { crc: 292, ..until_18 }),
            // and logicalDecodingEnabled, slru_pages_per_segment, data_checksum_version_init
            1905 => Some(Self {
                checkpoint: 96,
                counters: 40,
                long_multixact_offset: true,
                wal_block_size: 236,
                checksum_version: 268,
                crc: 308,
            }),
            _ => None,
        }
    }

    /// Where a field lies that is behind the checkpoint, and that nothing else has moved: where it does up to 18.
    const fn behind_checkpoint(&self, until_18: usize) -> usize {
        until_18 + self.checkpoint - 88
    }
}

impl Checkpoint {
    /// Reads the main data of a checkpoint's record, of a server with this pg_control; `None` if it is too short, or no such
    /// version is known.
    pub fn parse(data: &[u8], pg_control_version: u32) -> Option<Self> {
        Self::parse_by(data, &Layout::of(pg_control_version)?)
    }

    fn parse_by(data: &[u8], layout: &Layout) -> Option<Self> {
        let data = data.get(..layout.checkpoint)?;
        let mut at = layout.counters;
        let mut counters = [0; 10];
        let mut time = 0;
        for (index, counter) in counters.iter_mut().enumerate() {
            if index == 7 {
                // eight bytes, aligned
                time = u64_at(data, at.next_multiple_of(8))?;
                at = at.next_multiple_of(8) + 8;
            }
            let is_long = index == 2 && layout.long_multixact_offset;
            *counter = if is_long { u64_at(data, at)? } else { u32_at(data, at)?.into() };
            at += if is_long { 8 } else { 4 };
        }
        Some(Self {
            redo: Lsn(u64_at(data, 0)?),
            timeline: u32_at(data, 8)?,
            previous_timeline: u32_at(data, 12)?,
            full_page_writes: data[16] != 0,
            time,
            counters,
        })
    }
}

impl Recovery {
    fn parse(bytes: &[u8], layout: &Layout) -> Option<Self> {
        let flag = |until_18| bytes.get(layout.behind_checkpoint(until_18)).map(|byte| *byte != 0);
        let lsn = |until_18| u64_at(bytes, layout.behind_checkpoint(until_18)).map(Lsn);
        Some(Self {
            checkpoint_at: Lsn(u64_at(bytes, 32)?),
            checkpoint: Checkpoint::parse_by(bytes.get(40..)?, layout)?,
            min_recovery_point: lsn(136)?,
            backup_start_point: lsn(152)?,
            backup_end_point: lsn(160)?,
            backup_end_required: flag(168)?,
            wal_log_hints: flag(176)?,
            max_alignment: u32_at(bytes, layout.behind_checkpoint(204))?,
            wal_block_size: u32_at(bytes, layout.wal_block_size)?,
        })
    }
}

impl ControlFile {
    /// Whether the server replayed what others wrote: it is a standby, or is restored. A primary that was stopped while it recovered
    /// from a crash is "shut down in recovery", too, but has no minRecoveryPoint.
    pub fn is_in_archive_recovery(&self) -> bool {
        match self.state {
            State::InArchiveRecovery => true,
            State::ShutDownInRecovery => self.recovery.min_recovery_point != Lsn(0),
            _ => false,
        }
    }

    /// Parses the content of the file and verifies its CRC.
    pub fn parse(bytes: &[u8]) -> Result<Self, Invalid> {
        let damaged = |what: &str| Invalid::Damaged(what.to_owned());
        let version = u32_at(bytes, 8).ok_or_else(|| damaged("it is too short"))?;
        let layout = Layout::of(version).ok_or(Invalid::UnknownVersion(version))?;
        let crc = u32_at(bytes, layout.crc).ok_or_else(|| damaged("it is too short"))?;
        if crc32c::crc32c(&bytes[..layout.crc]) != crc {
            return Err(damaged("its checksum does not match its content"));
        }
        let field = |offset| u32_at(bytes, offset).ok_or_else(|| damaged("it is too short"));
        let state = match field(16)? {
            0 => State::Startup,
            1 => State::ShutDown,
            2 => State::ShutDownInRecovery,
            3 => State::ShuttingDown,
            4 => State::InCrashRecovery,
            5 => State::InArchiveRecovery,
            6 => State::InProduction,
            other => return Err(damaged(&format!("unknown state {other}"))),
        };
        Ok(Self {
            system_identifier: u64::from(field(0)?) | u64::from(field(4)?) << 32,
            pg_control_version: version,
            catalog_version: field(12)?,
            state,
            timeline: field(48)?,
            min_recovery_timeline: field(layout.behind_checkpoint(144))?,
            block_size: field(layout.behind_checkpoint(216))?,
            relation_segment_blocks: field(layout.behind_checkpoint(220))?,
            wal_segment_size: field(layout.wal_block_size + 4)?,
            checksum_version: field(layout.checksum_version)?,
            recovery: Recovery::parse(bytes, &layout).ok_or_else(|| damaged("it is too short"))?,
        })
    }
}

/// The system identifier that the first page of a WAL segment carries (XLogLongPageHeaderData):
/// what is left to identify a cluster whose pg_control is damaged.
pub fn wal_system_identifier(head: &[u8]) -> Option<u64> {
    const XLP_LONG_HEADER: u16 = 0x0002;
    let magic = u16::from_le_bytes(head.get(..2)?.try_into().ok()?);
    let info = u16::from_le_bytes(head.get(2..4)?.try_into().ok()?);
    // XLOG_PAGE_MAGIC has been 0xD0xx or 0xD1xx since PostgreSQL 9
    (magic >> 9 == 0xD0 >> 1 && info & XLP_LONG_HEADER != 0)
        .then(|| head.get(24..32)?.try_into().ok().map(u64::from_le_bytes))
        .flatten()
}

/// A pg_control as PostgreSQL 15 lays it out.
#[cfg(any(test, feature = "samples"))]
pub fn sample(system_identifier: u64) -> Vec<u8> {
    // DB_SHUTDOWNED
    sample_in_state(system_identifier, 1)
}

/// The same, of a server in a state (DBState in pg_control.h).
#[cfg(any(test, feature = "samples"))]
pub fn sample_in_state(system_identifier: u64, state: u32) -> Vec<u8> {
    let behind = [
        (136, 0x500_0100),
        (144, 4),
        (176, 1),
        (204, 8),
        (216, 8192),
        (220, 131_072),
        (224, 8192),
        (228, 16 << 20),
        (252, 1),
    ];
    sample_with(system_identifier, state, [1300, 202_209_061], &behind, 288)
}

/// One with the head that all versions share, these numbers behind it, and the CRC.
#[cfg(any(test, feature = "samples"))]
fn sample_with(
    system_identifier: u64,
    state: u32,
    versions: [u32; 2],
    behind: &[(usize, u32)],
    crc_at: usize,
) -> Vec<u8> {
    let mut bytes = vec![0; PG_CONTROL_FILE_SIZE];
    let mut put = |offset: usize, value: u32| bytes[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
    let [control, catalog] = versions;
    for (offset, value) in [
        (8, control),
        (12, catalog),
        (16, state),
        (32, 0x500_0060),
        (40, 0x500_0028),
        (48, 3),
        (52, 3),
        (56, 1),
    ] {
        put(offset, value);
    }
    behind.iter().for_each(|(offset, value)| put(*offset, *value));
    bytes[..8].copy_from_slice(&system_identifier.to_le_bytes());
    let crc = crc32c::crc32c(&bytes[..crc_at]);
    bytes[crc_at..crc_at + 4].copy_from_slice(&crc.to_le_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As PostgreSQL 19 lays it out: offsets of its pg_control.h, as a C compiler for x86-64 sees them.
    fn sample_of_19(system_identifier: u64) -> Vec<u8> {
        let behind = [
            // the copy of the checkpoint begins at 40: nextMultiOffset, of 64 bits, oldestXid, time, oldestActiveXid
            (88, 7),
            (92, 1),
            (96, 731),
            (112, 1_700_000_000),
            (128, 733),
            (144, 0x500_0100),
            (152, 4),
            (184, 1),
            (212, 8),
            (224, 8192),
            (228, 131_072),
            // slru_pages_per_segment
            (232, 32),
            (236, 8192),
            (240, 16 << 20),
            // data_checksum_version_init, data_checksum_version
            (264, 0),
            (268, 1),
        ];
        sample_with(system_identifier, 1, [1905, 202_610_061], &behind, 308)
    }

    #[test]
    fn reads_what_it_needs() {
        for bytes in [sample(0x1122_3344_5566_7788), sample_of_19(0x1122_3344_5566_7788)] {
            reads(&bytes);
        }
    }

    fn reads(bytes: &[u8]) {
        let control = ControlFile::parse(bytes).expect("valid");
        assert_eq!(control.system_identifier, 0x1122_3344_5566_7788);
        assert_eq!((control.timeline, control.state), (3, State::ShutDown));
        assert_eq!(control.min_recovery_timeline, 4);
        assert_eq!((control.block_size, control.wal_segment_size), (8192, 16 << 20));
        assert_eq!(control.checksum_version, 1);
        let recovery = control.recovery;
        assert_eq!((recovery.checkpoint_at, recovery.checkpoint.redo), (Lsn(0x500_0060), Lsn(0x500_0028)));
        assert_eq!((recovery.checkpoint.timeline, recovery.checkpoint.full_page_writes), (3, true));
        assert_eq!((recovery.min_recovery_point, recovery.wal_log_hints), (Lsn(0x500_0100), true));
        assert_eq!((recovery.max_alignment, recovery.wal_block_size), (8, 8192));
        assert_eq!((recovery.backup_start_point, recovery.backup_end_required), (Lsn(0), false));
    }

    #[test]
    fn a_primary_that_was_stopped_in_crash_recovery_is_no_standby() {
        let is = |state, min| {
            let mut control = ControlFile::parse(&sample(7)).expect("valid");
            control.state = state;
            control.recovery.min_recovery_point = Lsn(min);
            control.is_in_archive_recovery()
        };
        assert!(is(State::InArchiveRecovery, 0) && is(State::ShutDownInRecovery, 1));
        assert!(!is(State::ShutDownInRecovery, 0));
        for state in [State::ShutDown, State::ShuttingDown, State::InCrashRecovery, State::InProduction] {
            // what a promotion leaves is there until the next checkpoint
            assert!(!is(state, 1), "{state:?}");
        }
    }

    #[test]
    fn a_checkpoint_is_the_same_but_for_its_next_transaction() {
        let until_18 = (1800, 88, 24, [0, 8, 12, 32, 56, 59, 64, 71, 72, 80, 83]);
        let from_19 = (1905, 96, 32, [0, 8, 12, 40, 68, 71, 72, 79, 80, 88, 91]);
        for (version, length, next_transaction, offsets) in [until_18, from_19] {
            let mut data: Vec<u8> = (0..length).collect();
            let one = Checkpoint::parse(&data, version).expect("a checkpoint");
            assert_eq!(Checkpoint::parse(&data[..data.len() - 1], version), None);
            data[next_transaction..next_transaction + 8].fill(0xFF);
            assert_eq!(Checkpoint::parse(&data, version), Some(one.clone()));
            for offset in offsets {
                let mut other = data.clone();
                other[offset] ^= 0x80;
                assert_ne!(Checkpoint::parse(&other, version), Some(one.clone()), "{version} {offset}");
            }
            assert_eq!(Checkpoint::parse(&data, 1902), None, "that of a beta");
        }
    }

    #[test]
    fn an_offset_of_a_multixact_has_64_bits_from_19_on() {
        let checkpoint = ControlFile::parse(&sample_of_19(7)).expect("valid").recovery.checkpoint;
        assert_eq!(checkpoint.counters, [0, 0, 7 | 1 << 32, 731, 0, 0, 0, 0, 0, 733]);
        assert_eq!(checkpoint.time, 1_700_000_000);
    }

    #[test]
    fn damage_is_an_error_never_a_panic() {
        let sample = sample(7);
        for length in [0, 7, 11, 200, 291] {
            assert!(ControlFile::parse(&sample[..length]).is_err(), "length {length}");
        }
        let mut flipped = sample;
        flipped[100] ^= 1;
        let error = ControlFile::parse(&flipped).expect_err("crc");
        assert!(matches!(error, Invalid::Damaged(_)), "{error}");
        let mut newer = vec![0; PG_CONTROL_FILE_SIZE];
        // 1902 is that of the betas of PostgreSQL 19, with another layout
        for version in [1902, 9900] {
            newer[8..12].copy_from_slice(&u32::to_le_bytes(version));
            assert_eq!(ControlFile::parse(&newer), Err(Invalid::UnknownVersion(version)));
        }
    }

    #[test]
    fn wal_head_identifies_the_cluster() {
        let mut head = vec![0; 8192];
        assert_eq!(wal_system_identifier(&head), None);
        head[..4].copy_from_slice(&[0x10, 0xD1, 0x02, 0x00]);
        head[24..32].copy_from_slice(&42_u64.to_le_bytes());
        assert_eq!(wal_system_identifier(&head), Some(42));
        assert_eq!(wal_system_identifier(&head[..20]), None);
    }
}
