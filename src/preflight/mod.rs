//! What must be true before a recovery changes anything: the same questions for `pgpool_recovery_check`, which shows all
//! answers, and for the recovery, which stops at the first bad one.

mod approach;
pub(crate) mod authority;
pub(crate) mod configuration;
pub(crate) mod one_host;
pub(crate) mod situation;

pub(crate) use self::approach::{Ready, run, run_all};
