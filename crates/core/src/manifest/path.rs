//! Paths inside a data directory.
//!
//! Every path that crosses the wire is a [`RelPath`]: parsed once, and from then on known to name
//! something beneath the directory it is opened in.

use std::fmt;
use std::path::{Path, PathBuf};

use compact_str::{CompactString, format_compact};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};

/// Longest relative path accepted, in bytes (PostgreSQL's MAXPGPATH is 1024, with its NUL).
pub const MAX_PATH: usize = 1023;

/// A normalised, non-empty path relative to a data directory: components joined by single slashes,
/// none of them empty, `.` or `..`, no NUL byte. Paths of relations in `base` are so short that none of them is allocated for,
/// so one can be made whenever it is needed.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RelPath(CompactString);

impl RelPath {
    /// Parses a path that arrived from outside.
    pub fn parse(text: &str) -> Result<Self> {
        let reason = if text.is_empty() {
            "it is empty"
        } else if text.len() > MAX_PATH {
            "it is too long"
        } else if text.contains('\0') {
            "it contains a NUL byte"
        } else if text.starts_with('/') {
            "it is absolute"
        } else if text.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
            "it has an empty, \".\" or \"..\" component"
        } else {
            return Ok(Self(text.into()));
        };
        let shown: String = text.chars().take(100).collect();
        Err(Error::new(Kind::ProtocolViolation, format!("invalid relative path {shown:?}"))
            .detail(format!("The path is refused because {reason}.")))
    }

    /// Puts together what was taken apart: a parent, empty for the directory itself, and a name.
    pub(super) fn of_parts(parent: &str, name: &str) -> Self {
        if parent.is_empty() {
            return Self(name.into());
        }
        let mut path = CompactString::with_capacity(parent.len() + 1 + name.len());
        path.push_str(parent);
        path.push('/');
        path.push_str(name);
        Self(path)
    }

    /// Appends one component or a relative path.
    pub fn join(&self, tail: &str) -> Result<Self> {
        Self::parse(&format_compact!("{}/{tail}", self.0))
    }

    /// The path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The components, at least one.
    pub fn components(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
    }

    /// The last component.
    pub fn file_name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or(&self.0)
    }

    /// The path without its last component, if anything is left.
    pub fn parent(&self) -> Option<&str> {
        self.0.rsplit_once('/').map(|(parent, _)| parent)
    }

    /// Whether the path is `ancestor` or lies beneath it.
    pub fn is_at_or_below(&self, ancestor: &str) -> bool {
        self.0.strip_prefix(ancestor).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

impl TryFrom<String> for RelPath {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        Self::parse(&text)
    }
}

impl From<RelPath> for String {
    fn from(path: RelPath) -> Self {
        path.0.into_string()
    }
}

impl AsRef<Path> for RelPath {
    fn as_ref(&self) -> &Path {
        Path::new(self.0.as_str())
    }
}

impl fmt::Debug for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.0.as_str(), f)
    }
}

impl fmt::Display for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A data directory as a person writes it, made comparable: absolute, without `.`, `..`, repeated
/// or trailing slashes. Symbolic links stay, this looks at no file system.
pub fn normalize_directory(text: &str) -> Result<PathBuf> {
    let bad = |why: &str| {
        let shown: String = text.chars().take(100).collect();
        Error::new(Kind::InvalidArgument, format!("invalid directory {shown:?}"))
            .detail(why.to_owned())
            .hint("Give the absolute path of a PostgreSQL data directory.")
    };
    if !text.starts_with('/') {
        return Err(bad("The path is not absolute."));
    }
    if text.len() > MAX_PATH {
        return Err(bad(&format!("The path is longer than {MAX_PATH} bytes.")));
    }
    if text.chars().any(char::is_control) {
        return Err(bad("The path contains a control character."));
    }
    let mut path = PathBuf::from("/");
    for part in text.split('/').filter(|part| !part.is_empty() && *part != ".") {
        if part == ".." {
            return Err(bad("The path contains a \"..\" component."));
        }
        path.push(part);
    }
    if path.parent().is_none() {
        return Err(bad("The root directory cannot be a data directory."));
    }
    Ok(path)
}

/// The same of a path. One that is not UTF-8 is refused: what is shown in place of its bytes is another path.
pub fn normalize_path(path: &Path) -> Result<PathBuf> {
    normalize_directory(demand_text(path)?)
}

/// A path as text, which is what configuration files and the other host get.
pub fn demand_text(path: &Path) -> Result<&str> {
    path.to_str().ok_or_else(|| {
        Error::new(Kind::Unsupported, format!("the path of a directory is not UTF-8: {path:?}"))
            .detail("It is told to the other host, and written into configuration files, as text in UTF-8.")
            .hint("Rename the directory, or what of its path is not UTF-8, also where a symbolic link leads there.")
    })
}

/// Whether one of two directories is, or lies in, the other.
pub fn overlap(one: &Path, other: &Path) -> bool {
    one.starts_with(other) || other.starts_with(one)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn refuses_everything_that_could_leave_the_directory() {
        for bad in ["", "/", "/etc/passwd", "..", "a/../b", "a/..", "./a", "a//b", "a/", "a\0b", "a/."] {
            assert!(RelPath::parse(bad).is_err(), "{bad:?} was accepted");
        }
        assert!(RelPath::parse(&"a".repeat(MAX_PATH + 1)).is_err());
    }

    #[test]
    fn knows_its_parts() {
        let path = RelPath::parse("base/16384/2619_vm").expect("valid");
        assert_eq!(path.file_name(), "2619_vm");
        assert_eq!(path.parent(), Some("base/16384"));
        assert!(path.is_at_or_below("base/16384"));
        assert!(path.is_at_or_below("base/16384/2619_vm"));
        assert!(!path.is_at_or_below("base/1638"));
    }

    #[test]
    fn directories_are_normalised_or_refused() {
        assert_eq!(normalize_directory("/a//b/./c/").expect("valid"), PathBuf::from("/a/b/c"));
        for bad in ["", "a", "/", "//", "/a/../b", "/a\nb"] {
            assert!(normalize_directory(bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn a_path_is_no_other_than_its_bytes() {
        use std::ffi::OsStr;
        use std::os::unix::ffi::OsStrExt;

        assert_eq!(normalize_path(Path::new("/a//\u{e9}/")), Ok(PathBuf::from("/a/\u{e9}")));
        let error = normalize_path(Path::new(OsStr::from_bytes(b"/a/\xe9"))).expect_err("not UTF-8");
        assert!(error.kind == Kind::Unsupported && error.message.contains("/a/\\xE9"), "{error}");
        assert!(error.detail.is_some() && error.hint.is_some());
    }

    #[test]
    fn a_path_of_a_relation_needs_no_allocation() {
        assert_eq!(size_of::<RelPath>(), 24);
        for (path, is_allocated) in
            [("base/16384/123456_fsm.1", false), ("pg_tblspc/16390/PG_15_202209061/5/1", true)]
        {
            assert_eq!(RelPath::parse(path).expect("valid").0.is_heap_allocated(), is_allocated, "{path}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_accepted_stays_beneath(text in "[a./\\\\\0é]{0,12}") {
            if let Ok(path) = RelPath::parse(&text) {
                let joined = Path::new("/root").join(&path);
                prop_assert!(joined.starts_with("/root"));
                prop_assert!(joined.components().count() > 2);
                let plain = joined.components().all(|part| {
                    matches!(part, std::path::Component::RootDir | std::path::Component::Normal(_))
                });
                prop_assert!(plain);
            }
        }
    }
}
