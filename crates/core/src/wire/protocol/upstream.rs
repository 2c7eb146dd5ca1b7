//! What the server is that a standby follows.

use serde::{Deserialize, Serialize};

/// What answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// A primary of this system, on this timeline.
    Primary(u32),
    /// A standby of this system: whether its primary lives only that one knows.
    Standby,
    /// A server of another system.
    Other,
    /// A server that lives, and did not say what it is: its refusal, or what else shows that it lives.
    Lives(String),
    /// Whether one lives is not known, for this reason.
    Unknown(String),
}

impl Answer {
    /// Whether it is a primary, or may be one.
    pub const fn may_be_primary(&self) -> bool {
        matches!(self, Self::Primary(_) | Self::Lives(_) | Self::Unknown(_))
    }
}
