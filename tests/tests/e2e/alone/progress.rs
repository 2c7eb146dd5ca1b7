//! What others see of a running recovery.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use pgpool_recovery_e2e::background::Running;
use pgpool_recovery_e2e::{Cluster, Host, Recovery, Scratch, wait, workload};

/// PostgreSQL's phases of a base backup, in its order.
const PHASES: [&str; 6] = [
    "initializing",
    "waiting for checkpoint to finish",
    "estimating backup size",
    "streaming database files",
    "waiting for wal archiving to finish",
    "transferring wal files",
];

#[test]
fn phases_come_in_order_and_counters_only_grow() {
    let scratch = Scratch::alone();
    let primary = Cluster::primary(&scratch);
    workload::fill(&primary, 30);
    let target = Cluster::place(&scratch, &Host::here(), "target");
    let recovery =
        Recovery::of(&target, &primary).option("dest_port", target.port()).option("max_rate", 8000);
    let running = Running::start(&primary, &recovery, "");
    let mut client = primary.connect();
    let sql = "SELECT phase, coalesce(backup_total, 0) AS total, coalesce(backup_streamed, 0) AS streamed
               FROM pg_stat_progress_basebackup WHERE pid = $1";
    let (mut phase, mut streamed, mut changes) = (0, 0, Vec::new());
    let mut totals: BTreeMap<i64, usize> = BTreeMap::new();
    let start = Instant::now();
    while !running.has_ended() && start.elapsed() < wait::PATIENCE {
        if let Some(row) = client.query_opt(sql, &[&running.backend()]).expect(sql) {
            let name: String = row.get("phase");
            let now =
                PHASES.iter().position(|known| *known == name).unwrap_or_else(|| panic!("phase {name}"));
            assert!(now >= phase, "{name} after {}", PHASES[phase]);
            phase = now;
            let (total, bytes): (i64, i64) = (row.get("total"), row.get("streamed"));
            assert!(bytes >= streamed, "{bytes} after {streamed}");
            assert!(total == 0 || bytes <= total, "{bytes} of {total}");
            if bytes > streamed {
                changes.push(Instant::now());
            }
            streamed = bytes;
            *totals.entry(total).or_default() += 1;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let notices = running.notices();
    let report = running.finish_within(wait::PATIENCE).expect("the recovery");
    assert!(phase >= 3, "never seen streaming");
    assert!(changes.len() >= 3, "{changes:?}");
    let pauses = changes.windows(2).map(|pair| pair[1] - pair[0]).max().expect("several changes");
    assert!(pauses < Duration::from_secs(2), "no progress for {pauses:?}");
    let (most, _) = totals.last_key_value().expect("a total");
    assert!(u64::try_from(*most).expect("positive") >= report.number("/bytes/total") * 9 / 10, "{most}");
    assert_eq!(primary.get::<i64>("SELECT count(*) FROM pg_stat_progress_basebackup", &[]), 0);

    // A person at psql sees life, at a humane rate.
    let seconds = start.elapsed().as_secs() as usize;
    assert!(notices.iter().any(|notice| notice.contains('%')), "{notices:?}");
    assert!(notices.len() <= seconds + 12, "{} notices in {seconds} s: {notices:?}", notices.len());

    // And the log has its story, start to end.
    let log = primary.log();
    let lines: Vec<&str> =
        log.lines().filter(|line| line.contains("LOG:") && line.contains("pgpool_recovery")).collect();
    assert!((2..=20).contains(&lines.len()), "{lines:#?}");
    assert!(lines.iter().any(|line| line.contains(target.dir())), "{lines:#?}");
}
