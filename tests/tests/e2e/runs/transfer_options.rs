//! However the data travels, the standby comes out the same: every compression, through an agent, within the
//! primary's backend, or cloned by the file system.

use std::time::{Duration, Instant};

use pgpool_recovery_e2e::agent::{self, Agent};
use pgpool_recovery_e2e::cluster::Stop;
use pgpool_recovery_e2e::recovery::remote_start;
use pgpool_recovery_e2e::xfs::Xfs;
use pgpool_recovery_e2e::{Cluster, Host, Recovery, Scratch, compare, probe, workload};

#[test]
fn every_compression_and_transport_gives_the_same_standby() {
    let scratch = Scratch::new();
    let secret = agent::secret(&scratch, "secret");
    let primary = Cluster::place(&scratch, &Host::here(), "primary")
        .with("pgpool_recovery.secret_file", secret.display())
        .into_primary();
    workload::fill(&primary, 20);
    let target = Cluster::place(&scratch, &Host::here(), "target");
    let agent = Agent::start(&scratch, &Host::here(), &secret, &[target.directory()]);
    let ways = [("agent", "off"), ("agent", "lz4"), ("agent", "zstd"), ("agent", "auto"), ("local", "auto")];
    for (round, (transport, compression)) in (2..).zip(ways) {
        workload::change_every(&mut primary.connect(), round);
        let report = Recovery::to("127.0.0.1", target.dir(), primary.port())
            .option("transport", transport)
            .option("agent_port", agent.port())
            .option("compression", compression)
            .option("application_name", "target")
            .option("dest_port", target.port())
            .run(&primary);
        let (sent, wire) = (report.number("/bytes/sent"), report.number("/bytes/wire"));
        assert!(sent > 1 << 20, "{transport} {compression}: {}", report.0);
        match (transport, compression) {
            ("local", _) => assert_eq!(wire, 0),
            (_, "off") => assert!(wire > sent, "{}", report.0),
            // the rows are md5 sums and fillers
            (_, "lz4" | "zstd") => assert!(wire < sent / 2, "{}", report.0),
            _ => {}
        }
        remote_start(&primary, "127.0.0.1", target.dir());
        target.wait_for_replay(&primary);
        let sql = "SELECT count(*), sum(hashtext(filler)) FROM bulk";
        let (ours, theirs) = (primary.connect().query_one(sql, &[]), target.connect().query_one(sql, &[]));
        let row = |row: Result<postgres::Row, postgres::Error>| {
            let row = row.expect(sql);
            (row.get::<_, i64>(0), row.get::<_, i64>(1))
        };
        assert_eq!(row(ours), row(theirs), "{transport} {compression}");
        if round < 6 {
            target.stop(Stop::Immediate);
        }
    }
    compare::stop_and_compare(&primary, &target).assert_none();
}

#[test]
fn files_are_cloned_where_the_file_system_can() {
    for checksums in [false, true] {
        let scratch = Scratch::new();
        let xfs = Xfs::new(&scratch, 2000).unwrap_or_else(|reason| panic!("no XFS: {reason}"));
        let mut primary = Cluster::place(&scratch, &Host::here(), "primary").at(xfs.path().join("primary"));
        if checksums {
            primary = primary.initdb_argument("--data-checksums");
        }
        let primary = primary.into_primary();
        workload::fill(&primary, 20);
        let target = Cluster::place(&scratch, &Host::here(), "target").at(xfs.path().join("target"));
        for strategy in ["full", "delta"] {
            workload::change_every(&mut primary.connect(), 3);
            let report = Recovery::of(&target, &primary)
                .option("application_name", "target")
                .option("dest_port", target.port())
                .run(&primary);
            assert_eq!(report.text("/strategy"), strategy);
            assert_eq!(report.number("/bytes/cloned"), report.number("/bytes/total"), "{}", report.0);
            assert_eq!(report.number("/bytes/compared"), report.number("/bytes/total"), "{}", report.0);
            assert_eq!(report.number("/bytes/sent"), 0, "{}", report.0);
            remote_start(&primary, "localhost", target.dir());
            // what the primary writes to blocks it shares with the standby must not show there
            workload::change_every(&mut primary.connect(), 2);
            target.wait_for_replay(&primary);
            if strategy == "full" {
                target.kill();
            }
        }
        compare::stop_and_compare(&primary, &target).assert_none();
    }
}

/// Flips a bit in a table of the primary; returns the table's file.
fn corrupt_block_3(primary: &Cluster) -> String {
    let file: String = primary.get("SELECT pg_relation_filepath('bulk')", &[]);
    primary.stop(Stop::Fast);
    let path = primary.directory().join(&file);
    let mut content = std::fs::read(&path).expect("the table");
    content[3 * 8192 + 4000] ^= 1;
    std::fs::write(&path, content).expect("the table");
    primary.start();
    file
}

#[test]
fn a_corrupt_page_is_found_on_every_transport() {
    let scratch = Scratch::new();
    let secret = agent::secret(&scratch, "secret");
    let primary = probe::quiet(Cluster::place(&scratch, &Host::here(), "primary"))
        .with("pgpool_recovery.secret_file", secret.display())
        .initdb_argument("--data-checksums")
        .into_primary();
    workload::fill(&primary, 5);
    let standby = Cluster::standby_by_basebackup(&primary, &Host::here(), "standby");
    standby.kill();
    let file = corrupt_block_3(&primary);
    let agent = Agent::start(&scratch, &Host::here(), &secret, &[standby.directory()]);
    for transport in ["agent", "local"] {
        let recovery = Recovery::to("127.0.0.1", standby.dir(), primary.port())
            .option("transport", transport)
            .option("agent_port", agent.port());
        recovery.fail(&primary).expect("XX001").says(&file).says("block 3");
        assert!(!standby.has("global/pg_control"), "{transport}: it could be started");
        probe::assert_nothing_left(&primary);
    }
    // with checksums off the page is copied as it is
    let recovery =
        Recovery::of(&standby, &primary).option("transport", "local").option("verify_checksums", false);
    recovery.run(&primary);
    assert!(standby.has("global/pg_control"));
}

#[test]
fn a_corrupt_page_is_found_although_files_are_cloned() {
    let scratch = Scratch::new();
    let xfs = Xfs::new(&scratch, 1000).unwrap_or_else(|reason| panic!("no XFS: {reason}"));
    let primary = probe::quiet(Cluster::place(&scratch, &Host::here(), "primary"))
        .at(xfs.path().join("primary"))
        .initdb_argument("--data-checksums")
        .into_primary();
    workload::fill(&primary, 5);
    let file = corrupt_block_3(&primary);
    let target = Cluster::place(&scratch, &Host::here(), "target").at(xfs.path().join("target"));
    let recovery = Recovery::of(&target, &primary).option("dest_port", target.port());
    recovery.fail(&primary).expect("XX001").says(&file).says("block 3");
    assert!(!target.has("global/pg_control"), "it could be started");
    probe::assert_nothing_left(&primary);
}

#[test]
fn a_rate_limit_holds_back_every_transport() {
    let scratch = Scratch::new();
    let secret = agent::secret(&scratch, "secret");
    let primary = Cluster::place(&scratch, &Host::here(), "primary")
        .with("pgpool_recovery.secret_file", secret.display())
        .into_primary();
    workload::fill(&primary, 5);
    for transport in ["agent", "local"] {
        let target = Cluster::place(&scratch, &Host::here(), transport);
        let agent = Agent::start(&scratch, &Host::here(), &secret, &[target.directory()]);
        let started = Instant::now();
        let report = Recovery::to("127.0.0.1", target.dir(), primary.port())
            .option("transport", transport)
            .option("agent_port", agent.port())
            .option("dest_port", target.port())
            .option("max_rate", 20_000)
            .run(&primary);
        let bytes = report.number("/bytes/sent");
        let least = Duration::from_secs_f64(bytes as f64 / 20_480_000.0 * 0.95);
        assert!(started.elapsed() > least, "{transport}: {bytes} bytes in {:?}", started.elapsed());
    }
}
