//! The files of the primary's summarizer (PostgreSQL 17 and later) as a source of the map: they tell of the same blocks as
//! the WAL, which need not be there any more. Nothing but blocks: no end of a transaction, no parameter.

use std::fs::{self, File};
use std::io::{self, BufReader};
use std::path::Path;

use pgdata::wal::Lsn;
use pgdata::wal::record::MAIN_FORK;
use pgdata::wal_summary::{self, Invalid, Name};

use super::block_map::BlockMap;
use super::coverage::{Coverage, of_history};
use super::lineage::Lineage;
use super::reason::Reason;
use crate::error::{Error, Result};
use crate::sys::cancel::Cancel;

/// Where they lie in `pg_wal`.
pub const SUMMARIES: &str = "summaries";

/// What came of reading them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summaries {
    /// How many were read.
    pub read: u32,
    /// Which could not be used, and why: what they tell of is missing.
    pub unusable: Vec<String>,
}

impl Summaries {
    /// Where WAL is missing: names the summaries that might have stood for it, behind the other reasons.
    #[must_use]
    pub fn explain(&self, mut reasons: Vec<Reason>) -> Vec<Reason> {
        let is_missing = reasons.iter().any(|reason| matches!(reason, Reason::SourceHole { .. }));
        if is_missing && let Some(first) = self.unusable.first().cloned() {
            reasons.push(Reason::UnusableSummaries { count: self.unusable.len(), first });
        }
        reasons
    }
}

/// Reads the summaries that tell of a part of a history, adds what they list to the map, and what they tell of to the
/// coverage. A directory that is not there holds none.
pub fn read(
    directory: &Path,
    history: &Lineage,
    (from, to): (Lsn, Lsn),
    map: &mut BlockMap,
    coverage: &mut Coverage,
    cancel: &Cancel,
) -> Result<Summaries> {
    let mut found = Summaries::default();
    for (file_name, name) in list(directory)? {
        let is_needed = of_history(&name, history).is_some_and(|(begin, end)| begin < to && from < end);
        if !is_needed {
            continue;
        }
        cancel.check()?;
        match read_one(&directory.join(&file_name), map) {
            Ok(()) => {
                coverage.add_summary(&name, history);
                found.read += 1;
            }
            // what it has listed so far stays: more than changed may be listed
            Err(invalid) => found.unusable.push(format!("{file_name}: {invalid}")),
        }
    }
    Ok(found)
}

fn list(directory: &Path) -> Result<Vec<(String, Name)>> {
    let failed = |error: io::Error| Error::at("read directory", directory, &error);
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let file_name = entry.map_err(failed)?.file_name();
        let Some(file_name) = file_name.to_str() else { continue };
        names.extend(Name::parse(file_name).map(|name| (file_name.to_owned(), name)));
    }
    names.sort_by_key(|(_, name)| *name);
    Ok(names)
}

fn read_one(path: &Path, map: &mut BlockMap) -> std::result::Result<(), Invalid> {
    let file = BufReader::with_capacity(1 << 16, File::open(path)?);
    let mut limits = Vec::new();
    wal_summary::read(
        file,
        |fork| {
            if fork.fork == MAIN_FORK
                && let Some(limit) = fork.limit
            {
                limits.push((fork.locator, limit));
            }
        },
        |fork, block| {
            if fork.fork == MAIN_FORK {
                map.add(fork.locator, block);
            }
        },
    )?;
    // a database that was made or removed is the relation 0 of it, here as there
    limits.into_iter().for_each(|(locator, limit)| map.limit(locator, limit));
    Ok(())
}

#[cfg(test)]
mod tests {
    use pgdata::history::Ancestor;
    use pgdata::wal::record::RelationFileLocator;

    use super::*;

    /// A summary with entries of relation, fork, limit and blocks (src/common/blkreftable.c).
    fn summary(entries: &[(u32, u32, u32, &[u16])]) -> Vec<u8> {
        let mut bytes = 0x652B_137B_u32.to_le_bytes().to_vec();
        for (relation, fork, limit, blocks) in entries {
            let numbers = [1663, 5, *relation, *fork, *limit, 1];
            bytes.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
            bytes.extend(u16::try_from(blocks.len()).expect("few").to_le_bytes());
            bytes.extend(blocks.iter().flat_map(|block| block.to_le_bytes()));
        }
        bytes.extend([0; 24]);
        let crc = crc32c::crc32c(&bytes);
        bytes.extend(crc.to_le_bytes());
        bytes
    }

    #[test]
    fn summaries_list_blocks_and_tell_what_they_cover() {
        let directory = tempfile::tempdir().expect("a directory");
        let write = |timeline: u32, start: u64, end: u64, content: &[u8]| {
            let name = format!("{timeline:08X}{start:016X}{end:016X}.summary");
            fs::write(directory.path().join(name), content).expect("a file");
        };
        write(1, 50, 120, &summary(&[(16384, 0, u32::MAX, &[3]), (16385, 2, 0, &[4]), (0, 0, 0, &[])]));
        write(2, 100, 200, &summary(&[(16386, 0, 7, &[9])]));
        write(1, 10, 40, &summary(&[(16387, 0, u32::MAX, &[1])]));
        let mut damaged = summary(&[(16388, 0, u32::MAX, &[1])]);
        damaged[40] ^= 1;
        write(2, 200, 300, &damaged);
        fs::write(directory.path().join("temp.summary"), "x").expect("a file");
        let history = Lineage::new(2, &[Ancestor { timeline: 1, end: Lsn(100) }]);
        let (mut map, mut coverage) = (BlockMap::default(), Coverage::default());
        let range = (Lsn(60), Lsn(300));
        let found = read(directory.path(), &history, range, &mut map, &mut coverage, &Cancel::new());
        let found = found.expect("readable");
        assert_eq!((found.read, found.unusable.len()), (2, 1), "{found:?}");
        assert_eq!(coverage.first_hole(Lsn(60), Lsn(300)), Some(Lsn(200)));
        let hole = || Reason::SourceHole { at: Lsn(200), from: Lsn(60), to: Lsn(300) };
        let reasons = found.explain(vec![hole()]);
        let [other, Reason::UnusableSummaries { count: 1, first }] = reasons.as_slice() else {
            panic!("{reasons:?}")
        };
        assert!(*other == hole() && first.starts_with("0000000200000000000000C8"), "{first}");
        assert_eq!(found.explain(vec![Reason::FsyncOff]), [Reason::FsyncOff], "nothing is missing");
        assert_eq!(Summaries::default().explain(vec![hole()]), [hole()]);
        let lists = |relation, block| {
            map.lists(RelationFileLocator { tablespace: 1663, database: 6, relation }, block)
                || map
                    .entries
                    .get(&RelationFileLocator { tablespace: 1663, database: 5, relation })
                    .is_some_and(|entry| entry.limit <= block || entry.blocks.contains(block))
        };
        assert!(
            lists(16384, 3) && !lists(16384, 4) && !lists(16385, 4) && lists(16386, 7) && !lists(16387, 1)
        );
        assert!(map.lists_database(1663, 5) && !map.lists_database(1663, 6));
        let none =
            read(&directory.path().join("none"), &history, range, &mut map, &mut coverage, &Cancel::new());
        assert_eq!(none.expect("empty"), Summaries::default());
    }
}
