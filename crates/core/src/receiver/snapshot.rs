//! What a directory was checked by, and whether it is still so when the run begins.
//!
//! Between the two lie the primary's checkpoint and its scan, minutes perhaps: time enough to make another cluster there,
//! or to start and stop the one that was found.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::ErrorKind::{NotADirectory, NotFound, PermissionDenied};
use std::path::{Path, PathBuf};

use pgdata::control_file::PG_CONTROL;
use pgdata::wal::segment_timeline;
use rustix::io::Errno;

use crate::data_directory::{DataDirectory, Stamp, Stat};
use crate::error::{Error, Kind, Result};
use crate::host::inspect;
use crate::manifest::exclude::{CONTROL_ASIDE, MARKER};
use crate::manifest::path::RelPath;
use crate::sys::FileId;
use crate::wire::protocol::message::Content;

/// Files that a server or another tool changes, or makes, when it works here.
const FILES: &[&str] =
    &[PG_CONTROL, CONTROL_ASIDE, MARKER, "PG_VERSION", "standby.signal", "recovery.signal", "backup_label"];

/// Directories that only a server, or what works like one, changes.
const DIRECTORIES: &[&str] = &["global", "base", "pg_tblspc"];

/// Where whatever server writes there writes WAL: a primary or a standby that streams does before the run begins, since the
/// backup's start is in the WAL. So that is seen, too, where nothing else tells of a server: in a container, or on another host.
const WAL: &str = "pg_wal";

/// Directories that must be the same ones; others may come and go in them.
const ROOTS: &[&str] = &["", "pg_wal"];

/// What there was when the sender was told of the directory.
pub(super) struct Snapshot {
    content: Content,
    files: Vec<Found>,
    directories: Vec<Found>,
    roots: Vec<Found>,
    /// The segments.
    wal: BTreeMap<OsString, Stamp>,
    /// The standby's own files that were there.
    kept: Vec<RelPath>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Nothing,
    There(Stamp),
    /// It is in a directory that is closed, to a server too.
    Closed,
}

impl Snapshot {
    /// Looks. `keep` are the files of the standby's own that would survive.
    pub(super) fn look(directory: &Path, keep: &[RelPath]) -> Result<Self> {
        let look = |name: &&str| found(&directory.join(name));
        let mut kept = Vec::new();
        for path in keep {
            if found(&directory.join(path))? != Found::Nothing {
                kept.push(path.clone());
            }
        }
        let is_missing =
            std::fs::metadata(directory).is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound);
        Ok(Self {
            content: inspect::content(directory, directory, !is_missing, keep)?,
            files: FILES.iter().map(look).collect::<Result<_>>()?,
            directories: DIRECTORIES.iter().map(look).collect::<Result<_>>()?,
            roots: ROOTS.iter().map(look).collect::<Result<_>>()?,
            wal: segments(&directory.join(WAL))?,
            kept,
        })
    }

    /// The standby's own files that were there.
    pub(super) fn kept(&self) -> &[RelPath] {
        &self.kept
    }

    /// Adds files of the standby's own that were found to be there and needed, and what the directory was found to be with
    /// these.
    pub(super) fn also_keeps(&mut self, needed: &[RelPath], content: Content) {
        self.kept.extend_from_slice(needed);
        self.content = content;
    }

    /// Fails if the directory, which is shown as `shown`, is not what was checked any more.
    pub(super) fn demand_same(&self, directory: &Path, shown_as: &Path, keep: &[RelPath]) -> Result<()> {
        let now = Self::look(directory, keep)?;
        let same = |(then, now): (&Found, &Found)| match (then, now) {
            (Found::There(then), Found::There(now)) => then.is_same_file(now),
            (then, now) => then == now,
        };
        let changed = |(then, now): (&Found, &Found)| then != now;
        let root = self.roots.iter().zip(&now.roots).position(|pair| !same(pair));
        let file = self.files.iter().zip(&now.files).position(changed);
        let entries = self.directories.iter().zip(&now.directories).position(changed);
        let detail = if self.content != now.content {
            format!("It was {} and is {} now.", shown(self.content), shown(now.content))
        } else if let Some(number) = file {
            format!("Its file \"{}\" was made, changed or removed meanwhile.", FILES[number])
        } else if let Some(number) = root {
            format!("\"{}\" is another directory now.", shown_as.join(ROOTS[number]).display())
        } else if let Some(number) = entries {
            format!("Something in its directory \"{}\" was made or removed meanwhile.", DIRECTORIES[number])
        } else if self.wal != now.wal {
            format!(
                "WAL was written or removed meanwhile in \"{}\": a server uses it.",
                shown_as.join(WAL).display()
            )
        } else if self.kept != now.kept {
            "One of the files that it keeps (pgpool_recovery.keep_files) appeared or went meanwhile."
                .to_owned()
        } else {
            return Ok(());
        };
        let message = format!("directory \"{}\" was changed after it was checked", shown_as.display());
        Err(Error::new(Kind::InUse, message).detail(detail).hint(
            "Find out what works there. Nothing was changed by this recovery; run it again, and the directory is checked \
             by what it holds then.",
        ))
    }
}

/// Fails if one of the paths that were opened leads elsewhere by now: a tablespace's directory, or a linked pg_wal.
pub(super) fn demand_roots(target: &DataDirectory, paths: &[PathBuf]) -> Result<()> {
    let opened = target.identities()?;
    for (path, opened) in paths.iter().zip(&opened) {
        let there = std::fs::metadata(path).map_err(Error::on_path("stat directory", &path))?;
        if FileId::from(&there) != *opened {
            let message =
                format!("\"{}\" is another directory than the one that was checked", path.display());
            return Err(Error::new(Kind::InUse, message)
                .detail("It, or a link on the way to it, was replaced after the recovery had opened it.")
                .hint("Run the recovery again when the directories are in their places."));
        }
    }
    Ok(())
}

fn found(path: &Path) -> Result<Found> {
    match rustix::fs::lstat(path) {
        Ok(stat) => Ok(Found::There(Stat::of(&stat).stamp)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(Found::Nothing),
        Err(Errno::ACCESS) => Ok(Found::Closed),
        Err(error) => Err(Error::at("stat file", path, &error.into())),
    }
}

/// The segments in a directory; none of one that is closed, to a server too.
fn segments(directory: &Path) -> Result<BTreeMap<OsString, Stamp>> {
    let failed = |error| Error::at("list directory", directory, &error);
    let mut segments = BTreeMap::new();
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), NotFound | NotADirectory | PermissionDenied) => {
            return Ok(segments);
        }
        Err(error) => return Err(failed(error)),
    };
    for entry in entries {
        let name = entry.map_err(failed)?.file_name();
        let is_segment = name.to_str().is_some_and(|name| segment_timeline(name).is_some());
        if is_segment && let Found::There(stamp) = found(&directory.join(&name))? {
            segments.insert(name, stamp);
        }
    }
    Ok(segments)
}

const fn shown(content: Content) -> &'static str {
    match content {
        Content::Missing => "missing",
        Content::Empty => "empty",
        Content::Cluster => "a PostgreSQL data directory",
        Content::Wal => "WAL and nothing else",
        Content::Other => "not empty, but no PostgreSQL data directory",
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    const SEGMENT: &str = "pg_wal/000000010000000000000003";

    fn cluster() -> tempfile::TempDir {
        let data = tempfile::tempdir().expect("temporary directory");
        for name in ["global", "base", "pg_wal"] {
            fs::create_dir(data.path().join(name)).expect("make");
        }
        for name in ["PG_VERSION", PG_CONTROL, "certs", SEGMENT] {
            fs::write(data.path().join(name), "x").expect("write");
        }
        data
    }

    #[test]
    fn a_directory_that_was_changed_after_it_was_checked_is_refused() {
        let keep = [RelPath::parse("certs").expect("valid"), RelPath::parse("pg_hba.conf").expect("valid")];
        type Change = (&'static str, fn(&Path));
        let changes: &[Change] = &[
            ("nothing", |_| {}),
            ("pg_control is replaced", |data| {
                fs::write(data.join("new"), "x")
                    .and_then(|()| fs::rename(data.join("new"), data.join(PG_CONTROL)))
                    .expect("rename");
            }),
            ("pg_control goes", |data| fs::remove_file(data.join(PG_CONTROL)).expect("remove")),
            ("a recovery begins", |data| fs::write(data.join(MARKER), "{}").expect("write")),
            ("a standby is made", |data| fs::write(data.join("standby.signal"), "").expect("write")),
            ("a kept file appears", |data| fs::write(data.join("pg_hba.conf"), "").expect("write")),
            ("a kept file goes", |data| fs::remove_file(data.join("certs")).expect("remove")),
            ("pg_wal becomes a link", |data| {
                fs::rename(data.join("pg_wal"), data.join("other")).expect("rename");
                symlink("other", data.join("pg_wal")).expect("link");
            }),
            ("WAL is written", |data| {
                std::thread::sleep(std::time::Duration::from_millis(20));
                let segment = fs::OpenOptions::new().write(true).open(data.join(SEGMENT)).expect("open");
                std::os::unix::fs::FileExt::write_all_at(&segment, b"y", 0).expect("write");
            }),
            ("WAL is removed", |data| fs::remove_file(data.join(SEGMENT)).expect("remove")),
            ("base is another one", |data| {
                fs::rename(data.join("base"), data.join("old"))
                    .and_then(|()| fs::create_dir(data.join("base")))
                    .expect("rename");
            }),
        ];
        for (what, change) in changes {
            let data = cluster();
            let snapshot = Snapshot::look(data.path(), &keep).expect("looks");
            assert_eq!(snapshot.kept(), &keep[..1]);
            // files that no judgement depends on come and go
            fs::write(data.path().join("pg_wal/archive_status"), "x").expect("write");
            change(data.path());
            match snapshot.demand_same(data.path(), data.path(), &keep) {
                Ok(()) => assert_eq!(*what, "nothing"),
                Err(error) => assert!(*what != "nothing" && error.kind == Kind::InUse, "{what}: {error:?}"),
            }
        }
    }

    #[test]
    fn a_cluster_that_appears_in_an_empty_directory_is_named() {
        let data = tempfile::tempdir().expect("temporary directory");
        let snapshot = Snapshot::look(data.path(), &[]).expect("looks");
        fs::create_dir_all(data.path().join("base")).expect("make");
        fs::create_dir_all(data.path().join("global")).expect("make");
        let error = snapshot.demand_same(data.path(), data.path(), &[]).expect_err("changed");
        assert_eq!(error.detail.as_deref(), Some("It was empty and is a PostgreSQL data directory now."));
    }

    #[test]
    fn a_root_that_is_replaced_is_another_one() {
        let top = tempfile::tempdir().expect("temporary directory");
        let (data, space) = (top.path().join("data"), top.path().join("space"));
        let mut target = DataDirectory::open(&data).expect("opens");
        target.add_root(&RelPath::parse("pg_tblspc/16").expect("valid"), &space).expect("opens");
        let paths = [data, space.clone()];
        demand_roots(&target, &paths).expect("as it was");
        fs::rename(&space, top.path().join("old")).and_then(|()| fs::create_dir(&space)).expect("replaced");
        assert_eq!(demand_roots(&target, &paths).expect_err("another").kind, Kind::InUse);
    }
}
