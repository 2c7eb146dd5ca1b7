//! Every setting: default, unit, range, context; and the options of a call.

#[cfg(any(test, feature = "pg_test"))]
#[pgrx::pg_schema]
mod tests {
    use pgrx::prelude::*;

    use crate::server_tests::support::{fails, holds, succeeds, value};
    use crate::settings::Settings;

    /// The rows of the reference's table of settings, without the meaning: name, default, "range, unit".
    fn documented() -> Vec<[&'static str; 3]> {
        let reference = include_str!("../docs/reference.md");
        let table =
            reference.split_once("\n| name | default | range, unit | meaning |\n").expect("a table").1;
        let rows = table.lines().skip(1).take_while(|line| line.starts_with('|'));
        rows.map(|line| {
            let mut cells = line.split('|').skip(1).map(str::trim);
            [(); 3].map(|()| cells.next().expect("four cells"))
        })
        .collect()
    }

    /// A setting as the reference describes it: default, unit, minimum, maximum, choices. `60 s`, `0: no limit`,
    /// `empty: ...` are defaults, `1 to 86400 s`, "`on`, `off`" ranges, everything else there is prose.
    fn described(default: &str, range: &str) -> [String; 5] {
        let default = default.split([':', ' ']).next().unwrap_or_default().trim_matches('`');
        let default = if default == "empty" { "" } else { default };
        let (mut unit, mut min, mut max, mut choices) = ("", "", "", String::new());
        let numbers = range.split_once(" to ").filter(|(from, _)| from.parse::<f64>().is_ok());
        if let Some((from, to)) = numbers {
            min = from;
            (max, unit) = to.split_once(' ').unwrap_or((to, ""));
        } else if range.starts_with('`') && !range.contains('=') {
            choices = range.replace('`', "").replace(", ", ",");
        }
        [default, unit.trim_end_matches("/s"), min, max, &choices].map(str::to_owned)
    }

    #[pg_test]
    fn settings_are_as_the_reference_says() {
        for [name, default, range] in documented() {
            let name = name.trim_matches('`');
            let columns = ["boot_val", "unit", "min_val", "max_val", "array_to_string(enumvals, ',')"];
            let found = columns.map(|column| {
                value(&format!(
                    "SELECT coalesce({column}, '') FROM pg_settings WHERE name = 'pgpool_recovery.{name}'"
                ))
                .unwrap_or_default()
            });
            assert_eq!(found, described(default, range), "{name}");
        }
        let ours = "FROM pg_settings WHERE name LIKE 'pgpool\\_recovery.%'";
        let defined = value(&format!("SELECT count(*)::text {ours}"));
        assert_eq!(defined, Some(documented().len().to_string()), "the reference misses a setting");
        assert_eq!(value(&format!("SELECT DISTINCT context {ours}")).as_deref(), Some("superuser"));
        assert_eq!(described("60 s: so long", "1 to 86400 s"), ["60", "s", "1", "86400", ""]);
    }

    #[pg_test]
    fn a_setting_is_checked_as_the_option_is() {
        for (name, bad) in
            [("primary_host", "a b"), ("keep_files", "/etc/passwd"), ("tablespace_mapping", "/a")]
        {
            Spi::run(&format!("SET LOCAL pgpool_recovery.{name} = '{bad}'")).expect("a text");
            let mut set = Settings::current().expect_err(name);
            Spi::run(&format!("SET LOCAL pgpool_recovery.{name} = DEFAULT")).expect("a text");
            let options = serde_json::json!({ name: bad });
            let all = Settings { caller_is_superuser: true, ..Settings::default() };
            let passed = all.overlay(&options).expect_err(name);
            assert!(passed.message.contains(name), "{passed}");
            if passed.hint.is_none() {
                assert_eq!(set.hint.take(), Some(format!("Correct pgpool_recovery.{name}.")));
            }
            assert_eq!(set, passed);
        }
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
