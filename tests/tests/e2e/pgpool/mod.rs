//! With a real Pgpool-II.

mod dropin; // in the C extension's place: the statements of every Pgpool-II release, scripts in the data directory
mod fenced; // a node that was fenced before, at the next failover
mod hook; // the failover_command: promotion, followers, double failure, switchover
mod lean; // three nodes behind a Pgpool-II with the hook
mod native; // native replication and snapshot isolation: two stages while clients write
mod operator; // what an operator sees of a failure
mod recovery; // pcp_recovery_node
mod setup; // a cluster made by pgpool_setup, a fail-over and a follower
mod switchovers; // with writers at work, and a witness that writes to every node
mod unreachable; // the primary's host is gone from the network
