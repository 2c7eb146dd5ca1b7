//! Reading the primary's files while its server writes them, and checking their pages.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use pgdata::checksum::{self, Verdict};
use pgdata::wal::Lsn;

use crate::error::{Error, Kind, Result};
use crate::manifest::dropped::{is_dropped, is_of_postgresql};
use crate::manifest::exclude::{RelationFile, holds_relations};
use crate::manifest::list::FileList;
use crate::manifest::path::RelPath;
use crate::manifest::plan::Range;
use crate::sys::direct::DirectFile;

/// How often a page whose checksum is wrong is read again: the server may be writing it.
const RETRIES: usize = 5;

/// How long the server is given to finish writing such a page.
const PATIENCE: Duration = Duration::from_millis(1);

/// How page checksums are verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checksums {
    /// Size of a page, bytes.
    pub block_size: u32,
    /// Pages in one segment file of a relation.
    pub segment_blocks: u32,
    /// Pages at or after it may be torn: replay restores them.
    pub start_lsn: Lsn,
}

/// The files of a plan; keeps the last one open.
pub(super) struct Reader<'a> {
    data_directory: &'a Path,
    files: &'a FileList,
    checksums: Option<Checksums>,
    open: Option<(u32, Option<DirectFile>)>,
}

impl<'a> Reader<'a> {
    pub(super) const fn new(
        data_directory: &'a Path,
        files: &'a FileList,
        checksums: Option<Checksums>,
    ) -> Self {
        Self { data_directory, files, checksums, open: None }
    }

    /// Turns to ranges of one file, which are read next.
    pub(super) fn expect(&mut self, ranges: &[Range]) -> Result<()> {
        let Some(first) = ranges.first() else { return Ok(()) };
        let path = self.files.path(first.file as usize);
        if let Some(file) = self.turn_to(first.file, &path)? {
            file.will_need(Range::places(ranges));
        }
        Ok(())
    }

    /// Reads a range into `buffer`, which is as long, and checks its pages. Returns how much there is, or
    /// `None` if the file is gone.
    pub(super) fn read(&mut self, range: &Range, buffer: &mut [u8]) -> Result<Option<usize>> {
        let checksums = self.checksums;
        let path = &self.files.path(range.file as usize);
        let Some(file) = self.turn_to(range.file, path)? else {
            return Ok(None);
        };
        let length = file.read_full(buffer, range.offset).map_err(unreadable(path))?;
        if let Some(checksums) = checksums {
            verify(checksums, path, file, range, &mut buffer[..length])?;
        }
        Ok(Some(length))
    }

    /// The file of this number, open; `None` if it is gone.
    fn turn_to(&mut self, number: u32, path: &RelPath) -> Result<Option<&mut DirectFile>> {
        if !matches!(&self.open, Some((open, _)) if *open == number) {
            let file = open(self.data_directory, path)?.map(DirectFile::new);
            self.open = Some((number, file));
        }
        Ok(self.open.as_mut().and_then(|(_, file)| file.as_mut()))
    }
}

/// Opens a file; `None` if it was dropped. One that is missing although it was not is an error: the target's would be emptied.
fn open(data_directory: &Path, path: &RelPath) -> Result<Option<File>> {
    let place = data_directory.join(path);
    let mut opened = File::open(&place);
    if opened.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound) {
        if !is_of_postgresql(path) || is_dropped(data_directory, path)? {
            return Ok(None);
        }
        opened = File::open(&place);
    }
    opened.map(Some).map_err(|error| unreadable(path)(error).with_owner(&place))
}

/// Checks the pages' checksums as pg_basebackup does; a page that stays bad fails the run.
fn verify(
    checksums: Checksums,
    path: &RelPath,
    file: &mut DirectFile,
    range: &Range,
    content: &mut [u8],
) -> Result<()> {
    let relation =
        RelationFile::parse(path.file_name()).filter(|_| path.parent().is_some_and(holds_relations));
    let Some(relation) = relation else {
        return Ok(());
    };
    let size = checksums.block_size as usize;
    let first = relation.segment * checksums.segment_blocks
        + u32::try_from(range.offset / size as u64).unwrap_or(u32::MAX);
    for (index, page) in content.chunks_exact_mut(size).enumerate() {
        let block = first + u32::try_from(index).unwrap_or(u32::MAX);
        let mut verdict = checksum::verify(page, block, checksums.start_lsn);
        for _ in 0..RETRIES {
            if !matches!(verdict, Verdict::Bad { .. }) {
                break;
            }
            std::thread::sleep(PATIENCE);
            let offset = range.offset + (index * size) as u64;
            if file.read_full(page, offset).map_err(unreadable(path))? < size {
                // truncated meanwhile: the page is none any more
                return Ok(());
            }
            verdict = checksum::verify(page, block, checksums.start_lsn);
        }
        if let Verdict::Bad { computed, stored } = verdict {
            return Err(corrupt_page(path.as_str(), block, computed, stored));
        }
    }
    Ok(())
}

fn unreadable(path: &RelPath) -> impl Fn(std::io::Error) -> Error {
    move |error| Error::io(format_args!("read file \"{path}\" of the primary"), &error)
}

/// The error for a page that stayed bad after being read again.
fn corrupt_page(path: &str, block: u32, computed: u16, stored: u16) -> Error {
    Error::new(Kind::Corrupt, format!("checksum verification failed in file \"{path}\", block {block}"))
        .detail(format!("The checksum calculated is {computed:X}, but the page carries {stored:X}."))
        .hint(
            "The page is damaged on the primary. Repair it there; or set pgpool_recovery.verify_checksums \
             = off to copy it as it is.",
        )
}
