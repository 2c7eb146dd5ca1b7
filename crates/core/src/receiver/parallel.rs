//! Several threads that work through a list: what they wait for is a disk, not a processor.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::ScopedJoinHandle;

use super::run::Run;
use crate::error::{Error, Kind, Result};

/// Threads: enough to keep a disk's queue filled.
const THREADS: usize = 8;

/// Does `work` with each number; ends early with the first error, or if the run is canceled.
pub(super) fn for_each(
    run: &Run,
    numbers: Range<usize>,
    work: impl Fn(usize) -> Result<()> + Sync,
) -> Result<()> {
    let next = AtomicUsize::new(numbers.start);
    let worker = || {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= numbers.end {
                return Ok(());
            }
            run.cancel.check()?;
            let done = work(number);
            if done.is_err() {
                // nothing more for the others
                next.store(numbers.end, Ordering::Relaxed);
            }
            done?;
        }
    };
    std::thread::scope(|scope| {
        let start = |_| {
            let thread = std::thread::Builder::new().name("target-files".to_owned());
            thread.spawn_scoped(scope, worker).map_err(|error| Error::no_thread(&error))
        };
        let workers: Vec<_> = (0..THREADS.min(numbers.len())).map(start).collect();
        let panicked = |_| Err(Error::new(Kind::Internal, "a thread that works on the target panicked"));
        let join = |worker: Result<ScopedJoinHandle<'_, _>>| worker?.join().unwrap_or_else(panicked);
        // all are waited for, whatever the first one says
        workers.into_iter().map(join).fold(Ok(()), Result::and)
    })
}
