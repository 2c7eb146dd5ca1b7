//! Packed pages: whatever comes, it unpacks to the announced length or not at all.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pgpool_recovery_core::internal::Buffer;
use pgpool_recovery_core::internal::{Compressor, Decompressor};
use pgpool_recovery_core::wire::protocol::data::Codec;

fuzz_target!(|data: &[u8]| {
    let Some((head, packed)) = data.split_at_checked(3) else { return };
    let codec = [Codec::Plain, Codec::Lz4, Codec::Zstd][usize::from(head[0] % 3)];
    let length = u64::from(u16::from_le_bytes([head[1], head[2]])) * 8;
    let (mut wire, mut content) = (Buffer::new(), Buffer::new());
    wire.extend_from_slice(packed);
    let mut decompressor = Decompressor::default();
    if decompressor.unpack(codec, &mut wire, length, &mut content).is_ok() {
        assert_eq!(content.len() as u64, length);
    }
    let mut compressor = Compressor::default();
    if let Some(small) = compressor.pack(codec, packed).expect("packs") {
        let (mut wire, mut content) = (Buffer::new(), Buffer::new());
        wire.extend_from_slice(small);
        decompressor.unpack(codec, &mut wire, packed.len() as u64, &mut content).expect("unpacks");
        assert_eq!(&content[..], packed);
    }
});
