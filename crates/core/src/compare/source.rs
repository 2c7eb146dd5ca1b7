//! Which bytes of which file must be looked at, and the proof for those that need not be.

use std::fmt::Debug;

/// What proves that the target has some bytes already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// They share their blocks with the primary's file.
    Cloned,
    /// The WAL of neither side changed them since both had them; see [`crate::compare::wal_map`].
    WalMap,
}

/// What is done with some bytes of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Treatment {
    /// They are compared with what the target has, and sent if they differ.
    Compare,
    /// They are left out; if checksums are verified they are read for that.
    Skip(Proof),
}

/// A stretch of a file that has one treatment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stretch {
    /// Where it ends, beyond where it was asked for; what lies behind the end of the file does not matter.
    pub end: u64,
    /// What is done with it.
    pub treatment: Treatment,
}

impl Stretch {
    /// All the rest of a file.
    pub const fn rest(treatment: Treatment) -> Self {
        Self { end: u64::MAX, treatment }
    }
}

/// Says what is done with the bytes of the plan's files.
///
/// It is asked under the lock that deals out work, once for each small file and once for each range of a large one, of which
/// there may be millions: an answer is a look-up and makes nothing. A file that is no relation's may be replaced on the primary
/// at any time, so it has one treatment from its start to its end.
pub trait ChangeSource: Debug + Send + Sync {
    /// The stretch of a file, which has this number and `size` in the plan, that begins at `offset`.
    fn stretch(&self, number: u32, size: u64, offset: u64) -> Stretch;
}

/// Trusts nothing: everything is compared.
#[derive(Debug)]
pub struct Hash;

impl ChangeSource for Hash {
    fn stretch(&self, _: u32, _: u64, _: u64) -> Stretch {
        Stretch::rest(Treatment::Compare)
    }
}

/// Knows which files were cloned, and leaves the others to another source.
#[derive(Debug)]
pub struct Cloned<'a> {
    /// First and last number of each row of neighbours, in order.
    rows: &'a [(u32, u32)],
    others: &'a dyn ChangeSource,
}

impl<'a> Cloned<'a> {
    /// `rows` has first and last number of each row of cloned neighbours, in order.
    pub const fn new(rows: &'a [(u32, u32)], others: &'a dyn ChangeSource) -> Self {
        Self { rows, others }
    }
}

impl ChangeSource for Cloned<'_> {
    fn stretch(&self, number: u32, size: u64, offset: u64) -> Stretch {
        let row = self.rows.partition_point(|&(_, last)| last < number);
        if self.rows.get(row).is_some_and(|&(first, _)| first <= number) {
            return Stretch::rest(Treatment::Skip(Proof::Cloned));
        }
        self.others.stretch(number, size, offset)
    }
}
