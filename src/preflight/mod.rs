//! What must be true before a recovery changes anything: the same questions for `pgpool_recovery_check`, which shows all
//! answers, and for the recovery, which stops at the first bad one. `walk` has their order, the others ask them by subject.

pub(crate) mod authority;
pub(crate) mod configuration;
pub(crate) mod facts;
pub(crate) mod follow;
pub(crate) mod known_data;
pub(crate) mod native;
pub(crate) mod one_host;
mod primary;
pub(crate) mod reach;
mod replication;
pub(crate) mod stop;
mod tablespaces;
mod target;
mod walk;

pub(crate) use self::facts::PrimaryFacts;
pub(crate) use self::walk::{Ready, run, run_all};
