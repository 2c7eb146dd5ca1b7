//! Whose turn it is with a data directory: the lock that a recovery of it holds as well.

use std::fs::File;
use std::path::Path;

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use crate::error::{Error, Result};

/// The turn, until it is dropped or the process ends.
#[derive(Debug)]
pub struct Turn(#[expect(dead_code, reason = "holds the lock")] File);

/// Takes the turn; `None` if somebody else has it.
pub fn take(directory: &Path) -> Result<Option<Turn>> {
    let opened = File::open(directory).map_err(Error::on_path("open directory", directory))?;
    match rustix::fs::flock(&opened, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(Turn(opened))),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(Error::at("lock directory", directory, &error.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_has_the_turn() {
        let data = tempfile::tempdir().expect("temporary directory");
        let first = take(data.path()).expect("a directory").expect("free");
        assert!(take(data.path()).expect("a directory").is_none());
        drop(first);
        assert!(take(data.path()).expect("a directory").is_some());
        assert!(take(&data.path().join("missing")).is_err());
    }
}
