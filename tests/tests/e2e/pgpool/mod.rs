//! With a real Pgpool-II.

mod dropin; // in the C extension's place: the statements of every Pgpool-II release, scripts in the data directory
mod hook; // the failover_command: promotion, followers, double failure, switchover
mod operator; // what an operator sees of a failure
mod recovery; // pcp_recovery_node
mod setup; // a cluster made by pgpool_setup, a fail-over and a follower
