//! The target's host is lost while its standby is starting: the same call of `pgpool_remote_start` goes on.

use pgpool_recovery_e2e::recovery::try_remote_start;
use pgpool_recovery_e2e::{Stage, Transport, wait};
use postgres::NoTls;

const NO_REPLICATION: &str =
    "local all all trust\nhost all all 127.0.0.1/32 trust\nhost all all ::1/128 trust\n";
const REPLICATION: &str = "local all all trust\nhost all all all trust\nhost replication all all trust\n";

/// A complete standby that runs and cannot stream once it is started.
fn stage(retry_for: u32) -> Stage {
    let stage = Stage::builder().through(Transport::Agent).build();
    stage.primary.append_conf("pgpool_recovery.retry_for", format!("{retry_for}s"));
    stage.primary.append_conf("pgpool_recovery.start_timeout", "60s");
    stage.recovery().run(&stage.primary);
    stage.primary.set_hba(NO_REPLICATION);
    stage.primary.reload();
    stage
}

fn is_tried_again(stage: &Stage) -> bool {
    stage.primary.log().contains("\" on host \"localhost\" is tried again: ")
}

#[test]
fn an_agent_that_is_restarted_while_a_standby_starts() {
    let mut stage = stage(60);
    let (primary, target, agent) = stage.parts();
    std::thread::scope(|scope| {
        let call = scope.spawn(|| try_remote_start(primary, "localhost", target.dir()));
        wait::until_true("the server", wait::PATIENCE, || target.config().connect(NoTls).is_ok());
        agent.kill();
        wait::until_true("the agent to be missed", wait::PATIENCE, || {
            primary.log().contains("is tried again: ")
        });
        assert!(!call.is_finished());
        agent.restart();
        primary.set_hba(REPLICATION);
        primary.reload();
        call.join().expect("a call").unwrap_or_else(|error| panic!("{error:?}"));
    });
    assert!(is_tried_again(&stage), "{}", stage.primary.log());
    assert!(stage.target.in_recovery());
}

#[test]
fn an_agent_that_does_not_come_back() {
    let mut stage = stage(3);
    let (primary, target, agent) = stage.parts();
    let error = std::thread::scope(|scope| {
        let call = scope.spawn(|| try_remote_start(primary, "localhost", target.dir()));
        wait::until_true("the server", wait::PATIENCE, || target.config().connect(NoTls).is_ok());
        agent.kill();
        call.join().expect("a call").expect_err("nobody is there")
    });
    error.expect("08001").says("tried again because of");
    assert!(is_tried_again(&stage), "{}", stage.primary.log());
    // the server goes on
    assert!(stage.target.in_recovery());
}
