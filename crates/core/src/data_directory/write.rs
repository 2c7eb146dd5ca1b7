//! Writing a file of the target.

use std::fs::File;
use std::io;

use crate::sys::direct::DirectFile;

/// Bytes left in the page cache after which the kernel should begin to write them.
const DIRTY: u64 = 32 << 20;

/// A file that is open for writing.
pub(crate) struct Writer {
    file: DirectFile,
    dirty: u64,
    is_direct: bool,
}

impl Writer {
    /// A writer of `file`, which has the open file to itself.
    pub(crate) const fn new(file: File) -> Self {
        Self { file: DirectFile::new(file), dirty: 0, is_direct: false }
    }

    /// Writes all of `bytes`. They last only once the file is synced.
    pub(crate) fn write_all(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let is_on_disk = self.file.write_all(bytes, offset)?;
        self.is_direct |= is_on_disk;
        self.dirty += if is_on_disk { 0 } else { bytes.len() as u64 };
        Ok(())
    }

    /// The open file.
    pub(crate) const fn file(&self) -> &File {
        self.file.file()
    }

    /// Whether some of it was written past the page cache.
    pub(crate) const fn is_direct(&self) -> bool {
        self.is_direct
    }

    /// The file, if so much of it is in the page cache only that writing it to disk should begin.
    pub(crate) fn take_dirty(&mut self) -> Option<File> {
        if self.dirty < DIRTY {
            return None;
        }
        self.dirty = 0;
        // without a second handle it is synced at the end
        self.file.file().try_clone().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_small_writes_ask_for_a_sync() {
        let mut writer = Writer::new(tempfile::tempfile().expect("a file"));
        writer.write_all(&[1; 8192], 0).expect("writes");
        assert!(writer.take_dirty().is_none());
        for number in 0..DIRTY / 8192 {
            writer.write_all(&[1; 8192], number * 8192).expect("writes");
        }
        assert!(writer.take_dirty().is_some());
        assert!(writer.take_dirty().is_none());
    }
}
