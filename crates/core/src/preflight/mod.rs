//! May this target be replaced? Facts in, findings out.

pub mod hot_standby;
pub mod judge;
