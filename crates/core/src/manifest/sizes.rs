//! Many sizes of files in little memory.

use crate::sys::blocks::Blocks;

/// What nearly all sizes are a multiple of: PostgreSQL's smallest page.
const UNIT: u64 = 1024;

/// Marks a number of [`Sizes::others`].
const OTHER: u32 = 1 << 31;

/// Sizes, by number. One that is a whole number of units takes four bytes, another one twelve.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Sizes {
    /// Units of each, or which of the others it is.
    units: Blocks<u32>,
    others: Blocks<u64>,
}

impl Sizes {
    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.units.len()
    }

    /// Whether there are none.
    pub(super) const fn is_empty(&self) -> bool {
        self.units.is_empty()
    }

    /// Adds a size, which gets the next number.
    pub(super) fn push(&mut self, size: u64) {
        let units =
            u32::try_from(size / UNIT).ok().filter(|units| size.is_multiple_of(UNIT) && *units < OTHER);
        self.units.push(units.unwrap_or_else(|| {
            let other = u32::try_from(self.others.len()).unwrap_or(u32::MAX) | OTHER;
            self.others.push(size);
            other
        }));
    }

    /// The size of this number, which must be there.
    pub(super) fn get(&self, number: usize) -> u64 {
        match self.units[number] {
            other if other & OTHER != 0 => self.others[(other & !OTHER) as usize],
            units => u64::from(units) * UNIT,
        }
    }

    /// All sizes in their order.
    pub(super) fn iter(&self) -> impl Iterator<Item = u64> {
        (0..self.len()).map(|number| self.get(number))
    }

    /// The bytes that all take.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.units.bytes() + self.others.bytes()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn size() -> impl Strategy<Value = u64> {
        let around = |middle: u64| (middle - 2..=middle + 2).boxed();
        let last = u64::from(OTHER) * UNIT;
        prop_oneof![
            any::<u64>(),
            0..3_u64,
            around(UNIT),
            around(last - UNIT),
            around(last),
            (0..1000_u64).prop_map(|pages| pages * 8192)
        ]
    }

    proptest! {
        #[test]
        fn every_size_comes_back(sizes in prop::collection::vec(size(), 0..200)) {
            let mut kept = Sizes::default();
            sizes.iter().for_each(|size| kept.push(*size));
            prop_assert_eq!(kept.len(), sizes.len());
            prop_assert_eq!(kept.iter().collect::<Vec<_>>(), sizes);
        }
    }
}
