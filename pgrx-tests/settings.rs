//! Every setting: default, unit, range, context; and the options of a call.

#[cfg(any(test, feature = "pg_test"))]
#[pgrx::pg_schema]
mod tests {
    use pgrx::prelude::*;

    use crate::server_tests::support::{fails, holds, succeeds, value};
    use crate::settings::Settings;

    /// name, default as shown by pg_settings, unit, minimum, maximum, choices
    const SETTINGS: [(&str, &str, &str, &str, &str, &str); 20] = [
        ("agent_port", "9897", "", "1", "65535", ""),
        ("secret_file", "/etc/pgpool-recovery/secret", "", "", "", ""),
        ("transport", "auto", "", "", "", "auto,agent,local"),
        ("replication_user", "", "", "", "", ""),
        ("primary_host", "", "", "", "", ""),
        ("application_name", "%h", "", "", "", ""),
        ("slot_name", "%h", "", "", "", ""),
        ("passfile", "", "", "", "", ""),
        ("restore_command", "", "", "", "", ""),
        ("overwrite", "same", "", "", "", "same,any_cluster"),
        ("keep_files", "postgresql.conf", "", "", "", ""),
        ("tablespace_mapping", "", "", "", "", ""),
        ("jobs", "0", "", "0", "64", ""),
        ("compression", "auto", "", "", "", "auto,off,lz4,zstd"),
        ("max_rate", "0", "kB", "0", "2147483647", ""),
        ("clone", "on", "", "", "", ""),
        ("verify_checksums", "on", "", "", "", ""),
        ("scripts", "run", "", "", "", "run,ignore,refuse"),
        ("start_timeout", "60", "s", "1", "86400", ""),
        ("local_directories", "", "", "", "", ""),
    ];

    #[pg_test]
    fn settings_are_as_documented() {
        for (name, default, unit, min, max, choices) in SETTINGS {
            let row = format!("FROM pg_settings WHERE name = 'pgpool_recovery.{name}'");
            let found = value(&format!(
                "SELECT concat_ws('|', boot_val, unit, min_val, max_val, array_to_string(enumvals, ','), context) {row}"
            ));
            let parts = [default, unit, min, max, choices, "superuser"];
            // concat_ws leaves out NULLs, which is what an empty column here stands for, but the default.
            let expected: Vec<&str> = parts
                .iter()
                .enumerate()
                .filter(|(n, part)| *n == 0 || !part.is_empty())
                .map(|(_, part)| *part)
                .collect();
            assert_eq!(found.as_deref(), Some(expected.join("|").as_str()), "{name}");
        }
        let defined = value("SELECT count(*)::text FROM pg_settings WHERE name LIKE 'pgpool\\_recovery.%'");
        assert_eq!(defined, Some(SETTINGS.len().to_string()), "a setting is missing here");
    }

    #[pg_test]
    fn current_settings_are_the_defaults() {
        assert_eq!(Settings::current(), Ok(Settings::default()));
    }

    #[pg_test]
    fn a_session_of_a_superuser_may_change_settings() {
        Spi::run("SET LOCAL pgpool_recovery.max_rate = '1MB'").expect("unit");
        Spi::run("SET LOCAL pgpool_recovery.start_timeout = '2min'").expect("unit");
        Spi::run("SET LOCAL pgpool_recovery.keep_files = 'postgresql.conf, pg_hba.conf'").expect("text");
        let settings = Settings::current().expect("valid");
        assert_eq!(settings.max_rate, 1024);
        assert_eq!(settings.start_timeout.as_secs(), 120);
        assert_eq!(settings.keep_files, ["postgresql.conf", "pg_hba.conf"]);
    }

    #[pg_test]
    fn other_roles_may_neither_set_nor_see_what_is_private() {
        Spi::run("CREATE ROLE settings_user; SET LOCAL ROLE settings_user").expect("role");
        fails("42501", "SET LOCAL pgpool_recovery.jobs = 2");
        fails("42501", "SHOW pgpool_recovery.secret_file");
        fails("42501", "SHOW pgpool_recovery.restore_command");
        fails("42501", "SHOW pgpool_recovery.local_directories");
        fails("42501", "SET LOCAL pgpool_recovery.local_directories = '/'");
        succeeds("SHOW pgpool_recovery.jobs");
    }

    #[pg_test]
    fn values_are_checked_and_the_prefix_is_ours() {
        fails("22023", "SET LOCAL pgpool_recovery.transport = 'ssh'");
        fails("22023", "SET LOCAL pgpool_recovery.agent_port = 0");
        fails("22023", "SET LOCAL pgpool_recovery.jobs = 65");
        #[cfg(not(any(feature = "pg13", feature = "pg14")))] // they have placeholders for any name
        fails("42602", "SET LOCAL pgpool_recovery.no_such_setting = 1");
    }

    #[pg_test]
    fn pg_ctl_comes_from_the_configuration_file_only() {
        assert!(holds("(SELECT context = 'sighup' FROM pg_settings WHERE name = 'pgpool.pg_ctl')"));
        fails("55P02", "SET pgpool.pg_ctl = '/tmp/evil'");
    }

    #[pg_test]
    fn options_name_what_is_wrong() {
        let call = |options: &str| format!("SELECT pgpool_recovery_1st_stage('h', '/d', 5432, '{options}')");
        let unknown = fails("22023", &call(r#"{"job": 1}"#));
        assert_eq!(unknown.message, "unrecognized option \"job\"");
        assert!(unknown.hint.contains("start_timeout"), "{unknown:?}");
        let wrong = fails("22023", &call(r#"{"jobs": "four"}"#));
        assert_eq!(wrong.message, "invalid value for option \"jobs\"");
        assert_eq!(wrong.detail, "Expected an integer from 0 to 64; found the string \"four\".");
        fails("22023", &call("[]"));
        fails("22023", &call(r#"{"jobs": 1e400}"#));
    }

    #[pg_test]
    fn private_options_are_for_superusers() {
        Spi::run(
            "CREATE ROLE options_user REPLICATION;
             GRANT EXECUTE ON FUNCTION pgpool_recovery_1st_stage(text, text, integer, jsonb) TO options_user;
             GRANT EXECUTE ON FUNCTION pgpool_recovery_check(text, text, integer, jsonb) TO options_user;
             SET LOCAL ROLE options_user",
        )
        .expect("role");
        for function in ["pgpool_recovery_1st_stage", "pgpool_recovery_check"] {
            for option in ["secret_file", "restore_command", "keep_files", "primary_host", "replication_user"]
            {
                let error =
                    fails("42501", &format!("SELECT {function}('h', '/d', 5432, '{{\"{option}\": \"x\"}}')"));
                assert_eq!(error.message, format!("permission denied to pass option \"{option}\""));
            }
        }
    }
}
