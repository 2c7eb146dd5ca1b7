//! Keeping all streams of a run together below a rate.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::cancel::Cancel;
use crate::error::Result;
use crate::lock::lock;

/// How much may be sent ahead of the rate: a short burst, so that many threads do not wait in turn
/// for tiny shares.
const BURST: Duration = Duration::from_millis(50);

/// Longest sleep before looking at the cancel switch again.
const NAP: Duration = Duration::from_millis(100);

/// A limit on bytes per second, shared by all streams.
pub struct Rate {
    /// Bytes per second; `None` is no limit.
    limit: Option<f64>,
    /// When everything admitted so far will have been sent at the limit.
    booked_until: Mutex<Instant>,
}

impl Rate {
    /// A limit in kilobytes (1024 bytes) per second; 0 is none.
    pub fn new(kilobytes_per_second: u64) -> Self {
        // any rate that fits a disk or a network is exact in an f64
        let limit = (kilobytes_per_second > 0).then_some(kilobytes_per_second as f64 * 1024.0);
        Self { limit, booked_until: Mutex::new(Instant::now()) }
    }

    /// Whether there is a limit.
    pub const fn is_limited(&self) -> bool {
        self.limit.is_some()
    }

    /// Waits until `bytes` more may be sent.
    pub fn admit(&self, bytes: u64, cancel: &Cancel) -> Result<()> {
        let Some(limit) = self.limit else {
            return Ok(());
        };
        let cost = Duration::from_secs_f64(bytes as f64 / limit);
        let go_at = {
            let mut booked_until = lock(&self.booked_until);
            let start = (*booked_until).max(Instant::now());
            *booked_until = start + cost;
            (start + cost).checked_sub(BURST).unwrap_or(start)
        };
        loop {
            cancel.check()?;
            let left = go_at.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(NAP));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_the_rate_over_several_threads() {
        let rate = Rate::new(10_000);
        let started = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..25).try_for_each(|_| rate.admit(102_400, &Cancel::new())));
            }
        });
        // 10 MB at 10 MB/s
        let seconds = started.elapsed().as_secs_f64();
        assert!((0.9..1.5).contains(&seconds), "took {seconds} s");
    }

    #[test]
    fn no_limit_does_not_wait_and_cancel_interrupts() {
        let started = Instant::now();
        Rate::new(0).admit(u64::MAX, &Cancel::new()).expect("admitted");
        let cancel = Cancel::new();
        cancel.trip();
        assert!(Rate::new(1).admit(1 << 30, &cancel).is_err());
        assert!(started.elapsed() < Duration::from_secs(1));
    }
}
