//! What tells this machine, and the network of this process, from others.

use std::path::Path;

use crate::sys::small_file;

/// What tells one boot of one machine from all others.
pub fn boot_id() -> Option<String> {
    small_file::text(Path::new("/proc/sys/kernel/random/boot_id")).map(|text| text.trim().to_owned())
}

/// Whether two hosts are one machine, as their kernels' identifiers of the boot tell. Where one of them cannot be read
/// they may be: what then looks like the primary's own is refused.
pub fn may_be_one(one: Option<&str>, other: Option<&str>) -> bool {
    one.zip(other).is_none_or(|(one, other)| one == other)
}

/// Whether two hosts are known to be one machine. Where this is what permits something, [`may_be_one`] is not enough.
pub fn are_one(one: Option<&str>, other: Option<&str>) -> bool {
    one.zip(other).is_some_and(|(one, other)| one == other)
}

/// What tells the network namespace of this process from all others; `None` where that is not known. Two processes in
/// one have the same addresses.
pub fn network() -> Option<String> {
    let namespace = std::fs::read_link("/proc/self/ns/net").ok()?;
    Some(format!("{} {}", boot_id()?, namespace.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_read_proves_neither() {
        for (one, other, may_be, are) in [
            (Some("a"), Some("a"), true, true),
            (Some("a"), Some("b"), false, false),
            (Some("a"), None, true, false),
            (None, None, true, false),
        ] {
            assert_eq!((may_be_one(one, other), are_one(one, other)), (may_be, are), "{one:?} {other:?}");
        }
    }

    #[test]
    fn processes_in_one_network_namespace_know_it() {
        assert!(network().is_none_or(|name| name.contains("net:[")));
        assert_eq!(network(), network());
    }
}
