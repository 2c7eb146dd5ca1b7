//! The files that a recovery writes for the standby: its configuration, backup_label, and pg_control.

use std::path::Path;

use pgdata::configuration::{self, Reading};
use pgdata::control_file::PG_CONTROL;
use pgpool_recovery_core::error::{Error, Result};
use pgpool_recovery_core::host::inspect::myrecovery_path;
use pgpool_recovery_core::manifest::exclude::{AUTO_CONF, MYRECOVERY_CONF, POSTGRESQL_CONF, SECOND_STAGE};
use pgpool_recovery_core::manifest::path::RelPath;
use pgpool_recovery_core::replication::places::own_places;
use pgpool_recovery_core::replication::standby::{self, ReplicationConfig};
use pgpool_recovery_core::wire::protocol::data::Put;
use pgpool_recovery_core::wire::protocol::message::{PlanHeader, TargetInfo};

use crate::pg::backup::BackupStop;
use crate::plan::{self, file_mode};
use crate::preflight::PrimaryFacts;
use crate::preflight::configuration::keeps;

/// The files made for the standby, pg_control among them.
pub(crate) fn final_files(
    facts: &PrimaryFacts,
    target: &TargetInfo,
    replication: &ReplicationConfig,
    header: &PlanHeader,
    histories: Vec<(String, Vec<u8>)>,
    stop: &BackupStop,
    control: Vec<u8>,
) -> Result<Vec<Put>> {
    let mode = file_mode(facts);
    let mut files = Vec::new();
    let mut put = |path: &str, content: Vec<u8>| -> Result<()> {
        files.push(Put { path: RelPath::parse(path)?, mode, content });
        Ok(())
    };
    for (name, content) in histories {
        // the primary archives its own: a promoted standby need not archive them again
        put(&format!("pg_wal/archive_status/{name}.done"), Vec::new())?;
        put(&format!("pg_wal/{name}"), content)?;
    }
    put("backup_label", stop.label_file.clone())?;
    if !header.tablespaces.is_empty() {
        put("tablespace_map", standby::mapped_tablespace_map(&header.tablespaces).into_bytes())?;
    }
    let port = facts.request.dest_port;
    // two servers of one host would write, truncate and show each other's log
    let logs_beside_primary = facts.is_local() && Path::new(&facts.primary.log_directory).is_absolute();
    if !facts.keeps_main_configuration(target) && facts.config_is_inside() {
        let main = Path::new(&facts.primary.config_file);
        let text = configuration::content(main, configuration::MAX_BYTES)
            .map_err(|error| Error::at("read file", main, &error))?;
        let major = facts.primary.server_version_num / 10_000;
        let mut places = own_places(&Reading::of(main, None), main, major, &target.directory);
        if logs_beside_primary {
            places.push_str("log_directory = 'log'\n");
        }
        let include = myrecovery_path(&target.directory);
        put(POSTGRESQL_CONF, standby::adopted_configuration(&text, port, &places, &include))?;
    }
    if !keeps(target, AUTO_CONF)
        && let Some(text) = automatic(&facts.data_directory.join(AUTO_CONF))?
    {
        let mut own = target.own_settings.clone();
        own.extend(port.map(|_| "port".to_owned()));
        own.extend(logs_beside_primary.then(|| "log_directory".to_owned()));
        put(AUTO_CONF, standby::without_recovery_settings(&text, &own))?;
    }
    put("standby.signal", Vec::new())?;
    if facts.request.is_native {
        put(SECOND_STAGE, plan::second_stage_mark(facts)?)?;
    }
    put(
        MYRECOVERY_CONF,
        replication.myrecovery_conf(facts.primary.server_version_num / 10_000)?.into_bytes(),
    )?;
    put(PG_CONTROL, control)?;
    Ok(files)
}

/// What ALTER SYSTEM has written. Without it, or where a link leads nowhere, the primary does as well.
fn automatic(path: &Path) -> Result<Option<Vec<u8>>> {
    match configuration::content(path, configuration::MAX_BYTES) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::at("read file", path, &error)),
    }
}
