//! Another server was promoted before: its end, and that of the one before it, are told apart.

use std::path::Path;

use pgpool_recovery_e2e::agent::{self, Agent};
use pgpool_recovery_e2e::cluster::Stop;
use pgpool_recovery_e2e::wait::{PATIENCE, until_true};
use pgpool_recovery_e2e::{Cluster, Host, probe};
use serde_json::{Value, json};

use super::super::follow::follow;
use super::{MARK, Trio, demand_following, promote, with};

/// The second standby follows the first one, which was promoted in the place of a primary that is fenced.
fn replaced() -> Trio {
    let trio = Trio::new();
    let options = with(&trio.nodes(&[&trio.two]), "slot_name", "");
    promote(&trio.one, Some(&trio.old), &options).expect("promoted");
    assert!(trio.old.has(MARK));
    demand_following(&trio.one, &trio.two);
    trio
}

#[test]
fn the_end_of_a_primary_that_was_replaced_before_is_no_fence() {
    let trio = replaced();
    trio.one.kill();
    let error = promote(&trio.two, Some(&trio.old), &trio.option("fence", "required")).expect_err("refused");
    error.expect("55000").says("earlier primary").says("required");
    assert!(trio.two.in_recovery());
    let report = promote(&trio.two, Some(&trio.old), &trio.options).expect("nothing else is known");
    assert_eq!(report["fenced"]["fenced"], json!(true), "{report}");
}

#[test]
fn the_end_of_a_primary_that_was_replaced_before_hides_none_beyond_a_standby() {
    let trio = replaced();
    let below = Cluster::standby_by_basebackup(&trio.two, &Host::here(), "below");
    let refused = |old: Option<&Cluster>, options: &Value| {
        let error = promote(&below, old, options).expect_err("a second primary was made");
        error.expect("55000").says("follows another standby");
        assert!(below.in_recovery());
    };
    refused(None, &trio.options);
    refused(Some(&trio.old), &trio.options);
    // another one that follows the same standby knows no more
    let beside = Cluster::standby_by_basebackup(&trio.two, &Host::here(), "beside");
    let secret = Path::new(trio.options["secret_file"].as_str().expect("a path"));
    let section = agent::cluster(beside.directory());
    let agent = Agent::start_with(beside.scratch(), &Host::here(), secret, &section);
    let nodes = with(&trio.nodes(&[&beside]), "agent_port", agent.port());
    refused(None, &nodes);
    // nor does one that follows nobody, or a primary of before
    for conninfo in ["", &format!("host=127.0.0.1 port={} user=postgres", trio.old.port())] {
        beside.append_conf("primary_conninfo", conninfo);
        beside.reload();
        refused(None, &nodes);
    }
    // nor a dead host that stands beside the relay in the string
    let both = format!("host=127.0.0.1,127.0.0.1 port={},{} user=postgres", trio.old.port(), trio.two.port());
    below.append_conf("primary_conninfo", &both);
    below.reload();
    let streams = "SELECT count(*) FROM pg_stat_wal_receiver WHERE status = 'streaming' AND sender_port = $1";
    until_true("the standby to stream", PATIENCE, || {
        below.get::<i64>(streams, &[&i32::from(trio.two.port())]) == 1
    });
    refused(None, &nodes);
    // the relay is asked where it is named
    let error = promote(&below, None, &trio.nodes(&[&trio.two])).expect_err("a second primary was made");
    error.expect("55000").says("another primary is alive").says("node 2");
    trio.one.kill();
    promote(&below, None, &trio.nodes(&[&trio.two])).expect("promoted");
}

/// Pgpool-II has it down, and the hook names it with all others.
#[test]
fn a_node_that_was_fenced_before_stays_as_it_is() {
    let trio = replaced();
    trio.two.wait_for_replay(&trio.one);
    trio.one.kill();
    let nodes = trio.nodes(&[&trio.old]);
    for result in ["promoted", "already_primary"] {
        let report = promote(&trio.two, Some(&trio.one), &nodes).expect(result);
        assert_eq!(report["result"], result, "{report}");
        let error = report["nodes"][0]["error"].as_str().unwrap_or_default();
        assert!(error.contains("was fenced before and stays stopped"), "{report}");
        assert!(trio.old.postmaster().is_none() && trio.old.has(MARK), "{report}");
        assert_eq!(probe::slots(&trio.two), [""; 0], "nothing retains WAL for it");
    }
    // named as what it was, or called for, it comes back
    let report = follow(&trio.two, &trio.old, &trio.options).expect("it follows");
    assert_eq!(report["result"], "rejoined", "{report}");
    demand_following(&trio.two, &trio.old);
}

/// A server of a later timeline is not running just then: it was promoted all the same.
#[test]
fn after_another_promotion_there_is_none() {
    for stop in [Stop::Fast, Stop::Immediate] {
        let trio = Trio::new();
        trio.kill_primary();
        promote(&trio.one, None, &trio.options).expect("promoted");
        trio.one.execute("CREATE TABLE later AS SELECT generate_series(1, 1000) AS n");
        trio.one.stop(stop);
        let named = [(None, trio.nodes(&[&trio.one])), (Some(&trio.one), trio.options.clone())];
        for (old, options) in named {
            for fence in ["best_effort", "required", "off"] {
                let error = promote(&trio.two, old, &with(&options, "fence", fence)).expect_err("refused");
                error.expect("55000").says("is on timeline 2").says("another server has been promoted");
            }
        }
        assert!(trio.two.in_recovery() && !trio.one.has(MARK));
    }
}

#[test]
fn a_primary_that_has_more_than_this_standby_is_not_stopped() {
    let trio = Trio::new();
    let conninfo: String = trio.one.get("SELECT current_setting('primary_conninfo')", &[]);
    trio.without(&trio.one, || {
        trio.old.execute("CREATE TABLE more AS SELECT generate_series(1, 10000) AS n")
    });
    let error = promote(&trio.one, Some(&trio.old), &trio.options).expect_err("rows would be lost");
    error.expect("55000").says("has not received").says("would be lost");
    assert!(trio.one.in_recovery() && trio.old.postmaster().is_some() && !trio.old.has(MARK));
    trio.one.append_conf("primary_conninfo", &conninfo);
    trio.one.reload();
    let report = promote(&trio.one, Some(&trio.old), &trio.options).expect("it receives the rest");
    assert_eq!(report["fenced"]["fenced"], json!(true), "{report}");
    assert_eq!(trio.one.get::<i64>("SELECT count(*) FROM more", &[]), 10_000);
}

/// A node's word about its primary counts also if it is named as the old primary, and the word that it does not get to say.
#[test]
fn a_node_that_is_heard_and_tells_nothing_is_not_silent() {
    let trio = Trio::new();
    // what it lacks would be told first
    trio.one.wait_for_replay(&trio.old);
    trio.without(&trio.one, || ());
    let error = promote(&trio.one, Some(&trio.two), &trio.options).expect_err("a second primary was made");
    error.expect("55000").says("another primary is alive").says("answers as a primary");
    // the agent does not serve that directory
    let unlisted = Cluster::place(trio.two.scratch(), &Host::here(), "unlisted");
    let error = promote(&trio.one, None, &trio.nodes(&[&unlisted])).expect_err("a second primary was made");
    error.expect("55000").says("cannot tell").says("node 2").says("does not tell what its server is");
    trio.demand_nothing_promoted();
    // nobody is there at all
    trio.old.kill();
    let nobody = with(&trio.nodes(&[&trio.two]), "agent_port", 1);
    promote(&trio.one, None, &nobody).expect("promoted");
}
