//! The SQL functions: signatures, rights, and what they do with bad arguments.

#[cfg(any(test, feature = "pg_test"))]
#[pgrx::pg_schema]
mod tests {
    use pgrx::prelude::*;

    use crate::server_tests::support::{Session, eventually, fails, holds, value};

    /// Exactly as users and Pgpool-II know them.
    const SIGNATURES: [&str; 16] = [
        "pgpool_pgctl(action text, stop_mode text) boolean",
        "pgpool_recovery(script_name text, remote_host text, remote_data_directory text) boolean",
        "pgpool_recovery(script_name text, remote_host text, remote_data_directory text, primary_port text) boolean",
        "pgpool_recovery(script_name text, remote_host text, remote_data_directory text, primary_port text, remote_node integer) boolean",
        "pgpool_recovery(script_name text, remote_host text, remote_data_directory text, primary_port text, remote_node integer, remote_port text) boolean",
        "pgpool_recovery(script_name text, remote_host text, remote_data_directory text, primary_port text, remote_node integer, remote_port text, primary_host text) boolean",
        "pgpool_recovery_1st_stage(dest_host text, dest_dir text, port integer) jsonb",
        "pgpool_recovery_1st_stage(dest_host text, dest_dir text, port integer, options jsonb) jsonb",
        "pgpool_recovery_1st_stage(dest_host text, dest_dir text, port text) jsonb",
        "pgpool_recovery_check(dest_host text, dest_dir text, port integer, options jsonb DEFAULT '{}'::jsonb) TABLE(step text, ok boolean, detail text, hint text)",
        "pgpool_recovery_follow(dest_host text, dest_dir text, dest_port integer, primary_host text, primary_port integer, node_id integer, options jsonb DEFAULT '{}'::jsonb) jsonb",
        "pgpool_recovery_promote(old_host text, old_dir text, old_port integer, options jsonb DEFAULT '{}'::jsonb) jsonb",
        "pgpool_recovery_status() TABLE(host text, directory text, state text, phase text, percent integer, bytes_per_second bigint, seconds_left double precision, wal_behind_bytes bigint, streams integer, total_bytes bigint, compared_bytes bigint, sent_bytes bigint, cloned_bytes bigint, known_bytes bigint, wal_bytes bigint, transport text, strategy text, pid integer, started double precision, ended double precision, sqlstate text, error text, detail text, hint text)",
        "pgpool_recovery_stop(dest_host text, dest_dir text, options jsonb DEFAULT '{}'::jsonb) jsonb",
        "pgpool_remote_start(remote_host text, remote_data_directory text) boolean",
        "pgpool_switch_xlog(archive_dir text) text",
    ];

    /// The extension's functions that are not tests.
    const MEMBERS: &str = "FROM pg_proc AS p JOIN pg_depend AS d ON d.classid = 'pg_proc'::regclass
        AND d.objid = p.oid AND d.deptype = 'e' JOIN pg_extension AS e ON e.oid = d.refobjid
        WHERE e.extname = 'pgpool_recovery' AND p.pronamespace <> 'tests'::regnamespace";

    #[pg_test]
    fn signatures_are_as_documented() {
        let found = value(&format!(
            "SELECT string_agg(format('%s(%s) %s', p.proname, pg_get_function_arguments(p.oid),
                 pg_get_function_result(p.oid)), E'\\n' ORDER BY
                 format('%s(%s)', p.proname, pg_get_function_arguments(p.oid)) COLLATE \"C\") {MEMBERS}"
        ))
        .expect("functions");
        let mut found: Vec<&str> = found.lines().collect();
        found.sort_unstable();
        let mut expected = SIGNATURES;
        expected.sort_unstable();
        assert_eq!(found, expected);
    }

    #[pg_test]
    fn no_function_is_strict_parallel_public_or_of_a_definer() {
        let odd = value(&format!(
            "SELECT string_agg(p.oid::regprocedure::text, ', ') {MEMBERS} AND (p.proisstrict OR p.provolatile <> 'v'
                 OR p.proparallel <> 'u' OR p.prosecdef OR has_function_privilege('public', p.oid, 'EXECUTE'))"
        ));
        assert_eq!(odd, None);
    }

    #[pg_test]
    fn the_extension_is_relocatable_and_not_trusted() {
        assert!(holds(
            "(SELECT v.relocatable AND v.superuser AND NOT v.trusted FROM pg_available_extension_versions AS v
              WHERE v.name = 'pgpool_recovery' AND v.version = '2.0.0' AND v.installed)"
        ));
        assert_eq!(env!("CARGO_PKG_VERSION"), "2.0.0", "the control file names the version, too");
    }

    #[pg_test]
    fn a_null_argument_is_named() {
        let calls: [(&str, &[(&str, &str)]); 15] = [
            ("pgpool_pgctl", &[("action", "'status'"), ("stop_mode", "''")]),
            ("pgpool_recovery", &CLASSIC),
            ("pgpool_recovery", &CLASSIC[..6]),
            ("pgpool_recovery", &CLASSIC[..5]),
            ("pgpool_recovery", &CLASSIC[..4]),
            ("pgpool_recovery", &CLASSIC[..3]),
            (
                "pgpool_recovery_1st_stage",
                &[("dest_host", "'h'"), ("dest_dir", "'/d'"), ("port", "'5432'::text")],
            ),
            ("pgpool_recovery_1st_stage", &FIRST_STAGE),
            ("pgpool_recovery_1st_stage", &FIRST_STAGE[..3]),
            ("pgpool_recovery_check", &FIRST_STAGE),
            ("pgpool_recovery_follow", &FOLLOW),
            (
                "pgpool_recovery_promote",
                &[("old_host", "'h'"), ("old_dir", "'/d'"), ("old_port", "5432"), ("options", "'{}'::jsonb")],
            ),
            (
                "pgpool_recovery_stop",
                &[("dest_host", "'h'"), ("dest_dir", "'/d'"), ("options", "'{}'::jsonb")],
            ),
            ("pgpool_remote_start", &[("remote_host", "'h'"), ("remote_data_directory", "'/d'")]),
            ("pgpool_switch_xlog", &[("archive_dir", "'/a'")]),
        ];
        for (function, arguments) in calls {
            for null in 0..arguments.len() {
                let list: Vec<String> = arguments
                    .iter()
                    .enumerate()
                    .map(|(n, (_, value))| {
                        let sql_type = value.split_once("::").map_or_else(
                            || if value.starts_with('\'') { "text" } else { "integer" },
                            |(_, sql_type)| sql_type,
                        );
                        if n == null { format!("NULL::{sql_type}") } else { (*value).to_owned() }
                    })
                    .collect();
                let error = fails("22004", &format!("SELECT {function}({})", list.join(", ")));
                assert_eq!(error.message, format!("argument \"{}\" must not be null", arguments[null].0));
            }
        }
    }

    const FOLLOW: [(&str, &str); 7] = [
        ("dest_host", "'h'"),
        ("dest_dir", "'/d'"),
        ("dest_port", "5433"),
        ("primary_host", "'p'"),
        ("primary_port", "5432"),
        ("node_id", "1"),
        ("options", "'{}'::jsonb"),
    ];

    const CLASSIC: [(&str, &str); 7] = [
        ("script_name", "'pgpool_recovery_1st_stage'"),
        ("remote_host", "'h'"),
        ("remote_data_directory", "'/d'"),
        ("primary_port", "'5432'"),
        ("remote_node", "1"),
        ("remote_port", "'5433'"),
        ("primary_host", "'p'"),
    ];

    const FIRST_STAGE: [(&str, &str); 4] =
        [("dest_host", "'h'"), ("dest_dir", "'/d'"), ("port", "5432"), ("options", "'{}'::jsonb")];

    #[pg_test]
    fn bad_arguments_are_refused_with_a_reason() {
        for call in [
            "pgpool_recovery_1st_stage('h; rm -rf /', '/d', 5432)",
            "pgpool_recovery_1st_stage('$(id)', '/d', 5432)",
            "pgpool_recovery_1st_stage(repeat('h', 5000), '/d', 5432)",
            "pgpool_recovery_1st_stage('h', 'relative/dir', 5432)",
            "pgpool_recovery_1st_stage('h', '/d/../e', 5432)",
            "pgpool_recovery_1st_stage('h', E'/d\\n', 5432)",
            "pgpool_recovery_1st_stage('h', '/' || repeat('d', 5000), 5432)",
            "pgpool_recovery_1st_stage('h', '', 5432)",
            "pgpool_recovery_1st_stage('h', '/d', 0)",
            "pgpool_recovery_1st_stage('h', '/d', 65536)",
            "pgpool_recovery_1st_stage('h', '/d', -5432)",
            "pgpool_recovery_1st_stage('h', '/d', '5432x'::text)",
            "pgpool_recovery_1st_stage('h', '/d', ''::text)",
            "pgpool_recovery('pgpool_recovery_1st_stage', 'h''', '/d')",
            "pgpool_recovery('pgpool_recovery_1st_stage', 'h', 'd')",
            "pgpool_recovery('pgpool_recovery_1st_stage', 'h', '/d', '99999')",
            "pgpool_recovery('pgpool_recovery_1st_stage', 'h', '/d', '5432', 1, 'x')",
            "pgpool_recovery('pgpool_recovery_1st_stage', 'h', '/d', '5432', 1, '5433', 'p q')",
            "pgpool_remote_start('h h', '/d')",
            "pgpool_remote_start('h', 'd')",
            "pgpool_pgctl('destroy', '')",
            "pgpool_pgctl('stop', 'now')",
            "pgpool_switch_xlog('')",
        ] {
            let error = fails("22023", &format!("SELECT {call}"));
            assert!(error.message.starts_with("invalid value for argument \""), "{call}: {error:?}");
            assert!(error.message.len() < 300, "{call}: {error:?}");
            assert!(!error.detail.is_empty(), "{call}: {error:?}");
        }
    }

    #[pg_test]
    fn the_check_reports_bad_arguments_as_rows() {
        for call in ["'h h', '/d', 5432", "'h', 'd', 5432", "'h', '/d', 0", "'h', '/d', 5432, '{\"x\": 1}'"] {
            let row = value(&format!(
                "SELECT concat(step, ' ', ok, ' ', detail <> '') FROM pgpool_recovery_check({call})"
            ));
            assert_eq!(row.as_deref(), Some("arguments f t"), "{call}");
        }
    }

    #[pg_test]
    fn the_check_reports_all_bad_arguments_at_once() {
        let rows = value(
            "SELECT string_agg(detail, '; ') FROM pgpool_recovery_check('h h', 'd', 0, '{\"jobs\": -1}')
             WHERE step = 'arguments' AND NOT ok",
        )
        .expect("rows");
        for named in ["dest_host", "dest_dir", "port", "jobs"] {
            assert!(rows.contains(&format!("\"{named}\"")), "{rows}");
        }
    }

    #[pg_test]
    fn pg_monitor_reads_the_status_and_others_do_not() {
        Spi::run("CREATE ROLE status_reader; SET LOCAL ROLE status_reader").expect("role");
        fails("42501", "SELECT * FROM pgpool_recovery_status");
        fails("42501", "SELECT * FROM pgpool_recovery_status()");
        Spi::run("RESET ROLE; GRANT pg_monitor TO status_reader; SET LOCAL ROLE status_reader")
            .expect("grant");
        assert!(holds("(SELECT count(*) >= 0 FROM pgpool_recovery_status)"));
        Spi::run("RESET ROLE").expect("reset");
    }

    #[pg_test]
    fn the_status_tells_why_a_recovery_failed() {
        let session = Session::open("status_failed");
        session.send("SELECT pgpool_recovery_1st_stage('127.0.0.9', '/status/test', 5432, '{\"agent_port\": 1, \"transport\": \"agent\"}')");
        let row = || {
            value(
                "SELECT (SELECT concat_ws('|', state, phase, sqlstate, error <> '', started_at <= ended_at, pid)
                 FROM pgpool_recovery_status WHERE host = '127.0.0.9' AND directory = '/status/test')",
            )
        };
        let failed = || row().is_some_and(|row| row.starts_with("failed|"));
        eventually("it failed", std::time::Duration::from_secs(20), failed);
        let row = row().expect("a row");
        assert!(row.starts_with("failed|initializing|") && row.ends_with("|t|t"), "{row}");
        session.hang_up();
    }

    #[pg_test]
    fn a_role_needs_execute_and_replication_and_no_other_right() {
        Spi::run("CREATE ROLE function_user REPLICATION; SET LOCAL ROLE function_user").expect("role");
        let error = fails("42501", "SELECT pgpool_recovery_1st_stage('h', '/d', 5432)");
        assert_eq!(error.message, "permission denied for function pgpool_recovery_1st_stage");
        Spi::run(
            "RESET ROLE;
             GRANT EXECUTE ON FUNCTION pgpool_recovery_1st_stage(text, text, integer) TO function_user;
             GRANT EXECUTE ON FUNCTION pgpool_recovery(text, text, text) TO function_user;
             GRANT EXECUTE ON FUNCTION pgpool_pgctl(text, text) TO function_user;
             GRANT EXECUTE ON FUNCTION pgpool_switch_xlog(text) TO function_user;
             SET LOCAL ROLE function_user",
        )
        .expect("grants");
        fails("22023", "SELECT pgpool_recovery_1st_stage('h', 'd', 5432)");
        let error = fails("42501", "SELECT pgpool_switch_xlog('/nonexistent')");
        assert_eq!(error.message, "must be superuser to use pgpool_switch_xlog function", "nothing is told");
        let error = fails("42501", "SELECT pgpool_pgctl('status', '')");
        assert_eq!(error.message, "must be superuser to use pgpool_pgctl function");
        let error = fails("42501", "SELECT pgpool_recovery('some_script', 'h', '/d')");
        assert_eq!(error.message, "must be superuser to use pgpool_recovery function");
        assert!(holds("current_user = 'function_user'"), "the caller's identity is restored");
        assert!(holds("current_setting('search_path') <> 'pg_catalog, pg_temp'"));
    }

    #[pg_test]
    fn execute_without_replication_is_not_enough() {
        Spi::run(
            "CREATE ROLE bare_user; CREATE ROLE copying_user REPLICATION; GRANT copying_user TO bare_user;
             GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO bare_user;
             SET LOCAL ROLE bare_user",
        )
        .expect("roles");
        for call in [
            "pgpool_recovery_1st_stage('h', '/d', '5432'::text)",
            "pgpool_recovery_1st_stage('h', '/d', 5432)",
            "pgpool_recovery_1st_stage('h', '/d', 5432, '{}')",
            "pgpool_recovery_check('h', '/d', 5432)",
            "pgpool_recovery('pgpool_recovery_1st_stage', 'h', '/d')",
            "pgpool_recovery('pgpool_recovery_1st_stage', 'h', '/d', '5432')",
            "pgpool_recovery('pgpool_recovery_1st_stage', 'h', '/d', '5432', 1)",
            "pgpool_recovery('pgpool_recovery_1st_stage', 'h', '/d', '5432', 1, '5433')",
            "pgpool_recovery('pgpool_recovery_1st_stage', 'h', '/d', '5432', 1, '5433', 'p')",
            "pgpool_remote_start('h', '/d')",
            "pgpool_recovery_stop('h', '/d')",
            "pgpool_recovery_follow('h', '/d', 5433, 'p', 5432, 1)",
            "pgpool_recovery_promote('h', '/d', 5432)",
        ] {
            let error = fails("42501", &format!("SELECT {call}"));
            assert_eq!(error.message, "permission denied to recover standbys", "{call}");
            assert!(
                error.detail.contains("\"bare_user\"") && error.hint.contains("REPLICATION"),
                "{error:?}"
            );
        }
        assert!(holds("(SELECT count(*) >= 0 FROM pgpool_recovery_status())"), "that only tells");
        Spi::run("RESET ROLE; ALTER ROLE bare_user REPLICATION; SET LOCAL ROLE bare_user")
            .expect("attribute");
        fails("22023", "SELECT pgpool_recovery_1st_stage('h', 'd', 5432)");
    }

    #[pg_test]
    fn a_role_that_is_no_superuser_names_only_this_server_as_the_primary() {
        let port = value("SELECT current_setting('port')").expect("a port");
        Spi::run(
            "CREATE ROLE naming_user REPLICATION;
             GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO naming_user;
             SET LOCAL pgpool_recovery.local_directories = '/nonexistent/standbys';
             SET LOCAL pgpool_recovery.stop_target = on;
             SET LOCAL ROLE naming_user",
        )
        .expect("role");
        let other_port = port.parse::<u16>().map_or(1, |port| port - 1);
        let target = "'', '/nonexistent/standbys/one'";
        for call in [
            format!("pgpool_recovery('pgpool_recovery_1st_stage', {target}, '{port}', 1, '1', '192.0.2.1')"),
            format!("pgpool_recovery('pgpool_recovery_1st_stage', {target}, '{port}', 1, '1', '/tmp/mine')"),
            format!("pgpool_recovery('pgpool_recovery_1st_stage', {target}, '{other_port}')"),
            format!("pgpool_recovery_1st_stage({target}, {other_port})"),
            format!("pgpool_recovery_1st_stage({target}, '{other_port}'::text)"),
            format!("pgpool_recovery_1st_stage({target}, {other_port}, '{{}}')"),
            format!("pgpool_recovery_1st_stage({target}, {other_port}, '{{\"dry_run\": true}}')"),
            format!("pgpool_recovery_check({target}, {other_port})"),
            format!("pgpool_recovery_follow({target}, 1, '', {other_port}, 1)"),
            format!("pgpool_recovery_follow({target}, 1, '192.0.2.1', {port}, 1)"),
        ] {
            let error = fails("42501", &format!("SELECT {call}"));
            assert!(
                error.message.starts_with("permission denied to let a standby follow"),
                "{call}: {error:?}"
            );
            assert!(!error.detail.is_empty() && !error.hint.is_empty(), "{call}: {error:?}");
        }
        let unlisted = [
            format!("pgpool_recovery_1st_stage('', '/nonexistent/other', {port})"),
            format!("pgpool_recovery_check('', '/etc', {port})"),
            "pgpool_remote_start('', '/etc')".to_owned(),
            "pgpool_recovery_stop('', '/etc')".to_owned(),
            format!("pgpool_recovery_follow('', '/etc', 1, '', {port}, 1)"),
        ];
        for call in unlisted {
            let error = fails("42501", &format!("SELECT {call}"));
            assert!(error.message.starts_with("permission denied to write local directory"), "{error:?}");
        }
        Spi::run("RESET ROLE").expect("reset");
    }

    #[pg_test]
    fn bytes_that_are_not_utf8_are_an_error() {
        let session = Session::open("ascii_admin");
        session.execute("DROP DATABASE IF EXISTS pgpool_ascii");
        session.execute(
            "CREATE DATABASE pgpool_ascii ENCODING 'SQL_ASCII' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'",
        );
        let ascii = Session::open_in("ascii", "pgpool_ascii");
        ascii.execute("CREATE EXTENSION pgpool_recovery");
        for call in [
            r"pgpool_recovery_1st_stage(E'h\xff', '/d', 5432)",
            r"pgpool_recovery_1st_stage('h', E'/d\xff', 5432)",
            r"pgpool_recovery_1st_stage('h', '/d', E'\xff'::text)",
            r#"pgpool_recovery_1st_stage('h', '/d', 5432, E'{"slot_name": "\xff"}')"#,
            r"pgpool_recovery(E'\xff', 'h', '/d')",
            r"pgpool_recovery('x', 'h', '/d', '1', 1, E'\xff', 'p')",
            r"pgpool_remote_start('h', E'/\xff')",
            r"pgpool_pgctl(E'\xff', '')",
            r"pgpool_switch_xlog(E'/\xff')",
        ] {
            let quoted = format!("SELECT {call}").replace('\'', "''");
            let remote = format!("SELECT v FROM dblink('ascii', '{quoted}') AS r(v text)");
            let error = fails("22023", &remote);
            assert!(error.message.contains("UTF-8") || error.message.contains("JSON"), "{call}: {error:?}");
        }
        ascii.hang_up();
        session.execute("DROP DATABASE pgpool_ascii WITH (FORCE)");
    }

    #[pg_test]
    fn switch_xlog_waits_for_the_archived_segment() {
        let directory =
            format!("{}/../archive_test", value("SELECT current_setting('data_directory')").expect("path"));
        std::fs::create_dir_all(&directory).expect("directory");
        let current = value("SELECT pg_walfile_name(pg_current_wal_lsn())").expect("a name");
        let first = u64::from_str_radix(&current[16..], 16).expect("hexadecimal");
        // Other tests may switch WAL, too: provide every segment that may be meant.
        let archive = |bytes: usize| {
            for number in first.saturating_sub(1)..first + 20 {
                let file = format!("{directory}/{}{number:08X}", &current[..16]);
                std::fs::write(file, vec![0; bytes]).expect("segment");
            }
        };
        let session = Session::open("switch");
        // An empty and a half-written file are no archived segment.
        for incomplete in [0, (1 << 20) - 1] {
            archive(incomplete);
            if incomplete == 0 {
                session.send(&format!("SELECT pgpool_switch_xlog('{directory}')"));
            }
            std::thread::sleep(std::time::Duration::from_millis(400));
            assert!(!session.is_done(), "{incomplete}");
        }
        archive(16 << 20);
        eventually("the segment is seen", std::time::Duration::from_secs(10), || session.is_done());
        let path = value("SELECT v FROM dblink_get_result('switch') AS r(v text)").expect("a path");
        assert!(path.starts_with(&format!("{directory}/0000000")), "{path}");
        session.hang_up();
        std::fs::remove_dir_all(directory).expect("removed");
    }
}
