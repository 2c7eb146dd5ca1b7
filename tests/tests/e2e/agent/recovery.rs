//! Rebuilding a standby through an agent, and what may stand in an agent's place.

use std::fs;
use std::time::{Duration, Instant};

use pgpool_recovery_e2e::agent::{self, Agent};
use pgpool_recovery_e2e::background::Running;
use pgpool_recovery_e2e::fake_agent::{FakeAgent, TransferOptions};
use pgpool_recovery_e2e::process::Daemon;
use pgpool_recovery_e2e::proxy::Proxy;
use pgpool_recovery_e2e::recovery::{remote_start, try_remote_start};
use pgpool_recovery_e2e::snapshot::Snapshot;
use pgpool_recovery_e2e::stage::Condition;
use pgpool_recovery_e2e::{
    Cluster, Host, Recovery, Scratch, SqlError, Stage, compare, dump, ports, probe, wait, workload,
};

/// A primary that knows the secret, and a dead standby of it. Each test starts the agent it needs.
fn stage(megabytes: u32) -> Stage {
    let stage = Stage::builder().quiet().with("pgpool_recovery.transport", "agent");
    stage.filled(megabytes).standby(Condition::Killed).build()
}

fn agent_of(stage: &Stage) -> Agent {
    Agent::start(&stage.scratch, &Host::here(), &stage.secret, &[stage.target.directory()])
}

fn recovery(stage: &Stage, agent_port: u16) -> Recovery {
    Recovery::to("127.0.0.1", stage.target.dir(), stage.primary.port())
        .option("agent_port", agent_port)
        .option("application_name", "target")
}

/// A recovery that must fail and change nothing.
#[track_caller]
fn refused(stage: &Stage, recovery: &Recovery) -> SqlError {
    let before = Snapshot::of(stage.target.directory());
    let error = recovery.fail(&stage.primary);
    before.assert_unchanged(stage.target.directory());
    probe::assert_nothing_left(&stage.primary);
    stage.primary.wait_for_log(&error.message);
    error
}

#[test]
fn an_agent_rebuilds_and_starts_a_standby() {
    let stage = stage(20);
    let agent = agent_of(&stage);
    workload::change_every(&mut stage.primary.connect(), 10);
    let report = recovery(&stage, agent.port()).run(&stage.primary);
    assert_eq!(report.text("/target/transport"), "agent");
    assert!(report.number("/bytes/wire") >= report.number("/bytes/sent") / 10, "{}", report.0);
    assert!(report.number("/bytes/sent") < report.number("/bytes/total") / 2, "{}", report.0);

    stage.primary.append_conf("pgpool_recovery.agent_port", agent.port().to_string());
    stage.primary.reload();
    remote_start(&stage.primary, "127.0.0.1", stage.target.dir());
    stage.primary.wait_for_standby("target");
    dump::assert_equal(&stage.primary, &stage.target);
    compare::stop_and_compare(&stage.primary, &stage.target).assert_none();
    let secret = fs::read_to_string(&stage.secret).expect("the secret");
    assert!(!agent.log().contains(secret.trim()) && !stage.primary.log().contains(secret.trim()));
}

#[test]
fn a_new_directory_through_an_agent() {
    let stage = stage(5);
    let target = Cluster::place(&stage.scratch, &Host::here(), "new");
    let agent = Agent::start(&stage.scratch, &Host::here(), &stage.secret, &[target.directory()]);
    Recovery::to("127.0.0.1", target.dir(), stage.primary.port())
        .option("agent_port", agent.port())
        .option("dest_port", target.port())
        .option("start", true)
        .run(&stage.primary);
    assert!(target.in_recovery());
    compare::stop_and_compare(&stage.primary, &target).assert_none();
}

#[test]
fn two_targets_at_once_but_never_one_twice() {
    let stage = stage(20);
    let other = Cluster::place(&stage.scratch, &Host::here(), "other");
    let both = [stage.target.directory(), other.directory()];
    let agent = Agent::start(&stage.scratch, &Host::here(), &stage.secret, &both);
    // a full copy takes a while at this rate, the standby's delta does not
    let to_other = |slot: &str| {
        Recovery::to("127.0.0.1", other.dir(), stage.primary.port())
            .option("agent_port", agent.port())
            .option("dest_port", other.port())
            .option("slot_name", slot)
    };
    let running = Running::start(&stage.primary, &to_other("slow").option("max_rate", 8000), "");
    running.wait_for_bytes(&stage.primary, 1);
    to_other("again").fail(&stage.primary).expect("55006");
    recovery(&stage, agent.port()).option("slot_name", "other").run(&stage.primary);
    running.finish_within(wait::PATIENCE).expect("the first is not disturbed");
    assert_eq!(probe::slots(&stage.primary), ["other", "slow"]);
}

#[test]
fn a_wrong_secret() {
    let stage = stage(1);
    let other = agent::secret(&stage.scratch, "other-secret");
    let agent = Agent::start(&stage.scratch, &Host::here(), &other, &[stage.target.directory()]);
    refused(&stage, &recovery(&stage, agent.port())).expect("28000").says("secret");
    let directory = stage.target.dir();
    assert!(!agent.log().contains(directory) || agent.log().contains("listening"), "{}", agent.log());
}

#[test]
fn a_secret_that_cannot_be_used() {
    let stage = stage(1);
    let agent = agent_of(&stage);
    let loose = stage.scratch.write("loose", &fs::read_to_string(&stage.secret).expect("it"), 0o644);
    let short = stage.scratch.write("short", "abc\n", 0o600);
    let missing = stage.scratch.join("missing");
    for file in [loose, short, missing] {
        let recovery = recovery(&stage, agent.port()).option("secret_file", file.to_str().expect("ASCII"));
        let error = refused(&stage, &recovery);
        assert!(error.text().contains(file.to_str().expect("ASCII")), "{error:?}");
        assert!(!error.text().contains("abc"), "{error:?}");
    }
}

#[test]
fn nobody_listens() {
    let stage = stage(1);
    let port = ports::Port::claim();
    let error = refused(&stage, &recovery(&stage, port.number())).expect("08001");
    error.says(&port.number().to_string());
    let error = try_remote_start(&stage.primary, "127.0.0.1", stage.target.dir()).expect_err("no standby");
    assert!(error.text().contains(&port.number().to_string()), "the cause is repeated: {error:?}");
}

#[test]
fn something_else_listens() {
    let stage = stage(1);
    let web = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n".to_vec();
    let noise = (0..9000_u32).map(|i| ((i * 7919) >> 3) as u8).collect();
    for options in [
        TransferOptions::Says(web),
        TransferOptions::Says(noise),
        TransferOptions::Says(Vec::new()),
        TransferOptions::Closes,
    ] {
        let fake = FakeAgent::start(options.clone());
        let error = refused(&stage, &recovery(&stage, fake.port()));
        assert!(error.sqlstate.starts_with("08"), "{options:?}: {error:?}");
        assert!(fake.connections() > 0);
    }
    // A PostgreSQL server is what most often listens where it should not be looked for.
    let error = refused(&stage, &recovery(&stage, stage.primary.port()));
    assert!(error.sqlstate.starts_with("08"), "{error:?}");
}

#[test]
fn an_agent_that_never_answers() {
    let stage = stage(1);
    let fake = FakeAgent::start(TransferOptions::Silent);
    let start = Instant::now();
    let error = refused(&stage, &recovery(&stage, fake.port()));
    assert!(error.sqlstate.starts_with("08"), "{error:?}");
    assert!(start.elapsed() < Duration::from_secs(25), "{:?}", start.elapsed());

    // The wait can be cancelled.
    let running = Running::start(&stage.primary, &recovery(&stage, fake.port()), "");
    std::thread::sleep(Duration::from_secs(1));
    let start = Instant::now();
    running.cancel();
    let error = running.finish_within(Duration::from_secs(8)).expect_err("it was cancelled");
    assert_eq!(SqlError::from(&error).sqlstate, "57014");
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    probe::assert_nothing_left(&stage.primary);
}

#[test]
fn an_agent_that_closes_in_the_middle_of_the_handshake() {
    let stage = stage(1);
    let agent = agent_of(&stage);
    for bytes in [1, 100, 600, 1200] {
        let proxy = Proxy::cutting_after(bytes, agent.port());
        let error = refused(&stage, &recovery(&stage, proxy.port()));
        assert!(error.sqlstate.starts_with("08"), "{bytes}: {error:?}");
    }
    // And the agent is none the worse for it.
    recovery(&stage, agent.port()).run(&stage.primary);
}

#[test]
fn an_agent_of_another_protocol_version() {
    let stage = stage(1);
    let port = ports::Port::claim();
    let (key, certificate) = (stage.scratch.join("key.pem"), stage.scratch.join("certificate.pem"));
    let mut make = Host::here().command("openssl");
    make.args([
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=agent",
        "-keyout",
    ]);
    make.arg(&key).arg("-out").arg(&certificate);
    pgpool_recovery_e2e::process::run(make).ok();
    // A TLS peer that knows version 999 of our protocol only.
    let mut server = Host::here().command("openssl");
    server.args(["s_server", "-tls1_3", "-quiet", "-alpn", "pgpool-recovery/999", "-accept"]);
    server.arg(format!("127.0.0.1:{}", port.number())).arg("-key").arg(&key).arg("-cert").arg(&certificate);
    let log = stage.scratch.join("s_server.log");
    let _server = Daemon::spawn(server, &log, rustix::process::Signal::TERM);
    wait::until_true("openssl to listen", wait::PATIENCE, || {
        std::net::TcpStream::connect(("127.0.0.1", port.number())).is_ok()
    });
    refused(&stage, &recovery(&stage, port.number())).expect("08004").says("version");
}

#[test]
fn a_directory_that_the_agent_does_not_list() {
    let stage = stage(1);
    let elsewhere = stage.scratch.mkdir("elsewhere");
    let agent = Agent::start(&stage.scratch, &Host::here(), &stage.secret, &[elsewhere.as_path()]);
    let error = refused(&stage, &recovery(&stage, agent.port()));
    assert!(["42501", "55000"].contains(&error.sqlstate.as_str()), "{error:?}");
    assert!(error.text().contains(stage.target.dir()), "{error:?}");
    // Below a listed directory is not that directory.
    let below = elsewhere.join("below");
    let recovery = Recovery::to("127.0.0.1", below.to_str().expect("ASCII"), stage.primary.port())
        .option("agent_port", agent.port());
    refused(&stage, &recovery);
    assert!(!below.exists());
    // Nor may it be started.
    stage.primary.append_conf("pgpool_recovery.agent_port", agent.port().to_string());
    stage.primary.reload();
    try_remote_start(&stage.primary, "127.0.0.1", "/var/lib/postgresql").expect_err("not listed");
}

#[test]
fn the_primary_behind_an_agent_is_recognised() {
    let stage = stage(1);
    let mut witness = probe::Witness::on(&stage.primary);
    let directories = [stage.primary.directory()];
    let agent = Agent::start(&stage.scratch, &Host::here(), &stage.secret, &directories);
    let error = Recovery::to("127.0.0.1", stage.primary.dir(), stage.primary.port())
        .option("agent_port", agent.port())
        .fail(&stage.primary);
    assert!(error.sqlstate.starts_with("55"), "{error:?}");
    witness.assert_served();
    probe::assert_nothing_left(&stage.primary);
}

#[test]
fn replication_refused_by_pg_hba_is_found_before_the_first_byte() {
    let stage = stage(1);
    let agent = agent_of(&stage);
    stage.primary.set_hba(
        "local all all trust\nhost all all 0.0.0.0/0 trust\nhost replication all 0.0.0.0/0 reject\n",
    );
    stage.primary.reload();
    refused(&stage, &recovery(&stage, agent.port())).expect("28000").says("pg_hba.conf");
}

#[test]
fn a_graceful_stop() {
    let stage = stage(1);
    let mut agent = agent_of(&stage);
    assert!(agent.stop().success(), "{}", agent.log());
    refused(&stage, &recovery(&stage, agent.port())).expect("08001");
    agent.restart();
    recovery(&stage, agent.port()).run(&stage.primary);
}

#[test]
fn the_agent_checks_its_configuration() {
    let scratch = Scratch::new();
    let secret = agent::secret(&scratch, "secret");
    let directory = scratch.mkdir("data");
    let good = agent::config("127.0.0.1:9897", &secret, &[directory.as_path()]);
    let path = scratch.write("good.toml", &good, 0o600);
    agent::check(&path).ok();
    let relative = "\n[[cluster]]\ndata_directory = \"relative\"\nbin_directory = \"/x\"\n";
    for (name, text) in [
        ("unknown", format!("surprise = 1\n{good}")),
        ("listen", good.replace("127.0.0.1:9897", "nonsense")),
        ("secret", good.replace("secret\"", "no-such-file\"")),
        ("data_directory", format!("{good}{relative}")),
        ("broken", "listen = \n".to_owned()),
    ] {
        let path = scratch.write(format!("{name}.toml"), &text, 0o600);
        let finished = agent::check(&path);
        assert!(!finished.status.success(), "{name}: {}{}", finished.stdout, finished.stderr);
        assert!(!finished.stderr.is_empty() || !finished.stdout.is_empty());
    }
}

#[test]
fn a_secret_is_made_once() {
    let scratch = Scratch::new();
    let path = agent::secret(&scratch, "secret");
    let first = Snapshot::of(&path);
    let mode = std::os::unix::fs::MetadataExt::mode(&fs::metadata(&path).expect("the secret"));
    assert_eq!(mode & 0o7777, 0o600);
    let text = fs::read_to_string(&path).expect("the secret");
    assert_eq!(text.trim_end().len(), 64);
    let mut again = Host::here().agent();
    again.args(["secret", "--output"]).arg(&path);
    assert!(!pgpool_recovery_e2e::process::run(again).status.success(), "a secret in use was replaced");
    first.assert_unchanged(&path);
}
