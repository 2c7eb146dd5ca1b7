//! The lean set-up: `pgpool-recovery-hook` is the failover_command, and there is no follow_primary_command.

use std::time::Duration;

use pgpool_recovery_e2e::{Host, pgpool, wait};

use super::lean::Lean;

#[test]
fn a_standby_is_promoted_and_the_other_one_follows_without_being_detached() {
    let lean = Lean::new();
    let from = lean.pgpool.log().len();
    lean.nodes[0].kill();
    lean.wait_for_promotion(1);
    lean.wait_for_follower(2, 1);
    lean.assert_never_detached(2, from);
    lean.execute("INSERT INTO seen VALUES (1)");
    lean.nodes[2].wait_for_replay(&lean.nodes[1]);
    let log = lean.pgpool.log();
    assert!(log.contains("pgpool-recovery-hook failover: node 1 "), "{log}");
    // a standby's failure is none of its business
    lean.nodes[2].kill();
    lean.pgpool.wait_for_node(2, "down", "standby", "");
    wait::until_true("the hook to say so", wait::PATIENCE, || lean.pgpool.log().contains("nothing to do"));
    assert!(!lean.nodes[1].in_recovery());
}

/// With a follow command that takes its time Pgpool-II handles no second failover; without one it does.
#[test]
fn the_next_primary_may_die_fifteen_seconds_later() {
    let lean = Lean::new();
    lean.nodes[0].kill();
    lean.wait_for_promotion(1);
    std::thread::sleep(Duration::from_secs(15));
    lean.nodes[1].kill();
    lean.wait_for_promotion(2);
    lean.execute("INSERT INTO seen VALUES (2)");
}

#[test]
fn an_old_primary_that_is_alive_is_fenced_and_rejoins() {
    let lean = Lean::new();
    // its host is well, but Pgpool-II is told otherwise
    lean.pgpool.pcp("pcp_detach_node", &["-n", "0"]).ok();
    lean.wait_for_promotion(1);
    lean.wait_for_follower(2, 1);
    // stopped in order before the promotion, it has nothing that the new primary has not
    lean.wait_for_follower(0, 1);
    // which it proves once more when it is attached
    wait::until_true("the worker to say so", wait::PATIENCE, || {
        lean.pgpool.log().contains("the old primary, follows")
    });
    lean.execute("INSERT INTO seen VALUES (2)");
}

#[test]
fn a_switchover_loses_nothing_and_goes_back() {
    if pgpool::version() < (4, 3) {
        return;
    }
    let lean = Lean::new();
    let mut primary = 0;
    for (round, next) in [1, 0, 2].into_iter().enumerate() {
        lean.execute(&format!("INSERT INTO seen VALUES ({round})"));
        lean.pgpool.pcp("pcp_promote_node", &["-s", "-n", &next.to_string()]).ok();
        lean.wait_for_promotion(next);
        for id in (0..3).filter(|id| *id != next) {
            lean.wait_for_follower(id, next);
        }
        assert!(lean.nodes[primary].in_recovery());
        assert_eq!(lean.nodes[next].get::<i64>("SELECT count(*) FROM seen", &[]), round as i64 + 1);
        primary = next;
    }
}

/// Pgpool-II's new main node is the one with the lowest number, however little it has received.
#[test]
fn the_standby_that_has_received_more_is_promoted() {
    let lean = Lean::new();
    lean.cut_off(1);
    lean.execute("INSERT INTO seen SELECT generate_series(1, 100)");
    lean.nodes[2].wait_for_replay(&lean.nodes[0]);
    lean.nodes[0].kill();
    lean.wait_for_promotion(2);
    assert_eq!(lean.nodes[2].get::<i64>("SELECT count(*) FROM seen", &[]), 100);
    lean.wait_for_follower(1, 2);
    let log = lean.pgpool.log();
    assert!(log.contains("node 1 is not promoted but node 2"), "{log}");
}

/// Its promotion leads nobody, because another one was there before.
#[test]
fn the_other_standby_follows_a_node_that_was_promoted_already() {
    let lean = Lean::new();
    lean.cut_off(2);
    let from = lean.pgpool.log().len();
    lean.nodes[1].promote();
    lean.nodes[0].kill();
    lean.wait_for_promotion(1);
    lean.wait_for_follower(2, 1);
    lean.assert_never_detached(2, from);
}

/// The server that is promoted is not told of a node whose directory is not known.
#[test]
fn nothing_is_promoted_beside_a_primary_whose_directory_is_not_known() {
    let lean = Lean::new();
    let conf = lean.scratch.join("pgpool.conf");
    let text = std::fs::read_to_string(&conf).expect("pgpool.conf");
    std::fs::write(&conf, text + "backend_data_directory2 = ''\n").expect("written");
    lean.cut_off(2);
    lean.nodes[2].promote();
    lean.nodes[0].kill();
    wait::until_true("the hook to say so", wait::PATIENCE, || {
        lean.pgpool.log().contains(&format!("node 2 (127.0.0.1:{}) runs as a primary", lean.nodes[2].port()))
    });
    lean.pgpool.wait_for_node(2, "up", "primary", "");
    assert!(lean.nodes[1].in_recovery());
}

#[test]
fn with_a_follow_command_the_other_standby_is_attached_again() {
    let lean = Lean::with(|setup, scratch| {
        let setup = setup.with("failover_command", Lean::hook(scratch, "failover"));
        setup.with(pgpool::follow_command(), Lean::hook(scratch, "follow"))
    });
    lean.nodes[0].kill();
    lean.wait_for_promotion(1);
    lean.wait_for_follower(2, 1);
    let log = lean.pgpool.log();
    assert!(log.contains("pgpool-recovery-hook follow: node 2 ") && log.contains("and is attached"), "{log}");
    // the node that is down has a reason to be
    assert!(log.contains("pgpool-recovery-hook follow: FAILED: node 0 "), "{log}");
}

/// The promotion is not ours, so that a standby is left that has more than the new primary.
#[test]
fn a_standby_that_has_diverged_is_rebuilt_after_the_follow_commands() {
    let lean =
        Lean::with(|setup, scratch| setup.with(pgpool::follow_command(), Lean::hook(scratch, "follow")));
    lean.cut_off(1);
    lean.execute("INSERT INTO seen SELECT generate_series(1, 100)");
    lean.nodes[2].wait_for_replay(&lean.nodes[0]);
    lean.nodes[0].kill();
    lean.wait_for_promotion(1);
    lean.wait_for_follower(2, 1);
    // it is up before its worker has said so
    wait::until_true("the worker to tell", wait::PATIENCE, || {
        lean.pgpool.log().contains("is rebuilt and up")
    });
    assert!(lean.pgpool.log().contains("diverged"), "{}", lean.pgpool.log());
    assert_eq!(lean.nodes[2].get::<i64>("SELECT count(*) FROM seen", &[]), 0);
}

#[test]
fn a_node_is_attached_only_if_it_follows() {
    let lean = Lean::new();
    // no timeout of the role's ends what the hook has begun
    lean.nodes[0]
        .execute("CREATE ROLE impatient SUPERUSER LOGIN; ALTER ROLE impatient SET statement_timeout = 1");
    lean.nodes[2].wait_for_replay(&lean.nodes[0]);
    let run = |command: &str, arguments: &[&str]| {
        let mut hook = Host::here().hook();
        hook.env("PGUSER", "impatient");
        hook.env("PCPPASSFILE", lean.scratch.join("pcppass"));
        hook.arg(command).arg("--config").arg(lean.scratch.join("pgpool.conf")).args(arguments);
        pgpool_recovery_e2e::process::run(hook)
    };
    let checked = run("check", &[]);
    assert!(checked.status.success() && !checked.stdout.contains("FAIL"), "{checked:?}");
    let up = run("attach", &["2"]);
    assert!(up.status.success() && up.stderr.contains("is up already"), "{up:?}");
    lean.pgpool.pcp("pcp_detach_node", &["-n", "2"]).ok();
    lean.pgpool.wait_for_node(2, "down", "standby", "streaming");
    let attached = run("attach", &["2"]);
    assert!(attached.status.success() && attached.stderr.contains("is attached"), "{attached:?}");
    lean.pgpool.wait_for_node(2, "up", "standby", "streaming");
    lean.nodes[2].stop(pgpool_recovery_e2e::cluster::Stop::Fast);
    lean.pgpool.wait_for_node(2, "down", "standby", "");
    let stopped = run("attach", &["2"]);
    assert!(!stopped.status.success() && stopped.stderr.contains("FAILED: node 2"), "{stopped:?}");
    lean.pgpool.wait_for_node(2, "down", "standby", "");
    let checked = run("check", &[]);
    assert!(!checked.status.success() && checked.stdout.contains("FAIL  node 2"), "{checked:?}");
}
