//! The order of a plan: the files of a directory stand together, sorted by name.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet};

use crate::manifest::exclude::{RelationFile, holds_relations};
use crate::manifest::list::FileList;

/// Adds files to a list in its order, but for those of unlogged relations.
pub(super) fn add_in_order(files: &FileList, list: &mut FileList) {
    let mut runs: Vec<_> = files.runs().collect();
    runs.sort_unstable_by_key(|(directory, _, range)| (*directory, range.start));
    for directory in runs.chunk_by(|(one, ..), (other, ..)| one == other) {
        let numbers = directory.iter().flat_map(|(_, _, range)| range.clone());
        let unlogged = unlogged(files, directory[0].0, numbers.clone());
        for number in by_name(files, numbers) {
            let relation = || RelationFile::parse(files.name(number));
            let is_left_out = !unlogged.is_empty()
                && relation().is_some_and(|file| !file.is_init && unlogged.contains(&file.number));
            if !is_left_out {
                list.push(&files.file(number));
            }
        }
    }
}

/// Files that are sorted in one go; the rows are merged then. One block for all would be a large one (see
/// [`crate::sys::blocks`]).
const ROW: usize = 4096;

/// A file by its name. The beginning of the name lies here: nearly all differ in these.
#[derive(Clone, Copy)]
struct Named<'a> {
    beginning: [u8; 8],
    number: u32,
    files: &'a FileList,
}

impl<'a> Named<'a> {
    fn new(files: &'a FileList, number: u32) -> Self {
        let mut beginning = [0; 8];
        let name = files.name(number as usize);
        beginning.iter_mut().zip(name.as_bytes()).for_each(|(to, from)| *to = *from);
        Self { beginning, number, files }
    }
}

impl Ord for Named<'_> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let name = |of: &Self| of.files.name(of.number as usize);
        self.beginning.cmp(&other.beginning).then_with(|| name(self).cmp(name(other)))
    }
}

impl PartialOrd for Named<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Named<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Named<'_> {}

/// Files of one directory, sorted by name.
fn by_name(files: &FileList, numbers: impl Iterator<Item = usize>) -> impl Iterator<Item = usize> {
    let named = |number: usize| Named::new(files, u32::try_from(number).unwrap_or(u32::MAX));
    let mut numbers = numbers.peekable();
    let mut rows = Vec::new();
    while numbers.peek().is_some() {
        let mut row: Vec<Named<'_>> = numbers.by_ref().take(ROW).map(named).collect();
        row.sort_unstable();
        // four bytes are kept of each
        let row: Vec<u32> = row.into_iter().map(|file| file.number).collect();
        rows.push(row.into_iter());
    }
    let mut next = BinaryHeap::with_capacity(rows.len());
    for (row, files_of_row) in rows.iter_mut().enumerate() {
        next.extend(files_of_row.next().map(|number| Reverse((Named::new(files, number), row))));
    }
    std::iter::from_fn(move || {
        let Reverse((file, row)) = next.pop()?;
        next.extend(rows[row].next().map(|number| Reverse((Named::new(files, number), row))));
        Some(file.number as usize)
    })
}

/// The unlogged relations of a directory. They start empty on a standby: of their forks only the init fork travels.
fn unlogged(files: &FileList, directory: &str, numbers: impl Iterator<Item = usize>) -> HashSet<u32> {
    if !holds_relations(directory) {
        return HashSet::new();
    }
    let relations = numbers.filter_map(|number| RelationFile::parse(files.name(number)));
    relations.filter(|relation| relation.is_init).map(|relation| relation.number).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::manifest::path::RelPath;
    use crate::manifest::plan::File;

    proptest! {
        #[test]
        fn whatever_comes_is_sorted(
            paths in prop::collection::btree_set(("[a-c]{1,2}", "[ab]{1,2}([0-9]{6})?[0-9]{0,3}"), 0..100),
            order in prop::collection::vec(any::<u32>(), 100),
        ) {
            let sorted: Vec<String> =
                paths.into_iter().map(|(directory, name)| format!("{directory}/{name}")).collect();
            let mut mixed: Vec<_> = order.into_iter().zip(&sorted).collect();
            mixed.sort_unstable();
            let file = |path: &str| File { path: RelPath::parse(path).expect("valid"), size: 1, mode: 0o600 };
            let files: FileList = mixed.into_iter().map(|(_, path)| file(path)).collect();
            let mut list = FileList::default();
            add_in_order(&files, &mut list);
            prop_assert_eq!(list.iter().map(|file| file.path.to_string()).collect::<Vec<_>>(), sorted);
        }
    }

    #[test]
    fn more_files_than_are_sorted_in_one_go_are_sorted() {
        const COUNT: usize = 2 * ROW + 100;
        // 7 and the length have no divisor in common: all come, in another order
        let names = (0..COUNT).map(|number| format!("base/5/{}", 1_000_000_000 + number * 7 % COUNT));
        let files: FileList = names
            .map(|path| File { path: RelPath::parse(&path).expect("valid"), size: 1, mode: 0o600 })
            .collect();
        let mut list = FileList::default();
        add_in_order(&files, &mut list);
        assert!((0..COUNT).all(|number| list.name(number) == (1_000_000_000 + number).to_string()));
        assert_eq!(list.len(), COUNT);
    }
}
