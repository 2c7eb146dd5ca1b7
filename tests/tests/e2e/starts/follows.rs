//! A rebuilt standby follows, whatever any configuration says about recovery: left alone with commits, restore points,
//! trigger files and restarts, it is still in recovery and still replays.

use std::fs;
use std::io::Write;
use std::path::Path;

use pgpool_recovery_e2e::agent::{self, Agent};
use pgpool_recovery_e2e::cluster::Stop;
use pgpool_recovery_e2e::recovery::{Report, remote_start};
use pgpool_recovery_e2e::scratch::write_as_postgres;
use pgpool_recovery_e2e::snapshot::Snapshot;
use pgpool_recovery_e2e::{Cluster, Host, Recovery, Scratch, account, probe, server};
use serde_json::json;

/// What restores, delayed standbys and trigger files leave in configurations. A primary ignores all of it.
fn leftovers(scratch: &Scratch) -> Vec<String> {
    let mut leftovers = vec![
        "recovery_target = 'immediate'\nrecovery_target_action = 'promote'\n".to_owned(),
        "recovery_target_time = '2025-03-03 10:00+00'\nrecovery_target_action = promote\n".to_owned(),
        "recovery_target_name = 'later'\nrecovery_target_action = 'promote'\n".to_owned(),
        "recovery_target_xid '3'\nrecovery_target_inclusive = off\nrecovery_target_action = 'shutdown'\n"
            .to_owned(),
        "RECOVERY_MIN_APPLY_DELAY = 1h\nprimary_conninfo = 'host=nowhere.invalid'\n".to_owned(),
        "restore_command = 'sleep 3600'\nrecovery_target_timeline = '1'\n".to_owned(),
        "primary_slot_name = 'of_another_primary'\narchive_cleanup_command = 'false'\n".to_owned(),
    ];
    if server::major() <= 15 {
        let trigger = scratch.write("trigger", "", 0o600);
        leftovers.push(format!("promote_trigger_file = '{}'\n", trigger.display()));
    }
    leftovers
}

/// Bytes that are no UTF-8, as in a comment that was written in LATIN1.
const LATIN1: &[u8] = b"# f\xfcr die R\xfcckkehr\n";

/// Appends to a file that belongs to `postgres`, or makes it.
fn append(path: &Path, text: &[u8]) {
    let mut file = fs::OpenOptions::new().append(true).create(true).open(path).expect("its configuration");
    file.write_all(text).expect("write");
    account::give(path);
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Leaves a streaming standby alone with what would end its recovery, and waits each time until it has replayed all.
#[track_caller]
fn assert_follows(scratch: &Scratch, primary: &Cluster, standby: &Cluster, host: &str) {
    let still_follows = || {
        standby.wait_for_replay(primary);
        assert!(standby.in_recovery(), "{}", standby.log());
        let overridden: i64 = standby.get(
            "SELECT count(*) FROM pg_settings WHERE sourcefile NOT LIKE '%/myrecovery.conf' AND (name ~ '^recovery_target' \
             OR name IN ('primary_conninfo', 'primary_slot_name', 'restore_command', 'archive_cleanup_command', \
             'recovery_end_command', 'recovery_min_apply_delay', 'promote_trigger_file'))",
            &[],
        );
        assert_eq!(overridden, 0, "settings of other files count");
        assert_eq!(standby.get::<String>("SHOW recovery_target_timeline", &[]), "latest");
    };
    primary.execute("CREATE TABLE IF NOT EXISTS commits (at timestamptz)");
    primary.execute("INSERT INTO commits VALUES (now())");
    still_follows();
    primary.execute("SELECT pg_create_restore_point('later')");
    primary.execute("SELECT pg_switch_wal()");
    still_follows();
    scratch.write("trigger", "", 0o600);
    primary.execute("CHECKPOINT");
    primary.execute("INSERT INTO commits VALUES (now())");
    still_follows();
    standby.stop(Stop::Fast);
    primary.execute("INSERT INTO commits VALUES (now())");
    remote_start(primary, host, standby.dir());
    still_follows();
}

fn recovery(target: &Cluster, primary: &Cluster) -> Recovery {
    Recovery::of(target, primary).option("application_name", "target").option("dest_port", target.port())
}

#[track_caller]
fn assert_warns(report: &Report, words: &[&str]) {
    let warnings = report.at("/warnings").to_string();
    for word in words {
        assert!(warnings.contains(word), "no {word} in {warnings}");
    }
}

#[test]
fn a_kept_configuration_with_leftovers() {
    let scratch = Scratch::new();
    let primary = Cluster::primary(&scratch);
    let target = Cluster::place(&scratch, &Host::here(), "target");
    recovery(&target, &primary).run(&primary);
    let configuration = target.directory().join("postgresql.conf");
    let clean = fs::read(&configuration).expect("its configuration");
    for leftover in leftovers(&scratch) {
        fs::write(&configuration, [LATIN1, clean.as_slice(), leftover.as_bytes()].concat()).expect("write");
        // without a slot: the kept primary_slot_name must not count either
        let report = recovery(&target, &primary).option("slot_name", "").run(&primary);
        assert!(text(fs::read(&configuration).expect("it")).ends_with("myrecovery.conf'\n"), "read last");
        remote_start(&primary, "localhost", target.dir());
        primary.execute("SELECT pg_create_restore_point('later')");
        target.wait_for_replay(&primary);
        assert!(target.in_recovery(), "{leftover}: {}", target.log());
        if leftover.contains("recovery_target_action = 'promote'") {
            assert_warns(
                &report,
                &["recovery_target", "postgresql.conf", "line", "myrecovery.conf overrides"],
            );
        }
        target.stop(Stop::Fast);
    }
    // all at once, before our line and behind it, in files that are included
    fs::create_dir(target.directory().join("conf.d")).expect("make");
    account::give(&target.directory().join("conf.d"));
    let all = leftovers(&scratch).concat();
    fs::write(&configuration, [clean.as_slice(), all.as_bytes(), b"include_dir = 'conf.d'\n"].concat())
        .expect("write");
    append(&target.directory().join("conf.d/90-old.conf"), &[LATIN1, all.as_bytes()].concat());
    recovery(&target, &primary).option("keep_files", "postgresql.conf, conf.d").run(&primary);
    assert!(target.has("conf.d/90-old.conf"));
    remote_start(&primary, "localhost", target.dir());
    assert_follows(&scratch, &primary, &target, "localhost");
}

#[test]
fn a_primary_with_leftovers_and_a_new_node() {
    let scratch = Scratch::new();
    let primary = Cluster::primary(&scratch);
    let all = leftovers(&scratch).concat();
    fs::create_dir(primary.directory().join("conf.d")).expect("make");
    account::give(&primary.directory().join("conf.d"));
    append(&primary.directory().join("conf.d/90-old.conf"), &[LATIN1, all.as_bytes()].concat());
    append(
        &primary.directory().join("postgresql.conf"),
        &[LATIN1, all.as_bytes(), b"include_dir 'conf.d'\n"].concat(),
    );
    append(&primary.directory().join("postgresql.auto.conf"), &[LATIN1, all.as_bytes()].concat());
    let target = Cluster::place(&scratch, &Host::here(), "target");
    let report = recovery(&target, &primary).run(&primary);
    remote_start(&primary, "localhost", target.dir());
    assert_follows(&scratch, &primary, &target, "localhost");
    assert_warns(&report, &["90-old.conf", "recovery_min_apply_delay", "ALTER SYSTEM"]);
    let adopted = text(fs::read(target.directory().join("postgresql.conf")).expect("its configuration"));
    assert!(!adopted.contains("recovery_target"), "{adopted}");
    let auto =
        text(fs::read(target.directory().join("postgresql.auto.conf")).expect("what ALTER SYSTEM set"));
    assert!(auto.contains("ckkehr") && !auto.to_lowercase().contains("recovery_"), "{auto}");
    // and as a standby that has a configuration of its own now
    target.stop(Stop::Fast);
    recovery(&target, &primary).run(&primary);
    remote_start(&primary, "localhost", target.dir());
    assert_follows(&scratch, &primary, &target, "localhost");
}

#[test]
fn a_configuration_outside_the_data_directory() {
    let scratch = Scratch::new();
    let secret = agent::secret(&scratch, "secret");
    let primary = probe::quiet(Cluster::place(&scratch, &Host::here(), "primary"))
        .with("pgpool_recovery.secret_file", secret.display())
        .into_primary();
    let target = Cluster::place(&scratch, &Host::here(), "target");
    let etc = scratch.mkdir("etc");
    scratch.mkdir("etc/conf.d");
    let configuration = etc.join("postgresql.conf");
    let all = leftovers(&scratch).concat();
    let own = format!(
        "port = {}\nunix_socket_directories = '{}'\nmax_connections = 50\nmax_wal_senders = 10\nfsync = off\n\
         wal_retrieve_retry_interval = 200ms\nhba_file = '{}/pg_hba.conf'\n{all}",
        target.port(),
        scratch.sockets().display(),
        target.dir(),
    );
    append(&configuration, &[LATIN1, own.as_bytes(), b"include_dir = 'conf.d'\n"].concat());
    append(&etc.join("conf.d/old.conf"), &[LATIN1, all.as_bytes()].concat());
    let cluster = format!(
        "\n[[cluster]]\ndata_directory = \"{}\"\nbin_directory = \"{}\"\nconfig_file = \"{}\"\n",
        target.dir(),
        server::programs().display(),
        configuration.display()
    );
    let agent = Agent::start_with(&scratch, &Host::here(), &secret, &cluster);
    primary.use_agent(agent.port());
    let recovery =
        || Recovery::to("127.0.0.1", target.dir(), primary.port()).option("application_name", "target");
    let report = recovery().run(&primary);
    remote_start(&primary, "127.0.0.1", target.dir());
    assert_follows(&scratch, &primary, &target, "127.0.0.1");
    assert_warns(&report, &["conf.d/old.conf", "recovery_min_apply_delay", "now includes"]);
    target.stop(Stop::Fast);
    let once = fs::read(&configuration).expect("its configuration");
    recovery().run(&primary);
    assert_eq!(fs::read(&configuration).expect("its configuration"), once, "extended once");
    // an administrator appends a directory behind our line
    append(&configuration, b"include_dir = 'conf.d'");
    recovery().run(&primary);
    assert!(text(fs::read(&configuration).expect("it")).ends_with("myrecovery.conf'\n"), "read last again");
    remote_start(&primary, "127.0.0.1", target.dir());
    assert_follows(&scratch, &primary, &target, "127.0.0.1");
}

#[test]
fn what_cannot_be_overridden_is_refused_by_file_and_line() {
    let scratch = Scratch::new();
    let primary = probe::quiet(Cluster::place(&scratch, &Host::here(), "primary")).into_primary();
    let target = Cluster::place(&scratch, &Host::here(), "target");
    recovery(&target, &primary).run(&primary);
    let keep = "postgresql.conf, postgresql.auto.conf, more.conf";
    let recovery = || recovery(&target, &primary).option("keep_files", keep);
    let auto = target.directory().join("postgresql.auto.conf");
    let (own, clean) = (target.directory().join("postgresql.conf"), fs::read(&auto).expect("it"));
    let (own_clean, more) = (fs::read(&own).expect("it"), target.directory().join("more.conf"));
    let check = |step: &str| -> (bool, String) {
        let sql = "SELECT ok, detail FROM pgpool_recovery_check($1, $2, $3, $4) WHERE step = $5";
        let (port, options) = (i32::from(primary.port()), json!({ "keep_files": keep }));
        let row = primary
            .connect()
            .query_one(sql, &[&"localhost", &target.dir(), &port, &options, &step])
            .expect(sql);
        (row.get(0), row.get(1))
    };
    let (conflict, unreadable) = ("conflicting_settings", "configuration");
    for (file, line, step, place) in [
        (&auto, "recovery_target = 'immediate'\n", conflict, "postgresql.auto.conf\" line "),
        (
            &auto,
            "primary_conninfo = 'host=other password=hidden'\n",
            conflict,
            "postgresql.auto.conf\" line ",
        ),
        (&auto, "include 'more.conf'\n", conflict, "more.conf\" line 2"),
        (&own, "Recovery_Target_Xid = '7'\n", conflict, "postgresql.conf\" line "),
        (&own, "include 'none.conf'\n", unreadable, "none.conf"),
        (&own, "port = \n", unreadable, "postgresql.conf\" line "),
    ] {
        append(&more, b"\nprimary_slot_name = 'x'\n");
        append(file, line.as_bytes());
        let before = Snapshot::of(target.directory());
        let (ok, detail) = check(step);
        assert!(!ok && detail.contains(place) && !detail.contains("hidden"), "{line}: {detail}");
        recovery().fail(&primary).expect("55000").says(place);
        before.assert_unchanged(target.directory());
        fs::write(&auto, &clean).expect("write");
        fs::write(&own, &own_clean).expect("write");
        fs::remove_file(&more).expect("remove");
    }
    assert!(check(conflict).0 && check(unreadable).0);
    // a delay that the standby's own ALTER SYSTEM set, in a file that is kept on purpose, is the operator's
    append(&auto, b"recovery_min_apply_delay = '10ms'\n");
    let report = recovery().run(&primary);
    assert_warns(&report, &["the standby keeps recovery_min_apply_delay", "postgresql.auto.conf"]);
    remote_start(&primary, "localhost", target.dir());
    assert_eq!(target.get::<String>("SHOW recovery_min_apply_delay", &[]), "10ms");
    target.wait_for_replay(&primary);
    assert!(target.in_recovery());
}

/// The reason for refusing them: the server drops earlier settings of the same spelling only.
#[test]
fn a_recovery_target_in_capitals_keeps_a_server_from_starting() {
    let scratch = Scratch::new();
    let server = Cluster::place(&scratch, &Host::here(), "server").init();
    write_as_postgres(&server.directory().join("standby.signal"), "", 0o600);
    append(
        &server.directory().join("postgresql.conf"),
        b"Recovery_Target_Xid = '7'\nrecovery_target = ''\nrecovery_target_xid = ''\n",
    );
    assert!(!server.try_start().status.success(), "it is refused for nothing");
    assert!(server.log().contains("multiple recovery targets"), "{}", server.log());
}

#[test]
fn a_file_that_the_server_skips_is_no_reason_to_refuse() {
    let scratch = Scratch::new();
    let primary = Cluster::primary(&scratch);
    let target = Cluster::place(&scratch, &Host::here(), "target");
    recovery(&target, &primary).run(&primary);
    let configuration = target.directory().join("postgresql.conf");
    // behind the line that a recovery has added
    append(&configuration, b"include_if_exists = 'closed.conf'\ninclude_if_exists = 'masked.conf'\n");
    let closed = target.directory().join("closed.conf");
    append(&closed, b"recovery_target = 'immediate'\n");
    fs::set_permissions(&closed, std::os::unix::fs::PermissionsExt::from_mode(0o000)).expect("chmod");
    std::os::unix::fs::symlink("/dev/null", target.directory().join("masked.conf")).expect("link");
    recovery(&target, &primary).run(&primary);
    assert!(closed.exists(), "it is the standby's own");
    let last = text(fs::read(&configuration).expect("it"));
    assert!(last.ends_with("myrecovery.conf'\n"), "read after a file that another server might read: {last}");
    remote_start(&primary, "localhost", target.dir());
    assert!(target.log().contains("skipping missing configuration file"), "{}", target.log());
    assert_follows(&scratch, &primary, &target, "localhost");
}

#[test]
fn a_configuration_that_was_replaced_after_the_recovery_makes_no_second_primary() {
    let scratch = Scratch::new();
    let primary = Cluster::primary(&scratch);
    let target = Cluster::place(&scratch, &Host::here(), "target");
    let configuration = target.directory().join("postgresql.conf");
    recovery(&target, &primary).run(&primary);
    let whole = fs::read(&configuration).expect("it");
    let own: String = text(whole.clone())
        .lines()
        .filter(|line| !line.contains("myrecovery.conf"))
        .fold(String::new(), |text, line| text + line + "\n");
    // as a tool that manages configurations writes it
    let managed = format!("{own}recovery_target = 'immediate'\nrecovery_target_action = 'promote'\n");
    fs::write(&configuration, &managed).expect("write");
    let error = pgpool_recovery_e2e::recovery::try_remote_start(&primary, "localhost", target.dir())
        .expect_err("it would promote itself");
    error.expect("58000").says("would end its recovery").says("postgresql.conf").says("recovery_target");
    assert!(target.postmaster().is_none(), "it was started: {}", target.log());
    fs::write(&configuration, &whole).expect("write");
    remote_start(&primary, "localhost", target.dir());
    assert!(target.in_recovery());
}
