//! Standbys of standbys, and answers that are no longer true when they count.

use std::time::Duration;

use pgpool_recovery_e2e::cluster::Stop;
use pgpool_recovery_e2e::recovery::SqlError;
use pgpool_recovery_e2e::wait::{PATIENCE, until_true};
use pgpool_recovery_e2e::{Cluster, Host};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

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
