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
#[error("line {line} of the history is not a timeline and an LSN in ascending order")]
pub struct Invalid {
    /// The line, counted from 1.
    pub line: usize,
}

/// Reads a history file: the ancestors, oldest first.
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
        if ancestors.last().is_some_and(|last| timeline <= last.timeline || end < last.end) {
            return Err(invalid);
        }
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
    fn what_is_no_history_is_told_by_its_line() {
        for (text, line) in
            [("x", 1), ("1\t0/1\n1\t0/2\n", 2), ("1\t0/2\n2\t0/1\n", 2), ("1\n", 1), ("\n1 2\n", 2)]
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
