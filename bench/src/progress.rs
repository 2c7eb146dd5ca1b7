//! What the bench is doing, on standard error.

use std::sync::Mutex;
use std::time::Instant;

static START: Mutex<Option<Instant>> = Mutex::new(None);
static DOING: Mutex<String> = Mutex::new(String::new());

/// A line with the time since the first one.
pub(crate) fn say(text: &str) {
    let start = *START.lock().expect("no panic there").get_or_insert_with(Instant::now);
    eprintln!("[{:6.1} s] {text}", start.elapsed().as_secs_f64());
}

/// From now on this is what is being done, should it fail.
pub(crate) fn doing(text: String) {
    *DOING.lock().expect("no panic there") = text;
}

pub(crate) fn what() -> String {
    DOING.lock().expect("no panic there").clone()
}
