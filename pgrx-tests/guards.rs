//! The guards of src/pg: what they hold is let go of on every way out.

#![expect(clippy::result_large_err, reason = "ErrorReport is what pgrx raises with SQLSTATE and HINT")]

#[cfg(any(test, feature = "pg_test"))]
#[pgrx::pg_schema]
mod tests {
    use std::path::{Path, PathBuf};
    use std::time::Duration;

    use pgdata::wal::Lsn;
    use pgpool_recovery_core::error::{Error, Kind};
    use pgpool_recovery_core::progress::{Phase, Progress};
    use pgpool_recovery_core::sys::cancel::Cancel;
    use pgrx::pg_sys::panic::ErrorReport;
    use pgrx::prelude::*;

    use crate::ereport::ereport;
    use crate::pg::backup::{self, Backup};
    use crate::pg::privileges::Elevated;
    use crate::pg::progress::ProgressReport;
    use crate::pg::slot::{self, Slot};
    use crate::pg::trouble::Trouble;
    use crate::pg::{catalog, interrupts, raised, threads};
    use crate::server_tests::support::{Session, alone, eventually, fails, holds, outcome, succeeds, value};

    /// Lock of tests that use replication slots.
    const SLOTS: i32 = 1;

    /// Ways out of a function that holds a guard.
    fn leave(how: &str) -> Result<(), Error> {
        match how {
            "return" => Ok(()),
            "error" => Err(Error::new(Kind::Internal, "left by an error")),
            "panic" => panic!("left by a panic"),
            "raise" => Spi::run("SELECT 1/0").map_err(|_| Error::new(Kind::Internal, "unreachable")),
            "sleep" => loop {
                interrupts::check();
                std::thread::sleep(Duration::from_millis(20));
            },
            _ => unreachable!("no such way"),
        }
    }

    #[pg_extern]
    fn hold_backup(how: &str) -> Result<String, ErrorReport> {
        let run = || {
            let backup = Backup::start("guard test", true)?;
            leave(how)?;
            let start = backup.start_lsn;
            let stop = backup.stop()?;
            assert!(stop.stop_lsn >= start && start > Lsn(0));
            Ok(String::from_utf8_lossy(&stop.label_file).into_owned())
        };
        run().map_err(ereport)
    }

    #[pg_extern]
    fn hold_slot(name: &str, how: &str) -> Result<String, ErrorReport> {
        let run = || {
            let slot = Slot::reserve(name, Lsn(u64::MAX))?;
            slot.check_wal_reserved()?;
            if how == "keep" {
                let text = (slot.restart_lsn() > Lsn(0)).to_string();
                slot.keep()?;
                return Ok(text);
            }
            leave(how)?;
            Ok(String::new())
        };
        run().map_err(ereport)
    }

    #[pg_extern]
    fn hold_progress(how: &str) -> Result<(), ErrorReport> {
        let mut shown = ProgressReport::start();
        shown.tablespaces(2);
        let progress = Progress::default();
        progress.enter(Phase::Stream);
        progress.set_total(100);
        progress.add_compared(40);
        shown.show(&progress);
        // A fresh run's counters are lower: the view keeps the higher ones.
        shown.show(&Progress::default());
        leave(how).map_err(ereport)
    }

    #[pg_extern]
    fn hold_everything(name: &str, how: &str) -> Result<(), ErrorReport> {
        let run = || {
            let _elevated = Elevated::enter();
            let _progress = ProgressReport::start();
            let _slot = Slot::reserve(name, Lsn(u64::MAX))?;
            let _backup = Backup::start("guard test", true)?;
            let cancel = Cancel::new();
            let flag = cancel.clone();
            threads::wait(&cancel, &mut || leave_tick(how), move || {
                while !flag.is_tripped() {
                    std::thread::sleep(Duration::from_millis(5));
                }
                flag.check()
            })
        };
        run().map_err(ereport)
    }

    fn leave_tick(how: &str) -> Result<(), Error> {
        if how == "sleep" { Ok(()) } else { leave(how) }
    }

    /// Whether this server is of such a version, or later.
    fn is_from(version_num: i32) -> bool {
        holds(&format!("current_setting('server_version_num')::int >= {version_num}"))
    }

    /// Nothing of ours is left in this session.
    #[track_caller]
    fn assert_nothing_held() {
        assert!(!backup::is_running(), "a backup is left");
        // What other sessions would see is cached until the end of the transaction.
        Spi::run("SELECT pg_stat_clear_snapshot()").expect("cleared");
        assert!(holds("NOT EXISTS (SELECT FROM pg_stat_progress_basebackup WHERE pid = pg_backend_pid())"));
        assert!(holds("NOT EXISTS (SELECT FROM pg_replication_slots WHERE active_pid = pg_backend_pid())"));
        assert!(holds("current_user = session_user"));
        assert!(holds("current_setting('search_path') <> 'pg_catalog, pg_temp'"));
    }

    #[pg_test]
    fn a_backup_is_stopped_or_aborted() {
        let label = value("SELECT tests.hold_backup('return')").expect("a label file");
        assert!(label.contains("LABEL: guard test") && label.contains("START WAL LOCATION"), "{label}");
        for (how, state) in [("error", "XX000"), ("panic", "XX000"), ("raise", "22012")] {
            fails(state, &format!("SELECT tests.hold_backup('{how}')"));
            assert_nothing_held();
        }
        // The session can run another one.
        succeeds("SELECT tests.hold_backup('return')");
    }

    #[pg_test]
    fn a_backup_of_the_users_is_left_alone() {
        #[cfg(any(feature = "pg13", feature = "pg14"))]
        Spi::run("SELECT pg_start_backup('theirs', true, false)").expect("backup");
        #[cfg(not(any(feature = "pg13", feature = "pg14")))]
        Spi::run("SELECT pg_backup_start('theirs', true)").expect("backup");
        let error = fails("55000", "SELECT tests.hold_backup('return')");
        assert_eq!(error.message, "a backup is already in progress in this session");
        assert!(backup::is_running(), "theirs goes on");
    }

    #[pg_test]
    fn a_new_slot_lives_only_if_kept() {
        alone(SLOTS);
        let exists = "EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = 'guard_new')";
        for (how, state) in [("return", "00000"), ("error", "XX000"), ("panic", "XX000"), ("raise", "22012")]
        {
            assert_eq!(outcome(&format!("SELECT tests.hold_slot('guard_new', '{how}')")).state, state);
            assert!(!holds(exists), "{how}");
            assert_nothing_held();
        }
        assert_eq!(value("SELECT tests.hold_slot('guard_new', 'keep')").as_deref(), Some("true"));
        assert!(holds(
            "(SELECT slot_type = 'physical' AND NOT active AND NOT temporary AND wal_status = 'reserved'
              FROM pg_replication_slots WHERE slot_name = 'guard_new')"
        ));
        // Found the second time, and kept by whatever happens.
        assert_eq!(value("SELECT tests.hold_slot('guard_new', 'keep')").as_deref(), Some("true"));
        fails("22012", "SELECT tests.hold_slot('guard_new', 'raise')");
        assert!(holds(exists));
        Spi::run("SELECT pg_drop_replication_slot('guard_new')").expect("dropped");
    }

    #[pg_test]
    fn a_slot_without_wal_is_replaced() {
        alone(SLOTS);
        Spi::run("SELECT pg_create_physical_replication_slot('guard_empty')").expect("slot");
        assert_eq!(value("SELECT tests.hold_slot('guard_empty', 'keep')").as_deref(), Some("true"));
        Spi::run("SELECT pg_drop_replication_slot('guard_empty')").expect("dropped");
    }

    #[pg_test]
    fn a_slot_in_use_or_of_another_type_is_refused() {
        alone(SLOTS);
        let other = Session::open("slot_holder");
        other.send("SELECT tests.hold_slot('guard_busy', 'sleep')::text");
        eventually("the slot is held", Duration::from_secs(10), || {
            holds("EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = 'guard_busy' AND active)")
        });
        let error = fails("55006", "SELECT tests.hold_slot('guard_busy', 'keep')");
        assert!(error.message.contains("is active for PID"), "{error:?}");
        assert!(!error.hint.is_empty());
        other.hang_up();
        let error = fails("22023", "SELECT tests.hold_slot('Bad-Name', 'keep')");
        assert!(error.message.contains("\"Bad-Name\""));
    }

    /// Makes slots until there are as many as max_replication_slots.
    fn fill_slots() {
        Spi::run(
            "DO $$ DECLARE n integer := 0; BEGIN
                WHILE (SELECT count(*) FROM pg_replication_slots) < current_setting('max_replication_slots')::int LOOP
                    PERFORM pg_create_physical_replication_slot('guard_fill_' || n);
                    n := n + 1;
                END LOOP;
             END $$",
        )
        .expect("slots");
    }

    fn empty_slots() {
        Spi::run(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots
             WHERE slot_name LIKE 'guard\\_fill\\_%'",
        )
        .expect("dropped");
    }

    #[pg_test]
    fn no_free_slot_is_said_with_the_limit() {
        alone(SLOTS);
        fill_slots();
        let error = outcome("SELECT tests.hold_slot('guard_more', 'keep')");
        empty_slots();
        assert_eq!(error.state, "53400", "{error:?}");
        assert!(error.detail.contains("max_replication_slots is 12"), "{error:?}");
        assert!(!error.hint.is_empty());
    }

    #[pg_test]
    fn a_slot_of_repack_takes_no_place() {
        if !is_from(190_000) {
            return;
        }
        alone(SLOTS);
        let other = Session::open("repack");
        other.execute("CREATE TABLE repacked (i integer PRIMARY KEY)");
        // REPACK waits for the transactions that run, and this one is to have a number
        Spi::run("SELECT pg_current_xact_id()").expect("a number");
        other.send("REPACK (CONCURRENTLY) repacked");
        eventually("it has its slot", Duration::from_secs(10), || {
            holds("EXISTS (SELECT FROM pg_replication_slots WHERE plugin = 'pgrepack')")
        });
        fill_slots();
        let outcome = outcome("SELECT tests.hold_slot('guard_last', 'return')");
        let had_its_slot = holds("EXISTS (SELECT FROM pg_replication_slots WHERE plugin = 'pgrepack')");
        empty_slots();
        other.hang_up();
        assert!(had_its_slot && outcome.state == "00000", "{outcome:?}");
    }

    #[pg_test]
    fn progress_shows_in_the_servers_view() {
        let other = Session::open("progress");
        let pid = other.pid();
        other.send("SELECT tests.hold_progress('sleep')::text");
        let row = || {
            Spi::run("SELECT pg_stat_clear_snapshot()").expect("cleared");
            value(&format!(
                "SELECT concat_ws(',', phase, backup_total, backup_streamed, tablespaces_total,
                                  to_jsonb(shown) ->> 'backup_type')
                 FROM (SELECT 1) AS one LEFT JOIN pg_stat_progress_basebackup AS shown ON pid = {pid}"
            ))
        };
        // the last column is new in PostgreSQL 19
        let kind = if is_from(190_000) { ",full" } else { "" };
        let expected = format!("streaming database files,100,40,2{kind}");
        eventually("the row appears", Duration::from_secs(10), || {
            row().as_deref() == Some(expected.as_str())
        });
        Spi::run(&format!("SELECT pg_cancel_backend({pid})")).expect("cancelled");
        eventually("the row goes away", Duration::from_secs(10), || row().as_deref() == Some(""));
        for (how, state) in [("return", "00000"), ("error", "XX000"), ("raise", "22012")] {
            assert_eq!(outcome(&format!("SELECT tests.hold_progress('{how}')")).state, state);
            assert_nothing_held();
        }
    }

    #[pg_test]
    fn an_error_caught_in_plpgsql_leaves_nothing() {
        alone(SLOTS);
        for (how, state) in [("error", "XX000"), ("panic", "XX000"), ("raise", "22012")] {
            fails(state, &format!("SELECT tests.hold_everything('guard_all', '{how}')"));
            assert_nothing_held();
            assert!(
                holds("NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = 'guard_all')"),
                "{how}"
            );
        }
    }

    /// Another session holds everything; `stop` ends it within `limit`.
    fn interrupted(slot: &str, session: &'static str, limit: Duration, stop: impl FnOnce(Session, i32)) {
        alone(SLOTS);
        let other = Session::open(session);
        let pid = other.pid();
        other.execute("SET statement_timeout = 0");
        other.send(&format!("SELECT tests.hold_everything('{slot}', 'sleep')::text"));
        let held = format!(
            "EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = '{slot}' AND active_pid = {pid})"
        );
        eventually("it holds a slot", Duration::from_secs(20), || holds(&held));
        // The backup's checkpoint, and the thread's start.
        std::thread::sleep(Duration::from_millis(500));
        stop(other, pid);
        let exists = format!("EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = '{slot}')");
        eventually("its slot is gone", limit, || !holds(&exists));
    }

    #[pg_test]
    fn a_cancel_leaves_nothing() {
        interrupted("guard_cancel", "cancel", Duration::from_secs(2), |session, pid| {
            Spi::run(&format!("SELECT pg_cancel_backend({pid})")).expect("cancelled");
            eventually("it ends", Duration::from_secs(2), || session.is_done());
            assert!(session.error().contains("canceling statement due to user request"));
            while value("SELECT string_agg(v, '') FROM dblink_get_result('cancel', false) AS r(v text)")
                .is_some()
            {}
            // The session is alive and can start over.
            assert_eq!(
                session.value("SELECT tests.hold_backup('return')").map(|label| label.is_empty()),
                Some(false)
            );
        });
    }

    #[pg_test]
    fn a_termination_leaves_nothing() {
        interrupted("guard_terminate", "terminate", Duration::from_secs(5), |_, pid| {
            Spi::run(&format!("SELECT pg_terminate_backend({pid})")).expect("terminated");
        });
    }

    #[pg_test]
    fn a_client_that_goes_away_is_noticed() {
        interrupted("guard_client", "client", Duration::from_secs(5), |session, _| session.hang_up());
    }

    /// Ends late after a cancel, as a sync on a slow disk does: until there is a file "end". It makes the files "begun"
    /// and "canceled".
    #[pg_extern]
    fn end_late(directory: &str) -> Result<(), ErrorReport> {
        let cancel = Cancel::new();
        let flag = cancel.clone();
        let at = |name: &str| Path::new(directory).join(name);
        let job = || {
            std::fs::write(at("begun"), "").expect("told");
            while !flag.is_tripped() {
                std::thread::sleep(Duration::from_millis(5));
            }
            std::fs::write(at("canceled"), "").expect("told");
            // the test that failed takes the directory away
            while !at("end").exists() && Path::new(directory).exists() {
                std::thread::sleep(Duration::from_millis(5));
            }
            flag.check()
        };
        threads::wait(&cancel, &mut || Ok(()), job).map_err(ereport)
    }

    #[pg_test]
    fn a_canceled_run_that_ends_late_holds_up_no_drop_database() {
        let signs = OwnDirectory::new("end_late");
        let at = |name: &str| signs.0.join(name);
        let (late, other) = (Session::open("late"), Session::open("dropper"));
        other.execute("CREATE DATABASE guard_dropped");
        let pid = late.pid();
        late.execute("SET statement_timeout = 0");
        late.send(&format!("SELECT tests.end_late('{}')::text", signs.0.display()));
        eventually("it works", Duration::from_secs(10), || at("begun").exists());
        Spi::run(&format!("SELECT pg_cancel_backend({pid})")).expect("canceled");
        eventually("it saw the cancel", Duration::from_secs(10), || at("canceled").exists());
        other.send("DROP DATABASE guard_dropped");
        eventually("the database is dropped", Duration::from_secs(10), || other.is_done());
        assert!(!late.is_done(), "it has not ended");
        std::fs::write(at("end"), "").expect("told");
        eventually("it ends", Duration::from_secs(10), || late.is_done());
        assert!(late.error().contains("canceling statement due to user request"));
        assert!(holds("NOT EXISTS (SELECT FROM pg_database WHERE datname = 'guard_dropped')"));
    }

    /// A directory that this test makes, and that is gone after it.
    struct OwnDirectory(PathBuf);

    impl OwnDirectory {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("pgpool_recovery_{name}_{}", std::process::id()));
            std::fs::create_dir(&path).expect("made");
            Self(path)
        }
    }

    impl Drop for OwnDirectory {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[pg_extern]
    fn wait_with(how: &str) -> Result<i32, ErrorReport> {
        let cancel = Cancel::new();
        let borrowed = String::from(how);
        let outcome = threads::wait(&cancel, &mut || Ok(()), || match borrowed.as_str() {
            "return" => Ok(7),
            "error" => Err(Error::new(Kind::DiskFull, "no space on target")),
            "panic" => panic!("worker trouble {}", 13),
            _ => unreachable!("no such way"),
        });
        outcome.map_err(ereport)
    }

    #[pg_test]
    fn a_job_returns_its_result_error_or_panic() {
        assert_eq!(Spi::get_one::<i32>("SELECT tests.wait_with('return')"), Ok(Some(7)));
        assert_eq!(fails("53100", "SELECT tests.wait_with('error')").message, "no space on target");
        let panic = fails("XX000", "SELECT tests.wait_with('panic')");
        assert_eq!(panic.message, "a worker thread panicked");
        assert!(panic.detail.starts_with("The panic says: worker trouble 13."), "{panic:?}");
    }

    #[pg_test]
    fn catalog_facts_agree_with_the_server() {
        let primary = catalog::primary().expect("facts");
        let same = |sql: &str, found: String| assert_eq!(value(sql), Some(found), "{sql}");
        same("SELECT current_setting('data_directory')", primary.data_directory.clone());
        same(
            "SELECT system_identifier::text FROM pg_control_system()",
            primary.system_identifier.to_string(),
        );
        same("SELECT current_setting('port')", primary.port.to_string());
        same("SELECT current_setting('server_version_num')", primary.server_version_num.to_string());
        assert_eq!(primary.timeline, 1);
        assert_eq!(primary.block_size, 8192);
        assert_eq!(primary.wal_segment_size, 16 << 20);
        assert_eq!(primary.relation_segment_blocks, 131_072);
        assert!(!primary.in_recovery && !primary.group_access);
        // initdb's own choice: on from PostgreSQL 18
        assert_eq!(primary.data_checksums, is_from(180_000));
        assert_eq!((primary.wal_level.as_str(), primary.max_wal_senders), ("replica", 5));
        assert_eq!(primary.max_replication_slots, 12);
        assert!(std::path::Path::new(&primary.bin_directory).join("pg_ctl").exists());
        assert_eq!(catalog::role("no such role"), Ok(None));
        let role = catalog::role(&value("SELECT current_user::text").expect("a name")).expect("query");
        assert!(role.is_some_and(|role| role.can_login && role.can_replicate));
        assert_eq!(catalog::walsenders(), Ok(Vec::new()));
        let version = value("SELECT current_setting('server_version_num')::integer / 10000 || ''");
        assert_eq!(catalog::major_version().map(|major| major.to_string()).ok(), version);
        assert_eq!(catalog::setting("no.such_setting"), Ok(None));
    }

    #[pg_test]
    fn an_error_that_is_caught_leaves_nothing_behind() {
        alone(SLOTS);
        let mut trouble = Trouble::new();
        // a lock that is left stops the second one for good, and a snapshot the next query
        for _ in 0..2 {
            let error = raised::caught(|| {
                trouble.raise();
                Ok(())
            })
            .expect_err("it fails");
            assert!(error.message.contains("could not open relation"), "{error:?}");
            assert_eq!(trouble.left(), Vec::<&str>::new());
            assert!(holds("EXISTS (SELECT FROM pg_class)"));
            raised::caught(|| {
                trouble.raise_with_slot("guard_trouble");
                Ok(())
            })
            .expect_err("it fails");
            assert_eq!(trouble.left(), Vec::<&str>::new());
            assert_nothing_held();
        }
        // what goes well lasts, and a cancel goes on its way
        assert_eq!(raised::caught(|| Ok(7)), Ok(7));
        let canceled = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let sql = "DO $$ BEGIN RAISE query_canceled; END $$";
            raised::caught(|| Spi::run(sql).map_err(|_| Error::new(Kind::Internal, "unreachable")))
        }));
        assert!(canceled.is_err());
        assert!(holds("EXISTS (SELECT FROM pg_class)"));
    }

    #[pg_test]
    fn a_failed_clean_up_leaves_nothing_behind() {
        let mut trouble = Trouble::new();
        for _ in 0..2 {
            trouble.raise_quietly();
            assert_eq!(trouble.left(), Vec::<&str>::new());
        }
        // while another ERROR unwinds, which has left as much
        struct Guard<'a>(&'a mut Trouble);
        impl Drop for Guard<'_> {
            fn drop(&mut self) {
                self.0.raise_quietly();
            }
        }
        let raised = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let guard = Guard(&mut trouble);
            guard.0.fail();
        }));
        assert!(raised.is_err());
        assert_eq!(trouble.left(), Vec::<&str>::new());
    }

    /// Fails, and so does what is undone then.
    #[pg_extern]
    fn fail_twice() {
        struct Guard;
        impl Drop for Guard {
            fn drop(&mut self) {
                Trouble::new().raise_quietly();
                raised::caught(|| leave("raise")).expect_err("by zero");
            }
        }
        let _guard = Guard;
        Spi::run("SELECT 'x'::integer").expect("an error unwinds");
    }

    #[pg_test]
    fn what_fails_is_told_and_not_what_its_clean_up_does() {
        // the server has room for five that nobody has done with
        for _ in 0..6 {
            let error = fails("22P02", "SELECT tests.fail_twice()");
            assert!(error.message.contains("invalid input syntax for type integer"), "{error:?}");
        }
    }

    #[pg_test]
    fn elevation_ends_with_its_guard() {
        Spi::run("CREATE ROLE guard_user; SET LOCAL ROLE guard_user").expect("role");
        {
            let _elevated = Elevated::enter();
            assert!(holds("pg_catalog.current_setting('search_path') = 'pg_catalog, pg_temp'"));
            assert!(crate::pg::privileges::caller_is_superuser());
        }
        assert_eq!(crate::pg::privileges::caller_name().as_deref(), Ok("guard_user"));
        assert!(!crate::pg::privileges::caller_is_superuser());
    }

    #[pg_test]
    fn slot_names_are_checked_as_the_server_does() {
        assert!(slot::validate("node_1").is_ok() && slot::validate("node-1").is_err());
        fails("42602", "SELECT pg_create_physical_replication_slot('node-1')");
    }
}
