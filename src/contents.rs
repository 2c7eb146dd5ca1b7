//! What one recovery sends besides the data files, and on which terms.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use pgdata::configuration::{self, Reading};
use pgdata::control_file::PG_CONTROL;
use pgdata::wal;
use pgpool_recovery_core::error::{Error, Kind, Result};
use pgpool_recovery_core::host::inspect::myrecovery_path;
use pgpool_recovery_core::manifest::exclude::{AUTO_CONF, MYRECOVERY_CONF, POSTGRESQL_CONF, Rules};
use pgpool_recovery_core::manifest::path::RelPath;
use pgpool_recovery_core::manifest::plan::{Directory, File, Plan};
use pgpool_recovery_core::manifest::scan::{Source, scan};
use pgpool_recovery_core::replication::standby::{self, Following};
use pgpool_recovery_core::sender::pack::Compression as Packing;
use pgpool_recovery_core::sender::{Checksums, Manner};
use pgpool_recovery_core::sys::cancel::Cancel;
use pgpool_recovery_core::wire::protocol::data::Put;
use pgpool_recovery_core::wire::protocol::message::{Marker, Target, Terms};

use crate::pg::backup::BackupStop;
use crate::preflight::configuration::keeps;
use crate::preflight::one_host;
use crate::preflight::situation::Situation;
use crate::settings::Compression;

/// On which terms the plan is received.
pub(crate) fn plan_header(situation: &Situation) -> Result<Terms> {
    let metadata =
        fs::metadata(&situation.data_directory).map_err(Error::on_path("stat", &situation.data_directory))?;
    Ok(Terms {
        tablespaces: situation.tablespaces()?,
        tablespace_version_directory: situation.tablespace_version_directory(),
        host_directories: host_directories(situation),
        // the segments the backup starts and ends in
        reserve: 2 * u64::from(situation.primary.wal_segment_size),
        mode: metadata.permissions().mode() & 0o7777,
        primary_space: Some(one_host::primary_space(situation)?),
    })
}

/// The data files as they are now, and which of them travel. Not for the main thread: it reads directories.
pub(crate) fn plan(situation: &Situation, target: &Target, terms: &Terms, cancel: &Cancel) -> Result<Plan> {
    let rules = rules(situation, target)?;
    let source = Source {
        data_directory: &situation.data_directory,
        tablespace_version_directory: &terms.tablespace_version_directory,
        tablespaces: &terms.tablespaces,
        rules: &rules,
    };
    scan(&source, cancel)
}

/// What stays on the primary.
fn rules(situation: &Situation, target: &Target) -> Result<Rules> {
    let mut private_files = target.kept.clone();
    // made for the standby, see final_files()
    private_files.push(RelPath::parse(POSTGRESQL_CONF)?);
    private_files.push(RelPath::parse(AUTO_CONF)?);
    private_files.extend(inside(situation, &situation.settings.secret_file));
    Ok(Rules { host_directories: host_directories(situation), private_files })
}

/// What the marker tells the reader who finds it.
pub(crate) fn marker(situation: &Situation) -> Marker {
    Marker {
        note: "A recovery of this directory by pgpool_recovery is not complete. Do not start a server here; \
               run the recovery again, it sends only what is missing."
            .to_owned(),
        system_identifier: situation.primary.system_identifier,
        timeline: situation.primary.timeline,
        started: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs()),
        // the receiver adds what else belongs there
        ..Marker::default()
    }
}

/// How data is moved.
pub(crate) fn transfer_options(situation: &Situation, start_lsn: u64) -> Manner {
    let settings = &situation.settings;
    let verify = settings.verify_checksums && situation.control.checksum_version != 0;
    Manner {
        jobs: u32::try_from(settings.jobs).unwrap_or(u32::MAX),
        compression: match settings.compression {
            Compression::Auto => Packing::Auto,
            Compression::Off => Packing::Off,
            Compression::Lz4 => Packing::Lz4,
            Compression::Zstd => Packing::Zstd,
        },
        max_rate: settings.max_rate,
        clone: settings.clone,
        checksums: verify.then_some(Checksums {
            block_size: situation.primary.block_size,
            segment_blocks: situation.primary.relation_segment_blocks,
            start_lsn,
        }),
    }
}

/// The WAL that makes the copy consistent, and the history of its timelines.
pub(crate) fn wal(
    situation: &Situation,
    start_lsn: u64,
    stop_lsn: u64,
) -> Result<(Vec<Directory>, Vec<File>)> {
    let primary = &situation.primary;
    let directory_mode = if primary.group_access { 0o750 } else { 0o700 };
    let mode = file_mode(situation);
    let mut names: Vec<String> = wal::segments(start_lsn, stop_lsn, primary.wal_segment_size)
        .map(|segment| wal::segment_name(primary.timeline, segment, primary.wal_segment_size))
        .collect();
    let listed = || -> std::io::Result<Vec<String>> {
        let entries = fs::read_dir(situation.data_directory.join("pg_wal"))?;
        entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    };
    let present = listed().map_err(Error::on("list the primary's pg_wal"))?;
    names.extend(present.into_iter().filter(|name| wal::is_history(name)));
    let mut directories =
        vec![Directory { path: RelPath::parse("pg_wal/archive_status")?, mode: directory_mode }];
    if primary.server_version_num >= 170_000 {
        directories.push(Directory { path: RelPath::parse("pg_wal/summaries")?, mode: directory_mode });
    }
    let mut files = Vec::new();
    for name in names {
        let path = RelPath::parse(&format!("pg_wal/{name}"))?;
        let metadata = fs::metadata(situation.data_directory.join(&path)).map_err(|error| {
            Error::new(Kind::SlotLost, format!("could not look at WAL file \"{name}\": {error}"))
                .detail("The standby needs it to reach consistency.")
                .hint("Use a replication slot (pgpool_recovery.slot_name), or increase wal_keep_size.")
        })?;
        files.push(File { path, size: metadata.size(), mode });
    }
    Ok((directories, files))
}

/// Fails if a WAL file was removed or recycled while it was sent, which only a slot prevents: what was read
/// then is not what its name says. `before` is what [`inodes`] gave.
pub(crate) fn demand_wal_kept(situation: &Situation, files: &[File], before: &[u64]) -> Result<()> {
    if inodes(&situation.data_directory, files) == before {
        return Ok(());
    }
    Err(Error::new(Kind::SlotLost, "WAL that the standby needs was removed while it was sent")
        .hint("Use a replication slot (pgpool_recovery.slot_name), or increase wal_keep_size."))
}

/// The inodes of files, 0 for one that is gone.
pub(crate) fn inodes(data_directory: &Path, files: &[File]) -> Vec<u64> {
    let inode =
        |file: &File| fs::metadata(data_directory.join(&file.path)).map_or(0, |metadata| metadata.ino());
    files.iter().map(inode).collect()
}

/// The files made for the standby, pg_control among them.
pub(crate) fn final_files(
    situation: &Situation,
    target: &Target,
    following: &Following,
    terms: &Terms,
    wal: &[File],
    stop: &BackupStop,
    control: Vec<u8>,
) -> Result<Vec<Put>> {
    let mode = file_mode(situation);
    let mut puts = Vec::new();
    let mut put = |path: &str, content: Vec<u8>| -> Result<()> {
        puts.push(Put { path: RelPath::parse(path)?, mode, content });
        Ok(())
    };
    for file in wal {
        // the primary archives its own WAL: a promoted standby need not archive it again
        put(&format!("pg_wal/archive_status/{}.done", file.path.file_name()), Vec::new())?;
    }
    put("backup_label", stop.label_file.clone())?;
    if !terms.tablespaces.is_empty() {
        put("tablespace_map", standby::mapped_tablespace_map(&terms.tablespaces).into_bytes())?;
    }
    let port = situation.request.dest_port;
    // two servers of one host would write, truncate and show each other's log
    let logs_beside_primary =
        situation.is_local() && Path::new(&situation.primary.log_directory).is_absolute();
    if !situation.keeps_main_configuration(target)
        && situation.config_is_inside()
        && let Some(text) = read(Path::new(&situation.primary.config_file))?
    {
        let main = Path::new(&situation.primary.config_file);
        let major = situation.primary.server_version_num / 10_000;
        let mut places = standby::own_places(&Reading::of(main, None), main, major);
        if logs_beside_primary {
            places.push_str("log_directory = 'log'\n");
        }
        let include = myrecovery_path(&target.directory);
        put(POSTGRESQL_CONF, standby::adopted_configuration(&text, port, &places, &include))?;
    }
    if !keeps(target, AUTO_CONF)
        && let Some(text) = read(&situation.data_directory.join(AUTO_CONF))?
    {
        let mut own = target.own_settings.clone();
        own.extend(port.map(|_| "port".to_owned()));
        own.extend(logs_beside_primary.then(|| "log_directory".to_owned()));
        put(AUTO_CONF, standby::without_recovery_settings(&text, &own))?;
    }
    put("standby.signal", Vec::new())?;
    put(
        MYRECOVERY_CONF,
        following.myrecovery_conf(situation.primary.server_version_num / 10_000)?.into_bytes(),
    )?;
    put(PG_CONTROL, control)?;
    Ok(puts)
}

/// A configuration file of the primary, if it is there.
fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    match configuration::content(path, configuration::MAX_BYTES) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::at("read file", path, &error)),
    }
}

/// Directories that only their own host touches: `log_directory`, where it lies inside.
fn host_directories(situation: &Situation) -> Vec<RelPath> {
    inside(situation, &situation.primary.log_directory).into_iter().collect()
}

/// The path relative to the data directory, if it lies strictly inside.
fn inside(situation: &Situation, path: &str) -> Option<RelPath> {
    let absolute = situation.data_directory.join(path);
    let resolved = absolute.canonicalize().unwrap_or(absolute);
    RelPath::parse(resolved.strip_prefix(&situation.data_directory).ok()?.to_str()?).ok()
}

fn file_mode(situation: &Situation) -> u32 {
    if situation.primary.group_access { 0o640 } else { 0o600 }
}
