//! What a host does with one data directory, with a run or without: may it be used, what is in it, does a server run
//! there, starting one.

pub mod configured;
pub mod control;
pub mod describe;
pub mod fence;
pub mod fence_primary;
pub mod inspect;
pub mod launch;
pub mod may_start;
pub mod policy;
pub(crate) mod running;
pub mod second_stage;
pub mod starting;
pub mod stop;
pub mod turn;
pub mod upstream;

pub(crate) mod follow;
mod identify;
pub(crate) mod login;
mod may_fence;
mod may_stop;
pub(crate) mod neighbours;
mod patience;
pub(crate) mod places;
mod procfs;
pub(crate) mod readiness;
pub(crate) mod references;
pub(crate) mod server_log;
pub(crate) mod walreceiver;

pub use walreceiver::stopped_startup;
