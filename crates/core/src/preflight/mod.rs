//! May this target be replaced? Facts in, findings out.

pub mod chain;
mod check_target;
pub mod collation;
pub mod conflicting_settings;
mod finding;
pub mod follow;
pub mod minor_versions;
pub mod promote;
pub mod slot_limits;
pub mod standby_parameters;

pub use check_target::{
    BACKUP_LABEL, OwnWal, PrimaryIdentity, Strategy, apart, check_target, clocks, strategy,
};
pub use finding::Finding;
