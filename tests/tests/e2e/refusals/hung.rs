//! File systems that answer nothing: a session that waits for one can be terminated.

use pgpool_recovery_e2e::background::Running;
use pgpool_recovery_e2e::mount::Hung;
use pgpool_recovery_e2e::{Cluster, Recovery, Stage, wait};
use serde_json::json;

/// Terminates the session of a recovery that waits, which must end while what it waits for still answers nothing.
#[track_caller]
fn assert_terminable(primary: &Cluster, recovery: &Recovery, hung: &Hung) {
    let running = Running::start(primary, recovery, "");
    let backend = running.backend();
    hung.wait_until_asked();
    assert!(primary.get::<bool>("SELECT pg_terminate_backend($1)", &[&backend]));
    wait::until_true("the session to end", wait::PATIENCE, || running.has_ended());
    running.finish_within(wait::PATIENCE).expect_err("terminated");
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE pid = $1";
    wait::until_true("the backend to end", wait::PATIENCE, || primary.get::<i64>(sql, &[&backend]) == 0);
}

#[test]
fn a_session_that_waits_for_a_local_target_can_be_terminated() {
    let stage = Stage::builder().build();
    for (mount, directory) in [("one", "one"), ("two", "two/data")] {
        let hung = Hung::at(&stage.scratch, &stage.scratch.join(mount));
        let directory = stage.scratch.join(directory);
        let recovery = Recovery::to("localhost", &directory.to_string_lossy(), stage.primary.port());
        assert_terminable(&stage.primary, &recovery.option("transport", "local"), &hung);
    }
}

#[test]
fn a_session_that_waits_for_the_place_of_a_tablespace_can_be_terminated() {
    let stage = Stage::builder().build();
    let space = stage.scratch.mkdir("primary-space");
    stage.primary.execute(&format!("CREATE TABLESPACE far LOCATION '{}'", space.display()));
    let place = stage.scratch.join("hung");
    let hung = Hung::at(&stage.scratch, &place);
    let mapping = format!("{}={}", space.display(), place.join("far").display());
    let recovery = stage.recovery().option("tablespace_mapping", json!(mapping));
    assert_terminable(&stage.primary, &recovery.option("transport", "local"), &hung);
}
