//! A node that was fenced, and that Pgpool-II has down, when the next primary fails.

use pgpool_recovery_e2e::cluster::Stop;
use pgpool_recovery_e2e::{Host, pgpool, process, wait};

use super::lean::Lean;

const MARK: &str = "pgpool_recovery.fenced";

#[test]
fn a_fenced_node_stays_down_and_hinders_nobody() {
    let lean = Lean::new();
    // the promotion marks it; it did not run, so that nothing has it rejoin
    lean.nodes[0].stop(Stop::Fast);
    lean.wait_for_promotion(1);
    lean.wait_for_follower(2, 1);
    assert!(lean.nodes[0].has(MARK));
    lean.execute("INSERT INTO seen VALUES (1)");
    lean.nodes[2].wait_for_what_is_flushed(&lean.nodes[1]);
    lean.nodes[1].kill();
    lean.wait_for_promotion(2);
    wait::until_true("the worker to look at it", wait::PATIENCE, || {
        let log = lean.pgpool.log();
        log.lines().any(|line| line.contains("worker: node 0 ") && line.contains("was out of use before"))
    });
    assert!(lean.nodes[0].postmaster().is_none(), "nobody has asked for that");
    assert!(lean.nodes[0].has(MARK) && !lean.nodes[0].has("standby.signal"));
    let slots = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'server0'";
    assert_eq!(lean.nodes[2].get::<i64>(slots, &[]), 0, "it would retain WAL for nobody");
    let status = pgpool::nodes(&lean.scratch, lean.pgpool.port()).expect("answers");
    assert_eq!((status[0].status.as_str(), status[2].status.as_str()), ("down", "up"));
    lean.execute("INSERT INTO seen VALUES (2)");

    // a person has it back
    let (node, primary) = (&lean.nodes[0], &lean.nodes[2]);
    let sql = "SELECT pgpool_recovery_follow('127.0.0.1', $1, $2, '127.0.0.1', $3, 0)->>'result'";
    let (port, own) = (i32::from(node.port()), i32::from(primary.port()));
    assert_eq!(primary.get::<String>(sql, &[&node.dir(), &port, &own]), "rejoined");
    let mut attach = Host::here().hook();
    attach.env("PCPPASSFILE", lean.scratch.join("pcppass"));
    attach.arg("attach").arg("--config").arg(lean.scratch.join("pgpool.conf")).arg("0");
    process::run(attach).ok();
    lean.wait_for_follower(0, 2);
    assert_eq!(node.get::<i64>("SELECT count(*) FROM seen", &[]), 2);
}
