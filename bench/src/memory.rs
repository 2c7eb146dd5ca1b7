//! Peak memory of each side, by looking at /proc every 10 ms.
//!
//! What counts is anonymous memory (`RssAnon`): not the page cache, not shared buffers, not program text.
//! Each look sums the processes of a side, so the peak is that of the side, not of one process.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use pgpool_recovery_e2e::process;

const INTERVAL: Duration = Duration::from_millis(10);

/// Whose memory a tool's processes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Standby,
    /// rsync: the process that was started sends, those it started receive.
    RootSends,
}

/// Peak sums in KiB.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Peak {
    pub(crate) primary: u64,
    pub(crate) standby: u64,
}

/// Which processes to look at.
#[derive(Debug, Default)]
struct Watched {
    /// Postmaster of the primary, and the children it had before the run.
    postmaster: u32,
    known: HashSet<u32>,
    /// A process that stands by on the standby's side, and its memory before the run.
    agent: Option<(u32, u64)>,
    tools: Mutex<Vec<(u32, Side)>>,
}

/// A sampler that runs; ends with [`Watch::finish`] or on drop.
#[derive(Debug)]
pub(crate) struct Watch {
    watched: Arc<Watched>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<Peak>>,
}

impl Watch {
    /// Starts to look. Sessions that the primary has now belong to no run.
    pub(crate) fn start(postmaster: u32, agent: Option<u32>) -> Self {
        let watched = Arc::new(Watched {
            postmaster,
            known: process::children(postmaster).into_iter().collect(),
            agent: agent.map(|pid| (pid, anonymous(pid))),
            tools: Mutex::default(),
        });
        let ended = Arc::new(AtomicBool::new(false));
        let thread = {
            let (watched, ended) = (Arc::clone(&watched), Arc::clone(&ended));
            std::thread::spawn(move || watched.sample(&ended))
        };
        Self { watched, ended, thread: Some(thread) }
    }

    /// A tool was started.
    pub(crate) fn add(&self, pid: u32, side: Side) {
        self.watched.tools.lock().expect("no panic there").push((pid, side));
    }

    /// Its process id may soon be another's.
    pub(crate) fn remove(&self, pid: u32) {
        self.watched.tools.lock().expect("no panic there").retain(|tool| tool.0 != pid);
    }

    pub(crate) fn finish(mut self) -> Peak {
        self.ended.store(true, Ordering::Relaxed);
        self.thread.take().map_or_else(Peak::default, |thread| thread.join().expect("no panic there"))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}

impl Watched {
    fn sample(&self, ended: &AtomicBool) -> Peak {
        let mut peak = Peak::default();
        while !ended.load(Ordering::Relaxed) {
            let now = self.look();
            peak.primary = peak.primary.max(now.primary);
            peak.standby = peak.standby.max(now.standby);
            std::thread::sleep(INTERVAL);
        }
        peak
    }

    fn look(&self) -> Peak {
        let mut now = Peak::default();
        for child in process::children(self.postmaster) {
            if !self.known.contains(&child) {
                now.primary += anonymous(child);
            }
        }
        if let Some((pid, before)) = self.agent {
            now.standby += tree(pid).saturating_sub(before);
        }
        for (pid, side) in self.tools.lock().expect("no panic there").iter() {
            let (root, all) = (anonymous(*pid), tree(*pid));
            match side {
                Side::Standby => now.standby += all,
                Side::RootSends => {
                    now.primary += root;
                    now.standby += all.saturating_sub(root);
                }
            }
        }
        now
    }
}

/// A process and all below it.
fn tree(pid: u32) -> u64 {
    anonymous(pid) + process::children(pid).into_iter().map(tree).sum::<u64>()
}

/// `RssAnon` in KiB; 0 for a process that is gone.
fn anonymous(pid: u32) -> u64 {
    // it may have ended
    process::anonymous_memory(pid).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_memory_and_one_that_is_not_has_none() {
        assert!(anonymous(std::process::id()) > 0);
        assert_eq!(anonymous(u32::MAX), 0);
    }
}
