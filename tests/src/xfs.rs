//! A file system that can clone files, in a file of its own.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::account;
use crate::scratch::Scratch;

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
        must(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&path).output(), "mount -o loop")?;
        let xfs = Self { path, image, _scratch: scratch.clone() };
        account::give(&xfs.path);
        Ok(xfs)
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
        // The loop device goes with the mount. Lazily, should something still stand in it.
        let unmounted = Command::new("umount").arg(&self.path).output();
        if !unmounted.is_ok_and(|output| output.status.success()) {
            let _ = Command::new("umount").arg("--lazy").arg(&self.path).output();
        }
    }
}
