//! Data directories as files: listing them, and going through them with two threads, as fast as this
//! machine reads, compares and writes.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes of a file that one thread takes at a time.
const RANGE: u64 = 8 << 20;
const BUFFER: usize = 256 << 10;
const THREADS: usize = 2;

/// Files below a directory with their sizes, named below it, in order.
pub(crate) type Files = BTreeMap<PathBuf, u64>;

/// Part of a file.
struct Range {
    name: PathBuf,
    from: u64,
    to: u64,
}

/// The files of the relations: below `base` and `global`, named by a number. Free space maps are left
/// out: they are written without WAL, and whether one is there means nothing.
pub(crate) fn relations(root: &Path) -> io::Result<Files> {
    let mut found = below(root, Path::new("base"))?;
    found.append(&mut below(root, Path::new("global"))?);
    found.retain(|name, _| {
        let name = name.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.starts_with(|c: char| c.is_ascii_digit()) && !name.ends_with("_fsm")
    });
    Ok(found)
}

/// What a copy of the cluster has to hold: everything but WAL and what belongs to the running server.
pub(crate) fn data(root: &Path) -> io::Result<Files> {
    let mut found = all(root)?;
    found.retain(|name, _| {
        !name.starts_with("pg_wal") && !name.starts_with("postmaster.pid") && !name.starts_with("pg_replslot")
    });
    Ok(found)
}

fn below(root: &Path, directory: &Path) -> io::Result<Files> {
    let mut files = Files::new();
    let mut pending = vec![directory.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(root.join(&directory))? {
            let entry = entry?;
            let name = directory.join(entry.file_name());
            // A running server removes files of its own while we look.
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.is_dir() {
                pending.push(name);
            } else if metadata.is_file() {
                files.insert(name, metadata.len());
            }
        }
    }
    Ok(files)
}

/// Everything below a directory.
pub(crate) fn all(root: &Path) -> io::Result<Files> {
    below(root, Path::new(""))
}

/// Reads these files.
pub(crate) fn read(files: &Files, root: &Path) -> io::Result<()> {
    side_by_side(files, |range, buffer| {
        let Ok(file) = File::open(root.join(&range.name)) else {
            // a running server removes files of its own while we look
            return Ok(());
        };
        let mut at = range.from;
        while at < range.to {
            match file.read_at(wanted(buffer, at, range.to), at)? {
                0 => break,
                read => at += read as u64,
            }
        }
        Ok(())
    })
}

/// Copies these files from one directory to another that is empty, and makes them durable.
pub(crate) fn copy(files: &Files, from: &Path, to: &Path) -> io::Result<()> {
    for name in files.keys() {
        if let Some(parent) = to.join(name).parent() {
            fs::create_dir_all(parent)?;
        }
    }
    side_by_side(files, |range, buffer| {
        let source = File::open(from.join(&range.name))?;
        let target = File::options().create(true).truncate(false).write(true).open(to.join(&range.name))?;
        let mut at = range.from;
        while at < range.to {
            let read = source.read_at(wanted(buffer, at, range.to), at)?;
            if read == 0 {
                break;
            }
            target.write_all_at(&buffer[..read], at)?;
            at += read as u64;
        }
        Ok(())
    })?;
    sync(to)
}

/// The files of `files` that differ between two directories, a missing one included.
pub(crate) fn differing(files: &Files, one: &Path, other: &Path) -> io::Result<Vec<PathBuf>> {
    let found = Mutex::new(Vec::new());
    let differs = |name: &Path| found.lock().expect("no panic there").push(name.to_owned());
    side_by_side(files, |range, buffer| {
        let (a, b) = (File::open(one.join(&range.name))?, File::open(other.join(&range.name)));
        let Ok(b) = b else {
            differs(&range.name);
            return Ok(());
        };
        let (first, second) = buffer.split_at_mut(BUFFER / 2);
        let mut at = range.from;
        while at < range.to {
            let read = a.read_at(wanted(first, at, range.to), at)?;
            if read == 0 {
                break;
            }
            if b.read_exact_at(&mut second[..read], at).is_err() || first[..read] != second[..read] {
                differs(&range.name);
                return Ok(());
            }
            at += read as u64;
        }
        if b.metadata()?.len() != a.metadata()?.len() {
            differs(&range.name);
        }
        Ok(())
    })?;
    let mut found = found.into_inner().expect("no panic there");
    found.sort();
    found.dedup();
    Ok(found)
}

fn wanted(buffer: &mut [u8], at: u64, end: u64) -> &mut [u8] {
    let length = usize::try_from(end - at).unwrap_or(usize::MAX).min(buffer.len());
    &mut buffer[..length]
}

/// Every range of every file, taken in turn by two threads.
fn side_by_side(files: &Files, work: impl Fn(&Range, &mut [u8]) -> io::Result<()> + Sync) -> io::Result<()> {
    let mut ranges = Vec::new();
    for (name, size) in files {
        let mut from = 0;
        // An empty file is a range, too: it has to be made, or to be there.
        loop {
            let to = (from + RANGE).min(*size);
            ranges.push(Range { name: name.clone(), from, to });
            from = to;
            if from >= *size {
                break;
            }
        }
    }
    let next = AtomicUsize::new(0);
    let worker = || {
        let mut buffer = vec![0; BUFFER];
        while let Some(range) = ranges.get(next.fetch_add(1, Ordering::Relaxed)) {
            work(range, &mut buffer)?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(worker)).collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("no panic there"))
    })
}

/// Writes all that is dirty on the directory's file system to its disk.
pub(crate) fn sync(directory: &Path) -> io::Result<()> {
    rustix::fs::syncfs(File::open(directory)?)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_equal_until_it_is_damaged() {
        let root = tempfile::tempdir().expect("a directory");
        let (one, other) = (root.path().join("one"), root.path().join("other"));
        fs::create_dir_all(one.join("base/1")).expect("directories");
        fs::create_dir_all(one.join("global")).expect("directories");
        fs::create_dir(&other).expect("a directory");
        fs::write(one.join("base/1/10"), vec![1; 20 << 20]).expect("a file");
        fs::write(one.join("base/1/11"), "").expect("a file");
        fs::write(one.join("base/1/PG_VERSION"), "15").expect("a file");
        let files = relations(&one).expect("the files");
        assert_eq!(files.len(), 2);
        copy(&files, &one, &other).expect("a copy");
        assert!(differing(&files, &one, &other).expect("a comparison").is_empty());
        fs::write(other.join("base/1/10"), vec![1; 19 << 20]).expect("a file");
        fs::remove_file(other.join("base/1/11")).expect("a file");
        assert_eq!(differing(&files, &one, &other).expect("a comparison").len(), 2);
    }
}
