//! A small file system, to run out of space on.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process;
use crate::scratch::Scratch;

/// A tmpfs, unmounted with this value.
#[derive(Debug)]
pub struct Tmpfs {
    path: PathBuf,
    _scratch: Scratch,
}

impl Tmpfs {
    /// A directory `name` of the scratch directory with room for so many megabytes.
    pub fn new(scratch: &Scratch, name: &str, megabytes: u32) -> Self {
        let path = scratch.mkdir(name);
        let account = crate::account::postgres();
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o"]);
        command.arg(format!("size={megabytes}m,uid={},gid={},mode=0700", account.uid, account.gid));
        command.arg("pgpool-recovery-e2e").arg(&path);
        process::run(command).ok();
        Self { path, _scratch: scratch.clone() }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // Lazily: a server that is just ending may still stand in it.
        let _ = Command::new("umount").arg("--lazy").arg(&self.path).output();
    }
}
