//! The plan is complete: do the directories belong to the target, and is there room for it?

use std::path::Path;

use super::Conversation;
use super::open::Directory;
use super::stage::Listed;
use crate::data_directory::DataDirectory;
use crate::error::{Error, Kind, Result};
use crate::host::neighbours::{Neighbours, Wanted};
use crate::host::places;
use crate::host::policy::{Cluster, Policy, resolve};
use crate::manifest::list::FileIndex;
use crate::manifest::path::{RelPath, overlap};
use crate::receiver::room::Room;
use crate::receiver::{incoming, obstacles};
use crate::sys::FileId;
use crate::wire::protocol::message::{PlanHeader, Reply};

/// A plan, and the target that it was made for.
pub(super) struct Planned {
    pub(super) target: Box<DataDirectory>,
    pub(super) listed: Listed,
    pub(super) index: FileIndex,
    pub(super) header: PlanHeader,
    /// Bytes that stay free on the file system of pg_wal, if that could be asked.
    pub(super) kept_beside_wal: Result<u64>,
    /// Whether none of the directories that are going to be entered is another server's. The sender knows its own better, so it is
    /// told first, and may refuse with what it knows.
    pub(super) unused: Result<()>,
}

/// What the sender is told of a plan.
pub(super) struct Answer {
    locations: Vec<FileId>,
    space: Option<Error>,
    obstacle: Option<Error>,
    used: Option<Error>,
}

impl Answer {
    /// Fails if there is no room, or if something stands in the way.
    pub(super) fn demand(self) -> Result<Self> {
        match self.space.as_ref().or(self.obstacle.as_ref()) {
            Some(refusal) => Err(refusal.clone()),
            None => Ok(self),
        }
    }

    pub(super) fn into_reply(self) -> Reply {
        let Self { locations, space, obstacle, used } = self;
        Reply::Planned { locations, space, obstacle: used.or(obstacle) }
    }
}

impl Planned {
    /// Opens where the tablespaces go and asks every file system whether it has room. Nothing changes
    /// but for directories that are removed again if the run does not begin.
    pub(super) fn make(
        conversation: &Conversation<'_>,
        directory: &Directory,
        mut target: Box<DataDirectory>,
        listed: Listed,
        header: PlanHeader,
    ) -> Result<(Self, Answer)> {
        let cluster = &directory.cluster;
        let policy = conversation.receiver.policy();
        add_tablespaces(&policy, cluster, &mut target, &header)?;
        let oids: Vec<u32> = header.tablespaces.iter().map(|tablespace| tablespace.oid).collect();
        let check =
            |path: &RelPath| incoming::check_tablespace(path, &oids, &header.tablespace_version_directory);
        listed.directories.iter().try_for_each(|directory| check(&directory.path))?;
        listed.files.iter().try_for_each(|file| check(&file.path))?;
        let index = FileIndex::new(&listed.files)?;
        demand_own(&policy, cluster, &target, &header)?;
        let Listed { directories, files } = &listed;
        let found = obstacles::search(&target, directories, files, &index, &directory.keep, &header)?;
        let room = Room::look(&target, &header, &found);
        let fits = room.as_ref().map_err(Error::clone);
        let space = fits.and_then(|room| room.check(&target, files, &header, &found)).err();
        let kept_beside_wal = room.map(|room| room.kept_beside_wal());
        let mut locations = target.identities()?;
        locations.extend(found.entered.iter().map(|(_, identity)| *identity));
        let unused = demand_unused(&policy, cluster, &target, found.entered);
        let answer = Answer { locations, space, obstacle: found.obstacle, used: unused.clone().err() };
        Ok((Self { target, listed, index, header, kept_beside_wal, unused }, answer))
    }
}

/// Opens the directories of the tablespaces. Each must be free, or the target's own.
fn add_tablespaces(
    policy: &Policy,
    cluster: &Cluster,
    target: &mut DataDirectory,
    header: &PlanHeader,
) -> Result<()> {
    let mut apart = vec![cluster.data_directory.clone()];
    apart.extend(target.others()?.into_iter().map(|other| other.path));
    for tablespace in &header.tablespaces {
        let location = Path::new(&tablespace.target);
        let resolved = resolve(location);
        if let Some(other) = apart.iter().find(|other| overlap(other, &resolved)) {
            return Err(Error::new(
                Kind::TargetRefused,
                format!("tablespace directory \"{}\" overlaps \"{}\"", location.display(), other.display()),
            )
            .detail("The data directory, pg_wal and every tablespace of the standby need directories of their own.")
            .hint("Correct tablespace_mapping."));
        }
        places::demand_outside_clusters(&resolved)?;
        apart.push(resolved);
        policy.check_outside(cluster, location)?;
        let content = location.join(&header.tablespace_version_directory);
        if !places::is_ours(target, tablespace)? && places::is_used(&content)? {
            return Err(Error::new(
                Kind::TargetRefused,
                format!("tablespace directory \"{}\" is in use", content.display()),
            )
            .detail(format!(
                "Tablespace {} would be written there, but the target does not use it now.",
                tablespace.oid
            ))
            .hint("Map the tablespace to another directory with tablespace_mapping, or empty this one."));
        }
        target.add_root(&places::link(tablespace)?, location)?;
    }
    Ok(())
}

/// Refuses what the directories outside the data directory turned out to be once they were opened.
fn demand_own(policy: &Policy, cluster: &Cluster, target: &DataDirectory, header: &PlanHeader) -> Result<()> {
    let mut wanted = Vec::new();
    for other in target.others()? {
        policy.check_outside(cluster, &other.path)?;
        let within = other.is_tablespace.then(|| header.tablespace_version_directory.clone());
        wanted.push(Wanted { path: other.path, identity: other.identity, is_linked: true, within });
    }
    if wanted.is_empty() {
        return Ok(());
    }
    let listed = policy.beside(cluster);
    Neighbours::new(own(target), &listed).demand_unused(&wanted)
}

/// The data directory itself. Without it the target's own links are taken for another's.
fn own(target: &DataDirectory) -> Option<FileId> {
    target.look().and_then(|look| Some(FileId::from(&std::fs::metadata(look).ok()?)))
}

/// Refuses what a run would enter where a mount has brought a directory of another server's there.
fn demand_unused(
    policy: &Policy,
    cluster: &Cluster,
    target: &DataDirectory,
    entered: Vec<(RelPath, FileId)>,
) -> Result<()> {
    if entered.is_empty() {
        // the other clusters' file systems need not answer
        return Ok(());
    }
    let wanted = |(path, identity): (RelPath, FileId)| Wanted {
        path: target.path().join(path),
        identity,
        is_linked: false,
        within: None,
    };
    let wanted: Vec<Wanted> = entered.into_iter().map(wanted).collect();
    let listed = policy.beside(cluster);
    Neighbours::new(own(target), &listed).demand_unused(&wanted)
}
