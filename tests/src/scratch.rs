//! A directory of one test's own.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::IFlags;
use tempfile::TempDir;

use crate::account;
use crate::turns::Turn;

/// Where the tests' directories are made: /tmp, or what `PGPOOL_RECOVERY_E2E_DIRECTORY` names (scripts/on-a-disk.sh). A short
/// path, because a unix-socket path below it must fit into 107 bytes.
pub(crate) fn parent() -> PathBuf {
    std::env::var_os("PGPOOL_RECOVERY_E2E_DIRECTORY").map_or_else(|| PathBuf::from("/tmp"), PathBuf::from)
}

/// A directory below [`parent`] that belongs to `postgres` and goes away with the last clone of this value.
///
/// `PGPOOL_RECOVERY_E2E_KEEP=1` keeps it, for looking at what a failed test left.
#[derive(Debug, Clone)]
pub struct Scratch {
    dir: Arc<Dir>,
}

#[derive(Debug)]
struct Dir {
    path: PathBuf,
    /// None: keep the directory.
    _guard: Option<TempDir>,
    _turn: Turn,
}

impl Scratch {
    pub fn new() -> Self {
        Self::within(&parent())
    }

    /// The directory of a test that needs the machine for itself: no other test has one at the same time.
    pub fn alone() -> Self {
        Self::made(&parent(), Turn::alone())
    }

    /// The same as [`Scratch::new`] elsewhere: on a file system of the caller's choice, say.
    pub fn within(parent: &Path) -> Self {
        Self::made(parent, Turn::beside_others())
    }

    fn made(parent: &Path, turn: Turn) -> Self {
        let guard = tempfile::Builder::new().prefix("ppr-").tempdir_in(parent);
        let guard = guard.unwrap_or_else(|error| panic!("{}: {error}", parent.display()));
        let keep = std::env::var_os("PGPOOL_RECOVERY_E2E_KEEP").is_some();
        let (outer, guard) = if keep { (guard.keep(), None) } else { (guard.path().to_owned(), Some(guard)) };
        account::give(&outer);
        spread(&outer);
        // ext4 chooses the block group by the name
        let inner = tempfile::Builder::new().prefix("").tempdir_in(&outer).expect("own directory").keep();
        let scratch = Self { dir: Arc::new(Dir { path: inner, _guard: guard, _turn: turn }) };
        account::give(scratch.path());
        spread(scratch.path());
        // Other users of the machine may look at nothing, root and postgres at everything.
        fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o700)).expect("own directory");
        scratch.mkdir("s");
        scratch
    }

    pub fn path(&self) -> &Path {
        &self.dir.path
    }

    /// `name` below the directory; nothing is made.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path().join(name)
    }

    /// Where the test's servers put their unix sockets.
    pub fn sockets(&self) -> PathBuf {
        self.join("s")
    }

    /// Makes a directory owned by `postgres`, mode 0700.
    pub fn mkdir(&self, name: impl AsRef<Path>) -> PathBuf {
        let path = self.join(name);
        fs::create_dir(&path).expect("a new directory in the scratch directory");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).expect("own directory");
        account::give(&path);
        path
    }

    /// Writes a file owned by `postgres`.
    pub fn write(&self, name: impl AsRef<Path>, text: &str, mode: u32) -> PathBuf {
        let path = self.join(name);
        write_as_postgres(&path, text, mode);
        path
    }
}

/// Lets ext4 put each directory that will be made in `path` into a block group of its own, as it does at the root of a
/// file system (`chattr +T`). Else all tests make their thousands of files in the same groups, where ext4 passes over
/// the inodes that were freed within the last minutes (without a journal), one by one, for each new file: half of the
/// suite's time.
fn spread(path: &Path) {
    let Ok(directory) = fs::File::open(path) else { return };
    // other file systems have no such flag, and need none
    if let Ok(flags) = rustix::fs::ioctl_getflags(&directory) {
        let _ = rustix::fs::ioctl_setflags(&directory, flags | IFlags::TOPDIR);
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

/// Writes a file owned by `postgres`.
pub fn write_as_postgres(path: &Path, text: &str, mode: u32) {
    fs::write(path, text).unwrap_or_else(|error| panic!("could not write {}: {error}", path.display()));
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("own file");
    account::give(path);
}
