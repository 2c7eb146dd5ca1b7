//! Files read and written past the page cache where that is faster and kinder to other programs.
//!
//! A run reads every byte of a cluster once. Through the page cache that would push out what the server
//! has there, and cost memory and a copy for pages that are not read again. So what is not cached is read
//! with `O_DIRECT`, and long runs are written so. The kernel keeps both ways coherent.

use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;

use rustix::fs::{Advice, OFlags, fadvise, fcntl_getfl, fcntl_setfl};
use rustix::io::{Errno, ReadWriteFlags, preadv2};

use crate::sys::buffer::ALIGNMENT;

/// Shortest direct read or write, bytes. Each waits for the disk, so short ones are left to the kernel to
/// gather.
const DIRECT: usize = 128 << 10;

/// A file that switches between the page cache and direct I/O. Nothing else may use the same open file.
#[derive(Debug)]
pub(crate) struct DirectFile {
    file: File,
    mode: Mode,
    /// Whether the kernel was told to read nothing ahead.
    is_advised: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Cached,
    Direct,
    /// The file system cannot do direct I/O.
    AlwaysCached,
}

impl DirectFile {
    /// Takes a file that was opened without `O_DIRECT`.
    pub(crate) const fn new(file: File) -> Self {
        Self { file, mode: Mode::Cached, is_advised: false }
    }

    /// The open file.
    pub(crate) const fn file(&self) -> &File {
        &self.file
    }

    /// Has the disk begin to read what is wanted next, given as offsets and lengths, all at once: one after the other, each would wait for
    /// it. A single one is left out, and so are long ones, which may be read past the page cache.
    pub(crate) fn will_need(&self, ranges: impl ExactSizeIterator<Item = (u64, usize)>) {
        if ranges.len() < 2 {
            return;
        }
        for (offset, length) in ranges.filter(|(_, length)| (1..DIRECT).contains(length)) {
            // where nothing takes the advice, they are read as they come
            let _ = fadvise(&self.file, offset, NonZeroU64::new(length as u64), Advice::WillNeed);
        }
    }

    /// Fills `buffer` from `offset` on; less only at the end of the file.
    pub(crate) fn read_full(&mut self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        if is_for_direct(buffer, offset)
            && let Some(missed) = self.first_miss(offset, buffer.len())
            && self.enter(Mode::Direct)
        {
            let read = self.fill(buffer, offset);
            // looking for it had the kernel cache that page
            let _ = fadvise(&self.file, missed, NonZeroU64::new(ALIGNMENT as u64), Advice::DontNeed);
            match read {
                Err(error) if is_refusal(&error) => self.give_up(),
                done => return done,
            }
        }
        self.enter(Mode::Cached);
        self.fill(buffer, offset)
    }

    /// Writes all of `bytes`; true if they went past the page cache. They last only once the file is
    /// synced, whichever way they went.
    pub(crate) fn write_all(&mut self, bytes: &[u8], offset: u64) -> io::Result<bool> {
        if is_for_direct(bytes, offset) && self.enter(Mode::Direct) {
            match self.file.write_all_at(bytes, offset) {
                Err(error) if is_refusal(&error) => self.give_up(),
                done => return done.map(|()| true),
            }
        }
        self.enter(Mode::Cached);
        self.file.write_all_at(bytes, offset).map(|()| false)
    }

    fn fill(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.file.read_at(&mut buffer[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            // a direct read ends unaligned at the end of the file only, and cannot go on from there
            if self.mode == Mode::Direct && !filled.is_multiple_of(ALIGNMENT) {
                break;
            }
        }
        Ok(filled)
    }

    /// Where the page cache lacks a range, judged by two of its pages; `None` if it has it, or if the kernel
    /// or the file system does not tell.
    fn first_miss(&mut self, offset: u64, length: usize) -> Option<u64> {
        if self.mode == Mode::AlwaysCached {
            return None;
        }
        self.enter(Mode::Cached);
        if !self.is_advised {
            // Looking for a page must not have the kernel read more. A file system that does not take the
            // advice does.
            let _ = fadvise(&self.file, 0, None, Advice::Random);
            self.is_advised = true;
        }
        let middle = length / 2 / ALIGNMENT * ALIGNMENT;
        [offset, offset + middle as u64].into_iter().find(|&at| {
            let mut byte = [0];
            let mut probe = [io::IoSliceMut::new(&mut byte)];
            preadv2(&self.file, &mut probe, at, ReadWriteFlags::NOWAIT) == Err(Errno::AGAIN)
        })
    }

    /// Switches; false if the file system will not.
    fn enter(&mut self, mode: Mode) -> bool {
        if self.mode == mode {
            return true;
        }
        if self.mode == Mode::AlwaysCached {
            return false;
        }
        let switched = fcntl_getfl(&self.file).and_then(|flags| {
            let flags = if mode == Mode::Direct { flags | OFlags::DIRECT } else { flags - OFlags::DIRECT };
            fcntl_setfl(&self.file, flags)
        });
        self.mode = if switched.is_ok() { mode } else { Mode::AlwaysCached };
        switched.is_ok()
    }

    /// Larger blocks than anybody knows of, or a file system that notices only when it is asked to read.
    fn give_up(&mut self) {
        self.enter(Mode::Cached);
        self.mode = Mode::AlwaysCached;
    }
}

fn is_for_direct(memory: &[u8], offset: u64) -> bool {
    memory.len() >= DIRECT
        && memory.len().is_multiple_of(ALIGNMENT)
        && memory.as_ptr().addr().is_multiple_of(ALIGNMENT)
        && offset.is_multiple_of(ALIGNMENT as u64)
}

fn is_refusal(error: &io::Error) -> bool {
    Errno::from_io_error(error) == Some(Errno::INVAL)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sys::buffer::Buffer;

    /// Where file systems differ: /tmp is usually on a disk, /dev/shm never.
    fn files() -> impl Iterator<Item = tempfile::NamedTempFile> {
        ["/tmp", "/dev/shm"]
            .into_iter()
            .filter_map(|directory| tempfile::NamedTempFile::new_in(directory).ok())
    }

    fn buffer(length: usize, byte: u8) -> Buffer {
        let mut buffer = Buffer::new();
        buffer.resize(length);
        buffer.fill(byte);
        buffer
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20))]

        #[test]
        fn both_ways_see_the_same_bytes(
            writes in prop::collection::vec((0_u64..200, 1_usize..200, 0_usize..3), 1..12),
            reads in prop::collection::vec((0_u64..250, 1_usize..200, 0_usize..3), 1..12),
        ) {
            for file in files() {
                let mut writer = DirectFile::new(file.reopen().expect("reopens"));
                let mut model = Vec::new();
                for (number, &(page, pages, odd)) in writes.iter().enumerate() {
                    let (offset, length) = (page * 4096 + odd as u64, pages * 4096 - odd);
                    writer.write_all(&buffer(length, number as u8 + 1), offset).expect("writes");
                    let end = offset as usize + length;
                    model.resize(model.len().max(end), 0);
                    model[offset as usize..end].fill(number as u8 + 1);
                }
                prop_assert!(std::fs::read(file.path()).expect("reads") == model);
                let mut reader = DirectFile::new(file.reopen().expect("reopens"));
                for &(page, pages, odd) in &reads {
                    // now and then nothing of the file is cached
                    if page % 2 == 0 {
                        file.as_file().sync_all().expect("syncs");
                        fadvise(file.as_file(), 0, None, Advice::DontNeed).expect("advises");
                    }
                    let (offset, length) = (page * 4096 + odd as u64, pages * 4096 - odd);
                    let mut found = buffer(length, 0);
                    let count = reader.read_full(&mut found, offset).expect("reads");
                    let start = model.len().min(offset as usize);
                    let end = model.len().min(offset as usize + length);
                    prop_assert!(found[..count] == model[start..end]);
                }
            }
        }
    }

    /// Whether a file that is read once is not in the page cache afterwards; true where it cannot be.
    fn stays_uncached() -> bool {
        let file = tempfile::NamedTempFile::new_in("/tmp").expect("a file");
        let mut writer = DirectFile::new(file.reopen().expect("reopens"));
        let is_direct = writer.write_all(&buffer(1 << 20, 7), 0).expect("writes");
        file.as_file().sync_all().expect("syncs");
        if !is_direct {
            // this file system has only the page cache
            return true;
        }
        let mut reader = DirectFile::new(file.reopen().expect("reopens"));
        let mut content = buffer(256 << 10, 0);
        for offset in [0, 256 << 10, 512 << 10, 768 << 10] {
            assert_eq!(reader.read_full(&mut content, offset).expect("reads"), 256 << 10);
            assert!(content.iter().all(|&byte| byte == 7));
        }
        let mut again = DirectFile::new(file.reopen().expect("reopens"));
        // other pages than those that the reader looked for: looking may bring in the page itself
        again.first_miss(276 << 10, 64 << 10).is_some()
    }

    #[test]
    fn what_was_not_cached_stays_so() {
        // The kernel begins to read a page that is looked for. Where the disk has it before the kernel looks again, which a
        // processor that serves the disk's interrupts sees often, it counts as cached.
        let once = |_| {
            std::thread::sleep(std::time::Duration::from_millis(20));
            std::thread::spawn(stays_uncached).join().expect("no panic")
        };
        assert!((0..50).any(once), "reading it once filled the page cache");
    }

    /// Whether the page cache has a page. Looking for it has the kernel read it, so the answer is one for the first look only.
    fn has_cached(file: &File, page: u64) -> bool {
        let mut byte = [0];
        let mut probe = [io::IoSliceMut::new(&mut byte)];
        preadv2(file, &mut probe, page * 4096, ReadWriteFlags::NOWAIT).is_ok()
    }

    #[test]
    fn what_is_wanted_next_is_read_before_it_is_asked_for() {
        let temporary = tempfile::NamedTempFile::new_in("/tmp").expect("a file");
        std::fs::write(temporary.path(), vec![7; 4 << 20]).expect("writes");
        let file = DirectFile::new(temporary.reopen().expect("reopens"));
        let forget = || {
            file.file().sync_all().expect("syncs");
            fadvise(file.file(), 0, None, Advice::DontNeed).expect("advises");
            fadvise(file.file(), 0, None, Advice::Random).expect("advises");
            !has_cached(file.file(), 900)
        };
        if !forget() {
            // this file system has only the page cache
            return;
        }
        let page = |number: u64| (number * 4096, 8192);
        // the disk may be slow, and the kernel may give pages away again
        let is_read = wait(|| {
            forget();
            file.will_need([10, 300, 600].map(page).into_iter());
            std::thread::sleep(std::time::Duration::from_millis(20));
            [10, 11, 300, 301, 600, 601].into_iter().all(|page| has_cached(file.file(), page))
        });
        assert!(is_read, "they were not read");
        assert!(wait(|| {
            forget();
            file.will_need([page(10)].into_iter());
            file.will_need([(0, DIRECT), (DIRECT as u64, DIRECT)].into_iter());
            std::thread::sleep(std::time::Duration::from_millis(20));
            [10, 20, 40].into_iter().all(|page| !has_cached(file.file(), page))
        }));
    }

    fn wait(is_so: impl FnMut() -> bool) -> bool {
        std::iter::repeat_with(is_so).take(50).any(|is_so| is_so)
    }
}
