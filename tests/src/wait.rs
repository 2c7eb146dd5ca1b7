//! Waiting for something to become true, never for a fixed time.

use std::thread;
use std::time::{Duration, Instant};

/// Long enough for a loaded two-core machine, short enough to notice a hang.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Asks `probe` until it answers, at most `limit`; panics naming `what` otherwise.
pub fn until<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = probe() {
            return answer;
        }
        assert!(start.elapsed() < limit, "waited {limit:?} in vain for {what}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// Like [`until`], for a yes or no.
pub fn until_true(what: &str, limit: Duration, mut probe: impl FnMut() -> bool) {
    until(what, limit, || probe().then_some(()));
}

/// Whether `probe` says yes within `limit`, for a test that must tidy up before it fails.
pub fn try_until(limit: Duration, mut probe: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    while !probe() {
        if start.elapsed() >= limit {
            return false;
        }
        thread::sleep(Duration::from_millis(50));
    }
    true
}
