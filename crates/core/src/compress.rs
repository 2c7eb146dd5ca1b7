//! Packing page content for the wire.

use crate::error::{Error, Kind, Result};
use crate::protocol::data::Codec;

/// Zstandard's level: about as fast as its fastest, noticeably smaller than LZ4.
const ZSTD_LEVEL: i32 = 1;

/// Packs `content`; `None` if that would save less than an eighth, so that the receiver need not unpack.
pub fn pack<'a>(codec: Codec, content: &[u8], buffer: &'a mut Vec<u8>) -> Result<Option<&'a [u8]>> {
    let length = match codec {
        Codec::Plain => return Ok(None),
        Codec::Lz4 => {
            buffer.resize(lz4_flex::block::get_maximum_output_size(content.len()), 0);
            lz4_flex::block::compress_into(content, buffer).map_err(|error| internal(&error))?
        }
        Codec::Zstd => {
            buffer.resize(zstd::zstd_safe::compress_bound(content.len()), 0);
            zstd::bulk::compress_to_buffer(content, buffer.as_mut_slice(), ZSTD_LEVEL)
                .map_err(|error| internal(&error))?
        }
    };
    Ok((length < content.len() - content.len() / 8).then_some(&buffer[..length]))
}

/// Unpacks to exactly `length` bytes, which the caller has bounded.
pub fn unpack<'a>(codec: Codec, packed: &'a [u8], length: u64, buffer: &'a mut Vec<u8>) -> Result<&'a [u8]> {
    let damaged =
        || Error::new(Kind::ProtocolViolation, "packed pages do not unpack to the announced length");
    let length = usize::try_from(length).map_err(|_| damaged())?;
    if codec == Codec::Plain {
        return if packed.len() == length { Ok(packed) } else { Err(damaged()) };
    }
    buffer.resize(length, 0);
    let unpacked = match codec {
        Codec::Lz4 => lz4_flex::block::decompress_into(packed, buffer).map_err(|_| damaged())?,
        _ => zstd::bulk::decompress_to_buffer(packed, buffer.as_mut_slice()).map_err(|_| damaged())?,
    };
    if unpacked == length { Ok(&buffer[..length]) } else { Err(damaged()) }
}

fn internal(error: &dyn std::fmt::Display) -> Error {
    Error::new(Kind::Internal, format!("could not compress: {error}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_packed_is_unpacked(content in prop::collection::vec(0_u8..4, 0..20_000)) {
            for codec in [Codec::Plain, Codec::Lz4, Codec::Zstd] {
                let (mut packed, mut unpacked) = (Vec::new(), Vec::new());
                let wire = match pack(codec, &content, &mut packed).expect("packs") {
                    Some(packed) => unpack(codec, packed, content.len() as u64, &mut unpacked),
                    None => unpack(Codec::Plain, &content, content.len() as u64, &mut unpacked),
                };
                prop_assert_eq!(wire.expect("unpacks"), &content[..]);
            }
        }

        #[test]
        fn damage_is_an_error(packed in prop::collection::vec(any::<u8>(), 0..300), length in 0_u64..10_000) {
            for codec in [Codec::Plain, Codec::Lz4, Codec::Zstd] {
                let mut buffer = Vec::new();
                if let Ok(content) = unpack(codec, &packed, length, &mut buffer) {
                    prop_assert_eq!(content.len() as u64, length);
                }
            }
        }
    }
}
