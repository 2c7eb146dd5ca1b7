//! Bytes at an address that direct I/O accepts.

use std::ops::{Deref, DerefMut};

/// What direct I/O wants memory addresses, file offsets and lengths to be multiples of, bytes: no disk
/// in use has larger logical blocks.
pub(crate) const ALIGNMENT: usize = 4096;

/// Bytes whose first one lies at a multiple of [`ALIGNMENT`].
#[derive(Debug, Default)]
pub struct Buffer {
    storage: Vec<u8>,
    /// Where the content begins in `storage`.
    start: usize,
}

impl Buffer {
    /// An empty buffer that allocates nothing yet.
    pub const fn new() -> Self {
        Self { storage: Vec::new(), start: 0 }
    }

    /// Forgets the content, keeps the memory.
    pub fn clear(&mut self) {
        self.storage.truncate(self.start);
    }

    /// Makes the content `length` bytes long: cut, or extended by zeros.
    pub fn resize(&mut self, length: usize) {
        self.reserve(length);
        self.storage.resize(self.start + length, 0);
    }

    /// Appends bytes.
    pub fn extend_from_slice(&mut self, bytes: &[u8]) {
        self.reserve(self.len() + bytes.len());
        self.storage.extend_from_slice(bytes);
    }

    /// Moves to memory that holds `length` bytes of content, if this does not.
    fn reserve(&mut self, length: usize) {
        if self.start + length <= self.storage.capacity() {
            return;
        }
        // doubled, so that appending piece by piece stays cheap; and with room for what follows a content
        let capacity = length.max(2 * self.len()) + 2 * ALIGNMENT;
        let mut storage: Vec<u8> = Vec::with_capacity(capacity);
        let start = storage.as_ptr().addr().next_multiple_of(ALIGNMENT) - storage.as_ptr().addr();
        storage.resize(start, 0);
        storage.extend_from_slice(self);
        *self = Self { storage, start };
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.storage[self.start..]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.storage[self.start..]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn behaves_as_a_vec_and_stays_aligned(steps in prop::collection::vec((0_u8..3, 0_usize..20_000), 0..30)) {
            let (mut buffer, mut model) = (Buffer::new(), Vec::new());
            for (step, length) in steps {
                match step {
                    0 => (buffer.clear(), model.clear()).1,
                    1 => (buffer.resize(length), model.resize(length, 0)).1,
                    _ => {
                        let bytes: Vec<u8> = (0..length).map(|i| i as u8).collect();
                        buffer.extend_from_slice(&bytes);
                        model.extend_from_slice(&bytes);
                    }
                }
                prop_assert_eq!(&buffer[..], &model[..]);
                prop_assert!(buffer.is_empty() || buffer.as_ptr().addr().is_multiple_of(ALIGNMENT));
            }
        }
    }
}
