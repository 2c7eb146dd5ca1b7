//! What one recovery sends: which files travel, how, and what the receiver is told of them first.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use pgdata::configuration;
use pgdata::wal::{self, Lsn};
use pgpool_recovery_core::error::{Error, Kind, Result};
use pgpool_recovery_core::manifest::exclude::{AUTO_CONF, POSTGRESQL_CONF, Rules};
use pgpool_recovery_core::manifest::path::RelPath;
use pgpool_recovery_core::manifest::plan::{Directory, Plan};
use pgpool_recovery_core::manifest::scan::{Source, scan};
use pgpool_recovery_core::sender::Compression as Packing;
use pgpool_recovery_core::sender::{Checksums, TransferOptions, WalPositions, WalSource};
use pgpool_recovery_core::sys::cancel::Cancel;
use pgpool_recovery_core::sys::clock;
use pgpool_recovery_core::wire::protocol::message::{Marker, PlanHeader, TargetInfo};
use pgpool_recovery_core::wire::protocol::second_stage::SecondStageMark;

use crate::pg::slot::Slot;
use crate::preflight::PrimaryFacts;
use crate::preflight::known_data::KnownData;
use crate::preflight::one_host;
use crate::run::Run;
use crate::settings::Compression;

fn plan_header(facts: &PrimaryFacts) -> Result<PlanHeader> {
    let metadata = fs::metadata(&facts.data_directory)
        .map_err(Error::on_path("stat directory", &facts.data_directory))?;
    Ok(PlanHeader {
        tablespaces: facts.tablespaces()?,
        tablespace_version_directory: facts.tablespace_version_directory(),
        host_directories: host_directories(facts),
        // the segments the backup starts and ends in
        reserve: 2 * u64::from(facts.primary.wal_segment_size),
        mode: metadata.permissions().mode() & 0o7777,
        primary_space: Some(one_host::primary_space(facts)?),
    })
}

/// The data files as they are now, and which of them travel; and what the receiver must know of them as a whole. Fails if files that
/// must be there are missing.
pub(crate) fn plan(
    facts: &PrimaryFacts,
    target: &TargetInfo,
    slot: Option<&Slot>,
    run: &mut Run<'_>,
) -> Result<(Plan, PlanHeader)> {
    let known = KnownData::now()?;
    let (plan, header) = run.blocking_with(slot, |cancel| list(facts, target, cancel))?;
    known.demand_in(facts, &plan, run)?;
    Ok((plan, header))
}

/// Not for the main thread: it reads directories, of the target's as well.
fn list(facts: &PrimaryFacts, target: &TargetInfo, cancel: &Cancel) -> Result<(Plan, PlanHeader)> {
    let header = plan_header(facts)?;
    let rules = rules(facts, target)?;
    let source = Source {
        data_directory: &facts.data_directory,
        tablespace_version_directory: &header.tablespace_version_directory,
        tablespaces: &header.tablespaces,
        rules: &rules,
    };
    let plan = scan(&source, cancel)?;
    Ok((plan, header))
}

/// What stays on the primary.
fn rules(facts: &PrimaryFacts, target: &TargetInfo) -> Result<Rules> {
    let mut private_files = target.kept.clone();
    // made for the standby, see final_files()
    private_files.push(RelPath::parse(POSTGRESQL_CONF)?);
    private_files.push(RelPath::parse(AUTO_CONF)?);
    private_files.extend(inside(facts, &facts.settings.secret_file));
    Ok(Rules { host_directories: host_directories(facts), private_files })
}

/// What the marker tells the reader who finds it.
pub(crate) fn marker(facts: &PrimaryFacts) -> Marker {
    Marker {
        note: "A recovery of this directory by pgpool_recovery is not complete. Do not start a server here; \
               run the recovery again, it sends only what is missing."
            .to_owned(),
        system_identifier: facts.primary.system_identifier,
        timeline: facts.primary.timeline,
        started: clock::now() / 1000,
        // the receiver adds what else belongs there
        ..Marker::default()
    }
}

/// The file that says of a standby that it was made to be promoted beside this primary.
pub(crate) fn second_stage_mark(facts: &PrimaryFacts) -> Result<Vec<u8>> {
    let mark = SecondStageMark {
        note: "This standby was made by pgpool_recovery_1st_stage_native. A second stage of the same primary may promote it, and \
               removes this file."
            .to_owned(),
        made: clock::now() / 1000,
        system_identifier: facts.primary.system_identifier,
        timeline: facts.primary.timeline,
    };
    serde_json::to_vec_pretty(&mark)
        .map_err(|error| Error::new(Kind::Internal, format!("could not encode a mark: {error}")))
}

/// How data is moved.
pub(crate) fn transfer_options(facts: &PrimaryFacts, start_lsn: Lsn) -> TransferOptions {
    let settings = &facts.settings;
    let verify = settings.verify_checksums && facts.control.checksum_version != 0;
    TransferOptions {
        jobs: u32::try_from(settings.jobs).unwrap_or(u32::MAX),
        compression: packing(facts),
        max_rate: settings.max_rate,
        clone: settings.clone,
        checksums: verify.then_some(Checksums {
            block_size: facts.primary.block_size,
            segment_blocks: facts.primary.relation_segment_blocks,
            start_lsn,
        }),
    }
}

fn packing(facts: &PrimaryFacts) -> Packing {
    match facts.settings.compression {
        Compression::Auto => Packing::Auto,
        Compression::Off => Packing::Off,
        Compression::Lz4 => Packing::Lz4,
        Compression::Zstd => Packing::Zstd,
    }
}

/// The WAL that makes the copy consistent: from where the backup starts.
pub(crate) fn wal(facts: &PrimaryFacts, start_lsn: Lsn, positions: Arc<WalPositions>) -> Result<WalSource> {
    let primary = &facts.primary;
    let mode = if primary.group_access { 0o750 } else { 0o700 };
    let directory = |name: &str| -> Result<Directory> {
        Ok(Directory { path: RelPath::parse(&format!("pg_wal/{name}"))?, mode })
    };
    let mut directories = vec![directory("archive_status")?];
    if primary.server_version_num >= 170_000 {
        directories.push(directory("summaries")?);
    }
    Ok(WalSource {
        directory: facts.data_directory.join("pg_wal"),
        timeline: primary.timeline,
        segment_size: primary.wal_segment_size,
        start: start_lsn,
        mode: file_mode(facts),
        directories,
        compression: packing(facts),
        positions,
    })
}

/// The histories of this server's timelines, by the names of their files.
pub(crate) fn histories(facts: &PrimaryFacts) -> Result<Vec<(String, Vec<u8>)>> {
    let directory = facts.data_directory.join("pg_wal");
    let listed = || -> std::io::Result<Vec<String>> {
        let entries = fs::read_dir(&directory)?;
        // the name of a history is ASCII
        entries.map(|entry| Ok(entry?.file_name().into_string().unwrap_or_default())).collect()
    };
    let names = listed().map_err(Error::on("list the primary's pg_wal"))?;
    let read = |name: String| {
        let path = directory.join(&name);
        let content = configuration::content(&path, configuration::MAX_BYTES);
        content.map(|content| (name, content)).map_err(Error::on_path("read file", &path))
    };
    names.into_iter().filter(|name| wal::is_history(name)).map(read).collect()
}

/// Directories that only their own host touches: `log_directory`, where it lies inside.
fn host_directories(facts: &PrimaryFacts) -> Vec<RelPath> {
    inside(facts, &facts.primary.log_directory).into_iter().collect()
}

/// The path relative to the data directory, if it lies strictly inside.
fn inside(facts: &PrimaryFacts, path: &str) -> Option<RelPath> {
    let absolute = facts.data_directory.join(path);
    let resolved = absolute.canonicalize().unwrap_or(absolute);
    RelPath::parse(resolved.strip_prefix(&facts.data_directory).ok()?.to_str()?).ok()
}

/// The permission bits of the files that are made for the standby.
pub(crate) fn file_mode(facts: &PrimaryFacts) -> u32 {
    if facts.primary.group_access { 0o640 } else { 0o600 }
}
