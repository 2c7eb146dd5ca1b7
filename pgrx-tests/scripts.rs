//! Recovery scripts in the data directory.

#[cfg(any(test, feature = "pg_test"))]
#[pgrx::pg_schema]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;
    use std::time::Duration;

    use pgrx::prelude::*;

    use crate::server_tests::support::{Session, eventually, fails, holds, succeeds, value};

    fn data(name: &str) -> PathBuf {
        PathBuf::from(value("SELECT current_setting('data_directory')").expect("path")).join(name)
    }

    /// A script in the data directory, removed at the end of its test.
    struct Script(PathBuf);

    impl Script {
        fn new(name: &str, mode: u32, text: &str) -> Self {
            let path = data(name);
            std::fs::write(&path, text).expect("written");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("mode");
            Self(path)
        }
    }

    impl Drop for Script {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    #[pg_test]
    fn a_script_gets_the_arguments_of_the_c_extension_and_no_shell() {
        let _script = Script::new(
            "t_arguments",
            0o700,
            "#!/bin/bash\nprintf '%s\\n' \"$PWD\" \"$@\" > t_arguments.out\nls -l /proc/$$/fd > t_arguments.fds\n",
        );
        let home = data("").display().to_string().trim_end_matches('/').to_owned();
        for (call, tail) in [
            ("'h', '/d'", "h|/d"),
            ("'h', '/d', '5432'", "h|/d|5432"),
            ("'h', '/d', '5432', 1", "h|/d|5432|1"),
            ("'h', '/d', '5432', 1, '5433'", "h|/d|5432|1|5433"),
            ("'h', '/d', '5432', 1, '5433', 'p'", "h|/d|5432|1|5433|p"),
            ("'$(touch x) ; `id`', '/d e''\"'", "$(touch x) ; `id`|/d e'\""),
        ] {
            assert!(holds(&format!("pgpool_recovery('t_arguments', {call})")), "{call}");
            let found = std::fs::read_to_string(data("t_arguments.out")).expect("output");
            assert_eq!(found.trim_end().replace('\n', "|"), format!("{home}|{home}|{tail}"));
        }
        // Standard input is /dev/null, 1 and 2 are our pipe, 255 is bash's own handle on the script.
        let descriptors = std::fs::read_to_string(data("t_arguments.fds")).expect("output");
        for line in descriptors.lines().filter(|line| line.contains("->")) {
            let number = line.split_whitespace().rev().nth(2).expect("a number");
            assert!(["0", "1", "2", "255"].contains(&number), "leaked: {line}");
        }
        for file in ["t_arguments.out", "t_arguments.fds"] {
            std::fs::remove_file(data(file)).expect("removed");
        }
    }

    #[pg_test]
    fn a_failure_carries_exit_code_and_output() {
        let _script = Script::new(
            "t_fails",
            0o700,
            "#!/bin/sh\necho to stdout\necho ssh: no route to host >&2\nexit 3\n",
        );
        let error = fails("38000", "SELECT pgpool_recovery('t_fails', 'h', '/d')");
        assert_eq!(error.message, "script \"t_fails\" failed with exit code 3");
        assert_eq!(error.detail, "Its last output: to stdout\nssh: no route to host");
        let _script = Script::new("t_dies", 0o700, "#!/bin/sh\nkill -9 $$\n");
        let error = fails("38000", "SELECT pgpool_recovery('t_dies', 'h', '/d')");
        assert_eq!(error.message, "script \"t_dies\" was terminated by signal 9");
    }

    #[pg_test]
    fn endless_output_is_bounded() {
        let _script = Script::new(
            "t_loud",
            0o700,
            "#!/bin/sh\nhead -c 3000000 /dev/zero | tr '\\0' 'x'\necho last words\nexit 1\n",
        );
        let error = fails("38000", "SELECT pgpool_recovery('t_loud', 'h', '/d')");
        assert!(error.detail.len() < 9000 && error.detail.ends_with("last words"), "{}", error.detail.len());
    }

    #[pg_test]
    fn a_script_that_cannot_run_says_why() {
        let error = fails("58P01", "SELECT pgpool_recovery('t_no_such_script', 'h', '/d')");
        assert!(error.message.contains("t_no_such_script") && !error.hint.is_empty(), "{error:?}");
        let _script = Script::new("t_mode", 0o600, "#!/bin/sh\n");
        assert!(fails("38000", "SELECT pgpool_recovery('t_mode', 'h', '/d')").hint.contains("chmod"));
        let _script = Script::new("t_bare", 0o700, "echo no interpreter line\n");
        assert!(fails("38000", "SELECT pgpool_recovery('t_bare', 'h', '/d')").hint.contains("#!"));
        let _script = Script::new("t_interpreter", 0o700, "#!/no/such/shell\n");
        assert!(
            fails("58P01", "SELECT pgpool_recovery('t_interpreter', 'h', '/d')").hint.contains("interpreter")
        );
        fails("22023", "SELECT pgpool_recovery('base', 'h', '/d')");
        for name in ["../t", "/bin/true", "a/../../bin/true", "", "a\nb"] {
            let error = fails("22023", &format!("SELECT pgpool_recovery('{name}', 'h', '/d')"));
            assert!(error.message.starts_with("invalid script name"), "{error:?}");
        }
    }

    #[pg_test]
    fn scripts_may_be_refused_or_ignored() {
        let _script = Script::new("t_policy", 0o700, "#!/bin/sh\ntouch t_policy.ran\n");
        Spi::run("SET LOCAL pgpool_recovery.scripts = refuse").expect("set");
        let error = fails("55000", "SELECT pgpool_recovery('t_policy', 'h', '/d')");
        assert!(error.message.contains("\"t_policy\"") && error.hint.contains("pgpool_recovery_1st_stage"));
        Spi::run("SET LOCAL pgpool_recovery.scripts = ignore").expect("set");
        // Proof that the engine runs: it checks the host.
        let error = fails("22023", "SELECT pgpool_recovery('t_policy', 'h h', '/d')");
        assert!(error.message.contains("\"remote_host\""), "{error:?}");
        assert!(!data("t_policy.ran").exists());
    }

    #[pg_test]
    fn a_target_recovered_by_a_script_is_started_by_one() {
        let _first = Script::new("t_first", 0o700, "#!/bin/sh\n");
        let _start = Script::new("pgpool_remote_start", 0o700, "#!/bin/sh\necho \"$@\" > t_started\n");
        succeeds("SELECT pgpool_recovery('t_first', 'host1', '/d1', '5432')");
        assert!(holds("pgpool_remote_start('host1', '/d1')"));
        assert_eq!(std::fs::read_to_string(data("t_started")).expect("it ran"), "host1 /d1\n");
        std::fs::remove_file(data("t_started")).expect("removed");
    }

    /// A script and its child are gone after `stop`.
    fn stopped(name: &'static str, stop: impl FnOnce(Session, i32)) {
        let _script = Script::new(
            name,
            0o700,
            &format!(
                "#!/bin/sh\ntrap '' TERM\nsleep 300 &\necho $! $$ > {name}.pids\nsleep 300\nsleep 300\n"
            ),
        );
        let session = Session::open(name);
        let pid = session.pid();
        session.send(&format!("SELECT pgpool_recovery('{name}', 'h', '/d')::text"));
        let pids = data(&format!("{name}.pids"));
        eventually("the script runs", Duration::from_secs(10), || {
            std::fs::read_to_string(&pids).is_ok_and(|text| text.ends_with('\n'))
        });
        let text = std::fs::read_to_string(&pids).expect("PIDs");
        stop(session, pid);
        for process in text.split_whitespace() {
            // An orphan that was killed may stay a zombie where nothing reaps it.
            let alive = || {
                std::fs::read_to_string(format!("/proc/{process}/stat"))
                    .is_ok_and(|stat| !stat.contains(") Z "))
            };
            eventually("the process is gone", Duration::from_secs(5), || !alive());
        }
        std::fs::remove_file(pids).expect("removed");
    }

    #[pg_test]
    fn a_cancel_kills_the_script_and_its_children() {
        stopped("t_cancel", |session, pid| {
            Spi::run(&format!("SELECT pg_cancel_backend({pid})")).expect("cancelled");
            eventually("it ends", Duration::from_secs(5), || session.is_done());
            assert!(session.error().contains("canceling statement"));
        });
    }

    #[pg_test]
    fn a_termination_kills_the_script_and_its_children() {
        stopped("t_terminate", |_, pid| {
            Spi::run(&format!("SELECT pg_terminate_backend({pid})")).expect("terminated");
        });
    }

    #[pg_test]
    fn a_lost_client_kills_the_script_and_its_children() {
        stopped("t_client", |session, _| session.hang_up());
    }

    #[pg_test]
    fn pgctl_reloads_and_tells_failures() {
        assert!(holds("pgpool_pgctl('reload', '')"));
        assert!(holds("pgpool_pgctl('status', 'fast')"));
    }
}
