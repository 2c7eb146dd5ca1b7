//! The blocks that need not be read, because the WAL of both sides says that they did not change.

mod block_map;
mod encoding;
mod source;

pub use block_map::{BUDGET, BlockMap};
pub use encoding::MAX_ENCODED;
pub use source::{Breakdown, Found, Layout, WalMap};
