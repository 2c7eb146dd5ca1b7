//! Control messages.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pgpool_recovery_core::wire::protocol::message::{self, Reply, Request};

fuzz_target!(|data: &[u8]| {
    if let Ok(request) = message::decode::<Request>(data) {
        let again = message::encode(&request).expect("what was decoded can be encoded");
        assert_eq!(message::decode::<Request>(&again).expect("and decoded again"), request);
    }
    if let Ok(reply) = message::decode::<Reply>(data) {
        let _ = message::encode(&reply);
    }
});
