//! Files that a target's host may hold in any state: pg_control, WAL, configurations.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pgpool_recovery_core::control_file::{ControlFile, wal_system_identifier};
use pgpool_recovery_core::path::{RelPath, normalize_directory};
use pgpool_recovery_core::standby;

fuzz_target!(|data: &[u8]| {
    let _ = ControlFile::parse(data);
    let _ = wal_system_identifier(data);
    let Ok(text) = std::str::from_utf8(data) else { return };
    let _ = RelPath::parse(text);
    let _ = normalize_directory(text);
    let _ = standby::parse_myrecovery(text);
    let _ = standby::without_recovery_settings(text, true);
    let include = "/srv/pg/myrecovery.conf";
    let _ = standby::reads_myrecovery(text, include);
    if let Some(extended) = standby::with_include(text, include) {
        assert!(extended.starts_with(text), "what was there stays");
        assert_eq!(standby::with_include(&extended, include), None, "added once");
    }
});
