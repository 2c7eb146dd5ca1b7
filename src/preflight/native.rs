//! Questions about this server that only native replication and snapshot isolation mode ask: what a second stage is going to need,
//! which waits for it while all clients wait.

use pgpool_recovery_core::error::{Error, Kind, Result};
use pgpool_recovery_core::preflight::Finding;

use crate::pg::{catalog, sequences};

/// All of them. None is a reason to refuse a first stage: much may have changed when the second begins.
pub(crate) fn findings() -> Result<Vec<Finding>> {
    Ok(vec![
        Finding::advice("background_worker", worker()?),
        Finding::advice("prepared_transactions", prepared(catalog::prepared_transactions()?)),
        Finding::advice("subscriptions", subscribed(catalog::enabled_subscriptions()?)),
    ])
}

/// Whether sequences can be flushed.
fn worker() -> Result<Result<String>> {
    match sequences::try_worker() {
        Err(error) if error.kind != Kind::LimitExceeded => Err(error),
        tried => Ok(tried.map(|()| "one is free to flush sequences".to_owned())),
    }
}

fn prepared(count: u64) -> Result<String> {
    if count == 0 {
        return Ok("there is none".to_owned());
    }
    Err(Error::new(Kind::WrongState, format!("prepared transactions on this server: {count}"))
        .detail("The second stage waits for their end, and fails if its time is over before.")
        .hint(
            "See pg_prepared_xacts, and end them with COMMIT PREPARED or ROLLBACK PREPARED before it begins.",
        ))
}

fn subscribed(count: u64) -> Result<String> {
    if count == 0 {
        return Ok("none is enabled".to_owned());
    }
    Err(Error::new(Kind::WrongState, format!("enabled subscriptions on this server: {count}"))
        .detail("The node that is recovered gets them, too, and receives the same changes a second time.")
        .hint("Disable them for the time of the recovery, and on the recovered node for good."))
}
