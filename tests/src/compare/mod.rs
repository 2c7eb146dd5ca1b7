//! Two stopped clusters, file by file and page by page.
//!
//! The standby must have replayed everything the primary wrote, shutdown checkpoint included: stop the
//! primary first (it sends that before it ends), then the standby. What a standby legitimately lacks or
//! has of its own is named here one by one; every other difference is reported with its page number.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::cluster::{Cluster, Stop};
use pgdata::page;

/// Bytes in a page.
pub const PAGE: usize = 8192;

/// The result of a comparison.
#[derive(Debug, Default)]
pub struct Difference {
    /// What must not be: missing, extra or differing files, with page numbers.
    pub faults: Vec<String>,
    /// Pages that are equal only after masking what is not WAL-logged (hint bits and the like).
    pub masked_pages: Vec<String>,
    /// How many files and pages were compared.
    pub files: usize,
    pub pages: usize,
}

impl Difference {
    /// Insists that there is none, hint bits aside.
    #[track_caller]
    pub fn assert_none(&self) -> &Self {
        assert!(self.faults.is_empty(), "the standby differs:\n{}", self.faults.join("\n"));
        assert!(self.files > 500 && self.pages > 500, "compared next to nothing: {self:?}");
        self
    }

    /// Insists that there is none at all: for primaries that were at rest ([`crate::workload::settle`]).
    #[track_caller]
    pub fn assert_identical(&self) {
        self.assert_none();
        assert!(self.masked_pages.is_empty(), "pages differ:\n{}", self.masked_pages.join("\n"));
    }
}

/// Stops both, the primary first, and compares them.
#[track_caller]
pub fn stop_and_compare(primary: &Cluster, standby: &Cluster) -> Difference {
    standby.wait_for_replay(primary);
    primary.stop(Stop::Fast);
    standby.stop(Stop::Fast);
    clusters(primary, standby)
}

/// Compares two running clusters, of which the primary is at rest: both write out all they have.
#[track_caller]
pub fn running(primary: &Cluster, standby: &Cluster) -> Difference {
    standby.wait_for_replay(primary);
    primary.execute("CHECKPOINT");
    // nothing may be written after it
    standby.wait_for_what_is_flushed(primary);
    standby.execute("CHECKPOINT");
    directories(primary.directory(), standby.directory())
}

/// Compares two stopped clusters.
#[track_caller]
pub fn clusters(primary: &Cluster, standby: &Cluster) -> Difference {
    for label in
        ["Database system identifier", "Latest checkpoint location", "Latest checkpoint's TimeLineID"]
    {
        let (a, b) = (primary.control(label), standby.control(label));
        assert_eq!(a, b, "{label}: {} and {}", primary.name(), standby.name());
    }
    directories(primary.directory(), standby.directory())
}

/// Whether this is the first segment of a relation's main fork. Of a relation that is dropped it stays behind, empty, until the
/// next checkpoint (mdunlink in md.c). Was it dropped just before the backup's checkpoint began, the file is copied, by
/// pg_basebackup too, and no WAL that is replayed removes it.
fn is_main_fork(name: &Path) -> bool {
    let is_number = |name: &std::ffi::OsStr| {
        name.to_str().is_some_and(|name| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit()))
    };
    name.file_name().is_some_and(is_number) && name.parent().and_then(Path::file_name).is_some_and(is_number)
}

/// Compares two data directories.
pub fn directories(primary: &Path, standby: &Path) -> Difference {
    let (ours, theirs) = (files_of(primary), files_of(standby));
    let unlogged = unlogged_forks(&ours);
    let mut difference = Difference::default();
    for (name, path) in ours.iter().filter(|(name, _)| !theirs.contains_key(*name)) {
        if !primary_only(name) && !unlogged.contains(name) && !is_empty_map(name, path) {
            difference.faults.push(format!("{}: missing", name.display()));
        }
    }
    for (name, path) in theirs.iter().filter(|(name, _)| !ours.contains_key(*name)) {
        let bytes = fs::metadata(path).map_or(0, |metadata| metadata.len());
        let dropped_when_the_backup_began = bytes == 0 && is_main_fork(name);
        if !standby_only(name, &ours) && !dropped_when_the_backup_began {
            difference.faults.push(format!("{}: extra, {bytes} bytes", name.display()));
        }
    }
    for (name, path) in &ours {
        if let Some(other) = theirs.get(name)
            && !content_differs_by_right(name)
            && !unlogged.contains(name)
        {
            compare_files(name, path, other, &mut difference);
        }
    }
    difference
}

/// Directories whose content is a server's own business; the directories themselves must be there.
const PRIVATE: [&str; 10] = [
    "pg_wal",
    "pg_replslot",
    "pg_dynshmem",
    "pg_notify",
    "pg_serial",
    "pg_snapshots",
    "pg_stat",
    "pg_stat_tmp",
    "pg_subtrans",
    "log",
];

fn is_private(name: &Path) -> bool {
    PRIVATE.iter().any(|directory| name.starts_with(directory) && name != Path::new(directory))
}

fn is_empty_map(name: &Path, path: &Path) -> bool {
    let is_empty = |content: Vec<u8>| content.chunks(PAGE).all(page::is_empty_map);
    is_map(name) && fs::read(path).is_ok_and(is_empty)
}

fn is_map(name: &Path) -> bool {
    file_name(name).ends_with("_vm")
}

/// A visibility map without the pages at its end that say nothing: they come without WAL.
fn told_by_map(content: &[u8]) -> &[u8] {
    let pages = content.chunks(PAGE).rposition(|page| !page::is_empty_map(page)).map_or(0, |last| last + 1);
    &content[..content.len().min(pages * PAGE)]
}

/// Whether a relation is longer than the standby's by pages that nothing was written to. Bulk inserts extend it by more than they
/// need (RelationAddBlocks in hio.c: who has added 8 pages adds 8 more; before 16 it took others that wait), without WAL.
fn ends_in_new_pages(content: &[u8], of_standby: usize) -> bool {
    of_standby.is_multiple_of(PAGE)
        && content.len() > of_standby
        && content[of_standby..].iter().all(|byte| *byte == 0)
}

fn primary_only(name: &Path) -> bool {
    // A free space map is written without WAL: one made after the copy is the primary's alone.
    is_private(name)
        || file_name(name).ends_with("_fsm")
        || is_init_file(name)
        || is_run_file(name)
        || is_temporary(name)
        || is_of_one_recovery(name)
}

fn standby_only(name: &Path, primary: &BTreeMap<PathBuf, PathBuf>) -> bool {
    // ... and a standby makes one for a table it still has.
    let known_fsm = file_name(name)
        .strip_suffix("_fsm")
        .is_some_and(|relation| primary.contains_key(&name.with_file_name(relation)));
    is_private(name)
        || known_fsm
        || is_init_file(name)
        || is_run_file(name)
        || is_temporary(name)
        || is_of_one_recovery(name)
}

/// What a recovery, or a base backup long ago, left in one of the two directories.
fn is_of_one_recovery(name: &Path) -> bool {
    const LEFT: [&str; 6] = [
        "standby.signal",
        "myrecovery.conf",
        "backup_label.old",
        "tablespace_map.old",
        "log",
        "backup_manifest",
    ];
    LEFT.iter().any(|own| name == Path::new(own))
}

fn content_differs_by_right(name: &Path) -> bool {
    // pg_control holds the state of its server; postgresql.conf is kept, postgresql.auto.conf cleaned.
    const OWN: [&str; 3] = ["global/pg_control", "postgresql.conf", "postgresql.auto.conf"];
    primary_only(name) || OWN.iter().any(|own| name == Path::new(own))
}

/// Caches of the catalogs, which every server makes for itself.
fn is_init_file(name: &Path) -> bool {
    file_name(name) == "pg_internal.init"
}

/// Where big sorts spill to, made when first needed; and the relations of sessions.
fn is_temporary(name: &Path) -> bool {
    let own = file_name(name);
    let is_relation = own
        .strip_prefix('t')
        .and_then(|rest| rest.split_once('_'))
        .is_some_and(|(session, _)| !session.is_empty() && session.bytes().all(|byte| byte.is_ascii_digit()));
    own == "pgsql_tmp" || is_relation
}

fn is_run_file(name: &Path) -> bool {
    ["postmaster.pid", "postmaster.opts", "current_logfiles"].iter().any(|own| name == Path::new(own))
}

fn file_name(name: &Path) -> &str {
    name.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

/// The forks of unlogged relations, which a standby has not: all but the init fork that marks them.
fn unlogged_forks(files: &BTreeMap<PathBuf, PathBuf>) -> BTreeSet<PathBuf> {
    let marked: BTreeSet<PathBuf> = files
        .keys()
        .filter_map(|name| Some(name.with_file_name(file_name(name).strip_suffix("_init")?)))
        .collect();
    files
        .keys()
        .filter(|name| {
            let own = file_name(name);
            let relation = own.split(['_', '.']).next().unwrap_or(own);
            !own.ends_with("_init") && marked.contains(&name.with_file_name(relation))
        })
        .cloned()
        .collect()
}

/// Every path below `root`, through the links of tablespaces, by its name below `root`.
fn files_of(root: &Path) -> BTreeMap<PathBuf, PathBuf> {
    let mut files = BTreeMap::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(name) = pending.pop() {
        let directory = root.join(&name);
        let entries = fs::read_dir(&directory).unwrap_or_else(|e| panic!("{}: {e}", directory.display()));
        for entry in entries {
            let path = entry.expect("a readable directory").path();
            let name = name.join(path.file_name().expect("a name"));
            // metadata() follows links: pg_tblspc and a linked pg_wal.
            if fs::metadata(&path).is_ok_and(|metadata| metadata.is_dir()) {
                pending.push(name.clone());
            }
            files.insert(name, path);
        }
    }
    files
}

fn compare_files(name: &Path, ours: &Path, theirs: &Path, difference: &mut Difference) {
    let (is_directory, other) = (ours.is_dir(), theirs.is_dir());
    if is_directory || other {
        if is_directory != other {
            difference.faults.push(format!("{}: a directory on one side only", name.display()));
        }
        return;
    }
    let read = |path: &Path| fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let (a, b) = (read(ours), read(theirs));
    difference.files += 1;
    difference.pages += a.len().div_ceil(PAGE);
    if a == b {
        return;
    }
    let (mut a, b) = match a.len() == b.len() || !is_map(name) {
        true => (a.as_slice(), b.as_slice()),
        false => (told_by_map(&a), told_by_map(&b)),
    };
    if is_relation(name) && ends_in_new_pages(a, b.len()) {
        a = &a[..b.len()];
        difference.masked_pages.push(format!("{}: new pages at its end", name.display()));
    }
    if a.len() != b.len() {
        difference.faults.push(format!("{}: {} and {} bytes", name.display(), a.len(), b.len()));
        return;
    }
    for (number, (x, y)) in a.chunks(PAGE).zip(b.chunks(PAGE)).enumerate() {
        if x == y {
            continue;
        }
        if is_relation(name) && page::equal_when_masked(x, y, is_map(name)) {
            difference.masked_pages.push(format!("{}: page {number}", name.display()));
        } else {
            let byte = x.iter().zip(y).position(|(p, q)| p != q).unwrap_or_default();
            let fault = format!("{}: page {number} differs from its byte {byte} on", name.display());
            difference.faults.push(fault);
        }
    }
}

/// A fork of a relation: its name begins with a number and it lies below base, global or pg_tblspc.
fn is_relation(name: &Path) -> bool {
    ["base", "global", "pg_tblspc"].iter().any(|top| name.starts_with(top))
        && file_name(name).starts_with(|c: char| c.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &[u8])]) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a directory");
        for (name, content) in files {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().expect("a parent")).expect("directories");
            fs::write(path, content).expect("a file");
        }
        root
    }

    #[test]
    fn names_missing_extra_and_differing_pages() {
        let mut changed = vec![7_u8; 3 * PAGE];
        changed[2 * PAGE + 100] = 8;
        let one = tree(&[("base/1/10", &[7; 3 * PAGE]), ("base/1/11", b"x"), ("pg_wal/0001", b"")]);
        let other = tree(&[
            ("base/1/10", &changed),
            ("base/1/12", b"x"),
            ("base/1/13", b""),
            ("base/1/13_fsm", b""),
            ("standby.signal", b""),
            ("pg_wal/2", b""),
        ]);
        let faults = directories(one.path(), other.path()).faults;
        assert_eq!(
            faults,
            [
                "base/1/11: missing",
                "base/1/12: extra, 1 bytes",
                "base/1/13_fsm: extra, 0 bytes",
                "base/1/10: page 2 differs from its byte 100 on"
            ]
        );
    }

    #[test]
    fn an_empty_file_is_what_a_dropped_relation_leaves() {
        assert!(is_main_fork(Path::new("base/1/13")) && is_main_fork(Path::new("pg_tblspc/1/PG_15_2/3/13")));
        assert!(!is_main_fork(Path::new("base/1/13_fsm")) && !is_main_fork(Path::new("base/1/13.1")));
    }

    #[test]
    fn a_map_may_end_in_pages_that_say_nothing() {
        let mut bits = vec![0; 2 * PAGE];
        bits[100] = 1;
        let longer = tree(&[("base/1/10_vm", &bits), ("base/1/11_vm", &[0; PAGE])]);
        let shorter = tree(&[("base/1/10_vm", &bits[..PAGE]), ("base/1/11_vm", b"")]);
        assert_eq!(directories(longer.path(), shorter.path()).faults, Vec::<String>::new());
        bits[PAGE + 100] = 1;
        let wrong = tree(&[("base/1/10_vm", &bits), ("base/1/11_vm", b"")]);
        assert_eq!(directories(wrong.path(), shorter.path()).faults, ["base/1/10_vm: 16384 and 8192 bytes"]);
    }

    #[test]
    fn a_relation_of_the_primary_may_end_in_new_pages() {
        let mut pages = vec![7; PAGE];
        pages.resize(3 * PAGE, 0);
        let longer = tree(&[("base/1/10", &pages)]);
        let shorter = tree(&[("base/1/10", &pages[..PAGE])]);
        let difference = directories(longer.path(), shorter.path());
        assert_eq!(difference.faults, Vec::<String>::new());
        assert_eq!(difference.masked_pages, ["base/1/10: new pages at its end"]);
        // not the standby's
        let faults = directories(shorter.path(), longer.path()).faults;
        assert_eq!(faults, ["base/1/10: 8192 and 24576 bytes"]);
        pages[3 * PAGE - 1] = 1;
        let written = tree(&[("base/1/10", &pages)]);
        let faults = directories(written.path(), shorter.path()).faults;
        assert_eq!(faults, ["base/1/10: 24576 and 8192 bytes"]);
        pages[3 * PAGE - 1] = 0;
        pages[100] = 8;
        let other = tree(&[("base/1/10", &pages)]);
        let faults = directories(other.path(), shorter.path()).faults;
        assert_eq!(faults, ["base/1/10: page 0 differs from its byte 100 on"]);
    }

    #[test]
    fn unlogged_relations_count_by_their_init_fork() {
        let one = tree(&[
            ("base/1/10", b"a"),
            ("base/1/10.1", b"a"),
            ("base/1/10_init", b""),
            ("base/1/10_vm", b""),
        ]);
        let other = tree(&[("base/1/10_init", b"")]);
        assert_eq!(directories(one.path(), other.path()).faults, Vec::<String>::new());
        let wrong = tree(&[("base/1/10_init", b"other")]);
        assert_eq!(directories(one.path(), wrong.path()).faults, ["base/1/10_init: 0 and 5 bytes"]);
    }
}
