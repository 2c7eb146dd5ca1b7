//! What makes a copy a standby, and how it is told that it follows: names, settings, connections.

pub(crate) mod conninfo;
pub mod hot_standby;
pub mod naming;
pub mod own_address;
pub mod places;
pub mod recovery_settings;
pub mod standby;
pub mod streaming;
