//! The trial login before a recovery, and `pgpool_remote_start` after it: what counts as this standby's streaming.

use pgpool_recovery_e2e::cluster::Stop;
use pgpool_recovery_e2e::recovery::{remote_start, try_remote_start};
use pgpool_recovery_e2e::{Cluster, Host, Recovery, Scratch};
use serde_json::{Value, json};

/// The row of `pgpool_recovery_check` for the trial login: whether it is well, and what it says.
fn replication_login(primary: &Cluster, target: &Cluster, options: &Value) -> (bool, String) {
    let sql = "SELECT ok, concat_ws(' ', detail, hint) FROM pgpool_recovery_check('localhost', $1, $2, $3)
               WHERE step = 'replication_login'";
    let port = i32::from(primary.port());
    let row = primary.connect().query_one(sql, &[&target.dir(), &port, options]).expect(sql);
    (row.get(0), row.get(1))
}

/// A new standby on a port of its own, not started.
fn rebuilt(primary: &Cluster, name: &str, option: impl Fn(Recovery) -> Recovery) -> Cluster {
    let target = Cluster::place(primary.scratch(), &Host::here(), name);
    option(Recovery::of(&target, primary).option("dest_port", target.port())).run(primary);
    target
}

fn set_start_timeout(primary: &Cluster, seconds: u32) {
    primary.append_conf("pgpool_recovery.start_timeout", format!("{seconds}s"));
    primary.reload();
}

#[test]
fn a_password_file_that_is_too_open_is_a_warning() {
    let scratch = Scratch::new();
    let primary = Cluster::primary(&scratch);
    let target = Cluster::place(&scratch, &Host::here(), "target");
    let passfile = scratch.write("passfile", "*:*:*:postgres:x\n", 0o644);
    let passfile = passfile.to_str().expect("UTF-8");
    let (ok, said) = replication_login(&primary, &target, &json!({ "passfile": passfile }));
    assert!(ok && said.contains("group or world access"), "{said}");
    let recovery = Recovery::of(&target, &primary).option("passfile", passfile);
    let report = recovery.option("dest_port", target.port()).run(&primary);
    assert!(report.at("/warnings").to_string().contains("group or world access"), "{}", report.0);
}

#[test]
fn a_password_file_has_an_absolute_path() {
    let scratch = Scratch::new();
    let primary = Cluster::primary(&scratch);
    let target = Cluster::place(&scratch, &Host::here(), "target");
    let recovery = Recovery::of(&target, &primary).option("passfile", ".pgpass");
    recovery.fail(&primary).expect("22023").says("absolute path");
    assert!(!target.directory().exists());
}

/// Through a unix socket, where only the name tells one standby from another.
#[test]
fn a_name_that_postgresql_shows_otherwise_is_found() {
    let scratch = Scratch::new();
    let primary = Cluster::primary(&scratch);
    let sockets = scratch.sockets().to_str().expect("UTF-8").to_owned();
    set_start_timeout(&primary, 20);
    for (place, name) in [("long", "n".repeat(90)), ("outside", "knoten-s\u{fc}d".to_owned())] {
        let options = json!({ "application_name": name, "slot_name": "", "primary_host": sockets });
        let target = Cluster::place(&scratch, &Host::here(), place);
        let (ok, said) = replication_login(&primary, &target, &options);
        assert!(ok && said.contains("pg_stat_replication will show"), "{said}");
        let target = rebuilt(&primary, place, |recovery| {
            let recovery = recovery.option("application_name", name.as_str()).option("slot_name", "");
            recovery.option("primary_host", sockets.as_str())
        });
        remote_start(&primary, "localhost", target.dir());
        target.stop(Stop::Fast);
    }
}

#[test]
fn a_neighbour_of_the_same_name_is_not_taken_for_the_standby() {
    let scratch = Scratch::new();
    let primary = Cluster::primary(&scratch);
    let no_slot = |recovery: Recovery| recovery.option("slot_name", "");
    let neighbour = rebuilt(&primary, "neighbour", no_slot);
    let standby = rebuilt(&primary, "standby", no_slot);
    set_start_timeout(&primary, 5);
    remote_start(&primary, "localhost", neighbour.dir());
    // from now on nothing new may replicate
    primary.set_hba("local all all trust\nhost all all 127.0.0.1/32 trust\nhost all all ::1/128 trust\n");
    primary.reload();
    let error = try_remote_start(&primary, "localhost", standby.dir()).expect_err("it does not stream");
    error.expect("58000").says("does not stream from this primary").says("walreceiver");
    remote_start(&primary, "localhost", neighbour.dir());
    // both with one name, and each is told from the other
    primary.set_hba("local all all trust\nlocal replication all trust\nhost all all 127.0.0.1/32 trust\nhost replication all 127.0.0.1/32 trust\nhost all all ::1/128 trust\nhost replication all ::1/128 trust\n");
    primary.reload();
    set_start_timeout(&primary, 30);
    remote_start(&primary, "localhost", standby.dir());
    let sql = "SELECT count(*) FROM pg_stat_replication WHERE application_name = 'localhost' AND state = 'streaming'";
    assert_eq!(primary.get::<i64>(sql, &[]), 2);
}

#[test]
fn a_neighbour_that_uses_the_slot_is_not_taken_for_the_standby() {
    let scratch = Scratch::new();
    let primary = Cluster::primary(&scratch);
    let neighbour = rebuilt(&primary, "neighbour", |recovery| recovery);
    // the slot of both is "localhost", and it is free
    let standby = rebuilt(&primary, "standby", |recovery| recovery);
    set_start_timeout(&primary, 5);
    neighbour.start();
    primary.wait_for_standby("localhost");
    let error = try_remote_start(&primary, "localhost", standby.dir()).expect_err("it does not stream");
    error.expect("58000").says("does not stream from this primary");
    neighbour.stop(Stop::Fast);
    set_start_timeout(&primary, 30);
    remote_start(&primary, "localhost", standby.dir());
}
