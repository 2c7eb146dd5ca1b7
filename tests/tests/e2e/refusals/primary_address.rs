//! Which addresses of the primary's a standby is given, where its caller must not decide that.

use pgpool_recovery_e2e::agent::{self, Agent};
use pgpool_recovery_e2e::cluster::Stop;
use pgpool_recovery_e2e::fake_server::{FakeServer, Heard};
use pgpool_recovery_e2e::netns::Network;
use pgpool_recovery_e2e::ports::Port;
use pgpool_recovery_e2e::process::Daemon;
use pgpool_recovery_e2e::{Cluster, Host, Recovery, Scratch, process, wait};
use postgres::Client;
use rustix::process::Signal;

/// What a bridge for containers might have, on both hosts.
const BRIDGE: &str = "192.168.77.1";

/// What a statement says on the server of `standby`, whose socket directory is its own.
fn ask(standby: &Cluster, port: u16, sql: &str) -> String {
    let mut psql = standby.host().pg("psql");
    psql.args(["-X", "-A", "-t", "-h", "127.0.0.1", "-p", &port.to_string(), "-U", "postgres"]);
    psql.args(["-d", "postgres", "-c", sql]);
    process::run(psql).stdout
}

#[test]
fn a_standby_does_not_follow_itself_while_its_primary_is_down() {
    let scratch = Scratch::new();
    let network = Network::new(2);
    network.share(BRIDGE);
    let secret = agent::secret(&scratch, "secret");
    let primary = Cluster::place(&scratch, &network.host(0), "primary")
        .with("pgpool_recovery.secret_file", secret.display())
        .with("pgpool_recovery.slot_name", "")
        .into_primary();
    primary.execute(
        "CREATE ROLE operator LOGIN REPLICATION;
         GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO operator",
    );
    let standby = Cluster::standby_by_basebackup(&primary, &network.host(1), "standby");
    standby.stop(Stop::Fast);
    // two hosts, one port
    let port = primary.port();
    standby.append_conf("port", port);
    standby.append_conf("unix_socket_directories", "");
    let agent = Agent::start(&scratch, standby.host(), &secret, &[standby.directory()]);
    primary.use_agent(agent.port());

    // The resolver takes 127.1 for 127.0.0.1, as it does a host's own name on Debian: of no use to another host.
    let (host, directory) = (standby.host().address(), standby.dir());
    let mut session = primary.connect();
    session.batch_execute("SET SESSION AUTHORIZATION operator").expect("a role");
    let recover = |session: &mut Client, primary_host: &str| {
        let call = format!(
            "SELECT pgpool_recovery('pgpool_recovery_1st_stage', '{host}', '{directory}', '{port}', 1, '{port}', '{primary_host}')"
        );
        session.batch_execute(&call).expect("a recovery");
        standby.read("myrecovery.conf")
    };
    // On the standby's host another program may listen there, and would get the password.
    let conf = recover(&mut session, BRIDGE);
    assert!(conf.contains("host=10.83.0.10 port"), "{conf}");
    let conf = recover(&mut session, "127.1");
    session
        .batch_execute(&format!("SELECT pgpool_remote_start('{host}', '{directory}')"))
        .expect("it streams");
    drop(session);

    let walreceiver =
        || ask(&standby, port, "SELECT pid FROM pg_stat_wal_receiver WHERE status = 'streaming'");
    let before = walreceiver();
    primary.stop(Stop::Fast);
    wait::until_true("the standby to look for its primary", wait::PATIENCE, || {
        let now = walreceiver();
        let has_found_one = !now.is_empty() && now != before;
        has_found_one || standby.log().contains("could not connect to the primary server")
    });
    primary.start();
    primary.wait_for_standby(host);
    assert!(conf.contains("hostaddr=10.83.0.10 ") && !conf.contains(BRIDGE), "{conf}");
}

/// Passes connections to its first port on to its second, both at its address, one connection after another.
const FORWARDER: &str = "\
import socket, sys, threading
address, port, agent = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
def pump(one, other):
    try:
        while data := one.recv(65536):
            other.sendall(data)
        other.shutdown(socket.SHUT_WR)
    except OSError:
        pass
listener = socket.create_server((address, port))
print('ready', flush=True)
while True:
    client, _ = listener.accept()
    server = socket.create_connection((address, agent))
    for pair in ((client, server), (server, client)):
        threading.Thread(target=pump, args=pair, daemon=True).start()
";

#[test]
fn an_agent_behind_a_proxy_of_its_own_host_does_not_tell_where_the_primary_is() {
    let scratch = Scratch::new();
    let network = Network::new(2);
    let secret = agent::secret(&scratch, "secret");
    let primary = Cluster::place(&scratch, &network.host(0), "primary")
        .with("pgpool_recovery.secret_file", secret.display())
        .into_primary();
    let target = Cluster::place(&scratch, &network.host(1), "target");
    let agent = Agent::start(&scratch, target.host(), &secret, &[target.directory()]);
    let port = Port::claim();
    let mut forwarder = target.host().command("python3");
    forwarder.args(["-c", FORWARDER, target.host().address()]);
    forwarder.args([port.number().to_string(), agent.port().to_string()]);
    let forwarder = Daemon::spawn(forwarder, &scratch.join("forwarder.log"), Signal::TERM);
    wait::until_true("the forwarder", wait::PATIENCE, || forwarder.log().contains("ready"));
    primary.use_agent(port.number());

    let recovery = Recovery::to(target.host().address(), target.dir(), primary.port());
    let error = recovery.fail(&primary).expect("55000");
    error.clone().says("it is not known where the standby reaches this server");
    assert!(error.hint.contains("pgpool_recovery.primary_host"), "{error:?}");
    assert!(!target.directory().exists());
    recovery.option("primary_host", primary.host().address()).run(&primary);
    assert!(target.read("myrecovery.conf").contains("host=10.83.0.10 "));
}

#[test]
fn another_program_on_one_of_the_loopback_addresses_gets_no_password() {
    let scratch = Scratch::new();
    let port = Port::claim();
    // it was there first: the server does without that address
    let fake = FakeServer::on_tcp("::1", port.number());
    let passfile = scratch.write("passfile", "*:*:replication:*:the-password\n", 0o600);
    let primary = Cluster::place(&scratch, &Host::here(), "primary")
        .listening_on(port)
        .with("listen_addresses", "localhost")
        .with("pgpool_recovery.passfile", passfile.display())
        .into_primary();
    let target = Cluster::place(&scratch, &Host::here(), "target");
    Recovery::of(&target, &primary).option("dest_port", target.port()).option("start", true).run(&primary);
    assert_eq!(fake.heard(), Heard::default());
    let conf = target.read("myrecovery.conf");
    assert!(conf.contains("host=localhost hostaddr=127.0.0.1 "), "{conf}");
}

/// Its OS user is the same, and so are its host and port.
#[test]
fn another_server_on_one_of_the_loopback_addresses_is_not_the_primary() {
    let scratch = Scratch::new();
    let other = Cluster::place(&scratch, &Host::here(), "other").init();
    let port = Port::claim();
    other.append_conf("port", port.number());
    other.append_conf("listen_addresses", "::1");
    other.append_conf("unix_socket_directories", "");
    other.append_conf("log_connections", "on");
    // it was there first: the server does without that address
    other.start();
    let primary = Cluster::place(&scratch, &Host::here(), "primary")
        .listening_on(port)
        .with("listen_addresses", "localhost")
        .into_primary();
    let target = Cluster::place(&scratch, &Host::here(), "target");
    Recovery::of(&target, &primary).option("dest_port", target.port()).option("start", true).run(&primary);
    assert!(!other.log().contains("connection received"), "{}", other.log());
    let conf = target.read("myrecovery.conf");
    assert!(conf.contains("host=localhost hostaddr=127.0.0.1 "), "{conf}");
}
