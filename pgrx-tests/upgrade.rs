//! The upgrade scripts end where a fresh installation does.

#[cfg(any(test, feature = "pg_test"))]
#[pgrx::pg_schema]
mod tests {
    use pgrx::prelude::*;

    use crate::server_tests::support::{holds, value};

    /// A name that has to be quoted.
    const SCHEMA: &str = "\"Upgrade Test\"";

    /// Old version, its upgrade script, and its `pgpool_recovery` overloads with their parameter names:
    /// those of a fresh installation of that version.
    const VERSIONS: [(&str, &str, &[&str]); 4] = [
        ("1.1", include_str!("../sql/pgpool_recovery--1.1--2.0.0.sql"), &[THREE, FOUR_OLD]),
        ("1.2", include_str!("../sql/pgpool_recovery--1.2--2.0.0.sql"), &[THREE, FOUR_OLD, FIVE_OLD]),
        ("1.3", include_str!("../sql/pgpool_recovery--1.3--2.0.0.sql"), &[THREE, FOUR, FIVE, SIX]),
        // As Pgpool-II 4.3.0 to 4.3.2 installed it, without the overload of six arguments.
        ("1.4", include_str!("../sql/pgpool_recovery--1.4--2.0.0.sql"), &[THREE, FOUR, FIVE, SEVEN]),
    ];

    const THREE: &str = "script_name text, remote_host text, remote_data_directory text";
    const FOUR_OLD: &str = "script_name text, remote_host text, remote_data_directory text, remote_port text";
    const FOUR: &str = "script_name text, remote_host text, remote_data_directory text, primary_port text";
    const FIVE_OLD: &str = "script_name text, remote_host text, remote_data_directory text, remote_port text, recovery_node integer";
    const FIVE: &str = "script_name text, remote_host text, remote_data_directory text, primary_port text, remote_node integer";
    const SIX: &str = "script_name text, remote_host text, remote_data_directory text, primary_port text, remote_node integer, remote_port text";
    const SEVEN: &str = "script_name text, remote_host text, remote_data_directory text, primary_port text, remote_node integer, remote_port text, primary_host text";

    /// Makes the functions of an old version in the schema on the search path, with a library that does
    /// not exist, as after the removal of its package. CREATE FUNCTION looks into the library, so they
    /// are made with another one first.
    fn install_old(overloads: &[&str]) {
        let others = [
            ("pgpool_remote_start", "remote_host text, remote_data_directory text", "boolean"),
            ("pgpool_pgctl", "action text, stop_mode text", "boolean"),
            ("pgpool_switch_xlog", "archive_dir text", "text"),
        ];
        let recoveries = overloads.iter().map(|arguments| ("pgpool_recovery", *arguments, "boolean"));
        for (name, arguments, result) in others.into_iter().chain(recoveries) {
            Spi::run(&format!(
                "CREATE FUNCTION {name}({arguments}) RETURNS {result}
                 AS '$libdir/pgpool_recovery', 'pgpool_pgctl_wrapper' LANGUAGE C STRICT"
            ))
            .expect("function");
        }
        Spi::run(
            "UPDATE pg_proc SET probin = '$libdir/pgpool-recovery', prosrc = proname
             WHERE pronamespace = quote_ident(current_schema())::regnamespace",
        )
        .expect("catalog");
    }

    /// Runs an upgrade script the way ALTER EXTENSION UPDATE does.
    fn upgrade(script: &str) {
        let sql: String = script
            .lines()
            .filter(|line| !line.starts_with("\\echo"))
            .map(|line| format!("{}\n", line.replace("MODULE_PATHNAME", "$libdir/pgpool_recovery")))
            .collect();
        Spi::run(&sql).expect("upgrade script");
    }

    /// Everything about a schema's functions that a user or the server can tell.
    fn functions(schema: &str) -> Vec<String> {
        value(&format!(
            "SELECT string_agg(concat_ws('|', proname, pg_get_function_arguments(oid), pg_get_function_result(oid),
                 provolatile, proparallel, proisstrict, prosecdef, proleakproof, probin, prosrc,
                 has_function_privilege('public', oid, 'EXECUTE')), E'\\n')
             FROM pg_proc WHERE pronamespace = '{schema}'::regnamespace AND proname LIKE 'pgpool\\_%'"
        ))
        .map(|text| {
            let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
            lines.sort_unstable();
            lines
        })
        .unwrap_or_default()
    }

    /// What the status view of a schema shows, and who may read it.
    fn view(schema: &str) -> Option<String> {
        Spi::run(&format!("SET LOCAL search_path = {schema}, pg_temp")).expect("path");
        let view = value(
            "SELECT concat_ws('|', pg_get_viewdef(c.oid), obj_description(c.oid),
                 has_table_privilege('pg_monitor', c.oid, 'SELECT'),
                 has_function_privilege('pg_monitor', 'pgpool_recovery_status()', 'EXECUTE'))
             FROM pg_class AS c WHERE c.oid = 'pgpool_recovery_status'::regclass",
        );
        Spi::run("RESET search_path").expect("path");
        view
    }

    #[pg_test]
    fn every_upgrade_ends_where_a_fresh_installation_does() {
        let home = value(
            "SELECT extnamespace::regnamespace::text FROM pg_extension WHERE extname = 'pgpool_recovery'",
        )
        .expect("installed");
        let fresh = functions(&home);
        assert_eq!(fresh.len(), 16, "{fresh:?}");
        let fresh_view = view(&home);
        assert!(fresh_view.as_ref().is_some_and(|view| view.ends_with("|t|t")), "{fresh_view:?}");
        Spi::run("CREATE ROLE upgrade_user REPLICATION; CREATE ROLE upgrade_admin SUPERUSER").expect("roles");
        for (version, script, overloads) in VERSIONS {
            Spi::run(&format!("CREATE SCHEMA {SCHEMA}; SET LOCAL search_path = {SCHEMA}, pg_temp"))
                .expect("schema");
            install_old(overloads);
            Spi::run(
                "GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA \"Upgrade Test\" TO upgrade_user;
                 GRANT EXECUTE ON FUNCTION pgpool_recovery(text, text, text) TO upgrade_admin WITH GRANT OPTION",
            )
            .expect("grants");
            upgrade(script);
            assert_eq!(functions(SCHEMA), fresh, "{version}");
            // the functions in C asked for a superuser: what was void stays void
            assert!(holds(
                "NOT EXISTS (SELECT FROM pg_proc AS p
                     WHERE p.pronamespace = '\"Upgrade Test\"'::regnamespace
                         AND has_function_privilege('upgrade_user', p.oid, 'EXECUTE'))"
            ));
            assert!(holds(
                "EXISTS (SELECT FROM aclexplode((SELECT proacl FROM pg_proc
                         WHERE oid = 'pgpool_recovery(text, text, text)'::regprocedure)) AS a
                     WHERE a.grantee = 'upgrade_admin'::regrole AND a.is_grantable)"
            ));
            assert!(holds(&format!("current_setting('search_path') = '{SCHEMA}, pg_temp'")));
            assert_eq!(view(SCHEMA), fresh_view, "{version}");
            Spi::run(&format!("DROP SCHEMA {SCHEMA} CASCADE")).expect("dropped");
        }
    }

    #[pg_test]
    fn there_is_a_direct_way_from_every_old_version() {
        for (version, _, _) in VERSIONS {
            let path = value(&format!(
                "SELECT path FROM pg_extension_update_paths('pgpool_recovery')
                 WHERE source = '{version}' AND target = '2.0.0'"
            ));
            assert_eq!(path, Some(format!("{version}--2.0.0")));
        }
    }
}
