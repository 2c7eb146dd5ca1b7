//! The configuration of a standby: extended where it is kept, and looked at once more before the standby can be started.

mod fixture;

use std::fs;
use std::path::Path;

use fixture::{Hosts, transports};
use pgdata::control_file::PG_CONTROL;
use pgpool_recovery_core::error::Kind;
use pgpool_recovery_core::manifest::exclude::MARKER;
use pgpool_recovery_core::manifest::path::RelPath;
use pgpool_recovery_core::wire::protocol::message::Purpose;

fn keeping(names: &[&str]) -> Hosts {
    let mut hosts = Hosts::new();
    hosts.keep = names.iter().map(|name| RelPath::parse(name).expect("valid")).collect();
    hosts.write("standby/PG_VERSION", b"15\n");
    hosts
}

fn include(hosts: &Hosts) -> Vec<u8> {
    format!("include_if_exists = '{}/myrecovery.conf'\n", hosts.path("standby").display()).into_bytes()
}

#[test]
fn bytes_of_any_encoding_and_length_are_kept() {
    let hosts = keeping(&["postgresql.conf"]);
    for (name, connector) in transports(&hosts) {
        let long = [&b"# f\xfcr alle\nport = 2\n"[..], &b"# \xff\n".repeat(1 << 19)].concat();
        hosts.write("standby/postgresql.conf", &long);
        hosts.run(&connector).expect(name);
        assert!(hosts.read("standby/postgresql.conf") == [long, include(&hosts)].concat(), "{name}");
    }
}

#[test]
fn a_configuration_that_overrides_is_made_to_read_ours_once_more() {
    let hosts = keeping(&["postgresql.conf", "conf.d"]);
    hosts.write("standby/conf.d/old.conf", b"recovery_target_time = '2025-01-01'\n");
    for (name, connector) in transports(&hosts) {
        for behind in ["restore_command = 'x'\n", "include_dir = 'conf.d'\n", "include 'conf.d/old.conf'"] {
            let before = [&include(&hosts)[..], behind.as_bytes()].concat();
            hosts.write("standby/postgresql.conf", &before);
            let (session, _) = hosts.open(&connector, Purpose::Look).expect(name);
            assert!(!session.target().includes_myrecovery, "{behind}");
            drop(session);
            hosts.run(&connector).expect(name);
            let after = hosts.read("standby/postgresql.conf");
            assert!(after.starts_with(&before) && after.ends_with(&include(&hosts)), "{name}: {behind}");
            hosts.run(&connector).expect(name);
            assert!(hosts.read("standby/postgresql.conf") == after, "extended once");
        }
    }
}

#[test]
fn what_a_kept_configuration_says_is_told_before_anything_changes() {
    let hosts = keeping(&["postgresql.conf", "postgresql.auto.conf"]);
    hosts.write("standby/postgresql.conf", b"\nrestore_command = 'x'\ninclude 'none.conf'\nport = 7\n");
    hosts.write("standby/postgresql.auto.conf", b"# ALTER SYSTEM\nPromote_Trigger_File = '/tmp/x'\n");
    for (name, connector) in transports(&hosts) {
        let (session, _) = hosts.open(&connector, Purpose::Look).expect(name);
        let said = &session.target().recovery_settings;
        assert_eq!((said.overridden[0].what.as_str(), said.overridden[0].line), ("restore_command", 2));
        assert_eq!((said.conflicts[0].what.as_str(), said.conflicts[0].line), ("promote_trigger_file", 2));
        assert!(said.conflicts[0].file.ends_with("/postgresql.auto.conf"), "{said:?}");
        assert!(said.missing.len() == 1 && said.problems[0].line == 3, "{said:?}");
        assert_eq!(session.target().listening.as_ref().map(|listening| listening.port), Some(7));
    }
}

#[test]
fn a_standby_that_would_not_follow_gets_no_pg_control() {
    for (name, text) in [
        ("postgresql.auto.conf", "recovery_target = 'immediate'\n"),
        ("postgresql.auto.conf", "primary_conninfo = 'host=other'\n"),
        ("postgresql.auto.conf", "include_if_exists = 'conf.d/x.conf'\n"),
        ("postgresql.conf", "Recovery_Target_Lsn = '0/1'\n"),
    ] {
        let hosts = keeping(&[]);
        hosts.write("primary/postgresql.conf", b"port = 1\n");
        hosts.write("primary/conf.d/x.conf", b"recovery_min_apply_delay = 1\nrecovery_target_name = 'x'\n");
        hosts.write(&format!("primary/{name}"), text.as_bytes());
        let error = hosts.run(&hosts.agent()).expect_err(text);
        assert_eq!(error.kind, Kind::TargetRefused, "{error:?}");
        assert!(error.message.contains("line ") && error.hint.is_some(), "{error:?}");
        let there = |name: &str| Path::new(&hosts.path("standby")).join(name).exists();
        assert!(there(MARKER) && !there(PG_CONTROL), "{text}");
        fs::write(hosts.path("primary").join(name), "port = 1\n").expect("corrected");
        hosts.run(&hosts.agent()).expect("the next run completes it");
        assert!(!there(MARKER) && there(PG_CONTROL));
    }
}
