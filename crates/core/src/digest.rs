//! Keyed BLAKE3: the proof that two pages are equal, and the proof that two peers share a secret.
//!
//! The only place that names `blake3`.

use crate::error::{Error, Kind, Result};

/// The unit of comparison, bytes: PostgreSQL's default page.
pub const PAGE: usize = 8192;

/// Bytes of one page digest on the wire. 128 bits of a keyed hash: two different pages collide with
/// probability 2^-128, and nobody who does not know the run's key can construct a collision.
pub const DIGEST: usize = 16;

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
        for page in data.chunks(PAGE) {
            digests.extend_from_slice(&self.page(page));
        }
    }

    /// The digest of one page.
    pub fn page(&self, page: &[u8]) -> [u8; DIGEST] {
        let full = blake3::keyed_hash(&self.0, page);
        let mut digest = [0; DIGEST];
        digest.copy_from_slice(&full.as_bytes()[..DIGEST]);
        digest
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
    fn proofs_depend_on_secret_role_and_session() {
        let base = proof(&[1; 32], Role::Client, &[2; 32]);
        assert!(base == Proof::from_bytes(*base.as_bytes()));
        assert!(base != proof(&[3; 32], Role::Client, &[2; 32]));
        assert!(base != proof(&[1; 32], Role::Server, &[2; 32]));
        assert!(base != proof(&[1; 32], Role::Client, &[4; 32]));
    }
}
