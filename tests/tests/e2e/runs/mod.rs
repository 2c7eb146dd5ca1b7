//! Recoveries that succeed.

mod concurrency; // two recoveries at a time
mod damaged_target; // targets with damaged, missing, foreign or closed files
mod failover; // the old primary under the new one
mod horizon; // what VACUUM may remove while a run waits
mod hosts; // Pgpool-II, primary and standby on hosts with addresses of their own
mod layouts; // WAL elsewhere, group access, segment sizes, archives, logical slots, cascades, Debian's tools
mod local_target; // a standby on the primary's host, without an agent
mod messages; // what the client is told, and clients that do not read it
mod one_host; // primary and standby share a file system and the names of directories
mod procedure; // the call within a stored procedure
mod process_1; // a postmaster that is process 1 of its container
mod slots; // when a replication slot is reserved, and what it may keep
mod soak; // under write load and DDL, round after round
mod status; // pgpool_recovery_status
mod tablespaces; // tablespaces that are mapped to other directories
mod transfer_options; // compression, clones, checksums, rate limits
mod versions; // what only some versions of PostgreSQL have
mod wal; // WAL that is sent while data is
