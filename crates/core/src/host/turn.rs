//! Whose turn it is with a data directory: the lock that a recovery of it holds as well.

use std::fs::File;
use std::path::Path;

use crate::error::{Error, Result};
use crate::sys::directory_lock::{is_locked, lock_directory};

/// The turn, until it is dropped or the process ends.
#[derive(Debug)]
pub struct Turn(#[expect(dead_code, reason = "holds the lock")] File);

/// Takes the turn; `None` if it is taken.
pub fn take(directory: &Path) -> Result<Option<Turn>> {
    let opened = open(directory)?;
    let is_free = lock_directory(&opened).map_err(failed(directory))?;
    Ok(is_free.then(|| Turn(opened)))
}

/// Whether the turn is taken.
pub(super) fn is_taken(directory: &Path) -> Result<bool> {
    is_locked(open(directory)?).map_err(failed(directory))
}

fn open(directory: &Path) -> Result<File> {
    File::open(directory).map_err(Error::on_path("open directory", directory))
}

fn failed(directory: &Path) -> impl FnOnce(rustix::io::Errno) -> Error {
    move |error| Error::at("lock directory", directory, &error.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_has_the_turn() {
        let data = tempfile::tempdir().expect("temporary directory");
        let first = take(data.path()).expect("a directory").expect("free");
        assert!(take(data.path()).expect("a directory").is_none());
        assert!(is_taken(data.path()).expect("a directory"));
        drop(first);
        assert!(!is_taken(data.path()).expect("a directory"));
        assert!(take(data.path()).expect("a directory").is_some());
        assert!(take(&data.path().join("missing")).is_err());
    }
}
