//! Ending early, by Ctrl-C or SIGTERM, without leaving anything behind.
//!
//! The signal only sets a flag; long work asks for it and returns, so that every value
//! that stands for a server, a directory or a namespace is dropped as usual.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM};

/// Why the bench does not go on.
#[derive(Debug)]
pub(crate) enum Stop {
    /// It was asked for.
    Interrupted,
    /// Something went wrong; what it says goes to the user.
    Failed(String),
}

pub(crate) type Outcome<T> = Result<T, Stop>;

/// `Err` with a text of its own.
pub(crate) fn failed<T>(text: impl Into<String>) -> Outcome<T> {
    Err(Stop::Failed(text.into()))
}

fn flag() -> &'static Arc<AtomicBool> {
    static FLAG: OnceLock<Arc<AtomicBool>> = OnceLock::new();
    FLAG.get_or_init(Arc::default)
}

/// From now on the two signals set the flag.
pub(crate) fn listen() {
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(flag())).expect("a signal that can be handled");
    }
}

/// `Err` once a signal has come.
pub(crate) fn check() -> Outcome<()> {
    if flag().load(Ordering::Relaxed) { Err(Stop::Interrupted) } else { Ok(()) }
}
