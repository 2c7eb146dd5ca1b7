//! Files that a target's host may hold in any state: pg_control, WAL, configurations.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pgdata::control_file::{ControlFile, wal_system_identifier};
use pgpool_recovery_core::manifest::path::{RelPath, normalize_directory};
use pgpool_recovery_core::replication::standby;

fuzz_target!(|data: &[u8]| {
    let _ = ControlFile::parse(data);
    let _ = wal_system_identifier(data);
    let _ = standby::parse_myrecovery(data);
    let own = ["port".to_owned()];
    let left = standby::without_recovery_settings(data, &own);
    assert_eq!(standby::without_recovery_settings(&left, &own), left, "nothing is left to drop");
    let include = "/srv/pg/myrecovery.conf";
    let adopted = standby::adopted_configuration(data, Some(5433), "", include);
    assert_eq!(standby::adopted_configuration(&adopted, None, "", include), adopted, "adopted once");
    let Ok(text) = std::str::from_utf8(data) else { return };
    let _ = RelPath::parse(text);
    let _ = normalize_directory(text);
});
