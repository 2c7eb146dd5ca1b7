//! The backend that works on a recovery, told from a later process of the same number.

use serde::{Deserialize, Serialize};

/// A process of this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Worker {
    pub(crate) pid: u32,
    /// Clock ticks between the host's start and its own (proc_pid_stat(5), field 22).
    since: u64,
}

impl Worker {
    /// This backend.
    pub(crate) fn this() -> Self {
        Self::of(std::process::id())
    }

    pub(super) fn of(pid: u32) -> Self {
        Self { pid, since: start_of(pid).unwrap_or_default() }
    }

    pub(crate) fn is_alive(&self) -> bool {
        start_of(self.pid) == Some(self.since)
    }
}

/// When a process started; `None` if there is none, or one that only waits to be reaped.
fn start_of(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // the program's name, in parentheses, may hold anything; the state and 18 more fields follow
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    if state == "Z" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
impl Worker {
    /// Another process that has this one's number.
    pub(crate) fn successor(&self) -> Self {
        Self { since: self.since + 1, ..*self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_alone_is_nobody() {
        let this = Worker::this();
        assert!(this.is_alive() && this.since > 0);
        assert!(!this.successor().is_alive());
        let mut child = std::process::Command::new("true").spawn().expect("spawn");
        let other = Worker::of(child.id());
        child.wait().expect("reap");
        assert!(!other.is_alive());
    }
}
