//! What pgrx's test framework asks of the crate: the settings of the server it starts.

/// Called once before the tests; nothing to prepare.
pub fn setup(_options: Vec<&str>) {}

/// Lines for postgresql.conf.
pub fn postgresql_conf_options() -> Vec<&'static str> {
    vec![
        "wal_level = replica",
        "max_replication_slots = 12",
        "max_wal_senders = 5",
        // Many sessions of other tests hold backups at once; a spread checkpoint would take minutes.
        "checkpoint_timeout = 30min",
        // So that a statement that should have been cancelled fails the test instead of hanging it.
        "statement_timeout = 60s",
    ]
}
