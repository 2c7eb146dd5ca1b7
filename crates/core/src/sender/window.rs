//! How many batches are asked for ahead of the one that is being answered.

use std::collections::VecDeque;
use std::time::Duration;

use crate::manifest::plan::{BATCH_RANGES, Range};
use crate::wire::protocol::MAX_ASKED;

/// Batches that are asked for ahead from the start.
const LEAST: usize = 8;

/// And at most.
pub(super) const MOST: usize = MAX_ASKED;

/// Ranges beyond which only [`LEAST`] batches are asked for: small files make batches of many ranges, and both ends keep them.
const RANGES: usize = LEAST * BATCH_RANGES;

/// A wait that is none: the answer was on its way through this host.
const NO_WAIT: Duration = Duration::from_millis(1);

/// Grows while the sender has to wait for answers, by one batch for each: so it doubles in a round trip, until answers come
/// without a wait. Where what is sent fills the link, it is the link that is waited for, and the window stays as it is; near by,
/// too.
#[derive(Debug)]
pub(super) struct Window {
    batches: usize,
}

impl Default for Window {
    fn default() -> Self {
        Self { batches: LEAST }
    }
}

impl Window {
    /// Whether one more is to be asked for.
    pub(super) fn takes_more(&self, asked: &VecDeque<Vec<Range>>) -> bool {
        let is_light = || asked.iter().map(Vec::len).sum::<usize>() + BATCH_RANGES <= RANGES;
        asked.len() < LEAST || (asked.len() < self.batches && is_light())
    }

    /// The next answer took so long to come.
    pub(super) fn waited(&mut self, wait: Duration) {
        if wait > NO_WAIT {
            self.batches = (self.batches + 1).min(MOST);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(batches: usize, ranges: usize) -> VecDeque<Vec<Range>> {
        let range = Range { file: 0, offset: 0, length: 1 };
        (0..batches).map(|_| vec![range; ranges]).collect()
    }

    #[test]
    fn it_grows_while_answers_are_waited_for() {
        let mut window = Window::default();
        assert!(window.takes_more(&asked(LEAST - 1, 1)) && !window.takes_more(&asked(LEAST, 1)));
        window.waited(Duration::from_micros(100));
        assert!(!window.takes_more(&asked(LEAST, 1)), "nothing was waited for");
        window.waited(Duration::from_millis(53));
        assert!(window.takes_more(&asked(LEAST, 1)) && !window.takes_more(&asked(LEAST + 1, 1)));
        (0..2 * MOST).for_each(|_| window.waited(Duration::from_secs(1)));
        assert!(window.takes_more(&asked(MOST - 1, 1)) && !window.takes_more(&asked(MOST, 1)));
    }

    #[test]
    fn small_files_do_not_fill_the_memory() {
        let mut window = Window::default();
        (0..MOST).for_each(|_| window.waited(Duration::from_secs(1)));
        assert!(window.takes_more(&asked(LEAST - 1, BATCH_RANGES)));
        assert!(!window.takes_more(&asked(LEAST, BATCH_RANGES)));
    }
}
