//! Who is the primary? Told by writing to every server all the time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use postgres::{Client, Config, NoTls};

use crate::cluster::Cluster;

/// Between two tries on a server.
const PAUSE: Duration = Duration::from_millis(20);

/// Before a server is tried again to which no connection came about, or which is a standby.
const LONGER: Duration = Duration::from_millis(50);

/// A write that a server has committed.
#[derive(Debug, Clone, Copy)]
struct Write {
    server: usize,
    begin: Instant,
    end: Instant,
}

/// Writes to every server, until this value is asked what it has seen.
#[derive(Debug)]
pub struct Watch {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Vec<Write>>>,
}

/// What was written in total.
#[derive(Debug)]
pub struct Seen {
    /// How often another server than before took a write.
    pub changes: usize,
    /// How many writes each server has committed.
    pub written: Vec<usize>,
    /// The longest time in which no server committed a write.
    pub longest_gap: Duration,
}

impl Watch {
    /// The table that it writes to, on the primary.
    pub fn prepare(primary: &Cluster) {
        primary.execute("CREATE TABLE witnessed (server int)");
    }

    /// Begins.
    pub fn of(servers: &[&Cluster]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = servers.iter().enumerate().map(|(server, cluster)| {
            let (config, stop) = (cluster.config(), Arc::clone(&stop));
            std::thread::spawn(move || write_to(server, &config, &stop))
        });
        let threads = threads.collect();
        Self { stop, threads }
    }

    /// Ends. Each promotion is one change: of two primaries at a time the writes would alternate. Only a write that began when the one
    /// before had ended counts: a server may answer late, or the thread that asks it be held up.
    #[track_caller]
    pub fn stop(self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        let of_each: Vec<Vec<Write>> =
            self.threads.into_iter().map(|thread| thread.join().expect("no panic")).collect();
        let written = of_each.iter().map(Vec::len).collect();
        let mut writes: Vec<Write> = of_each.into_iter().flatten().collect();
        writes.sort_by_key(|write| write.end);
        let gaps = writes.windows(2).map(|pair| pair[1].end - pair[0].end);
        let longest_gap = gaps.max().unwrap_or_default();
        let (mut changes, mut last) = (0, writes.first().copied());
        for write in writes {
            if last.is_some_and(|last| write.server != last.server && write.begin > last.end) {
                (changes, last) = (changes + 1, Some(write));
            }
        }
        Seen { changes, written, longest_gap }
    }
}

fn write_to(server: usize, config: &Config, stop: &AtomicBool) -> Vec<Write> {
    let mut writes = Vec::new();
    let mut client: Option<Client> = None;
    while !stop.load(Ordering::Relaxed) {
        let Some(connected) = client.as_mut().filter(|client| !client.is_closed()) else {
            client = config.connect(NoTls).ok();
            std::thread::sleep(if client.is_some() { Duration::ZERO } else { LONGER });
            continue;
        };
        let begin = Instant::now();
        let sql = format!("INSERT INTO witnessed VALUES ({server})");
        let pause = match connected.batch_execute(&sql) {
            Ok(()) => {
                writes.push(Write { server, begin, end: Instant::now() });
                PAUSE
            }
            Err(_) => LONGER,
        };
        std::thread::sleep(pause);
    }
    writes
}
