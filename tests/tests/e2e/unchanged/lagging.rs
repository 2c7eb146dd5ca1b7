//! A standby that was stopped or killed, and whose primary has gone on: it has not parted (rule H0).

use pgdata::wal::Lsn;
use pgpool_recovery_e2e::cluster::Stop;
use pgpool_recovery_e2e::stage::{Builder, Condition, Stage};
use pgpool_recovery_e2e::{Transport, by_both_transports, server, wait, workload};

use super::{durable, each, rebuild};

/// A standby with WAL that tells whose it is: in that of two servers at rest there are no times.
pub(super) fn standby(builder: Builder, condition: Condition) -> Stage {
    let stage = builder.standby(Condition::Running).build();
    stage.primary.execute("INSERT INTO accounts (note) VALUES ('a transaction')");
    stage.target.wait_for_replay(&stage.primary);
    match condition {
        Condition::Killed => stage.target.kill(),
        _ => stage.target.stop(Stop::Fast),
    }
    stage
}

fn a_standby_that_lags_behind_is_rebuilt_by_reading_what_changed(transport: Transport) {
    for condition in [Condition::Stopped, Condition::Killed] {
        let stage = standby(Stage::builder().primary(durable).filled(40).through(transport), condition);
        let primary = &stage.primary;
        let mut client = primary.connect();
        each(
            &mut client,
            &[
                "UPDATE bulk SET filler = repeat('n', 900) WHERE id BETWEEN 1000 AND 1200",
                "DELETE FROM accounts WHERE id < 100",
                "VACUUM accounts",
                "CREATE TABLE fresh AS SELECT i FROM generate_series(1, 20000) i",
                "CREATE INDEX ON fresh (i)",
                "DROP TABLE fleeting",
                "CREATE DATABASE third",
            ],
        );
        workload::change_every(&mut client, 1000);
        drop(client);
        let report = rebuild(&stage.recovery_by(transport), &stage.target, primary, "H0");
        let (known, total) = (report.number("/bytes/known"), report.number("/bytes/total"));
        // before 15 a new database is copied without a record of each block
        assert!(known > total / 3, "{known} of {total} bytes were left out: {}", report.0);
        assert_eq!(known + report.number("/bytes/compared"), total, "{}", report.0);
        assert!(report.at("/skip/rejoin/possible").as_bool().is_some(), "{}", report.0);
    }
}

by_both_transports!(a_standby_that_lags_behind_is_rebuilt_by_reading_what_changed);

#[test]
fn a_standby_of_which_nothing_has_changed_is_read_only_where_wal_says_nothing() {
    let stage = standby(Stage::builder().primary(durable).filled(40), Condition::Stopped);
    let report = rebuild(&stage.recovery(), &stage.target, &stage.primary, "H0");
    // what the transaction changed, and what the sessions of the recovery prune in catalogs
    assert!(report.number("/skip/bytes/listed") < 200_000, "{}", report.0);
    assert!(report.number("/skip/looked_at") > 1000, "{}", report.0);
}

#[test]
fn summaries_of_the_primary_are_read_in_place_of_its_later_wal() {
    if server::major() < 17 {
        eprintln!("PostgreSQL {} does not summarize its WAL", server::major());
        return;
    }
    let builder = Stage::builder().primary(durable).with("summarize_wal", "on").filled(20);
    let stage = standby(builder, Condition::Killed);
    let primary = &stage.primary;
    workload::change_every(&mut primary.connect(), 300);
    primary.execute("CHECKPOINT");
    let redo: String = primary.get("SELECT redo_lsn::text FROM pg_control_checkpoint()", &[]);
    wait::until_true("a summary of what has changed", wait::PATIENCE, || {
        let sql =
            "SELECT coalesce(max(end_lsn) >= $1::text::pg_lsn, false) FROM pg_available_wal_summaries()";
        primary.get(sql, &[&redo])
    });
    let report = rebuild(&stage.recovery(), &stage.target, primary, "H0");
    assert!(report.number("/skip/source/summaries") > 0, "{}", report.0);
    let position = |text: &str| text.parse::<Lsn>().expect("a position").0;
    let of_report = |name: &str| position(report.text(name));
    // what both have in common is read as WAL; what the primary has written since then, up to its checkpoint, is not
    let summarized = position(&redo) - of_report("/skip/common_to");
    let spared = of_report("/skip/to") - of_report("/skip/from") - report.number("/skip/source/wal_bytes");
    assert!(summarized > 100_000 && spared > summarized / 2, "{summarized} {}", report.0);
}
