//! Long rows that lie in blocks of one size.
//!
//! What a run needs for millions of files is made and given back with each of them. One large block that grows by doubling is
//! copied each time, and given back it raises the size below which glibc keeps memory for itself (mallopt(3),
//! M_MMAP_THRESHOLD), so a process that had several runs would need ever more. Small blocks of one size serve the next run.

use std::ops::{Index, IndexMut};

/// Bytes of a block: less than what glibc asks the system for by itself.
const BLOCK: usize = 64 << 10;

/// A row of values. Once the first block is full, each has its whole size from the beginning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Blocks<T> {
    /// All but the last are full.
    blocks: Vec<Vec<T>>,
}

impl<T> Default for Blocks<T> {
    fn default() -> Self {
        Self { blocks: Vec::new() }
    }
}

impl<T> Blocks<T> {
    /// Values of a block, a power of two: a place is found without a division.
    const LENGTH: usize = 1 << (BLOCK / size_of::<T>()).ilog2();

    /// How many values there are.
    pub(crate) fn len(&self) -> usize {
        let last = self.blocks.last().map_or(0, Vec::len);
        self.blocks.len().saturating_sub(1) * Self::LENGTH + last
    }

    /// Whether there are none.
    pub(crate) const fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// Adds a value.
    pub(crate) fn push(&mut self, value: T) {
        self.with_room(1).push(value);
    }

    /// Adds values until there are so many.
    pub(crate) fn extend_to(&mut self, length: usize, mut value: impl FnMut() -> T) {
        while self.len() < length {
            let missing = length - self.len();
            let last = self.with_room(missing);
            let fit = missing.min(Self::LENGTH - last.len());
            last.extend((0..fit).map(|_| value()));
        }
    }

    /// The last block, with room for so many values or for all that it can still take: at least for one.
    fn with_room(&mut self, wanted: usize) -> &mut Vec<T> {
        if self.blocks.last().is_none_or(|last| last.len() == Self::LENGTH) {
            let capacity = if self.is_empty() { 0 } else { Self::LENGTH };
            self.blocks.push(Vec::with_capacity(capacity));
        }
        let last = self.blocks.last_mut().expect("there is one");
        let wanted = wanted.min(Self::LENGTH - last.len());
        if last.capacity() < last.len() + wanted {
            // doubled as a Vec is, but not beyond a block
            let capacity = (2 * last.len()).clamp(4, Self::LENGTH).max(last.len() + wanted);
            last.reserve_exact(capacity - last.len());
        }
        last
    }

    /// The value of this number, if there is one.
    pub(crate) fn get(&self, number: usize) -> Option<&T> {
        self.blocks.get(number / Self::LENGTH)?.get(number % Self::LENGTH)
    }

    /// The last value.
    pub(crate) fn last(&self) -> Option<&T> {
        self.blocks.last()?.last()
    }

    /// All values in their order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.blocks.iter().flatten()
    }

    /// The bytes that all blocks take.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        self.blocks.iter().map(|block| block.capacity() * size_of::<T>()).sum()
    }
}

impl<T: Copy> Blocks<T> {
    /// Adds values.
    pub(crate) fn extend_from_slice(&mut self, mut values: &[T]) {
        while !values.is_empty() {
            let last = self.with_room(values.len());
            let (fit, rest) = values.split_at(values.len().min(Self::LENGTH - last.len()));
            last.extend_from_slice(fit);
            values = rest;
        }
    }
}

impl Blocks<u8> {
    /// The numbers that the bytes are, eight to each.
    pub(crate) fn numbers(&self) -> impl Iterator<Item = u64> {
        // no number lies in two blocks
        let numbers = self.blocks.iter().flat_map(|block| block.as_chunks().0);
        numbers.map(|bytes| u64::from_le_bytes(*bytes))
    }
}

impl<T> Index<usize> for Blocks<T> {
    type Output = T;

    fn index(&self, number: usize) -> &T {
        &self.blocks[number / Self::LENGTH][number % Self::LENGTH]
    }
}

impl<T> IndexMut<usize> for Blocks<T> {
    fn index_mut(&mut self, number: usize) -> &mut T {
        &mut self.blocks[number / Self::LENGTH][number % Self::LENGTH]
    }
}

impl<T> FromIterator<T> for Blocks<T> {
    fn from_iter<I: IntoIterator<Item = T>>(values: I) -> Self {
        let mut blocks = Self::default();
        values.into_iter().for_each(|value| blocks.push(value));
        blocks
    }
}

/// A long text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Text {
    blocks: Vec<String>,
}

impl Text {
    /// The end of a block that has room for so many bytes: if it has not, it is another one. More can be added, if need be.
    pub(crate) fn with_room(&mut self, bytes: usize) -> &mut String {
        if self.blocks.last().is_none_or(|last| last.len() + bytes > BLOCK) {
            let capacity = if self.blocks.is_empty() { 0 } else { BLOCK.max(bytes) };
            self.blocks.push(String::with_capacity(capacity));
        }
        self.last_mut()
    }

    /// The last block; there must be one.
    pub(crate) fn last_mut(&mut self) -> &mut String {
        self.blocks.last_mut().expect("there is one")
    }

    /// How many blocks there are.
    pub(crate) const fn len(&self) -> usize {
        self.blocks.len()
    }

    /// All blocks in their order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &str> {
        self.blocks.iter().map(String::as_str)
    }

    /// The bytes that all blocks take.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        self.blocks.iter().map(String::capacity).sum()
    }
}

impl Index<usize> for Text {
    type Output = str;

    fn index(&self, number: usize) -> &str {
        &self.blocks[number]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn a_row_has_what_was_added_and_no_block_is_larger_than_one_size(
            slices in prop::collection::vec((any::<u64>(), 0_usize..20_000), 0..6),
            pushed in 0_usize..3,
        ) {
            let (mut blocks, mut expected) = (Blocks::default(), Vec::new());
            for (value, length) in slices {
                let slice = vec![value; length];
                blocks.extend_from_slice(&slice);
                expected.extend(slice);
                for number in 0..pushed {
                    blocks.push(number as u64);
                    expected.push(number as u64);
                }
            }
            prop_assert_eq!((blocks.len(), blocks.is_empty()), (expected.len(), expected.is_empty()));
            prop_assert_eq!(blocks.last(), expected.last());
            prop_assert!(blocks.iter().eq(&expected));
            prop_assert!((0..=expected.len()).all(|number| blocks.get(number) == expected.get(number)));
            prop_assert_eq!(&blocks, &expected.iter().copied().collect());
            prop_assert!(blocks.blocks.iter().all(|block| block.capacity() * 8 <= BLOCK));
            let bytes: Vec<u8> = expected.iter().flat_map(|number| number.to_le_bytes()).collect();
            let mut row = Blocks::default();
            bytes.chunks(1000).for_each(|part| row.extend_from_slice(part));
            prop_assert!(row.numbers().eq(expected));
        }
    }

    #[test]
    fn a_row_is_extended_by_what_is_missing() {
        let mut blocks: Blocks<u16> = (0..10).collect();
        blocks.extend_to(5, || 7);
        blocks.extend_to(70_000, || 7);
        assert_eq!((blocks.len(), blocks[9], blocks[10], blocks[69_999]), (70_000, 9, 7, 7));
        blocks[40_000] = 8;
        assert_eq!((blocks[39_999], blocks[40_000], blocks.get(70_000)), (7, 8, None));
    }

    #[test]
    fn no_block_of_a_text_is_larger_than_one_size_unless_one_part_is() {
        let mut text = Text::default();
        for number in 0..30_000 {
            let part = format!("{number},");
            text.with_room(part.len()).push_str(&part);
        }
        assert!(text.blocks.iter().all(|block| block.capacity() <= BLOCK) && text.len() > 2);
        let long = "x".repeat(2 * BLOCK);
        text.with_room(long.len()).push_str(&long);
        assert!(text[text.len() - 1] == long);
        let parts: Vec<&str> = text.iter().flat_map(|block| block.split_terminator(',')).collect();
        assert!(parts.iter().take(30_000).enumerate().all(|(number, part)| number.to_string() == *part));
    }
}
