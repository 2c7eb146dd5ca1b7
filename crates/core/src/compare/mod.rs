//! Which pages differ, and the proof for those that may be left out.

pub mod delta;
pub mod digest;
pub mod page_facts;
pub mod source;
pub mod wal_map;
pub mod work;
