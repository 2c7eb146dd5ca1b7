//! File systems to run out of space on, to write nothing to and to wait for.

use std::ffi::CString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::mount::MountFlags;

use crate::process;
use crate::scratch::Scratch;
use crate::wait;

/// Changes the options of a mount. It waits while a file is open for writing: one that this process has closed is
/// still open in a child that another test has forked, until the child executes its program.
#[track_caller]
fn remount(path: &Path, options: &str) {
    wait::until_true(&format!("{options} of {}", path.display()), wait::PATIENCE, || {
        let mut mount = Command::new("mount");
        mount.args(["-o", options]).arg(path);
        let output = process::run(mount);
        if !output.status.success() {
            eprint!("{}", output.stderr);
        }
        output.status.success()
    });
}

/// A file system on a loop device, unmounted with this value.
#[derive(Debug)]
pub struct LoopMount {
    path: PathBuf,
    _scratch: Scratch,
}

impl LoopMount {
    /// Of what is mounted at a path in the scratch directory, or is going to be.
    pub(crate) fn at(path: &Path, scratch: &Scratch) -> Self {
        Self { path: path.to_owned(), _scratch: scratch.clone() }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Read-only (`ro`), as the kernel makes it after an error of the disk, or not (`rw`).
    #[track_caller]
    pub fn remount(&self, how: &str) {
        remount(&self.path, &format!("remount,{how}"));
    }

    /// From now on every write waits.
    #[track_caller]
    pub fn freeze(&self) {
        self.fsfreeze("--freeze").ok();
    }

    /// Writes go on.
    #[track_caller]
    pub fn thaw(&self) {
        self.fsfreeze("--unfreeze").ok();
    }

    fn fsfreeze(&self, how: &str) -> process::Finished {
        let mut fsfreeze = Command::new("fsfreeze");
        fsfreeze.arg(how).arg(&self.path);
        process::run(fsfreeze)
    }
}

impl Drop for LoopMount {
    fn drop(&mut self) {
        // a test that failed may have left it frozen
        let _ = self.fsfreeze("--unfreeze");
        // The loop device goes with the mount. Lazily, should a server still stand in it.
        let unmounted = Command::new("umount").arg(&self.path).output();
        if !unmounted.is_ok_and(|output| output.status.success()) {
            let _ = Command::new("umount").arg("--lazy").arg(&self.path).output();
        }
    }
}

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

/// Something mounted at a path, unmounted with this value.
#[derive(Debug)]
pub struct Mounted {
    path: PathBuf,
    _scratch: Scratch,
}

impl Mounted {
    /// A file or directory that is its own mount point, as a container's volume of one file is.
    #[track_caller]
    pub fn itself(scratch: &Scratch, path: &Path) -> Self {
        Self::of(scratch, path, path)
    }

    /// What lies at `source`, at `path` too, as a volume that two containers have.
    #[track_caller]
    pub fn of(scratch: &Scratch, source: &Path, path: &Path) -> Self {
        let mut bind = Command::new("mount");
        bind.arg("--bind").arg(source).arg(path);
        process::run(bind).ok();
        Self { path: path.to_owned(), _scratch: scratch.clone() }
    }

    /// Nothing can be written there any more.
    #[track_caller]
    pub fn read_only(self) -> Self {
        remount(&self.path, "remount,bind,ro");
        self
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.path).output();
    }
}

/// A file system that answers nothing, as that of an NFS server which has gone: what looks into it waits, and no signal but
/// SIGKILL ends that, until this value is dropped.
#[derive(Debug)]
pub struct Hung {
    path: PathBuf,
    /// The end at which nothing listens; once it is closed, everything there fails.
    server: Option<File>,
    _scratch: Scratch,
}

impl Hung {
    /// At a directory, which is made if it does not exist.
    #[track_caller]
    pub fn at(scratch: &Scratch, path: &Path) -> Self {
        std::fs::create_dir_all(path).expect("a directory");
        let mut server = File::options().read(true).write(true).open("/dev/fuse").expect("FUSE");
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other", server.as_raw_fd());
        let options = CString::new(options).expect("no NUL");
        rustix::mount::mount("hung", path, "fuse", MountFlags::empty(), options.as_c_str()).expect("mounted");
        greet(&mut server).expect("the kernel greets first");
        Self { path: path.to_owned(), server: Some(server), _scratch: scratch.clone() }
    }

    /// Waits until a process waits for an answer.
    #[track_caller]
    pub fn wait_until_asked(&self) {
        let server = self.server.as_ref().expect("closed when dropped");
        let limit = Timespec::try_from(crate::wait::PATIENCE).expect("a minute");
        let asked = poll(&mut [PollFd::new(server, PollFlags::IN)], Some(&limit)).expect("poll");
        assert_eq!(asked, 1, "nothing looks into {}", self.path.display());
    }
}

/// Answers the one request without which the kernel lets every signal end the waiting (FUSE_INIT, linux/fuse.h).
fn greet(server: &mut File) -> std::io::Result<()> {
    let mut request = [0; 1 << 16];
    let read = server.read(&mut request)?;
    assert!(read >= 40, "a header");
    let mut reply = [0; 16 + 64];
    let length = u32::try_from(reply.len()).expect("short");
    reply[..4].copy_from_slice(&length.to_ne_bytes());
    // whose answer this is
    reply[8..16].copy_from_slice(&request[8..16]);
    // version 7.31, and the smallest max_write
    for (at, word) in [(16, 7_u32), (20, 31), (36, 4096)] {
        reply[at..at + 4].copy_from_slice(&word.to_ne_bytes());
    }
    server.write_all(&reply)
}

impl Drop for Hung {
    fn drop(&mut self) {
        self.server.take();
        let _ = Command::new("umount").arg("--lazy").arg(&self.path).output();
    }
}
