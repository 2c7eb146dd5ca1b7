//! From a stored procedure of the user's own.

use pgpool_recovery_e2e::{Cluster, Host, Scratch, SqlError, compare, probe, workload};

const PROCEDURE: &str = "
    CREATE TABLE recoveries (at timestamptz DEFAULT now(), report jsonb);
    CREATE PROCEDURE rebuild(directory text, port integer) LANGUAGE plpgsql AS $$
    DECLARE
        report jsonb;
    BEGIN
        report := pgpool_recovery_1st_stage('localhost', directory, current_setting('port')::integer,
                                            jsonb_build_object('dest_port', port));
        INSERT INTO recoveries (report) VALUES (report);
        COMMIT;
        PERFORM pgpool_remote_start('localhost', directory);
    END $$";

#[test]
fn a_procedure_rebuilds_a_standby() {
    let scratch = Scratch::new();
    let primary = Cluster::primary(&scratch);
    workload::fill(&primary, 5);
    primary.execute(PROCEDURE);
    let target = Cluster::place(&scratch, &Host::here(), "target");
    primary.execute(&format!("CALL rebuild('{}', {})", target.dir(), target.port()));
    assert!(target.in_recovery());
    let sql = "SELECT (report #>> '{bytes,total}')::bigint > 0 FROM recoveries";
    assert!(primary.get::<bool>(sql, &[]));
    target.wait_for_replay(&primary);
    assert!(target.get::<bool>(sql, &[]), "the report itself was replicated");
    compare::stop_and_compare(&primary, &target).assert_none();
}

#[test]
fn its_exception_handler_catches_a_refusal() {
    let scratch = Scratch::new();
    let primary = probe::quiet(Cluster::place(&scratch, &Host::here(), "primary")).into_primary();
    primary.execute(
        "CREATE TABLE caught (sqlstate text, message text, hint text);
         CREATE PROCEDURE careful(directory text) LANGUAGE plpgsql AS $$
         DECLARE
             h text;
         BEGIN
             PERFORM pgpool_recovery_1st_stage('localhost', directory, 5432);
         EXCEPTION WHEN OTHERS THEN
             GET STACKED DIAGNOSTICS h = PG_EXCEPTION_HINT;
             INSERT INTO caught VALUES (SQLSTATE, SQLERRM, h);
         END $$",
    );
    primary.execute(&format!("CALL careful('{}')", primary.dir()));
    let sqlstate: String = primary.get("SELECT sqlstate FROM caught", &[]);
    assert!(["55000", "55006"].contains(&sqlstate.as_str()), "{sqlstate}");
    probe::assert_nothing_left(&primary);
}

#[test]
fn a_read_only_transaction_and_a_function_will_do_too() {
    let scratch = Scratch::new();
    let primary = Cluster::primary(&scratch);
    let target = Cluster::place(&scratch, &Host::here(), "target");
    let mut client = primary.connect();
    client
        .batch_execute("CREATE SCHEMA elsewhere; ALTER EXTENSION pgpool_recovery SET SCHEMA elsewhere")
        .expect("it is relocatable");
    // Read-only or not is about tables: this either works or says why not.
    let mut transaction = client.build_transaction().read_only(true).start().expect("BEGIN");
    let sql = format!(
        "SELECT elsewhere.pgpool_recovery_1st_stage('localhost', '{}', {}, '{{\"dest_port\": {}}}')",
        target.dir(),
        primary.port(),
        target.port()
    );
    if let Err(error) = transaction.batch_execute(&sql) {
        assert_eq!(SqlError::from(&error).sqlstate, "25006");
    }
}
