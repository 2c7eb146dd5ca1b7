use proptest::prelude::*;

use super::*;
use crate::compare::work::Work;
use crate::manifest::path::RelPath;

const SEGMENT: u32 = 1000;
const LAYOUT: Layout = Layout { segment_blocks: SEGMENT, first_blocks: false };

fn file(path: &str, pages: u64) -> File {
    File { path: RelPath::parse(path).expect("valid"), size: pages * PAGE as u64, mode: 0o600 }
}

fn list(files: &[File]) -> FileList {
    files.iter().cloned().collect()
}

fn pages(pages: u64) -> Found {
    Found::Bytes(pages * PAGE as u64)
}

fn locator(relation: u32) -> RelationFileLocator {
    RelationFileLocator { tablespace: 1663, database: 5, relation }
}

/// Whether a page must be compared, condition by condition.
fn must_be_compared(map: &BlockMap, file: &File, found: Found, layout: Layout, page: u64) -> bool {
    let path: Vec<&str> = file.path.as_str().split('/').collect();
    let (tablespace, database, name) = match path.as_slice() {
        ["base", database, name] => (1663, *database, *name),
        ["pg_tblspc", tablespace, _, database, name] => (tablespace.parse().unwrap_or(0), *database, *name),
        _ => return true,
    };
    let mut parts = name.split('.');
    let relation = parts.next().and_then(|part| part.parse::<u32>().ok());
    let segment = parts.next().map_or(Some(0), |part| part.parse::<u32>().ok());
    let (Some(relation), Some(segment), Ok(database)) = (relation, segment, database.parse::<u32>()) else {
        return true;
    };
    let Found::Bytes(theirs) = found else { return true };
    let size = PAGE as u64;
    let whole = |bytes: u64| bytes.is_multiple_of(size) && bytes / size <= layout.segment_blocks.into();
    let locator = RelationFileLocator { tablespace, database, relation };
    let block = segment * layout.segment_blocks + u32::try_from(page).expect("small");
    relation < 16384
        || !whole(file.size)
        || !whole(theirs)
        || page >= file.size.min(theirs) / size
        || map.lists(locator, block)
        || (layout.first_blocks && block == 0)
}

#[derive(Debug, Clone)]
struct Given {
    files: Vec<File>,
    found: Vec<Found>,
    map: BlockMap,
    layout: Layout,
}

fn given() -> impl Strategy<Value = Given> {
    let path = prop_oneof![
        8 => (16384_u32..16387, 0_u32..3).prop_map(|(relation, segment)| match segment {
            0 => format!("base/5/{relation}"),
            _ => format!("base/5/{relation}.{segment}"),
        }),
        2 => (16384_u32..16387).prop_map(|relation| format!("pg_tblspc/16500/PG_15_202209061/5/{relation}")),
        1 => prop_oneof!["base/5/1259", "base/5/16384_vm", "global/16384", "pg_xact/0000", "base/6/16384"],
    ];
    let size = prop_oneof![8 => (0_u64..400).prop_map(|pages| pages * 8192), 1 => 0_u64..3_000_000, 1 => Just(1001 * 8192)];
    let found = prop_oneof![1 => Just(None), 9 => size.clone().prop_map(Some)];
    let files = prop::collection::vec((path, size, found), 1..8);
    let adds = prop::collection::vec((16384_u32..16387, prop_oneof![0_u32..400, 0_u32..2500]), 0..60);
    let limits = prop::collection::vec((16384_u32..16387, 0_u32..2500), 0..2);
    let database = prop::option::weighted(0.1, (prop::option::of(Just(16500_u32)), 5_u32..7));
    (files, adds, limits, database, 0_usize..5, any::<bool>()).prop_map(
        |(files, adds, limits, database, grain, first_blocks)| {
            let mut map = BlockMap::default();
            adds.into_iter().for_each(|(relation, block)| map.add(locator(relation), block));
            limits.into_iter().for_each(|(relation, block)| map.limit(locator(relation), block));
            if let Some((tablespace, database)) = database {
                map.database(tablespace, database);
            }
            (0..grain.saturating_sub(1)).for_each(|_| map.coarsen());
            let found = files.iter().map(|(_, _, found)| found.map_or(Found::Unfit, Found::Bytes)).collect();
            let files = files
                .into_iter()
                .map(|(path, size, _)| File {
                    path: RelPath::parse(&path).expect("valid"),
                    size,
                    mode: 0o600,
                })
                .collect();
            Given { files, found, map, layout: Layout { segment_blocks: SEGMENT, first_blocks } }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Page by page, what must be compared is, and what need not be is left out but for short gaps.
    #[test]
    fn stretches_say_what_each_page_needs(given in given()) {
        let Given { files, found, map, layout } = given;
        let source = WalMap::new(map.clone(), &list(&files), found.iter().copied(), layout);
        let mut known = 0;
        for (number, (file, found)) in (0_u32..).zip(files.iter().zip(&found)) {
            let count = file.size.div_ceil(PAGE as u64);
            let needs: Vec<bool> =
                (0..count).map(|page| must_be_compared(&map, file, *found, layout, page)).collect();
            let mut offset = 0;
            while offset < file.size {
                let stretch = source.stretch(number, file.size, offset);
                prop_assert!(stretch.end > offset && (stretch.end >= file.size || stretch.end % PAGE as u64 == 0));
                let range = (offset / PAGE as u64) as usize..(stretch.end.min(file.size).div_ceil(PAGE as u64)) as usize;
                match stretch.treatment {
                    Treatment::Skip(Proof::WalMap) => prop_assert!(!needs[range].contains(&true)),
                    Treatment::Compare => {
                        // every page is needed, or lies between two that are
                        for page in range {
                            let near = |step: &dyn Fn(usize) -> Option<usize>| {
                                (0..=GAP as usize).filter_map(step).any(|page| needs.get(page) == Some(&true))
                            };
                            let is_between = near(&|by| page.checked_sub(by)) && near(&|by| page.checked_add(by));
                            prop_assert!(needs[page] || is_between, "page {} of {:?}", page, file);
                        }
                    }
                    other => prop_assert!(false, "{:?}", other),
                }
                offset = stretch.end;
            }
            for (page, needs) in (0_u32..).zip(&needs) {
                prop_assert_eq!(source.may_differ(number, page), *needs);
                known += if *needs { 0 } else { PAGE as u64 };
            }
        }
        let told = source.breakdown();
        let bytes: u64 = files.iter().map(|file| file.size).sum();
        prop_assert_eq!(told.known + told.listed + told.limit + told.always + told.tail, bytes);
        prop_assert!(told.known <= known);
        if map.grain == 0 {
            prop_assert_eq!(told.known, known);
        }
    }

    /// Whatever order the streams come in, each page that is needed is dealt once.
    #[test]
    fn work_deals_what_is_needed(given in given(), order in prop::collection::vec(0_usize..3, 1..20)) {
        let Given { files, found, map, layout } = given;
        let source = WalMap::new(map.clone(), &list(&files), found.iter().copied(), layout);
        let list = list(&files);
        let mut work = Work::new(&list, &source, 3, false);
        let (mut batch, mut passed, mut dealt) = (Vec::new(), 0, std::collections::BTreeSet::new());
        let mut streams = order.into_iter().cycle();
        let mut idle = 0;
        while idle < 4 {
            let stream = if idle == 0 { streams.next().unwrap_or(0) } else { idle - 1 };
            let Some(treatment) = work.next(stream, &mut batch, |_, bytes| passed += bytes) else {
                idle += 1;
                continue;
            };
            prop_assert_eq!(treatment, Treatment::Compare);
            idle = 0;
            for range in &batch {
                let pages = range.offset / PAGE as u64..(range.offset + u64::from(range.length)).div_ceil(PAGE as u64);
                for page in pages {
                    prop_assert!(dealt.insert((range.file, page)), "dealt twice");
                }
            }
        }
        for (number, (file, found)) in (0_u32..).zip(files.iter().zip(&found)) {
            for page in 0..file.size.div_ceil(PAGE as u64) {
                let is_needed = must_be_compared(&map, file, *found, layout, page);
                prop_assert!(!is_needed || dealt.contains(&(number, page)));
            }
        }
        prop_assert!(passed <= files.iter().map(|file| file.size).sum::<u64>());
    }
}

#[test]
fn listed_blocks_are_merged_over_short_gaps() {
    let files = [file("base/5/16384", 100)];
    let mut map = BlockMap::default();
    [10, 12, 20, 29, 39].iter().for_each(|block| map.add(locator(16384), *block));
    let source = WalMap::new(map, &list(&files), [pages(100)], LAYOUT);
    let at = |page: u64| {
        let stretch = source.stretch(0, files[0].size, page * 8192);
        (stretch.end / 8192, stretch.treatment == Treatment::Compare)
    };
    assert_eq!((at(0), at(10), at(30)), ((10, false), (30, true), (39, false)));
    assert_eq!((at(39), at(40)), ((40, true), (u64::MAX / 8192, false)));
}

#[test]
fn a_file_that_nothing_names_is_left_out_as_a_whole() {
    let files = [file("base/5/16384", 100), file("base/5/16385", 10), file("base/5/16385", 10)];
    let found = [pages(100), pages(9), Found::Unfit];
    let first = |first_blocks| {
        let layout = Layout { first_blocks, ..LAYOUT };
        let source = WalMap::new(BlockMap::default(), &list(&files), found, layout);
        (0..3).map(|number| source.stretch(number, files[number as usize].size, 0)).collect::<Vec<_>>()
    };
    let skip = Treatment::Skip(Proof::WalMap);
    assert_eq!(
        first(false),
        [Stretch::rest(skip), Stretch { end: 9 * 8192, treatment: skip }, Stretch::rest(Treatment::Compare)]
    );
    let compared = Stretch { end: 8192, treatment: Treatment::Compare };
    assert_eq!(first(true)[0], compared, "the metapage of an index may be anything");
}

#[test]
fn only_main_forks_of_tables_and_indexes_are_told_by_wal() {
    let relation = |path: &str| main_fork(path).map(|(locator, segment)| (locator.relation, segment));
    assert_eq!(relation("base/5/16384"), Some((16384, 0)));
    assert_eq!(relation("base/5/16384.12"), Some((16384, 12)));
    assert_eq!(
        main_fork("pg_tblspc/16500/PG_15_202209061/5/16384"),
        Some((RelationFileLocator { tablespace: 16500, ..locator(16384) }, 0))
    );
    for other in [
        "base/5/16383",
        "base/5/16384_vm",
        "base/5/16384_fsm",
        "base/5/16384_init",
        "base/5/t3_16384",
        "base/5/016384",
        "base/5/16384.",
        "base/5/16384.1.1",
        "base/5/16384x",
        "base/5/99999999999",
        "base/5/sub/16384",
        "base/16384",
        "global/16384",
        "pg_tblspc/16500/5/16384",
        "16384",
        "",
    ] {
        assert_eq!(relation(other), None, "{other}");
    }
}
