//! The mark of a server that was stopped for good, because another one is the primary now.

use std::path::Path;

use super::launch::STANDBY_SIGNAL;
use crate::data_directory::DataDirectory;
use crate::error::{Error, Kind, Result};
use crate::manifest::exclude::FENCED;
use crate::manifest::path::RelPath;
use crate::sys::small_file;
use crate::wire::protocol::describe::FenceMark;

/// The mark's permission bits.
const MODE: u32 = 0o600;

/// Longest mark that is read, bytes.
const MAX_MARK: usize = 1 << 16;

/// The mark in a data directory, if there is one. One that cannot be read is an error.
pub fn read(directory: &Path) -> Result<Option<FenceMark>> {
    let path = directory.join(FENCED);
    let Some(text) = small_file::read(&path, MAX_MARK).map_err(Error::on_path("read file", &path))? else {
        return Ok(None);
    };
    serde_json::from_slice(&text).map(Some).map_err(|error| {
        Error::new(Kind::TargetRefused, format!("\"{}\" cannot be understood", path.display()))
            .detail(format!("It should say who fenced the server, and when; the parser says: {error}."))
            .hint("If the server may run again, remove the file.")
    })
}

/// Makes the mark, or another one in its place; it is durable then. Fails where a recovery is at work.
pub(super) fn write(directory: &Path, mark: &FenceMark) -> Result<()> {
    let text = serde_json::to_vec_pretty(mark)
        .map_err(|error| Error::new(Kind::Internal, format!("could not encode a mark: {error}")))?;
    DataDirectory::open(directory)?.install(&RelPath::parse(FENCED)?, &text, MODE)
}

/// Removes the mark, durably; true if there was one.
pub fn remove(directory: &Path) -> Result<bool> {
    let target = DataDirectory::open(directory)?;
    let removed = target.remove(&RelPath::parse(FENCED)?)?;
    target.sync_directories()?;
    Ok(removed)
}

/// Refuses to start a server that was stopped for good, unless it has become a standby since. A mark that cannot be read is
/// one, too.
pub(super) fn demand_none(directory: &Path) -> Result<()> {
    let signal = directory.join(STANDBY_SIGNAL);
    if signal.try_exists().map_err(Error::on_path("stat file", &signal))? {
        return Ok(());
    }
    let Some(mark) = read(directory)? else { return Ok(()) };
    let FenceMark { by, why, fenced, .. } = mark;
    let path = directory.join(FENCED);
    Err(Error::new(Kind::StartFailed, format!("the server in \"{}\" was fenced", directory.display()))
        .detail(format!(
            "\"{}\" says that it was stopped for {by}, {fenced} seconds after 1970. {why}",
            path.display()
        ))
        .hint("Rebuild it with pgpool_recovery_1st_stage, or let it rejoin with pgpool_recovery_follow: both remove the file. Remove it by hand only if no other server is the primary."))
}
