//! Relations of several segments whose end moved across a segment's boundary while they were copied.

use std::collections::HashMap;

use super::planned::PlannedFiles;
use crate::manifest::exclude::relation_segment;

/// Where a fork turned out to end.
struct End {
    /// The first segment that is shorter than planned.
    short: u32,
    /// The first segment that is gone.
    gone: u32,
}

/// Ends forks of relations where the first of their segments ends.
///
/// PostgreSQL takes the first segment that is not full for the last of a fork (mdnblocks). When it truncates a relation
/// it leaves the segments above with length 0, and expects them so: pages that were copied from them before would
/// come to life again once the segment below is full. And it drops a relation segment by segment, ending where one is
/// missing (mdunlinkfork): what lies above would be left for ever. Both happened after the backup started, so replay
/// restores whatever came back.
pub(super) fn end_forks(planned_files: &PlannedFiles) {
    let mut ends: HashMap<String, End> = HashMap::new();
    let changed = |number: &usize| planned_files.is_gone(*number) || planned_files.is_short(*number);
    for planned in (0..planned_files.len()).filter(changed).map(|number| planned_files.file(number)) {
        if let Some((fork, segment)) = relation_segment(&planned.path) {
            let end = ends.entry(fork.to_owned()).or_insert(End { short: u32::MAX, gone: u32::MAX });
            let first = if planned.is_gone() { &mut end.gone } else { &mut end.short };
            *first = segment.min(*first);
        }
    }
    if ends.is_empty() {
        return;
    }
    for planned in planned_files.iter() {
        let Some((fork, segment)) = relation_segment(&planned.path) else { continue };
        match ends.get(fork) {
            Some(end) if segment > end.gone => planned.set_gone(),
            Some(end) if segment > end.short => planned.ends_at(0),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::planned::PlannedFile;
    use super::*;
    use crate::manifest::path::RelPath;
    use crate::manifest::plan::File;

    const PLANNED: u64 = 1 << 30;

    /// What becomes of files, of which some ended early or are gone (`None`); each with its size then.
    fn ended(changes: &[(&str, Option<u64>)], others: &[&str]) -> Vec<(String, Option<u64>)> {
        let names = changes.iter().map(|(name, _)| name).chain(others);
        let file =
            |name: &&str| File { path: RelPath::parse(name).expect("valid"), size: PLANNED, mode: 0o600 };
        let planned_files = PlannedFiles::new(names.map(file).collect());
        for ((_, size), planned) in changes.iter().zip(planned_files.iter()) {
            size.map_or_else(|| planned.set_gone(), |size| planned.ends_at(size));
        }
        end_forks(&planned_files);
        let outcome = |planned: PlannedFile<'_>| {
            (planned.path.to_string(), (!planned.is_gone()).then(|| planned.size()))
        };
        planned_files.iter().map(outcome).collect()
    }

    fn expect(changes: &[(&str, Option<u64>)], others: &[(&str, Option<u64>)]) {
        let names: Vec<&str> = others.iter().map(|(name, _)| *name).collect();
        let expected: Vec<_> =
            changes.iter().chain(others).map(|(name, size)| ((*name).to_owned(), *size)).collect();
        assert_eq!(ended(changes, &names), expected);
    }

    #[test]
    fn segments_above_one_that_ends_short_are_empty() {
        expect(
            &[("base/5/7.1", Some(8192))],
            &[
                ("base/5/7", Some(PLANNED)),
                ("base/5/7.2", Some(0)),
                ("base/5/7.10", Some(0)),
                ("base/5/7_fsm.2", Some(PLANNED)),
                ("base/5/71.2", Some(PLANNED)),
                ("base/6/7.2", Some(PLANNED)),
                ("pg_tblspc/1/PG_15_202209061/5/7.2", Some(PLANNED)),
            ],
        );
    }

    #[test]
    fn segments_above_one_that_is_gone_are_gone() {
        expect(
            &[("base/5/7", Some(0)), ("base/5/7.2", None)],
            &[("base/5/7.1", Some(0)), ("base/5/7.3", None), ("base/5/7_vm.3", Some(PLANNED))],
        );
    }

    #[test]
    fn other_files_are_whole_whatever_their_names() {
        expect(
            &[("pg_xact/7", Some(0)), ("base/7", None), ("base/5/x", Some(0))],
            &[("pg_xact/7.1", Some(PLANNED)), ("base/7.1", Some(PLANNED)), ("base/5/x.1", Some(PLANNED))],
        );
        expect(&[], &[("base/5/7", Some(PLANNED)), ("base/5/7.1", Some(PLANNED))]);
    }
}
