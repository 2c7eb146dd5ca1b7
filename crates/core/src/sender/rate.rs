//! Keeping all streams of a run together below a rate.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::error::Result;
use crate::sys::cancel::Cancel;
use crate::sys::lock::lock;

/// How much may be sent ahead of the rate: a short burst, so that many threads do not wait in turn
/// for tiny shares.
const BURST: Duration = Duration::from_millis(50);

/// Longest sleep before looking at the cancel switch again.
const NAP: Duration = Duration::from_millis(100);

/// A limit on bytes per second, shared by all streams.
pub(super) struct Rate {
    /// Bytes per second; `None` is no limit.
    limit: Option<f64>,
    /// When everything admitted so far will have been sent at the limit.
    booked_until: Mutex<Instant>,
}

impl Rate {
    /// A limit in kilobytes (1024 bytes) per second; 0 is none.
    pub(super) fn new(kilobytes_per_second: u64) -> Self {
        // any rate that fits a disk or a network is exact in an f64
        let limit = (kilobytes_per_second > 0).then_some(kilobytes_per_second as f64 * 1024.0);
        Self { limit, booked_until: Mutex::new(Instant::now()) }
    }

    /// Whether there is a limit.
    pub(super) const fn is_limited(&self) -> bool {
        self.limit.is_some()
    }

    /// Waits until `bytes` more may be sent.
    pub(super) fn admit(&self, bytes: u64, cancel: &Cancel) -> Result<()> {
        let Some(go_at) = self.book(bytes, Instant::now()) else {
            return Ok(());
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

    /// Books `bytes` more; returns when they may be sent.
    fn book(&self, bytes: u64, now: Instant) -> Option<Instant> {
        let cost = Duration::from_secs_f64(bytes as f64 / self.limit?);
        let mut booked_until = lock(&self.booked_until);
        let start = (*booked_until).max(now);
        *booked_until = start + cost;
        Some((start + cost).checked_sub(BURST).unwrap_or(start))
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

    /// Several streams send frames, some late; time is simulated.
    #[test]
    fn any_ten_seconds_are_within_a_twentieth_of_the_rate() {
        const FRAME: u64 = 512 << 10;
        for kilobytes in [10_000, 100_000, 1_000_000] {
            let rate = Rate::new(kilobytes);
            let begin = Instant::now();
            let mut streams = [begin; 4];
            let mut sent = Vec::new();
            while streams.iter().all(|&now| now < begin + Duration::from_secs(40)) {
                let stream = (0..4).min_by_key(|&stream| streams[stream]).unwrap_or(0);
                let go_at = rate.book(FRAME, streams[stream]).expect("a limit");
                // a sleep ends late
                let late = Duration::from_micros(200 * (sent.len() as u64 % 7));
                streams[stream] = streams[stream].max(go_at) + late;
                sent.push(streams[stream]);
            }
            sent.sort();
            for &from in sent.iter().take_while(|&&from| from < begin + Duration::from_secs(28)) {
                let frames =
                    sent.iter().filter(|&&at| at >= from && at < from + Duration::from_secs(10)).count();
                let share = (frames as u64 * FRAME) as f64 / (kilobytes as f64 * 10_240.0);
                assert!((0.95..=1.05).contains(&share), "{kilobytes} kB/s: {share}");
                if sent.len() > 10_000 {
                    break;
                }
            }
        }
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
