//! What an outage needs besides a recovery.

mod stop; // servers that are stopped: standbys and replaced primaries, and no others
mod stop_given_up; // a stop whose caller has left, or whose server has become another one meanwhile
mod stop_target; // a recovery that stops its target first: what it asks before
