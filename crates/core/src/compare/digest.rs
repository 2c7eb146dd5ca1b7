//! Keyed BLAKE3: the proof that two pages are equal, and the proof that two peers share a secret.
//!
//! The only place that names `blake3`.

use std::ops::Range;

use blake3::IncrementCounter;
use blake3::platform::Platform;

use crate::error::{Error, Kind, Result};

/// The unit of comparison, bytes: PostgreSQL's default page.
pub const PAGE: usize = 8192;

/// Bytes of one page digest on the wire. 128 bits of a keyed hash: two different pages collide with
/// probability 2^-128, and without the run's key a collision cannot be constructed.
pub const DIGEST: usize = 16;

/// Bytes of a page that are hashed by themselves: the longest message that is one chunk to BLAKE3, of
/// which its vector code hashes many at a time.
const PIECE: usize = 1024;

/// Pieces of a whole page.
const PIECES: usize = PAGE / PIECE;

/// Bytes of a whole hash.
const HASH: usize = blake3::OUT_LEN;

/// Whole pages digested at a time: a multiple of 16, the most lanes a vector unit has.
const GROUP: usize = 16;

// The flags of BLAKE3's compression function (BLAKE3 specification, table 3).
const CHUNK_START: u8 = 1 << 0;
const CHUNK_END: u8 = 1 << 1;
const ROOT: u8 = 1 << 3;
const KEYED_HASH: u8 = 1 << 4;

/// The key of one run's digests, made by the sender and never reused.
#[derive(Clone)]
pub struct DigestKey([u8; 32]);

impl DigestKey {
    /// A fresh random key.
    pub fn random() -> Result<Self> {
        random_bytes().map(Self)
    }

    /// The key as it travels over the authenticated link.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes that travel.
    pub const fn to_bytes(&self) -> [u8; 32] {
        self.0
    }

    /// Appends the digest of each page of `data` to `digests`; a shorter last page counts as one.
    pub fn digest_pages(&self, data: &[u8], digests: &mut Vec<u8>) {
        digests.reserve(data.len().div_ceil(PAGE) * DIGEST);
        let (groups, rest) = data.as_chunks::<{ GROUP * PAGE }>();
        for group in groups {
            self.digest_group::<GROUP, { GROUP * PIECES }>(group, digests);
        }
        let (pages, rest) = rest.as_chunks::<PAGE>();
        for page in pages {
            self.digest_group::<1, PIECES>(page, digests);
        }
        if !rest.is_empty() {
            digests.extend_from_slice(&self.page(rest));
        }
    }

    /// Appends the digests of all pages of some pieces, which lie in `data` as `pieces` says.
    pub fn digest_pieces(&self, data: &[u8], pieces: &Pieces, digests: &mut Vec<u8>) {
        let first = digests.len();
        self.digest_pages(&data[..pieces.end()], digests);
        // a page that the piece fills only in part was digested with what lies behind it
        for piece in pieces.iter().filter(|piece| !piece.bytes.len().is_multiple_of(PAGE)) {
            let page = piece.bytes.end / PAGE * PAGE..piece.bytes.end;
            let digest = first + piece.digests.end - DIGEST..first + piece.digests.end;
            digests[digest].copy_from_slice(&self.page(&data[page]));
        }
    }

    /// The digest of one page: the keyed hash of the keyed hashes of its kilobytes, cut.
    pub fn page(&self, page: &[u8]) -> [u8; DIGEST] {
        let mut outer = blake3::Hasher::new_keyed(&self.0);
        for piece in page.chunks(PIECE) {
            outer.update(blake3::keyed_hash(&self.0, piece).as_bytes());
        }
        let mut digest = [0; DIGEST];
        digest.copy_from_slice(&outer.finalize().as_bytes()[..DIGEST]);
        digest
    }

    /// The digests of whole pages, the lanes of the vector unit as busy as can be: first the pieces of all
    /// pages, then the pages.
    fn digest_group<const COUNT: usize, const ALL_PIECES: usize>(&self, pages: &[u8], digests: &mut Vec<u8>) {
        let mut inner = [[0; HASH]; ALL_PIECES];
        self.hash_each::<PIECE, ALL_PIECES>(pages, &mut inner);
        let mut outer = [[0; HASH]; COUNT];
        self.hash_each::<{ PIECES * HASH }, COUNT>(inner.as_flattened(), &mut outer);
        for hash in outer {
            digests.extend_from_slice(&hash[..DIGEST]);
        }
    }

    /// Keyed hashes of `COUNT` messages of `LENGTH` bytes that follow each other.
    fn hash_each<const LENGTH: usize, const COUNT: usize>(
        &self,
        messages: &[u8],
        out: &mut [[u8; HASH]; COUNT],
    ) {
        let key = self.0.as_chunks::<4>().0;
        let key = std::array::from_fn(|word| u32::from_le_bytes(key[word]));
        let messages = messages.as_chunks::<LENGTH>().0;
        let messages: [&[u8; LENGTH]; COUNT] = std::array::from_fn(|number| &messages[number]);
        let platform = Platform::detect();
        // each message is a tree of one chunk, numbered 0, whose last block is the root
        platform.hash_many(
            &messages,
            &key,
            0,
            IncrementCounter::No,
            KEYED_HASH,
            CHUNK_START,
            CHUNK_END | ROOT,
            out.as_flattened_mut(),
        );
    }
}

/// A digest of content that comes in parts, without a key: of what both sides have by themselves.
#[derive(Debug, Clone, Default)]
pub struct ContentHash {
    hasher: blake3::Hasher,
    /// What is not hashed yet: long messages are hashed by all lanes of the vector unit.
    pending: Vec<u8>,
}

impl ContentHash {
    const PENDING: usize = 64 << 10;

    /// Adds content.
    pub fn update(&mut self, content: &[u8]) {
        if self.pending.len() + content.len() > Self::PENDING {
            self.hasher.update(&self.pending);
            self.pending.clear();
        }
        if content.len() >= Self::PENDING {
            self.hasher.update(content);
        } else {
            self.pending.extend_from_slice(content);
        }
    }

    /// The digest of what was added, and a fresh beginning.
    pub fn finish(&mut self) -> [u8; DIGEST] {
        self.hasher.update(&self.pending);
        self.pending.clear();
        let mut digest = [0; DIGEST];
        digest.copy_from_slice(&self.hasher.finalize().as_bytes()[..DIGEST]);
        self.hasher.reset();
        digest
    }
}

/// Pieces of content that lie one after the other in memory, each beginning with a page.
#[derive(Debug, Default)]
pub struct Pieces {
    lengths: Vec<usize>,
    end: usize,
}

/// Where one of them lies, and where its digests do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Its bytes in the memory of all pieces.
    pub bytes: Range<usize>,
    /// Its bytes in the digests of all pieces.
    pub digests: Range<usize>,
}

impl Pieces {
    /// The room that a piece of `length` bytes takes.
    pub const fn room(length: usize) -> usize {
        length.next_multiple_of(PAGE)
    }

    /// Adds a piece of `length` bytes.
    pub fn push(&mut self, length: usize) {
        self.lengths.push(length);
        self.end += Self::room(length);
    }

    /// Where the next piece begins.
    pub const fn end(&self) -> usize {
        self.end
    }

    /// The pieces in their order.
    pub fn iter(&self) -> impl Iterator<Item = Piece> {
        self.lengths.iter().scan(0, |start, &length| {
            let bytes = *start..*start + length;
            *start += Self::room(length);
            let digests = bytes.start / PAGE * DIGEST..*start / PAGE * DIGEST;
            Some(Piece { bytes, digests })
        })
    }
}

/// Which end of a link makes a proof. The ends use different keys, so one end's proof cannot be
/// played back to it as the other's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The primary, which connects.
    Client,
    /// The agent, which listens.
    Server,
}

/// The proof that `role` knows `secret`, valid only on the TLS session whose exporter value is
/// `binding` (RFC 8446 section 7.5).
pub fn proof(secret: &[u8; 32], role: Role, binding: &[u8; 32]) -> Proof {
    let context = match role {
        Role::Client => "pgpool_recovery 2026-11-22 channel proof of the primary",
        Role::Server => "pgpool_recovery 2026-11-22 channel proof of the agent",
    };
    Proof(blake3::keyed_hash(&blake3::derive_key(context, secret), binding))
}

/// What a client shows with `nonce` in its first message, before there is a session to bind a proof to.
pub fn ticket(secret: &[u8; 32], nonce: &[u8; 16]) -> Proof {
    let context = "pgpool_recovery 2026-11-28 ticket for admission to an agent";
    Proof(blake3::keyed_hash(&blake3::derive_key(context, secret), nonce))
}

/// A proof of the shared secret. Comparison takes constant time.
#[derive(PartialEq, Eq)]
pub struct Proof(blake3::Hash);

impl Proof {
    /// A proof received from the peer.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes.into())
    }

    /// The bytes to send.
    pub fn as_bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }
}

/// 32 bytes from the operating system's generator.
pub fn random_bytes() -> Result<[u8; 32]> {
    let mut bytes = [0; 32];
    rustls::crypto::ring::default_provider()
        .secure_random
        .fill(&mut bytes)
        .map_err(|_| Error::new(Kind::Internal, "the operating system gave no random bytes"))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_digested_one_by_one() {
        let key = DigestKey::from_bytes([7; 32]);
        let data: Vec<u8> = (0..PAGE * 2 + 10).map(|i| i as u8).collect();
        let mut digests = Vec::new();
        key.digest_pages(&data, &mut digests);
        assert_eq!(digests.len(), 3 * DIGEST);
        assert_eq!(digests[2 * DIGEST..], key.page(&data[2 * PAGE..]));
        assert_ne!(key.page(&data[..PAGE]), DigestKey::from_bytes([8; 32]).page(&data[..PAGE]));
    }

    #[test]
    fn many_pages_at_once_give_the_same_digests() {
        let key = DigestKey::from_bytes(std::array::from_fn(|i| i as u8 * 7));
        let data: Vec<u8> = (0..PAGE * 37 + 100).map(|i| (i / 3) as u8 ^ (i / PAGE) as u8).collect();
        let mut digests = Vec::new();
        key.digest_pages(&data, &mut digests);
        let one_by_one: Vec<u8> = data.chunks(PAGE).flat_map(|page| key.page(page)).collect();
        assert_eq!(digests, one_by_one);
    }

    #[test]
    fn pieces_are_digested_as_if_they_were_alone() {
        let key = DigestKey::from_bytes([9; 32]);
        let lengths = [0, 3, PAGE, PAGE + 1, 20 * PAGE, 0, 5 * PAGE - 1, PAGE];
        let mut pieces = Pieces::default();
        let mut data: Vec<u8> = Vec::new();
        for (number, length) in lengths.into_iter().enumerate() {
            assert_eq!(pieces.end(), data.len());
            data.extend((0..length).map(|i| (i / 5 + number) as u8));
            data.resize(data.len().next_multiple_of(PAGE), 0xEE);
            pieces.push(length);
        }
        let mut digests = vec![1, 2, 3];
        key.digest_pieces(&data, &pieces, &mut digests);
        for piece in pieces.iter() {
            let mut alone = Vec::new();
            key.digest_pages(&data[piece.bytes], &mut alone);
            assert_eq!(digests[3..][piece.digests], alone);
        }
    }

    #[test]
    fn proofs_depend_on_secret_role_and_session() {
        let base = proof(&[1; 32], Role::Client, &[2; 32]);
        assert!(base == Proof::from_bytes(*base.as_bytes()));
        assert!(base != proof(&[3; 32], Role::Client, &[2; 32]));
        assert!(base != proof(&[1; 32], Role::Server, &[2; 32]));
        assert!(base != proof(&[1; 32], Role::Client, &[4; 32]));
    }
}
