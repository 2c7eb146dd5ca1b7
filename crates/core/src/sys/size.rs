//! Amounts of data for a person.

/// `12 kB`, `3.4 GB`: powers of 1024, as PostgreSQL's `pg_size_pretty` has them.
pub fn pretty(bytes: u64) -> String {
    let units = ["bytes", "kB", "MB", "GB", "TB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 || value >= 100.0 {
        format!("{value:.0} {}", units[unit])
    } else {
        format!("{value:.1} {}", units[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_digits_or_one_place() {
        for (bytes, shown) in [
            (0, "0 bytes"),
            (1023, "1023 bytes"),
            (1024, "1.0 kB"),
            (150 << 10, "150 kB"),
            ((3 << 30) + (400 << 20), "3.4 GB"),
            (u64::MAX, "16777216 TB"),
        ] {
            assert_eq!(pretty(bytes), shown);
        }
    }
}
