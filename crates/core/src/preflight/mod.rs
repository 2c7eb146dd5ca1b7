//! May this target be replaced? Facts in, findings out.

pub mod judge;
