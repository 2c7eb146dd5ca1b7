//! Something else works where a recovery does, and targets that hold what this primary never saw.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use pgpool_recovery_e2e::background::Running;
use pgpool_recovery_e2e::cluster::Stop;
use pgpool_recovery_e2e::recovery::{remote_start, try_remote_start};
use pgpool_recovery_e2e::scratch::write_as_postgres;
use pgpool_recovery_e2e::stage::{Condition, Stage};
use pgpool_recovery_e2e::{
    Cluster, Host, Recovery, Scratch, SqlError, account, compare, process, wait, workload,
};
use serde_json::json;

const LIMIT: Duration = Duration::from_secs(180);

/// What `pgpool_recovery_check` says of whose the directory is.
fn identity(primary: &Cluster, target: &Cluster, options: &serde_json::Value) -> (bool, String) {
    let sql = "SELECT ok, concat_ws(' ', detail, hint) FROM pgpool_recovery_check('localhost', $1, $2, $3)
               WHERE step = 'target_identity'";
    let port = i32::from(primary.port());
    let row = primary.connect().query_one(sql, &[&target.dir(), &port, options]).expect(sql);
    (row.get(0), row.get(1))
}

#[test]
fn a_cluster_made_while_the_checkpoint_was_awaited_is_left_alone() {
    let scratch = Scratch::new();
    let primary = Cluster::primary(&scratch);
    workload::fill(&primary, 20);
    workload::change_every(&mut primary.connect(), 1);
    let target = Cluster::place(&scratch, &Host::here(), "target");
    let recovery = Recovery::of(&target, &primary)
        .option("dest_port", target.port())
        .option("wait_for_checkpoint", true);
    let running = Running::start(&primary, &recovery, "");
    let backend = running.backend();
    let sql = "SELECT count(*) = 1 FROM pg_stat_progress_basebackup
               WHERE pid = $1 AND phase = 'waiting for checkpoint to finish'";
    wait::until_true("the checkpoint's phase", LIMIT, || primary.get(sql, &[&backend]));

    let target = target.init();
    target.start();
    target.execute("CREATE TABLE precious AS SELECT 1 AS i");
    target.stop(Stop::Fast);
    let identifier = target.control("Database system identifier");
    assert!(!running.has_ended(), "the checkpoint took less time than a cluster takes to be made");
    // the one that is waited for hurries up
    primary.execute("CHECKPOINT");

    let error = running.finish_within(LIMIT).expect_err("it is not what was checked");
    SqlError::from(&error).expect("55006").says("was changed after it was checked").says("was empty");
    assert_eq!(target.control("Database system identifier"), identifier);
    assert!(!target.has("pgpool_recovery.incomplete"));
    target.start();
    assert_eq!(target.get::<i32>("SELECT i FROM precious", &[]), 1);
}

/// rsync, restic, or an old recovery script: they write a file of another name and rename it.
#[test]
fn a_file_that_another_tool_replaced_fails_the_run_and_the_next_one_heals_it() {
    let scratch = Scratch::new();
    let primary = Cluster::primary(&scratch);
    primary.execute("CREATE TABLE precious AS SELECT i FROM generate_series(1, 60000) AS i");
    workload::fill(&primary, 30);
    let standby = Cluster::standby_by_basebackup(&primary, &Host::here(), "standby");
    standby.stop(Stop::Fast);
    workload::change_every(&mut primary.connect(), 1);
    let file: String = primary.get("SELECT pg_relation_filepath('precious')", &[]);

    let slow = Recovery::of(&standby, &primary).option("max_rate", 10000).option("jobs", 1);
    // everything that comes before the big table in the order of names, and some of that
    let before: i64 = primary
        .get("SELECT sum(pg_database_size(oid))::bigint FROM pg_database WHERE datname <> 'postgres'", &[]);
    let running = Running::start(&primary, &slow, "");
    running.wait_for_bytes(&primary, before + (12 << 20));
    let (path, other) = (standby.directory().join(&file), standby.directory().join("base/.precious.Xy12"));
    let size = usize::try_from(fs::metadata(&path).expect("it is there").len()).expect("small");
    fs::write(&other, vec![0; size]).expect("written");
    account::give(&other);
    fs::rename(&other, &path).expect("renamed");
    assert!(!running.has_ended());

    let error = running.finish_within(LIMIT).expect_err("its content is not the primary's");
    SqlError::from(&error).expect("55006").says("replaced").says(&file);
    assert!(standby.has("pgpool_recovery.incomplete"));
    assert!(!standby.try_start().status.success(), "an incomplete target started");
    let _ = try_remote_start(&primary, "localhost", standby.dir()).expect_err("it is incomplete");
    Recovery::of(&standby, &primary).run(&primary);
    remote_start(&primary, "localhost", standby.dir());
    assert_eq!(standby.get::<i64>("SELECT count(*) FROM precious", &[]), 60_000);
    compare::stop_and_compare(&primary, &standby).assert_none();
}

#[test]
fn a_cluster_that_was_put_where_a_recovery_was_interrupted_is_another_cluster() {
    let scratch = Scratch::new();
    let primary = Cluster::primary(&scratch);
    let other = Cluster::place(&scratch, &Host::here(), "other").init();
    let marker = json!({
        "note": "", "timeline": 1, "started": 0,
        "system_identifier": primary.control("Database system identifier").parse::<u64>().expect("a number"),
    });
    let path = other.directory().join("pgpool_recovery.incomplete");
    write_as_postgres(&path, &marker.to_string(), 0o600);

    let (ok, told) = identity(&primary, &other, &json!({}));
    assert!(!ok && told.contains("pg_control is in place again"), "{told}");
    let before = other.control("Database system identifier");
    Recovery::of(&other, &primary)
        .option("dest_port", other.port())
        .fail(&primary)
        .expect("55000")
        .says("belongs to another cluster");
    assert_eq!(other.control("Database system identifier"), before);

    let any = Recovery::of(&other, &primary).option("overwrite", "any_cluster");
    assert!(identity(&primary, &other, &json!({ "overwrite": "any_cluster" })).0);
    any.option("dest_port", other.port()).run(&primary);
    assert!(!other.has("pgpool_recovery.incomplete"));
    remote_start(&primary, "localhost", other.dir());
    assert!(other.in_recovery());
}

/// After a split brain the wrong half was chosen.
#[test]
fn a_target_on_a_later_timeline_is_lost_only_on_demand() {
    let scratch = Scratch::new();
    let primary = Cluster::primary(&scratch);
    workload::fill(&primary, 5);
    let ahead = Cluster::standby_by_basebackup(&primary, &Host::here(), "ahead");
    ahead.promote();
    ahead.execute("CREATE TABLE newer AS SELECT 1 AS i");
    ahead.stop(Stop::Fast);
    let (ok, told) = identity(&primary, &ahead, &json!({}));
    assert!(!ok && told.contains("timeline 2"), "{told}");
    Recovery::of(&ahead, &primary)
        .fail(&primary)
        .expect("55000")
        .says("ahead of this primary")
        .says("timeline 2, this primary on timeline 1")
        .says("any_cluster");
    ahead.start();
    assert_eq!(ahead.get::<i32>("SELECT i FROM newer", &[]), 1);
    // killed, its last checkpoint may be one of the former timeline
    ahead.kill();
    Recovery::of(&ahead, &primary).fail(&primary).expect("55000").says("ahead of this primary");

    let any = Recovery::of(&ahead, &primary).option("overwrite", "any_cluster");
    let (ok, told) = identity(&primary, &ahead, &json!({ "overwrite": "any_cluster" }));
    assert!(ok && told.contains("later timeline (2)"), "{told}");
    any.run(&primary);
    remote_start(&primary, "localhost", ahead.dir());
    primary.execute("INSERT INTO accounts (note) VALUES ('after')");
    ahead.wait_for_replay(&primary);
    assert!(ahead.in_recovery());
    assert_eq!(ahead.get::<i64>("SELECT count(*) FROM pg_class WHERE relname = 'newer'", &[]), 0);
}

/// Two standbys that were promoted apart are on timelines of the same number.
#[test]
fn a_target_that_was_promoted_apart_from_its_primary_is_lost_only_on_demand() {
    let scratch = Scratch::new();
    let primary = Cluster::primary(&scratch);
    workload::fill(&primary, 5);
    let apart = Cluster::standby_by_basebackup(&primary, &Host::here(), "apart");
    let chosen = Cluster::standby_by_basebackup(&primary, &Host::here(), "chosen");
    apart.wait_for_replay(&primary);
    apart.promote();
    apart.execute("CREATE TABLE newer AS SELECT 1 AS i");
    primary.execute("INSERT INTO accounts (note) VALUES ('meanwhile')");
    chosen.wait_for_replay(&primary);
    primary.stop(Stop::Fast);
    chosen.promote();
    chosen.execute("CREATE TABLE longer AS SELECT i FROM generate_series(1, 10000) i");
    apart.stop(Stop::Fast);

    let (ok, told) = identity(&chosen, &apart, &json!({}));
    assert!(!ok && told.contains("timeline of its own"), "{told}");
    let refused = Recovery::of(&apart, &chosen).fail(&chosen).expect("55000");
    refused.says("ahead of this primary").says("It is on timeline 2, begun at 0/").says("any_cluster");
    apart.start();
    assert_eq!(apart.get::<i32>("SELECT i FROM newer", &[]), 1);
    apart.stop(Stop::Fast);

    Recovery::of(&apart, &chosen).option("overwrite", "any_cluster").run(&chosen);
    remote_start(&chosen, "localhost", apart.dir());
    apart.wait_for_replay(&chosen);
    // the primary before both is on a timeline that the chosen one comes from
    assert!(identity(&chosen, &primary, &json!({})).0);
}

/// Timelines and positions are the same, and so are the history files: the WAL tells it. The standby of the other one may not follow.
#[test]
fn one_that_was_promoted_at_the_same_position_is_lost_only_on_demand() {
    let scratch = Scratch::new();
    let primary = Cluster::place(&scratch, &Host::here(), "primary").into_primary();
    let apart = Cluster::standby_by_basebackup(&primary, &Host::here(), "apart");
    let chosen = Cluster::standby_by_basebackup(&primary, &Host::here(), "chosen");
    primary.execute("CREATE TABLE kept AS SELECT 1 AS i");
    primary.stop(Stop::Fast);
    for promoted in [&apart, &chosen] {
        promoted.promote();
    }
    let of = Cluster::standby_by_basebackup(&apart, &Host::here(), "of_apart");
    apart.execute("CREATE TABLE newer AS SELECT 1 AS i");
    of.wait_for_replay(&apart);
    // it comes further than the other one, with which a backup has switched segments
    for i in 0..4 {
        chosen.execute(&format!("CREATE TABLE longer_{i} AS SELECT 1 AS i; SELECT pg_switch_wal()"));
    }
    assert_eq!(apart.read("pg_wal/00000002.history"), chosen.read("pg_wal/00000002.history"));

    let sql = "SELECT pgpool_recovery_follow('localhost', $1, $2, $3, $4, 0, '{\"transport\": \"local\"}')";
    let (port, own) = (i32::from(of.port()), i32::from(chosen.port()));
    let error = chosen.connect().query_one(sql, &[&of.dir(), &port, &chosen.host().address(), &own]);
    let error = SqlError::from(&error.expect_err("it has what the chosen one has not"));
    error.expect("55000").says("has diverged").says("promoted apart");
    assert!(of.in_recovery());

    for other in [&of, &apart] {
        other.stop(Stop::Fast);
        let (ok, told) = identity(&chosen, other, &json!({}));
        assert!(!ok && told.contains("timeline of its own"), "{told}");
        let refused = Recovery::of(other, &chosen).fail(&chosen).expect("55000");
        refused
            .says("ahead of this primary")
            .says("It is on timeline 2, where its WAL at 0/")
            .says("any_cluster");
        other.start();
        assert_eq!(other.get::<i32>("SELECT i FROM newer", &[]), 1);
        other.stop(Stop::Fast);
    }
    Recovery::of(&apart, &chosen).option("overwrite", "any_cluster").run(&chosen);
    remote_start(&chosen, "localhost", apart.dir());
    apart.wait_for_replay(&chosen);
    // it is the chosen one's own now
    apart.stop(Stop::Fast);
    assert!(identity(&chosen, &apart, &json!({})).0);
}

fn copy(from: &Path, to: &Path) {
    let mut copy = Command::new("cp");
    copy.arg("-a").arg(from).arg(to);
    process::run(copy).ok();
}

/// Timelines do not tell it.
#[test]
fn a_target_that_has_more_than_a_primary_put_back_to_a_snapshot_is_lost_only_on_demand() {
    let stage = Stage::builder().standby(Condition::Running).build();
    let (primary, target) = (&stage.primary, &stage.target);
    let snapshot = stage.scratch.join("snapshot");
    primary.stop(Stop::Fast);
    copy(primary.directory(), &snapshot);
    primary.start();
    primary.execute("CREATE TABLE newer AS SELECT i FROM generate_series(1, 10000) i");
    target.wait_for_replay(primary);
    target.stop(Stop::Fast);
    primary.stop(Stop::Fast);
    fs::remove_dir_all(primary.directory()).expect("removed");
    copy(&snapshot, primary.directory());
    primary.start();

    let error = stage.recovery().fail(primary).expect("55000");
    error.says("ahead of this primary").says("of timeline 1, this primary at 0/").says("any_cluster");
    let (ok, told) = identity(primary, target, &json!({}));
    assert!(!ok && told.contains("of timeline 1"), "{told}");
    target.start();
    assert_eq!(target.get::<i64>("SELECT count(*) FROM newer", &[]), 10_000);

    target.stop(Stop::Fast);
    stage.recovery().option("overwrite", "any_cluster").run(primary);
    stage.remote_start();
    target.wait_for_replay(primary);
}

#[test]
fn wal_of_the_old_primary_that_was_never_archived_is_told() {
    let scratch = Scratch::new();
    let primary = Cluster::primary(&scratch);
    let old = Cluster::standby_by_basebackup(&primary, &Host::here(), "old");
    old.kill();
    for name in ["0000000100000000000000A1", "0000000100000000000000A2"] {
        write_as_postgres(&old.directory().join(format!("pg_wal/archive_status/{name}.ready")), "", 0o600);
    }
    let sql =
        "SELECT ok, detail FROM pgpool_recovery_check('localhost', $1, $2) WHERE step = 'unarchived_wal'";
    let row = primary.connect().query_one(sql, &[&old.dir(), &i32::from(primary.port())]).expect(sql);
    let (ok, told): (bool, String) = (row.get(0), row.get(1));
    assert!(!ok && told.contains("never archived: 2"), "{told}");
    let report = Recovery::of(&old, &primary).run(&primary);
    assert!(report.at("/warnings").to_string().contains("never archived: 2"), "{}", report.0);
    remote_start(&primary, "localhost", old.dir());
}
