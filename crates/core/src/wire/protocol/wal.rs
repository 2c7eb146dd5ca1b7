//! The link that carries WAL: its first message is an [`AttachWal`](super::message::Request::AttachWal), then there are only
//! these frames.

use pgdata::wal::Lsn;

use super::data::{Codec, Reader, split_tail};
use crate::error::{Error, Kind, Result};

/// Sender: WAL, where the last frame ended. Body: its content, packed by the codec, then a [`WalTail`].
pub const WAL: u8 = 0x28;
/// Receiver: all WAL before this position is durable. Body: position u64.
pub const WAL_DURABLE: u8 = 0x33;

/// Most bytes of WAL in one frame.
pub const MAX_WAL: u32 = 512 << 10;

/// What follows the content of a [`WAL`] frame: position u64, span u32, length u32, codec u8.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalTail {
    /// The position of the first byte.
    pub position: Lsn,
    /// Bytes of WAL. Those behind the content are zeros: much of a segment is, when a backup ends.
    pub span: u32,
    /// Bytes of content, unpacked.
    pub length: u32,
    /// How the content is packed.
    pub codec: Codec,
}

impl WalTail {
    const BYTES: usize = 17;

    /// Encodes the tail.
    pub fn encode(&self) -> [u8; Self::BYTES] {
        let mut out = [0; Self::BYTES];
        out[..8].copy_from_slice(&self.position.0.to_le_bytes());
        out[8..12].copy_from_slice(&self.span.to_le_bytes());
        out[12..16].copy_from_slice(&self.length.to_le_bytes());
        out[16] = self.codec as u8;
        out
    }

    /// Decodes the tail; returns the length of the packed content before it.
    pub fn decode(body: &[u8]) -> Result<(Self, usize)> {
        let (packed, tail) = split_tail(body, Self::BYTES)?;
        let mut reader = Reader(tail);
        let (position, span, length) = (Lsn(reader.u64()?), reader.u32()?, reader.u32()?);
        let codec = Codec::decode(reader.u8()?)?;
        let is_possible = (1..=MAX_WAL).contains(&span) && length <= span;
        if !is_possible || position.0.checked_add(span.into()).is_none() {
            let message = format!("invalid frame: {length} of {span} bytes of WAL at {position}");
            return Err(Error::new(Kind::ProtocolViolation, message));
        }
        Ok((Self { position, span, length, codec }, packed.len()))
    }
}

/// Encodes the body of a [`WAL_DURABLE`].
pub const fn encode_durable(position: Lsn) -> [u8; 8] {
    position.0.to_le_bytes()
}

/// Decodes the body of a [`WAL_DURABLE`].
pub fn decode_durable(body: &[u8]) -> Result<Lsn> {
    let mut reader = Reader(body);
    let position = reader.u64()?;
    reader.end()?;
    Ok(Lsn(position))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn decoders_never_panic(body in prop::collection::vec(any::<u8>(), 0..40)) {
            let _ = WalTail::decode(&body);
            let _ = decode_durable(&body);
        }

        #[test]
        fn frames_round_trip(
            position in 0_u64..1 << 60,
            span in 1..=MAX_WAL,
            content in prop::collection::vec(any::<u8>(), 0..100),
        ) {
            let tail = WalTail { position: Lsn(position), span, length: span / 2, codec: Codec::Zstd };
            let body = [&content[..], &tail.encode()].concat();
            prop_assert_eq!(WalTail::decode(&body).expect("decodes"), (tail, content.len()));
            prop_assert_eq!(decode_durable(&encode_durable(Lsn(position))).expect("decodes"), Lsn(position));
        }
    }

    #[test]
    fn sizes_that_no_frame_has_are_refused() {
        let tail = WalTail { position: Lsn(1 << 24), span: MAX_WAL, length: 100, codec: Codec::Plain };
        WalTail::decode(&tail.encode()).expect("the largest");
        for (bad, what) in [
            (WalTail { span: 0, length: 0, ..tail }, "nothing"),
            (WalTail { span: MAX_WAL + 1, ..tail }, "too much"),
            (WalTail { length: MAX_WAL + 1, ..tail }, "more content than WAL"),
            (WalTail { position: Lsn(u64::MAX - 10), ..tail }, "beyond the last position"),
        ] {
            WalTail::decode(&bad.encode()).expect_err(what);
        }
    }
}
