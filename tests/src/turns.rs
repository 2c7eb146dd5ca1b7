//! Tests that run beside each other, and tests that run alone.

use std::collections::HashMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};

/// Held by a test while it has servers, mounts or agents.
#[derive(Debug)]
pub(crate) struct Turn {
    holder: ThreadId,
}

#[derive(Debug, Default)]
struct State {
    /// How many turns each test's thread holds.
    holders: Option<HashMap<ThreadId, usize>>,
    is_one_alone: bool,
    /// Tests that wait until they are alone. No other test begins before them, or they would wait to the end.
    waiting: usize,
}

static STATE: Mutex<State> = Mutex::new(State { holders: None, is_one_alone: false, waiting: 0 });
static CHANGED: Condvar = Condvar::new();

fn lock() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn wait_while(condition: impl Fn(&State) -> bool) -> MutexGuard<'static, State> {
    let waited = CHANGED.wait_while(lock(), |state| condition(state));
    waited.unwrap_or_else(PoisonError::into_inner)
}

impl State {
    fn is_held(&self) -> bool {
        self.holders.as_ref().is_some_and(|holders| !holders.is_empty())
    }

    fn is_held_by(&self, thread: ThreadId) -> bool {
        self.holders.as_ref().is_some_and(|holders| holders.contains_key(&thread))
    }

    fn hold(&mut self, holder: ThreadId) -> Turn {
        *self.holders.get_or_insert_default().entry(holder).or_default() += 1;
        Turn { holder }
    }
}

impl Turn {
    /// Beside others. A test that has a turn gets another one at once.
    pub(crate) fn beside_others() -> Self {
        let own = thread::current().id();
        let must_wait = |state: &State| !state.is_held_by(own) && (state.is_one_alone || state.waiting > 0);
        wait_while(must_wait).hold(own)
    }

    /// Alone: waits until all others have ended, and keeps the next from beginning.
    pub(crate) fn alone() -> Self {
        let own = thread::current().id();
        let mut state = lock();
        assert!(!state.is_held_by(own), "a test that runs beside others would wait for itself");
        state.waiting += 1;
        drop(state);
        let mut state = wait_while(State::is_held);
        state.waiting -= 1;
        state.is_one_alone = true;
        state.hold(own)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut state = lock();
        if let Some(holders) = &mut state.holders
            && let Some(turns) = holders.get_mut(&self.holder)
        {
            *turns -= 1;
            if *turns == 0 {
                holders.remove(&self.holder);
            }
        }
        state.is_one_alone &= state.is_held();
        drop(state);
        CHANGED.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::wait;

    #[test]
    fn a_test_that_runs_alone_meets_no_other_one() {
        static BESIDE: AtomicUsize = AtomicUsize::new(0);
        static ALONE: AtomicUsize = AtomicUsize::new(0);
        let beside = || {
            let _turn = Turn::beside_others();
            BESIDE.fetch_add(1, Ordering::SeqCst);
            let _second = Turn::beside_others();
            assert_eq!(ALONE.load(Ordering::SeqCst), 0);
            thread::yield_now();
            BESIDE.fetch_sub(1, Ordering::SeqCst);
        };
        let alone = || {
            let _turn = Turn::alone();
            assert_eq!(ALONE.fetch_add(1, Ordering::SeqCst), 0);
            let _second = Turn::beside_others();
            assert_eq!(BESIDE.load(Ordering::SeqCst), 0);
            thread::yield_now();
            ALONE.fetch_sub(1, Ordering::SeqCst);
        };
        thread::scope(|scope| {
            for number in 0..40 {
                if number % 4 == 0 {
                    scope.spawn(alone)
                } else {
                    scope.spawn(beside)
                };
            }
        });

        // one that waits to be alone comes before those that begin later
        let first = Turn::beside_others();
        thread::scope(|scope| {
            let alone = scope.spawn(alone);
            wait::until_true("the other one to wait", wait::PATIENCE, || lock().waiting == 1);
            let beside = scope.spawn(beside);
            assert!(!alone.is_finished() && !beside.is_finished());
            drop(first);
        });
    }
}
