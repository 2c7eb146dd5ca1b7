//! An error is not a "no": a directory that cannot be listed, a link that leads to another server's
//! files, and what is mounted in a target are refused, and everything stays as it was.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Command;

use pgpool_recovery_e2e::agent::{self, Agent};
use pgpool_recovery_e2e::cluster::Stop;
use pgpool_recovery_e2e::mount::Tmpfs;
use pgpool_recovery_e2e::recovery::remote_start;
use pgpool_recovery_e2e::scratch::write_as_postgres;
use pgpool_recovery_e2e::snapshot::Snapshot;
use pgpool_recovery_e2e::stage::Condition;
use pgpool_recovery_e2e::{Cluster, Host, Recovery, Scratch, Stage, Transport, account, probe, server};

/// The answer of a step of the check: whether it is well, and all it says.
fn step(primary: &Cluster, target: &Cluster, options: &serde_json::Value, step: &str) -> (bool, String) {
    let sql = "SELECT ok, concat_ws(' ', detail, hint) FROM pgpool_recovery_check('localhost', $1, $2, $3)
        WHERE step = $4";
    let port = i32::from(primary.port());
    let row = primary.connect().query_one(sql, &[&target.dir(), &port, options, &step]).expect(step);
    (row.get(0), row.get(1))
}

fn stopped_standby(primary: &Cluster) -> Cluster {
    let standby = Cluster::standby_by_basebackup(primary, &Host::here(), "standby");
    standby.stop(Stop::Fast);
    standby
}

/// Some distributions wrap the program, and the kernel tells the name of what is wrapped.
#[test]
fn a_server_whose_program_has_another_name_is_no_other_process() {
    let scratch = Scratch::new();
    let stage = Stage::on(&scratch).quiet().standby(Condition::Stopped).agent().build();
    let (primary, standby) = (&stage.primary, &stage.target);
    // not "bin": the server would look for its libraries and data beside it
    let programs = scratch.mkdir("programs");
    let (wrapped, wrapper) = (programs.join(".postgres-wrapped"), programs.join("postgres"));
    fs::copy(server::program("postgres"), &wrapped).expect("copied");
    let text = format!("#!/bin/bash\nexec -a \"$0\" {} \"$@\"\n", wrapped.display());
    fs::write(&wrapper, text).expect("written");
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).expect("executable");
    standby.start_by(&wrapper);
    let pid = standby.postmaster().expect("it runs");
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).expect("it runs");
    assert_eq!(name.trim(), ".postgres-wrapp");
    let file = standby.read("postmaster.pid");
    fs::remove_file(standby.directory().join("postmaster.pid")).expect("removed");
    for transport in Transport::BOTH {
        stage.recovery_by(transport).fail(primary).expect("55006").says("server is running");
    }
    write_as_postgres(&standby.directory().join("postmaster.pid"), &file, 0o600);
    standby.stop(Stop::Fast);
}

/// What is given as the data directory holds the WAL of another standby, whose pg_wal is a link to it.
#[test]
fn a_directory_that_holds_nothing_but_the_wal_of_another_server_is_refused() {
    let scratch = Scratch::new();
    let primary = probe::quiet(Cluster::place(&scratch, &Host::here(), "primary")).into_primary();
    let other = Cluster::standby_by_basebackup(&primary, &Host::here(), "other");
    other.stop(Stop::Fast);
    let volume = scratch.mkdir("volume");
    let (link, wal) = (other.directory().join("pg_wal"), volume.join("pg_wal"));
    fs::rename(&link, &wal).and_then(|()| symlink(&wal, &link)).expect("moved");
    other.start();
    let recovery = |slot: &str| {
        let volume = volume.to_str().expect("a path");
        Recovery::to("localhost", volume, other.port()).option("slot_name", slot)
    };
    let segments = || Snapshot::of(&volume).names().len();
    let before = segments();
    let destroys = recovery("new").option("overwrite", "any_cluster");
    destroys.fail(&primary).expect("55006").says("another server uses").says("pg_wal");
    recovery("new").fail(&primary).expect("55000").says("holds WAL, and nothing");
    other.wait_for_replay(&primary);
    other.stop(Stop::Fast);
    recovery("new").fail(&primary).expect("55000").says("holds WAL, and nothing").says("any_cluster");
    other.start();
    other.wait_for_replay(&primary);
    assert!(segments() >= before);
}

#[test]
fn a_pg_wal_that_leads_to_another_live_server_is_refused() {
    let scratch = Scratch::new();
    let primary = probe::quiet(Cluster::place(&scratch, &Host::here(), "primary")).into_primary();
    let standby = stopped_standby(&primary);
    let other = Cluster::place(&scratch, &Host::here(), "other").init();
    let third = Cluster::standby_by_basebackup(&primary, &Host::here(), "third");
    third.stop(Stop::Fast);
    // each has its WAL on a volume of its own
    let wal_of = |cluster: &Cluster| scratch.join(format!("{}-wal", cluster.name()));
    for cluster in [&other, &third] {
        let link = cluster.directory().join("pg_wal");
        fs::rename(&link, wal_of(cluster)).and_then(|()| symlink(wal_of(cluster), &link)).expect("moved");
        cluster.start();
    }
    let secret = agent::secret(&scratch, "secret");
    let clusters = [standby.directory(), third.directory()].map(|directory| {
        format!(
            "[[cluster]]\ndata_directory = \"{}\"\nbin_directory = \"{}\"\ntablespace_roots = [\"{}\"]\n",
            directory.display(),
            server::programs().display(),
            scratch.path().display(),
        )
    });
    let agent = Agent::start_with(&scratch, &Host::here(), &secret, &clusters.concat());
    primary.append_conf("pgpool_recovery.secret_file", secret.display());
    primary.reload();
    let link = standby.directory().join("pg_wal");
    let own = scratch.join("own-wal");
    fs::rename(&link, &own).expect("moved");
    let recovery = |transport: &str| {
        Recovery::of(&standby, &primary).option("transport", transport).option("agent_port", agent.port())
    };
    for (victim, transport) in [(&other, "local"), (&third, "local"), (&other, "agent"), (&third, "agent")] {
        symlink(wal_of(victim), &link).expect("a link");
        let before = Snapshot::of(standby.directory());
        recovery(transport).fail(&primary).expect("55006").says("another server uses");
        recovery(transport).option("dry_run", true).fail(&primary).expect("55006");
        let options = serde_json::json!({ "transport": transport, "agent_port": agent.port() });
        let (ok, said) = step(&primary, &standby, &options, "target_wal");
        assert!(!ok && said.contains("another server uses"), "{said}");
        before.assert_unchanged(standby.directory());
        fs::remove_file(&link).expect("removed");
    }
    // stopped, its WAL tells: it is another system's
    other.stop(Stop::Fast);
    symlink(wal_of(&other), &link).expect("a link");
    recovery("local").fail(&primary).expect("55000").says("system");
    recovery("local").option("overwrite", "any_cluster").fail(&primary).expect("55000");
    // within its data directory nothing is for others
    fs::remove_file(&link).and_then(|()| symlink(other.directory().join("base"), &link)).expect("a link");
    recovery("local").fail(&primary).expect("55000").says("lies within a data directory");
    other.start();
    other.execute("CREATE TABLE t AS SELECT 1; CHECKPOINT");
    third.wait_for_replay(&primary);
    fs::remove_file(&link).and_then(|()| symlink(&own, &link)).expect("its own");
    recovery("agent").run(&primary);
    remote_start(&primary, "localhost", standby.dir());
}

#[test]
fn a_tablespace_directory_that_may_not_be_listed_is_not_free() {
    let scratch = Scratch::new();
    let primary = Cluster::primary(&scratch);
    let space = scratch.mkdir("space");
    primary.execute(&format!("CREATE TABLESPACE far LOCATION '{}'", space.display()));
    let target = Cluster::place(&scratch, &Host::here(), "target");
    let place = scratch.mkdir("place");
    let version = fs::read_dir(&space).expect("list").next().expect("one").expect("entry").file_name();
    let closed = place.join(version);
    fs::create_dir(&closed).expect("made");
    fs::write(closed.join("precious"), "precious").expect("written");
    account::give(&closed);
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o000)).expect("closed");
    let mapping = format!("{}={}", space.display(), place.display());
    let recovery = Recovery::of(&target, &primary).option("tablespace_mapping", mapping.as_str());
    recovery.fail(&primary).expect("55000").says("cannot tell whether tablespace directory");
    let options = serde_json::json!({ "tablespace_mapping": mapping });
    let (ok, said) = step(&primary, &target, &options, "target_tablespaces");
    assert!(!ok && said.contains("Permission denied"), "{said}");
    assert_eq!(fs::read_to_string(closed.join("precious")).expect("still there"), "precious");
    assert!(!target.directory().exists());
}

#[test]
fn nothing_is_removed_across_a_mount_point() {
    let scratch = Scratch::new();
    let primary = probe::quiet(Cluster::place(&scratch, &Host::here(), "primary")).into_primary();
    let standby = stopped_standby(&primary);
    let surplus = scratch.mkdir("standby/surplus");
    for name in ["standby/mounted", "standby/surplus/below"] {
        let mount = Tmpfs::new(&scratch, name, 2);
        let precious = mount.path().join("precious");
        fs::write(&precious, "precious").expect("written");
        let before = Snapshot::of(standby.directory());
        Recovery::of(&standby, &primary).fail(&primary).expect("55000").says("is mounted");
        Recovery::of(&standby, &primary)
            .option("dry_run", true)
            .fail(&primary)
            .expect("55000")
            .says("is mounted");
        before.assert_unchanged(standby.directory());
        assert_eq!(fs::read_to_string(&precious).expect("still there"), "precious");
        assert!(Command::new("umount").arg(mount.path()).status().expect("umount").success());
    }
    // the same file system mounted a second time has the same device
    let bound = scratch.mkdir("standby/bound");
    let precious = scratch.mkdir("precious");
    fs::write(precious.join("letter"), "precious").expect("written");
    let mounted = Command::new("mount").arg("--bind").arg(&precious).arg(&bound).status();
    assert!(mounted.expect("mount").success());
    let refusal = Recovery::of(&standby, &primary).fail(&primary);
    assert!(Command::new("umount").arg(&bound).status().expect("umount").success());
    refusal.expect("55000").says("is mounted");
    assert_eq!(fs::read_to_string(precious.join("letter")).expect("still there"), "precious");
    Recovery::of(&standby, &primary).run(&primary);
    assert!(!surplus.exists() && !bound.exists());
    remote_start(&primary, "localhost", standby.dir());
}

#[test]
fn a_directory_that_may_not_be_written_is_opened_and_a_closed_one_is_no_answer() {
    let scratch = Scratch::new();
    let primary = probe::quiet(Cluster::place(&scratch, &Host::here(), "primary")).into_primary();
    let standby = stopped_standby(&primary);
    let global = standby.directory().join("global");
    let chmod = |mode| fs::set_permissions(&global, fs::Permissions::from_mode(mode)).expect("chmod");
    chmod(0o000);
    let before = Snapshot::of(standby.directory());
    Recovery::of(&standby, &primary).fail(&primary).expect("55000").says("global/pg_control");
    let (ok, said) = step(&primary, &standby, &serde_json::json!({}), "target_identity");
    assert!(!ok && said.contains("Permission denied"), "{said}");
    before.assert_unchanged(standby.directory());
    chmod(0o500);
    Recovery::of(&standby, &primary).run(&primary);
    remote_start(&primary, "localhost", standby.dir());
}
