//! The trial login before a recovery, and `pgpool_remote_start` after it: what counts as this standby's streaming.

use std::fs;

use pgpool_recovery_e2e::agent::{self, Agent};
use pgpool_recovery_e2e::cluster::Stop;
use pgpool_recovery_e2e::recovery::{remote_start, try_remote_start};
use pgpool_recovery_e2e::scratch::write_as_postgres;
use pgpool_recovery_e2e::snapshot::Snapshot;
use pgpool_recovery_e2e::{Cluster, Host, Recovery, Scratch, server, wait};
use postgres::NoTls;
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

// --- what is started ---

/// A cluster of another system, at rest: what must never be started.
fn other_cluster(scratch: &Scratch) -> Cluster {
    Cluster::place(scratch, &Host::here(), "other").init()
}

#[test]
fn the_failure_of_a_first_stage_forbids_the_start_of_what_it_left_incomplete() {
    let scratch = Scratch::new();
    let primary = Cluster::primary(&scratch);
    let standby = rebuilt(&primary, "standby", |recovery| recovery);
    remote_start(&primary, "localhost", standby.dir());
    // refused under one name; recovered under another one, or by another primary
    Recovery::of(&standby, &primary).fail(&primary).expect("55006");
    standby.stop(Stop::Fast);
    let mut other_name = Recovery::of(&standby, &primary).option("slot_name", "other");
    other_name.host = Some("127.0.0.1".to_owned());
    other_name.run(&primary);
    remote_start(&primary, "localhost", standby.dir());
    standby.stop(Stop::Fast);

    let forbidden = |left: &str| {
        let error = try_remote_start(&primary, "localhost", standby.dir()).expect_err(left);
        assert_eq!(standby.postmaster(), None, "{left}");
        error.expect("55006").says("first stage failed: ");
    };
    let file = |name: &str| standby.directory().join(name);
    for name in ["global/pg_control", "standby.signal"] {
        fs::rename(file(name), file("aside")).expect("renamed");
        forbidden(name);
        fs::rename(file("aside"), file(name)).expect("renamed");
    }
    let marker = r#"{"note": "", "system_identifier": 7, "timeline": 1, "started": 0}"#;
    write_as_postgres(&file("pgpool_recovery.incomplete"), marker, 0o600);
    forbidden("the marker");
}

#[test]
fn a_kept_configuration_that_leads_elsewhere_is_refused() {
    let scratch = Scratch::new();
    let primary = Cluster::primary(&scratch);
    let other = other_cluster(&scratch);
    let standby = rebuilt(&primary, "standby", |recovery| recovery);
    // in a file that the configuration includes
    let included = format!("data_directory = '{}'\n", other.dir());
    scratch.mkdir("standby/postgresql.conf.d");
    write_as_postgres(&standby.directory().join("postgresql.conf.d/local.conf"), &included, 0o600);
    standby.append_conf("include_dir", "postgresql.conf.d");
    let error = try_remote_start(&primary, "localhost", standby.dir()).expect_err("it would start another");
    error.expect("58000").says("belongs to another directory").says(other.dir());
    assert_eq!((standby.postmaster(), other.postmaster()), (None, None));

    let before = Snapshot::of(standby.directory());
    let sql = "SELECT ok FROM pgpool_recovery_check('localhost', $1, $2) WHERE step = 'configuration'";
    assert!(!primary.get::<bool>(sql, &[&standby.dir(), &i32::from(primary.port())]));
    let keep = "postgresql.conf, postgresql.conf.d/local.conf";
    let recovery = Recovery::of(&standby, &primary).option("keep_files", keep);
    recovery.fail(&primary).expect("55000").says("belongs to another directory");
    before.assert_unchanged(standby.directory());
}

#[test]
fn an_agents_config_file_of_another_cluster_is_refused() {
    let scratch = Scratch::new();
    let secret = agent::secret(&scratch, "secret");
    let primary = Cluster::place(&scratch, &Host::here(), "primary")
        .with("pgpool_recovery.secret_file", secret.display())
        .into_primary();
    let other = other_cluster(&scratch);
    let target = Cluster::place(&scratch, &Host::here(), "target");
    let file = scratch.write("other.conf", &format!("data_directory = '{}'\n", other.dir()), 0o600);
    let cluster = format!(
        "\n[[cluster]]\ndata_directory = \"{}\"\nbin_directory = \"{}\"\nconfig_file = \"{}\"\n",
        target.dir(),
        server::programs().display(),
        file.display()
    );
    let agent = Agent::start_with(&scratch, &Host::here(), &secret, &cluster);
    primary.use_agent(agent.port());
    Recovery::of(&target, &primary).fail(&primary).expect("55000").says("belongs to another directory");
    wait::until_true("the directory's removal", wait::PATIENCE, || !target.directory().exists());
    let checked = agent::check(agent.config());
    assert!(checked.stderr.contains("belongs to another directory"), "{checked:?}");
}

// --- when it is given up ---

#[test]
fn calls_at_once_start_one_server_and_all_succeed() {
    let scratch = Scratch::new();
    let primary = Cluster::primary(&scratch);
    let standby = rebuilt(&primary, "standby", |recovery| recovery);
    for _ in 0..3 {
        std::thread::scope(|scope| {
            let calls: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| try_remote_start(&primary, "localhost", standby.dir())))
                .collect();
            // a supervisor
            let supervisor = scope.spawn(|| standby.try_start());
            for call in calls {
                call.join().expect("no panic").expect("it streams");
            }
            supervisor.join().expect("no panic");
        });
        standby.stop(Stop::Fast);
    }
}

#[test]
fn a_standby_that_replays_for_longer_than_its_time_is_waited_for() {
    let scratch = Scratch::new();
    let (primary, standby) = behind(&scratch, 12);
    let start = std::time::Instant::now();
    remote_start(&primary, "localhost", standby.dir());
    assert!(start.elapsed() > std::time::Duration::from_secs(5), "it was not slow");
}

/// A standby with WAL to replay that comes from the archive: a segment a second, so that it asks for no stream meanwhile.
fn behind(scratch: &Scratch, segments: u32) -> (Cluster, Cluster) {
    let archive = scratch.mkdir("archive");
    let primary = Cluster::place(scratch, &Host::here(), "primary")
        .initdb_argument("--wal-segsize=1")
        .with("archive_mode", "on")
        .with("archive_command", format!("cp %p {}/%f", archive.display()))
        .into_primary();
    let slowly = format!("sleep 1; cp {}/%f %p", archive.display());
    let standby =
        rebuilt(&primary, "standby", |recovery| recovery.option("restore_command", slowly.as_str()));
    let mut client = primary.connect();
    client.batch_execute("CREATE TABLE behind (n integer)").expect("a table");
    for _ in 0..segments {
        client.batch_execute("INSERT INTO behind VALUES (1); SELECT pg_switch_wal()").expect("a segment");
    }
    let last: String =
        client.query_one("SELECT pg_walfile_name(pg_switch_wal())", &[]).expect("the last segment").get(0);
    wait::until_true("the archive", wait::PATIENCE, || archive.join(&last).exists());
    set_start_timeout(&primary, 5);
    (primary, standby)
}

/// The NOTICEs of a start, and its error.
pub(super) fn told_by_start(primary: &Cluster, standby: &Cluster) -> (String, Option<String>) {
    let (sender, receiver) = std::sync::mpsc::channel();
    let mut config = primary.config();
    config.notice_callback(move |notice| drop(sender.send(notice.message().to_owned())));
    let mut client = config.connect(NoTls).expect("a session");
    let started = client.query_one("SELECT pgpool_remote_start('localhost', $1)", &[&standby.dir()]);
    let error = started.err().map(|error| error.as_db_error().expect("of the server").message().to_owned());
    (receiver.try_iter().collect::<Vec<_>>().join("\n"), error)
}

#[test]
fn a_replay_that_stands_still_is_told_from_a_slow_one() {
    let scratch = Scratch::new();
    let (primary, standby) = behind(&scratch, 40);
    standby.start();
    let startup = standby.get::<i32>("SELECT pid FROM pg_stat_activity WHERE backend_type = 'startup'", &[]);
    let startup = rustix::process::Pid::from_raw(startup).expect("a process");
    let signal = |signal| rustix::process::kill_process(startup, signal).expect("it lives");
    let fails = |why: &str| {
        let (notices, error) = told_by_start(&primary, &standby);
        let error = error.expect(why);
        assert!(error.ends_with(why) && error.contains("does not stream"), "{error}");
        assert!(notices.contains(&format!("stands still: {why}")), "{notices}");
    };
    signal(rustix::process::Signal::STOP);
    fails(&format!("its startup process ({}) is stopped by a signal", startup.as_raw_nonzero()));
    signal(rustix::process::Signal::CONT);
    standby.execute("SELECT pg_wal_replay_pause()");
    fails("its replay is paused");
    standby.execute("SELECT pg_wal_replay_resume()");
    let (notices, error) = told_by_start(&primary, &standby);
    assert_eq!(error, None);
    assert!(
        notices.contains("the standby has replayed WAL up to 0/") && notices.contains("B/s"),
        "{notices}"
    );
    assert!(!notices.contains("stands still"), "{notices}");
}

#[test]
fn an_apply_delay_is_named_where_it_keeps_a_standby_from_streaming() {
    let scratch = Scratch::new();
    let (primary, standby) = behind(&scratch, 3);
    standby.append_conf("recovery_min_apply_delay", "1h");
    let (notices, error) = told_by_start(&primary, &standby);
    let why = "recovery_min_apply_delay holds its replay back by 3600 s";
    let error = error.expect("it does not stream");
    assert!(error.ends_with(why), "{error}");
    assert!(notices.contains(&format!("stands still: {why}")), "{notices}");
}

#[test]
fn a_paused_replay_is_told() {
    let scratch = Scratch::new();
    let primary = Cluster::primary(&scratch);
    let standby = rebuilt(&primary, "standby", |recovery| recovery);
    let notices = || {
        let (notices, error) = told_by_start(&primary, &standby);
        assert_eq!(error, None);
        notices
    };
    assert!(!notices().contains("stands still"));
    standby.execute("SELECT pg_wal_replay_pause()");
    primary.execute("CREATE TABLE not_replayed (n integer)");
    let told = notices();
    assert!(told.contains("stands still: its replay is paused"), "{told}");
    standby.execute("SELECT pg_wal_replay_resume()");
    standby.wait_for_replay(&primary);
    assert!(!notices().contains("stands still"));
}
