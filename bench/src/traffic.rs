//! Bytes that went over a network, by the kernel's own count.

use std::fs;

/// Bytes that an interface has carried in both directions, as process `pid` sees that interface: each
/// network namespace has a table of its own.
///
/// The loopback interface receives what it sends, so there one direction is both.
pub(crate) fn carried(pid: u32, interface: &str) -> u64 {
    let table = fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap_or_default();
    count(&table, interface).unwrap_or(0)
}

/// The same from the text of `/proc/net/dev`.
pub(crate) fn count(table: &str, interface: &str) -> Option<u64> {
    let numbers =
        table.lines().find_map(|line| line.trim_start().strip_prefix(interface)?.strip_prefix(':'))?;
    let numbers: Vec<u64> = numbers.split_whitespace().filter_map(|number| number.parse().ok()).collect();
    // Column 0 is received bytes, column 8 sent bytes.
    let received = numbers.first()?;
    if interface == "lo" { Some(*received) } else { Some(received + numbers.get(8)?) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_directions_once() {
        let table = "Inter-| Receive\n face |bytes\n    lo:  100 1 0 0 0 0 0 0  100 1 0 0 0 0 0 0\n  eth0: 7 1 0 0 0 0 0 0 5 1 0 0 0 0 0 0\n";
        assert_eq!(count(table, "lo"), Some(100));
        assert_eq!(count(table, "eth0"), Some(12));
        assert_eq!(count(table, "eth1"), None);
    }
}
