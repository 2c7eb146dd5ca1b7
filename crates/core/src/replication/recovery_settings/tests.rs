use std::fs;
use std::path::PathBuf;

use super::*;

struct Files(tempfile::TempDir);

impl Files {
    fn new(main: &str) -> Self {
        let files = Self(tempfile::tempdir().expect("temporary directory"));
        files.put("postgresql.conf", main);
        files
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn put(&self, name: &str, text: &str) {
        fs::write(self.at(name), text).expect("write");
    }

    fn main(&self) -> Reading {
        Reading::of(&self.at("postgresql.conf"), Some(&self.at("myrecovery.conf")))
    }

    fn auto(&self) -> Reading {
        Reading::of(&self.at("postgresql.auto.conf"), None)
    }

    fn said(&self) -> RecoverySettings {
        judge(Some(&self.main()), Some(&self.auto()))
    }
}

fn names(places: &[Place]) -> Vec<&str> {
    places.iter().map(|place| place.what.as_str()).collect()
}

#[test]
fn every_version_has_its_parameters() {
    let has = |major, name: &str| of_version(major).any(|parameter| parameter.name == name);
    for major in 13..=18 {
        assert!(has(major, "recovery_target_lsn") && has(major, "primary_conninfo"));
        assert_eq!(has(major, "promote_trigger_file"), major <= 15, "removed in 16");
    }
    assert!(named(b"Promote_Trigger_File").is_some() && named(b"recovery").is_none());
}

#[test]
fn settings_that_do_nothing_are_not_told() {
    let files = Files::new(
        "recovery_target = ''\nrecovery_target_timeline = 'latest'\nrecovery_target_inclusive = TRUE\n\
         recovery_target_action = Pause\nrecovery_min_apply_delay = '0 ms'\nrestore_command = ''\n\
         primary_conninfo = 'host=other'\nprimary_slot_name = x\nhot_standby_feedback = on\n",
    );
    assert_eq!(files.said(), RecoverySettings::default());
    assert!(files.said().advice().is_ok());
}

#[test]
fn what_is_overridden_is_told_by_file_and_line() {
    let files =
        Files::new("include 'more.conf'\nrecovery_min_apply_delay = 1h\nrecovery_target_timeline = '1'\n");
    files.put("more.conf", "\nrestore_command = 'scp %f %p'\nrecovery_target_time = '2025-01-01'\n");
    let said = files.said();
    assert_eq!(
        names(&said.overridden),
        ["restore_command", "recovery_target_time", "recovery_min_apply_delay", "recovery_target_timeline"]
    );
    assert!(said.conflicts.is_empty() && said.problems.is_empty(), "{said:?}");
    let told = said.advice().expect_err("a warning").to_string();
    for word in [
        "restore_command (\"",
        "more.conf\" line 2)",
        "postgresql.conf\" line 2)",
        "pgpool_recovery.restore_command",
        "ALTER SYSTEM",
        "Remove recovery_target_time",
    ] {
        assert!(told.contains(word), "no {word}: {told}");
    }
    assert!(!told.contains("scp"), "a command may hold secrets: {told}");
}

#[test]
fn the_file_that_is_read_last_may_not_redirect() {
    let files = Files::new("include_if_exists = 'myrecovery.conf'\n");
    for bad in [
        "recovery_target = 'immediate'",
        "Recovery_Target_Action = promote",
        "promote_trigger_file = '/tmp/x'",
        "primary_conninfo = 'host=other'",
        "primary_slot_name = ''",
        "restore_command = 'cp x y'",
        "recovery_target_timeline = 'current'",
        "include 'x.conf'",
    ] {
        files.put("x.conf", "recovery_target_xid = '7'\n");
        files.put("postgresql.auto.conf", &format!("# made by ALTER SYSTEM\n{bad}\n"));
        let error = files.said().demand_no_conflict("It").expect_err(bad);
        assert_eq!(error.kind, Kind::TargetRefused);
        let place = if bad.starts_with("include") { "x.conf\" line 1" } else { "auto.conf\" line 2" };
        assert!(error.message.contains(place) && error.hint.is_some(), "{error:?}");
    }
    files.put("postgresql.auto.conf", "recovery_min_apply_delay = 1h\nrecovery_target = ''\nport = 1\n");
    let said = files.said();
    assert!(said.conflicts.is_empty() && names(&said.chosen) == ["recovery_min_apply_delay"], "{said:?}");
    assert!(said.advice().expect_err("told").message.contains("keeps recovery_min_apply_delay"));
}

#[test]
fn a_target_in_capitals_keeps_a_server_from_starting() {
    let files = Files::new("Recovery_Target_Name = 'x'\nrecovery_target_name = 'y'\nRestore_Command = 'x'\n");
    let said = files.said();
    assert_eq!(names(&said.conflicts), ["recovery_target_name"]);
    assert_eq!(said.conflicts[0].line, 1);
    assert_eq!(names(&said.overridden), ["recovery_target_name", "restore_command"]);
    files.put("postgresql.conf", "Recovery_Target_Name = ''\n");
    assert_eq!(files.said(), RecoverySettings::default());
}

#[test]
fn what_cannot_be_read_is_no_pass() {
    let files = Files::new("include 'none.conf'\nport = \n");
    let said = files.said();
    assert!(said.demand_no_conflict("It").is_ok());
    let error = said.demand_readable("It", |_| false).expect_err("missing");
    assert!(error.message.contains("none.conf") && error.message.contains("line 1"), "{error:?}");
    let missing = files.at("none.conf");
    let error = said.demand_readable("It", |path| path == missing).expect_err("a syntax error");
    assert!(error.message.contains("line 2") && error.message.contains("syntax error"), "{error:?}");
    files.put("postgresql.conf", "include 'none.conf'\n");
    assert!(files.said().demand_readable("It", |path| path == missing).is_ok());
}

#[test]
fn myrecovery_conf_is_read_last_only_if_nothing_of_it_follows() {
    for (text, expected) in [
        ("include_if_exists = 'myrecovery.conf'\n", true),
        ("recovery_target = x\ninclude 'myrecovery.conf'\nport = 1\n", true),
        ("include_if_exists = 'myrecovery.conf'\nprimary_conninfo = 'host=old'\n", false),
        ("include_if_exists = 'myrecovery.conf'\nRecovery_Min_Apply_Delay = 1\n", false),
        ("include_if_exists = 'myrecovery.conf'\ninclude_dir = 'conf.d'\n", false),
        ("include_if_exists = 'myrecovery.conf'\ninclude 'none.conf'\n", false),
        ("include_if_exists = 'myrecovery.conf'\ninclude_if_exists 'none.conf'\n", true),
        ("include_if_exists = '/other/myrecovery.conf'\n", false),
        ("#include_if_exists = 'myrecovery.conf'\n", false),
        ("", false),
    ] {
        let files = Files::new(text);
        fs::create_dir(files.at("conf.d")).expect("make");
        files.put("conf.d/00-x.conf", "restore_command = ''\n");
        assert_eq!(reads_last(&files.main()), expected, "{text}");
    }
}

#[test]
fn what_a_copy_leaves_out_does_not_count() {
    let files = Files::new(
        "Recovery_Target_Name = 'x'\nrestore_command = 'x'\ninclude_if_exists 'more.conf'\ninclude 'myrecovery.conf'\n",
    );
    files.put("postgresql.auto.conf", "recovery_target = 'immediate'\nprimary_conninfo = 'host=x'\n");
    let said = || {
        let (main, auto) = (files.at("postgresql.conf"), files.at("postgresql.auto.conf"));
        judge_copies(Some(&main), Some(&auto), &files.at("myrecovery.conf"))
    };
    assert!(said().conflicts.is_empty() && said().problems.is_empty(), "{:?}", said());
    assert_eq!(names(&said().overridden), ["recovery_target_name", "restore_command"]);
    // what is included is copied as it is
    files.put("more.conf", "Recovery_Target_Xid = '7'\n");
    assert_eq!(names(&said().conflicts), ["recovery_target_xid"]);
    files.put("more.conf", "data_directory = '/srv/p'\n");
    let asked =
        |directory: &str| said().demand_own_directory("It", &[Path::new("/srv/link"), Path::new(directory)]);
    let error = asked("/srv/s").expect_err("the primary's directory");
    assert!(
        error.message.starts_with("data_directory in \"") && error.message.contains("more.conf\" line 1"),
        "{error}"
    );
    assert_eq!(asked("/srv/p"), Ok(()), "the same path on another host");
    files.put("more.conf", "");
    assert_eq!(asked("/srv/s"), Ok(()));
    files.put("postgresql.auto.conf", "include 'auto.conf'\n");
    files.put("auto.conf", "promote_trigger_file = '/x'\n");
    assert_eq!(names(&said().conflicts), ["promote_trigger_file"]);
}

#[test]
fn a_file_that_the_server_skips_is_no_problem_where_ours_is_read_later() {
    let files = Files::new("include_if_exists = 'loop.conf'\ninclude_if_exists = 'myrecovery.conf'\n");
    std::os::unix::fs::symlink("loop.conf", files.at("loop.conf")).expect("link");
    assert_eq!(files.said(), RecoverySettings::default());
    assert!(reads_last(&files.main()));
    // behind ours it would count, should the server have the right to read it
    files.put("postgresql.conf", "include_if_exists = 'myrecovery.conf'\ninclude_if_exists = 'loop.conf'\n");
    assert!(!reads_last(&files.main()), "another line of ours is added");
    files.put("postgresql.auto.conf", "include_if_exists = 'loop.conf'\n");
    assert_eq!(files.said().problems.len(), 1, "nothing is read after that file");
}
