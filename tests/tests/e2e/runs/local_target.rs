//! Rebuilding a standby on the primary's own host, without an agent.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};

use pgpool_recovery_e2e::cluster::Stop;
use pgpool_recovery_e2e::recovery::remote_start;
use pgpool_recovery_e2e::scratch::write_as_postgres;
use pgpool_recovery_e2e::stage::Condition;
use pgpool_recovery_e2e::{Cluster, Host, Recovery, Scratch, Stage, account, compare, dump, probe, workload};

/// A running primary with data, and a standby of it, killed.
fn stage() -> Stage {
    Stage::builder().filled(20).standby(Condition::Killed).build()
}

#[test]
fn a_killed_standby_is_rebuilt_and_streams() {
    let stage = stage();
    let (primary, standby) = (&stage.primary, &stage.target);
    workload::change_every(&mut primary.connect(), 10);
    let identifier = primary.control("Database system identifier");

    let report = Recovery::of(standby, primary).option("application_name", "target").run(primary);
    assert_eq!(report.text("/target/host"), "localhost");
    assert_eq!(report.text("/target/dir"), standby.dir());
    assert_eq!(report.text("/target/transport"), "local");
    assert_eq!(report.at("/source/system_identifier").to_string().trim_matches('"'), identifier);
    assert_eq!(report.number("/source/timeline"), 1);
    assert!(report.number("/files/total") > 500);
    assert!(report.number("/bytes/sent") < report.number("/bytes/total") / 2, "{}", report.0);
    assert_eq!(probe::slots(primary), ["localhost"]);

    remote_start(primary, "localhost", standby.dir());
    primary.wait_for_standby("target");
    assert!(standby.in_recovery());
    primary.execute("INSERT INTO accounts (note) VALUES ('after')");
    standby.wait_for_replay(primary);
    assert_eq!(standby.get::<i64>("SELECT count(*) FROM accounts WHERE note = 'after'", &[]), 1);
    dump::assert_equal(primary, standby);
    dump::assert_amcheck_clean(standby);
    compare::stop_and_compare(primary, standby).assert_none();
}

#[test]
fn a_primary_at_rest_is_copied_bit_by_bit() {
    let scratch = Scratch::new();
    let primary = Cluster::place(&scratch, &Host::here(), "primary").with("autovacuum", "off").into_primary();
    workload::fill(&primary, 5);
    workload::settle(&primary);
    let target = Cluster::place(&scratch, &Host::here(), "target");
    Recovery::of(&target, &primary).option("dest_port", target.port()).run(&primary);
    remote_start(&primary, "localhost", target.dir());
    compare::stop_and_compare(&primary, &target).assert_identical();
}

#[test]
fn a_new_node_needs_no_directory_and_keeps_its_port() {
    let scratch = Scratch::new();
    let primary = Cluster::primary(&scratch);
    workload::fill(&primary, 5);
    let target = Cluster::place(&scratch, &Host::here(), "new");
    let with_port = Recovery::of(&target, &primary).option("dest_port", target.port()).option("start", true);
    with_port.run(&primary);
    assert!(target.in_recovery());
    let metadata = fs::metadata(target.directory()).expect("the new directory");
    let owner = fs::metadata(primary.directory()).expect("the primary's directory");
    assert_eq!(metadata.mode() & 0o7777, owner.mode() & 0o7777);
    assert_eq!((metadata.uid(), metadata.gid()), (owner.uid(), owner.gid()));
    dump::assert_equal(&primary, &target);

    // Once it has a configuration of its own, that decides.
    for recovery in [Recovery::of(&target, &primary), with_port.option("dest_port", 1)] {
        target.stop(Stop::Fast);
        recovery.option("start", true).run(&primary);
        assert!(target.in_recovery());
    }
}

#[test]
fn an_empty_directory_will_do() {
    let scratch = Scratch::new();
    let primary = Cluster::primary(&scratch);
    let target = Cluster::place(&scratch, &Host::here(), "empty");
    scratch.mkdir("empty");
    let report = Recovery::of(&target, &primary).option("dest_port", target.port()).run(&primary);
    assert_eq!(report.number("/files/removed"), 0);
    remote_start(&primary, "localhost", target.dir());
    assert!(target.in_recovery());
}

#[test]
fn the_standby_is_told_whom_to_follow() {
    let stage = stage();
    let (primary, standby) = (&stage.primary, &stage.target);
    Recovery::of(standby, primary)
        .option("node_id", 7)
        .option("application_name", "server%n")
        .option("slot_name", "Node-%n")
        .option("primary_host", "127.0.0.1")
        .option("replication_user", "postgres")
        .option("restore_command", "false '%f' \"%p\"")
        .run(primary);
    let conf = standby.read("myrecovery.conf");
    for wanted in [
        "primary_conninfo = 'host=127.0.0.1 ",
        &format!(" port={} ", primary.port()),
        "user=postgres",
        "application_name=server7",
        "recovery_target_timeline = 'latest'",
        "primary_slot_name = 'node_7'",
        "restore_command = 'false ''%f'' \"%p\"'",
    ] {
        assert!(conf.contains(wanted), "no {wanted} in:\n{conf}");
    }
    assert!(standby.has("standby.signal"));
    assert!(standby.read("postgresql.conf").contains("include_if_exists"));
    assert_eq!(probe::slots(primary), ["node_7"]);
    remote_start(primary, "localhost", standby.dir());
    primary.wait_for_standby("server7");
    let sql = "SELECT slot_name::text FROM pg_replication_slots WHERE active";
    assert_eq!(primary.get::<String>(sql, &[]), "node_7");
}

#[test]
fn without_a_slot_there_is_none() {
    let stage = stage();
    let (primary, standby) = (&stage.primary, &stage.target);
    Recovery::of(standby, primary).option("slot_name", "").run(primary);
    assert_eq!(probe::slots(primary), Vec::<String>::new());
    assert!(standby.read("myrecovery.conf").contains("primary_slot_name = ''\n"));
}

#[test]
fn a_second_run_sends_next_to_nothing() {
    let stage = stage();
    let (primary, standby) = (&stage.primary, &stage.target);
    Recovery::of(standby, primary).run(primary);
    let again = Recovery::of(standby, primary).run(primary);
    let (sent, total) = (again.number("/bytes/sent"), again.number("/bytes/total"));
    assert!(sent < total / 50, "{sent} of {total} bytes sent");
    remote_start(primary, "localhost", standby.dir());
    compare::stop_and_compare(primary, standby).assert_none();
}

#[test]
fn what_does_not_belong_there_is_removed() {
    let stage = stage();
    let (primary, standby) = (&stage.primary, &stage.target);
    let sql = "CREATE TABLE dropped AS SELECT 1 AS one";
    primary.execute(sql);
    let dropped: String = primary.get("SELECT pg_relation_filepath('dropped')", &[]);
    primary.execute("DROP TABLE dropped; CHECKPOINT");
    let leftovers = [
        "recovery.conf",
        "recovery.done",
        "recovery.signal",
        "backup_label",
        "tablespace_map",
        "postmaster.pid.old",
        "foreign.txt",
        "base/1/999999",
        "pg_wal/0000000100000000000000F0",
        "pg_xact/00FF",
        "pg_stat_tmp/x.stat",
        "base/pgsql_tmp/pgsql_tmp1.0",
        &dropped,
    ];
    fs::create_dir_all(standby.directory().join("base/pgsql_tmp")).expect("a directory");
    fs::create_dir_all(standby.directory().join("pg_replslot/old_slot")).expect("a directory");
    fs::create_dir_all(standby.directory().join("foreign/deep/down")).expect("a directory");
    for directory in
        ["base/pgsql_tmp", "pg_replslot/old_slot", "foreign", "foreign/deep", "foreign/deep/down"]
    {
        account::give(&standby.directory().join(directory));
    }
    for name in leftovers {
        write_as_postgres(&standby.directory().join(name), "left over", 0o600);
    }
    let text = "primary_conninfo = 'host=nowhere'\nwork_mem = '5MB'\nrecovery_target = 'immediate'\n";
    write_as_postgres(&standby.directory().join("postgresql.auto.conf"), text, 0o600);
    primary.execute("ALTER SYSTEM SET work_mem = '6MB'");

    // Without the option the label makes it a backup that no server has used.
    let report = Recovery::of(standby, primary).option("overwrite", "any_cluster").run(primary);
    assert!(report.number("/files/removed") >= 5, "{}", report.0);
    for name in leftovers {
        // The label of this very backup has its place.
        let ours = name == "backup_label";
        assert!(ours || !standby.has(name), "{name} is still there");
    }
    assert!(standby.read("backup_label").contains("LABEL: Streaming Replication"));
    for name in ["foreign", "pg_replslot/old_slot", "pgpool_recovery.incomplete"] {
        assert!(!standby.has(name), "{name} is still there");
    }
    let auto = standby.read("postgresql.auto.conf");
    assert!(auto.contains("6MB") && !auto.contains("nowhere") && !auto.contains("recovery_target"), "{auto}");
    remote_start(primary, "localhost", standby.dir());
    compare::stop_and_compare(primary, standby).assert_none();
}

#[test]
fn its_own_files_are_kept() {
    let stage = stage();
    let (primary, standby) = (&stage.primary, &stage.target);
    standby.append_conf("cluster_name", "my own");
    standby.set_hba("local all all trust\n# the standby's own\n");
    write_as_postgres(&stage.scratch.mkdir("target/log").join("old.log"), "history", 0o600);

    let keep = Recovery::of(standby, primary).option("keep_files", "postgresql.conf, pg_hba.conf");
    keep.run(primary);
    assert!(standby.read("postgresql.conf").contains("my own"));
    assert!(standby.read("pg_hba.conf").contains("the standby's own"));
    assert_eq!(standby.read("log/old.log"), "history");

    // By default pg_hba.conf follows the primary.
    Recovery::of(standby, primary).run(primary);
    assert_eq!(standby.read("pg_hba.conf"), primary.read("pg_hba.conf"));
    assert!(standby.read("postgresql.conf").contains("my own"));
    remote_start(primary, "localhost", standby.dir());
    assert_eq!(standby.get::<String>("SHOW cluster_name", &[]), "my own");
}

#[test]
fn a_fresh_cluster_may_be_replaced_only_when_asked_for() {
    let scratch = Scratch::new();
    let primary = Cluster::primary(&scratch);
    let fresh = Cluster::place(&scratch, &Host::here(), "fresh").init();
    Recovery::of(&fresh, &primary).fail(&primary).expect("55000").says("system identifier");
    Recovery::of(&fresh, &primary).option("overwrite", "any_cluster").run(&primary);
    remote_start(&primary, "localhost", fresh.dir());
    let identifier = "Database system identifier";
    assert_eq!(fresh.control(identifier), primary.control(identifier));
}

#[test]
fn tablespaces_go_where_the_mapping_says() {
    let scratch = Scratch::new();
    let primary = Cluster::primary(&scratch);
    let (old, new) = (scratch.mkdir("space"), scratch.join("space of the standby"));
    let old_text = old.to_str().expect("ASCII");
    primary.execute(&format!("CREATE TABLESPACE space LOCATION '{old_text}'"));
    primary.execute("CREATE TABLE in_space TABLESPACE space AS SELECT i FROM generate_series(1, 10000) i");
    let target = Cluster::place(&scratch, &Host::here(), "target");

    // On one host the same place cannot serve both.
    let recovery = Recovery::of(&target, &primary).option("dest_port", target.port());
    recovery.fail(&primary).expect("55000").says("tablespace");
    assert!(!target.has(""));
    assert_eq!(probe::slots(&primary), Vec::<String>::new());

    let mapping = format!("{old_text}={}", new.display());
    recovery.option("tablespace_mapping", mapping).run(&primary);
    remote_start(&primary, "localhost", target.dir());
    assert_eq!(target.get::<i64>("SELECT count(*) FROM in_space", &[]), 10_000);
    let sql = "SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = 'space'";
    assert_eq!(target.get::<String>(sql, &[]), new.to_str().expect("ASCII"));
    compare::stop_and_compare(&primary, &target).assert_none();
}

#[test]
fn a_linked_data_directory_is_followed() {
    let stage = stage();
    let (primary, standby) = (&stage.primary, &stage.target);
    let link = stage.scratch.join("link");
    symlink(standby.directory(), &link).expect("a link");
    Recovery::to("localhost", link.to_str().expect("ASCII"), primary.port()).run(primary);
    assert!(link.is_symlink());
    remote_start(primary, "localhost", link.to_str().expect("ASCII"));
    assert!(standby.in_recovery());
}

#[test]
fn a_directory_may_have_an_odd_name() {
    let scratch = Scratch::new();
    let primary = Cluster::primary(&scratch);
    let target = Cluster::place(&scratch, &Host::here(), "odd")
        .at(scratch.join("it's a place, with \u{fc}ml\u{e4}uts"));
    Recovery::of(&target, &primary).option("dest_port", target.port()).option("start", true).run(&primary);
    assert!(target.in_recovery());
    target.stop(Stop::Fast);
    Recovery::of(&target, &primary).option("start", true).run(&primary);
    assert!(target.in_recovery());
}

#[test]
fn a_directory_is_never_read_as_a_command() {
    let scratch = Scratch::new();
    let primary = Cluster::primary(&scratch);
    let canary = scratch.join("canary");
    // pg_ctl hands what follows -D to a shell, between double quotes.
    for name in ["$(touch CANARY)", "`touch CANARY`", "\"; touch CANARY; \"", "back\\slash"] {
        let name = name.replace("CANARY", "canary");
        let target = Cluster::place(&scratch, &Host::here(), "odd").at(scratch.join(&name));
        let recovery =
            Recovery::of(&target, &primary).option("dest_port", target.port()).option("start", true);
        // The working directory of whatever runs a shell may be the data directory of either.
        let before = [primary.has("canary"), canary.exists()];
        match recovery.call(&mut primary.connect()) {
            Ok(_) => assert!(target.in_recovery(), "{name}"),
            Err(error) => {
                let error = pgpool_recovery_e2e::SqlError::from(&error).expect("22023");
                assert!(error.text().contains("dest_dir") || error.text().contains("director"), "{error:?}");
                assert!(!target.has(""), "{name}");
            }
        }
        assert_eq!([primary.has("canary"), canary.exists()], before, "{name} was run");
        assert!(!target.has("canary"), "{name} was run");
    }
}
