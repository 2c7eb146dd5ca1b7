use pgdata::control_file::Checkpoint;
use pgdata::wal::record::{BlockReference, RelationFileLocator, rmgr};
use pgdata::wal::sample::Writer;
use proptest::prelude::*;

use super::super::coverage::Coverage;
use super::super::facts::{Completed, ControlRecord, Ends};
use super::super::follow::Follower;
use super::super::lineage::{Common, Search};
use super::super::tests::{BASE, Made, SEGMENT, commit};
use super::*;

const HEAP: u8 = 10;

fn locator(relation: u32) -> RelationFileLocator {
    RelationFileLocator { tablespace: 1663, database: 5, relation }
}

fn block(relation: u32, block: u32) -> (BlockReference, u16) {
    (BlockReference { locator: locator(relation), fork: 0, block }, 3)
}

impl Made {
    fn target(&self, from: Lsn) -> (TargetWal, BlockMap) {
        let mut map = BlockMap::default();
        let found = self.wal().read_target(&self.control, from, &mut map, &Cancel::new()).expect("readable");
        (found, map)
    }
}

/// A checkpoint's record; returns where it begins.
fn checkpoint(writer: &mut Writer, redo: Lsn, timeline: u32, is_shutdown: bool) -> Lsn {
    let mut data = vec![0; 88];
    data[..8].copy_from_slice(&redo.0.to_le_bytes());
    data[8..12].copy_from_slice(&timeline.to_le_bytes());
    data[16] = 1;
    writer.record(rmgr::XLOG, if is_shutdown { 0x00 } else { 0x10 }, &[], &data)
}

fn writer() -> Writer {
    Writer::new(0xD110, SEGMENT, BASE)
}

#[test]
fn the_target_tells_what_its_wal_changed_and_which_transactions_ended() {
    let (mut made, mut writer) = (Made::new(), writer());
    writer.record(HEAP, 0, &[block(16384, 7)], b"x");
    let first = commit(&mut writer, 9);
    let dropped = [&9_u64.to_le_bytes()[..], &4_u32.to_le_bytes(), &1_u32.to_le_bytes()].concat();
    let numbers = [1663_u32, 5, 16390].iter().flat_map(|number| number.to_le_bytes());
    let dropped: Vec<u8> = dropped.into_iter().chain(numbers).collect();
    let last = writer.record(rmgr::XACT, 0x80, &[], &dropped);
    let cut = [10_u32, 1663, 5, 16384, 1].iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<_>>();
    writer.record(rmgr::SMGR, 0x20, &[], &cut);
    let made_database = [16400_u32, 1663, 1, 1663].iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<_>>();
    writer.record(rmgr::DBASE, 0x00, &[], &made_database);
    let at = checkpoint(&mut writer, first, 1, true);
    let after = writer.record(rmgr::XLOG, 0xA0, &[block(16385, 1)], &[]);
    made.write(&writer, 1, BASE);
    made.control.recovery.checkpoint_at = at;
    made.control.recovery.checkpoint =
        Checkpoint { redo: first, timeline: 1, full_page_writes: true, ..Checkpoint::default() };
    let (found, map) = made.target(Lsn(0));
    assert!(found.is_all);
    let [Chain { facts, .. }] = found.chains.as_slice() else { panic!("{found:?}") };
    assert_eq!((facts.from, facts.end, facts.beyond), (Some(Lsn(BASE.0 + 40)), writer.position(), None));
    assert_eq!(facts.ends, Ends { count: 2, first, last });
    assert_eq!(facts.checkpoints, [Completed { start: at, end: after, redo: first, timeline: 1 }]);
    assert_eq!(facts.control_record, ControlRecord::Found { end: after });
    assert_eq!((facts.hint_image, facts.started, facts.unknown), (Some(after), Some(after), None));
    let listed = |relation, block| map.lists(locator(relation), block);
    assert!(
        listed(16384, 7) && !listed(16384, 8) && listed(16384, 10) && listed(16390, 0) && listed(16385, 1)
    );
    assert!(map.lists_database(1663, 16400) && !map.lists_database(1663, 5));
    // what pg_control says is another checkpoint's
    made.control.recovery.checkpoint.time = 1;
    assert_eq!(made.target(Lsn(0)).0.chains[0].facts.control_record, ControlRecord::Other);
    made.control.recovery.checkpoint_at = Lsn(at.0 + 8);
    assert_eq!(made.target(Lsn(0)).0.chains[0].facts.control_record, ControlRecord::Missing);
    made.control.recovery.checkpoint_at = Lsn(BASE.0 + 40);
    assert_eq!(made.target(Lsn(0)).0.chains[0].facts.control_record, ControlRecord::Other);
}

#[test]
fn the_checkpoint_of_pg_resetwal_is_no_checkpoint() {
    let (mut made, mut writer) = (Made::new(), writer());
    let at = checkpoint(&mut writer, BASE, 1, true);
    made.write(&writer, 1, BASE);
    made.control.recovery.checkpoint_at = at;
    made.control.recovery.checkpoint =
        Checkpoint { redo: BASE, timeline: 1, full_page_writes: true, ..Checkpoint::default() };
    assert_eq!(made.target(Lsn(0)).0.chains[0].facts.control_record, ControlRecord::Reset);
}

#[test]
fn a_page_behind_a_hole_is_found_and_an_incomplete_record_is_none() {
    let (made, mut writer) = (Made::new(), writer());
    let mut starts = Vec::new();
    for _ in 0..40 {
        starts.push(writer.record(HEAP, 0, &[block(16384, 1)], &[7; 30_000]));
    }
    made.write(&writer, 1, BASE);
    let whole = made.target(Lsn(0)).0;
    assert_eq!((whole.chains[0].facts.beyond, whole.chains[0].facts.end), (None, writer.position()));
    let place = made.place(1, 3);
    let good = fs::read(&place).expect("a segment");
    let changed = |from: usize, to: usize, byte: u8| {
        let mut content = good.clone();
        content[from..to].fill(byte);
        fs::write(&place, content).expect("a segment");
        made.target(Lsn(0)).0.chains[0].facts.clone()
    };
    let facts = changed(100_000, 100_001, 1);
    assert!(facts.why.contains("CRC") && facts.beyond > Some(facts.end), "a rotten byte: {facts:?}");
    let facts = changed(10 * PAGE_SIZE, 11 * PAGE_SIZE, 0);
    assert_eq!(facts.beyond, Some(Lsn(BASE.0 + 11 * PAGE_SIZE as u64)), "a page that was not written");
    let facts = changed(11 * PAGE_SIZE + 16, 11 * PAGE_SIZE + 20, 0);
    assert_eq!(facts.beyond, Some(Lsn(BASE.0 + 11 * PAGE_SIZE as u64)), "no continuation: {facts:?}");
    // a crash in the middle of a record leaves its first pages
    fs::remove_file(made.place(1, 4)).expect("removed");
    let facts = changed(102 * PAGE_SIZE, SEGMENT as usize, 0);
    assert_eq!(facts.beyond, None, "{facts:?}");
    assert!(facts.end.0 < BASE.0 + 102 * PAGE_SIZE as u64 - 8192, "the record is longer than a page");
    // a segment that was recycled holds pages of another place
    fs::write(made.place(1, 4), &good).expect("a segment");
    fs::write(&place, &good).expect("a segment");
    assert_eq!(made.target(Lsn(0)).0.chains[0].facts.beyond, None);
    // and a later one that is in its place does not fit an end before it
    made.write(&writer, 1, BASE);
    let facts = changed(102 * PAGE_SIZE, SEGMENT as usize, 0);
    assert_eq!(facts.beyond, Some(Lsn(4 << 20)), "{facts:?}");
}

#[test]
fn every_timeline_is_read() {
    let (mut made, mut old) = (Made::new(), writer());
    old.record(HEAP, 0, &[block(16384, 1)], b"common");
    let parted = old.position();
    let mut new = old.clone();
    new.timeline = 2;
    old.record(HEAP, 0, &[block(16384, 2)], b"on the old one");
    new.record(HEAP, 0, &[block(16384, 3)], b"on the new one");
    made.write(&old, 1, BASE);
    made.write(&new, 2, BASE);
    fs::write(made.directory.path().join("00000002.history"), format!("1\t{parted}\tx\n"))
        .expect("a history");
    let (found, map) = made.target(Lsn(0));
    let timelines: Vec<u32> = found.chains.iter().map(|chain| chain.facts.lineage.timeline()).collect();
    assert_eq!(timelines, [1, 2]);
    assert_eq!((found.chains[0].facts.end, found.chains[1].facts.end), (old.position(), new.position()));
    assert_eq!((0..5).filter(|block| map.lists(locator(16384), *block)).collect::<Vec<_>>(), [1, 2, 3]);
    // a file that was made for later use, of a timeline that has nothing
    fs::write(made.place(7, 9), vec![0; SEGMENT as usize]).expect("a segment");
    assert_eq!(made.target(Lsn(0)).0.chains.len(), 2);
    // one with records that cannot be reached
    fs::write(made.place(7, 3), fs::read(made.place(1, 3)).expect("a segment")).expect("a segment");
    let seven = &made.target(Lsn(BASE.0 + 40)).0.chains[2].facts;
    assert_eq!((seven.lineage.timeline(), seven.from), (7, Some(Lsn(BASE.0 + 40))));
    made.control.timeline = 2;
    assert_eq!(made.target(Lsn(0)).0.chains[0].facts.lineage.timeline(), 2, "the own one is the first");
    fs::write(made.directory.path().join("00000002.history"), "nonsense").expect("a history");
    let mut map = BlockMap::default();
    assert!(made.wal().read_target(&made.control, Lsn(0), &mut map, &Cancel::new()).is_err());
}

#[test]
fn a_part_of_the_wal_is_read_from_the_page_on() {
    let (made, mut writer) = (Made::new(), writer());
    let starts: Vec<Lsn> =
        (0..200).map(|number| writer.record(HEAP, 0, &[block(16384, number)], &[7; 20_000])).collect();
    made.write(&writer, 1, BASE);
    let (found, map) = made.target(starts[100]);
    let from = found.chains[0].facts.from.expect("records");
    assert!(!found.is_all && from <= starts[100] && starts.contains(&from));
    assert!(map.lists(locator(16384), 100) && !map.lists(locator(16384), 50));
    // what is older cannot be read where a segment is missing
    fs::remove_file(made.place(1, 4)).expect("removed");
    let mut control = made.control.clone();
    control.recovery.checkpoint_at = starts[199];
    let mut map = BlockMap::default();
    let found = made.wal().read_target(&control, Lsn(0), &mut map, &Cancel::new()).expect("readable");
    assert!(found.is_all && found.chains[0].facts.from >= Some(Lsn(5 << 20)), "{found:?}");
}

/// Finds what both have, as two hosts do.
#[test]
fn wal_is_read_on_from_where_a_summary_ends() {
    let (mut writer, made) = (writer(), Made::new());
    let starts: Vec<Lsn> =
        (0..2000).map(|number| writer.record(HEAP, 0, &[block(16384, number)], &[7; 100])).collect();
    made.write(&writer, 1, BASE);
    let lineage = Lineage::new(1, &[]);
    let mut coverage = Coverage::default();
    let mut read = |from, limit| {
        let mut map = BlockMap::default();
        let facts = made.wal().read_on(&lineage, from, limit, &mut map, &Cancel::new()).expect("reads");
        coverage.add_wal(&facts);
        let listed = (0..2000).filter(|number| map.lists(locator(16384), *number)).collect::<Vec<u32>>();
        (facts.end, listed.first().copied(), listed.len())
    };
    let (end, ..) = read(starts[0], Lsn(u64::MAX));
    // a record's begin, in the middle of a page or behind a page's header, is the end of what came before
    let on_page =
        starts.iter().position(|start| start.0 % PAGE_SIZE as u64 == 24).expect("a record begins a page");
    for first in [1, on_page] {
        assert_eq!(read(starts[first], end), (end, u32::try_from(first).ok(), 2000 - first));
    }
    assert_eq!(read(starts[5], starts[7]), (starts[7], Some(5), 2), "no more than is wanted");
    assert_eq!(read(end, end), (end, None, 0), "there is no more");
    assert_eq!(coverage.first_hole(starts[1], end), None);
}

fn search(source: &Made, target: &Made, from: Lsn) -> Option<Common> {
    let lineage = Lineage::new(1, &[]);
    let cancel = Cancel::new();
    let theirs = target.target(Lsn(0)).0.chains.remove(0);
    let scope = Scope { from, limit: Lsn(u64::MAX), digested: theirs.facts.end };
    let mut map = BlockMap::default();
    let ours = source.wal().read_source(&lineage, scope, &mut map, &cancel).expect("readable");
    let mut search = Search::default();
    let mut next = search.compare(&ours.groups, &theirs.groups);
    while let Some(wanted) = next {
        let groups = |made: &Made| made.wal().digest(&lineage, wanted, &cancel).expect("readable");
        next = search.compare(&groups(source), &groups(target));
    }
    search.found()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever two servers have in common: the search finds where it ends, and never says more.
    #[test]
    fn the_end_of_the_common_history_is_found(
        common in prop::collection::vec((0_usize..3000, any::<bool>()), 1..700),
        ours in prop::collection::vec(0_usize..3000, 0..300),
        theirs in prop::collection::vec(0_usize..3000, 0..300),
        lost in 0_u64..3,
    ) {
        let mut one = writer();
        let mut stamped = None;
        for (length, is_commit) in &common {
            if *is_commit {
                stamped = Some(commit(&mut one, *length as u64));
            } else {
                one.record(HEAP, 0, &[block(16384, 1)], &vec![1; *length]);
            }
        }
        let parted = one.position();
        let mut other = one.clone();
        for (writer, lengths, byte) in [(&mut one, &ours, 2), (&mut other, &theirs, 3)] {
            for length in lengths {
                writer.record(HEAP, 0, &[block(16384, 1)], &vec![byte; *length + 1]);
            }
        }
        let (source, target) = (Made::new(), Made::new());
        // the source has removed its oldest segments
        let from = Lsn((BASE.0 + lost * u64::from(SEGMENT)).min(parted.0 / u64::from(SEGMENT) * u64::from(SEGMENT)));
        source.write(&one, 1, from);
        target.write(&other, 1, BASE);
        let found = search(&source, &target, from);
        if let Some(found) = found {
            prop_assert_eq!(found.to, parted);
            prop_assert!(found.from >= from && found.from < parted);
            prop_assert_eq!(found.stamped, stamped.filter(|stamped| *stamped >= found.from));
        } else {
            // no record of the common history begins in what is left
            let has_one = parted.0 > from.0 + 40 + 3100;
            prop_assert!(!has_one, "from {} to {}", from, parted);
        }
    }
}

#[test]
fn histories_that_share_nothing_have_nothing_in_common() {
    let (source, target) = (Made::new(), Made::new());
    for (made, byte) in [(&source, 1), (&target, 2)] {
        let mut writer = writer();
        (0..50).for_each(|_| {
            writer.record(HEAP, 0, &[block(16384, 1)], &[byte; 5000]);
        });
        made.write(&writer, 1, BASE);
    }
    assert_eq!(search(&source, &target, BASE), None);
    let empty = Made::new();
    assert_eq!(search(&empty, &target, BASE), None);
}

#[test]
fn a_pg_control_that_says_anything_ends_nothing() {
    type Spoil = fn(&mut ControlFile);
    let cases: [(&str, Spoil); 6] = [
        ("no segments", |control| control.wal_segment_size = 0),
        ("odd segments", |control| control.wal_segment_size = 12_345),
        ("large segments", |control| control.wal_segment_size = u32::MAX),
        ("checkpoint", |control| control.recovery.checkpoint_at = Lsn(u64::MAX)),
        ("redo", |control| control.recovery.checkpoint.redo = Lsn(u64::MAX)),
        ("timeline", |control| control.timeline = u32::MAX),
    ];
    for (what, spoil) in cases {
        let mut made = Made::new();
        let mut writer = writer();
        commit(&mut writer, 1);
        made.write(&writer, 1, BASE);
        for name in
            ["00000001FFFFFFFF000000FF", "FFFFFFFFFFFFFFFFFFFFFFFF", "000000010000000000000000.partial"]
        {
            fs::write(made.directory.path().join(name), vec![0xD1; 3 * PAGE_SIZE]).expect("write");
        }
        spoil(&mut made.control);
        for from in [0, BASE.0, u64::MAX - 8191, u64::MAX] {
            let mut map = BlockMap::default();
            let read = made.wal().read_target(&made.control, Lsn(from), &mut map, &Cancel::new());
            let chains = read.expect(what).chains;
            assert_eq!(chains[0].facts.lineage.timeline(), made.control.timeline, "{what}");
            for to in [0, u64::MAX] {
                let next = Next { from: Lsn(from), to: Lsn(to), grouping: Grouping::Records };
                made.wal().digest(&Lineage::new(u32::MAX, &[]), next, &Cancel::new()).expect(what);
            }
        }
    }
}

/// Records of different lengths, each of which names its own block. Returns where each begins.
fn numbered(writer: &mut Writer, lengths: &[usize]) -> Vec<Lsn> {
    let record = |(number, length): (u32, &usize)| {
        writer.record(
            HEAP,
            0,
            &[block(16384, number)],
            &vec![u8::try_from(number % 251).expect("small"); *length],
        )
    };
    (0..).zip(lengths).map(record).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// A changed bit of a target's WAL is noticed, or it is in the last page that was written: what the records before that
    /// name is listed.
    #[test]
    fn a_changed_bit_hides_no_record_before_the_last_page(
        lengths in prop::collection::vec(0_usize..4000, 100..300),
        place: prop::sample::Index,
        bit in 0_u8..8,
    ) {
        let (mut made, mut writer) = (Made::new(), writer());
        made.control.recovery.checkpoint_at = checkpoint(&mut writer, BASE, 1, false);
        let starts = numbered(&mut writer, &lengths);
        let end = writer.position();
        made.write(&writer, 1, BASE);
        let at = place.index((end.0 - BASE.0) as usize);
        let path = made.place(1, (BASE.0 + at as u64) / u64::from(SEGMENT));
        let mut content = fs::read(&path).expect("a segment");
        content[at % SEGMENT as usize] ^= 1 << bit;
        fs::write(&path, content).expect("a segment");
        let mut map = BlockMap::default();
        let Ok(found) = made.wal().read_target(&made.control, Lsn(0), &mut map, &Cancel::new()) else { return Ok(()) };
        let facts = &found.chains[0].facts;
        let is_lost = !matches!(facts.control_record, ControlRecord::Found { .. } | ControlRecord::Reset | ControlRecord::Other);
        if facts.beyond.is_some() || facts.malformed.is_some() || is_lost {
            return Ok(());
        }
        let last_page = (end.0 - 1) / PAGE_SIZE as u64 * PAGE_SIZE as u64;
        for (number, starts) in (0..).zip(starts.windows(2)) {
            let is_before = starts[1].0 <= last_page;
            prop_assert!(!is_before || map.lists(locator(16384), number), "block {}, changed at {}", number, at);
        }
    }

    /// The server uses a segment again while it is read: what it writes over it is of another place.
    #[test]
    fn nothing_is_read_of_what_is_written_over_a_recycled_segment(
        lengths in prop::collection::vec(0_usize..4000, 900..1000),
        overwritten in 16..SEGMENT as usize,
    ) {
        let (made, mut writer) = (Made::new(), writer());
        let starts = numbered(&mut writer, &lengths);
        let end = writer.position();
        made.write(&writer, 1, BASE);
        let mut later = Writer::new(0xD110, SEGMENT, Lsn(9 << 20));
        while later.position().0 < 10 << 20 {
            later.record(HEAP, 0, &[block(16385, 7)], &[9; 3000]);
        }
        let path = made.place(1, 4);
        let mut content = fs::read(&path).expect("a segment");
        let overwritten = overwritten.min(content.len());
        content[..overwritten].copy_from_slice(&later.finish().bytes[..overwritten]);
        fs::write(&path, content).expect("a segment");
        let mut map = BlockMap::default();
        let scope = Scope { from: BASE, limit: end, digested: Lsn(0) };
        let lineage = Lineage::new(1, &[]);
        let Chain { facts, .. } = made.wal().read_source(&lineage, scope, &mut map, &Cancel::new()).expect("readable");
        prop_assert!(facts.end <= Lsn(4 << 20), "{:?}", facts);
        prop_assert!((0..2_000).all(|block| !map.lists(locator(16385), block)));
        let last = starts.partition_point(|start| *start < facts.end);
        prop_assert!((0_u32..).take(last).all(|block| map.lists(locator(16384), block)));
        let mut coverage = Coverage::default();
        coverage.add_wal(&facts);
        prop_assert!(coverage.first_hole(starts[0], end).is_some_and(|hole| hole <= Lsn(4 << 20)));
    }
}

#[test]
fn a_segment_that_is_being_read_is_read_to_its_end_whatever_its_name_is_by_then() {
    let (made, mut writer) = (Made::new(), writer());
    let first = writer.record(HEAP, 0, &[block(16384, 1)], &[1; 3000]);
    let read_to = writer.position();
    made.write(&writer, 1, BASE);
    let follower = Follower::start(&made.wal(), &Lineage::new(1, &[]), read_to).expect("started");
    writer.record(HEAP, 0, &[block(16384, 2)], &[1; 30_000]);
    let end = writer.position();
    let (old, new) = (made.place(1, 3), made.place(1, 20));
    let file = fs::OpenOptions::new().write(true).open(&old).expect("a segment");
    file.write_all_at(&writer.finish().bytes, 0).expect("written");
    fs::rename(&old, &new).expect("recycled");
    let (facts, map) = follower.finish(end).expect("read");
    assert_eq!((facts.from, facts.end), (Some(read_to), end), "after {first}");
    assert!(map.lists(locator(16384), 2));
}
