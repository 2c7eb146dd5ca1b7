//! May this target be replaced? Facts in, findings out.

mod check_target;
mod finding;
pub mod follow;
pub mod hot_standby;
pub mod promote;

pub use check_target::{
    BACKUP_LABEL, OwnWal, PrimaryIdentity, Strategy, apart, check_target, clocks, strategy,
};
pub use finding::Finding;
