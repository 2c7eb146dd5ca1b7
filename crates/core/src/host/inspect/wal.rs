//! Where pg_wal leads, and whose WAL is there.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use pgdata::control_file::{ControlFile, wal_system_identifier};
use pgdata::wal;

use super::is_missing;
use crate::compare::wal_map::{self as compare, Lineage, Past};
use crate::data_directory::{DataDirectory, linked_wal};
use crate::error::{Error, Result};
use crate::host::places;
use crate::sys::FileId;
use crate::sys::cancel::Cancel;
use crate::sys::small_file;
use crate::wire::protocol::message::LinkedWal;

/// A pg_wal that is a link.
pub(super) struct Wal {
    pub(super) path: PathBuf,
    pub(super) identity: FileId,
    pub(super) content: LinkedWal,
}

pub(super) fn linked(opened: Option<&DataDirectory>, look: &Path, directory: &Path) -> Result<Option<Wal>> {
    let (path, identity, look) = if let Some(target) = opened {
        let Some(wal) = target.wal()? else { return Ok(None) };
        (wal.path, wal.identity, wal.look)
    } else {
        let opened = fs::File::open(look).map_err(Error::on_path("open directory", &directory))?;
        let Some(wal) = linked_wal(opened, directory)? else {
            return Ok(None);
        };
        (wal.path, wal.identity, look.join("pg_wal"))
    };
    places::demand_outside_clusters(&path)?;
    let content = wal_of(&look)
        .map_err(Error::on_path("read WAL in", &path))
        .map_err(|error| error.hint("Let the link lead to a directory of the standby's own."))?;
    Ok(Some(Wal { path, identity, content }))
}

/// What directory pg_wal is.
pub(super) fn identity(directory: &Path) -> Result<Option<FileId>> {
    let path = directory.join("pg_wal");
    match fs::metadata(&path) {
        Ok(found) => Ok(Some(FileId::from(&found))),
        Err(error) if is_missing(&error) => Ok(None),
        Err(error) => Err(Error::at("stat directory", &path, &error)),
    }
}

/// Whose WAL a directory holds: its newest segment that says so tells.
pub(super) fn wal_of(directory: &Path) -> io::Result<LinkedWal> {
    let mut segments = segments(directory)?;
    segments.sort();
    let is_empty = segments.is_empty();
    for segment in segments.iter().rev() {
        let head = small_file::read(segment, 64)?;
        if let Some(identifier) = head.and_then(|head| wal_system_identifier(&head)) {
            return Ok(LinkedWal::Of(identifier));
        }
    }
    Ok(if is_empty { LinkedWal::Empty } else { LinkedWal::Unknown })
}

pub(super) fn segments(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut segments = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let is_segment = entry
            .file_name()
            .to_str()
            .is_some_and(|name| name.len() == 24 && name.bytes().all(|byte| byte.is_ascii_hexdigit()));
        if is_segment {
            segments.push(entry.path());
        }
    }
    Ok(segments)
}

/// The system identifier that the oldest WAL tells. Without an answer the directory is refused, so an error needs none of
/// its own.
pub(super) fn identifier_from_wal(directory: &Path) -> Option<u64> {
    let mut segments = segments(&directory.join("pg_wal")).ok()?;
    segments.sort();
    segments.iter().find_map(|segment| wal_system_identifier(&small_file::head(segment, 64)?))
}

/// The latest timeline that the server here has been on. A standby may have crossed to one since its last checkpoint, or
/// have received WAL of it that it has not replayed: what it confirmed to its primary is there, too.
pub(super) fn timeline(directory: &Path, control: Option<&ControlFile>) -> io::Result<Option<u32>> {
    let mut latest = control.map(|control| control.timeline.max(control.min_recovery_timeline));
    let entries = match fs::read_dir(directory.join("pg_wal")) {
        Ok(entries) => entries,
        Err(error) if is_missing(&error) => return Ok(latest),
        Err(error) => return Err(error),
    };
    for entry in entries {
        latest = latest.max(entry?.file_name().to_str().and_then(wal::segment_timeline));
    }
    Ok(latest)
}

/// What that timeline has sprung from, as far as a file here says.
pub(super) fn history(directory: &Path, timeline: Option<u32>) -> Result<Option<Lineage>> {
    timeline.map_or(Ok(None), |timeline| Lineage::read(&directory.join("pg_wal"), timeline))
}

/// Records that tell that timeline from another one of the same number.
pub(super) fn landmark(
    directory: &Path,
    control: Option<&ControlFile>,
    timeline: Option<u32>,
    cancel: &Cancel,
) -> Result<Option<Past>> {
    let (Some(control), Some(timeline)) = (control, timeline) else { return Ok(None) };
    let directory = directory.join("pg_wal");
    let wal = compare::Wal::new(&directory, control);
    wal.landmark(control, &wal.lineage(timeline)?, cancel)
}

/// How many files of pg_wal have not been archived: `archive_status/NAME.ready`.
pub(super) fn unarchived(directory: &Path) -> io::Result<u32> {
    let entries = match fs::read_dir(directory.join("pg_wal/archive_status")) {
        Ok(entries) => entries,
        Err(error) if is_missing(&error) => return Ok(0),
        Err(error) => return Err(error),
    };
    let mut count = 0;
    for entry in entries {
        count += u32::from(entry?.file_name().to_string_lossy().ends_with(".ready"));
    }
    Ok(count)
}
