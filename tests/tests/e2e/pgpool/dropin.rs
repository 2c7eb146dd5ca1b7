//! In the C extension's place: the statements of every Pgpool-II line, and scripts in the data directory.

use std::time::{Duration, Instant};

use pgpool_recovery_e2e::recovery::remote_start;
use pgpool_recovery_e2e::scratch::write_as_postgres;
use pgpool_recovery_e2e::{Cluster, Host, Scratch, SqlError, process, wait};
use postgres::Client;

/// What Pgpool-II sends, word by word, in the database that line uses; the statement before included.
fn call(client: &mut Client, arguments: &str) -> Result<(), postgres::Error> {
    client.batch_execute("SET statement_timeout To 0")?;
    client.batch_execute(&format!("SELECT pgpool_recovery({arguments})"))
}

#[test]
fn every_line_of_pgpool_is_understood() {
    let scratch = Scratch::new();
    let primary = Cluster::primary(&scratch);
    let lines = [
        ("3.3", "template1", 3),
        ("3.7", "template1", 4),
        ("4.0", "template1", 5),
        ("4.2", "template1", 6),
        ("4.6", "template1", 7),
        ("4.7", "postgres", 7),
    ];
    for (line, database, count) in lines {
        let target = Cluster::place(&scratch, &Host::here(), &format!("target-{line}"));
        let arguments = [
            "'pgpool_recovery_1st_stage'".to_owned(),
            "'localhost'".to_owned(),
            format!("'{}'", target.dir()),
            format!("'{}'", primary.port()),
            "1".to_owned(),
            format!("'{}'", target.port()),
            "'localhost'".to_owned(),
        ];
        let mut client = primary.connect_to(database);
        let text = arguments[..count].join(", ");
        call(&mut client, &text).unwrap_or_else(|error| panic!("{line}: {error:?}\n{}", primary.log()));
        let conf = target.read("myrecovery.conf");
        assert!(conf.contains(&format!("port={}", primary.port())), "{line}: {conf}");
        assert!(conf.contains("application_name=localhost"), "{line}: {conf}");
        if count < 6 {
            // The old lines do not tell the target's port: it has the primary's, on a host of its own.
            continue;
        }
        assert!(count < 7 || conf.contains("host=localhost "), "{line}: {conf}");
        let sql = format!("SELECT pgpool_remote_start('localhost', '{}')", target.dir());
        client.batch_execute(&sql).unwrap_or_else(|error| panic!("{line}: {error:?}\n{}", target.log()));
        assert!(target.in_recovery(), "{line}");
        // Running already is fine, too.
        client.batch_execute(&sql).unwrap_or_else(|error| panic!("{line}: {error:?}"));
    }
}

#[test]
fn the_signatures_are_those_of_the_c_extension() {
    let scratch = Scratch::new();
    let primary = Cluster::primary(&scratch);
    let sql = "SELECT p.oid::regprocedure::text || ' ' || array_to_string(p.proargnames, ',')
                      || ' ' || p.prorettype::regtype || ' ' || p.proisstrict || ' ' || (p.proacl IS NULL)
               FROM pg_proc p WHERE proname IN ('pgpool_recovery', 'pgpool_remote_start', 'pgpool_pgctl',
                                                'pgpool_switch_xlog') ORDER BY p.pronargs, proname";
    let rows = primary.connect().query(sql, &[]).expect(sql);
    let found: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    assert_eq!(
        found,
        [
            "pgpool_switch_xlog(text) archive_dir text false false",
            "pgpool_pgctl(text,text) action,stop_mode boolean false false",
            "pgpool_remote_start(text,text) remote_host,remote_data_directory boolean false false",
            "pgpool_recovery(text,text,text) script_name,remote_host,remote_data_directory boolean false false",
            "pgpool_recovery(text,text,text,text) \
             script_name,remote_host,remote_data_directory,primary_port boolean false false",
            "pgpool_recovery(text,text,text,text,integer) \
             script_name,remote_host,remote_data_directory,primary_port,remote_node boolean false false",
            "pgpool_recovery(text,text,text,text,integer,text) \
             script_name,remote_host,remote_data_directory,primary_port,remote_node,remote_port boolean false false",
            "pgpool_recovery(text,text,text,text,integer,text,text) \
             script_name,remote_host,remote_data_directory,primary_port,remote_node,remote_port,primary_host \
             boolean false false",
        ]
    );
}

/// A primary with a script in its data directory.
fn with_script(scratch: &Scratch, name: &str, text: &str) -> Cluster {
    let primary = Cluster::primary(scratch);
    write_as_postgres(&primary.directory().join(name), text, 0o700);
    primary
}

const ARGUMENTS: &str = "'stage', 'host $(x)', '/dir with space', '5432', 3, '5433', 'primary;host'";

#[test]
fn a_script_gets_the_arguments_of_the_c_extension_and_no_shell() {
    let scratch = Scratch::new();
    let seen = scratch.join("seen");
    let text = format!("#!/bin/sh\nfor a in \"$@\"; do echo \"[$a]\"; done > {}\n", seen.display());
    let primary = with_script(&scratch, "stage", &text);
    call(&mut primary.connect(), ARGUMENTS).expect("the script");
    let expected =
        format!("[{}]\n[host $(x)]\n[/dir with space]\n[5432]\n[3]\n[5433]\n[primary;host]\n", primary.dir());
    assert_eq!(std::fs::read_to_string(&seen).expect("it ran"), expected);
}

#[test]
fn a_script_that_fails_tells_its_output_and_exit_code() {
    let scratch = Scratch::new();
    let text = "#!/bin/sh\necho to stdout\necho 'ssh: connect to host: no route' >&2\nexit 7\n";
    let primary = with_script(&scratch, "stage", text);
    let error = call(&mut primary.connect(), ARGUMENTS).expect_err("exit 7");
    let error = SqlError::from(&error).expect("38000");
    assert!(error.detail.contains("no route") && error.detail.contains("to stdout"), "{error:?}");
    assert!(error.text().contains('7'), "{error:?}");
    primary.wait_for_log("no route");
}

#[test]
fn a_script_is_killed_on_cancel_with_all_it_started() {
    let scratch = Scratch::new();
    let pids = scratch.join("pids");
    let text = format!("#!/bin/sh\nsleep 600 &\necho $$ $! > {}\nwait\n", pids.display());
    let primary = with_script(&scratch, "stage", &text);
    let mut client = primary.connect();
    let token = client.cancel_token();
    let thread = std::thread::spawn(move || call(&mut client, ARGUMENTS));
    let running: Vec<u32> = wait::until("the script", wait::PATIENCE, || {
        let text = std::fs::read_to_string(&pids).ok()?;
        let pids: Vec<u32> = text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect();
        (pids.len() == 2).then_some(pids)
    });
    let start = Instant::now();
    token.cancel_query(postgres::NoTls).expect("a cancel request");
    let error = thread.join().expect("no panic").expect_err("it was cancelled");
    assert_eq!(SqlError::from(&error).sqlstate, "57014");
    assert!(start.elapsed() < Duration::from_secs(5));
    for pid in running {
        wait::until_true("the script's end", Duration::from_secs(5), || !process::is_alive(pid));
    }
}

#[test]
fn scripts_outside_the_data_directory_and_missing_ones_are_refused() {
    let scratch = Scratch::new();
    let primary = Cluster::primary(&scratch);
    let mut client = primary.connect();
    for (name, sqlstates) in [
        ("../escape", ["22023", "22023"]),
        ("/bin/true", ["22023", "22023"]),
        ("", ["22023", "22023"]),
        ("missing", ["58P01", "55000"]),
        ("postgresql.conf", ["58P01", "42501"]),
    ] {
        let error = call(&mut client, &format!("'{name}', 'h', '/x'")).expect_err(name);
        let error = SqlError::from(&error);
        let not_executable = name == "postgresql.conf";
        assert!(not_executable || sqlstates.contains(&error.sqlstate.as_str()), "{name}: {error:?}");
        assert!(!error.detail.is_empty() || !error.hint.is_empty(), "{name}: {error:?}");
    }
}

#[test]
fn the_policy_for_scripts() {
    let scratch = Scratch::new();
    let canary = scratch.join("canary");
    let primary = with_script(&scratch, "stage", &format!("#!/bin/sh\ntouch {}\n", canary.display()));
    let target = Cluster::place(&scratch, &Host::here(), "target");
    let arguments = format!(
        "'stage', 'localhost', '{}', '{}', 1, '{}', 'localhost'",
        target.dir(),
        primary.port(),
        target.port()
    );
    let mut client = primary.connect();
    client.batch_execute("SET pgpool_recovery.scripts = 'refuse'").expect("SET");
    let error = call(&mut client, &arguments).expect_err("refused");
    SqlError::from(&error).says("script");
    client.batch_execute("SET pgpool_recovery.scripts = 'ignore'").expect("SET");
    call(&mut client, &arguments).expect("the engine");
    assert!(!canary.exists());
    remote_start(&primary, "localhost", target.dir());
    assert!(target.in_recovery());
}

#[test]
fn the_helpers_of_old_scripts() {
    let scratch = Scratch::new();
    let archive = scratch.mkdir("archive");
    let command = format!("cp \"%p\" \"{}/%f\"", archive.display());
    let primary = Cluster::place(&scratch, &Host::here(), "primary")
        .with("archive_mode", "on")
        .with("archive_command", command)
        .into_primary();
    primary.execute("CREATE TABLE t AS SELECT 1 AS one");
    let sql = "SELECT pgpool_switch_xlog($1)";
    let path: String = primary.get(sql, &[&archive.to_str().expect("ASCII")]);
    assert!(path.starts_with(archive.to_str().expect("ASCII")), "{path}");
    assert_eq!(std::fs::metadata(&path).expect("the segment").len(), 16 << 20);
    assert!(primary.get::<bool>("SELECT pgpool_pgctl('reload', '')", &[]));
    primary.wait_for_log("received SIGHUP");
    let error =
        primary.connect().query("SELECT pgpool_pgctl('explode', '')", &[]).expect_err("no such action");
    SqlError::from(&error).expect("22023");
    // the server may be down before the answer is out
    if let Err(error) = primary.connect().query("SELECT pgpool_pgctl('stop', 'fast')", &[]) {
        assert!(error.is_closed() || SqlError::from(&error).sqlstate == "57P01", "{error:?}");
    }
    wait::until_true("the server's end", wait::PATIENCE, || primary.postmaster().is_none());
}
