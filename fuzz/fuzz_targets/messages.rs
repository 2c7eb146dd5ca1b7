//! Control messages.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pgpool_recovery_core::wire::protocol::message::{self, Reply, Request};

fuzz_target!(|data: &[u8]| {
    if let Ok(request) = message::decode::<Request>(data) {
        let again = message::encode(&request).expect("what was decoded can be encoded");
        assert_eq!(message::decode::<Request>(&again).expect("and decoded again"), request);
        if let Request::Plan { directories, files } = request {
            let paths = directories.iter().map(|directory| &directory.path).chain(files.iter().map(|file| &file.path));
            for path in paths {
                assert!(path.components().all(|part| !matches!(part, "" | "." | "..")));
                assert!(!path.as_str().contains('\0') && !path.as_str().starts_with('/'));
            }
        }
    }
    if let Ok(reply) = message::decode::<Reply>(data) {
        let _ = message::encode(&reply);
    }
});
