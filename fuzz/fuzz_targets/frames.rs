//! The bodies of binary frames.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pgpool_recovery_core::manifest::plan::Range;
use pgpool_recovery_core::wire::protocol::data::{
    ContentTail, PagesTail, Present, Put, decode_ask, decode_end_of_file, decode_file, encode_ask,
};

fuzz_target!(|data: &[u8]| {
    if let Ok((tail, length)) = PagesTail::decode(data) {
        let mut again = Vec::new();
        PagesTail::encode(tail.file, tail.codec, &tail.runs, &mut again);
        assert_eq!(&data[length..], again);
    }
    if let Ok((tail, length)) = ContentTail::decode(data) {
        let mut again = Vec::new();
        ContentTail::encode(&tail.ranges, &mut again);
        assert_eq!(&data[length..], again);
    }
    if let Ok(ranges) = decode_ask(data) {
        let mut again = Vec::new();
        encode_ask(&ranges, &mut again);
        assert_eq!(data, again);
    }
    if let Ok(put) = Put::decode(data) {
        assert_eq!(data, [put.head(), put.content].concat());
    }
    let _ = decode_end_of_file(data);
    let _ = decode_file(data);
    let asked = Range { file: 0, offset: 0, length: 512 << 10 };
    let _ = Present::decode_all(&[asked; 3], data);
});
