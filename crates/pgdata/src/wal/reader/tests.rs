use proptest::prelude::*;

use super::*;
use crate::wal::page::MAGICS;
use crate::wal::record::{RelationFileLocator, rmgr};
use crate::wal::sample::{Writer, Written, body};

const SEGMENT: u32 = 1 << 20;
const BASE: Lsn = Lsn(3 << 20);
const HEAP: u8 = 10;

fn writer() -> Writer {
    Writer::new(0xD110, SEGMENT, BASE)
}

fn block(relation: u32, block: u32) -> BlockReference {
    BlockReference {
        locator: RelationFileLocator { tablespace: 1663, database: 5, relation },
        fork: 0,
        block,
    }
}

/// Start, blocks and effect of each record, and the end.
type Seen = (Vec<(Lsn, Vec<BlockReference>, Effect)>, End);

fn read_from(written: &Written, origin: Origin, start: Lsn, limit: Lsn) -> Result<Seen, ReadError> {
    let mut reader = Reader::new(written.clone(), origin, start, limit);
    let mut seen = Vec::new();
    while let Some(record) = reader.next_record()? {
        seen.push((record.start, record.blocks.to_vec(), record.effect.clone()));
    }
    assert!(reader.next_record()?.is_none(), "the end is the end");
    Ok((seen, reader.end().cloned().expect("an end")))
}

fn read(writer: &Writer) -> Seen {
    read_from(&writer.finish(), writer.origin, BASE, Lsn(u64::MAX)).expect("readable")
}

#[test]
fn records_are_read_over_pages_and_segments() {
    let mut writer = writer();
    let mut written = Vec::new();
    for length in [1, 7, 255, 256, 8000, 8151, 8168, 20_000, 600_000, 3_000_000, 10] {
        let blocks = [block(16384, length), block(16384, 1), block(16385, 2)];
        let start = writer.record(HEAP, 0, &blocks.map(|block| (block, 3)), &vec![1; length as usize]);
        written.push((start, blocks.to_vec(), Effect::None));
    }
    let (seen, end) = read(&writer);
    assert_eq!(seen, written);
    assert_eq!(end.at, writer.position());
    assert!(matches!(end.why, Why::Empty | Why::NoPage(_)), "{end:?}");
    // from the middle, and to the middle
    let (middle, limit) = (written[4].0, written[7].0);
    let (seen, end) = read_from(&writer.finish(), writer.origin, middle, limit).expect("readable");
    assert_eq!(seen, written[4..7]);
    assert_eq!(end, End { at: limit, why: Why::Limit });
}

#[test]
fn the_first_record_after_a_page_is_found() {
    let mut writer = writer();
    let mut starts = vec![writer.record(HEAP, 0, &[(block(1, 1), 0)], b"first")];
    for length in [30_000, 8144 * 2, 100] {
        starts.push(writer.record(HEAP, 0, &[(block(1, 1), 0)], &vec![0; length]));
    }
    for page in 0..writer.finish().bytes.len() / PAGE_SIZE {
        let page = Lsn(BASE.0 + (page * PAGE_SIZE) as u64);
        let mut reader = Reader::new(writer.finish(), writer.origin, BASE, Lsn(u64::MAX));
        reader.seek_from(page).expect("readable");
        let found = reader.next_record().expect("readable").map(|record| record.start);
        assert_eq!(found, starts.iter().copied().find(|start| *start >= page), "{page}");
    }
}

#[test]
fn the_main_data_of_long_records_is_kept_where_it_matters() {
    let mut writer = writer();
    for subtransactions in [10_u32, 200_000, 1_000_000] {
        let mut data = [1_u64.to_le_bytes().as_slice(), &0b110_u32.to_le_bytes()].concat();
        data.extend(subtransactions.to_le_bytes());
        data.resize(data.len() + subtransactions as usize * 4, 0xCD);
        data.extend(1_u32.to_le_bytes());
        data.extend([1663_u32, 5, subtransactions].iter().flat_map(|number| number.to_le_bytes()));
        writer.record(rmgr::XACT, 0x80, &[(block(1, 1), 9000)], &data);
    }
    let (seen, _) = read(&writer);
    let dropped: Vec<u32> = seen
        .iter()
        .map(|(_, blocks, effect)| match effect {
            Effect::TransactionEnd { dropped, .. } if blocks.len() == 1 => dropped[0].relation,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(dropped, [10, 200_000, 1_000_000]);
    let mut long = super::super::sample::Writer::new(0xD110, SEGMENT, BASE);
    long.record(rmgr::XACT, 0x00, &[], &vec![0; MAX_DATA + 1]);
    let error = read_from(&long.finish(), long.origin, BASE, Lsn(u64::MAX)).expect_err("too much");
    assert!(matches!(error, ReadError::Malformed { .. }), "{error}");
}

#[test]
fn the_rest_of_a_segment_is_skipped_after_a_switch() {
    let mut writer = writer();
    let first = writer.switch();
    assert_eq!(writer.position(), Lsn(BASE.0 + u64::from(SEGMENT)));
    let second = writer.record(HEAP, 0, &[(block(1, 1), 0)], b"x");
    let (seen, _) = read(&writer);
    let starts: Vec<Lsn> = seen.iter().map(|(start, ..)| *start).collect();
    assert_eq!(starts, [first, second]);
    assert_eq!(second.0 % u64::from(SEGMENT), 40, "behind the long header");
}

#[test]
fn a_record_that_was_given_up_is_passed_over() {
    let mut writer = writer();
    let first = writer.record(HEAP, 0, &[(block(1, 1), 0)], b"first");
    let given_up = writer.record(HEAP, 0, &[(block(2, 2), 0)], &[0; 30_000]);
    let page = Lsn(BASE.0 + 2 * PAGE_SIZE as u64);
    let overwrite = writer.overwrite(page, given_up, first);
    let last = writer.record(HEAP, 0, &[(block(3, 3), 0)], b"last");
    let (seen, end) = read(&writer);
    assert_eq!(seen.iter().map(|(start, ..)| *start).collect::<Vec<_>>(), [first, overwrite, last]);
    assert_eq!(seen[1].2, Effect::Overwrite { given_up });
    assert_eq!(end.at, writer.position());
}

#[test]
fn the_end_is_where_nothing_valid_follows() {
    let mut writer = writer();
    let first = writer.record(HEAP, 0, &[(block(1, 1), 0)], b"first");
    let second = writer.record(HEAP, 0, &[(block(2, 2), 0)], &[1; 20_000]);
    let after = writer.position();
    let good = writer.finish();
    let ends = |written: &Written| {
        let (seen, end) = read_from(written, writer.origin, BASE, Lsn(u64::MAX)).expect("an end");
        (seen.len(), end)
    };
    assert_eq!(ends(&good), (2, End { at: after, why: Why::Empty }));
    let changed = |position: u64, byte: u8| {
        let mut written = good.clone();
        let offset = written.offset(Lsn(position));
        written.bytes[offset] = byte;
        ends(&written)
    };
    let page = BASE.0 + PAGE_SIZE as u64;
    let at = second;
    assert_eq!(changed(second.0 + 30, 9), (1, End { at, why: Why::Crc }));
    // the first one lies in one page: its last byte
    assert_eq!(changed(first.0 + 50, 9), (0, End { at: BASE, why: Why::Crc }));
    assert_eq!(changed(second.0 + 9, 9).1.why, Why::Header, "another predecessor");
    assert_eq!(changed(second.0 + 17, 99).1.why, Why::Header, "no such resource manager");
    assert_eq!(changed(page, 0).1.why, Why::Page(Lsn(page), BadPage::Magic(0xD100)));
    assert_eq!(changed(page + 8, 1).1.why, Why::Address(Lsn(page), Lsn(page + 1)));
    assert_eq!(changed(page + 2, 0).1.why, Why::Continuation(Lsn(page)));
    assert_eq!(changed(page + 16, 1).1.why, Why::Continuation(Lsn(page)));
    assert_eq!(changed(page + 4, 0).1.why, Why::Timeline(Lsn(page), 0));
    assert_eq!(changed(BASE.0 + 24, 1).1, End { at: BASE, why: Why::Foreign(BASE) });
    let mut cut = good.clone();
    cut.bytes.truncate(2 * PAGE_SIZE);
    assert_eq!(ends(&cut), (1, End { at, why: Why::NoPage(Lsn(page + PAGE_SIZE as u64)) }));
    assert_eq!(first, Lsn(BASE.0 + 40));
}

#[test]
fn a_valid_record_that_is_not_understood_is_an_error() {
    let mut writer = writer();
    writer.record_of(HEAP, 0, &[200, 0, 0, 0]);
    let error = read_from(&writer.finish(), writer.origin, BASE, Lsn(u64::MAX)).expect_err("unknown");
    assert!(matches!(error, ReadError::Malformed { at, .. } if at == Lsn(BASE.0 + 40)), "{error}");
}

#[derive(Debug, Clone)]
struct Given {
    blocks: Vec<(BlockReference, u16)>,
    main: usize,
}

fn given() -> impl Strategy<Value = Given> {
    let block = (1_u32..4, 0_u8..4, any::<u32>(), prop_oneof![Just(0_u16), 1..300_u16, Just(8000)]);
    let blocks = proptest::collection::vec(block, 0..6).prop_map(|blocks| {
        blocks
            .into_iter()
            .map(|(relation, fork, number, data)| {
                (BlockReference { fork, ..block_of(relation, number) }, data)
            })
            .collect()
    });
    let main = prop_oneof![0_usize..300, 8000_usize..8300, Just(600_000)];
    (blocks, main).prop_map(|(blocks, main)| Given { blocks, main })
}

fn block_of(relation: u32, number: u32) -> BlockReference {
    block(relation, number)
}

fn written(magic: usize, given: &[Given]) -> (Writer, Vec<(Lsn, Vec<BlockReference>)>) {
    let mut writer = Writer::new(MAGICS[magic], SEGMENT, BASE);
    let records = given
        .iter()
        .map(|given| {
            let start = writer.record(HEAP, 0, &given.blocks, &vec![7; given.main]);
            (start, given.blocks.iter().map(|(block, _)| *block).collect())
        })
        .collect();
    (writer, records)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_was_written_is_read(magic in 0..MAGICS.len(), given in proptest::collection::vec(given(), 1..30)) {
        let (writer, expected) = written(magic, &given);
        let (seen, end) = read(&writer);
        let seen: Vec<_> = seen.into_iter().map(|(start, blocks, _)| (start, blocks)).collect();
        prop_assert_eq!(seen, expected);
        prop_assert_eq!(end.at, writer.position());
    }

    /// Damage ends the WAL early, or is an error, or was in a place that is not used. It never changes a record.
    #[test]
    fn damage_never_makes_another_record(
        given in proptest::collection::vec(given(), 1..10), place: prop::sample::Index, bit in 0_u8..8,
    ) {
        let (writer, expected) = written(2, &given);
        let mut damaged = writer.finish();
        let place = place.index(damaged.bytes.len());
        damaged.bytes[place] ^= 1 << bit;
        if let Ok((seen, _)) = read_from(&damaged, writer.origin, BASE, Lsn(u64::MAX)) {
            for ((start, blocks, _), expected) in seen.into_iter().zip(expected) {
                prop_assert_eq!((start, blocks), expected);
            }
        }
    }

    #[test]
    fn any_body_is_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200), manager in 0_u8..22) {
        let mut writer = writer();
        writer.record_of(manager, 0, &bytes);
        let _ = read_from(&writer.finish(), writer.origin, BASE, Lsn(u64::MAX));
        let _ = body(&[], &bytes);
    }
}
