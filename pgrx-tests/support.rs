//! Helpers of the in-database tests.

use std::time::{Duration, Instant};

use pgrx::Spi;

/// How a statement ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) state: String,
    pub(crate) message: String,
    pub(crate) detail: String,
    pub(crate) hint: String,
}

const TRY: &str = "
CREATE OR REPLACE FUNCTION pg_temp.try(statement text) RETURNS text[] LANGUAGE plpgsql AS $$
DECLARE s text; m text; d text; h text;
BEGIN
    EXECUTE statement;
    RETURN ARRAY['00000', '', '', ''];
EXCEPTION WHEN OTHERS OR query_canceled THEN
    GET STACKED DIAGNOSTICS s = RETURNED_SQLSTATE, m = MESSAGE_TEXT, d = PG_EXCEPTION_DETAIL,
        h = PG_EXCEPTION_HINT;
    RETURN ARRAY[s, m, d, h];
END $$";

/// Runs a statement and catches its error in a subtransaction, as a plpgsql caller would.
pub(crate) fn outcome(statement: &str) -> Outcome {
    Spi::run(TRY).expect("helper function");
    let mut parts = Spi::get_one_with_args::<Vec<String>>("SELECT pg_temp.try($1)", &[statement.into()])
        .expect("no error escapes the helper")
        .expect("an array")
        .into_iter();
    let mut next = || parts.next().expect("four elements");
    Outcome { state: next(), message: next(), detail: next(), hint: next() }
}

/// Asserts that a statement fails with this SQLSTATE, and returns how.
#[track_caller]
pub(crate) fn fails(state: &str, statement: &str) -> Outcome {
    let outcome = outcome(statement);
    assert_eq!(outcome.state, state, "{statement}: {outcome:?}");
    outcome
}

/// Asserts that a statement succeeds.
#[track_caller]
pub(crate) fn succeeds(statement: &str) {
    let outcome = outcome(statement);
    assert_eq!(outcome.state, "00000", "{statement}: {outcome:?}");
}

/// One value of a query, as text.
#[track_caller]
pub(crate) fn value(query: &str) -> Option<String> {
    Spi::get_one::<String>(query).unwrap_or_else(|error| panic!("{query}: {error}"))
}

/// Whether a condition holds.
#[track_caller]
pub(crate) fn holds(condition: &str) -> bool {
    value(&format!("SELECT ({condition})::text")).as_deref() == Some("true")
}

/// Waits until `condition` holds, for as long as `limit`; how long it took.
#[track_caller]
pub(crate) fn eventually(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < limit, "{what}: not within {limit:?}");
        std::thread::sleep(Duration::from_millis(20));
        pgrx::check_for_interrupts!();
    }
    start.elapsed()
}

/// Serialises tests that need the cluster's replication slots or files for themselves.
pub(crate) fn alone(with: i32) {
    Spi::run(&format!("SELECT pg_advisory_xact_lock({with})")).expect("lock");
}

/// Another session of this server, by dblink.
pub(crate) struct Session(&'static str);

impl Session {
    pub(crate) fn open(name: &'static str) -> Self {
        Self::open_in(name, &value("SELECT current_database()::text").expect("a database"))
    }

    pub(crate) fn open_in(name: &'static str, database: &str) -> Self {
        Spi::run("CREATE EXTENSION IF NOT EXISTS dblink").expect("dblink is installed");
        Spi::run(&format!(
            "SELECT dblink_connect('{name}', format('host=localhost port=%s user=%s dbname={database}',
                 current_setting('port'), current_user))"
        ))
        .expect("connect");
        Self(name)
    }

    /// Runs a statement that returns nothing.
    pub(crate) fn execute(&self, statement: &str) {
        Spi::run_with_args("SELECT dblink_exec($1, $2)", &[self.0.into(), statement.into()])
            .expect("statement");
    }

    /// One value, as text.
    pub(crate) fn value(&self, query: &str) -> Option<String> {
        Spi::get_one_with_args("SELECT v FROM dblink($1, $2) AS r(v text)", &[self.0.into(), query.into()])
            .expect("query")
    }

    pub(crate) fn pid(&self) -> i32 {
        self.value("SELECT pg_backend_pid()::text").and_then(|pid| pid.parse().ok()).expect("a PID")
    }

    /// Sends a statement and does not wait.
    pub(crate) fn send(&self, statement: &str) {
        Spi::run_with_args("SELECT dblink_send_query($1, $2)", &[self.0.into(), statement.into()])
            .expect("send");
    }

    /// Whether the statement sent last is over.
    pub(crate) fn is_done(&self) -> bool {
        holds(&format!("dblink_is_busy('{}') = 0", self.0))
    }

    /// The error of the statement sent last.
    pub(crate) fn error(&self) -> String {
        // A failed result is a NOTICE here; the text of the error comes from the connection.
        Spi::run(&format!("SELECT * FROM dblink_get_result('{}', false) AS r(v text)", self.0))
            .expect("result");
        value(&format!("SELECT dblink_error_message('{}')", self.0)).unwrap_or_default()
    }

    /// Closes the connection without saying goodbye to a running statement.
    pub(crate) fn hang_up(self) {
        Spi::run(&format!("SELECT dblink_disconnect('{}')", self.0)).expect("disconnect");
    }
}
