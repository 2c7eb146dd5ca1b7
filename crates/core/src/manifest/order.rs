//! The order of a plan: the files of a directory stand together, sorted by name.

use std::collections::HashSet;

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

/// Files of one directory, sorted by name. What is sorted has the beginnings of the names with it: nearly all differ in these.
fn by_name(files: &FileList, numbers: impl Iterator<Item = usize>) -> impl Iterator<Item = usize> {
    let key = |number: usize| {
        let mut key = [0; 8];
        key.iter_mut().zip(files.name(number).as_bytes()).for_each(|(to, from)| *to = *from);
        (key, u32::try_from(number).unwrap_or(u32::MAX))
    };
    let mut sorted: Vec<([u8; 8], u32)> = numbers.map(key).collect();
    sorted.sort_unstable_by(|(one, first), (other, second)| {
        let rest = || files.name(*first as usize).cmp(files.name(*second as usize));
        one.cmp(other).then_with(rest)
    });
    sorted.into_iter().map(|(_, number)| number as usize)
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
}
