//! A file system that can clone files, in a file of its own.

use std::fs::File;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::account;
use crate::mount::LoopMount;
use crate::scratch::Scratch;
use crate::wait;

/// XFS with reflinks on a loop device, unmounted with this value.
#[derive(Debug)]
pub struct Xfs {
    mount: LoopMount,
    image: PathBuf,
}

impl Deref for Xfs {
    type Target = LoopMount;

    fn deref(&self) -> &LoopMount {
        &self.mount
    }
}

impl Xfs {
    /// With room for so many megabytes; the error says why this machine cannot.
    pub fn new(scratch: &Scratch, megabytes: u64) -> Result<Self, String> {
        let (image, path) = (scratch.join("xfs.img"), scratch.mkdir("xfs"));
        let sized = File::create(&image).and_then(|file| file.set_len(megabytes << 20));
        sized.map_err(|error| format!("{}: {error}", image.display()))?;
        must(Command::new("mkfs.xfs").args(["-q", "-m", "reflink=1"]).arg(&image).output(), "mkfs.xfs")?;
        let xfs = Self { mount: LoopMount::at(&path, scratch), image };
        xfs.mount()?;
        account::give(xfs.path());
        Ok(xfs)
    }

    fn mount(&self) -> Result<(), String> {
        let mut mount = Command::new("mount");
        must(mount.args(["-o", "loop"]).arg(&self.image).arg(self.path()).output(), "mount -o loop")
    }

    /// The disk is gone at once: what was not synced is lost, and everything fails from now on.
    #[track_caller]
    pub fn pull_the_plug(&self) {
        let shutdown = Command::new("xfs_io").args(["-x", "-c", "shutdown"]).arg(self.path()).output();
        must(shutdown, "xfs_io -c shutdown").expect("the end of the disk");
    }

    /// The disk is back, as the last sync left it. No process may have a file of it open.
    #[track_caller]
    pub fn plug_in(&self) {
        let umount = || must(Command::new("umount").arg(self.path()).output(), "umount").is_ok();
        wait::until_true("the disk to be unused", wait::PATIENCE, umount);
        self.mount().expect("the disk");
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
