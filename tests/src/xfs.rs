//! A file system that can clone files, in a file of its own.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::account;
use crate::mount::{freeze, remount, thaw, thaw_if_frozen};
use crate::scratch::Scratch;
use crate::wait;

/// XFS with reflinks on a loop device, unmounted with this value.
#[derive(Debug)]
pub struct Xfs {
    path: PathBuf,
    image: PathBuf,
    _scratch: Scratch,
}

impl Xfs {
    /// With room for so many megabytes; the error says why this machine cannot.
    pub fn new(scratch: &Scratch, megabytes: u64) -> Result<Self, String> {
        let (image, path) = (scratch.join("xfs.img"), scratch.mkdir("xfs"));
        let sized = File::create(&image).and_then(|file| file.set_len(megabytes << 20));
        sized.map_err(|error| format!("{}: {error}", image.display()))?;
        must(Command::new("mkfs.xfs").args(["-q", "-m", "reflink=1"]).arg(&image).output(), "mkfs.xfs")?;
        let xfs = Self { path, image, _scratch: scratch.clone() };
        xfs.mount()?;
        account::give(&xfs.path);
        Ok(xfs)
    }

    fn mount(&self) -> Result<(), String> {
        let mut mount = Command::new("mount");
        must(mount.args(["-o", "loop"]).arg(&self.image).arg(&self.path).output(), "mount -o loop")
    }

    /// Read-only (`ro`) or not (`rw`).
    #[track_caller]
    pub fn remount(&self, how: &str) {
        remount(&self.path, &format!("remount,{how}"));
    }

    /// The disk is gone at once: what was not synced is lost, and everything fails from now on.
    #[track_caller]
    pub fn pull_the_plug(&self) {
        let shutdown = Command::new("xfs_io").args(["-x", "-c", "shutdown"]).arg(&self.path).output();
        must(shutdown, "xfs_io -c shutdown").expect("the end of the disk");
    }

    /// The disk is back, as the last sync left it. No process may have a file of it open.
    #[track_caller]
    pub fn plug_in(&self) {
        let umount = || must(Command::new("umount").arg(&self.path).output(), "umount").is_ok();
        wait::until_true("the disk to be unused", wait::PATIENCE, umount);
        self.mount().expect("the disk");
    }

    /// From now on every write waits.
    #[track_caller]
    pub fn freeze(&self) {
        freeze(&self.path);
    }

    /// Writes go on.
    #[track_caller]
    pub fn thaw(&self) {
        thaw(&self.path);
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The disk that the file system believes in.
    pub fn image(&self) -> &Path {
        &self.image
    }
}

fn must(output: std::io::Result<Output>, what: &str) -> Result<(), String> {
    match output {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(format!("{what}: {}", String::from_utf8_lossy(&output.stderr).trim())),
        Err(error) => Err(format!("{what}: {error}")),
    }
}

impl Drop for Xfs {
    fn drop(&mut self) {
        thaw_if_frozen(&self.path);
        // The loop device goes with the mount. Lazily, should something still stand in it.
        let unmounted = Command::new("umount").arg(&self.path).output();
        if !unmounted.is_ok_and(|output| output.status.success()) {
            let _ = Command::new("umount").arg("--lazy").arg(&self.path).output();
        }
    }
}
