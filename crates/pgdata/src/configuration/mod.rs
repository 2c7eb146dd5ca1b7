//! Configuration files as a server reads them: bytes, line by line, with the files that they include
//! (PostgreSQL's `ParseConfigFp` and its neighbours in src/backend/utils/misc/guc-file.l).
//!
//! Nothing here knows what a setting means.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use rustix::fs::OFlags;

pub mod line;

use line::Line;

/// Most bytes read of one configuration, all files together.
pub const MAX_BYTES: u64 = 16 << 20;

/// Most files and directories that one configuration includes.
const MAX_FILES: usize = 1000;

/// Most settings of one configuration.
const MAX_ITEMS: usize = 100_000;

/// How deep files may include each other (CONF_FILE_MAX_DEPTH).
const MAX_DEPTH: usize = 10;

/// One thing that a configuration says, or that keeps it from being read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// The file that says it.
    pub file: Arc<Path>,
    /// The line, counted from 1.
    pub line: u32,
    /// What it says.
    pub what: What,
}

/// What a line of a configuration does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// It sets a parameter.
    Setting {
        /// As written.
        name: Vec<u8>,
        /// Without quotes.
        value: Vec<u8>,
    },
    /// It includes the file whose place was to be noted.
    Mark,
    /// It includes a file or directory that does not exist, so the server does not start.
    Missing(PathBuf),
    /// It includes a file, if that exists, which cannot be opened: the server skips it. A clause that says why.
    Skipped(String),
    /// The server does not start because of it, or its content cannot be told: a clause that says why.
    Problem(String),
}

/// A configuration, flattened in the order in which a server reads it: of two settings the later one counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reading {
    /// What it says, in order.
    pub items: Vec<Item>,
    /// The files that were read, and those included that are missing; the marked one is not among them.
    pub files: Vec<PathBuf>,
    /// The directories named by `include_dir`.
    pub directories: Vec<PathBuf>,
}

impl Reading {
    /// Reads the configuration that begins with `file` (absolute). A missing `file` is an empty configuration.
    ///
    /// The file at `mark` is not read; a [`What::Mark`] stands where it is included.
    pub fn of(file: &Path, mark: Option<&Path>) -> Self {
        let mark = mark.map(Place::of);
        let mut reader =
            Reader { reading: Self::default(), mark, left: MAX_BYTES, opened: 0, is_full: false };
        match content(file, MAX_BYTES) {
            Ok(bytes) => reader.text(&Arc::from(file), &bytes, 0),
            Err(error) if is_missing(&error) => {}
            Err(error) => {
                let problem = What::Problem(cannot_read(file, &error));
                reader.note(&Arc::from(file), 0, problem);
            }
        }
        reader.reading
    }

    /// The value of a parameter as the server has it after reading all.
    pub fn value(&self, name: &str) -> Option<&[u8]> {
        self.items.iter().rev().find_map(|item| match &item.what {
            What::Setting { name: set, value } if is_named(set, name) => Some(value.as_slice()),
            _ => None,
        })
    }
}

/// Whether a setting's name is this one: PostgreSQL's `guc_name_compare`.
pub fn is_named(name: &[u8], wanted: &str) -> bool {
    name.eq_ignore_ascii_case(wanted.as_bytes())
}

/// A file's text without the lines whose name and value `drop` wants gone.
pub fn without(text: &[u8], drop: impl Fn(&[u8], &[u8]) -> bool) -> Vec<u8> {
    let stays = |text: &&[u8]| match line::parse(text) {
        Line::Setting { name, value } => !drop(&name, &value),
        Line::Empty | Line::Malformed => true,
    };
    text.split_inclusive(|byte| *byte == b'\n').filter(stays).flatten().copied().collect()
}

/// The path a setting's value names.
pub fn path(value: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(value))
}

/// All bytes of a regular file. An error if it has more than `limit`.
pub fn content(file: &Path, limit: u64) -> io::Result<Vec<u8>> {
    all_of(open(file)?, limit)
}

/// A FIFO in the place of a file does not block us.
fn open(file: &Path) -> io::Result<fs::File> {
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).map_err(io::Error::other)?;
    fs::OpenOptions::new().read(true).custom_flags(flags).open(file)
}

fn all_of(opened: fs::File, limit: u64) -> io::Result<Vec<u8>> {
    let found = opened.metadata()?;
    // a link to /dev/null stands for an empty file
    let is_null = found.file_type().is_char_device() && found.rdev() == rustix::fs::makedev(1, 3);
    if !found.is_file() && !is_null {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut bytes = Vec::new();
    opened.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::other(format!("it is larger than {limit} bytes")));
    }
    Ok(bytes)
}

struct Reader {
    reading: Reading,
    mark: Option<Place>,
    /// Bytes that may still be read.
    left: u64,
    /// Files and directories that were looked for.
    opened: usize,
    /// A bound was reached.
    is_full: bool,
}

impl Reader {
    fn note(&mut self, file: &Arc<Path>, line: u32, what: What) {
        if self.is_full {
            return;
        }
        let what = if self.reading.items.len() < MAX_ITEMS {
            what
        } else {
            self.is_full = true;
            What::Problem(format!("it has more than {MAX_ITEMS} settings"))
        };
        self.reading.items.push(Item { file: Arc::clone(file), line, what });
    }

    fn may_open(&mut self, from: &Arc<Path>, line: u32) -> bool {
        self.opened += 1;
        if self.opened > MAX_FILES {
            self.note(from, line, What::Problem(format!("more than {MAX_FILES} files are included")));
            self.is_full = true;
        }
        !self.is_full
    }

    fn text(&mut self, file: &Arc<Path>, bytes: &[u8], depth: usize) {
        self.left = self.left.saturating_sub(bytes.len() as u64);
        self.reading.files.push(file.to_path_buf());
        for (number, text) in (1..).zip(bytes.split_inclusive(|byte| *byte == b'\n')) {
            if self.is_full {
                return;
            }
            match line::parse(text) {
                Line::Empty => {}
                Line::Malformed => self.note(file, number, What::Problem("syntax error".to_owned())),
                Line::Setting { name, value } if is_named(&name, "include_dir") => {
                    self.directory(file, number, &value, depth + 1);
                }
                Line::Setting { name, value } if is_named(&name, "include_if_exists") => {
                    self.include(file, number, &value, depth + 1, false);
                }
                Line::Setting { name, value } if is_named(&name, "include") => {
                    self.include(file, number, &value, depth + 1, true);
                }
                Line::Setting { name, value } => self.note(file, number, What::Setting { name, value }),
            }
        }
    }

    fn include(&mut self, from: &Arc<Path>, line: u32, value: &[u8], depth: usize, is_strict: bool) {
        match location(from, value) {
            Ok(path) => self.file(from, line, &path, depth, is_strict),
            Err(problem) => self.note(from, line, What::Problem(problem)),
        }
    }

    fn file(&mut self, from: &Arc<Path>, line: u32, path: &Path, depth: usize, is_strict: bool) {
        if self.mark.as_ref().is_some_and(|mark| mark.is(path)) {
            return self.note(from, line, What::Mark);
        }
        if !self.may_open(from, line) {
            return;
        }
        let problem = if depth > MAX_DEPTH {
            format!("files include each other more than {MAX_DEPTH} levels deep")
        } else if path == &**from {
            "the file includes itself".to_owned()
        } else {
            match open(path) {
                Ok(opened) => match all_of(opened, self.left) {
                    Ok(bytes) => return self.text(&Arc::from(path), &bytes, depth),
                    Err(error) => cannot_read(path, &error),
                },
                Err(error) if is_missing(&error) => {
                    self.reading.files.push(path.to_owned());
                    if is_strict {
                        self.note(from, line, What::Missing(path.to_owned()));
                    }
                    return;
                }
                // whatever the error is
                Err(error) if !is_strict => {
                    self.reading.files.push(path.to_owned());
                    return self.note(from, line, What::Skipped(cannot_read(path, &error)));
                }
                Err(error) => cannot_read(path, &error),
            }
        };
        self.note(from, line, What::Problem(problem));
    }

    fn directory(&mut self, from: &Arc<Path>, line: u32, value: &[u8], depth: usize) {
        let path = match location(from, value) {
            Ok(path) => path,
            Err(problem) => return self.note(from, line, What::Problem(problem)),
        };
        if !self.may_open(from, line) {
            return;
        }
        self.reading.directories.push(path.clone());
        match configuration_files(&path) {
            Ok(files) => files.iter().for_each(|file| self.file(from, line, file, depth, true)),
            Err(error) if is_missing(&error) => self.note(from, line, What::Missing(path)),
            Err(error) => self.note(from, line, What::Problem(cannot_read(&path, &error))),
        }
    }
}

/// The files that `include_dir` reads, in its order (`GetConfFilesInDir`).
fn configuration_files(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name();
        let bytes = name.as_bytes();
        if bytes.len() < 6 || bytes.starts_with(b".") || !bytes.ends_with(b".conf") {
            continue;
        }
        let file = directory.join(name);
        // a link that leads nowhere keeps the server from starting
        match fs::metadata(&file) {
            Ok(metadata) if metadata.is_dir() => {}
            Ok(_) => files.push(file),
            Err(error) => {
                return Err(io::Error::other(format!(
                    "\"{}\" in it cannot be read: {error}",
                    file.display()
                )));
            }
        }
    }
    files.sort();
    Ok(files)
}

/// Where an included file is: relative to the directory of the file that includes it.
fn location(from: &Path, value: &[u8]) -> Result<PathBuf, String> {
    if value.iter().all(|byte| b" \t\r\n".contains(byte)) {
        return Err("the name of a file to include is empty".to_owned());
    }
    let joined = from.parent().unwrap_or(Path::new("/")).join(OsString::from_vec(value.to_vec()));
    let mut plain = PathBuf::new();
    for component in joined.components() {
        match component {
            Component::ParentDir => {
                plain.pop();
            }
            other => plain.push(other),
        }
    }
    // PostgreSQL 16 and later take ".." out of the name, earlier ones leave it to the system, which follows links
    let has_parent = joined.components().any(|component| component == Component::ParentDir);
    if has_parent && joined.canonicalize().ok() != plain.canonicalize().ok() {
        let shown = joined.display();
        return Err(format!(
            "\"{shown}\" leads to different files, depending on whether \"..\" follows links"
        ));
    }
    Ok(plain)
}

fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn cannot_read(path: &Path, error: &io::Error) -> String {
    format!("\"{}\" cannot be read: {error}", path.display())
}

/// A place for a file, whatever links lead to its directory.
struct Place {
    path: PathBuf,
    resolved: Option<PathBuf>,
}

impl Place {
    fn of(path: &Path) -> Self {
        Self { path: path.to_owned(), resolved: resolved(path) }
    }

    fn is(&self, path: &Path) -> bool {
        self.path == path
            || self.path.file_name() == path.file_name()
                && self.resolved.is_some()
                && self.resolved == resolved(path)
    }
}

fn resolved(path: &Path) -> Option<PathBuf> {
    Some(path.parent()?.canonicalize().ok()?.join(path.file_name()?))
}

#[cfg(test)]
mod tests;
