//! The lock on a data directory (flock), held while something of ours writes there or promotes its server.

use std::os::fd::AsFd;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// More than a look takes.
const LOOK: Duration = Duration::from_millis(20);

/// Locks a directory; false if it is locked. It is tried for a little longer than another one's look takes.
pub(crate) fn lock_directory(directory: impl AsFd) -> Result<bool, Errno> {
    for is_last in [false, false, true] {
        match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(true),
            Err(Errno::WOULDBLOCK) if is_last => {}
            Err(Errno::WOULDBLOCK) => std::thread::sleep(LOOK),
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

/// Whether a directory is locked by others than this open file. If it is not, this file locks it for an instant, in a way
/// that other looks do not mind.
pub(crate) fn is_locked(directory: impl AsFd) -> Result<bool, Errno> {
    match flock(&directory, FlockOperation::NonBlockingLockShared) {
        Ok(()) => flock(&directory, FlockOperation::Unlock).map(|()| false),
        Err(Errno::WOULDBLOCK) => Ok(true),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn one_at_a_time_has_the_lock_and_a_look_is_in_nobodys_way() {
        let data = tempfile::tempdir().expect("temporary directory");
        let open = || File::open(data.path()).expect("a directory");
        let (first, second) = (open(), open());
        assert!(!is_locked(&first).expect("no error"));
        assert!(lock_directory(&first).expect("no error"));
        assert!(is_locked(&second).expect("no error") && !lock_directory(&second).expect("no error"));
        drop(first);
        assert!(!is_locked(&second).expect("no error"));
        // one that looks just now
        let look = open();
        flock(&look, FlockOperation::NonBlockingLockShared).expect("free");
        assert!(!is_locked(open()).expect("no error"), "two looks at once");
        let looker = std::thread::spawn(move || {
            std::thread::sleep(LOOK / 4);
            drop(look);
        });
        assert!(lock_directory(&second).expect("no error"));
        looker.join().expect("no panic");
    }
}
