//! A stop that does not come to its end by itself: what was promoted meanwhile is not stopped, and nothing is stopped immediately
//! for a caller who has left.

use pgpool_recovery_e2e::cluster::Stop;
use pgpool_recovery_e2e::stage::{Condition, Stage};
use pgpool_recovery_e2e::{Cluster, process, wait};
use postgres::NoTls;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use super::stop::{ALLOWED, stop};

/// A stop command that asks for nothing, and leaves a file to tell that it was run.
fn stops_nothing(stage: &pgpool_recovery_e2e::Scratch) -> String {
    let asked = stage.join("asked");
    format!("{ALLOWED}stop_command = [\"/bin/sh\", \"-c\", \"touch '{}'\"]\n", asked.display())
}

/// Waits until the agent says that it has given up, or until the server is gone.
fn given_up(stage: &Stage, target: &Cluster, postmaster: Option<u32>) {
    wait::until_true("the agent to give the stop up", wait::PATIENCE, || {
        target.postmaster() != postmaster || stage.agent().log().contains("ended: ")
    });
    assert_eq!(target.postmaster(), postmaster, "{}", stage.agent().log());
}

#[test]
fn a_standby_that_is_promoted_while_it_is_stopped_is_not_stopped_immediately() {
    let scratch = pgpool_recovery_e2e::Scratch::new();
    let stage = Stage::on(&scratch).agent_with(&stops_nothing(&scratch)).standby(Condition::Running).build();
    let (target, asked) = (&stage.target, scratch.join("asked"));
    let running = target.postmaster();
    let options = json!({ "transport": "agent", "stop_timeout": 10 });
    let error = std::thread::scope(|scope| {
        let call = scope.spawn(|| stop(&stage.primary, target, &options).expect_err("refused"));
        wait::until_true("the shutdown to be asked for", wait::PATIENCE, || asked.exists());
        target.promote();
        call.join().expect("no panic")
    });
    error.expect("55000").says("timeline 2");
    assert_eq!(target.postmaster(), running);
    assert!(!target.in_recovery());
}

#[test]
fn a_new_primary_is_not_stopped_for_the_old_one_that_has_died() {
    let scratch = pgpool_recovery_e2e::Scratch::new();
    let stage = Stage::on(&scratch).agent_with(&stops_nothing(&scratch)).standby(Condition::Running).build();
    let (target, asked) = (&stage.target, scratch.join("asked"));
    let running = target.postmaster();
    let mut client = stage.primary.connect();
    let sql =
        "SELECT pgpool_recovery_stop('localhost', $1, '{\"transport\": \"agent\", \"stop_timeout\": 10}')";
    std::thread::scope(|scope| {
        let call = scope.spawn(move || client.query_one(sql, &[&target.dir()]).map(drop));
        wait::until_true("the shutdown to be asked for", wait::PATIENCE, || asked.exists());
        stage.primary.kill();
        call.join().expect("no panic").expect_err("the session is gone");
    });
    target.promote();
    given_up(&stage, target, running);
    assert!(!target.in_recovery());
}

/// The checkpointer makes the shutdown's restartpoint, so one that is stopped holds up a fast shutdown.
#[test]
fn a_stop_whose_call_is_cancelled_does_not_become_an_immediate_one() {
    let stage = Stage::builder().agent_with(ALLOWED).standby(Condition::Running).build();
    let target = &stage.target;
    let sql = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'";
    let checkpointer = Pid::from_raw(target.get::<i32>(sql, &[])).expect("a process");
    let postmaster = target.postmaster();
    kill_process(checkpointer, Signal::STOP).expect("stopped");
    let mut client = stage.primary.connect();
    let cancel = client.cancel_token();
    let sql =
        "SELECT pgpool_recovery_stop('localhost', $1, '{\"transport\": \"agent\", \"stop_timeout\": 8}')";
    let outcome = std::thread::scope(|scope| {
        let call = scope.spawn(move || client.query_one(sql, &[&target.dir()]).map(drop));
        wait::until_true("the shutdown to begin", wait::PATIENCE, || {
            target.read("postmaster.pid").lines().last().is_some_and(|status| status.trim() == "stopping")
        });
        cancel.cancel_query(NoTls).expect("a cancel request");
        call.join().expect("no panic")
    });
    let code = outcome.expect_err("cancelled").code().cloned();
    given_up(&stage, target, postmaster);
    kill_process(checkpointer, Signal::CONT).expect("it runs on");
    let postmaster = postmaster.expect("a server");
    wait::until_true("the end of the server", wait::PATIENCE, || !process::is_alive(postmaster));
    assert_eq!(target.control("Database cluster state"), "shut down in recovery");
    assert_eq!(code, Some(postgres::error::SqlState::QUERY_CANCELED));
    stage.primary.stop(Stop::Fast);
}
