//! Standbys of standbys, and answers that are no longer true when they count.

use std::time::Duration;

use pgpool_recovery_e2e::cluster::Stop;
use pgpool_recovery_e2e::netns::Network;
use pgpool_recovery_e2e::recovery::SqlError;
use pgpool_recovery_e2e::wait::{PATIENCE, until_true};
use pgpool_recovery_e2e::{Cluster, Host, Scratch, agent};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::{Trio, promote, with};

/// A standby of the first standby.
fn below(trio: &Trio) -> Cluster {
    let below = Cluster::standby_by_basebackup(&trio.one, &Host::here(), "below");
    let conninfo: String = below.get("SELECT current_setting('primary_conninfo')", &[]);
    assert!(conninfo.contains(&trio.one.port().to_string()), "{conninfo}");
    below
}

#[test]
fn the_silence_of_a_standby_is_not_that_of_the_primary() {
    let trio = Trio::new();
    let below = below(&trio);
    trio.one.stop(Stop::Fast);
    let refused = |old: Option<&Cluster>, options: &Value| {
        let error = promote(&below, old, options).expect_err("a second primary was made");
        assert!(below.in_recovery());
        error
    };
    let nodes = trio.nodes(&[&trio.one]);
    refused(None, &nodes).expect("55000").says("follows another standby").says("and silent");
    // where nobody fences the old primary, it speaks all the same
    for options in [&trio.options, &nodes] {
        let without_agent = with(options, "agent_port", 1);
        let error = refused(Some(&trio.old), &without_agent);
        error.expect("55000").says("another primary is alive").says("speaks with clients");
    }
    promote(&below, Some(&trio.old), &nodes).expect("the old primary is fenced");
}

/// The directory that was named is another server's, or empty. Who listens there is alive all the same.
#[test]
fn a_primary_whose_directory_is_named_wrongly_is_heard() {
    let trio = Trio::new();
    let below = below(&trio);
    trio.one.stop(Stop::Fast);
    trio.two.stop(Stop::Fast);
    // as a primary's that has ended in order
    std::fs::remove_file(trio.two.directory().join("standby.signal")).expect("removed");
    let call = |port: u16| {
        let sql = "SELECT pgpool_recovery_promote('127.0.0.1', $1, $2, $3)";
        let called = below.connect().query_one(sql, &[&trio.two.dir(), &i32::from(port), &trio.options]);
        SqlError::from(&called.map(drop).expect_err("a second primary was made"))
    };
    call(trio.old.port()).expect("55000").says("another primary is alive").says("speaks with clients");
    assert!(below.in_recovery() && !trio.old.in_recovery());
}

/// A name service that fails here says nothing of any node.
#[test]
fn a_name_that_cannot_be_looked_up_makes_no_node_silent() {
    let (scratch, network) = (Scratch::new(), Network::new(1));
    // no name service can be reached there
    let host = network.host(0);
    let primary = Cluster::place(&scratch, &host, "primary").into_primary();
    let standby = Cluster::standby_by_basebackup(&primary, &host, "standby");
    standby.wait_for_replay(&primary);
    primary.kill();
    let secret = agent::secret(&scratch, "promote-secret");
    let options = json!({ "transport": "agent", "agent_port": 1, "secret_file": secret.to_str() });
    let node = json!({ "node_id": 2, "host": "db2.example", "port": 5432, "directory": "/srv/pg" });
    let error = promote(&standby, None, &with(&options, "nodes", [node.clone()])).expect_err("promoted");
    error.expect("55000").says("cannot tell whether the primary lives").says("db2.example");
    let sql = "SELECT pgpool_recovery_promote('db1.example', '/srv/pg', 5432, $1)";
    let error = standby.connect().query_one(sql, &[&options]).map(drop).expect_err("promoted");
    SqlError::from(&error).expect("55000").says("The old primary could not be asked").says("db1.example");
    assert!(standby.in_recovery());
    promote(&standby, None, &options).expect("nobody is left to be asked");
}

/// Each address of a host may have a server of its own at the same port.
#[test]
fn a_relay_at_the_own_port_is_not_this_server() {
    let trio = Trio::new();
    let below = below(&trio);
    below.append_conf("listen_addresses", "127.0.0.3");
    below.stop(Stop::Fast);
    below.start();
    trio.one.append_conf("listen_addresses", "127.0.0.2");
    trio.one.append_conf("unix_socket_directories", "");
    trio.one.append_conf("port", below.port());
    trio.one.stop(Stop::Fast);
    trio.one.start();
    // a dead host stands beside it
    let both = format!("host=127.0.0.1,127.0.0.2 port=1,{} user=postgres", below.port());
    below.append_conf("primary_conninfo", &both);
    below.reload();
    until_true("the standby to stream", PATIENCE, || {
        below.get::<i64>("SELECT count(*) FROM pg_stat_wal_receiver WHERE status = 'streaming'", &[]) == 1
    });
    let error = promote(&below, None, &trio.options).expect_err("a second primary was made");
    error.expect("55000").says("follows another standby").says("127.0.0.2");
    assert!(below.in_recovery());
}

/// Promotes the first standby, with the second one as a node, while its replay lags until shortly before the deadline.
fn promoted_late(trio: &Trio, meanwhile: impl FnOnce()) -> Result<Value, SqlError> {
    const DEADLINE: u64 = 10;
    trio.old.execute("CREATE TABLE read AS SELECT 1 AS n");
    trio.one.wait_for_replay(&trio.old);
    trio.one.append_conf("max_standby_streaming_delay", -1);
    trio.one.reload();
    let mut reader = trio.one.connect();
    reader.batch_execute("BEGIN; TABLE read").expect("read");
    trio.old.execute("DROP TABLE read");
    trio.two.wait_for_replay(&trio.old);
    until_true("the first standby to receive it", PATIENCE, || {
        let replayed: String = trio.two.get("SELECT pg_last_wal_replay_lsn()::text", &[]);
        trio.one.get(&format!("SELECT pg_last_wal_receive_lsn() >= '{replayed}'"), &[])
    });
    trio.old.kill();
    let options = with(&trio.nodes(&[&trio.two]), "deadline", DEADLINE);
    std::thread::scope(|scope| {
        let call = scope.spawn(|| promote(&trio.one, None, &options));
        // the first look is over
        std::thread::sleep(Duration::from_secs(4));
        meanwhile();
        std::thread::sleep(Duration::from_millis(1000 * (DEADLINE - 4) - 300));
        reader.batch_execute("COMMIT").expect("read");
        call.join().expect("no panic")
    })
}

#[test]
fn a_node_that_is_promoted_meanwhile_is_seen_in_the_last_moment() {
    let trio = Trio::new();
    let promoted = promoted_late(&trio, || trio.two.promote());
    promoted.expect_err("a second primary was made").expect("55000");
    assert!(trio.one.in_recovery());
}

#[test]
fn a_node_that_falls_silent_meanwhile_may_have_been_promoted() {
    let mut trio = Trio::new();
    let agent = Pid::from_raw(trio.agent.pid().cast_signed()).expect("a process");
    let promoted = promoted_late(&trio, || kill_process(agent, Signal::KILL).expect("killed"));
    promoted.expect_err("a second primary was made").expect("55000");
    trio.demand_nothing_promoted();
    trio.agent.restart();
    promote(&trio.one, None, &trio.nodes(&[&trio.two])).expect("promoted");
}
