//! Everything about a directory tree, to show that an operation changed nothing.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Of a file its bytes, of a link where it leads.
#[derive(Clone, PartialEq, Eq)]
struct Content(Vec<u8>);

impl std::fmt::Debug for Content {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes, the first {:x?}", self.0.len(), &self.0[..self.0.len().min(16)])
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    kind: &'static str,
    mode: u32,
    owner: (u32, u32),
    length: u64,
    /// Files only: a directory's changes whenever a lock file comes and goes, which may be found by its name.
    modified: Option<(i64, i64)>,
    content: Content,
}

/// A tree as it was at one moment. A path that does not exist is an empty tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    entries: BTreeMap<PathBuf, Entry>,
}

impl Snapshot {
    pub fn of(root: &Path) -> Self {
        let mut entries = BTreeMap::new();
        if fs::symlink_metadata(root).is_ok() {
            visit(root, root, &mut entries);
        }
        Self { entries }
    }

    /// Insists that the tree is still as it was, naming what is not.
    #[track_caller]
    pub fn assert_unchanged(&self, root: &Path) {
        let now = Self::of(root);
        let differences: Vec<String> = self
            .entries
            .keys()
            .chain(now.entries.keys().filter(|path| !self.entries.contains_key(*path)))
            .filter(|path| self.entries.get(*path) != now.entries.get(*path))
            .map(|path| {
                format!("{}: {:?} became {:?}", path.display(), self.entries.get(path), now.entries.get(path))
            })
            .collect();
        assert!(differences.is_empty(), "{} changed:\n{}", root.display(), differences.join("\n"));
    }

    /// The names in the tree alone.
    pub fn names(&self) -> Vec<&Path> {
        self.entries.keys().map(PathBuf::as_path).collect()
    }
}

fn visit(root: &Path, path: &Path, entries: &mut BTreeMap<PathBuf, Entry>) {
    let metadata = fs::symlink_metadata(path).expect("a tree that nothing else changes");
    let (kind, content) = if metadata.is_file() {
        ("file", fs::read(path).expect("a readable file"))
    } else if metadata.is_symlink() {
        ("link", fs::read_link(path).expect("a link").into_os_string().into_vec())
    } else if metadata.is_dir() {
        ("directory", Vec::new())
    } else {
        ("special", Vec::new())
    };
    let entry = Entry {
        kind,
        mode: metadata.mode(),
        owner: (metadata.uid(), metadata.gid()),
        length: if metadata.is_dir() { 0 } else { metadata.len() },
        modified: metadata.is_file().then(|| (metadata.mtime(), metadata.mtime_nsec())),
        content: Content(content),
    };
    entries.insert(path.strip_prefix(root).expect("below the root").to_owned(), entry);
    if metadata.is_dir() {
        for child in fs::read_dir(path).expect("a readable directory") {
            visit(root, &child.expect("a readable directory").path(), entries);
        }
    }
}
