//! WAL positions and the files they lie in (src/include/access/xlog_internal.h).

use super::Lsn;

/// The name of a WAL segment file.
pub fn segment_name(timeline: u32, segment: u64, segment_size: u32) -> String {
    let per_id = (1_u64 << 32) / u64::from(segment_size);
    format!("{timeline:08X}{:08X}{:08X}", segment / per_id, segment % per_id)
}

/// The first byte of the segment that holds a position.
pub fn segment_start(position: Lsn, segment_size: u32) -> Lsn {
    Lsn(position.0 - position.0 % u64::from(segment_size))
}

/// Where the segment ends that holds the WAL up to `stop`; a stop position at a segment's first byte is the end of the one
/// before it (XLByteToPrevSeg).
pub fn segment_end(stop: Lsn, segment_size: u32) -> Lsn {
    Lsn(stop.0.next_multiple_of(u64::from(segment_size)))
}

/// The timeline of a WAL segment file, as its name tells; `None` if it is none.
pub fn segment_timeline(name: &str) -> Option<u32> {
    let is_segment =
        name.len() == 24 && name.bytes().all(|byte| byte.is_ascii_digit() || (b'A'..=b'F').contains(&byte));
    is_segment.then(|| u32::from_str_radix(&name[..8], 16).ok()).flatten()
}

/// Timeline and number of a WAL segment file, as its name tells; `None` if it is none of segments of this size.
pub fn parse_segment_name(name: &str, segment_size: u32) -> Option<(u32, u64)> {
    let timeline = segment_timeline(name)?;
    let number = |from: usize| u64::from_str_radix(&name[from..from + 8], 16).ok();
    let per_id = (1_u64 << 32).checked_div(segment_size.into())?;
    let (id, rest) = (number(8)?, number(16)?);
    (rest < per_id).then_some((timeline, id * per_id + rest))
}

/// Whether a file in pg_wal is a timeline history file: `0000000A.history`.
pub fn is_history(name: &str) -> bool {
    name.strip_suffix(".history").is_some_and(|timeline| {
        timeline.len() == 8
            && timeline.bytes().all(|byte| byte.is_ascii_digit() || (b'A'..=b'F').contains(&byte))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u32 = 1 << 20;

    #[test]
    fn names_follow_postgresql() {
        assert_eq!(segment_name(1, 2, 16 * MB), "000000010000000000000002");
        assert_eq!(segment_name(0xAB, 256, 16 * MB), "000000AB0000000100000000");
        assert_eq!(segment_name(1, 4096, MB), "000000010000000100000000");
        assert_eq!(segment_name(1, 64, 64 * MB), "000000010000000100000000");
    }

    #[test]
    fn a_position_lies_between_the_ends_of_its_segment() {
        let size = u64::from(16 * MB);
        for (position, start, end) in
            [(0, 0, 0), (1, 0, size), (size, size, size), (size + 1, size, 2 * size)]
        {
            assert_eq!(segment_start(Lsn(position), 16 * MB), Lsn(start));
            assert_eq!(segment_end(Lsn(position), 16 * MB), Lsn(end));
        }
    }

    #[test]
    fn names_are_read_as_they_are_written() {
        for (timeline, segment, size) in
            [(1, 2, 16 * MB), (0xAB, 256, 16 * MB), (7, 4095, MB), (1, 64, 64 * MB), (1, 3, 1 << 30)]
        {
            let name = segment_name(timeline, segment, size);
            assert_eq!(parse_segment_name(&name, size), Some((timeline, segment)), "{name}");
        }
        assert_eq!(parse_segment_name("000000010000000000000100", 16 * MB), None, "there are 256 of them");
        for other in ["", "00000001.history", "00000001000000000000000g", "000000010000000000000001.partial"]
        {
            assert_eq!(parse_segment_name(other, 16 * MB), None, "{other}");
        }
        assert_eq!(parse_segment_name("000000010000000000000001", 0), None);
    }

    #[test]
    fn segments_tell_their_timeline() {
        assert_eq!(segment_timeline("0000000A0000000000000003"), Some(10));
        for other in [
            "0000000a0000000000000003",
            "0000000A",
            "0000000A0000000000000003.partial",
            "ä000000A000000000000000",
        ] {
            assert_eq!(segment_timeline(other), None, "{other}");
        }
    }

    #[test]
    fn history_files_are_recognised() {
        assert!(is_history("0000000A.history"));
        for other in
            ["0000000A", "A.history", "0000000a.history", "0000000A.history.tmp", "000000010000000000000002"]
        {
            assert!(!is_history(other), "{other}");
        }
    }
}
