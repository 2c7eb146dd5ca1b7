//! How the files of a plan become work: ranges, each with what is done with it.

use crate::compare::source::{ChangeSource, Proof, Treatment};
use crate::manifest::exclude::relation_segment;
use crate::manifest::list::FileList;
use crate::manifest::plan::{BATCH_RANGES, RANGE, Range};

/// Deals files out to streams as batches of ranges of one treatment: one long range of a large file, or many short ones and
/// whole small files. No batch holds more than [`RANGE`] bytes or [`BATCH_RANGES`] ranges.
///
/// A stream keeps a large file to itself and goes through it in order: so both ends read it sequentially,
/// and no two streams write one file, for which they would wait on each other. When all files are dealt
/// out, a stream without work takes the second half of the longest rest of a relation: none is left working alone.
#[derive(Debug)]
pub struct Work<'a> {
    files: &'a FileList,
    source: &'a dyn ChangeSource,
    /// Whether what was cloned is dealt all the same, to be verified.
    verifies: bool,
    next_file: usize,
    /// What each stream has left of the file it works on.
    rests: Vec<Option<Rest>>,
}

#[derive(Debug, Clone, Copy)]
struct Rest {
    file: usize,
    offset: u64,
    end: u64,
}

impl Rest {
    const fn bytes(self) -> u64 {
        self.end - self.offset
    }
}

/// What comes next in one go.
struct Batch<'b> {
    ranges: &'b mut Vec<Range>,
    /// Bytes that still fit.
    room: u64,
    /// Of all ranges.
    treatment: Option<Treatment>,
}

impl Batch<'_> {
    /// Adds a range if it fits.
    fn take(&mut self, range: Range, treatment: Treatment) -> bool {
        let fits = self.ranges.len() < BATCH_RANGES
            && u64::from(range.length) <= self.room
            && self.treatment.is_none_or(|others| others == treatment);
        if fits {
            self.room -= u64::from(range.length);
            self.ranges.push(range);
            self.treatment = Some(treatment);
        }
        fits
    }
}

/// How the dealing of small files ended.
#[derive(Debug, PartialEq, Eq)]
enum Dealt {
    /// The next one does not fit any more.
    Full,
    /// No small one comes next.
    AllSmall,
}

impl<'a> Work<'a> {
    /// The files, for `streams` streams. If it `verifies`, ranges that were cloned are dealt, too.
    pub fn new(files: &'a FileList, source: &'a dyn ChangeSource, streams: usize, verifies: bool) -> Self {
        Self { files, source, verifies, next_file: 0, rests: vec![None; streams] }
    }

    /// The next batch of a stream into `ranges`, and what is done with it; `None` when nothing is left for it. `passed` is
    /// told the bytes that were passed over, and why.
    pub fn next(
        &mut self,
        stream: usize,
        ranges: &mut Vec<Range>,
        mut passed: impl FnMut(Proof, u64),
    ) -> Option<Treatment> {
        ranges.clear();
        let mut batch = Batch { ranges, room: RANGE, treatment: None };
        while batch.room > 0 {
            if self.rests[stream].is_none() {
                if self.deal(&mut batch, &mut passed) == Dealt::Full {
                    break;
                }
                self.rests[stream] = self.claim(batch.treatment.is_none());
            }
            let Some(rest) = self.rests[stream].as_mut() else { break };
            let stretch = self.source.stretch(number(rest.file), self.files.size(rest.file), rest.offset);
            // a stretch that does not advance would never end
            let end = stretch.end.min(rest.end).max(rest.offset + 1);
            let mut length = end - rest.offset;
            match skipped(stretch.treatment, self.verifies) {
                Some(proof) => passed(proof, length),
                None => {
                    length = length.min(RANGE);
                    if !batch.take(range(rest.file, rest.offset, length), stretch.treatment) {
                        break;
                    }
                }
            }
            rest.offset += length;
            if rest.bytes() == 0 {
                self.rests[stream] = None;
            }
        }
        batch.treatment
    }

    /// Whole small files, as many as come next and fit.
    fn deal(&mut self, batch: &mut Batch<'_>, passed: &mut impl FnMut(Proof, u64)) -> Dealt {
        while self.next_file < self.files.len() {
            let size = self.files.size(self.next_file);
            let stretch = self.source.stretch(number(self.next_file), size, 0);
            if stretch.end < size {
                break;
            }
            if let Some(proof) = skipped(stretch.treatment, self.verifies) {
                passed(proof, size);
            } else if size > RANGE {
                break;
            } else if !batch.take(range(self.next_file, 0, size), stretch.treatment) {
                return Dealt::Full;
            }
            self.next_file += 1;
        }
        Dealt::AllSmall
    }

    /// The next file, a large one; or, for an idle stream, half of what another has before it, if it is a relation's: PostgreSQL never
    /// replaces such a file. Other files, an extension's, may be replaced by rename at any time. Only what is read
    /// through one open file, by one stream from start to end, is then one of the two and no mixture.
    fn claim(&mut self, is_idle: bool) -> Option<Rest> {
        let files = self.files;
        if self.next_file < files.len() {
            self.next_file += 1;
            let file = self.next_file - 1;
            return Some(Rest { file, offset: 0, end: files.size(file) });
        }
        if !is_idle {
            return None;
        }
        let shared = |rest: &&mut Rest| relation_segment(&files.path(rest.file)).is_some();
        let longest = self.rests.iter_mut().flatten().filter(shared).max_by_key(|rest| rest.bytes())?;
        let kept = (longest.bytes() / 2).next_multiple_of(RANGE);
        if kept >= longest.bytes() {
            return None;
        }
        let taken = Rest { offset: longest.offset + kept, ..*longest };
        longest.end = taken.offset;
        Some(taken)
    }
}

/// The proof on which bytes are passed over.
const fn skipped(treatment: Treatment, verifies: bool) -> Option<Proof> {
    match treatment {
        // that is the point of it: it is not read
        Treatment::Skip(Proof::WalMap) => Some(Proof::WalMap),
        Treatment::Skip(proof) if !verifies => Some(proof),
        _ => None,
    }
}

fn number(file: usize) -> u32 {
    u32::try_from(file).unwrap_or(u32::MAX)
}

fn range(file: usize, offset: u64, length: u64) -> Range {
    Range { file: number(file), offset, length: u32::try_from(length).unwrap_or(u32::MAX) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::compare::source::{Cloned, Hash, Stretch};
    use crate::manifest::path::RelPath;
    use crate::manifest::plan::File;

    /// Pages are skipped and compared in turn, and every third file is skipped as a whole.
    #[derive(Debug)]
    struct Striped;

    impl ChangeSource for Striped {
        fn stretch(&self, number: u32, _: u64, offset: u64) -> Stretch {
            let stripe = offset / 8192;
            match stripe % 2 {
                _ if number.is_multiple_of(3) => Stretch::rest(Treatment::Skip(Proof::Cloned)),
                0 => Stretch { end: (stripe + 1) * 8192, treatment: Treatment::Compare },
                _ => Stretch { end: (stripe + 1) * 8192, treatment: Treatment::Skip(Proof::Cloned) },
            }
        }
    }

    proptest! {
        #[test]
        fn every_byte_is_dealt_once(
            sizes in prop::collection::vec(prop_oneof![0_u64..20_000, 0..12 * RANGE], 0..40),
            order in prop::collection::vec(0_usize..4, 1..50),
            is_striped: bool,
        ) {
            let files: FileList = sizes
                .iter()
                .enumerate()
                .map(|(i, &size)| File { path: RelPath::parse(&format!("f{i}")).expect("valid"), size, mode: 0o600 })
                .collect();
            let mut dealt = vec![Vec::new(); files.len()];
            let source: &dyn ChangeSource = if is_striped { &Striped } else { &Hash };
            let mut passed = 0;
            let mut work = Work::new(&files, source, 4, false);
            let mut batch = Vec::new();
            // streams come in some order, until one after the other has nothing left
            let mut streams = order.into_iter().cycle();
            let mut idle = 0;
            while idle < 5 {
                let stream = if idle == 0 { streams.next().unwrap_or(0) } else { idle - 1 };
                let Some(treatment) = work.next(stream, &mut batch, |_, bytes| passed += bytes) else {
                    idle += 1;
                    continue;
                };
                prop_assert_eq!(treatment, Treatment::Compare);
                idle = 0;
                prop_assert!(!batch.is_empty() && batch.len() <= BATCH_RANGES);
                prop_assert!(batch.iter().map(|range| u64::from(range.length)).sum::<u64>() <= RANGE);
                for range in &batch {
                    dealt[range.file as usize].push((range.offset, u64::from(range.length)));
                }
            }
            let bytes: u64 = dealt.iter().flatten().map(|&(_, length)| length).sum();
            prop_assert_eq!(bytes + passed, sizes.iter().sum::<u64>());
            if is_striped {
                let is_dealt = |number: usize, ranges: &[(u64, u64)]| {
                    let pages = |&(offset, length): &(u64, u64)| offset % 16384 == 0 && length <= 8192;
                    if number.is_multiple_of(3) { ranges.is_empty() } else { ranges.iter().all(pages) }
                };
                let all = dealt.iter().enumerate().all(|(number, ranges)| is_dealt(number, ranges));
                prop_assert!(all);
                return Ok(());
            }
            for (ranges, size) in dealt.iter_mut().zip(sizes) {
                ranges.sort_unstable();
                let end = ranges.iter().try_fold(0, |end, &(offset, length)| (offset == end).then_some(end + length));
                prop_assert_eq!(end, Some(size));
                prop_assert!(size > 0 || ranges.len() == 1);
            }
        }
    }

    #[test]
    fn short_ranges_of_any_files_share_a_batch() {
        let names = (0..10).map(|number| format!("base/5/{}", 16384 + number));
        let files: FileList = names
            .map(|name| File { path: RelPath::parse(&name).expect("valid"), size: 16 * 8192, mode: 0o600 })
            .collect();
        let mut work = Work::new(&files, &Striped, 1, false);
        let (mut batch, mut dealt) = (Vec::new(), Vec::new());
        while work.next(0, &mut batch, |_, _| ()).is_some() {
            dealt.push(batch.len());
        }
        // eight pages of each file that is not skipped as a whole, and a batch holds 64
        assert_eq!(dealt, [6 * 8]);
    }

    #[test]
    fn skipped_files_are_not_dealt() {
        let files: FileList = (0..10)
            .map(|number| File {
                path: RelPath::parse(&format!("f{number}")).expect("valid"),
                size: if number % 2 == 0 { 10 } else { RANGE + 1 },
                mode: 0o600,
            })
            .collect();
        let source = Cloned::new(&[(0, 1), (3, 3), (8, 9)], &Hash);
        let dealt = |verifies: bool| {
            let mut work = Work::new(&files, &source, 1, verifies);
            let (mut batch, mut dealt, mut passed) = (Vec::new(), Vec::new(), 0);
            while let Some(treatment) = work.next(0, &mut batch, |_, bytes| passed += bytes) {
                dealt.extend(batch.iter().map(|range| (range.file, treatment)));
            }
            dealt.dedup();
            (dealt, passed)
        };
        let compared = [2, 4, 5, 6, 7].map(|file| (file, Treatment::Compare));
        assert_eq!(dealt(false), (compared.to_vec(), 2 * 10 + 3 * (RANGE + 1)));
        let (all, passed) = dealt(true);
        let skipped = |file| matches!(file, 0 | 1 | 3 | 8 | 9);
        assert_eq!((all.len(), passed), (10, 0));
        assert!(all.iter().all(|&(file, treatment)| skipped(file) == (treatment != Treatment::Compare)));
    }

    #[test]
    fn a_stream_keeps_its_file_and_the_last_one_is_shared() {
        let file =
            |name: &str| File { path: RelPath::parse(name).expect("valid"), size: 8 * RANGE, mode: 0o600 };
        let files: FileList = [file("base/5/16384"), file("pg_tblspc/16390/PG_15_202209061/5/16385_fsm.1")]
            .into_iter()
            .collect();
        let mut work = Work::new(&files, &Hash, 2, false);
        let mut batch = Vec::new();
        let mut next = |stream| {
            let dealt = work.next(stream, &mut batch, |_, _| ());
            dealt.map(|_| (batch[0].file, batch[0].offset / RANGE))
        };
        assert_eq!(
            (next(0), next(1), next(0), next(1)),
            (Some((0, 0)), Some((1, 0)), Some((0, 1)), Some((1, 1)))
        );
        for offset in 2..8 {
            assert_eq!(next(0), Some((0, offset)));
        }
        // six ranges of the other file are left: three for each
        assert_eq!((next(0), next(1)), (Some((1, 5)), Some((1, 2))));
    }

    #[test]
    fn a_file_that_may_be_replaced_stays_with_one_stream() {
        for name in ["base/5/extension.dat", "pg_stat/16384", "16384", "base/5/pg_internal.16384"] {
            let file = File { path: RelPath::parse(name).expect("valid"), size: 8 * RANGE, mode: 0o600 };
            let files: FileList = [file].into_iter().collect();
            let mut work = Work::new(&files, &Hash, 2, false);
            let mut batch = Vec::new();
            assert!(work.next(0, &mut batch, |_, _| ()).is_some(), "{name}");
            assert!(
                work.next(1, &mut batch, |_, _| ()).is_none(),
                "{name}: two streams may open two files of this name"
            );
            for number in 1..8 {
                assert!(work.next(0, &mut batch, |_, _| ()).is_some(), "{name}");
                assert_eq!(batch[0].offset, number * RANGE, "{name}");
            }
            assert!(work.next(0, &mut batch, |_, _| ()).is_none(), "{name}");
        }
    }
}
