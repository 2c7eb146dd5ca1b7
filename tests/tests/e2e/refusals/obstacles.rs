//! A run begins only if it can end: what a recovery would have to remove, enter, read or write is looked at first. Either
//! it works and the standby streams, or the check, the dry run and the first stage refuse it and nothing has changed.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::ops::Deref;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use pgpool_recovery_e2e::cluster::Stop;
use pgpool_recovery_e2e::ext4::Ext4;
use pgpool_recovery_e2e::scratch::write_as_postgres;
use pgpool_recovery_e2e::snapshot::Snapshot;
use pgpool_recovery_e2e::stage::{Builder, Condition};
use pgpool_recovery_e2e::{Host, Recovery, Scratch, Stage, Transport, account, probe, process, wait};
use serde_json::{Value, json};

/// A comment in LATIN1, and one in EUC-JP.
const BYTES: &[u8] = b"# f\xfcr alle\n# \xa5\xc7\xa1\xbc\xa5\xbf\n";

/// A stage and the ways to its target.
pub(super) struct Hosts {
    stage: Stage,
    pub(super) transports: &'static [Transport],
    pub(super) options: BTreeMap<&'static str, Value>,
}

impl Deref for Hosts {
    type Target = Stage;

    fn deref(&self) -> &Stage {
        &self.stage
    }
}

fn builder(scratch: &Scratch, more: &str) -> Builder {
    let roots = format!("tablespace_roots = [\"{}\"]\n{more}", scratch.path().display());
    Stage::on(scratch).quiet().agent_with(&roots)
}

impl Hosts {
    /// With a stopped standby.
    pub(super) fn new() -> Self {
        Self::with(builder(&Scratch::new(), "").standby(Condition::Stopped), &Transport::BOTH)
    }

    /// As Debian lays a standby out: the configuration is elsewhere, so only an agent knows it.
    fn debian() -> (Self, PathBuf) {
        let scratch = Scratch::new();
        let etc = scratch.mkdir("etc");
        scratch.mkdir("etc/conf.d");
        let configuration = etc.join("postgresql.conf");
        let more = format!("config_file = \"{}\"\n", configuration.display());
        let builder = builder(&scratch, &more).target(move |target| {
            let own = format!(
                "port = {}\nunix_socket_directories = '{}'\nmax_connections = 50\nfsync = off\n\
                 wal_retrieve_retry_interval = 200ms\nhba_file = '{}/pg_hba.conf'\ninclude_dir = 'conf.d'\n",
                target.port(),
                target.scratch().sockets().display(),
                target.dir(),
            );
            write_bytes(&configuration, &[BYTES, own.as_bytes()].concat());
            target
        });
        let hosts = Self::with(builder, &[Transport::Agent]);
        hosts.assert_works();
        (hosts, etc)
    }

    fn with(builder: Builder, transports: &'static [Transport]) -> Self {
        Self { stage: builder.build(), transports, options: [("application_name", json!("target"))].into() }
    }

    pub(super) fn recovery(&self, transport: Transport) -> Recovery {
        let recovery = Recovery::of(&self.target, &self.primary).option("transport", transport.name());
        self.options.iter().fold(recovery, |recovery, (name, value)| recovery.option(name, value.clone()))
    }

    /// Of every step of the check whether it is well, and what it says; of a bad one the hint, too.
    pub(super) fn check(&self, transport: Transport) -> BTreeMap<String, (bool, String, String)> {
        let mut options = json!(self.options);
        options["transport"] = json!(transport.name());
        let sql =
            "SELECT step, ok, detail, coalesce(hint, '') FROM pgpool_recovery_check('localhost', $1, $2, $3)";
        let port = i32::from(self.primary.port());
        let rows = self.primary.connect().query(sql, &[&self.target.dir(), &port, &options]).expect(sql);
        rows.iter().map(|row| (row.get(0), (row.get(1), row.get(2), row.get(3)))).collect()
    }

    /// Tablespace `far` with table `there`: its directory on the primary, and the one that the target has for it.
    pub(super) fn mapped_tablespace(&mut self) -> (PathBuf, PathBuf) {
        let (space, place) = (self.scratch.mkdir("primary-space"), self.scratch.mkdir("place"));
        self.primary.execute(&format!("CREATE TABLESPACE far LOCATION '{}'", space.display()));
        self.primary.execute("CREATE TABLE there TABLESPACE far AS SELECT generate_series(1, 10000) AS i");
        self.options.insert("tablespace_mapping", json!(format!("{}={}", space.display(), place.display())));
        (space, place)
    }

    /// It is good by the check, the dry run changes nothing, and the standby streams in the end.
    #[track_caller]
    pub(super) fn assert_works(&self) {
        for &transport in self.transports {
            let before = Snapshot::of(self.target.directory());
            let rows = self.check(transport);
            assert!(rows.values().all(|(ok, _, _)| *ok), "{transport:?}: {rows:#?}");
            self.recovery(transport).option("dry_run", true).run(&self.primary);
            before.assert_unchanged(self.target.directory());
            self.recovery(transport).option("start", true).run(&self.primary);
            self.primary.wait_for_standby("target");
            self.target.wait_for_replay(&self.primary);
            self.stop();
        }
    }

    fn stop(&self) {
        self.target.stop(Stop::Fast);
        let sql = "SELECT count(*) FROM pg_stat_replication";
        wait::until_true("the walsender to end", wait::PATIENCE, || self.primary.get::<i64>(sql, &[]) == 0);
    }

    /// The check says why in this row, dry run and first stage end with it, each says what to do, and everything is as
    /// before.
    #[track_caller]
    pub(super) fn assert_refused(&self, step: &str, sqlstate: &str, words: &[&str]) {
        let slots = probe::slots(&self.primary);
        for &transport in self.transports {
            let before = self.everything();
            let rows = self.check(transport);
            let bad: Vec<&str> =
                rows.iter().filter(|(_, (ok, _, _))| !ok).map(|(step, _)| step.as_str()).collect();
            assert_eq!(bad, [step], "{transport:?}: {rows:#?}");
            let (_, said, hint) = &rows[step];
            assert!(!hint.is_empty(), "{transport:?}: {said}");
            let dry = self.recovery(transport).option("dry_run", true).fail(&self.primary);
            let error = self.recovery(transport).fail(&self.primary);
            for error in [dry, error] {
                assert!(!error.hint.is_empty(), "{transport:?}: {error:?}");
                let error = error.expect(sqlstate);
                for word in words {
                    assert!(
                        said.contains(word) || hint.contains(word),
                        "{transport:?}: no {word}: {said} {hint}"
                    );
                    error.clone().says(word);
                }
            }
            before.iter().for_each(|(path, before)| before.assert_unchanged(path));
        }
        assert_eq!(probe::slots(&self.primary), slots);
    }

    /// The target, its configuration and the places of its tablespaces.
    fn everything(&self) -> [(PathBuf, Snapshot); 3] {
        ["target", "etc", "place"].map(|name| {
            let path = self.scratch.join(name);
            let snapshot = Snapshot::of(&path);
            (path, snapshot)
        })
    }

    pub(super) fn at(&self, name: &str) -> PathBuf {
        self.target.directory().join(name)
    }

    /// The directory of the database that every cluster has.
    pub(super) fn database(&self) -> PathBuf {
        let oid: u32 = self.primary.get("SELECT oid FROM pg_database WHERE datname = 'postgres'", &[]);
        self.at(&format!("base/{oid}"))
    }
}

pub(super) fn write_bytes(path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).expect("write");
    account::give(path);
}

pub(super) fn give_to_root(path: &Path, mode: u32) {
    chown(path, Some(0), Some(0)).expect("chown");
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("chmod");
}

pub(super) fn give_back(path: &Path, mode: u32) {
    account::give(path);
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("chmod");
}

const FOREIGN: &[&str] = &["belongs to another user", "chown -R"];

#[test]
fn a_pg_wal_that_is_a_file_system_of_its_own() {
    let hosts = Hosts::new();
    let wal = Ext4::holding(&hosts.scratch, &hosts.at("pg_wal"), 256);
    hosts.assert_works();
    assert!(wal.has_lost_and_found());
    // as mkfs leaves it
    give_to_root(wal.path(), 0o755);
    hosts.assert_refused("target_writable", "55000", FOREIGN);
    give_back(wal.path(), 0o700);
    hosts.assert_works();
}

#[test]
fn a_new_standby_whose_pg_wal_is_a_file_system_of_its_own() {
    let mut hosts = Hosts::new();
    hosts.options.insert("dest_port", json!(hosts.target.port()));
    for transports in [&[Transport::Local], &[Transport::Agent]] {
        fs::remove_dir_all(hosts.target.directory()).expect("removed");
        fs::create_dir(hosts.target.directory()).expect("made");
        give_back(hosts.target.directory(), 0o700);
        let wal = Ext4::empty(&hosts.scratch, &hosts.at("pg_wal"), 256);
        hosts.transports = transports;
        hosts.assert_works();
        assert!(wal.has_lost_and_found());
    }
}

#[test]
fn a_new_standby_with_nothing_but_files_of_its_own() {
    let mut hosts = Hosts::new();
    let own = fs::read(hosts.at("postgresql.conf")).expect("its configuration");
    let own = [&own[..], b"include_if_exists = 'own/more.conf'\n"].concat();
    for transports in [&[Transport::Local], &[Transport::Agent]] {
        fs::remove_dir_all(hosts.target.directory()).expect("removed");
        fs::create_dir_all(hosts.at("own")).expect("made");
        give_back(hosts.target.directory(), 0o700);
        give_back(&hosts.at("own"), 0o700);
        write_bytes(&hosts.at("postgresql.conf"), &own);
        write_as_postgres(&hosts.at("own/more.conf"), "work_mem = '5MB'\n", 0o600);
        hosts.transports = transports;
        hosts.assert_works();
        assert_eq!(hosts.target.read("own/more.conf"), "work_mem = '5MB'\n");
    }
}

#[test]
fn a_pg_wal_with_too_little_room() {
    let hosts = Hosts::new();
    let path = hosts.at("pg_wal");
    fs::remove_dir_all(&path).expect("removed");
    let small = Ext4::empty(&hosts.scratch, &path, 24);
    hosts.assert_refused("space", "53100", &["not enough space", "MB are free"]);
    drop(small);
    // full of what a recovery removes
    let full = Ext4::empty(&hosts.scratch, &path, 160);
    write_bytes(&full.path().join("old"), &vec![1; 130 << 20]);
    hosts.assert_works();
    assert!(!full.path().join("old").exists());
}

#[test]
fn other_directories_that_are_file_systems_of_their_own() {
    let hosts = Hosts::new();
    let mounts = [hosts.database(), hosts.at("global")].map(|path| Ext4::holding(&hosts.scratch, &path, 128));
    hosts.primary.execute("CREATE TABLE more AS SELECT generate_series(1, 10000)");
    hosts.assert_works();
    assert!(mounts.iter().all(Ext4::has_lost_and_found));
    drop(mounts);
}

#[test]
fn a_tablespace_whose_place_is_a_file_system_or_belongs_to_root() {
    let mut hosts = Hosts::new();
    let space = hosts.scratch.mkdir("primary-space");
    hosts.primary.execute(&format!("CREATE TABLESPACE far LOCATION '{}'", space.display()));
    hosts.primary.execute("CREATE TABLE there TABLESPACE far AS SELECT generate_series(1, 10000)");
    let place = hosts.scratch.mkdir("place");
    hosts.options.insert("tablespace_mapping", json!(format!("{}={}", space.display(), place.display())));
    give_to_root(&place, 0o755);
    hosts.assert_refused("target_writable", "55000", FOREIGN);
    let mount = Ext4::empty(&hosts.scratch, &place, 128);
    give_to_root(&place, 0o755);
    hosts.assert_refused("target_writable", "55000", FOREIGN);
    give_back(&place, 0o700);
    hosts.assert_works();
    assert!(mount.has_lost_and_found());
    // what lies in it was given to root meanwhile
    let version = fs::read_dir(&place).expect("list").map(|entry| entry.expect("an entry").path());
    let version = version.into_iter().find(|path| path.to_string_lossy().contains("PG_")).expect("in use");
    give_to_root(&version, 0o755);
    hosts.assert_refused("target_writable", "55000", FOREIGN);
    give_back(&version, 0o700);
    hosts.assert_works();
}

#[test]
fn directories_of_root_in_the_target() {
    let hosts = Hosts::new();
    let notes = hosts.at("notes");
    for mode in [0o755, 0o700] {
        fs::create_dir(&notes).expect("made");
        fs::write(notes.join("letter"), "precious").expect("written");
        give_to_root(&notes, mode);
        hosts.assert_refused("target_writable", "55000", FOREIGN);
        fs::remove_dir_all(&notes).expect("removed");
    }
    let deep = hosts.database().join("old/older");
    fs::create_dir_all(&deep).expect("made");
    fs::write(deep.join("1"), "1").expect("written");
    account::give(deep.parent().expect("old"));
    hosts.assert_refused("target_writable", "55000", FOREIGN);
    fs::remove_dir_all(deep.parent().expect("old")).expect("removed");

    // as when a database was copied as root once
    for mode in [0o755, 0o700] {
        give_to_root(&hosts.database(), mode);
        hosts.assert_refused("target_writable", "55000", FOREIGN);
        give_back(&hosts.database(), 0o700);
    }
}

#[test]
fn files_of_root_in_the_target() {
    let hosts = Hosts::new();
    for mode in [0o644, 0o600] {
        // surplus, planned, and made for the standby
        let surplus = hosts.at("postgresql.conf.bak");
        fs::write(&surplus, "a copy").expect("written");
        let mut files = vec![surplus, hosts.database().join("PG_VERSION"), hosts.at("pg_hba.conf")];
        if mode == 0o644 {
            // closed, it would keep the server from reading its configuration now
            files.push(hosts.at("postgresql.auto.conf"));
        }
        for file in &files {
            give_to_root(file, mode);
        }
        fs::create_dir(hosts.at("empty")).expect("made");
        hosts.assert_works();
        assert!(!files[0].exists() && !hosts.at("empty").exists());
    }
    // its own configuration, which nothing replaces
    let configuration = hosts.at("postgresql.conf");
    give_to_root(&configuration, 0o600);
    for &transport in hosts.transports {
        let rows = hosts.check(transport);
        assert!(!rows["configuration"].0 && !rows["configuration"].2.is_empty(), "{transport:?}: {rows:#?}");
        let before = Snapshot::of(hosts.target.directory());
        hosts.recovery(transport).fail(&hosts.primary).expect("55000").says("postgresql.conf");
        before.assert_unchanged(hosts.target.directory());
    }
    give_back(&configuration, 0o600);
    hosts.assert_works();
}

#[test]
fn closed_files_of_root_on_the_primary() {
    let hosts = Hosts::new();
    let copy = hosts.primary.directory().join("postgresql.conf.bak");
    fs::write(&copy, "a copy").expect("written");
    give_to_root(&copy, 0o600);
    hosts.assert_refused("primary_files", "42501", &["postgresql.conf.bak", "must be readable"]);
    fs::remove_file(&copy).expect("removed");
    let closed = hosts.primary.directory().join("closed");
    fs::create_dir(&closed).expect("made");
    give_to_root(&closed, 0o700);
    hosts.assert_refused("primary_files", "42501", &["closed", "must be readable"]);
    fs::remove_dir(&closed).expect("removed");
    // which is made for the standby, not copied
    let auto = hosts.primary.directory().join("postgresql.auto.conf");
    give_to_root(&auto, 0o600);
    hosts.assert_refused("configuration", "55000", &["postgresql.auto.conf", "cannot be read"]);
    give_back(&auto, 0o600);
    hosts.assert_works();
}

#[test]
fn configuration_of_any_bytes_and_length() {
    let hosts = Hosts::new();
    let primary = &hosts.primary;
    for (encoding, prefix) in [("LATIN1", "ü %m "), ("EUC_JP", "デ %m ")] {
        primary.execute(&format!(
            "CREATE DATABASE {encoding} ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0"
        ));
        let mut client = primary.connect_to(&encoding.to_lowercase());
        client.batch_execute(&format!("ALTER SYSTEM SET log_line_prefix = '{prefix}'")).expect("set");
        drop(client);
        let auto = fs::read(primary.directory().join("postgresql.auto.conf")).expect("it");
        assert!(String::from_utf8(auto).is_err(), "the test needs bytes that are no UTF-8");
        let configuration = hosts.at("postgresql.conf");
        let own = fs::read(&configuration).expect("its configuration");
        let long = BYTES.repeat((1 << 20) / BYTES.len());
        write_bytes(&configuration, &[BYTES, &own, &long].concat());
        hosts.assert_works();
        let auto = fs::read(hosts.at("postgresql.auto.conf")).expect("it");
        assert!(String::from_utf8(auto).is_err(), "the bytes travel");
        write_bytes(&configuration, &own);
    }
    // more than any configuration has
    let own = fs::read(hosts.at("postgresql.conf")).expect("its configuration");
    write_bytes(&hosts.at("postgresql.conf"), &[&own[..], &BYTES.repeat(1 << 20)].concat());
    for &transport in hosts.transports {
        let before = Snapshot::of(hosts.target.directory());
        hosts.recovery(transport).fail(primary).expect("55000").says("too large");
        let (ok, said, hint) = &hosts.check(transport)["configuration"];
        assert!(!ok && said.contains("postgresql.conf") && !hint.is_empty(), "{said}");
        before.assert_unchanged(hosts.target.directory());
    }
    write_bytes(&hosts.at("postgresql.conf"), &own);
    let auto = primary.directory().join("postgresql.auto.conf");
    let theirs = fs::read(&auto).expect("it");
    write_bytes(&auto, &[&theirs[..], &BYTES.repeat(1 << 20)].concat());
    hosts.assert_refused("configuration", "55000", &["postgresql.auto.conf", "larger than"]);
    write_bytes(&auto, &theirs);
}

#[test]
fn the_layout_of_debian() {
    let (hosts, etc) = Hosts::debian();
    let wal = Ext4::holding(&hosts.scratch, &hosts.at("pg_wal"), 256);
    let notes = hosts.at("notes");
    fs::create_dir(&notes).expect("made");
    fs::write(notes.join("letter"), "precious").expect("written");
    give_to_root(&notes, 0o755);
    hosts.assert_refused("target_writable", "55000", FOREIGN);
    fs::remove_dir_all(&notes).expect("removed");
    give_to_root(&hosts.database(), 0o700);
    hosts.assert_refused("target_writable", "55000", FOREIGN);
    give_back(&hosts.database(), 0o700);
    let own = etc.join("conf.d/own.conf");
    write_bytes(&own, &[BYTES, b"max_connections = 20\n"].concat());
    hosts.assert_refused(
        "standby_parameters",
        "55000",
        &["max_connections is 20", "own.conf\" line 3", "to 50 or more"],
    );
    // what it needs of the data directory is its own
    let needs = "max_connections = 51\nssl_cert_file = 'own.crt'\nlog_directory = 'own_log'\n";
    write_bytes(&own, &[BYTES, needs.as_bytes()].concat());
    write_as_postgres(&hosts.at("own.crt"), "a certificate", 0o600);
    fs::create_dir(hosts.at("own_log")).expect("made");
    give_back(&hosts.at("own_log"), 0o700);
    write_as_postgres(&hosts.at("own_log/old.log"), "a log", 0o600);
    hosts.assert_works();
    assert_eq!(hosts.target.read("own.crt") + &hosts.target.read("own_log/old.log"), "a certificatea log");
    assert!(wal.has_lost_and_found());
    drop(wal);
    assert!(hosts.agent().log().contains("recovery ends"));
}

#[test]
fn parameters_that_hot_standby_needs() {
    let hosts = Hosts::new();
    let configuration = hosts.at("postgresql.conf");
    let own = fs::read_to_string(&configuration).expect("its configuration");
    let lines = own.lines().count();
    for (name, value) in [
        ("max_connections", 49),
        ("max_worker_processes", 7),
        ("max_wal_senders", 9),
        ("max_locks_per_transaction", 63),
    ] {
        write_as_postgres(&configuration, &format!("{own}{name} = {value}\n"), 0o600);
        let (is, place) = (format!("{name} is {value}"), format!("postgresql.conf\" line {}", lines + 1));
        hosts.assert_refused("standby_parameters", "55000", &[&is, &place]);
    }
    // the primary's postgresql.auto.conf, which the standby gets, is read last
    write_as_postgres(&configuration, &format!("{own}max_connections = 49\n"), 0o600);
    hosts.primary.execute("ALTER SYSTEM SET max_connections = 50");
    hosts.assert_works();
    hosts.primary.execute("ALTER SYSTEM SET max_connections = 48");
    hosts.assert_refused(
        "standby_parameters",
        "55000",
        &["max_connections is 48", "postgresql.auto.conf\" line"],
    );
    hosts.primary.execute("ALTER SYSTEM RESET max_connections");
    write_as_postgres(&configuration, &own, 0o600);

    // it would follow, but is no hot standby
    write_as_postgres(&configuration, &format!("{own}max_connections = 1\nhot_standby = off\n"), 0o600);
    for &transport in hosts.transports {
        let rows = hosts.check(transport);
        let (ok, said, hint) = &rows["conflicting_settings"];
        assert!(!ok && said.contains("hot_standby is off in") && !hint.is_empty(), "{rows:#?}");
        assert!(rows["standby_parameters"].1.contains("nothing is compared"), "{rows:#?}");
        let report = hosts.recovery(transport).option("dry_run", true).run(&hosts.primary);
        assert!(report.at("/warnings").to_string().contains("hot_standby is off"), "{}", report.0);
    }
    write_as_postgres(&configuration, &own, 0o600);

    // a primary that has a value from its command line may have standbys that have theirs from there, too
    hosts.primary.stop(Stop::Fast);
    let mut start = Host::here().pg("pg_ctl");
    start.args(["start", "-w", "-o", "-c max_connections=60", "-D"]).arg(hosts.primary.directory());
    start.arg("-l").arg(hosts.scratch.join("primary.log"));
    process::run(start).ok();
    for &transport in hosts.transports {
        let (ok, said, _) = &hosts.check(transport)["standby_parameters"];
        assert!(
            !ok && said.contains("max_connections is 50") && said.contains("60 on the primary"),
            "{said}"
        );
        let report = hosts.recovery(transport).run(&hosts.primary);
        assert!(report.at("/warnings").to_string().contains("max_connections is 50"), "{}", report.0);
    }
    write_as_postgres(
        &configuration,
        &format!("{}max_connections = 60\n", hosts.target.read("postgresql.conf")),
        0o600,
    );
    hosts.assert_works();
}

#[test]
fn a_new_standby_of_a_primary_whose_configuration_was_changed_but_not_restarted() {
    let mut hosts = Hosts::with(builder(&Scratch::new(), ""), &Transport::BOTH);
    hosts.primary.append_conf("max_connections", 20);
    hosts.options.insert("dest_port", json!(hosts.target.port()));
    hosts.assert_refused(
        "standby_parameters",
        "55000",
        &["max_connections is 20", "primary/postgresql.conf\" line"],
    );
    assert!(!hosts.target.directory().exists());
}
