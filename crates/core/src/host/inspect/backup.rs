//! What tells a base backup from a cluster in use.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::is_there;
use crate::sys::small_file;
use crate::wire::protocol::message::BackupTraces;

const BACKUP_LABEL: &str = "backup_label";

/// What the directory has of a base backup. A name that cannot be looked up is an error: it might be one.
pub(super) fn traces(directory: &Path) -> io::Result<BackupTraces> {
    let has = |name: &str| is_there(&directory.join(name));
    // only a time that is known speaks for a server
    let written =
        |name: &str| fs::symlink_metadata(directory.join(name)).and_then(|found| found.modified()).ok();
    let started_since = written("postmaster.opts")
        .zip(written(BACKUP_LABEL))
        .is_some_and(|(started, label)| started >= label);
    // a label that cannot be read is one all the same, and not ours
    let label = || small_file::text(&directory.join(BACKUP_LABEL)).unwrap_or_default();
    Ok(BackupTraces {
        label: has(BACKUP_LABEL)?.then(label),
        has_manifest: has("backup_manifest")?,
        has_standby_signal: has("standby.signal")?,
        has_postmaster_opts: has("postmaster.opts")?,
        started_since,
        version_changed: fs::symlink_metadata(directory.join("PG_VERSION")).ok().map(|found| found.ctime()),
    })
}
