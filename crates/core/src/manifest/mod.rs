//! What exists on the primary, and what of it travels.

pub mod dropped;
pub mod exclude;
pub mod list;
mod order;
pub mod path;
pub mod plan;
pub mod scan;
mod sizes;

use serde::{Deserialize, Serialize};

/// One of the two servers of a recovery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// The primary.
    Primary,
    /// The target.
    Target,
}

impl std::fmt::Display for Side {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Primary => "primary",
            Self::Target => "target",
        })
    }
}
