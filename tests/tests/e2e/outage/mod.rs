//! What an outage needs besides a recovery.

mod follow; // standbys that follow a promotion, rejoin, or have diverged and are rebuilt
mod follow_refused; // what cannot follow, and is left as it was
mod hook; // what Pgpool-II calls, without Pgpool-II
mod lost_agent; // it dies while something else than a recovery goes on
mod may_start; // an old primary that boots again
mod native_check; // the check of a node that becomes a server of its own
mod promote; // a standby that becomes the primary, and the old primary that does not live on
mod second_stage; // standbys that are promoted beside their primary, and what is not
mod stop; // servers that are stopped: standbys and replaced primaries, and no others
mod stop_given_up; // a stop whose caller has left, or whose server has become another one meanwhile
mod stop_target; // a recovery that stops its target first: what it asks before

/// A pg_hba.conf that lets no standby in.
const NO_REPLICATION: &str =
    "local all all trust\nhost all all 127.0.0.1/32 trust\nhost all all ::1/128 trust\n";
