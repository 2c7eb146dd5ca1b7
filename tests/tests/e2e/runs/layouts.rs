//! Clusters as people lay them out: WAL elsewhere, group access, other sizes, in-place tablespaces, configuration
//! in /etc, archives, logical slots, cascades.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use pgpool_recovery_e2e::agent::{self, Agent};
use pgpool_recovery_e2e::cluster::Stop;
use pgpool_recovery_e2e::ports::Port;
use pgpool_recovery_e2e::probe;
use pgpool_recovery_e2e::process;
use pgpool_recovery_e2e::recovery::remote_start;
use pgpool_recovery_e2e::scratch::write_as_postgres;
use pgpool_recovery_e2e::snapshot::Snapshot;
use pgpool_recovery_e2e::{Cluster, Host, Recovery, Scratch, compare, dump, server, workload};

fn place(scratch: &Scratch) -> Cluster {
    Cluster::place(scratch, &Host::here(), "primary")
}

fn recovery(target: &Cluster, primary: &Cluster) -> Recovery {
    Recovery::of(target, primary).option("application_name", "target").option("dest_port", target.port())
}

/// A new standby, then the same one again after it was killed and the primary went on.
#[track_caller]
fn build_and_rebuild(scratch: &Scratch, primary: &Cluster) -> Cluster {
    workload::fill(primary, 5);
    let target = Cluster::place(scratch, &Host::here(), "target");
    recovery(&target, primary).run(primary);
    remote_start(primary, "localhost", target.dir());
    target.kill();
    workload::change_every(&mut primary.connect(), 3);
    let report = recovery(&target, primary).run(primary);
    assert_eq!(report.text("/strategy"), "delta");
    remote_start(primary, "localhost", target.dir());
    compare::stop_and_compare(primary, &target).assert_none();
    target
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("it is there").permissions().mode() & 0o7777
}

#[test]
fn wal_of_the_primary_lies_elsewhere() {
    let scratch = Scratch::new();
    let wal = scratch.join("primary-wal");
    let primary = place(&scratch).initdb_argument(&format!("--waldir={}", wal.display())).into_primary();
    let target = build_and_rebuild(&scratch, &primary);
    assert!(primary.directory().join("pg_wal").is_symlink());
    assert!(!target.directory().join("pg_wal").is_symlink(), "the standby got the primary's own WAL");
}

#[test]
fn group_access_is_kept() {
    let scratch = Scratch::new();
    let primary = place(&scratch).initdb_argument("--allow-group-access").into_primary();
    let target = build_and_rebuild(&scratch, &primary);
    for directory in ["", "base", "pg_wal", "pg_replslot"] {
        assert_eq!(mode(&target.directory().join(directory)), 0o750, "{directory}");
    }
    for file in ["PG_VERSION", "global/pg_control", "myrecovery.conf", "base/1/1259"] {
        assert_eq!(mode(&target.directory().join(file)), 0o640, "{file}");
    }
}

#[test]
fn small_and_large_wal_segments_and_checksums() {
    for (segment, checksums) in [("1", true), ("64", false)] {
        let scratch = Scratch::new();
        let mut primary = place(&scratch).initdb_argument(&format!("--wal-segsize={segment}"));
        if checksums {
            primary = primary.initdb_argument("--data-checksums");
        }
        build_and_rebuild(
            &scratch,
            &primary.with("max_wal_size", "256MB").with("min_wal_size", "128MB").into_primary(),
        );
    }
}

#[test]
fn tablespaces_in_place() {
    let scratch = Scratch::new();
    let primary = place(&scratch).with("allow_in_place_tablespaces", "on").into_primary();
    primary.execute("CREATE TABLESPACE inside LOCATION ''");
    primary.execute("CREATE TABLE there TABLESPACE inside AS SELECT generate_series(1, 20000) AS id");
    let target = build_and_rebuild(&scratch, &primary);
    let entry =
        fs::read_dir(target.directory().join("pg_tblspc")).expect("it").next().expect("one").expect("it");
    assert!(entry.file_type().expect("a type").is_dir(), "it is in place");
}

#[test]
fn links_in_the_data_directory_become_copies() {
    let scratch = Scratch::new();
    let primary = place(&scratch).into_primary();
    let certificates = scratch.mkdir("certificates");
    write_as_postgres(&certificates.join("server.crt"), "a certificate", 0o600);
    symlink(&certificates, primary.directory().join("certs")).expect("a link");
    symlink("certs/server.crt", primary.directory().join("server.crt")).expect("a link");
    workload::fill(&primary, 2);
    let target = Cluster::place(&scratch, &Host::here(), "target");
    let report = recovery(&target, &primary).run(&primary);
    let warnings = report.at("/warnings").to_string();
    assert_eq!(warnings.matches("symbolic link").count(), 2, "{warnings}");
    assert_eq!(report.text("/strategy"), "full");
    for file in ["certs/server.crt", "server.crt"] {
        let path = target.directory().join(file);
        assert!(!path.is_symlink());
        assert_eq!(fs::read_to_string(path).expect(file), "a certificate");
    }
    remote_start(&primary, "localhost", target.dir());
}

#[test]
fn a_primary_whose_archive_command_fails() {
    let scratch = Scratch::new();
    let primary = place(&scratch).with("archive_mode", "on").with("archive_command", "false").into_primary();
    build_and_rebuild(&scratch, &primary);
}

#[test]
fn logical_slots_stay_on_the_primary() {
    let scratch = Scratch::new();
    let primary = place(&scratch).with("wal_level", "logical").into_primary();
    // the output plugin that is part of every server; test_decoding comes with contrib
    primary.execute("SELECT pg_create_logical_replication_slot('changes', 'pgoutput')");
    let target = build_and_rebuild(&scratch, &primary);
    assert_eq!(fs::read_dir(target.directory().join("pg_replslot")).expect("it").count(), 0);
    primary.start();
    assert_eq!(probe::slots(&primary), ["changes", "localhost"]);
}

#[test]
fn a_cascade_goes_on_below_the_rebuilt_standby() {
    let scratch = Scratch::new();
    // a checkpoint may come before the last one has fetched what it lacks
    let primary = place(&scratch).with("wal_keep_size", "256MB").into_primary();
    workload::fill(&primary, 5);
    let middle = Cluster::standby_by_basebackup(&primary, &Host::here(), "middle");
    let last = Cluster::standby_by_basebackup(&middle, &Host::here(), "last");
    middle.kill();
    // what the last one has not got yet was written before the copy: no standby has it but the primary
    last.append_conf("restore_command", format!("cp {}/pg_wal/%f %p", primary.dir()));
    if server::major() < 14 {
        // read at the start only
        last.stop(Stop::Fast);
        last.start();
    } else {
        last.reload();
    }
    workload::change_every(&mut primary.connect(), 3);
    Recovery::of(&middle, &primary).option("application_name", "middle").run(&primary);
    remote_start(&primary, "localhost", middle.dir());
    middle.wait_for_standby("last");
    last.wait_for_replay(&primary);
    dump::assert_equal(&primary, &last);
    compare::stop_and_compare(&primary, &last).assert_none();
}

/// A cluster of Debian's own tools, dropped with this value.
struct Debian {
    name: String,
    data: PathBuf,
    port: Port,
}

impl Debian {
    fn create(scratch: &Scratch) -> Self {
        let (name, port) = (format!("ppr{}", std::process::id()), Port::claim());
        let data = scratch.join("debian-data");
        let debian = Self { name, data, port };
        let mut create = Command::new("pg_createcluster");
        create.args([
            "--user",
            "postgres",
            "--start-conf",
            "manual",
            "--port",
            &debian.port.number().to_string(),
        ]);
        create.arg("--socketdir").arg(scratch.sockets()).arg("--datadir").arg(&debian.data);
        create
            .arg("--logfile")
            .arg(scratch.join("debian.log"))
            .args([&server::major().to_string(), &debian.name]);
        // the key is for a group that only a real login of user postgres has
        create.args(["--pgoption", "ssl=off"]);
        process::run(create).ok();
        debian
    }

    fn configuration(&self) -> PathBuf {
        Path::new("/etc/postgresql")
            .join(server::major().to_string())
            .join(&self.name)
            .join("postgresql.conf")
    }
}

impl Drop for Debian {
    fn drop(&mut self) {
        let _ = Command::new("pg_dropcluster")
            .args(["--stop", &server::major().to_string(), &self.name])
            .output();
    }
}

#[test]
fn a_cluster_of_debians_own_tools() {
    if !server::is_debians() {
        eprintln!("Debian's tools know nothing of this PostgreSQL");
        return;
    }
    let scratch = Scratch::new();
    let secret = agent::secret(&scratch, "secret");
    let primary = place(&scratch).with("pgpool_recovery.secret_file", secret.display()).into_primary();
    workload::fill(&primary, 5);
    let debian = Debian::create(&scratch);
    let cluster = format!(
        "\n[[cluster]]\ndata_directory = \"{}\"\nbin_directory = \"{}\"\nconfig_file = \"{}\"\n\
         start_command = [\"/usr/bin/pg_ctlcluster\", \"{}\", \"{}\", \"start\"]\n",
        debian.data.display(),
        server::programs().display(),
        debian.configuration().display(),
        server::major(),
        debian.name
    );
    let agent = Agent::start_with(&scratch, &Host::here(), &secret, &cluster);
    primary.use_agent(agent.port());
    let data = debian.data.to_str().expect("ASCII");
    let recovery = |overwrite: &str| {
        Recovery::to("127.0.0.1", data, primary.port())
            .option("application_name", "debian")
            .option("overwrite", overwrite)
    };
    let recover = |overwrite: &str| recovery(overwrite).run(&primary);
    // a configuration that the agent may not extend is found before anything is touched
    let owner = fs::metadata(debian.configuration()).expect("its configuration");
    let own = |uid| std::os::unix::fs::chown(debian.configuration(), Some(uid), None).expect("chown");
    own(0);
    let before = Snapshot::of(&debian.data);
    recovery("any_cluster")
        .fail(&primary)
        .expect("55000")
        .says("cannot be extended")
        .says("include_if_exists");
    before.assert_unchanged(&debian.data);
    own(owner.uid());
    // pg_createcluster ran initdb: another system identifier
    recover("any_cluster");
    let text = fs::read_to_string(debian.configuration()).expect("its configuration");
    assert_eq!(text.matches("myrecovery.conf").count(), 1, "{text}");
    assert!(!debian.data.join("postgresql.conf").exists());
    remote_start(&primary, "127.0.0.1", data);
    primary.wait_for_standby("debian");
    // and again
    let mut stop = Command::new("pg_ctlcluster");
    stop.args([
        &server::major().to_string(),
        &debian.name,
        "stop",
        "--mode",
        "immediate",
        "--skip-systemctl-redirect",
    ]);
    process::run(stop).ok();
    workload::change_every(&mut primary.connect(), 3);
    assert!(recover("same").number("/bytes/sent") > 0);
    assert_eq!(fs::read_to_string(debian.configuration()).expect("its configuration"), text, "extended once");
    remote_start(&primary, "127.0.0.1", data);
    primary.wait_for_standby("debian");
}
