//! Those who have not proved the secret: how many are let in, and what the log says of the others.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::warn;

/// Most connections that have not proved the secret yet. More are closed at once.
const STRANGERS: usize = 256;

/// Most of them from one address: one host alone cannot keep the others out.
const STRANGERS_OF_ONE: usize = 16;

/// Refused connections that are logged one by one in a minute; more are counted.
const REFUSALS: u32 = 20;

/// How many connections from each address have not proved the secret.
#[derive(Default)]
pub(crate) struct Strangers(Mutex<HashMap<IpAddr, usize>>);

impl Strangers {
    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more, if there is room for one.
    pub(crate) fn admit(self: &Arc<Self>, address: IpAddr) -> Option<Stranger> {
        let mut strangers = self.lock();
        let all: usize = strangers.values().sum();
        let own = strangers.get(&address).copied().unwrap_or_default();
        if all >= STRANGERS || own >= STRANGERS_OF_ONE {
            return None;
        }
        strangers.insert(address, own + 1);
        Some(Stranger { among: Arc::clone(self), address })
    }
}

/// A connection that has not proved the secret, until it is dropped.
pub(crate) struct Stranger {
    among: Arc<Strangers>,
    address: IpAddr,
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let mut strangers = self.among.lock();
        if let Some(own) = strangers.get_mut(&self.address) {
            *own -= 1;
            if *own == 0 {
                strangers.remove(&self.address);
            }
        }
    }
}

/// What the log says of those who were turned away: somebody who knocks all day must not fill a disk.
#[derive(Default)]
pub(crate) struct Refusals {
    minute: Mutex<Minute>,
    count: AtomicU64,
}

#[derive(Default)]
struct Minute {
    began: Option<Instant>,
    told: u32,
    silent: u32,
}

impl Refusals {
    /// How many there have been.
    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    pub(crate) fn tell(&self, what: std::fmt::Arguments<'_>) {
        self.count.fetch_add(1, Ordering::Relaxed);
        let mut minute = self.minute.lock().unwrap_or_else(PoisonError::into_inner);
        if minute.began.is_none_or(|began| began.elapsed() >= Duration::from_secs(60)) {
            if minute.silent > 0 {
                warn!("{} more connections were refused in a minute", minute.silent);
            }
            *minute = Minute { began: Some(Instant::now()), ..Minute::default() };
        }
        if minute.told < REFUSALS {
            minute.told += 1;
            warn!("{what}");
        } else {
            minute.silent += 1;
        }
    }
}
