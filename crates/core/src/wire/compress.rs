//! Packing page content for the wire.

use crate::error::{Error, Kind, Result};
use crate::sys::buffer::Buffer;
use crate::wire::protocol::data::Codec;

/// Zstandard's level: about as fast as its fastest, noticeably smaller than LZ4.
const ZSTD_LEVEL: i32 = 1;

/// Packs content; keeps its memory from one call to the next.
#[derive(Default)]
pub struct Compressor {
    buffer: Vec<u8>,
    zstd: Option<zstd::bulk::Compressor<'static>>,
}

impl Compressor {
    /// Packs `content`; `None` if that would save less than an eighth, so that the receiver need not unpack.
    pub fn pack(&mut self, codec: Codec, content: &[u8]) -> Result<Option<&[u8]>> {
        let buffer = &mut self.buffer;
        let length = match codec {
            Codec::Plain => return Ok(None),
            Codec::Lz4 => {
                grow(buffer, lz4_flex::block::get_maximum_output_size(content.len()));
                lz4_flex::block::compress_into(content, buffer).map_err(|error| internal(&error))?
            }
            Codec::Zstd => {
                grow(buffer, zstd::zstd_safe::compress_bound(content.len()));
                let zstd = match &mut self.zstd {
                    Some(zstd) => zstd,
                    none => {
                        let made = zstd::bulk::Compressor::new(ZSTD_LEVEL);
                        none.insert(made.map_err(|error| internal(&error))?)
                    }
                };
                zstd.compress_to_buffer(content, buffer.as_mut_slice()).map_err(|error| internal(&error))?
            }
        };
        Ok((length < content.len() - content.len() / 8).then_some(&buffer[..length]))
    }
}

/// Unpacks content; keeps its memory from one call to the next.
#[derive(Default)]
pub struct Decompressor {
    zstd: Option<zstd::bulk::Decompressor<'static>>,
}

impl Decompressor {
    /// Unpacks to exactly `length` bytes, which the caller has bounded, into `content`. What is plain is not
    /// copied: the buffers change places.
    pub fn unpack(
        &mut self,
        codec: Codec,
        packed: &mut Buffer,
        length: u64,
        content: &mut Buffer,
    ) -> Result<()> {
        let damaged =
            || Error::new(Kind::ProtocolViolation, "packed pages do not unpack to the announced length");
        let length = usize::try_from(length).map_err(|_| damaged())?;
        if codec == Codec::Plain {
            std::mem::swap(packed, content);
            return if content.len() == length { Ok(()) } else { Err(damaged()) };
        }
        content.resize(length);
        let unpacked = match codec {
            Codec::Lz4 => lz4_flex::block::decompress_into(packed, content).map_err(|_| damaged())?,
            _ => {
                let zstd = match &mut self.zstd {
                    Some(zstd) => zstd,
                    none => none.insert(zstd::bulk::Decompressor::new().map_err(|error| internal(&error))?),
                };
                zstd.decompress_to_buffer(packed, &mut content[..]).map_err(|_| damaged())?
            }
        };
        if unpacked == length { Ok(()) } else { Err(damaged()) }
    }
}

fn grow(buffer: &mut Vec<u8>, length: usize) {
    if buffer.len() < length {
        buffer.resize(length, 0);
    }
}

fn internal(error: &dyn std::fmt::Display) -> Error {
    let error = error.to_string();
    // zstd's words for ZSTD_error_memory_allocation
    if error.contains("not enough memory") {
        return Error::new(Kind::OutOfMemory, "no memory to compress what is sent")
            .hint("Set pgpool_recovery.jobs lower, or pgpool_recovery.compression to off.");
    }
    Error::new(Kind::Internal, format!("could not compress: {error}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_packed_is_unpacked(contents in prop::collection::vec(prop::collection::vec(0_u8..4, 0..20_000), 1..4)) {
            let (mut compressor, mut decompressor) = (Compressor::default(), Decompressor::default());
            for codec in [Codec::Plain, Codec::Lz4, Codec::Zstd] {
                for content in &contents {
                    let mut unpacked = Buffer::new();
                    let (codec, packed) = match compressor.pack(codec, content).expect("packs") {
                        Some(packed) => (codec, packed),
                        None => (Codec::Plain, content.as_slice()),
                    };
                    let mut wire = Buffer::new();
                    wire.extend_from_slice(packed);
                    decompressor.unpack(codec, &mut wire, content.len() as u64, &mut unpacked).expect("unpacks");
                    prop_assert_eq!(&unpacked[..], &content[..]);
                }
            }
        }

        #[test]
        fn damage_is_an_error(packed in prop::collection::vec(any::<u8>(), 0..300), length in 0_u64..10_000) {
            let mut decompressor = Decompressor::default();
            for codec in [Codec::Plain, Codec::Lz4, Codec::Zstd] {
                let (mut wire, mut content) = (Buffer::new(), Buffer::new());
                wire.extend_from_slice(&packed);
                if decompressor.unpack(codec, &mut wire, length, &mut content).is_ok() {
                    prop_assert_eq!(content.len() as u64, length);
                }
            }
        }
    }
}
