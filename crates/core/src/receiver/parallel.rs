//! Several threads that work through a list: what they wait for is a disk, not a processor.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::ScopedJoinHandle;

use super::run::Run;
use crate::error::{Error, Kind, Result};

/// Threads: enough to keep a disk's queue filled.
const THREADS: usize = 8;

/// Does `work` with each item and its number; ends early with the first error, or if the run is canceled.
pub(super) fn for_each<T: Sync>(
    run: &Run,
    items: &[T],
    work: impl Fn(usize, &T) -> Result<()> + Sync,
) -> Result<()> {
    let next = AtomicUsize::new(0);
    let worker = || {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(number) else {
                return Ok(());
            };
            run.cancel.check()?;
            let done = work(number, item);
            if done.is_err() {
                // nothing more for the others
                next.store(items.len(), Ordering::Relaxed);
            }
            done?;
        }
    };
    std::thread::scope(|scope| {
        let start = |_| {
            let thread = std::thread::Builder::new().name("target-files".to_owned());
            thread.spawn_scoped(scope, worker).map_err(Error::on("start a thread"))
        };
        let workers: Vec<_> = (0..THREADS.min(items.len())).map(start).collect();
        let panicked = |_| Err(Error::new(Kind::Internal, "a thread that works on the target panicked"));
        let join = |worker: Result<ScopedJoinHandle<'_, _>>| worker?.join().unwrap_or_else(panicked);
        // all are waited for, whatever the first one says
        workers.into_iter().map(join).fold(Ok(()), Result::and)
    })
}
