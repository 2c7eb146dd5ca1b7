//! Timeline history files (`00000003.history`; src/backend/access/transam/timeline.c): from which timeline, and where, each
//! timeline has sprung.

use std::str;

use crate::wal::Lsn;

/// A part of a history: up to which position a timeline is the ancestor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ancestor {
    /// The timeline.
    pub timeline: u32,
    /// Where the next one begins.
    pub end: Lsn,
}

/// Why a history file is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line} of the history is not a timeline, later than the one before, and an LSN")]
pub struct Invalid {
    /// The line, counted from 1.
    pub line: usize,
}

/// Reads a history file: the ancestors, oldest first, and where each ends.
///
/// A standby that knows of a timeline which it has not reached, and is promoted, names that as the parent of its own all the same, with
/// an end before its beginning (`writeTimeLineHistory`). Nothing of the one before is then part of the history beyond that end either.
pub fn parse(text: &[u8]) -> Result<Vec<Ancestor>, Invalid> {
    let mut ancestors: Vec<Ancestor> = Vec::new();
    for (number, line) in text.split(|byte| *byte == b'\n').enumerate() {
        let line = line.trim_ascii();
        if line.is_empty() || line.starts_with(b"#") {
            continue;
        }
        // the reason behind them may be in any encoding
        let mut words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
        let mut word = || words.next().and_then(|word| str::from_utf8(word).ok());
        let timeline = word().and_then(|word| word.parse().ok());
        let end = word().and_then(|word| word.parse().ok());
        let invalid = Invalid { line: number + 1 };
        let (Some(timeline), Some(end)) = (timeline, end) else { return Err(invalid) };
        if ancestors.last().is_some_and(|last| timeline <= last.timeline) {
            return Err(invalid);
        }
        ancestors.iter_mut().for_each(|earlier| earlier.end = earlier.end.min(end));
        ancestors.push(Ancestor { timeline, end });
    }
    Ok(ancestors)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ancestors_are_read_in_their_order() {
        let text =
            b"1\t0/3000148\tno recovery target specified\n\n# by hand\n\n2\t16/B374D848\tbefore \xff\n";
        let ancestors = [
            Ancestor { timeline: 1, end: Lsn(0x300_0148) },
            Ancestor { timeline: 2, end: Lsn(0x16_B374_D848) },
        ];
        assert_eq!(parse(text), Ok(ancestors.to_vec()));
        assert_eq!(parse(b""), Ok(vec![]), "the first timeline has none");
    }

    #[test]
    fn a_parent_that_was_never_reached_cuts_those_before_it() {
        let ends = |text: &[u8]| parse(text).map(|all| all.iter().map(|one| one.end.0).collect::<Vec<_>>());
        assert_eq!(ends(b"1\t0/100\n2\t0/300\n3\t0/200\n"), Ok(vec![0x100, 0x200, 0x200]));
        assert_eq!(ends(b"1\t0/100\n2\t0/300\n3\t0/50\n4\t0/400\n"), Ok(vec![0x50, 0x50, 0x50, 0x400]));
    }

    #[test]
    fn what_is_no_history_is_told_by_its_line() {
        for (text, line) in
            [("x", 1), ("1\t0/1\n1\t0/2\n", 2), ("2\t0/1\n1\t0/2\n", 2), ("1\n", 1), ("\n1 2\n", 2)]
        {
            assert_eq!(parse(text.as_bytes()), Err(Invalid { line }), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_history_or_none(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
        }
    }
}
