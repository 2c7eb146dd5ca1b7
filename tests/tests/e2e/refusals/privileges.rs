//! What a role with EXECUTE and REPLICATION may do, and what it may not: lead a password or a standby to another
//! server, write where it likes, destroy a backup.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use pgpool_recovery_e2e::cluster::Stop;
use pgpool_recovery_e2e::fake_server::{FakeServer, Heard};
use pgpool_recovery_e2e::ports::Port;
use pgpool_recovery_e2e::proxy::Proxy;
use pgpool_recovery_e2e::snapshot::Snapshot;
use pgpool_recovery_e2e::{Agent, Cluster, Host, Recovery, Scratch, SqlError, agent, process, server};
use postgres::Client;

const PASSWORD: &str = "the-replication-password";

/// A primary that listens on one address of this host only, where `operator` may do what the guide's role may.
fn primary(scratch: &Scratch) -> Cluster {
    let passfile = scratch.write("passfile", &format!("*:*:replication:*:{PASSWORD}\n"), 0o600);
    let primary = Cluster::place(scratch, &Host::here(), "primary")
        .with("listen_addresses", "127.0.0.1")
        .with("pgpool_recovery.passfile", passfile.display())
        .into_primary();
    primary.execute(
        "CREATE ROLE operator LOGIN REPLICATION;
         GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO operator",
    );
    primary
}

fn allow(primary: &Cluster, directory: &Path) {
    primary.append_conf("pgpool_recovery.local_directories", directory.display());
    primary.reload();
}

fn session(primary: &Cluster, role: &str) -> Client {
    let mut client = primary.connect();
    client.batch_execute(&format!("SET SESSION AUTHORIZATION {role}")).expect(role);
    client
}

/// How a statement of the operator's fails.
#[track_caller]
fn refusal(primary: &Cluster, statement: &str) -> SqlError {
    match session(primary, "operator").simple_query(statement) {
        Ok(_) => panic!("{statement} succeeded"),
        Err(error) => SqlError::from(&error),
    }
}

/// What Pgpool-II calls, for a target on this host.
fn classic(directory: &str, primary_port: u16, primary_host: &str) -> String {
    format!(
        "SELECT pgpool_recovery('pgpool_recovery_1st_stage', '', '{directory}', '{primary_port}', 1, '1', '{primary_host}')"
    )
}

fn dead_standby(primary: &Cluster, name: &str) -> Cluster {
    let standby = Cluster::standby_by_basebackup(primary, &Host::here(), name);
    standby.stop(Stop::Fast);
    standby
}

/// A base backup, with further arguments for pg_basebackup.
fn base_backup(primary: &Cluster, name: &str, arguments: &[&str]) -> Cluster {
    let backup = Cluster::place(primary.scratch(), &Host::here(), name);
    let mut command = primary.host().pg("pg_basebackup");
    command.args(["-c", "fast", "-D"]).arg(backup.directory()).arg("-h").arg(primary.scratch().sockets());
    command.args(["-p", &primary.port().to_string(), "-U", "postgres"]).args(arguments);
    process::run(command).ok();
    backup
}

#[test]
fn the_password_goes_to_no_other_server() {
    let scratch = Scratch::new();
    let primary = primary(&scratch);
    allow(&primary, scratch.path());
    let target = scratch.join("target");
    let target = target.to_str().expect("ASCII");
    // On another port, at another address of this host, and in a directory for sockets.
    let port = Port::claim();
    let fakes = [
        FakeServer::on_tcp("127.0.0.1", port.number()),
        FakeServer::on_tcp("127.0.0.66", primary.port()),
        FakeServer::on_socket(&scratch.mkdir("x"), primary.port()),
    ];
    let socket = scratch.join("x");
    let socket = socket.display();

    let (own, other) = (primary.port(), port.number());
    for statement in [
        classic(target, other, "127.0.0.1"),
        classic(target, own, "192.0.2.1"),
        classic(target, own, &socket.to_string()),
        format!("SELECT pgpool_recovery('pgpool_recovery_1st_stage', '', '{target}', '{other}')"),
        format!("SELECT pgpool_recovery_1st_stage('', '{target}', {other})"),
        format!("SELECT pgpool_recovery_1st_stage('', '{target}', '{other}'::text)"),
        format!("SELECT * FROM pgpool_recovery_check('', '{target}', {other})"),
        format!(
            "SELECT * FROM pgpool_recovery_check('', '{target}', {own}, '{{\"primary_host\": \"{socket}\"}}')"
        ),
        format!(
            "SELECT pgpool_recovery_1st_stage('', '{target}', {own}, '{{\"primary_host\": \"127.0.0.66\", \"dry_run\": true}}')"
        ),
    ] {
        refusal(&primary, &statement).expect("42501");
        assert!(!Path::new(target).exists(), "{statement}");
    }
    for (option, value) in [
        ("agent_port", "1"),
        ("transport", "\"local\""),
        ("replication_user", "\"postgres\""),
        ("jobs", "64"),
        ("passfile", "\"/x\""),
    ] {
        let call = format!("'', '{target}', {own}, '{{\"{option}\": {value}}}'");
        for function in ["pgpool_recovery_1st_stage", "pgpool_recovery_check"] {
            refusal(&primary, &format!("SELECT {function}({call})")).expect("42501").says(option);
        }
    }
    // This host, but not where this server listens: the standby is told an address of the server's own.
    session(&primary, "operator").simple_query(&classic(target, own, "127.0.0.66")).expect("a recovery");
    let conf = std::fs::read_to_string(format!("{target}/myrecovery.conf")).expect("a standby");
    assert!(conf.contains(&format!("host=127.0.0.1 port={own} user=operator")), "{conf}");
    for fake in &fakes {
        assert_eq!(fake.heard(), Heard::default());
    }

    // The fakes are good ones: who may lead the standby there learns the password, or libpq does not tell it.
    let recovery = Recovery::to("", target, other).option("primary_host", "127.0.0.1");
    recovery.fail(&primary).expect("28000");
    let heard = fakes[0].heard();
    assert!(heard.connections > 0);
    assert_eq!(heard.passwords.iter().any(|told| told == PASSWORD), server::major() < 16, "{heard:?}");
}

#[test]
fn a_name_for_this_server_is_not_looked_up_again() {
    let scratch = Scratch::new();
    let primary = primary(&scratch);
    allow(&primary, scratch.path());
    let target = scratch.join("target");
    let conf = |host: &str| {
        let call = classic(target.to_str().expect("ASCII"), primary.port(), host);
        session(&primary, "operator").simple_query(&call).expect(host);
        std::fs::read_to_string(target.join("myrecovery.conf")).expect("a standby")
    };
    // The resolver takes it for 127.0.0.1; who answers for a name may change the answer.
    assert!(conf("127.1").contains("host=127.1 hostaddr=127.0.0.1 "));
    assert!(conf("127.0.0.1").contains("host=127.0.0.1 port"));
    // another program may have the other address of this name
    let localhost = conf("localhost");
    assert!(localhost.contains("host=localhost") && localhost.contains("hostaddr=127.0.0.1"), "{localhost}");
    let sockets = scratch.sockets().display().to_string();
    assert!(conf(&sockets).contains(&format!("host={sockets} port")));
    // What the administrator has set is taken as it is.
    primary.append_conf("pgpool_recovery.primary_host", "127.1");
    primary.reload();
    assert!(conf("127.1").contains("host=127.1 port"));
}

#[test]
fn a_translated_address_is_named_by_two_settings() {
    let scratch = Scratch::new();
    let primary = primary(&scratch);
    allow(&primary, scratch.path());
    let (translation, target) = (Proxy::to(primary.port()), scratch.join("target"));
    let directory = target.to_str().expect("ASCII");
    let call = classic(directory, translation.port(), "127.0.0.1");
    let refused = refusal(&primary, &call).expect("42501");
    assert!(refused.hint.contains("pgpool_recovery.primary_port"), "{refused:?}");
    primary.append_conf("pgpool_recovery.primary_port", translation.port());
    primary.reload();
    // it is the port of another host, which is not known
    let without = format!("SELECT pgpool_recovery('pgpool_recovery_1st_stage', '', '{directory}')");
    for call in [&call, &without] {
        let refused = refusal(&primary, call).expect("42501");
        assert!(refused.hint.contains("pgpool_recovery.primary_host"), "{refused:?}");
    }
    assert!(!target.exists());
    primary.append_conf("pgpool_recovery.primary_host", "127.0.0.1");
    primary.reload();
    // one who names neither gets both as well
    for call in [&call, &without] {
        session(&primary, "operator").simple_query(call).expect(call);
        let conf = std::fs::read_to_string(target.join("myrecovery.conf")).expect("a standby");
        assert!(conf.contains(&format!(" port={} ", translation.port())), "{call}: {conf}");
    }
    refusal(&primary, &classic(directory, 1, "127.0.0.1")).expect("42501");
}

#[test]
fn a_host_and_a_port_that_are_right_in_two_addresses_make_no_third_one() {
    let scratch = Scratch::new();
    let primary = primary(&scratch);
    allow(&primary, scratch.path());
    let (translated, target) = (Port::claim(), scratch.join("target"));
    let directory = target.to_str().expect("ASCII");
    let (own, other) = (primary.port(), translated.number());
    // On this host any OS user may listen on the port that is translated elsewhere, and on any address where the server
    // does not listen.
    let fakes = [FakeServer::on_tcp("127.0.0.1", other), FakeServer::on_tcp("127.0.0.2", own)];
    primary.append_conf("pgpool_recovery.primary_port", other);
    for (set, host, port) in [
        // TEST-NET-1 belongs to no host
        ("192.0.2.1", "127.0.0.1", other),
        ("192.0.2.1", "192.0.2.1", own),
        ("127.0.0.2", "127.0.0.2", own),
        ("", "127.0.0.1", other),
        ("", "", other),
    ] {
        primary.append_conf("pgpool_recovery.primary_host", set);
        primary.reload();
        let error =
            refusal(&primary, &classic(directory, port, host)).expect("42501").says(&port.to_string());
        assert!(
            error.text().contains(host) && error.hint.contains("pgpool_recovery.primary_host"),
            "{error:?}"
        );
        assert!(!target.exists(), "{error:?}");
    }
    for fake in &fakes {
        assert_eq!(fake.heard(), Heard::default());
    }
    // both as they are set
    primary.append_conf("pgpool_recovery.primary_host", "127.0.0.1");
    primary.append_conf("pgpool_recovery.primary_port", own);
    primary.reload();
    session(&primary, "operator").simple_query(&classic(directory, own, "")).expect("a recovery");
}

/// A primary and an agent with one secret, and the agent's directory.
fn with_agent(scratch: &Scratch) -> (Cluster, Agent, PathBuf) {
    let primary = primary(scratch);
    let secret = agent::secret(scratch, "secret");
    let target = scratch.join("target");
    let agent = Agent::start(scratch, &Host::here(), &secret, &[&target]);
    primary.append_conf("pgpool_recovery.secret_file", secret.display());
    (primary, agent, target)
}

#[test]
fn an_address_that_an_agent_saw_is_used_only_where_the_server_listens() {
    let scratch = Scratch::new();
    let (primary, agent, target) = with_agent(&scratch);
    primary.append_conf("listen_addresses", "127.0.0.66");
    primary.append_conf("pgpool_recovery.transport", "agent");
    primary.append_conf("pgpool_recovery.agent_port", agent.port());
    primary.stop(Stop::Fast);
    // where the agent sees this host, another program listens
    let fake = FakeServer::on_tcp("127.0.0.1", primary.port());
    primary.start();
    let call =
        format!("SELECT pgpool_recovery_1st_stage('127.0.0.1', '{}', {})", target.display(), primary.port());
    let error =
        refusal(&primary, &call).expect("55000").says("not known where the standby reaches this server");
    assert!(error.hint.contains("pgpool_recovery.primary_host"), "{error:?}");
    assert_eq!(fake.heard(), Heard::default());
    primary.append_conf("pgpool_recovery.primary_host", "127.0.0.66");
    primary.reload();
    session(&primary, "operator").simple_query(&call).expect("a recovery");
    assert_eq!(fake.heard(), Heard::default());
}

#[test]
fn loopback_is_no_address_for_a_standby_behind_an_agent() {
    let scratch = Scratch::new();
    let (primary, agent, target) = with_agent(&scratch);
    primary.use_agent(agent.port());
    // the agent sees this host at 127.0.0.1; other addresses of the name's host are used if there are any
    for host in ["localhost", "127.1"] {
        // No local directory is listed: what an agent writes is for its own list to say.
        let call = classic(target.to_str().expect("ASCII"), primary.port(), host);
        session(&primary, "operator").simple_query(&call).expect(host);
        let conf = std::fs::read_to_string(target.join("myrecovery.conf")).expect("a standby");
        let is_other = host == "127.1" && conf.contains("host=127.1") && !conf.contains("hostaddr=127.");
        assert!(conf.contains("host=127.0.0.1 port") || is_other, "{host}: {conf}");
    }
}

#[test]
fn a_local_target_lies_beneath_a_listed_directory() {
    let scratch = Scratch::new();
    let primary = primary(&scratch);
    let standby = dead_standby(&primary, "standby");
    let (dir, port) = (standby.dir().to_owned(), primary.port());
    std::fs::create_dir_all(standby.directory().join("log")).expect("a directory");
    let words = "nobody's business";
    pgpool_recovery_e2e::scratch::write_as_postgres(
        &standby.directory().join("log/server.log"),
        words,
        0o600,
    );
    let before = Snapshot::of(standby.directory());
    let all_refused = |why: &str| {
        for statement in [
            classic(&dir, port, "127.0.0.1"),
            format!("SELECT pgpool_recovery_1st_stage('', '{dir}', {port})"),
            format!(
                "SELECT pgpool_recovery_1st_stage('localhost', '{dir}', {port}, '{{\"dry_run\": true}}')"
            ),
            format!("SELECT * FROM pgpool_recovery_check('127.0.0.1', '{dir}', {port})"),
            format!("SELECT pgpool_remote_start('localhost', '{dir}')"),
        ] {
            let error = refusal(&primary, &statement).expect("42501").says("local_directories");
            assert!(!error.text().contains(words), "{why}: {error:?}");
            // the same for what is not there
            let absent = refusal(&primary, &statement.replace(&dir, "/no/such")).expect("42501");
            assert_eq!((error.detail, error.hint), (absent.detail, absent.hint), "{why}");
        }
        before.assert_unchanged(standby.directory());
    };
    all_refused("nothing is listed");
    let beneath = scratch.mkdir("standbys");
    allow(&primary, &beneath);
    all_refused("another directory is listed");
    allow(&primary, standby.directory());
    all_refused("a listed directory itself is no target");

    // A link beneath a listed directory leads out of it.
    allow(&primary, &beneath);
    let link = beneath.join("link");
    symlink(standby.directory(), &link).expect("a link");
    let call = format!("SELECT pgpool_recovery_1st_stage('', '{}', {port})", link.display());
    refusal(&primary, &call).expect("42501");
    // So does a pg_wal.
    let inside = Cluster::place(&scratch, &Host::here(), "inside").at(beneath.join("inside"));
    let call = format!(
        "SELECT pgpool_recovery_1st_stage('', '{}', {port}, '{{\"dest_port\": {}}}')",
        inside.dir(),
        inside.port()
    );
    session(&primary, "operator").simple_query(&call).expect("beneath a listed directory");
    let wal = scratch.join("wal");
    std::fs::rename(inside.directory().join("pg_wal"), &wal).expect("a directory");
    symlink(&wal, inside.directory().join("pg_wal")).expect("a link");
    let wal_before = Snapshot::of(&wal);
    refusal(&primary, &call).expect("42501");
    wal_before.assert_unchanged(&wal);
    before.assert_unchanged(standby.directory());

    // And a tablespace, wherever the settings map it.
    let space = scratch.mkdir("space");
    primary.execute(&format!("CREATE TABLESPACE space LOCATION '{}'", space.display()));
    let mapping = |to: &Path| {
        primary.append_conf(
            "pgpool_recovery.tablespace_mapping",
            format!("{}={}", space.display(), to.display()),
        );
        primary.reload();
    };
    std::fs::remove_file(inside.directory().join("pg_wal")).expect("a link");
    std::fs::rename(&wal, inside.directory().join("pg_wal")).expect("a directory");
    mapping(&scratch.join("space of the standby"));
    refusal(&primary, &call).expect("42501").says("local_directories");
    mapping(&beneath.join("space"));
    session(&primary, "operator").simple_query(&call).expect("all of it beneath a listed directory");
    let start = format!("SELECT pgpool_remote_start('', '{}')", inside.dir());
    session(&primary, "operator").simple_query(&start).expect("started");
    assert!(inside.in_recovery());
}

#[test]
fn a_base_backup_is_no_standby() {
    let scratch = Scratch::new();
    let primary = primary(&scratch);
    allow(&primary, scratch.path());
    let standby = Cluster::standby_by_basebackup(&primary, &Host::here(), "standby");
    for (name, backup) in [
        ("plain", base_backup(&primary, "plain", &[])),
        ("for a standby", base_backup(&primary, "recovery", &["-R"])),
        ("of a standby", base_backup(&standby, "of_standby", &[])),
    ] {
        let before = Snapshot::of(backup.directory());
        for role in ["operator", "postgres"] {
            let error = Recovery::of(&backup, &primary).call(&mut session(&primary, role));
            let error = SqlError::from(&error.expect_err(name));
            error.expect("55000").says("base backup").says("any_cluster");
        }
        before.assert_unchanged(backup.directory());
    }
    let backup = Cluster::place(&scratch, &Host::here(), "plain");
    Recovery::of(&backup, &primary).option("overwrite", "any_cluster").run(&primary);
    // What a recovery has left is no backup, started or not; nor is a standby that began as one.
    Recovery::of(&backup, &primary).call(&mut session(&primary, "operator")).expect("not started yet");
    standby.stop(Stop::Fast);
    assert!(standby.has("backup_manifest"));
    Recovery::of(&standby, &primary).call(&mut session(&primary, "operator")).expect("a standby");
}

#[test]
fn an_old_primary_that_began_as_a_backup_is_rebuilt() {
    let scratch = Scratch::new();
    let first = primary(&scratch);
    let second = Cluster::standby_by_basebackup(&first, &Host::here(), "second");
    first.stop(Stop::Fast);
    second.promote();
    let third = Cluster::standby_by_basebackup(&second, &Host::here(), "third");
    // "second" has been the primary since, and has the manifest of the backup that it began as.
    assert!(second.has("backup_manifest") && !second.has("standby.signal"));
    second.kill();
    third.promote();
    Recovery::of(&second, &third).run(&third);
}
