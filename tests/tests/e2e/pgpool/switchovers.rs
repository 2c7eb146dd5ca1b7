//! One switchover after the other with writers at work: nothing that was committed is lost, there is never a second primary, and no
//! node is "up" that does not stream. Then the primary is killed.
//!
//! PGPOOL_RECOVERY_SWITCHOVERS (default 3) is how many there are.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use pgpool_recovery_e2e::pgpool;
use pgpool_recovery_e2e::primacy::Watch;
use pgpool_recovery_e2e::wait::{PATIENCE, until_true};
use postgres::{Client, Config, NoTls};

use super::lean::Lean;

const WRITERS: i32 = 3;

/// Writes numbers through Pgpool-II, each until it is committed. Tells how many are.
fn writer(id: i32, config: Config, stop: Arc<AtomicBool>) -> JoinHandle<i64> {
    std::thread::spawn(move || {
        let (mut committed, mut client): (i64, Option<Client>) = (0, None);
        while !stop.load(Ordering::Relaxed) {
            let Some(connected) = client.as_mut() else {
                client = config.connect(NoTls).ok();
                std::thread::sleep(Duration::from_millis(50));
                continue;
            };
            // of a commit that was not answered it is not known whether it took place
            let sql = format!("INSERT INTO numbers VALUES ({id}, {}) ON CONFLICT DO NOTHING", committed + 1);
            match connected.batch_execute(&sql) {
                Ok(()) => committed += 1,
                Err(_) => client = None,
            }
        }
        committed
    })
}

#[test]
fn writers_lose_nothing_and_never_have_two_primaries() {
    if pgpool::version() < (4, 3) {
        return;
    }
    let rounds = std::env::var("PGPOOL_RECOVERY_SWITCHOVERS");
    let rounds: usize = rounds.map_or(3, |rounds| rounds.parse().expect("a number"));
    let lean = Lean::new();
    lean.execute("CREATE TABLE numbers (writer int, number bigint, PRIMARY KEY (writer, number))");
    Watch::prepare(&lean.nodes[0]);
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> =
        (0..WRITERS).map(|id| writer(id, lean.pgpool.config(), Arc::clone(&stop))).collect();
    let watch = Watch::of(&lean.nodes.iter().collect::<Vec<_>>());
    let mut primary = 0;
    for round in 0..rounds {
        let next = [1, 0, 2][round % 3];
        let next = if next == primary { (next + 1) % 3 } else { next };
        lean.pgpool.pcp("pcp_promote_node", &["-s", "-n", &next.to_string()]).ok();
        lean.wait_for_promotion(next);
        for id in (0..3).filter(|id| *id != next) {
            lean.wait_for_follower(id, next);
        }
        primary = next;
    }
    stop.store(true, Ordering::Relaxed);
    let committed: Vec<i64> = writers.into_iter().map(|writer| writer.join().expect("no panic")).collect();
    for (id, node) in lean.nodes.iter().enumerate() {
        if id != primary {
            node.wait_for_what_is_flushed(&lean.nodes[primary]);
        }
        for (writer, committed) in (0..WRITERS).zip(&committed) {
            let sql = "SELECT count(*) FROM numbers WHERE writer = $1 AND number <= $2";
            assert_eq!(node.get::<i64>(sql, &[&writer, committed]), *committed, "{} lost some", node.name());
        }
    }
    lean.nodes[primary].kill();
    // the one that has more of what the watch goes on writing
    let promoted = || (0..3).find(|id| *id != primary && !lean.nodes[*id].in_recovery());
    until_true("one of the two others to be promoted", PATIENCE, || promoted().is_some());
    lean.wait_for_promotion(promoted().expect("one"));
    let seen = watch.stop();
    println!("{rounds} switchovers: {committed:?} committed, {seen:?}");
    assert!(committed.iter().all(|committed| *committed > 10), "{committed:?}");
    assert_eq!(seen.changes, rounds + 1, "{seen:?}");
}
