//! A gigabyte, a relation of two segments, and a link that is cut at nine tenths: the next run sends the rest.

use std::time::Duration;

use pgpool_recovery_e2e::background::Running;
use pgpool_recovery_e2e::proxy::{Proxy, Weather};
use pgpool_recovery_e2e::{Stage, Transport, compare, workload};

#[test]
fn a_gigabyte_is_not_sent_again() {
    let stage = Stage::builder()
        .with("max_wal_size", "4GB")
        .with("wal_compression", "on")
        .with("autovacuum", "off")
        .through(Transport::Agent)
        .build();
    let (primary, target) = (&stage.primary, &stage.target);
    // one row to a page, and more pages than a segment holds
    primary.execute(
        "CREATE TABLE large (id integer, filler text);
         ALTER TABLE large ALTER filler SET STORAGE PLAIN;
         INSERT INTO large SELECT i, md5(i::text) || repeat('x', 7968) FROM generate_series(1, 140000) i",
    );
    let path: String = primary.get("SELECT pg_relation_filepath('large') || '.1'", &[]);
    assert!(primary.has(&path), "one segment only");
    workload::settle(primary);
    let proxy = Proxy::to(stage.agent().port());
    let recovery = stage.recovery().option("agent_port", proxy.port());

    let running = Running::start(primary, &recovery.clone().option("max_rate", 300_000), "");
    let size = workload::size(primary);
    running.wait_for_bytes(primary, i64::try_from(size / 10 * 9).expect("a size"));
    proxy.set(Weather::Cut);
    running.finish_within(Duration::from_secs(30)).expect_err("the link is cut");
    proxy.set(Weather::Fair);

    let report = recovery.run_when_let_in(primary);
    let (sent, total) = (report.number("/bytes/sent"), report.number("/bytes/total"));
    assert!(total > 1 << 30, "{}", report.0);
    assert!(sent < total / 5, "{sent} of {total} bytes were sent again");
    stage.remote_start();
    compare::stop_and_compare(primary, target).assert_none();
}
