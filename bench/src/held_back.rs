//! What a copy holds back on the primary while it runs: WAL that is not removed, and rows that VACUUM does not remove.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use pgpool_recovery_e2e::Cluster;
use postgres::{Client, NoTls};

/// How often the primary is looked at.
const LOOK: Duration = Duration::from_millis(200);

/// A table that nothing else touches, to ask VACUUM.
const TABLE: &str = "bench_horizon";

/// The most that was seen.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct HeldBack {
    /// WAL since the oldest position of a slot, bytes.
    pub(crate) wal: u64,
    /// How many transactions VACUUM's horizon is behind.
    pub(crate) transactions: u64,
}

/// Looks at the primary until it is asked for the most it has seen.
pub(crate) struct Looking {
    is_over: Arc<AtomicBool>,
    thread: JoinHandle<Result<HeldBack, postgres::Error>>,
}

impl Looking {
    pub(crate) fn at(primary: &Cluster) -> Self {
        primary.execute(&format!("CREATE TABLE IF NOT EXISTS {TABLE} ()"));
        let said = Arc::new(Mutex::new(String::new()));
        let (sink, mut config) = (Arc::clone(&said), primary.config());
        config.notice_callback(move |notice| {
            let mut said = sink.lock().unwrap_or_else(PoisonError::into_inner);
            *said = format!("{}\n{}", notice.message(), notice.detail().unwrap_or_default());
        });
        let mut client = config.connect(NoTls).expect("a session");
        let is_over = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&is_over);
        let thread = std::thread::spawn(move || {
            let mut most = HeldBack::default();
            while !over.load(Ordering::Relaxed) {
                most.wal = most.wal.max(retained(&mut client)?);
                client.batch_execute(&format!("VACUUM (VERBOSE) {TABLE}"))?;
                let said = said.lock().unwrap_or_else(PoisonError::into_inner).clone();
                most.transactions = most.transactions.max(age(&said).unwrap_or(0));
                std::thread::sleep(LOOK);
            }
            Ok(most)
        });
        Self { is_over, thread }
    }

    pub(crate) fn most(self) -> HeldBack {
        self.is_over.store(true, Ordering::Relaxed);
        self.thread.join().expect("no panic there").expect("the primary answers")
    }
}

fn retained(client: &mut Client) -> Result<u64, postgres::Error> {
    let sql = "SELECT coalesce(max(pg_current_wal_lsn() - restart_lsn), 0)::bigint FROM pg_replication_slots";
    Ok(client.query_one(sql, &[])?.get::<_, i64>(0).unsigned_abs())
}

/// How old VACUUM says that its horizon is.
fn age(said: &str) -> Option<u64> {
    let (_, rest) = said.split_once("removable cutoff: ")?;
    let (_, rest) = rest.split_once("which was ")?;
    rest.split(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_age_is_what_vacuum_says() {
        let said = "finished vacuuming \"postgres.public.t\": index scans: 0\npages: 0 removed\n\
                    removable cutoff: 763, which was 12 XIDs old when operation ended\n";
        assert_eq!(age(said), Some(12));
        assert_eq!(age("vacuuming \"postgres.public.t\""), None);
    }
}
