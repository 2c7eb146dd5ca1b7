//! Records that matter although they name no block: what they create, cut or remove, which transactions end, and what
//! the server's parameters were.

use super::Lsn;
use super::page::Format;
use super::record::{MAX_FORK, Malformed, RecordHeader, RelationFileLocator, rmgr};
use crate::bytes::{u32_at, u64_at};

/// What a record does besides changing the blocks that it names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// A transaction ends, here or on another server that sends its WAL.
    TransactionEnd {
        /// Microseconds since 2000-01-01 (TimestampTz).
        time: i64,
        /// The files that go with it, with all their forks.
        dropped: Vec<RelationFileLocator>,
    },
    /// A file of a relation is made (XLOG_SMGR_CREATE).
    Created {
        /// The relation.
        locator: RelationFileLocator,
        /// The fork.
        fork: u8,
    },
    /// A relation is cut (XLOG_SMGR_TRUNCATE).
    Truncated {
        /// The relation.
        locator: RelationFileLocator,
        /// How many blocks its main fork keeps; `None`: only other forks are cut.
        blocks: Option<u32>,
    },
    /// The files of a database are made or removed, without a word about their blocks.
    Database {
        /// OID of the tablespace; `None`: every one that the database uses.
        tablespace: Option<u32>,
        /// OID of the database.
        database: u32,
    },
    /// A checkpoint of the server that wrote the WAL is complete.
    Checkpoint {
        /// Where replay from it begins.
        redo: Lsn,
        /// The timeline on which it lies.
        timeline: u32,
        /// Whether full_page_writes was on.
        full_page_writes: bool,
        /// wal_level, of 17 and later.
        wal_level: Option<WalLevel>,
        /// Whether the server was shut down with it.
        is_shutdown: bool,
    },
    /// The redo point of a checkpoint (XLOG_CHECKPOINT_REDO, 17 and later).
    Redo {
        /// wal_level at that point.
        wal_level: WalLevel,
    },
    /// A standby was promoted (XLOG_END_OF_RECOVERY).
    Promotion {
        /// Microseconds since 2000-01-01 (TimestampTz).
        time: i64,
        /// wal_level, of 17 and later.
        wal_level: Option<WalLevel>,
    },
    /// Parameters have changed (XLOG_PARAMETER_CHANGE).
    Parameters {
        /// wal_level from here on.
        wal_level: WalLevel,
        /// wal_log_hints from here on.
        wal_log_hints: bool,
    },
    /// full_page_writes has changed (XLOG_FPW_CHANGE).
    FullPageWrites(bool),
    /// The image of a page of which only hints changed (XLOG_FPI_FOR_HINT).
    HintImage,
    /// The rest of the segment is unused (XLOG_SWITCH).
    Switch,
    /// A record was given up after a crash (XLOG_OVERWRITE_CONTRECORD).
    Overwrite {
        /// Where it began.
        given_up: Lsn,
    },
    /// Files of relations change in a way that this crate does not know.
    Unknown,
}

/// How much a server logs (WalLevel).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum WalLevel {
    /// WAL_LEVEL_MINIMAL: files that are made are not always logged.
    Minimal,
    /// WAL_LEVEL_REPLICA
    Replica,
    /// WAL_LEVEL_LOGICAL
    Logical,
}

impl WalLevel {
    fn of(number: u32) -> Result<Self, Malformed> {
        match number {
            0 => Ok(Self::Minimal),
            1 => Ok(Self::Replica),
            2 => Ok(Self::Logical),
            _ => Err(Malformed("its wal_level is unknown")),
        }
    }
}

/// Whether the main data of such a record is needed to know its effect.
pub const fn needs_data(header: &RecordHeader) -> bool {
    matches!(header.resource_manager, rmgr::XLOG | rmgr::XACT | rmgr::SMGR | rmgr::DBASE)
}

/// The effect of a record with this header and main data.
pub fn effect(header: &RecordHeader, data: &[u8], format: Format) -> Result<Effect, Malformed> {
    let found = match header.resource_manager {
        rmgr::XLOG => xlog(header.kind(), data, format)?,
        rmgr::XACT => transaction(header.info, data)?,
        rmgr::SMGR => relation(header.kind(), data)?,
        rmgr::DBASE => database(header.kind(), data, format)?,
        _ => Effect::None,
    };
    // an extension's records may do anything
    let is_unknown = header.resource_manager >= rmgr::FIRST_CUSTOM || header.is_special();
    Ok(if is_unknown && found == Effect::None { Effect::Unknown } else { found })
}

const SHORT: Malformed = Malformed("its data is cut off");

fn u32_of(data: &[u8], offset: usize) -> Result<u32, Malformed> {
    u32_at(data, offset).ok_or(SHORT)
}

fn u64_of(data: &[u8], offset: usize) -> Result<u64, Malformed> {
    u64_at(data, offset).ok_or(SHORT)
}

fn time_of(data: &[u8]) -> Result<i64, Malformed> {
    u64_of(data, 0).map(u64::cast_signed)
}

fn bool_of(data: &[u8], offset: usize) -> Result<bool, Malformed> {
    data.get(offset).map(|byte| *byte != 0).ok_or(SHORT)
}

/// src/include/catalog/pg_control.h and xl_parameter_change, xl_end_of_recovery, xl_overwrite_contrecord in
/// access/xlog_internal.h.
fn xlog(kind: u8, data: &[u8], format: Format) -> Result<Effect, Malformed> {
    let has_level = format.major >= 17;
    let level_at = |offset| has_level.then(|| u32_of(data, offset).and_then(WalLevel::of)).transpose();
    Ok(match kind {
        0x00 | 0x10 => Effect::Checkpoint {
            redo: Lsn(u64_of(data, 0)?),
            timeline: u32_of(data, 8)?,
            full_page_writes: bool_of(data, 16)?,
            wal_level: level_at(20)?,
            is_shutdown: kind == 0x00,
        },
        0x40 => Effect::Switch,
        0x60 => Effect::Parameters {
            wal_level: WalLevel::of(u32_of(data, 20)?)?,
            wal_log_hints: bool_of(data, 24)?,
        },
        0x80 => Effect::FullPageWrites(bool_of(data, 0)?),
        0x90 => Effect::Promotion { time: time_of(data)?, wal_level: level_at(16)? },
        0xA0 => Effect::HintImage,
        0xD0 => Effect::Overwrite { given_up: Lsn(u64_of(data, 0)?) },
        0xE0 if has_level => Effect::Redo { wal_level: WalLevel::of(u32_of(data, 0)?)? },
        // XLOG_NOOP, XLOG_NEXTOID, XLOG_BACKUP_END, XLOG_RESTORE_POINT, XLOG_FPI
        0x20 | 0x30 | 0x50 | 0x70 | 0xB0 => Effect::None,
        // XLOG_ASSIGN_LSN, XLOG_LOGICAL_DECODING_STATUS_CHANGE
        0xC0 | 0xF0 if format.major >= 19 => Effect::None,
        _ => Effect::Unknown,
    })
}

/// xl_xact_commit and xl_xact_abort in src/include/access/xact.h: optional parts in a fixed order, of which those up to the
/// relations matter.
fn transaction(info: u8, data: &[u8]) -> Result<Effect, Malformed> {
    const HAS_INFO: u8 = 0x80;
    const HAS_DATABASE: u32 = 1 << 0;
    const HAS_SUBTRANSACTIONS: u32 = 1 << 1;
    const HAS_RELATIONS: u32 = 1 << 2;
    match info & 0x70 {
        // commit, abort, and the same of prepared transactions
        0x00 | 0x20 | 0x30 | 0x40 => {}
        // XLOG_XACT_PREPARE, XLOG_XACT_ASSIGNMENT, XLOG_XACT_INVALIDATIONS: it goes on
        0x10 | 0x50 | 0x60 => return Ok(Effect::None),
        _ => return Ok(Effect::Unknown),
    }
    let time = time_of(data)?;
    let mut at = 8;
    let mut dropped = Vec::new();
    if info & HAS_INFO != 0 {
        let parts = u32_of(data, at)?;
        at += 4;
        if parts & HAS_DATABASE != 0 {
            at += 8;
        }
        if parts & HAS_SUBTRANSACTIONS != 0 {
            at = list_end(data, at, 4)?;
        }
        if parts & HAS_RELATIONS != 0 {
            let end = list_end(data, at, 12)?;
            let starts = (at + 4..end).step_by(12);
            dropped = starts.filter_map(|start| RelationFileLocator::parse(data, start)).collect();
        }
    }
    Ok(Effect::TransactionEnd { time, dropped })
}

/// Where a counted list ends that begins at `at`.
fn list_end(data: &[u8], at: usize, size: usize) -> Result<usize, Malformed> {
    let count = u32_of(data, at)? as usize;
    let end = count.checked_mul(size).and_then(|bytes| bytes.checked_add(at + 4)).ok_or(SHORT)?;
    if end <= data.len() { Ok(end) } else { Err(SHORT) }
}

/// src/include/catalog/storage_xlog.h
fn relation(kind: u8, data: &[u8]) -> Result<Effect, Malformed> {
    const TRUNCATE_HEAP: u32 = 0x0001;
    Ok(match kind {
        0x10 => {
            let fork = u8::try_from(u32_of(data, 12)?).ok().filter(|fork| *fork <= MAX_FORK);
            Effect::Created {
                locator: RelationFileLocator::parse(data, 0).ok_or(SHORT)?,
                fork: fork.ok_or(Malformed("the fork of a new file is unknown"))?,
            }
        }
        0x20 => {
            let cuts_main = u32_of(data, 16)? & TRUNCATE_HEAP != 0;
            Effect::Truncated {
                locator: RelationFileLocator::parse(data, 4).ok_or(SHORT)?,
                blocks: cuts_main.then(|| u32_of(data, 0)).transpose()?,
            }
        }
        _ => Effect::Unknown,
    })
}

/// src/include/commands/dbcommands_xlog.h; before 15 the second kind was the removal.
fn database(kind: u8, data: &[u8], format: Format) -> Result<Effect, Malformed> {
    let drop = if format.major >= 15 { 0x20 } else { 0x10 };
    let database = u32_of(data, 0)?;
    Ok(match kind {
        kind if kind == drop => Effect::Database { tablespace: None, database },
        0x00 | 0x10 => Effect::Database { tablespace: Some(u32_of(data, 4)?), database },
        _ => Effect::Unknown,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wal::page::MAGICS;

    fn header(resource_manager: u8, info: u8) -> RecordHeader {
        RecordHeader { length: 100, xid: 1, previous: Lsn(0), info, resource_manager, crc: 0 }
    }

    fn of(resource_manager: u8, info: u8, numbers: &[u32], magic: u16) -> Result<Effect, Malformed> {
        let data: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        effect(&header(resource_manager, info), &data, Format::of(magic).expect("known"))
    }

    const RELATION: RelationFileLocator =
        RelationFileLocator { tablespace: 1663, database: 5, relation: 16384 };

    #[test]
    fn ends_of_transactions_name_the_files_that_go() {
        let end = |time, dropped: &[RelationFileLocator]| {
            Ok(Effect::TransactionEnd { time, dropped: dropped.to_vec() })
        };
        for info in [0x00, 0x20, 0x30, 0x40] {
            assert_eq!(of(rmgr::XACT, info, &[7, 0], 0xD110), end(7, &[]));
            // database, two subtransactions, one relation, invalidation messages, which are not read
            let parts = [7, 0, 0b1111, 5, 1663, 2, 100, 101, 1, 1663, 5, 16384, 9];
            assert_eq!(of(rmgr::XACT, info | 0x80, &parts, 0xD110), end(7, &[RELATION]));
            assert_eq!(of(rmgr::XACT, info | 0x81, &parts, 0xD110), end(7, &[RELATION]), "special");
            for cut in [1, 2, 6, 8, 9, 11] {
                assert!(of(rmgr::XACT, info | 0x80, &parts[..cut], 0xD110).is_err(), "{cut}");
            }
        }
        let endless = [7, 0, 0b10, u32::MAX];
        assert!(of(rmgr::XACT, 0x80, &endless, 0xD110).is_err());
        assert_eq!(of(rmgr::XACT, 0x50, &[], 0xD110), Ok(Effect::None), "it goes on");
        assert_eq!(of(rmgr::XACT, 0x70, &[], 0xD110), Ok(Effect::Unknown));
    }

    #[test]
    fn files_that_are_made_and_cut_are_named() {
        let numbers = [1663, 5, 16384, 0];
        assert_eq!(
            of(rmgr::SMGR, 0x11, &numbers, 0xD110),
            Ok(Effect::Created { locator: RELATION, fork: 0 })
        );
        assert!(of(rmgr::SMGR, 0x11, &[1663, 5, 16384, 4], 0xD110).is_err());
        let cut = |flags| of(rmgr::SMGR, 0x21, &[10, 1663, 5, 16384, flags], 0xD110);
        assert_eq!(cut(7), Ok(Effect::Truncated { locator: RELATION, blocks: Some(10) }));
        assert_eq!(cut(2), Ok(Effect::Truncated { locator: RELATION, blocks: None }));
        assert_eq!(of(rmgr::SMGR, 0x31, &[0; 8], 0xD110), Ok(Effect::Unknown));
    }

    #[test]
    fn databases_are_made_and_removed_in_the_words_of_each_version() {
        let made = Ok(Effect::Database { tablespace: Some(1663), database: 16400 });
        let gone = Ok(Effect::Database { tablespace: None, database: 16400 });
        for magic in MAGICS {
            let is_new = magic >= 0xD110;
            let says = |kind: u8| of(rmgr::DBASE, kind | 0x01, &[16400, 1663, 1, 1663], magic);
            assert_eq!(says(0x00), made);
            assert_eq!(says(0x10), if is_new { made.clone() } else { gone.clone() });
            assert_eq!(says(0x20), if is_new { gone.clone() } else { Ok(Effect::Unknown) });
        }
    }

    #[test]
    fn parameters_and_checkpoints_are_read() {
        // redo, timelines, full_page_writes, and from 17 on wal_level
        let checkpoint = [0x200_0028, 1, 3, 3, 1, 1, 0, 0];
        for (magic, wal_level) in
            [(0xD113, None), (0xD118, Some(WalLevel::Replica)), (0xD122, Some(WalLevel::Replica))]
        {
            let found = Effect::Checkpoint {
                redo: Lsn(0x1_0200_0028),
                timeline: 3,
                full_page_writes: true,
                wal_level,
                is_shutdown: false,
            };
            assert_eq!(of(rmgr::XLOG, 0x10, &checkpoint, magic), Ok(found));
        }
        let parameters = [100, 8, 10, 0, 64, 2, 1];
        assert_eq!(
            of(rmgr::XLOG, 0x60, &parameters, 0xD110),
            Ok(Effect::Parameters { wal_level: WalLevel::Logical, wal_log_hints: true })
        );
        assert!(of(rmgr::XLOG, 0x60, &[1, 1, 1, 1, 1, 9, 0], 0xD110).is_err(), "no such level");
        assert_eq!(of(rmgr::XLOG, 0xE0, &[0], 0xD116), Ok(Effect::Redo { wal_level: WalLevel::Minimal }));
        assert_eq!(of(rmgr::XLOG, 0xE0, &[0], 0xD113), Ok(Effect::Unknown), "not before 17");
        assert_eq!(
            of(rmgr::XLOG, 0x90, &[9, 0, 2, 1, 1], 0xD116),
            Ok(Effect::Promotion { time: 9, wal_level: Some(WalLevel::Replica) })
        );
        for kind in [0xC0, 0xF0] {
            assert_eq!(of(rmgr::XLOG, kind, &[0], 0xD118), Ok(Effect::Unknown));
            assert_eq!(of(rmgr::XLOG, kind, &[0], 0xD122), Ok(Effect::None), "a number, a switch: no page");
        }
    }

    #[test]
    fn what_an_extension_writes_is_unknown() {
        assert_eq!(of(130, 0x00, &[], 0xD110), Ok(Effect::Unknown));
        // a heap record, and one that claims to change files
        assert_eq!(of(10, 0x00, &[], 0xD110), Ok(Effect::None));
        assert_eq!(of(10, 0x01, &[], 0xD110), Ok(Effect::Unknown));
    }

    proptest! {
        #[test]
        fn any_data_has_an_effect_or_is_refused(
            data in proptest::collection::vec(any::<u8>(), 0..100),
            manager in prop_oneof![0_u8..6, any::<u8>()], info: u8, magic in 0..MAGICS.len(),
        ) {
            let format = Format::of(MAGICS[magic]).expect("known");
            let _ = effect(&header(manager, info), &data, format);
        }
    }
}
