//! What is told before a run and stops none: that the standby would be of another release, sort text by another library, lose its
//! slot, or read settings that have no effect. Each in the row of the check and in the warnings of a run.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::ops::Deref;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use pgpool_recovery_e2e::agent::Agent;
use pgpool_recovery_e2e::stage::Condition;
use pgpool_recovery_e2e::{Host, Scratch, Stage, Transport, account, process, server};
use serde_json::{Value, json};

use super::obstacles::{Hosts, write_bytes};

/// A primary, the place of a target, and a secret for an agent that a test starts.
struct Place(Stage);

impl Deref for Place {
    type Target = Stage;

    fn deref(&self) -> &Stage {
        &self.0
    }
}

impl Place {
    fn new() -> Self {
        Self(Stage::builder().quiet().build())
    }

    /// A row of the check: whether it is good, and all that it says.
    fn row(&self, step: &str, options: &Value) -> (bool, String) {
        let sql = "SELECT ok, concat_ws(' ', detail, hint) FROM pgpool_recovery_check('localhost', $1, $2, $3) WHERE step = $4";
        let port = i32::from(self.primary.port());
        let row = self.primary.connect().query_one(sql, &[&self.target.dir(), &port, options, &step]);
        let row = row.expect(sql);
        (row.get(0), row.get(1))
    }

    /// The row is bad and says this; a run is none the worse for it, and warns.
    #[track_caller]
    fn assert_told(&self, step: &str, options: &Value, words: &[&str]) {
        let (ok, said) = self.row(step, options);
        assert!(!ok, "{said}");
        let options = options.as_object().expect("options").iter();
        let recovery =
            options.fold(self.recovery(), |recovery, (name, value)| recovery.option(name, value.clone()));
        let report = recovery.option("dry_run", true).run(&self.primary);
        let warnings = report.at("/warnings").as_array().expect("warnings");
        let texts: Vec<&str> = warnings.iter().filter_map(Value::as_str).collect();
        for word in words {
            assert!(said.contains(word), "no {word}: {said}");
            assert!(texts.iter().any(|text| text.contains(word)), "no {word}: {texts:#?}");
        }
    }
}

fn through(agent: &Agent) -> Value {
    json!({ "transport": "agent", "agent_port": agent.port() })
}

/// The programs under test, of which the server says that it is of this release.
fn programs_of(scratch: &Scratch, release: &str) -> PathBuf {
    let programs = scratch.mkdir(format!("programs-{release}"));
    for entry in fs::read_dir(server::programs()).expect("the programs") {
        let entry = entry.expect("a program");
        if entry.file_name() != "postgres" {
            symlink(entry.path(), programs.join(entry.file_name())).expect("link");
        }
    }
    let text = format!(
        "#!/bin/sh\n[ \"$1\" != --version ] || {{ echo 'postgres (PostgreSQL) {release} (Debian)'; exit; }}\nexec {} \"$@\"\n",
        server::program("postgres").display()
    );
    let postgres = programs.join("postgres");
    fs::write(&postgres, text).expect("write");
    fs::set_permissions(&postgres, Permissions::from_mode(0o755)).expect("chmod");
    account::give(&postgres);
    programs
}

#[test]
fn a_server_of_another_release_on_the_targets_host() {
    let place = Place::new();
    let own: String = place.primary.get("SELECT split_part(current_setting('server_version'), ' ', 1)", &[]);
    // the primary's own programs
    let (ok, said) = place.row("minor_versions", &json!({ "transport": "local" }));
    assert!(ok && said.contains(&format!("PostgreSQL {own} on both sides")), "{said}");
    let same = Agent::start(&place.scratch, &Host::here(), &place.secret, &[place.target.directory()]);
    assert!(place.row("minor_versions", &through(&same)).0);
    drop(same);
    let major = server::major();
    for (release, which) in [(format!("{major}.999"), "newer"), (format!("{major}.0"), "older")] {
        let cluster = format!(
            "\n[[cluster]]\ndata_directory = \"{}\"\nbin_directory = \"{}\"\n",
            place.target.dir(),
            programs_of(&place.scratch, &release).display()
        );
        let agent = Agent::start_with(&place.scratch, &Host::here(), &place.secret, &cluster);
        let is_numbered = own.split_once('.').is_some();
        let which = if is_numbered { which } else { "" };
        place.assert_told("minor_versions", &through(&agent), &[&own, &release, which]);
    }
}

/// This machine's C library, its version, and a copy that says it is of another one.
fn another_libc(scratch: &Scratch) -> (PathBuf, String, PathBuf, String) {
    let maps = fs::read_to_string("/proc/self/maps").expect("what this process has loaded");
    let mut files = maps.lines().filter_map(|line| line.split_whitespace().next_back());
    let library = PathBuf::from(files.find(|path| path.ends_with("/libc.so.6")).expect("glibc"));
    let mut getconf = Host::here().command("getconf");
    getconf.arg("GNU_LIBC_VERSION");
    let said = process::run(getconf).ok();
    let version = said.trim().strip_prefix("glibc ").expect("a version").to_owned();
    let other = format!("2.{}", "9".repeat(version.len() - 2));
    let mut content = fs::read(&library).expect("the C library");
    let banner = format!("release version {version}.");
    let at = content.windows(banner.len()).position(|text| text == banner.as_bytes()).expect("its banner");
    content[at..at + banner.len()].copy_from_slice(format!("release version {other}.").as_bytes());
    let copy = scratch.join("libc.so.6");
    fs::write(&copy, content).expect("write");
    fs::set_permissions(&copy, Permissions::from_mode(0o755)).expect("chmod");
    (library, version, copy, other)
}

#[test]
fn another_c_library_on_the_targets_host() {
    let place = Place::new();
    let (library, here, copy, there) = another_libc(&place.scratch);
    let agent = Agent::start_among_mounts(
        &place.scratch,
        &place.secret,
        &[place.target.directory()],
        &[(copy, library)],
    );
    let (through, local) = (through(&agent), json!({ "transport": "local" }));
    // all its databases are in the order of bytes
    for options in [&through, &local] {
        let (ok, said) = place.row("collation", options);
        assert!(ok && said.contains("no database"), "{said}");
    }
    place.primary.execute("CREATE DATABASE sorted");
    // nobody connects to it, so its locale need not be installed
    place.primary.execute("UPDATE pg_database SET datcollate = 'en_US.UTF-8' WHERE datname = 'sorted'");
    let (ok, said) = place.row("collation", &local);
    assert!(
        ok && said.contains(&format!("glibc {here} on both sides")) && said.contains("\"sorted\""),
        "{said}"
    );
    let differ = format!("glibc is {here} here and {there} on the target's host");
    place.assert_told("collation", &through, &[&differ, "the text of database \"sorted\"."]);
    assert!(place.row("collation", &through).1.contains("REINDEX"), "what to do");
    if server::major() >= 15 {
        place.primary.execute("UPDATE pg_database SET datcollversion = '2.1' WHERE datname = 'sorted'");
        let made =
            format!("database \"sorted\" was made with collation version 2.1, and this primary has {here}");
        place.assert_told("collation", &local, &[&made]);
        place.assert_told("collation", &through, &[&differ, &made]);
    }
}

/// What a program there says on its first line.
fn first_line(root: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new("chroot");
    command.arg(root).args(arguments);
    process::run(command).ok().lines().next().unwrap_or_default().to_owned()
}

/// A real one: the agent, the server's programs and their libraries are those of another Debian.
#[test]
#[ignore = "needs the root directory of another Debian: scripts/test.sh collation"]
fn another_debian_on_the_targets_host() {
    let root =
        std::env::var_os("PGPOOL_RECOVERY_OTHER_ROOT").expect("PGPOOL_RECOVERY_OTHER_ROOT, a directory");
    let root = PathBuf::from(root);
    let stage = Stage::builder().quiet().standby(Condition::Stopped).build();
    let place = Place(stage);
    let (_, here, ..) = another_libc(&place.scratch);
    // "ldd (Debian GLIBC 2.41-12+deb13u5) 2.41"
    let there = first_line(&root, &["ldd", "--version"]);
    let there = there.rsplit(' ').next().expect("a version");
    assert_ne!(here, there, "the same C library");
    let servers = fs::read_dir(root.join("usr/lib/postgresql")).expect("a server there").flatten();
    let programs = servers.map(|entry| Path::new("/usr/lib/postgresql").join(entry.file_name()).join("bin"));
    let programs = programs.max().expect("a server there");
    let release = first_line(&root, &[programs.join("postgres").to_str().expect("ASCII"), "--version"]);
    let cluster = format!(
        "\n[[cluster]]\ndata_directory = \"{}\"\nbin_directory = \"{}\"\n",
        place.target.dir(),
        programs.display()
    );
    let agent = Agent::start_in_root(&place.scratch, &root, &place.secret, &cluster);
    let through = through(&agent);
    let (ok, said) = place.row("collation", &through);
    assert!(ok && said.contains("no database"), "in the order of bytes: {said}");
    place.primary.execute("CREATE DATABASE sorted");
    place.primary.execute("UPDATE pg_database SET datcollate = 'en_US.UTF-8' WHERE datname = 'sorted'");
    let (ok, said) = place.row("collation", &json!({ "transport": "local" }));
    assert!(ok && said.contains(&format!("glibc {here} on both sides")), "{said}");
    let (ok, said) = place.row("collation", &through);
    eprintln!("{release}: {said}");
    let differ = format!("glibc is {here} here and {there} on the target's host");
    assert!(!ok && said.contains(&differ) && said.contains("the text of database \"sorted\"."), "{said}");
    // its own server's, not that which the agent was built with
    let icu: i64 = place.primary.get("SELECT count(*) FROM pg_collation WHERE collprovider = 'i'", &[]);
    if server::major() >= 15 && icu > 0 {
        place.primary.execute(
            "CREATE DATABASE by_icu TEMPLATE template0 LOCALE_PROVIDER icu ICU_LOCALE 'de' LOCALE 'C' ENCODING 'UTF8'",
        );
        let (ok, said) = place.row("collation", &through);
        assert!(!ok && said.contains("ICU is ") && said.contains("database \"by_icu\""), "{said}");
        eprintln!("{said}");
    }
}

/// What this server's ICU has to do with it, where it has one.
#[test]
fn the_icu_of_one_host_is_the_same_on_both_sides() {
    let place = Place::new();
    let icu: i64 = place.primary.get("SELECT count(*) FROM pg_collation WHERE collprovider = 'i'", &[]);
    if server::major() < 15 || icu == 0 {
        return;
    }
    place.primary.execute(
        "CREATE DATABASE sorted TEMPLATE template0 LOCALE_PROVIDER icu ICU_LOCALE 'de' LOCALE 'C' ENCODING 'UTF8'",
    );
    let agent = Agent::start(&place.scratch, &Host::here(), &place.secret, &[place.target.directory()]);
    for options in [through(&agent), json!({ "transport": "local" })] {
        let (ok, said) = place.row("collation", &options);
        assert!(
            ok && said.contains("ICU ") && said.contains("sorts the text of database \"sorted\""),
            "{said}"
        );
    }
}

#[test]
fn limits_of_slots() {
    let place = Place::new();
    let options = json!({ "transport": "local" });
    let set = |name: &str, value: &str| {
        place.primary.execute(&format!("ALTER SYSTEM SET {name} = '{value}'"));
        place.primary.reload();
    };
    let (ok, said) = place.row("slot_limits", &options);
    assert!(ok && said.contains("any amount of WAL"), "{said}");
    set("max_slot_wal_keep_size", "16MB");
    place.assert_told(
        "slot_limits",
        &options,
        &["max_slot_wal_keep_size is 16.0 MB", "less than a run needs"],
    );
    let (ok, said) = place.row("slot_limits", &json!({ "transport": "local", "slot_name": "" }));
    assert!(ok && said.contains("no slot"), "{said}");
    set("max_slot_wal_keep_size", "10GB");
    let (ok, said) = place.row("slot_limits", &options);
    assert!(ok && said.contains("10.0 GB"), "{said}");
    if server::major() >= 18 {
        set("idle_replication_slot_timeout", "2min");
        place.assert_told("slot_limits", &options, &["idle_replication_slot_timeout is 2 min"]);
        set("idle_replication_slot_timeout", "1d");
        let (ok, said) = place.row("slot_limits", &options);
        assert!(ok && said.contains("24 h"), "{said}");
    }
}

#[test]
fn settings_that_another_file_makes() {
    let mut hosts = Hosts::new();
    hosts.options.insert("keep_files", json!("postgresql.conf, postgresql.auto.conf, own.conf"));
    let (main, auto) = (hosts.at("postgresql.conf"), hosts.at("postgresql.auto.conf"));
    write_bytes(&auto, b"# ALTER SYSTEM\n");
    let (own_main, own_auto) = (fs::read(&main).expect("it"), fs::read(&auto).expect("it"));
    let line = |text: &[u8]| text.split(|byte| *byte == b'\n').count();
    hosts.assert_works();
    // read behind myrecovery.conf: the standby would not follow
    for setting in
        ["primary_conninfo = 'host=other'", "restore_command = 'cp'", "recovery_target = 'immediate'"]
    {
        write_bytes(&auto, &[&own_auto[..], setting.as_bytes(), b"\n"].concat());
        let name = setting.split_once(' ').map_or(setting, |(name, _)| name);
        let place = format!("{name} in \"{}\" line {}", auto.display(), line(&own_auto));
        hosts.assert_refused("conflicting_settings", "55000", &[&place]);
    }
    write_bytes(&auto, &own_auto);
    // read before it, or the standby's own business
    write_bytes(&hosts.at("own.conf"), b"\nrecovery_min_apply_delay = 1h\n");
    write_bytes(&main, &[b"include 'own.conf'\nhot_standby = off\n", &own_main[..]].concat());
    let own = hosts.at("own.conf");
    let words = |main: &Path, own: &Path| {
        [
            format!("overrides recovery_min_apply_delay (\"{}\" line 2)", own.display()),
            format!("hot_standby is off in \"{}\" line 2", main.display()),
        ]
    };
    for transport in Transport::BOTH {
        let rows: BTreeMap<String, (bool, String, String)> = hosts.check(transport);
        let (ok, said, hint) = &rows["conflicting_settings"];
        assert!(!ok && hint.contains("hot_standby = on"), "{said} {hint}");
        assert_eq!(rows.values().filter(|(ok, _, _)| !ok).count(), 1, "{rows:#?}");
        let report = hosts.recovery(transport).option("dry_run", true).run(&hosts.primary);
        let warnings = report.at("/warnings").as_array().expect("warnings");
        for word in words(&main, &own) {
            assert!(said.contains(&word), "no {word}: {said}");
            let is_told = |warning: &Value| warning.as_str().is_some_and(|text| text.contains(&word));
            assert!(warnings.iter().any(is_told), "no {word}: {warnings:#?}");
        }
    }
    write_bytes(&main, &own_main);
    hosts.assert_works();
}
