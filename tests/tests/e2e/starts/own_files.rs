//! A standby's configuration is its own, with the files that it needs and the addresses of its host.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use pgpool_recovery_e2e::cluster::Stop;
use pgpool_recovery_e2e::ports::Port;
use pgpool_recovery_e2e::recovery::{remote_start, try_remote_start};
use pgpool_recovery_e2e::scratch::write_as_postgres;
use pgpool_recovery_e2e::{Cluster, Host, Recovery, Scratch, account};

fn recovery(target: &Cluster, primary: &Cluster) -> Recovery {
    Recovery::of(target, primary).option("application_name", "target")
}

fn put(cluster: &Cluster, name: &str, text: &str) {
    let path = cluster.directory().join(name);
    let parent = path.parent().expect("in the data directory");
    if !parent.exists() {
        fs::create_dir(parent).expect("make");
        account::give(parent);
    }
    write_as_postgres(&path, text, 0o600);
}

/// A standby that was rebuilt once and is stopped, with a configuration of its own.
fn standby(scratch: &Scratch, primary: &Cluster) -> Cluster {
    let target = Cluster::place(scratch, &Host::here(), "target");
    recovery(&target, primary).option("dest_port", target.port()).run(primary);
    target
}

#[test]
fn what_the_kept_configuration_refers_to_is_kept() {
    let scratch = Scratch::new();
    let primary = Cluster::primary(&scratch);
    let target = standby(&scratch, &primary);
    put(
        &target,
        "postgresql.conf",
        &format!(
            "{}include 'host.conf'\ninclude_dir = 'conf.d'\nssl_cert_file = 'tls/own.crt'\nssl_key_file = 'tls/own.key'\n\
             logging_collector = on\nlog_directory = 'server_log'\n",
            target.read("postgresql.conf")
        ),
    );
    let own = ["host.conf", "conf.d/10-own.conf", "tls/own.crt", "tls/own.key", "server_log/old.log"];
    for name in own {
        put(&target, name, &format!("# the standby's own {name}\n"));
    }
    // the primary has some files of these names, too
    put(&primary, "host.conf", "# the primary's\n");
    put(&primary, "conf.d/20-other.conf", "# the primary's\n");
    put(&target, "stray.conf", "# nothing refers to it\n");
    let dry = recovery(&target, &primary).option("dry_run", true).run(&primary);
    let report = recovery(&target, &primary).run(&primary);
    assert_eq!(dry.number("/files/removed"), report.number("/files/removed"));
    for name in own {
        assert_eq!(target.read(name), format!("# the standby's own {name}\n"));
    }
    assert!(!target.has("conf.d/20-other.conf") && !target.has("stray.conf"));
    remote_start(&primary, "localhost", target.dir());
    primary.wait_for_standby("target");
    target.stop(Stop::Fast);

    // a start that fails shows the log, wherever the configuration puts it
    put(&target, "host.conf", "shared_preload_libraries = 'no_such_library'\n");
    recovery(&target, &primary).run(&primary);
    try_remote_start(&primary, "localhost", target.dir())
        .expect_err("a library that is not there")
        .expect("58000")
        .says("could not access file \"no_such_library\"");
}

#[test]
fn a_password_file_in_the_data_directory_is_kept() {
    let scratch = Scratch::new();
    let primary = Cluster::primary(&scratch);
    let target = standby(&scratch, &primary);
    put(&target, "secrets/pgpass", "*:*:*:*:own\n");
    put(&primary, "secrets/pgpass", "*:*:*:*:the primary's\n");
    let passfile = target.directory().join("secrets/pgpass");
    let with =
        |passfile: &Path| recovery(&target, &primary).option("passfile", passfile.display().to_string());
    with(&passfile).run(&primary);
    assert_eq!(target.read("secrets/pgpass"), "*:*:*:*:own\n");
    assert!(target.read("myrecovery.conf").contains(&format!("passfile={}", passfile.display())));

    // only the standby's host sees that this is the same file
    let link = scratch.join("link");
    symlink(target.directory(), &link).expect("link");
    let linked = link.join("secrets/pgpass");
    let refusal = with(&linked).fail(&primary).expect("55000");
    refusal.says("lies in the directory that is replaced").says(linked.to_str().expect("UTF-8"));
    assert!(target.has("global/pg_control"), "refused before the copy");
    with(&linked).option("keep_files", "postgresql.conf, secrets").run(&primary);
    assert_eq!(target.read("secrets/pgpass"), "*:*:*:*:own\n");
}

#[test]
fn the_primarys_addresses_do_not_override_the_kept_ones() {
    let scratch = Scratch::new();
    let primary = Cluster::primary(&scratch);
    let target = standby(&scratch, &primary);
    let other = Port::claim();
    for setting in [
        format!("port = {}", other.number()),
        "listen_addresses = '127.0.0.1'".to_owned(),
        "cluster_name = 'primary'".to_owned(),
        "work_mem = '5MB'".to_owned(),
    ] {
        primary.execute(&format!("ALTER SYSTEM SET {setting}"));
    }
    // without dest_port, as from psql
    recovery(&target, &primary).run(&primary);
    let auto = target.read("postgresql.auto.conf");
    assert!(
        !auto.contains("port =") && !auto.contains("listen_addresses"),
        "the standby has its own: {auto}"
    );
    assert!(auto.contains("work_mem") && auto.contains("cluster_name"), "it has none of its own: {auto}");
    remote_start(&primary, "localhost", target.dir());
    assert_eq!(target.get::<String>("SHOW port", &[]), target.port().to_string());
    assert_eq!(target.get::<String>("SHOW listen_addresses", &[]), "*");
    assert_eq!(target.get::<String>("SHOW work_mem", &[]), "5MB");
}
