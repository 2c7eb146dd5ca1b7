//! What the WAL of the target tells: nothing is changed, and nothing of it is believed without the sender's own.

use std::collections::BTreeMap;
use std::path::PathBuf;

use pgdata::control_file::{ControlFile, PG_CONTROL, PG_CONTROL_FILE_SIZE};
use pgdata::wal::Lsn;

use super::Conversation;
use super::open::Directory;
use crate::compare::wal_map::skip::{TargetFacts, read_from};
use crate::compare::wal_map::{BlockMap, Group, Lineage, Next, Wal};
use crate::error::{Error, Kind, Result};
use crate::host::inspect;
use crate::manifest::Side;
use crate::manifest::exclude::MARKER;
use crate::manifest::scan::tablespace_links;
use crate::sys::small_file;
use crate::wire::protocol::message::{self, Reply};

/// What makes a directory a copy that no server has started from, or that is not complete.
const COPIES: [&str; 4] = [MARKER, "backup_label", "tablespace_map", "recovery.signal"];

/// Reads it. The map and the digests are sent before the reply.
pub(super) fn read(
    conversation: &Conversation<'_>,
    directory: &Directory,
    source: &Lineage,
    from: Option<Lsn>,
) -> Result<Reply> {
    if !directory.cluster.allow_skip {
        return Err(Error::new(Kind::Unsupported, "the agent does not allow blocks to be left out")
            .detail("Its configuration says allow_skip = false."));
    }
    let control = control_file(directory)?;
    let (wal_directory, mut map) = (wal_directory(directory), BlockMap::default());
    let wal = Wal::new(&wal_directory, &control);
    let lineage = wal.lineage(control.timeline.max(control.min_recovery_timeline))?;
    let from = from.unwrap_or_else(|| read_from(&control, &lineage, source));
    let found = wal.read_target(&control, from, &mut map, &conversation.cancel)?;
    let encoded = map.encode();
    conversation.send_blob(&encoded)?;
    let mut groups = Vec::new();
    for chain in &found.chains {
        let bytes = Group::encode_all(&chain.groups);
        conversation.send_blob(&bytes)?;
        groups.push(bytes.len());
    }
    Ok(Reply::Wal(Box::new(message::Wal {
        target: target_facts(directory, control)?,
        links: links(directory)?,
        chains: found.chains.into_iter().map(|chain| chain.facts).collect(),
        groups,
        map: encoded.len(),
        is_all: found.is_all,
    })))
}

/// Digests some of its records.
pub(super) fn digest(
    conversation: &Conversation<'_>,
    directory: &Directory,
    timeline: u32,
    next: Next,
) -> Result<()> {
    let control = control_file(directory)?;
    let wal_directory = wal_directory(directory);
    let wal = Wal::new(&wal_directory, &control);
    let groups = wal.digest(&wal.lineage(timeline)?, next, &conversation.cancel)?;
    conversation.send_blob(&Group::encode_all(&groups))
}

/// pg_control in its place.
fn control_file(directory: &Directory) -> Result<ControlFile> {
    let path = directory.cluster.data_directory.join(PG_CONTROL);
    let found = small_file::read(&path, PG_CONTROL_FILE_SIZE).map_err(Error::on_path("read file", &path))?;
    let missing = || Error::new(Kind::MissingFile, format!("there is no file \"{}\"", path.display()));
    ControlFile::parse(&found.ok_or_else(missing)?).map_err(Error::from)
}

fn wal_directory(directory: &Directory) -> PathBuf {
    directory.cluster.data_directory.join("pg_wal")
}

fn target_facts(directory: &Directory, control: ControlFile) -> Result<TargetFacts> {
    let path = &directory.cluster.data_directory;
    let is_there = |name: &str| {
        let path = path.join(name);
        path.try_exists().map_err(Error::on_path("stat file", &path))
    };
    let mut copies = Vec::new();
    for name in COPIES {
        if is_there(name)? {
            copies.push(name.to_owned());
        }
    }
    Ok(TargetFacts {
        control,
        // it was read there
        control_in_place: true,
        copies,
        fsync_off: inspect::says_fsync_off(&directory.cluster),
        tablespaces: Vec::new(),
        is_encrypted: is_there("pg_tde")?,
    })
}

/// Where the links of tablespaces lead.
fn links(directory: &Directory) -> Result<BTreeMap<String, String>> {
    let links = tablespace_links(&directory.cluster.data_directory, Side::Target)?;
    Ok(links.into_iter().map(|(oid, path)| (oid.to_string(), path)).collect())
}
