//! WAL of any content: pages, records, their effects, timeline histories and summaries; and what two hosts tell each other of it.

#![no_main]

use std::io;

use libfuzzer_sys::fuzz_target;
use pgdata::wal::page::{Format, MAGICS, PAGE_SIZE};
use pgdata::wal::reader::{Origin, Pages, Reader};
use pgdata::wal::record::{RecordHeader, read_block_headers};
use pgdata::wal::{Lsn, special};
use pgdata::{history, wal_summary};
use pgpool_recovery_core::compare::wal_map::{BlockMap, Group};

/// The input as pages from the beginning of a segment on.
struct Input<'a>(&'a [u8]);

const SEGMENT: u32 = 16 << 20;

fn decode_map(data: &[u8]) {
    if let Ok(mut map) = BlockMap::decode(data) {
        assert_eq!(BlockMap::decode(&map.encode()).expect("its own encoding"), map);
    }
}

impl Pages for Input<'_> {
    fn read(&mut self, address: Lsn, page: &mut [u8]) -> io::Result<bool> {
        let offset = address.0.checked_sub(u64::from(SEGMENT)).and_then(|offset| usize::try_from(offset).ok());
        let found = offset.and_then(|offset| self.0.get(offset..)?.get(..PAGE_SIZE));
        if let Some(found) = found {
            page.copy_from_slice(found);
        }
        Ok(found.is_some())
    }
}

fuzz_target!(|data: &[u8]| {
    let _ = history::parse(data);
    let _ = Group::decode_all(data);
    decode_map(data);
    // with a CRC that fits, so that what lies behind it is reached
    decode_map(&[data, &crc32c::crc32c(data).to_le_bytes()].concat());
    let _ = wal_summary::read(data, |_| {}, |_, _| {});
    // whose WAL it is comes from the first page, so that a seed of any server is read
    let identifier = data.get(24..).and_then(|rest| rest.first_chunk().copied()).map(u64::from_le_bytes);
    let origin = Origin { system_identifier: identifier.unwrap_or_default(), segment_size: SEGMENT };
    let mut reader = Reader::new(Input(data), origin, Lsn(u64::from(SEGMENT)), Lsn(u64::MAX));
    while let Ok(Some(record)) = reader.next_record() {
        assert!(record.start < record.end);
    }
    // a fuzzer finds no CRC: what is behind it is fed as it is
    let mut blocks = Vec::new();
    for magic in MAGICS {
        let Some(format) = Format::of(magic) else { continue };
        let _ = read_block_headers(data, data.len(), format, &mut blocks);
        if let Some(header) = RecordHeader::parse(data) {
            let _ = special::effect(&header, &data[24..], format);
        }
    }
});
