//! The blocks that need not be read, because the WAL of both sides says that they did not change.

mod block_map;
mod encoding;
mod sample;
mod source;
mod witness;

pub use block_map::{BUDGET, BlockMap};
pub use encoding::MAX_ENCODED;
pub use sample::Sample;
pub use source::{Breakdown, Found, Layout, WalMap};
pub use witness::{Reach, Refutation, Witness};
