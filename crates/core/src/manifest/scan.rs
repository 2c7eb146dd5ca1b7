//! Listing the primary's data directory while the server runs.
//!
//! The only place that names `walkdir`. Files come and go during the walk: what vanishes between
//! being listed and being looked at is left out (its removal is in the WAL that the standby replays) if what names it has gone
//! as well ([`super::dropped`]), what appears later is created by replay.
//!
//! One thread walks, which reads directories, and others look at what it finds, which may wait for a disk for every file.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::ScopedJoinHandle;

use walkdir::{DirEntry, WalkDir};

use crate::error::{Error, Kind, Result};
use crate::manifest::Side;
use crate::manifest::dropped::{self, Directories, is_dropped, is_of_postgresql};
use crate::manifest::exclude::{Rules, Verdict};
use crate::manifest::list::FileList;
use crate::manifest::order;
use crate::manifest::path::RelPath;
use crate::manifest::plan::{Directory, File, Plan, Tablespace};
use crate::sys::FileId;
use crate::sys::cancel::Cancel;
use crate::sys::lock::lock;

/// Threads that look at files.
const THREADS: usize = 4;

/// Entries that are handed to one of them at once.
const BATCH: usize = 256;

/// Batches that wait for them.
const BATCHES: usize = 8;

/// What to list.
pub struct Source<'a> {
    /// The data directory.
    pub data_directory: &'a Path,
    /// `PG_15_202209061`: the only directory of a tablespace that belongs to this cluster.
    pub tablespace_version_directory: &'a str,
    /// Tablespaces that lie outside the data directory.
    pub tablespaces: &'a [Tablespace],
    /// What stays behind.
    pub rules: &'a Rules,
}

/// Lists everything that goes to the standby. Call it after `pg_backup_start` returned (S4). The files of a directory stand
/// together, by their names; those of tablespaces come last.
pub fn scan(source: &Source<'_>, cancel: &Cancel) -> Result<Plan> {
    let mut plan = Plan { tablespaces: source.tablespaces.to_vec(), ..Plan::default() };
    walk(source, source.data_directory, None, cancel, &mut plan)?;
    for tablespace in source.tablespaces {
        let link = format!("pg_tblspc/{}", tablespace.oid);
        let prefix = RelPath::parse(&format!("{link}/{}", source.tablespace_version_directory))?;
        let root = Path::new(&tablespace.source).join(source.tablespace_version_directory);
        walk(source, &root, Some(&prefix), cancel, &mut plan)?;
    }
    Directories::of(source.data_directory, &plan).demand_mounted()?;
    Ok(plan)
}

/// The tablespaces outside a data directory: OID and location, as the links in pg_tblspc say. Not from
/// the catalog, whose snapshot may be older than the backup. A location that is not UTF-8 is an error: it could not travel.
pub fn tablespace_links(data_directory: &Path, side: Side) -> Result<Vec<(u32, String)>> {
    let text = |(oid, location): (u32, PathBuf)| match location.into_os_string().into_string() {
        Ok(location) => Ok((oid, location)),
        Err(location) => Err(Error::new(
            Kind::Unsupported,
            format!("the location of tablespace {oid} on the {side} is not UTF-8: {location:?}"),
        )
        .detail("Where tablespaces lie is told to the other host, and mapped, as text in UTF-8.")
        .hint(format!(
            "Stop the server there, rename the directory, and let the link \"{}\" lead to its new name.",
            data_directory.join("pg_tblspc").join(oid.to_string()).display()
        ))),
    };
    tablespace_paths(data_directory, side)?.into_iter().map(text).collect()
}

/// The same, whatever bytes a location has.
pub fn tablespace_paths(data_directory: &Path, side: Side) -> Result<Vec<(u32, PathBuf)>> {
    let directory = data_directory.join("pg_tblspc");
    let failed = |error| unreadable(&directory, side, &error);
    let mut links = Vec::new();
    for entry in fs::read_dir(&directory).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let Some(oid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        match fs::read_link(entry.path()) {
            Ok(location) => links.push((oid, location)),
            // a directory: in place
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {}
            // dropped meanwhile
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
    }
    links.sort();
    Ok(links)
}

/// An entry that the walk came across, and what it is called on the wire.
type Entry = (DirEntry, RelPath);

/// What was found below one root, in the order in which it was looked at.
#[derive(Default)]
struct Found {
    files: FileList,
    directories: Vec<(Directory, FileId)>,
    /// Each with the path that it is about.
    warnings: Vec<(String, String)>,
}

fn walk(
    source: &Source<'_>,
    root: &Path,
    prefix: Option<&RelPath>,
    cancel: &Cancel,
    plan: &mut Plan,
) -> Result<()> {
    let found = Mutex::new(Found::default());
    let (hand_over, batches) = sync_channel(BATCHES);
    let batches = Mutex::new(batches);
    let has_failed = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let start = |_| {
            let thread = std::thread::Builder::new().name("scan".to_owned());
            let look = || look_at_all(source.data_directory, &batches, &found, &has_failed);
            thread.spawn_scoped(scope, look).map_err(|error| Error::no_thread(&error))
        };
        let lookers: Vec<_> = (0..THREADS).map(start).collect();
        let walk = Walk { source, root, prefix, cancel, found: &found, has_failed: &has_failed };
        let walked = if lookers.iter().any(Result::is_ok) { walk.list(&hand_over) } else { Ok(()) };
        drop(hand_over);
        let panicked =
            |_| Err(Error::new(Kind::Internal, "a thread that lists the primary's files panicked"));
        let join = |looker: Result<ScopedJoinHandle<'_, _>>| looker?.join().unwrap_or_else(panicked);
        // all are waited for, whatever the first one says
        lookers.into_iter().map(join).fold(walked, Result::and)
    })?;
    let found = found.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    found.add_to(plan);
    Ok(())
}

/// The walk through one root.
struct Walk<'a> {
    source: &'a Source<'a>,
    root: &'a Path,
    prefix: Option<&'a RelPath>,
    cancel: &'a Cancel,
    found: &'a Mutex<Found>,
    has_failed: &'a AtomicBool,
}

impl Walk<'_> {
    /// Hands over what is to be looked at.
    fn list(&self, hand_over: &SyncSender<Vec<Entry>>) -> Result<()> {
        let Walk { source, root, prefix, .. } = *self;
        let inside: HashSet<RelPath> =
            source.tablespaces.iter().filter_map(|space| inside(source, space)).collect();
        let mut batch = Vec::with_capacity(BATCH);
        let mut entries = WalkDir::new(root).follow_links(true).into_iter();
        let mut seen = 0_u32;
        while let Some(entry) = entries.next() {
            seen = seen.wrapping_add(1);
            if seen.is_multiple_of(1024) {
                self.cancel.check()?;
            }
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) => {
                    self.tolerate(&error)?;
                    continue;
                }
            };
            let Some(path) = relative(root, prefix, entry.path())? else {
                continue;
            };
            // a tablespace within the data directory is walked as a tablespace
            let verdict = if prefix.is_none() && inside.contains(&path) {
                Verdict::Skip
            } else {
                source.rules.judge(&path)
            };
            // tablespaces are walked on their own; one made since they were listed is made by replay
            let is_tablespace = path.parent() == Some("pg_tblspc") && entry.path_is_symlink();
            if verdict == Verdict::Skip || is_tablespace {
                if entry.file_type().is_dir() {
                    entries.skip_current_dir();
                }
                continue;
            }
            if entry.path_is_symlink() && path.as_str() != "pg_wal" {
                self.warn(&path, format!("symbolic link \"{path}\" is copied as what it points to"));
            }
            if verdict == Verdict::Empty && entry.file_type().is_dir() {
                entries.skip_current_dir();
            }
            batch.push((entry, path));
            if batch.len() == BATCH {
                if self.has_failed.load(Ordering::Relaxed) {
                    // the thread that failed says why
                    return Ok(());
                }
                // they take what comes until this end is closed
                let _ = hand_over.send(std::mem::replace(&mut batch, Vec::with_capacity(BATCH)));
            }
        }
        let _ = hand_over.send(batch);
        Ok(())
    }

    fn warn(&self, path: &RelPath, warning: String) {
        lock(self.found).warnings.push((path.to_string(), warning));
    }
}

/// Looks at what the walk hands over, until it ends.
fn look_at_all(
    data_directory: &Path,
    batches: &Mutex<Receiver<Vec<Entry>>>,
    found: &Mutex<Found>,
    has_failed: &AtomicBool,
) -> Result<()> {
    let mut outcome = Ok(());
    loop {
        let batch = lock(batches).recv();
        let Ok(batch) = batch else { return outcome };
        // the walk must not wait for ever
        if outcome.is_ok() {
            outcome =
                look(data_directory, batch, found).inspect_err(|_| has_failed.store(true, Ordering::Relaxed));
        }
    }
}

fn look(data_directory: &Path, batch: Vec<Entry>, found: &Mutex<Found>) -> Result<()> {
    let mut seen = Vec::with_capacity(batch.len());
    for (entry, path) in batch {
        let metadata = match entry.metadata() {
            Err(error) if is_missing(&error) => {
                if !is_of_postgresql(&path) || is_dropped(data_directory, &path)? {
                    continue;
                }
                fs::metadata(entry.path())
            }
            found => found.map_err(io::Error::from),
        };
        match metadata {
            Ok(metadata) => {
                if metadata.file_type().is_file() {
                    demand_readable(entry.path(), &metadata)?;
                }
                seen.push((path, metadata));
            }
            Err(error) => return Err(unreadable(entry.path(), Side::Primary, &error)),
        }
    }
    let mut found = lock(found);
    for (path, metadata) in seen {
        let mode = metadata.permissions().mode() & 0o7777;
        let kind = metadata.file_type();
        if kind.is_dir() {
            found.directories.push((Directory { path, mode }, FileId::from(&metadata)));
        } else if kind.is_file() {
            found.files.push(&File { path, size: metadata.len(), mode });
        } else if kind.is_socket() || kind.is_fifo() || kind.is_block_device() || kind.is_char_device() {
            let warning = format!("special file \"{path}\" is not copied");
            found.warnings.push((path.to_string(), warning));
        }
    }
    Ok(())
}

impl Found {
    /// Adds everything in an order that does not depend on which thread was first.
    fn add_to(mut self, plan: &mut Plan) {
        self.directories.sort_unstable_by(|(one, _), (other, _)| one.path.cmp(&other.path));
        for (directory, identity) in self.directories {
            plan.directories.push(directory);
            plan.identities.push(identity);
        }
        self.warnings.sort_unstable();
        plan.warnings.extend(self.warnings.into_iter().map(|(_, warning)| warning));
        order::add_in_order(&self.files, &mut plan.files);
    }
}

/// Where a tablespace lies within the data directory, if it does.
fn inside(source: &Source<'_>, tablespace: &Tablespace) -> Option<RelPath> {
    let location = Path::new(&tablespace.source);
    // without an answer it is copied twice, as what it looks like
    let resolved = location.canonicalize().unwrap_or_else(|_| location.to_owned());
    let directory = source.data_directory.canonicalize().unwrap_or_else(|_| source.data_directory.to_owned());
    RelPath::parse(resolved.strip_prefix(directory).ok()?.to_str()?).ok()
}

/// Fails for a file that could not be read when its turn comes, in the middle of a run.
fn demand_readable(place: &Path, metadata: &fs::Metadata) -> Result<()> {
    const OWNER_MAY_READ: u32 = 0o400;
    let is_own = metadata.uid() == rustix::process::geteuid().as_raw();
    // true of nearly all, and costs no system call
    if is_own && metadata.mode() & OWNER_MAY_READ != 0 {
        return Ok(());
    }
    match rustix::fs::access(place, rustix::fs::Access::READ_OK) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
        Err(error) => Err(unreadable(place, Side::Primary, &error.into())),
    }
}

impl Walk<'_> {
    /// An entry the walk could not look at: gone meanwhile, or an operator's link that leads nowhere.
    fn tolerate(&self, error: &walkdir::Error) -> Result<()> {
        let place = error.path().unwrap_or(self.root);
        let path = relative(self.root, self.prefix, place)?;
        if path.as_ref().is_some_and(|path| {
            self.source.rules.judge(path) == Verdict::Skip || path.parent() == Some("pg_tblspc")
        }) {
            return Ok(());
        }
        if let Some(path) = path.filter(|_| is_missing(error)) {
            if is_of_postgresql(&path) {
                // else something came into its place since, which was not listed
                let is_dropped = is_dropped(self.source.data_directory, &path)?;
                return if is_dropped { Ok(()) } else { Err(dropped::replaced(place)) };
            }
            if fs::symlink_metadata(place).is_ok_and(|metadata| metadata.is_symlink()) {
                self.warn(&path, format!("broken symbolic link \"{}\" is not copied", place.display()));
            }
            return Ok(());
        }
        let number = error.io_error().and_then(io::Error::raw_os_error);
        let cause = number.map_or_else(|| io::Error::other(error.to_string()), io::Error::from_raw_os_error);
        Err(unreadable(place, Side::Primary, &cause))
    }
}

pub(super) fn unreadable(place: &Path, side: Side, error: &io::Error) -> Error {
    Error::io(format_args!("read \"{}\" on the {side}", place.display()), error)
        .with_owner(place)
        .hint("Everything in the data directory must be readable by the PostgreSQL OS user.")
}

fn is_missing(error: &walkdir::Error) -> bool {
    error.io_error().is_some_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// The path as it is known on the wire; `None` for the data directory itself.
fn relative(root: &Path, prefix: Option<&RelPath>, place: &Path) -> Result<Option<RelPath>> {
    let tail: PathBuf = place.strip_prefix(root).map(Path::to_path_buf).unwrap_or_default();
    let Some(tail) = tail.to_str() else {
        return Err(Error::new(Kind::Unsupported, format!("file name is not UTF-8: {place:?}"))
            .hint("PostgreSQL makes no such file. Remove or rename it."));
    };
    match (prefix, tail.is_empty()) {
        (None, true) => Ok(None),
        (None, false) => RelPath::parse(tail).map(Some),
        (Some(prefix), true) => Ok(Some(prefix.clone())),
        (Some(prefix), false) => prefix.join(tail).map(Some),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::manifest::list::FileIndex;

    fn build(files: &[&str]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().expect("temporary directory");
        for file in files {
            let path = directory.path().join(file);
            fs::create_dir_all(path.parent().expect("has a parent")).expect("make directory");
            fs::write(path, file).expect("write file");
        }
        directory
    }

    fn scan_plain(root: &Path, tablespaces: &[Tablespace]) -> Plan {
        let rules = Rules::default();
        let source = Source {
            data_directory: root,
            tablespace_version_directory: "PG_15_202209061",
            tablespaces,
            rules: &rules,
        };
        scan(&source, &Cancel::new()).expect("scan")
    }

    fn names(plan: &Plan) -> Vec<String> {
        plan.files.iter().map(|file| file.path.to_string()).collect()
    }

    #[test]
    fn lists_what_travels() {
        let data = build(&["PG_VERSION", "pg_wal/000000010000000000000001", "base/5/1", "postmaster.pid"]);
        let plan = scan_plain(data.path(), &[]);
        assert_eq!(names(&plan), ["PG_VERSION", "base/5/1"]);
        assert!(plan.directories.iter().any(|directory| directory.path.as_str() == "pg_wal"));
        assert_eq!(plan.bytes(), "PG_VERSION".len() as u64 + "base/5/1".len() as u64);
    }

    #[test]
    fn of_unlogged_relations_only_the_init_fork_travels() {
        let data =
            build(&["base/5/7", "base/5/7.1", "base/5/7_fsm", "base/5/7_init", "base/5/8", "base/6/7"]);
        assert_eq!(names(&scan_plain(data.path(), &[])), ["base/5/7_init", "base/5/8", "base/6/7"]);
    }

    #[test]
    fn the_order_does_not_depend_on_which_thread_is_first() {
        let numbers: Vec<String> = (0..3000).map(|number| format!("base/{}/{number}", number % 3)).collect();
        let data = build(&numbers.iter().map(String::as_str).collect::<Vec<_>>());
        let plan = scan_plain(data.path(), &[]);
        let mut sorted = numbers;
        sorted.sort_unstable();
        assert_eq!(names(&plan), sorted);
        FileIndex::new(&plan.files).expect("in order");
        let directories: Vec<_> = plan.directories.iter().map(|directory| directory.path.as_str()).collect();
        assert_eq!(directories, ["base", "base/0", "base/1", "base/2"]);
    }

    #[test]
    fn one_file_that_cannot_be_looked_at_ends_the_scan_whatever_is_left() {
        let numbers: Vec<String> = (0..5000).map(|number| format!("f{number}")).collect();
        let data = build(&numbers.iter().map(String::as_str).collect::<Vec<_>>());
        let found = Mutex::new(Found::default());
        let (hand_over, batches) = sync_channel(BATCHES);
        let (batches, has_failed) = (Mutex::new(batches), AtomicBool::new(false));
        let rules = Rules::default();
        let source = Source {
            data_directory: data.path(),
            tablespace_version_directory: "PG_15_202209061",
            tablespaces: &[],
            rules: &rules,
        };
        let cancel = Cancel::new();
        has_failed.store(true, Ordering::Relaxed);
        let walk = Walk {
            source: &source,
            root: data.path(),
            prefix: None,
            cancel: &cancel,
            found: &found,
            has_failed: &has_failed,
        };
        walk.list(&hand_over).expect("it ends");
        assert!(lock(&batches).try_recv().is_err(), "nothing more is handed over");
    }

    #[test]
    fn tablespaces_are_walked_under_their_link() {
        let outside = build(&["PG_15_202209061/5/9", "PG_14_202107181/5/9"]);
        let data = build(&["pg_tblspc/17/PG_15_202209061/5/3"]);
        symlink(outside.path(), data.path().join("pg_tblspc/16")).expect("link");
        let tablespace = Tablespace {
            oid: 16,
            source: outside.path().display().to_string(),
            target: "/elsewhere".to_owned(),
        };
        assert_eq!(
            tablespace_links(data.path(), Side::Primary).expect("list"),
            [(16, outside.path().display().to_string())]
        );
        symlink(outside.path(), data.path().join("pg_tblspc/18")).expect("one made after the list");
        let plan = scan_plain(data.path(), &[tablespace]);
        assert_eq!(names(&plan), ["pg_tblspc/17/PG_15_202209061/5/3", "pg_tblspc/16/PG_15_202209061/5/9"]);
        let directories: Vec<_> = plan.directories.iter().map(|entry| entry.path.as_str()).collect();
        assert!(directories.contains(&"pg_tblspc/16/PG_15_202209061/5"));
    }

    #[test]
    fn an_error_says_on_which_side_the_links_cannot_be_read() {
        let data = tempfile::tempdir().expect("temporary directory");
        for (side, words) in
            [(Side::Primary, "pg_tblspc\" on the primary: "), (Side::Target, "pg_tblspc\" on the target: ")]
        {
            let error = tablespace_links(data.path(), side).expect_err("there is no pg_tblspc");
            assert!(error.message.contains(words), "{error}");
        }
    }

    #[test]
    fn a_tablespace_within_the_data_directory_travels_once() {
        let data = build(&["base/5/1", "spaces/t/PG_15_202209061/5/9", "spaces/other", "pg_tblspc/x"]);
        fs::remove_file(data.path().join("pg_tblspc/x")).expect("remove");
        let source = data.path().join("spaces/t").display().to_string();
        symlink(&source, data.path().join("pg_tblspc/16")).expect("link");
        let tablespace = Tablespace { oid: 16, source, target: "/elsewhere".to_owned() };
        let plan = scan_plain(data.path(), &[tablespace]);
        assert_eq!(names(&plan), ["base/5/1", "spaces/other", "pg_tblspc/16/PG_15_202209061/5/9"]);
        assert!(plan.directories.iter().all(|directory| !directory.path.is_at_or_below("spaces/t")));
    }

    #[test]
    fn links_are_followed_with_a_warning_and_broken_ones_reported() {
        let outside = build(&["x"]);
        let data = build(&["base/5/1"]);
        symlink(outside.path().join("x"), data.path().join("linked.conf")).expect("link");
        symlink("nowhere", data.path().join("broken")).expect("link");
        let plan = scan_plain(data.path(), &[]);
        assert_eq!(names(&plan), ["linked.conf", "base/5/1"]);
        assert_eq!(plan.warnings.len(), 2, "{:?}", plan.warnings);
    }

    #[test]
    fn a_cancelled_scan_stops() {
        let data = tempfile::tempdir().expect("temporary directory");
        for number in 0..1100 {
            fs::write(data.path().join(format!("f{number}")), "").expect("write");
        }
        let cancel = Cancel::new();
        cancel.trip();
        let rules = Rules::default();
        let source = Source {
            data_directory: data.path(),
            tablespace_version_directory: "PG_15_202209061",
            tablespaces: &[],
            rules: &rules,
        };
        assert!(scan(&source, &cancel).is_err());
    }
}
