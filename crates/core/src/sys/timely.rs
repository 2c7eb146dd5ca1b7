//! Questions to file systems that may never answer: of an NFS server that has gone, of a disk that is frozen. The thread
//! that puts one waits in the kernel and cannot be ended, so that what serves others leaves it behind.

use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::thread::Builder;
use std::time::{Duration, Instant};

use super::lock::lock;

/// How long a file system has for an answer.
const LIMIT: Duration = Duration::from_secs(3);

/// The questions that are not answered yet.
static OPEN: Mutex<Vec<Arc<Question>>> = Mutex::new(Vec::new());

/// What is asked about what lies where, since when.
struct Question {
    place: PathBuf,
    since: Instant,
}

/// The answer to a question about what lies at `place`; `None` if it does not come in time, or if an earlier one waits
/// there still: that thread is enough.
pub(crate) fn ask<T: Send + 'static>(
    place: &Path,
    question: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    ask_within(LIMIT, place, question)
}

fn ask_within<T: Send + 'static>(
    limit: Duration,
    place: &Path,
    question: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let open = Arc::new(Question { place: place.to_owned(), since: Instant::now() });
    {
        let mut all = lock(&OPEN);
        if all.iter().any(|earlier| earlier.place == place && earlier.since.elapsed() >= limit) {
            return None;
        }
        all.push(Arc::clone(&open));
    }
    let answered = Answered(open);
    let (answer, answers) = channel();
    let thread = Builder::new().name("file system".to_owned()).spawn(move || {
        let answer_of = question();
        drop(answered);
        // the one who asked may have gone
        let _ = answer.send(answer_of);
    });
    thread.ok()?;
    answers.recv_timeout(limit).ok()
}

/// Strikes a question off the list, however its thread ends.
struct Answered(Arc<Question>);

impl Drop for Answered {
    fn drop(&mut self) {
        lock(&OPEN).retain(|open| !Arc::ptr_eq(open, &self.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_answer_is_not_waited_for_and_keeps_one_thread() {
        const SHORT: Duration = Duration::from_millis(20);
        let place = Path::new("/nowhere/that/hangs");
        let (release, held) = channel::<()>();
        let hang = move || {
            let _ = held.recv();
        };
        assert_eq!(ask_within(SHORT, place, hang), None);
        let asked = Arc::new(Mutex::new(0));
        let count = || {
            let asked = Arc::clone(&asked);
            move || *lock(&asked) += 1
        };
        assert_eq!(ask_within(SHORT, place, count()), None);
        assert_eq!(*lock(&asked), 0, "no thread is left behind for this");
        assert_eq!(ask(Path::new("/nowhere/else"), || 7), Some(7));
        release.send(()).expect("it waits");
        let end = Instant::now() + Duration::from_secs(60);
        while ask(place, count()).is_none() {
            assert!(Instant::now() < end, "it answers again");
            std::thread::yield_now();
        }
        assert_eq!(*lock(&asked), 1);
    }
}
