//! A call that loses its target's host goes on when that is back: the same call succeeds, and nothing that had arrived is sent
//! again.

use std::fs;
use std::time::Duration;

use pgpool_recovery_e2e::background::Running;
use pgpool_recovery_e2e::proxy::Weather;
use pgpool_recovery_e2e::{Recovery, SqlError, Transport, probe, wait};

use super::trial::{MOMENTS, Moment, Trial};

/// More than any pause between two attempts, and less than the tests' patience.
pub(super) const RETRY_FOR: u32 = 120;

/// What may be on its way when a link breaks, and what the server changes in its catalogs meanwhile, bytes.
pub(super) const ON_THE_WAY: u64 = 4 << 20;

/// What the buffers of sockets and proxy take before a sender notices that nothing arrives, bytes before compression.
pub(super) const SWALLOWED: u64 = 16 << 20;

fn patient(trial: &Trial) -> Recovery {
    trial.slow().option("retry_for", RETRY_FOR)
}

/// The call in `running` has ended well: it was tried again so often, and what had arrived was sent once.
#[track_caller]
pub(super) fn assert_went_on(trial: &Trial, running: Running, breaks: u64, on_the_way: u64) {
    let notices = running.notices();
    assert!(notices.iter().any(|notice| notice.contains("is tried again: ")), "{notices:?}");
    let report = running.finish_within(wait::PATIENCE).expect("the same call goes on");
    assert_eq!(report.number("/retries"), breaks, "{}", report.0);
    assert!(report.0["warnings"].to_string().contains("the connection was lost "), "{}", report.0);
    let sent = report.number("/bytes/sent");
    assert!(sent <= trial.damaged + breaks * on_the_way, "{sent} bytes for {}: {}", trial.damaged, report.0);
    trial.start_and_compare();
    trial.assert_own_files();
}

/// Waits until the call is between two attempts, and tells so.
#[track_caller]
pub(super) fn wait_until_lost(trial: &Trial) {
    wait::until_true("the call to be tried again", wait::PATIENCE, || {
        let sql = "SELECT count(*) FROM pgpool_recovery_status WHERE state = 'running' AND sqlstate IN ('08006', '08001') \
                   AND error IS NOT NULL";
        trial.primary.get::<i64>(sql, &[]) == 1
    });
    // whatever the pause lasts, the primary retains no WAL for it
    assert_eq!(probe::slots(&trial.primary), [""; 0]);
}

/// A fault at every moment that is over a little later.
#[track_caller]
fn at_every_moment(fault: impl Fn(&mut Trial), mend: impl Fn(&mut Trial)) {
    let mut trial = Trial::new(Transport::Agent);
    for moment in MOMENTS {
        eprintln!("{moment:?}");
        trial.damage();
        let running = Running::start(&trial.primary, &patient(&trial), "");
        let hold = trial.wait_for(moment, running.backend(), || running.has_ended());
        fault(&mut trial);
        drop(hold);
        wait_until_lost(&trial);
        mend(&mut trial);
        wait::until_true("the target to be reached again", wait::PATIENCE, || {
            let sql =
                "SELECT count(*) FROM pgpool_recovery_status WHERE state = 'running' AND error IS NOT NULL";
            trial.primary.get::<i64>(sql, &[]) == 0
        });
        assert_went_on(&trial, running, 1, ON_THE_WAY);
    }
}

#[test]
fn a_killed_agent_that_is_started_again() {
    at_every_moment(
        |trial| {
            trial.agent_mut().kill();
        },
        |trial| trial.agent_mut().restart(),
    );
}

#[test]
fn an_agent_that_is_restarted() {
    at_every_moment(|trial| assert!(trial.agent_mut().stop().success()), |trial| trial.agent_mut().restart());
}

#[test]
fn a_link_that_is_cut_for_a_while() {
    at_every_moment(|trial| trial.weather(Weather::Cut), |trial| trial.weather(Weather::Fair));
}

/// The agent does not notice that the primary's connection is gone, and holds the target for as long.
#[test]
fn a_link_that_swallows_everything_for_a_while() {
    let mut trial = Trial::new(Transport::Agent);
    trial.damage();
    let running = Running::start(&trial.primary, &patient(&trial), "");
    trial.wait_for(Moment::Middle, running.backend(), || running.has_ended());
    trial.weather(Weather::Hole);
    wait_until_lost(&trial);
    trial.weather(Weather::Fair);
    wait::until_true("the end", wait::PATIENCE, || running.has_ended());
    assert_went_on(&trial, running, 1, SWALLOWED);
}

#[test]
fn a_link_that_is_cut_ten_times() {
    const CUTS: u64 = 10;
    let mut trial = Trial::new(Transport::Agent);
    trial.damage();
    let running = Running::start(&trial.primary, &patient(&trial).option("max_rate", 2000), "");
    for cut in 0..CUTS {
        let part = i64::try_from(trial.damaged * (cut + 1) / (CUTS + 2)).expect("small");
        running.wait_for_bytes(&trial.primary, part);
        trial.weather(Weather::Cut);
        wait_until_lost(&trial);
        trial.weather(Weather::Fair);
    }
    wait::until_true("the end", wait::PATIENCE, || running.has_ended());
    assert_went_on(&trial, running, CUTS, ON_THE_WAY);
}

/// A call whose agent is killed in its middle.
fn lost_in_the_middle(retry_for: u32) -> (Trial, Running) {
    let mut trial = Trial::new(Transport::Agent);
    trial.damage();
    let running = Running::start(&trial.primary, &trial.slow().option("retry_for", retry_for), "");
    trial.wait_for(Moment::Middle, running.backend(), || running.has_ended());
    trial.agent_mut().kill();
    (trial, running)
}

#[test]
fn an_agent_that_does_not_come_back() {
    let (mut trial, running) = lost_in_the_middle(5);
    let error = running.finish_within(Duration::from_secs(30)).expect_err("nobody is there");
    let error = SqlError::from(&error).expect("08006").says("tried again because of");
    assert!(error.detail.contains("connection to the agent at localhost"), "{error:?}");
    trial.agent_mut().restart();
    trial.assert_broken_off();
    trial.assert_next_run_completes(trial.left_at(Moment::Middle));
}

#[test]
fn what_a_retry_cannot_mend_ends_the_call() {
    let (mut trial, running) = lost_in_the_middle(RETRY_FOR);
    // it serves another directory from now on
    let (path, text) =
        (trial.agent().config().to_owned(), fs::read_to_string(trial.agent().config()).expect("it"));
    fs::write(&path, text.replace(trial.target.dir(), &format!("{}2", trial.target.dir()))).expect("written");
    trial.agent_mut().restart();
    let error = running.finish_within(Duration::from_secs(30)).expect_err("it is not served");
    SqlError::from(&error).expect("55000").says("tried again because of").says("connection to the agent");
    fs::write(&path, text).expect("written");
    trial.agent_mut().kill();
    trial.agent_mut().restart();
    trial.assert_broken_off();
    trial.assert_next_run_completes(trial.left_at(Moment::Middle));
}

#[test]
fn a_cancel_between_two_attempts() {
    let (mut trial, running) = lost_in_the_middle(RETRY_FOR);
    wait_until_lost(&trial);
    // in the longest of the pauses
    std::thread::sleep(Duration::from_secs(8));
    running.cancel();
    let error = running.finish_within(Duration::from_secs(2)).expect_err("cancelled");
    assert_eq!(SqlError::from(&error).sqlstate, "57014");
    trial.agent_mut().restart();
    trial.assert_broken_off();
}

#[test]
fn an_agent_that_was_never_there_is_told_at_once() {
    let mut trial = Trial::new(Transport::Agent);
    trial.agent_mut().kill();
    let running = Running::start(&trial.primary, &patient(&trial), "");
    let error = running.finish_within(Duration::from_secs(10)).expect_err("nobody is there");
    // the proxy is there
    let error = SqlError::from(&error).expect("08006");
    assert!(!error.text().contains("tried again"), "{error:?}");
}
