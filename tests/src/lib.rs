//! The harness of the end-to-end tests: real PostgreSQL clusters, real agents, a real Pgpool-II.
//!
//! PostgreSQL, Pgpool-II and the agent refuse or should not run as root, while network namespaces and
//! other users' files need root: the tests run as root and start every server as user `postgres`.
//! Whatever a test makes (processes, directories under /tmp, ports, namespaces) is its own and goes
//! away with the value that stands for it, also when the test panics.
//!
//! They test what is installed: the extension in the server found by `PG_CONFIG` (default Debian's
//! PostgreSQL 15), the agent found by `PGPOOL_RECOVERY_AGENT` (default `/usr/local/bin`).

pub mod account;
pub mod agent;
pub mod background;
pub mod cluster;
pub mod compare;
pub mod conf;
pub mod document;
pub mod dump;
pub mod error_table;
pub mod ext4;
pub mod fake_agent;
pub mod fake_server;
pub mod host;
pub mod mount;
pub mod netns;
pub mod pgpool;
pub mod ports;
pub mod primacy;
pub mod probe;
pub mod process;
pub mod proxy;
pub mod recovery;
pub mod rng;
pub mod scratch;
pub mod server;
pub mod snapshot;
pub mod stage;
pub mod stages;
pub mod storm;
mod template;
pub mod trace;
mod turns;
pub mod wait;
pub mod workload;
pub mod xfs;

pub use agent::Agent;
pub use cluster::Cluster;
pub use host::Host;
pub use recovery::{Recovery, SqlError};
pub use scratch::Scratch;
pub use stage::{Stage, Transport};
