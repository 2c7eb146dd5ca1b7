//! Everything about a directory tree, to show that an operation changed nothing.

use std::collections::BTreeMap;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    kind: &'static str,
    mode: u32,
    owner: (u32, u32),
    length: u64,
    /// Files only: a directory's changes whenever a lock file comes and goes, which may be found by its name.
    modified: Option<(i64, i64)>,
    content: u64,
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
        ("file", digest(&fs::read(path).expect("a readable file")))
    } else if metadata.is_symlink() {
        ("link", digest(&fs::read_link(path).expect("a link")))
    } else if metadata.is_dir() {
        ("directory", 0)
    } else {
        ("special", 0)
    };
    let entry = Entry {
        kind,
        mode: metadata.mode(),
        owner: (metadata.uid(), metadata.gid()),
        length: if metadata.is_dir() { 0 } else { metadata.len() },
        modified: metadata.is_file().then(|| (metadata.mtime(), metadata.mtime_nsec())),
        content,
    };
    entries.insert(path.strip_prefix(root).expect("below the root").to_owned(), entry);
    if metadata.is_dir() {
        for child in fs::read_dir(path).expect("a readable directory") {
            visit(root, &child.expect("a readable directory").path(), entries);
        }
    }
}

fn digest(content: &impl Hash) -> u64 {
    // These files are not forged: any good hash tells a change.
    let mut hasher = DefaultHasher::new();
    content.hash(&mut hasher);
    hasher.finish()
}
