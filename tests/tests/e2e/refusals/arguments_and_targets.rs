//! What is refused: an ERROR that explains itself, a target as it was, nothing left on the primary.

use std::os::unix::fs::symlink;

use pgpool_recovery_e2e::mount::Tmpfs;
use pgpool_recovery_e2e::scratch::write_as_postgres;
use pgpool_recovery_e2e::snapshot::Snapshot;
use pgpool_recovery_e2e::{Cluster, Host, Recovery, Scratch, SqlError, probe, workload};
use postgres::types::ToSql;

fn quiet_primary(scratch: &Scratch) -> Cluster {
    probe::quiet(Cluster::place(scratch, &Host::here(), "primary")).into_primary()
}

fn dead_standby(primary: &Cluster) -> Cluster {
    let standby = Cluster::standby_by_basebackup(primary, &Host::here(), "standby");
    standby.kill();
    standby
}

#[test]
fn null_arguments() {
    let scratch = Scratch::new();
    let primary = quiet_primary(&scratch);
    let mut client = primary.connect();
    let nulls = [
        ("pgpool_recovery_1st_stage(NULL, '/x', '5432'::text)", "dest_host"),
        ("pgpool_recovery_1st_stage('h', NULL, '5432'::text)", "dest_dir"),
        ("pgpool_recovery_1st_stage('h', '/x', NULL::text)", "port"),
        ("pgpool_recovery_1st_stage(NULL, '/x', 5432)", "dest_host"),
        ("pgpool_recovery_1st_stage('h', NULL, 5432)", "dest_dir"),
        ("pgpool_recovery_1st_stage('h', '/x', NULL::integer)", "port"),
        ("pgpool_recovery_1st_stage('h', '/x', 5432, NULL)", "options"),
        ("pgpool_recovery(NULL, 'h', '/x')", "script_name"),
        ("pgpool_recovery('pgpool_recovery_1st_stage', NULL, '/x')", "remote_host"),
        ("pgpool_recovery('pgpool_recovery_1st_stage', 'h', NULL)", "remote_data_directory"),
        ("pgpool_recovery('pgpool_recovery_1st_stage', 'h', '/x', NULL)", "primary_port"),
        ("pgpool_recovery('pgpool_recovery_1st_stage', 'h', '/x', '1', NULL)", "remote_node"),
        ("pgpool_recovery('pgpool_recovery_1st_stage', 'h', '/x', '1', 1, NULL)", "remote_port"),
        ("pgpool_recovery('pgpool_recovery_1st_stage', 'h', '/x', '1', 1, '2', NULL)", "primary_host"),
        ("pgpool_remote_start(NULL, '/x')", "remote_host"),
        ("pgpool_remote_start('h', NULL)", "remote_data_directory"),
        ("pgpool_pgctl(NULL, '')", "action"),
        ("pgpool_pgctl('reload', NULL)", "stop_mode"),
        ("pgpool_switch_xlog(NULL)", "archive_dir"),
        ("pgpool_recovery_check(NULL, '/x', 1)", "dest_host"),
        ("pgpool_recovery_check('h', NULL, 1)", "dest_dir"),
        ("pgpool_recovery_check('h', '/x', NULL)", "port"),
    ];
    for (call, argument) in nulls {
        let error = client.query(&format!("SELECT {call}"), &[]).expect_err(call);
        SqlError::from(&error).expect("22004").says(argument);
    }
    probe::assert_nothing_left(&primary);
}

#[test]
fn unusable_text_in_every_argument() {
    let scratch = Scratch::new();
    let primary = quiet_primary(&scratch);
    let standby = dead_standby(&primary);
    let before = Snapshot::of(standby.directory());
    let everything = Snapshot::of(&scratch.join("s"));
    let mut client = primary.connect();
    let long = "x".repeat(5000);
    let canary = scratch.join("canary");
    let (touch, dir) = (format!("touch {}", canary.display()), standby.dir());

    let evil = [
        format!("'; {touch}; '"),
        format!("$({touch})"),
        format!("`{touch}`"),
        format!("\"; {touch}; \""),
        format!("x\n{touch}\n"),
        format!("| {touch}"),
        "'; DROP TABLE accounts; --".to_owned(),
        "a\tb".to_owned(),
        "\u{7f}\u{1b}[31m".to_owned(),
        "%s%s%n".to_owned(),
        long.clone(),
    ];
    let long_path = format!("/{long}");
    let bad_directories =
        ["", "relative", "./x", "../x", "/tmp/../etc", "/", "//", "~", "/tmp/a\nb", "/tmp/\u{7}", &long_path];
    let bad_ports = ["", "0", "-1", "65536", "99999999999999999999", "54x", " 5432", "0x10", "5432;"];

    let mut attempts: Vec<(String, String, String)> = Vec::new();
    for text in &evil {
        attempts.push((text.clone(), dir.to_owned(), "5432".to_owned()));
        attempts.push(("localhost".to_owned(), text.clone(), "5432".to_owned()));
        attempts.push(("localhost".to_owned(), dir.to_owned(), text.clone()));
    }
    attempts.extend(bad_directories.map(|d| ("localhost".to_owned(), d.to_owned(), "5432".to_owned())));
    attempts.extend(bad_ports.map(|p| ("localhost".to_owned(), dir.to_owned(), p.to_owned())));
    for (host, directory, port) in &attempts {
        for sql in [
            "SELECT pgpool_recovery_1st_stage($1::text, $2::text, $3::text)::text",
            "SELECT pgpool_recovery('pgpool_recovery_1st_stage', $1, $2, $3)::text",
        ] {
            let arguments: [&(dyn ToSql + Sync); 3] = [host, directory, port];
            let result = client.query(sql, &arguments);
            let context = format!("{host:?} {directory:?} {port:?}");
            let error = SqlError::from(&result.err().unwrap_or_else(|| panic!("{context} was accepted")));
            // A percent sign introduces the zone of an IPv6 address: a name, but no host has it.
            let expected = if host.starts_with('%') { "08001" } else { "22023" };
            assert!(error.sqlstate == expected || error.sqlstate == "22023", "{context}: {error:?}");
            assert!(!error.detail.is_empty() || !error.hint.is_empty(), "{context}: {error:?}");
            assert!(error.text().len() < 2000 && !error.message.contains('\n'), "{error:?}");
        }
    }
    // The logs tell of it, in one line of reasonable length.
    primary.wait_for_log("invalid value for argument");
    assert!(!canary.exists());
    before.assert_unchanged(standby.directory());
    assert_eq!(everything.names(), Snapshot::of(&scratch.join("s")).names());
    probe::assert_nothing_left(&primary);
}

#[test]
fn bytes_that_are_no_text() {
    let scratch = Scratch::new();
    let primary = quiet_primary(&scratch);
    primary.execute("CREATE DATABASE bytes ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0");
    let mut client = primary.connect_to("bytes");
    client.batch_execute("CREATE EXTENSION pgpool_recovery").expect("the extension");
    for call in [
        "pgpool_recovery_1st_stage(E'h\\xff', '/x', '5432'::text)",
        "pgpool_recovery_1st_stage('h', E'/x\\xc3\\x28', '5432'::text)",
        "pgpool_recovery_1st_stage('h', '/x', E'54\\xff'::text)",
        "pgpool_recovery(E'\\xff', 'h', '/x')",
        "pgpool_remote_start(E'\\xff', '/x')",
        "pgpool_remote_start('h', E'/\\xff')",
        "pgpool_switch_xlog(E'/\\xff')",
        "pgpool_pgctl(E'\\xff', '')",
    ] {
        // The simple protocol, as Pgpool-II and psql use it: the bytes reach the server as they are.
        let error = client.batch_execute(&format!("SELECT {call}")).expect_err(call);
        let error = SqlError::from(&error);
        assert!(["22021", "22023"].contains(&error.sqlstate.as_str()), "{call}: {error:?}");
    }
    assert_eq!(client.query_one("SELECT 1", &[]).expect("the session lives").get::<_, i32>(0), 1);
}

#[test]
fn options_that_are_none() {
    let scratch = Scratch::new();
    let primary = quiet_primary(&scratch);
    let standby = dead_standby(&primary);
    let before = Snapshot::of(standby.directory());
    for (name, value) in [
        ("no_such_option", serde_json::json!(1)),
        ("jobs", serde_json::json!("four")),
        ("jobs", serde_json::json!(-1)),
        ("transport", serde_json::json!("pigeon")),
        ("overwrite", serde_json::json!(true)),
        ("dest_port", serde_json::json!(0)),
        ("start", serde_json::json!("yes")),
        ("compression", serde_json::json!(null)),
        ("tablespace_mapping", serde_json::json!("nonsense")),
        ("keep_files", serde_json::json!("../../etc/passwd")),
    ] {
        let error = Recovery::of(&standby, &primary).option(name, value).fail(&primary);
        error.expect("22023").says(name);
    }
    before.assert_unchanged(standby.directory());
    probe::assert_nothing_left(&primary);
}

#[test]
fn targets_that_must_not_be_replaced() {
    let scratch = Scratch::new();
    let primary = quiet_primary(&scratch);
    let mut witness = probe::Witness::on(&primary);

    let standby = Cluster::standby_by_basebackup(&primary, &Host::here(), "standby");
    Recovery::of(&standby, &primary).fail(&primary).expect("55006").says("running");
    assert!(standby.in_recovery(), "the running standby was disturbed");

    // A standby cannot be the source.
    Recovery::to("localhost", scratch.join("x").to_str().expect("ASCII"), standby.port())
        .fail(&standby)
        .expect("55000")
        .says("standby");

    // The primary itself, under any name.
    let link = scratch.join("link");
    symlink(primary.directory(), &link).expect("a link");
    let slashes = format!("{}//./", primary.dir());
    let inside = format!("{}/base", primary.dir());
    let new_inside = format!("{}/new", primary.dir());
    for path in [primary.dir(), link.to_str().expect("ASCII"), &slashes, &inside, &new_inside] {
        for host in ["localhost", "127.0.0.1", ""] {
            let error = Recovery::to(host, path, primary.port()).fail(&primary);
            assert!(["55000", "55006"].contains(&error.sqlstate.as_str()), "{path}: {error:?}");
            assert!(error.text().contains("primary"), "{path}: {error:?}");
        }
    }
    witness.assert_served();

    let other = Cluster::place(&scratch, &Host::here(), "other").init();
    let full = scratch.mkdir("full");
    write_as_postgres(&full.join("letter.txt"), "not a cluster", 0o600);
    let file = scratch.write("file", "a file", 0o600);
    for (path, word) in
        [(other.directory(), "system identifier"), (full.as_path(), "empty"), (file.as_path(), "directory")]
    {
        let before = Snapshot::of(path);
        let error = Recovery::to("localhost", path.to_str().expect("ASCII"), primary.port()).fail(&primary);
        error.expect("55000").says(word);
        before.assert_unchanged(path);
    }
    // overwrite = any_cluster is for clusters only.
    let error = Recovery::to("localhost", full.to_str().expect("ASCII"), primary.port())
        .option("overwrite", "any_cluster")
        .fail(&primary);
    error.expect("55000");
    drop(standby);
    probe::assert_nothing_left(&primary);
}

#[test]
fn another_major_version_is_no_target() {
    let scratch = Scratch::new();
    let primary = quiet_primary(&scratch);
    let standby = dead_standby(&primary);
    write_as_postgres(&standby.directory().join("PG_VERSION"), "14\n", 0o600);
    let before = Snapshot::of(standby.directory());
    Recovery::of(&standby, &primary).fail(&primary).expect("55000").says("version");
    before.assert_unchanged(standby.directory());
}

#[test]
fn a_primary_that_cannot_have_standbys() {
    let scratch = Scratch::new();
    let settings = [
        ("minimal", vec![("wal_level", "minimal"), ("max_wal_senders", "0")], "55000", "wal_level"),
        ("slotless", vec![("max_replication_slots", "0")], "53400", "max_replication_slots"),
        ("senderless", vec![("max_wal_senders", "0")], "53400", "max_wal_senders"),
    ];
    for (name, conf, sqlstate, word) in settings {
        let mut primary = Cluster::place(&scratch, &Host::here(), name);
        for (setting, value) in conf {
            primary = primary.with(setting, value);
        }
        let primary = primary.into_primary();
        let target = scratch.join(format!("target-{name}"));
        let error = Recovery::to("localhost", target.to_str().expect("ASCII"), primary.port()).fail(&primary);
        error.expect(sqlstate).says(word);
        assert!(!target.exists());
    }
}

#[test]
fn replication_that_pg_hba_refuses_is_found_before_the_first_byte() {
    let scratch = Scratch::new();
    let primary = quiet_primary(&scratch);
    let standby = dead_standby(&primary);
    let before = Snapshot::of(standby.directory());
    primary
        .set_hba("local all all trust\nhost all all 127.0.0.1/32 trust\nhost replication all all reject\n");
    primary.reload();
    let error = Recovery::of(&standby, &primary).option("primary_host", "127.0.0.1").fail(&primary);
    error.expect("28000").says("pg_hba.conf");
    before.assert_unchanged(standby.directory());
    probe::assert_nothing_left(&primary);
}

#[test]
fn too_little_space_is_found_before_the_first_byte() {
    let scratch = Scratch::new();
    let primary = quiet_primary(&scratch);
    workload::fill(&primary, 30);
    let small = Tmpfs::new(&scratch, "small", 20);
    let target = small.path().join("data");
    let error = Recovery::to("localhost", target.to_str().expect("ASCII"), primary.port()).fail(&primary);
    error.expect("53100").says("space");
    assert!(!target.exists());
    probe::assert_nothing_left(&primary);
}

#[test]
fn settings_that_cannot_be_written_down_are_found_before_the_first_byte() {
    let scratch = Scratch::new();
    let primary = quiet_primary(&scratch);
    // ALTER SYSTEM takes no line break, a role's settings do
    primary.execute("ALTER ROLE postgres SET pgpool_recovery.restore_command = E'a\\nb'");
    let target = Cluster::place(&scratch, &Host::here(), "target");
    let error = Recovery::of(&target, &primary).option("dest_port", target.port()).fail(&primary);
    error.expect("22023").says("restore_command").says("line break");
    assert!(!target.directory().exists());
    probe::assert_nothing_left(&primary);
}

/// Two servers that write one log directory would cut and show each other's logs.
#[test]
fn a_standby_beside_its_primary_logs_into_its_own_directory() {
    let scratch = Scratch::new();
    let logs = scratch.mkdir("logs");
    let primary = probe::quiet(
        Cluster::place(&scratch, &Host::here(), "primary").with("log_directory", logs.display()),
    )
    .into_primary();
    let target = Cluster::place(&scratch, &Host::here(), "target");
    Recovery::of(&target, &primary).option("dest_port", target.port()).run(&primary);
    let lines = target.read("postgresql.conf");
    let last = lines.lines().rfind(|line| line.starts_with("log_directory")).expect("a log directory");
    assert_eq!(last, "log_directory = 'log'");
}

#[test]
fn who_may_call_it() {
    let scratch = Scratch::new();
    let primary = quiet_primary(&scratch);
    let standby = dead_standby(&primary);
    primary.execute("CREATE ROLE nobody LOGIN; CREATE ROLE operator LOGIN REPLICATION");
    let as_role = |role: &str| {
        let mut client = primary.connect();
        client.batch_execute(&format!("SET SESSION AUTHORIZATION {role}")).expect(role);
        client
    };
    for call in [
        "pgpool_recovery_1st_stage('h', '/x', '1'::text)",
        "pgpool_recovery_1st_stage('h', '/x', 1)",
        "pgpool_recovery_1st_stage('h', '/x', 1, '{}')",
        "pgpool_recovery_check('h', '/x', 1)",
        "pgpool_recovery('s', 'h', '/x')",
        "pgpool_recovery('s', 'h', '/x', '1', 1, '1', 'p')",
        "pgpool_remote_start('h', '/x')",
        "pgpool_pgctl('reload', '')",
        "pgpool_switch_xlog('/tmp')",
    ] {
        let error = as_role("nobody").query(&format!("SELECT {call}"), &[]).expect_err(call);
        assert_eq!(SqlError::from(&error).sqlstate, "42501", "{call}");
    }

    // EXECUTE and REPLICATION are all an operator needs, and a directory that is listed ...
    primary.append_conf("pgpool_recovery.local_directories", scratch.path().display());
    primary.reload();
    primary.execute(
        "GRANT EXECUTE ON FUNCTION pgpool_recovery_1st_stage(text, text, integer, jsonb) TO operator",
    );
    let mut operator = as_role("operator");
    let before = Snapshot::of(standby.directory());
    // ... but not for what names a file, a command or a policy.
    for (name, value) in [
        ("secret_file", "/etc/shadow"),
        ("passfile", "/x"),
        ("restore_command", "touch /tmp/x"),
        ("scripts", "run"),
        ("overwrite", "any_cluster"),
        ("keep_files", "pg_hba.conf"),
        ("tablespace_mapping", "/a=/b"),
    ] {
        let result = Recovery::of(&standby, &primary).option(name, value).call(&mut operator);
        let error = SqlError::from(&result.expect_err(name));
        error.expect("42501").says(name);
    }
    before.assert_unchanged(standby.directory());
    for setting in ["secret_file = '/x'", "overwrite = 'any_cluster'", "agent_port = 1", "jobs = 1"] {
        let error = operator.batch_execute(&format!("SET pgpool_recovery.{setting}")).expect_err(setting);
        let error = SqlError::from(&error);
        assert!(["42501", "55P02"].contains(&error.sqlstate.as_str()), "{error:?}");
    }
    let report =
        Recovery::of(&standby, &primary).option("max_rate", 0).call(&mut operator).expect("the right");
    assert!(report.number("/bytes/total") > 0);
    let conf = standby.read("myrecovery.conf");
    assert!(conf.contains("user=operator"), "the caller replicates unless told otherwise: {conf}");
}

#[test]
fn the_check_changes_nothing_and_tells_all() {
    let scratch = Scratch::new();
    let primary = quiet_primary(&scratch);
    let standby = dead_standby(&primary);
    let before = Snapshot::of(standby.directory());
    let mut client = primary.connect();
    let sql = "SELECT step, ok, detail, hint FROM pgpool_recovery_check($1, $2, $3)";
    let port = i32::from(primary.port());
    let rows = client.query(sql, &[&"localhost", &standby.dir(), &port]).expect(sql);
    assert!(rows.len() > 3);
    for row in &rows {
        assert!(
            row.get::<_, bool>("ok"),
            "{:?}: {:?}",
            row.get::<_, String>("step"),
            row.get::<_, Option<String>>("detail")
        );
    }
    for (host, directory, port) in [
        ("localhost", "relative", port),
        ("localhost", standby.dir(), 0),
        ("a b", standby.dir(), port),
        ("localhost", primary.dir(), port),
    ] {
        let rows = client.query(sql, &[&host, &directory, &port]).expect("bad arguments are rows");
        assert!(rows.iter().any(|row| !row.get::<_, bool>("ok")), "{host} {directory} {port}");
    }
    before.assert_unchanged(standby.directory());
    probe::assert_nothing_left(&primary);
}
