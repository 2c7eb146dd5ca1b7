//! The bodies of binary frames.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pgpool_recovery_core::manifest::list::{FileIndex, FileList};
use pgpool_recovery_core::manifest::path::RelPath;
use pgpool_recovery_core::manifest::plan::Range;
use pgpool_recovery_core::wire::protocol::data::{
    ContentTail, PagesTail, Present, Put, decode_ask, decode_end_of_file, decode_file, encode_ask,
};
use pgpool_recovery_core::wire::protocol::plan::{Entry, decode_plan, encode_plan};
use pgpool_recovery_core::wire::protocol::wal::{WalTail, decode_durable};

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
    if let Ok((tail, length)) = WalTail::decode(data) {
        assert_eq!(&data[length..], tail.encode());
    }
    let _ = decode_durable(data);
    let _ = decode_end_of_file(data);
    let _ = decode_file(data);
    let asked = Range { file: 0, offset: 0, length: 512 << 10 };
    let _ = Present::decode_all(&[asked; 3], data);
    plan(data);
});

/// What a plan lists lies beneath, and is what it is after another journey.
fn plan(data: &[u8]) {
    let stays_beneath = |path: &RelPath| {
        assert!(path.components().all(|part| !matches!(part, "" | "." | "..")));
        assert!(!path.as_str().contains('\0') && !path.as_str().starts_with('/'));
    };
    let decode = |bodies: &[Vec<u8>]| {
        let (mut directories, mut files) = (Vec::new(), FileList::default());
        let take = |entry| {
            match entry {
                Entry::Directory(directory) => {
                    stays_beneath(&directory.path);
                    directories.push(directory);
                }
                Entry::File(file) => {
                    stays_beneath(&file.path);
                    files.push(&file);
                }
            }
            Ok(())
        };
        let mut take = take;
        bodies.iter().try_for_each(|body| decode_plan(body, &mut take)).map(|()| (directories, files))
    };
    let Ok((directories, files)) = decode(&[data.to_vec()]) else { return };
    let mut bodies = Vec::new();
    let encoded = encode_plan(&directories, &files, |body| {
        bodies.push(body.to_vec());
        Ok(())
    });
    encoded.expect("what was decoded can be encoded");
    let again = decode(&bodies).expect("and decoded again");
    // bits of a mode that no file has get lost
    assert_eq!((again.0.len(), again.1.len()), (directories.len(), files.len()));
    assert!(again.1.iter().zip(files.iter()).all(|(one, other)| (one.path, one.size) == (other.path, other.size)));
    if let Ok(index) = FileIndex::new(&files) {
        assert!((0..files.len()).all(|number| index.find(&files, &files.path(number)) == Some(number)));
    }
}
