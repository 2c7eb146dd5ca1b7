//! Listing the primary's data directory while the server runs.
//!
//! The only place that names `walkdir`. Files come and go during the walk: what vanishes between
//! being listed and being looked at is left out (its removal is in the WAL that the standby replays),
//! what appears later is created by replay.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use walkdir::{DirEntry, WalkDir};

use crate::error::{Error, Kind, Result};
use crate::manifest::Side;
use crate::manifest::exclude::{RelationFile, Rules, Verdict, holds_relations};
use crate::manifest::path::RelPath;
use crate::manifest::plan::{Directory, File, Plan, Tablespace};
use crate::sys::cancel::Cancel;

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

/// Lists everything that goes to the standby. Call it after `pg_backup_start` returned (S4).
pub fn scan(source: &Source<'_>, cancel: &Cancel) -> Result<Plan> {
    let mut plan = Plan { tablespaces: source.tablespaces.to_vec(), ..Plan::default() };
    walk(source, source.data_directory, None, cancel, &mut plan)?;
    for tablespace in source.tablespaces {
        let link = format!("pg_tblspc/{}", tablespace.oid);
        let prefix = RelPath::parse(&format!("{link}/{}", source.tablespace_version_directory))?;
        let root = Path::new(&tablespace.source).join(source.tablespace_version_directory);
        walk(source, &root, Some(&prefix), cancel, &mut plan)?;
    }
    leave_out_unlogged(&mut plan);
    Ok(plan)
}

/// The tablespaces outside a data directory: OID and location, as the links in pg_tblspc say. Not from
/// the catalog, whose snapshot may be older than the backup.
pub fn tablespace_links(data_directory: &Path, side: Side) -> Result<Vec<(u32, String)>> {
    let directory = data_directory.join("pg_tblspc");
    let failed = |error| unreadable(&directory, side, &error);
    let mut links = Vec::new();
    for entry in fs::read_dir(&directory).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let Some(oid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        match fs::read_link(entry.path()) {
            Ok(location) => links.push((oid, location.display().to_string())),
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

fn walk(
    source: &Source<'_>,
    root: &Path,
    prefix: Option<&RelPath>,
    cancel: &Cancel,
    plan: &mut Plan,
) -> Result<()> {
    let inside: HashSet<RelPath> =
        source.tablespaces.iter().filter_map(|space| inside(source, space)).collect();
    let mut entries = WalkDir::new(root).follow_links(true).sort_by_file_name().into_iter();
    let mut seen = 0_u32;
    while let Some(entry) = entries.next() {
        seen += 1;
        if seen.is_multiple_of(1024) {
            cancel.check()?;
        }
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) => {
                tolerate(source, root, prefix, &error, plan)?;
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
            plan.warnings.push(format!("symbolic link \"{path}\" is copied as what it points to"));
        }
        add(&entry, path, plan)?;
        if verdict == Verdict::Empty && entry.file_type().is_dir() {
            entries.skip_current_dir();
        }
    }
    Ok(())
}

/// Where a tablespace lies within the data directory, if it does.
fn inside(source: &Source<'_>, tablespace: &Tablespace) -> Option<RelPath> {
    let location = Path::new(&tablespace.source);
    // without an answer it is copied twice, as what it looks like
    let resolved = location.canonicalize().unwrap_or_else(|_| location.to_owned());
    let directory = source.data_directory.canonicalize().unwrap_or_else(|_| source.data_directory.to_owned());
    RelPath::parse(resolved.strip_prefix(directory).ok()?.to_str()?).ok()
}

fn add(entry: &DirEntry, path: RelPath, plan: &mut Plan) -> Result<()> {
    let metadata = match entry.metadata() {
        Ok(metadata) => metadata,
        Err(error) if is_missing(&error) => return Ok(()),
        Err(error) => return Err(unreadable(entry.path(), Side::Primary, &error.into())),
    };
    let mode = metadata.permissions().mode() & 0o7777;
    let kind = metadata.file_type();
    if kind.is_dir() {
        plan.directories.push(Directory { path, mode });
    } else if kind.is_file() {
        demand_readable(entry.path(), &metadata)?;
        plan.files.push(File { path, size: metadata.len(), mode });
    } else if kind.is_socket() || kind.is_fifo() || kind.is_block_device() || kind.is_char_device() {
        plan.warnings.push(format!("special file \"{path}\" is not copied"));
    }
    Ok(())
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

/// An entry the walk could not look at: gone meanwhile, or a link that leads nowhere.
fn tolerate(
    source: &Source<'_>,
    root: &Path,
    prefix: Option<&RelPath>,
    error: &walkdir::Error,
    plan: &mut Plan,
) -> Result<()> {
    let place = error.path().unwrap_or(root);
    let path = relative(root, prefix, place)?;
    if path
        .as_ref()
        .is_some_and(|path| source.rules.judge(path) == Verdict::Skip || path.parent() == Some("pg_tblspc"))
    {
        return Ok(());
    }
    if path.is_some() && is_missing(error) {
        if fs::symlink_metadata(place).is_ok_and(|metadata| metadata.is_symlink()) {
            plan.warnings.push(format!("broken symbolic link \"{}\" is not copied", place.display()));
        }
        return Ok(());
    }
    let number = error.io_error().and_then(io::Error::raw_os_error);
    let cause = number.map_or_else(|| io::Error::other(error.to_string()), io::Error::from_raw_os_error);
    Err(unreadable(place, Side::Primary, &cause))
}

fn unreadable(place: &Path, side: Side, error: &io::Error) -> Error {
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

/// Unlogged relations start empty on a standby: of their forks only the init fork travels.
fn leave_out_unlogged(plan: &mut Plan) {
    let relation = |file: &File| {
        let directory = file.path.parent()?;
        let relation = RelationFile::parse(file.path.file_name())?;
        holds_relations(directory).then_some((directory.to_owned(), relation))
    };
    let unlogged: HashSet<(String, u32)> = plan
        .files
        .iter()
        .filter_map(relation)
        .filter(|(_, relation)| relation.is_init)
        .map(|(directory, relation)| (directory, relation.number))
        .collect();
    if unlogged.is_empty() {
        return;
    }
    plan.files.retain(|file| {
        relation(file).is_none_or(|(directory, relation)| {
            relation.is_init || !unlogged.contains(&(directory, relation.number))
        })
    });
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

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

    fn names(plan: &Plan) -> Vec<&str> {
        plan.files.iter().map(|file| file.path.as_str()).collect()
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
        assert_eq!(names(&plan), ["base/5/1", "linked.conf"]);
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
