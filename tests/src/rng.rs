//! Chance that can be repeated: a seed gives the same choices again.

/// SplitMix64 (Steele, Lea, Flood 2014): the same numbers from the same seed, everywhere.
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `end`. The bias of the remainder is far below what matters here.
    pub fn number(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// A position below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.number(end as u64)).expect("below a usize")
    }

    /// True in so many of a hundred cases.
    pub fn percent(&mut self, chance: usize) -> bool {
        self.below(100) < chance
    }

    /// One of them.
    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }

    /// The start of another sequence.
    pub fn fork(&mut self) -> Self {
        Self(self.next())
    }
}
