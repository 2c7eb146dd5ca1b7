//! Faults in runs that leave out what WAL proves equal: while the proof is made, while only what has changed travels, and after
//! a page has contradicted the proof.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use pgpool_recovery_e2e::background::Running;
use pgpool_recovery_e2e::cluster::Stop;
use pgpool_recovery_e2e::probe;
use pgpool_recovery_e2e::proxy::Proxy;
use pgpool_recovery_e2e::stage::{Condition, Stage};
use pgpool_recovery_e2e::{Recovery, Transport, by_both_transports, compare, process, wait, workload};

const MEGABYTES: u32 = 16;
/// Slow enough to be caught on the way.
const KILOBYTES_PER_SECOND: u32 = 2000;

/// A standby that lags, of which a third of the pages has changed since.
fn stage(transport: Transport) -> Stage {
    let builder = Stage::builder().quiet().with("fsync", "on").with("wal_keep_size", "256MB");
    let stage = builder.filled(MEGABYTES).settled().through(transport).standby(Condition::Running).build();
    stage.primary.execute("INSERT INTO accounts (note) VALUES ('a transaction')");
    stage.target.wait_for_replay(&stage.primary);
    stage.target.stop(Stop::Fast);
    workload::change_every(&mut stage.primary.connect(), 20);
    stage
}

fn recovery(stage: &Stage) -> Recovery {
    stage.recovery().option("skip_unchanged", "on")
}

/// The target is unusable, and the next run, to which no WAL proves anything, completes it.
#[track_caller]
fn assert_completed_by_comparing(stage: &Stage) {
    probe::assert_nothing_left(&stage.primary);
    assert!(stage.target.has("pgpool_recovery.incomplete"), "no marker");
    assert!(!stage.target.try_start().status.success(), "an incomplete target started");
    let report = recovery(stage).run_when_let_in(&stage.primary);
    assert_eq!(report.text("/skip/rule"), "hash", "{}", report.0);
    assert_eq!(report.number("/bytes/known"), 0, "{}", report.0);
    stage.remote_start();
    compare::stop_and_compare(&stage.primary, &stage.target).assert_none();
}

/// A slow run, once pages have been sent.
fn caught_sending(stage: &Stage) -> Running {
    let slow = recovery(stage).option("max_rate", KILOBYTES_PER_SECOND);
    let running = Running::start(&stage.primary, &slow, "");
    let mut client = stage.primary.connect();
    wait::until_true("pages to be sent", wait::PATIENCE, || {
        assert!(!running.has_ended(), "it ended before: {}", stage.primary.log());
        let sql = "SELECT sent_bytes > 1000000 FROM pgpool_recovery_status WHERE state = 'running'";
        client.query_opt(sql, &[]).expect(sql).is_some_and(|row| row.get::<_, Option<bool>>(0) == Some(true))
    });
    running
}

fn a_cancel_while_what_has_changed_travels(transport: Transport) {
    let stage = stage(transport);
    let running = caught_sending(&stage);
    running.cancel();
    running.finish_within(Duration::from_secs(30)).expect_err("canceled");
    assert!(stage.primary.log().contains("(hint rule H0)"), "{}", stage.primary.log());
    assert_completed_by_comparing(&stage);
}

/// Changes pages that no WAL names, where a page's header does not tell.
fn damage(stage: &Stage) {
    let path: String = stage.primary.get("SELECT pg_relation_filepath('bulk')", &[]);
    let file = OpenOptions::new().write(true).open(stage.target.directory().join(path)).expect("bulk");
    for page in 0..file.metadata().expect("bulk").len() / 8192 {
        file.write_all_at(b"damage", page * 8192 + 5000).expect("written");
    }
}

fn a_cancel_while_everything_is_compared_after_all(transport: Transport) {
    let stage = stage(transport);
    damage(&stage);
    let running = caught_sending(&stage);
    running.cancel();
    running.finish_within(Duration::from_secs(30)).expect_err("canceled");
    assert_completed_by_comparing(&stage);
}

/// A timeout after ever more time, until one strikes when the target is being changed: before that the target stays as it is.
fn a_timeout_while_the_proof_is_made(transport: Transport) {
    let stage = stage(transport);
    let control = || stage.target.control("Database system identifier");
    let before = control();
    let slow = recovery(&stage).option("max_rate", KILOBYTES_PER_SECOND);
    let (mut milliseconds, mut untouched) = (10, 0);
    while !stage.target.has("pgpool_recovery.incomplete") {
        assert_eq!(control(), before);
        let timeout = format!("SET statement_timeout = {milliseconds}");
        let running = Running::start(&stage.primary, &slow, &timeout);
        let error = running.finish_within(Duration::from_secs(40)).expect_err("the timeout");
        let state = error.as_db_error().map(|error| error.code().code().to_owned());
        // an agent may still have to notice the end of the run before
        assert!(matches!(state.as_deref(), Some("57014" | "55006")), "{error:?}");
        probe::assert_nothing_left(&stage.primary);
        milliseconds += milliseconds / 3;
        untouched += 1;
    }
    assert!(untouched > 3, "the first of them changed the target");
    assert_completed_by_comparing(&stage);
}

by_both_transports!(
    a_cancel_while_what_has_changed_travels,
    a_cancel_while_everything_is_compared_after_all,
    a_timeout_while_the_proof_is_made,
);

/// The link is cut after ever more of the agent's answers, until that strikes when the target is being changed.
#[test]
fn a_link_that_is_cut_while_the_target_tells_of_its_wal() {
    let stage = stage(Transport::Agent);
    let direct = stage.agent().port();
    let (mut bytes, mut untouched) = (2000, 0);
    while !stage.target.has("pgpool_recovery.incomplete") {
        let proxy = Proxy::cutting_after(bytes, direct);
        let through = recovery(&stage).option("agent_port", proxy.port());
        let error = wait::until("the run to be let in", wait::PATIENCE, || {
            let error = through.fail(&stage.primary);
            (error.sqlstate != "55006").then_some(error)
        });
        assert_eq!(error.sqlstate, "08006", "{error:?}");
        probe::assert_nothing_left(&stage.primary);
        stage.target.await_release();
        bytes += 600;
        untouched += 1;
    }
    assert!(untouched > 3, "the first of them changed the target");
    assert!(process::is_alive(stage.agent().pid()), "the agent has ended");
    assert_completed_by_comparing(&stage);
}
