//! Taking a mutex whose data stays whole even if a thread panicked while it held it: no code here leaves
//! what it guards half-changed, and a panic is reported where the thread is joined.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// The guard, poisoned or not.
pub fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
