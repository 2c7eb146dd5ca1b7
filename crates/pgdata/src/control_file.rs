//! Reading `global/pg_control` (src/include/catalog/pg_control.h).
//!
//! The head of the file has not moved since PostgreSQL 9.x; the fields behind it that this crate
//! needs sit at the same offsets from PostgreSQL 13 to 18. The CRC guards both assumptions.

use serde::{Deserialize, Serialize};

use crate::bytes::u32_at;

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
    /// PG_CONTROL_VERSION: 1300, 1700, 1800.
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
}

impl ControlFile {
    /// Parses the content of the file and verifies its CRC.
    pub fn parse(bytes: &[u8]) -> Result<Self, Invalid> {
        let damaged = |what: &str| Invalid::Damaged(what.to_owned());
        let version = u32_at(bytes, 8).ok_or_else(|| damaged("it is too short"))?;
        let crc_offset = match version {
            1300 | 1700 => 288,
            // PostgreSQL 18 inserted default_char_signedness
            1800 => 292,
            _ => return Err(Invalid::UnknownVersion(version)),
        };
        let crc = u32_at(bytes, crc_offset).ok_or_else(|| damaged("it is too short"))?;
        if crc32c::crc32c(&bytes[..crc_offset]) != crc {
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
            min_recovery_timeline: field(144)?,
            block_size: field(216)?,
            relation_segment_blocks: field(220)?,
            wal_segment_size: field(228)?,
            checksum_version: field(252)?,
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
    let mut bytes = vec![0; PG_CONTROL_FILE_SIZE];
    let mut put = |offset: usize, value: u32| bytes[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
    put(8, 1300);
    put(12, 202_209_061);
    put(16, 1);
    put(48, 3);
    put(144, 4);
    put(216, 8192);
    put(220, 131_072);
    put(228, 16 << 20);
    put(252, 1);
    bytes[..8].copy_from_slice(&system_identifier.to_le_bytes());
    let crc = crc32c::crc32c(&bytes[..288]);
    bytes[288..292].copy_from_slice(&crc.to_le_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_needs() {
        let control = ControlFile::parse(&sample(0x1122_3344_5566_7788)).expect("valid");
        assert_eq!(control.system_identifier, 0x1122_3344_5566_7788);
        assert_eq!((control.timeline, control.state), (3, State::ShutDown));
        assert_eq!(control.min_recovery_timeline, 4);
        assert_eq!((control.block_size, control.wal_segment_size), (8192, 16 << 20));
        assert_eq!(control.checksum_version, 1);
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
        newer[8..12].copy_from_slice(&9900_u32.to_le_bytes());
        assert_eq!(ControlFile::parse(&newer), Err(Invalid::UnknownVersion(9900)));
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
