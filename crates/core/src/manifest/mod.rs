//! What exists on the primary, and what of it travels.

pub mod exclude;
pub mod path;
pub mod plan;
pub mod scan;
