//! What an outage needs besides a recovery.

mod stop; // servers that are stopped: standbys and replaced primaries, and no others
