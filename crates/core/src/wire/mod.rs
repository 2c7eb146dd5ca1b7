//! How two hosts talk: frames and messages, and the links that carry them.

pub(crate) mod compress;
pub mod inquiry;
pub mod link;
pub mod protocol;
pub mod secret;
