//! A file system with a `lost+found`, in a file of its own.

use std::fs::{self, File, Permissions};
use std::ops::Deref;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use crate::account;
use crate::mount::LoopMount;
use crate::process;
use crate::scratch::Scratch;

/// ext4 on a loop device, mounted at a directory and unmounted with this value.
#[derive(Debug)]
pub struct Ext4 {
    mount: LoopMount,
}

impl Deref for Ext4 {
    type Target = LoopMount;

    fn deref(&self) -> &LoopMount {
        &self.mount
    }
}

impl Ext4 {
    /// Mounts a new file system of so many megabytes at `path`, with what the directory there holds.
    #[track_caller]
    pub fn holding(scratch: &Scratch, path: &Path, megabytes: u64) -> Self {
        let before = path.with_extension("before");
        fs::rename(path, &before).expect("a directory");
        let mount = Self::empty(scratch, path, megabytes);
        let mut copy = Command::new("cp");
        copy.arg("-a").arg(before.join(".")).arg(path);
        process::run(copy).ok();
        fs::remove_dir_all(&before).expect("copied");
        mount
    }

    /// Mounts a new file system of so many megabytes at `path`, which is made if it does not exist.
    #[track_caller]
    pub fn empty(scratch: &Scratch, path: &Path, megabytes: u64) -> Self {
        let image = tempfile::Builder::new().suffix(".img").tempfile_in(scratch.path()).expect("a file");
        let (_, image) = image.keep().expect("a file");
        File::options()
            .write(true)
            .open(&image)
            .and_then(|file| file.set_len(megabytes << 20))
            .expect("sized");
        let mut mkfs = Command::new("mkfs.ext4");
        mkfs.args(["-q", "-F", "-m", "0", "-O", "^has_journal"]).arg(&image);
        process::run(mkfs).ok();
        fs::create_dir_all(path).expect("a directory");
        let mut mount = Command::new("mount");
        mount.args(["-o", "loop"]).arg(&image).arg(path);
        process::run(mount).ok();
        let mounted = Self { mount: LoopMount::at(path, scratch) };
        account::give(path);
        fs::set_permissions(path, Permissions::from_mode(0o700)).expect("chmod");
        mounted
    }

    /// Whether what mkfs made is there still.
    pub fn has_lost_and_found(&self) -> bool {
        self.path().join("lost+found").is_dir()
    }
}
