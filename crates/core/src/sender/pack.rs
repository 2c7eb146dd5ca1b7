//! Choosing how pages are packed.
//!
//! Whether packing pays depends on the link, both hosts' processors and disks, and the data: nothing that
//! one end could know. So `auto` tries: it lets all streams send one way for a moment, looks how far the
//! run came in that time, and stays with the best way. From time to time it looks whether that is still so.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde::Deserialize;

use crate::sys::lock::lock;
use crate::wire::protocol::data::Codec;

/// The setting `pgpool_recovery.compression`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// What makes the run fastest.
    Auto,
    /// Nothing.
    Off,
    /// LZ4.
    Lz4,
    /// Zstandard.
    Zstd,
}

/// The ways that `auto` tries.
const WAYS: [Codec; 3] = [Codec::Plain, Codec::Lz4, Codec::Zstd];

/// After a change of ways, what was sent the old way has to leave the buffers of both ends first.
const SETTLING: Span =
    Span { least: Duration::from_millis(40), bytes: 8 << 20, most: Duration::from_secs(1) };

/// How long a way is measured.
const TRIAL: Span = Span { least: Duration::from_millis(100), bytes: 16 << 20, most: Duration::from_secs(2) };

/// How long the best way is kept before another one is tried again.
const HOLD: Duration = Duration::from_secs(5);

/// How much faster than another way packing must make the run: below that it is chance, and packing takes
/// processor time from the server.
const GAIN: f64 = 1.1;

/// A stretch of a run: ends after a time in which enough was moved, or at the latest after another.
struct Span {
    least: Duration,
    bytes: u64,
    most: Duration,
}

impl Span {
    fn is_over(&self, took: Duration, moved: u64) -> bool {
        took >= self.most || (took >= self.least && moved >= self.bytes)
    }
}

/// Chooses for all streams of a run.
pub(super) struct Chooser(Choice);

enum Choice {
    Fixed(Codec),
    Learned(Mutex<Learner>),
}

impl Chooser {
    /// A chooser that follows a setting.
    pub(super) fn new(compression: Compression, now: Instant) -> Self {
        Self(match compression {
            Compression::Off => Choice::Fixed(Codec::Plain),
            Compression::Lz4 => Choice::Fixed(Codec::Lz4),
            Compression::Zstd => Choice::Fixed(Codec::Zstd),
            Compression::Auto => Choice::Learned(Mutex::new(Learner::new(now))),
        })
    }

    /// How the next frame is to be packed.
    pub(super) fn choose(&self) -> Codec {
        match &self.0 {
            Choice::Fixed(codec) => *codec,
            Choice::Learned(learner) => WAYS[lock(learner).way],
        }
    }

    /// Learns that the run came further by `bytes` of the cluster, whether they had to be sent or not, and
    /// that `sent` of them were.
    pub(super) fn learn(&self, bytes: u64, sent: u64, now: Instant) {
        if let Choice::Learned(learner) = &self.0 {
            lock(learner).learn(bytes, sent, now);
        }
    }
}

struct Learner {
    /// The way in use.
    way: usize,
    stage: Stage,
    since: Instant,
    moved: u64,
    sent: u64,
    /// What each way brought, bytes a second; none before its first trial.
    rates: [Option<f64>; WAYS.len()],
    /// The way to be tried after the next hold.
    next: usize,
}

enum Stage {
    Settling,
    Trial,
    Hold,
}

impl Learner {
    const fn new(now: Instant) -> Self {
        // nothing is in any buffer yet
        Self {
            way: 0,
            stage: Stage::Trial,
            since: now,
            moved: 0,
            sent: 0,
            rates: [None; WAYS.len()],
            next: 1,
        }
    }

    fn learn(&mut self, bytes: u64, sent: u64, now: Instant) {
        self.moved += bytes;
        self.sent += sent;
        let took = now.saturating_duration_since(self.since);
        match self.stage {
            Stage::Settling if SETTLING.is_over(took, self.moved) => self.enter(self.way, Stage::Trial, now),
            Stage::Trial if TRIAL.is_over(took, self.moved) => self.judge(took, now),
            Stage::Hold if took >= HOLD => {
                let next = self.next;
                self.next = (self.next + 1) % WAYS.len();
                // the way in use is measured as it is
                let stage = if next == self.way { Stage::Trial } else { Stage::Settling };
                self.enter(next, stage, now);
            }
            _ => {}
        }
    }

    /// A trial is over.
    fn judge(&mut self, took: Duration, now: Instant) {
        // a stretch in which hardly anything had to be sent says nothing about ways of sending
        if self.sent < TRIAL.bytes / 8 {
            if took < TRIAL.most {
                return;
            }
            if self.sent < self.moved / 64 {
                return self.enter(self.way, Stage::Trial, now);
            }
        }
        self.rates[self.way] = Some(self.moved as f64 / took.as_secs_f64());
        match self.rates.iter().position(Option::is_none) {
            Some(untried) => self.enter(untried, Stage::Settling, now),
            None => self.enter(self.best(), Stage::Hold, now),
        }
    }

    fn best(&self) -> usize {
        let rate = |way: usize| self.rates[way].unwrap_or_default();
        (1..WAYS.len()).fold(0, |best, way| if rate(way) > rate(best) * GAIN { way } else { best })
    }

    fn enter(&mut self, way: usize, stage: Stage, now: Instant) {
        (self.way, self.stage, self.since) = (way, stage, now);
        (self.moved, self.sent) = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes moved each way in so many seconds of a run, where each way has its rate in MB/s.
    fn run(rates: [u64; 3], seconds: u64) -> [u64; 3] {
        let start = Instant::now();
        let chooser = Chooser::new(Compression::Auto, start);
        let mut now = start;
        let mut moved = [0; 3];
        while now < start + Duration::from_secs(seconds) {
            let way = chooser.choose() as usize;
            now += Duration::from_secs_f64(0.5 / rates[way] as f64);
            chooser.learn(512 << 10, 512 << 10, now);
            moved[way] += 512 << 10;
        }
        moved
    }

    #[test]
    fn auto_takes_the_fastest_way() {
        for (rates, best) in
            [([1000, 400, 200], 0), ([100, 600, 300], 1), ([10, 25, 60], 2), ([500, 505, 510], 0)]
        {
            let moved = run(rates, 60);
            let share = moved[best] as f64 / moved.iter().sum::<u64>() as f64;
            assert!(share > 0.85, "{rates:?}: {moved:?}");
        }
    }

    #[test]
    fn auto_notices_that_the_link_changed() {
        let start = Instant::now();
        let chooser = Chooser::new(Compression::Auto, start);
        let mut now = start;
        let mut late_plain = 0;
        for step in 0..40_000 {
            let rates = if step < 20_000 { [1000.0, 300.0, 200.0] } else { [50.0, 300.0, 200.0] };
            let way = chooser.choose() as usize;
            now += Duration::from_secs_f64(0.5 / rates[way]);
            chooser.learn(512 << 10, 512 << 10, now);
            late_plain += u32::from(step > 30_000 && way == 0);
        }
        assert!(late_plain < 2_000, "{late_plain} of 10,000 frames plain");
    }

    #[test]
    fn a_stretch_without_sending_teaches_nothing() {
        let start = Instant::now();
        let mut learner = Learner::new(start);
        for step in 0..1000 {
            learner.learn(8 << 20, 0, start + Duration::from_millis(10 * step));
        }
        assert_eq!(learner.rates, [None; 3]);
    }

    #[test]
    fn a_setting_is_followed() {
        for (compression, codec) in [
            (Compression::Off, Codec::Plain),
            (Compression::Lz4, Codec::Lz4),
            (Compression::Zstd, Codec::Zstd),
        ] {
            assert_eq!(Chooser::new(compression, Instant::now()).choose(), codec);
        }
    }
}
