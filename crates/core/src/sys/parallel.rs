//! Several questions at once, each of which may block.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::error::{Error, Kind, Result};
use crate::sys::cancel::Cancel;

/// How often it is looked at whether all have answered.
const TURN: Duration = Duration::from_millis(10);

/// What is done for an answer.
pub type Work<'a, T> = Box<dyn FnOnce(&Cancel) -> Result<T> + Send + 'a>;

/// One question, with a name for the error of one that takes too long.
pub struct Job<'a, T> {
    /// What is asked: `the agent at db1:9897`.
    pub name: String,
    /// How long the answer may take.
    pub time: Duration,
    /// Asks. It must return soon after its switch trips.
    pub work: Work<'a, T>,
}

/// Asks all at once and returns the answers in the order of the questions; one that has not come in its time is an error.
pub fn ask<T: Send>(jobs: Vec<Job<'_, T>>, cancel: &Cancel) -> Vec<Result<T>> {
    let begin = Instant::now();
    std::thread::scope(|scope| {
        let mut asked = Vec::new();
        for Job { name, time, work } in jobs {
            let own = Cancel::new();
            let switch = own.clone();
            let thread = std::thread::Builder::new().name("question".to_owned());
            // what it opened may have tripped the switch when it was closed: that says nothing about the answer
            let thread = thread.spawn_scoped(scope, move || work(&switch));
            asked.push((name, time, own, thread.map_err(|error| Error::no_thread(&error))));
        }
        let mut late = BTreeSet::new();
        while asked.iter().any(|(.., thread)| thread.as_ref().is_ok_and(|thread| !thread.is_finished())) {
            if cancel.is_tripped() {
                let cause = cancel.cause().unwrap_or_else(Error::canceled);
                asked.iter().for_each(|(_, _, own, _)| own.trip_with(cause.clone()));
            }
            for (at, (name, time, own, thread)) in asked.iter().enumerate() {
                let is_late = begin.elapsed() >= *time && !thread.as_ref().is_ok_and(|it| it.is_finished());
                if is_late && late.insert(at) {
                    own.trip_with(no_answer(name, *time));
                }
            }
            std::thread::sleep(TURN);
        }
        let answers = asked.into_iter().map(|(name, .., thread)| {
            thread?
                .join()
                .unwrap_or_else(|_| Err(Error::new(Kind::Internal, format!("what asked {name} panicked"))))
        });
        answers.collect()
    })
}

/// Does one step of a question within a time of its own; afterwards the switch has tripped.
pub fn within<T>(
    time: Duration,
    name: &str,
    cancel: &Cancel,
    step: impl FnOnce(&Cancel) -> Result<T>,
) -> Result<T> {
    let (begin, is_over) = (Instant::now(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let watch = || {
            while !is_over.load(Ordering::Relaxed) {
                if begin.elapsed() >= time {
                    cancel.trip_with(no_answer(name, time));
                    return;
                }
                std::thread::sleep(TURN);
            }
        };
        let thread = std::thread::Builder::new().name("watch".to_owned());
        thread.spawn_scoped(scope, watch).map_err(|error| Error::no_thread(&error))?;
        let done = step(cancel);
        is_over.store(true, Ordering::Relaxed);
        done
    })
}

fn no_answer(name: &str, time: Duration) -> Error {
    let seconds = time.as_secs_f32();
    Error::new(Kind::Unreachable, format!("no answer from {name} within {seconds:.1} s"))
        .hint("Check that its host is up and reachable.")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(name: &str, work: impl FnOnce(&Cancel) -> Result<u32> + Send + 'static) -> Job<'static, u32> {
        Job { name: name.to_owned(), time: Duration::from_secs(600), work: Box::new(work) }
    }

    #[test]
    fn a_step_has_a_time_of_its_own() {
        let cancel = Cancel::new();
        assert_eq!(within(Duration::from_secs(600), "a step", &cancel, |_| Ok(1)), Ok(1));
        assert!(!cancel.is_tripped());
        let error = within(Duration::from_millis(50), "a step", &cancel, blocks).expect_err("too long");
        assert!(error.kind == Kind::Unreachable && error.message.contains("from a step within"), "{error:?}");
    }

    /// Blocks until it is woken.
    fn blocks(cancel: &Cancel) -> Result<u32> {
        while !cancel.is_tripped() {
            std::thread::sleep(Duration::from_millis(5));
        }
        cancel.check().map(|()| 7)
    }

    #[test]
    fn an_answer_whose_session_has_ended_is_one() {
        let work = Box::new(|cancel: &Cancel| {
            cancel.trip();
            Ok(7)
        });
        let job = Job { name: "b".to_owned(), time: Duration::from_secs(60), work };
        assert_eq!(ask(vec![job], &Cancel::new()), [Ok(7)]);
    }

    #[test]
    fn all_are_asked_at_once_and_the_late_ones_are_named() {
        let jobs = vec![
            job("one", |_| Ok(1)),
            Job { time: Duration::from_millis(100), ..job("two", blocks) },
            Job { time: Duration::from_millis(300), ..job("three", blocks) },
            job("four", |_| Err(Error::new(Kind::InUse, "no"))),
            job("five", |cancel| {
                // as the end of a session does
                cancel.trip();
                Ok(5)
            }),
        ];
        let begin = Instant::now();
        let answers = ask(jobs, &Cancel::new());
        assert!(begin.elapsed() < Duration::from_secs(10));
        assert_eq!(answers[0], Ok(1));
        for (answer, name) in [(&answers[1], "two within 0.1 s"), (&answers[2], "three within 0.3 s")] {
            let error = answer.as_ref().expect_err("late");
            assert!(error.kind == Kind::Unreachable && error.message.contains(name), "{error}");
        }
        assert_eq!(answers[4], Ok(5));
        assert_eq!(answers[3].as_ref().expect_err("refused").kind, Kind::InUse);
    }

    #[test]
    fn a_cancel_ends_them_all() {
        let cancel = Cancel::new();
        cancel.trip();
        let answers = ask(vec![job("one", blocks), job("two", blocks)], &cancel);
        assert!(
            answers.iter().all(|answer| answer.as_ref().is_err_and(|error| error.kind == Kind::Canceled))
        );
    }
}
