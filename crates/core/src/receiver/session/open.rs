//! The first step: a directory is looked at, and locked if it is going to be replaced.

use std::path::Path;

use super::Conversation;
use super::stage::{Listed, Stage};
use crate::data_directory::DataDirectory;
use crate::error::Result;
use crate::host::inspect;
use crate::host::neighbours::{Neighbours, Wanted};
use crate::host::policy::Cluster;
use crate::manifest::path::RelPath;
use crate::receiver::snapshot::Snapshot;
use crate::wire::protocol::message::{self, Purpose};

/// The directory of a conversation, as the sender was told of it.
pub(super) struct Directory {
    pub(super) cluster: Cluster,
    /// The standby's own files, with what the configuration that it keeps needs.
    pub(super) keep: Vec<RelPath>,
    pub(super) snapshot: Snapshot,
}

impl Directory {
    /// Looks at it. Returns what the sender is told, too.
    pub(super) fn open(
        conversation: &Conversation<'_>,
        directory: &Path,
        purpose: Purpose,
        mut keep: Vec<RelPath>,
    ) -> Result<(Self, Stage, message::TargetInfo)> {
        let Conversation { receiver, token, peer, cancel, .. } = conversation;
        let cluster = receiver.policy().cluster(directory)?;
        let target = match purpose {
            Purpose::Look => None,
            Purpose::Recover => Some(open_target(conversation, &cluster, DataDirectory::open)?),
        };
        let look = target.as_ref().and_then(DataDirectory::look);
        let look = look.as_deref().unwrap_or(&cluster.data_directory);
        // before anything is told, so that what changes meanwhile is seen when the run begins
        let snapshot = Snapshot::look(look, &keep);
        let mut found = inspect::inspect_opened(&cluster, target.as_ref(), &keep, token, *peer, cancel)?;
        if let Some(identity) = found.wal_identity {
            let listed = receiver.policy().beside(&cluster);
            let is_linked = found.wal_directory.is_some();
            let path = found.wal_directory.clone().unwrap_or_else(|| cluster.data_directory.join("pg_wal"));
            let wanted = [Wanted { path, identity, is_linked, within: None }];
            let unused = Neighbours::new(found.identity, &listed).demand_unused(&wanted);
            found.doubts.wal = found.doubts.wal.take().or(unused.err());
        }
        let (mut snapshot, content) = (snapshot?, found.content);
        let stage = if let Some(target) = target {
            if target.was_made() {
                found.content = message::Content::Missing;
            }
            Stage::Held(Box::new(target), Listed::default())
        } else {
            found.recovery = receiver.ledger.account(&cluster.data_directory).running;
            Stage::Looked(Listed::default())
        };
        // with what the kept configuration needs
        let needed: Vec<RelPath> = found.kept.iter().filter(|path| !keep.contains(path)).cloned().collect();
        snapshot.also_keeps(&needed, content);
        keep.extend(needed);
        Ok((Self { cluster, keep, snapshot }, stage, found))
    }
}

/// The directory, opened by `open`, and its pg_wal, where that is a link.
pub(super) fn open_target(
    conversation: &Conversation<'_>,
    cluster: &Cluster,
    open: impl FnOnce(&Path) -> Result<DataDirectory>,
) -> Result<DataDirectory> {
    let mut target = open(&cluster.data_directory)?;
    if let Some(wal) = target.follow_wal()? {
        conversation.receiver.policy().check_outside(cluster, &wal)?;
    }
    Ok(target)
}
