//! `pgpool_recovery_status`: the running and the last recovery of each target.

use std::time::Duration;

use pgpool_recovery_e2e::background::Running;
use pgpool_recovery_e2e::cluster::Stop;
use pgpool_recovery_e2e::recovery::SqlError;
use pgpool_recovery_e2e::{Cluster, Host, Recovery, Scratch, wait, workload};
use postgres::Row;

const SQL: &str =
    "SELECT *, time_left::text AS left, started_at <= now() AS began, ended_at >= started_at AS ended
                   FROM pgpool_recovery_status WHERE directory = $1";

fn row(primary: &Cluster, target: &Cluster) -> Row {
    primary.connect().query_one(SQL, &[&target.dir()]).expect(SQL)
}

#[test]
fn a_recovery_is_seen_while_it_runs_and_when_it_has_ended() {
    let scratch = Scratch::new();
    let primary = Cluster::primary(&scratch);
    workload::fill(&primary, 30);
    primary.execute("CREATE ROLE watcher LOGIN; GRANT pg_monitor TO watcher");
    let target = Cluster::place(&scratch, &Host::here(), "target");
    let recovery = Recovery::of(&target, &primary)
        .option("dest_port", target.port())
        .option("jobs", 3)
        .option("max_rate", 6000);
    let running = Running::start(&primary, &recovery, "");

    let mut config = primary.config();
    let mut watcher = config.user("watcher").connect(postgres::NoTls).expect("a session");
    let (mut percent, mut seen, mut rate, mut behind) = (0, 0, 0_i64, 0_i64);
    while !running.has_ended() {
        if let Some(row) = watcher.query_opt(SQL, &[&target.dir()]).expect(SQL)
            && row.get::<_, &str>("state") == "running"
            && let Some(now) = row.get::<_, Option<i32>>("percent")
        {
            assert!((percent..=100).contains(&now), "{now} after {percent}");
            percent = now;
            assert_eq!(row.get::<_, Option<i32>>("pid"), Some(running.backend()));
            assert_eq!(row.get::<_, Option<bool>>("ended"), None);
            if row.get::<_, i64>("compared_bytes") > 0 {
                seen += 1;
                assert_eq!(row.get::<_, i32>("streams"), 3);
                rate = row.get("bytes_per_second");
                assert!(row.get::<_, Option<&str>>("left").is_some_and(|left| !left.contains('.')));
                // less than a segment of it is durable at its end, or after 16 MB
                primary.execute("SELECT pg_logical_emit_message(false, '', repeat('x', 100000))");
                behind = behind.max(row.get("wal_behind_bytes"));
                for (shown, ends) in [("rate", "B/s"), ("wal_behind", "B"), ("rate", "/s")] {
                    let shown: &str = row.get(shown);
                    assert!(shown.ends_with(ends) || shown.contains("bytes"), "{shown}");
                }
                assert_eq!(row.get::<_, &str>("transport"), "local");
                assert_eq!(row.get::<_, &str>("strategy"), "full");
            }
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    // 6000 kB/s, of which pages of zeros cost nothing
    assert!((1_000_000..30_000_000).contains(&rate), "{rate}");
    assert!(seen > 5 && percent > 30, "{seen} times, {percent} %");
    assert!((1..64 << 20).contains(&behind), "{behind} bytes of WAL");
    let report = running.finish_within(wait::PATIENCE).expect("the recovery");
    let done = row(&primary, &target);
    assert_eq!(done.get::<_, &str>("state"), "succeeded");
    assert_eq!((done.get::<_, i32>("percent"), done.get::<_, Option<i32>>("pid")), (100, None));
    assert_eq!(done.get::<_, i64>("sent_bytes"), i64::try_from(report.number("/bytes/sent")).expect("small"));
    assert_eq!(done.get::<_, Option<bool>>("ended"), Some(true));
    assert_eq!(done.get::<_, Option<i64>>("wal_behind_bytes"), None);
    assert_eq!(done.get::<_, &str>("target"), format!("localhost:{}", target.dir()));
    // for \\watch, side by side
    let columns: Vec<_> = done.columns().iter().take(8).map(|column| column.name()).collect();
    assert_eq!(
        columns,
        ["target", "state", "phase", "percent", "rate", "time_left", "wal_behind", "streams"]
    );

    // a restart of the server forgets nothing
    primary.stop(Stop::Fast);
    primary.start();
    let done = row(&primary, &target);
    assert_eq!((done.get::<_, &str>("state"), done.get::<_, i32>("percent")), ("succeeded", 100));
}

#[test]
fn what_ended_badly_says_how() {
    let scratch = Scratch::new();
    let primary = Cluster::primary(&scratch);
    workload::fill(&primary, 30);
    let target = Cluster::place(&scratch, &Host::here(), "target");
    let recovery =
        Recovery::of(&target, &primary).option("dest_port", target.port()).option("max_rate", 3000);
    let error = recovery.clone().option("replication_user", "nobody").fail(&primary);
    let failed = row(&primary, &target);
    assert_eq!(failed.get::<_, &str>("state"), "failed");
    assert_eq!(failed.get::<_, &str>("sqlstate"), error.sqlstate);
    assert_eq!(failed.get::<_, &str>("error"), error.message);
    assert_eq!(failed.get::<_, &str>("hint"), error.hint);

    let running = Running::start(&primary, &recovery, "");
    running.wait_for_bytes(&primary, 1 << 20);
    running.cancel();
    running.finish_within(wait::PATIENCE).expect_err("cancelled");
    let cancelled = row(&primary, &target);
    assert_eq!(
        (cancelled.get::<_, &str>("state"), cancelled.get::<_, &str>("sqlstate")),
        ("interrupted", "57014")
    );

    // an ERROR of PostgreSQL's own is no cancel
    let mut locked = primary.connect();
    let mut client = primary.connect();
    locked.batch_execute("BEGIN; LOCK TABLE pg_authid IN ACCESS EXCLUSIVE MODE").expect("locked");
    client.batch_execute("SET lock_timeout = '200ms'").expect("set");
    let error = SqlError::from(&recovery.call(&mut client).expect_err("a lock"));
    locked.batch_execute("ROLLBACK").expect("unlocked");
    assert_eq!(error.sqlstate, "55P03", "{error:?}");
    let failed = row(&primary, &target);
    assert_eq!((failed.get::<_, &str>("state"), failed.get::<_, &str>("sqlstate")), ("failed", "55P03"));
    assert_eq!(failed.get::<_, &str>("error"), error.message);
    primary.wait_for_log("failed: canceling statement due to lock timeout");

    // killed: no session is left to tell
    let running = Running::start(&primary, &recovery, "");
    running.wait_for_bytes(&primary, 1 << 20);
    let backend = rustix::process::Pid::from_raw(running.backend()).expect("a process");
    rustix::process::kill_process(backend, rustix::process::Signal::KILL).expect("killed");
    running.finish_within(wait::PATIENCE).expect_err("killed");
    wait::until_true("the server to be back", wait::PATIENCE, || {
        primary.config().connect(postgres::NoTls).is_ok()
    });
    let killed = row(&primary, &target);
    assert_eq!((killed.get::<_, &str>("state"), killed.get::<_, Option<i32>>("pid")), ("interrupted", None));
}
