//! Reading small files of a directory that may hold anything: a FIFO in the place of a file must not
//! block us, nor a huge file fill our memory.

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;

/// The first `limit` bytes of a regular file; `None` if there is none, or it cannot be read.
pub(crate) fn head(path: &Path, limit: usize) -> Option<Vec<u8>> {
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).ok()?;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).ok()?;
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut bytes = Vec::new();
    file.take(limit as u64).read_to_end(&mut bytes).ok()?;
    Some(bytes)
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
    }
}
