//! Choosing how pages are packed.

use std::time::Duration;

use serde::Deserialize;

use crate::compress;
use crate::error::Result;
use crate::protocol::data::Codec;

/// The setting `pgpool_recovery.compression`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// LZ4 while it makes the link faster, else nothing.
    Auto,
    /// Nothing.
    Off,
    /// LZ4.
    Lz4,
    /// Zstandard.
    Zstd,
}

/// How often `auto` tries the way it does not use now, in frames.
const TRIAL: u32 = 32;

/// Weight of the newest measurement.
const NEWEST: f64 = 0.25;

/// Packs the frames of one stream and learns what pays.
pub struct Packer {
    compression: Compression,
    buffer: Vec<u8>,
    frames: u32,
    /// Seconds a byte takes from here to the link's far side: plain, and packed.
    plain: Option<f64>,
    packed: Option<f64>,
}

impl Packer {
    /// A packer for one stream. Within one process nothing is ever packed.
    pub fn new(compression: Compression, is_remote: bool) -> Self {
        let compression = if is_remote { compression } else { Compression::Off };
        Self { compression, buffer: Vec::new(), frames: 0, plain: None, packed: None }
    }

    /// Which codec to try for the next frame.
    pub fn choose(&mut self) -> Codec {
        match self.compression {
            Compression::Off => Codec::Plain,
            Compression::Lz4 => Codec::Lz4,
            Compression::Zstd => Codec::Zstd,
            Compression::Auto => {
                self.frames = self.frames.wrapping_add(1);
                let pack = match (self.plain, self.packed) {
                    (None, _) => false,
                    (_, None) => true,
                    (Some(plain), Some(packed)) => (packed < plain) != self.frames.is_multiple_of(TRIAL),
                };
                if pack { Codec::Lz4 } else { Codec::Plain }
            }
        }
    }

    /// Packs the content; what comes back says which codec it was worth.
    pub fn pack<'a>(&'a mut self, codec: Codec, content: &'a [u8]) -> Result<(Codec, &'a [u8])> {
        Ok(compress::pack(codec, content, &mut self.buffer)?
            .map_or((Codec::Plain, content), |packed| (codec, packed)))
    }

    /// Learns how long packing and sending `bytes` took with the codec that was tried.
    pub fn learn(&mut self, tried: Codec, bytes: usize, took: Duration) {
        if self.compression != Compression::Auto || bytes == 0 {
            return;
        }
        let cost = took.as_secs_f64() / bytes as f64;
        let known = if tried == Codec::Plain { &mut self.plain } else { &mut self.packed };
        *known = Some(known.map_or(cost, |known| known + (cost - known) * NEWEST));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share_packed(seconds_plain: f64, seconds_packed: f64) -> usize {
        let mut packer = Packer::new(Compression::Auto, true);
        (0..1000)
            .filter(|_| {
                let codec = packer.choose();
                let seconds = if codec == Codec::Plain { seconds_plain } else { seconds_packed };
                packer.learn(codec, 1000, Duration::from_secs_f64(seconds));
                codec == Codec::Lz4
            })
            .count()
    }

    #[test]
    fn auto_takes_the_faster_way_and_keeps_trying_the_other() {
        assert!(share_packed(0.001, 0.002) < 50);
        assert!(share_packed(0.002, 0.001) > 950);
        assert!(share_packed(0.002, 0.001) < 1000);
    }

    #[test]
    fn nothing_is_packed_within_one_process() {
        assert_eq!(Packer::new(Compression::Zstd, false).choose(), Codec::Plain);
        assert_eq!(Packer::new(Compression::Zstd, true).choose(), Codec::Zstd);
    }
}
