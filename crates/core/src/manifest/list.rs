//! Many files in little memory.

use std::collections::HashMap;
use std::ops::Range;

use compact_str::CompactString;

use crate::error::{Error, Kind, Result};
use crate::manifest::path::{MAX_PATH, RelPath};
use crate::manifest::plan::File;
use crate::manifest::sizes::Sizes;
use crate::sys::blocks::{Blocks, Text};

/// Files of which one has the place of its name in full: the names of so many lie within the reach of a u16.
const GROUP: usize = 64;

/// Bytes that few names have more of.
const USUAL_NAME: usize = 32;

const _: () = assert!(GROUP * MAX_PATH <= u16::MAX as usize);

/// Files, by number. Besides its name a file takes six bytes, if most of its neighbours have its directory and mode: there may be
/// millions, and both ends keep them for a whole run. A [`File`] is made when it is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FileList {
    /// All names without their directories, one after the other. Those of a group lie in one block.
    names: Text,
    /// Where each name ends, counted from where those of its group begin.
    ends: Blocks<u16>,
    /// Where the names of each group begin: the block, and where in it.
    groups: Blocks<(usize, usize)>,
    sizes: Sizes,
    runs: Vec<Run>,
}

/// Neighbours that lie in one directory and have one mode.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Run {
    first: u32,
    mode: u32,
    /// Empty for the data directory.
    directory: CompactString,
}

impl FileList {
    /// How many files there are.
    pub fn len(&self) -> usize {
        self.sizes.len()
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.sizes.is_empty()
    }

    /// The bytes of all files, or as many as can be counted.
    pub fn bytes(&self) -> u64 {
        self.sizes.iter().fold(0, u64::saturating_add)
    }

    /// Adds a file, which gets the next number.
    pub fn push(&mut self, file: &File) {
        let directory = file.path.parent().unwrap_or_default();
        if self.runs.last().is_none_or(|run| run.mode != file.mode || run.directory != directory) {
            let first = u32::try_from(self.len()).unwrap_or(u32::MAX);
            self.runs.push(Run { first, mode: file.mode, directory: directory.into() });
        }
        if self.len().is_multiple_of(GROUP) {
            let begin = self.names.with_room(GROUP * USUAL_NAME).len();
            self.groups.push((self.names.len() - 1, begin));
        }
        let names = self.names.last_mut();
        names.push_str(file.path.file_name());
        let (_, begin) = self.groups.last().copied().unwrap_or_default();
        self.ends.push(u16::try_from(names.len() - begin).unwrap_or(u16::MAX));
        self.sizes.push(file.size);
    }

    /// The file of this number, if there is one.
    pub fn get(&self, number: usize) -> Option<File> {
        (number < self.len()).then(|| self.file(number))
    }

    /// The file of this number, which must be one of the list.
    pub fn file(&self, number: usize) -> File {
        let run = self.run(number);
        let path = RelPath::of_parts(&run.directory, self.name(number));
        File { path, size: self.sizes.get(number), mode: run.mode }
    }

    /// Where the file of this number lies, which must be one of the list.
    pub fn path(&self, number: usize) -> RelPath {
        RelPath::of_parts(&self.run(number).directory, self.name(number))
    }

    /// The bytes of the file of this number, which must be one of the list.
    pub fn size(&self, number: usize) -> u64 {
        self.sizes.get(number)
    }

    /// The name of the file of this number, without its directory.
    pub fn name(&self, number: usize) -> &str {
        let (block, begin) = self.groups[number / GROUP];
        let previous = if number.is_multiple_of(GROUP) { 0 } else { self.ends[number - 1] };
        &self.names[block][begin + usize::from(previous)..begin + usize::from(self.ends[number])]
    }

    /// All files in their order.
    pub fn iter(&self) -> impl Iterator<Item = File> {
        (0..self.len()).map(|number| self.file(number))
    }

    /// Rows of neighbours that have one directory and one mode: these, and the numbers of the files.
    pub fn runs(&self) -> impl Iterator<Item = (&str, u32, Range<usize>)> {
        let begins = self.runs.iter().map(|run| run.first as usize);
        let ends = begins.clone().skip(1).chain([self.len()]);
        let ranges = begins.zip(ends).map(|(begin, end)| begin..end);
        self.runs.iter().zip(ranges).map(|(run, range)| (run.directory.as_str(), run.mode, range))
    }

    fn run(&self, number: usize) -> &Run {
        &self.runs[self.runs.partition_point(|run| run.first as usize <= number) - 1]
    }
}

impl Extend<File> for FileList {
    fn extend<T: IntoIterator<Item = File>>(&mut self, files: T) {
        files.into_iter().for_each(|file| self.push(&file));
    }
}

impl FromIterator<File> for FileList {
    fn from_iter<T: IntoIterator<Item = File>>(files: T) -> Self {
        let mut list = Self::default();
        list.extend(files);
        list
    }
}

/// Finds files of a list that is in order. It takes no memory for a file: a directory's are searched by halves.
#[derive(Debug, Default)]
pub struct FileIndex {
    directories: HashMap<CompactString, Range<usize>>,
}

impl FileIndex {
    /// Fails unless all files of a directory stand together, by their names, and none of them twice.
    pub fn new(files: &FileList) -> Result<Self> {
        let mut directories: HashMap<CompactString, Range<usize>> = HashMap::new();
        for (directory, _, range) in files.runs() {
            let known = directories.entry(directory.into()).or_insert(range.start..range.start);
            for number in range.clone() {
                let is_next = known.end == number
                    && (known.start == number || files.name(number - 1) < files.name(number));
                if !is_next {
                    let message = format!("\"{}\" is not in order in the plan", files.path(number));
                    return Err(Error::new(Kind::ProtocolViolation, message)
                        .detail("A plan has all files of a directory together, sorted by name, and none of them twice."));
                }
                known.end = number + 1;
            }
        }
        Ok(Self { directories })
    }

    /// The number of the file that lies at a path; `files` is the list that this was made of, or one that goes on after it.
    pub fn find(&self, files: &FileList, path: &RelPath) -> Option<usize> {
        let range = self.directories.get(path.parent().unwrap_or_default())?;
        let name = path.file_name();
        let (mut begin, mut end) = (range.start, range.end);
        while begin < end {
            let middle = begin.midpoint(end);
            match files.name(middle).cmp(name) {
                std::cmp::Ordering::Less => begin = middle + 1,
                std::cmp::Ordering::Equal => return Some(middle),
                std::cmp::Ordering::Greater => end = middle,
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file(path: &str, size: u64, mode: u32) -> File {
        File { path: RelPath::parse(path).expect("valid"), size, mode }
    }

    fn list(paths: &[&str]) -> FileList {
        paths.iter().map(|path| file(path, 1, 0o600)).collect()
    }

    #[test]
    fn a_file_takes_six_bytes_and_its_name() {
        const COUNT: usize = 1_000_000;
        let files: FileList =
            (0..COUNT).map(|number| file(&format!("base/5/{}", 1_000_000 + number), 8192, 0o600)).collect();
        let FileList { names, ends, groups, sizes, runs } = &files;
        let bytes =
            names.bytes() + ends.bytes() + groups.bytes() + sizes.bytes() + size_of_val(runs.as_slice());
        assert!(bytes / COUNT <= "1000000".len() + 6, "{bytes} bytes");
        assert_eq!(files.iter().filter(|file| file.path.as_str().len() == 14).count(), COUNT);
    }

    #[test]
    fn names_may_be_as_long_as_paths() {
        let name = |number: usize| format!("{number:0>MAX_PATH$}");
        let files: FileList = (0..200).map(|number| file(&name(number), 1, 0o600)).collect();
        assert!((0..200).all(|number| files.name(number) == name(number)));
    }

    #[test]
    fn only_a_list_in_order_can_be_searched() {
        for paths in [
            &["a", "a"][..],
            &["b", "a"],
            &["base/5/1", "base/6/1", "base/5/2"],
            &["a", "base/5/1", "b"],
            &["base/5/10", "base/5/1"],
        ] {
            let refused = FileIndex::new(&list(paths)).expect_err("not in order");
            assert_eq!(refused.kind, Kind::ProtocolViolation, "{paths:?}");
        }
        FileIndex::new(&list(&["b", "base/6/1", "base/6/10", "base/6/9", "base/5/1"])).expect("in order");
        // another mode makes no other directory
        let modes = [file("base/5/1", 1, 0o600), file("base/5/2", 1, 0o640), file("base/5/3", 1, 0o600)];
        let files: FileList = modes.into_iter().collect();
        let index = FileIndex::new(&files).expect("in order");
        assert_eq!(index.find(&files, &RelPath::parse("base/5/3").expect("valid")), Some(2));
    }

    proptest! {
        #[test]
        fn what_was_pushed_is_there_and_found(
            paths in prop::collection::btree_set(("[ab]{1,2}", "[a-c]{1,3}"), 0..200),
            sizes in prop::collection::vec((any::<u64>(), 0_u32..0o1000), 200),
            others in prop::collection::vec("[abc]{1,2}/[a-d]{1,3}", 20),
        ) {
            let all: Vec<File> = paths
                .iter()
                .zip(sizes)
                .map(|((directory, name), (size, mode))| file(&format!("{directory}/{name}"), size, mode))
                .collect();
            let files: FileList = all.iter().cloned().collect();
            prop_assert_eq!(files.iter().collect::<Vec<_>>(), all.clone());
            prop_assert_eq!(files.get(all.len()), None);
            let index = FileIndex::new(&files).expect("in order");
            for (number, file) in all.iter().enumerate() {
                prop_assert_eq!(index.find(&files, &file.path), Some(number));
                prop_assert_eq!(files.size(number), file.size);
                prop_assert_eq!(files.path(number), file.path.clone());
            }
            for other in others {
                let path = RelPath::parse(&other).expect("valid");
                let expected = all.iter().position(|file| file.path == path);
                prop_assert_eq!(index.find(&files, &path), expected);
            }
        }
    }
}
