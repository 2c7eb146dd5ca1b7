//! Reading small files of a directory that may hold anything: a FIFO in the place of a file must not
//! block us, nor a huge file fill our memory.

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;
use rustix::io::Errno;

/// The first `limit` bytes of a regular file; `None` if there is none. A file that cannot be read is an error.
pub(crate) fn read(path: &Path, limit: usize) -> io::Result<Option<Vec<u8>>> {
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or(0);
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        // a socket; a device that is not there
        Err(error) if Errno::from_io_error(&error) == Some(Errno::NXIO) => return Ok(None),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    if !file.metadata()?.is_file() {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    file.take(limit as u64).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

/// The same where a file that cannot be read is as good as none.
pub(crate) fn head(path: &Path, limit: usize) -> Option<Vec<u8>> {
    read(path, limit).ok().flatten()
}

/// A regular file's text, up to a megabyte.
pub(crate) fn text(path: &Path) -> Option<String> {
    String::from_utf8(head(path, 1 << 20)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_are_read() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let fifo = directory.path().join("fifo");
        let made = rustix::fs::mknodat(
            rustix::fs::CWD,
            &fifo,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        );
        made.expect("make a FIFO");
        assert_eq!(head(&fifo, 10), None);
        assert_eq!(head(directory.path(), 10), None);
        std::fs::write(directory.path().join("file"), "text").expect("write");
        assert_eq!(head(&directory.path().join("file"), 2).as_deref(), Some(&b"te"[..]));
        assert_eq!(text(&directory.path().join("file")).as_deref(), Some("text"));
        assert_eq!(read(&directory.path().join("none"), 1).expect("missing"), None);
        assert_eq!(read(&directory.path().join("file/below"), 1).expect("missing, too"), None);
        std::os::unix::fs::symlink("loop", directory.path().join("loop")).expect("link");
        assert!(read(&directory.path().join("loop"), 1).is_err(), "nothing can be said about it");
    }
}
