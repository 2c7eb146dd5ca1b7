//! May this target be replaced by a copy of this primary? (S6)
//!
//! Pure: facts in, one finding a question out, so that a check shows all problems and a recovery stops
//! at the first.

use std::path::{Path, PathBuf};

use pgdata::wal::Lsn;

use crate::compare::wal_map::{Agreement, Lineage};
use crate::error::{Error, Kind};
use crate::host::running;
use crate::manifest::path::overlap;
use crate::preflight::Finding;
use crate::sys::FileId;
use crate::sys::machine;
use crate::wire::protocol::message::{Content, TargetInfo};

mod archive;
mod backup;
mod timeline;
mod wal;

/// The primary, as far as it matters.
#[derive(Debug, Clone)]
pub struct PrimaryIdentity {
    /// Its data directory, symbolic links resolved.
    pub directory: PathBuf,
    /// What directory that is.
    pub identity: FileId,
    /// All directories it uses, its pg_wal and tablespaces among them, symbolic links resolved.
    pub own: Vec<PathBuf>,
    /// Device and inode of its pg_wal.
    pub wal_identity: Option<FileId>,
    /// The boot of the machine it runs on.
    pub boot_id: Option<String>,
    /// From pg_control.
    pub system_identifier: u64,
    /// The timeline that it writes.
    pub timeline: u32,
    /// What that has sprung from, where its history file is there.
    pub history: Option<Lineage>,
    /// `15`
    pub major_version: String,
    /// Bytes.
    pub block_size: u32,
    /// Bytes.
    pub wal_segment_size: u32,
    /// Whether the target is to be a server of its own, on a timeline of its own (native replication, snapshot isolation): one
    /// that was so before is no surprise.
    pub has_independent_nodes: bool,
}

/// How the target is going to be filled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strategy {
    /// Nothing is there.
    Full,
    /// A cluster is there; what differs is sent.
    Delta,
    /// An interrupted recovery is completed.
    Resume,
}

impl Strategy {
    /// As the report calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Delta => "delta",
            Self::Resume => "resume",
        }
    }
}

/// The label of our backups: what Pgpool-II's scripts have always called theirs.
pub const BACKUP_LABEL: &str = "Streaming Replication";

/// How far two clocks may be apart, milliseconds.
const CLOCKS: u64 = 2_000;

/// Which strategy fits what was found.
pub fn strategy(primary: &PrimaryIdentity, target: &TargetInfo) -> Strategy {
    match target.content {
        Content::Missing | Content::Empty | Content::Wal | Content::Other => Strategy::Full,
        Content::Cluster if resumes(primary, target) => Strategy::Resume,
        Content::Cluster => Strategy::Delta,
    }
}

/// The primary's own WAL, after the target was looked at.
#[derive(Debug, Clone, Copy)]
pub struct OwnWal {
    /// To where it was on the disk.
    pub flushed: Lsn,
    /// Whether it has the target's landmark.
    pub agrees: Agreement,
}

/// All questions and their answers. `wal`: `None` of a standby. `same_paths`: the target is written by the primary's own process, so paths mean the same on both
/// sides. `any_cluster`: another cluster may be replaced.
pub fn check_target(
    primary: &PrimaryIdentity,
    wal: Option<OwnWal>,
    target: &TargetInfo,
    same_paths: bool,
    any_cluster: bool,
) -> Vec<Finding> {
    vec![
        Finding::new("target_is_not_primary", not_the_primary(primary, target, same_paths)),
        Finding::new("target_stopped", stopped(target)),
        Finding::new("target_identity", identity(primary, wal, target, any_cluster)),
        Finding::new("target_version", version(primary, target, any_cluster)),
        Finding::new("target_wal", wal::is_its_own(primary, target, any_cluster)),
        Finding::advice("start_command", target.starter.clone()),
        Finding::advice("unarchived_wal", archive::complete(target)),
    ]
}

/// Whether the target's host has the time of this one, which asked from `asked` to `answered`; all are
/// milliseconds since 1970.
pub fn clocks(target: &TargetInfo, asked: u64, answered: u64) -> Finding {
    let apart = asked.saturating_sub(target.clock).max(target.clock.saturating_sub(answered));
    let answer = if apart <= CLOCKS {
        Ok("less than 2 s apart".to_owned())
    } else {
        let which = if target.clock < asked { "behind" } else { "ahead" };
        Err(Error::new(
            Kind::WrongState,
            format!("the clock of the target's host is {}.{} s {which}", apart / 1000, apart % 1000 / 100),
        )
        .detail(
            "Replication lag and the times in logs would mislead, and so would recovery to a point in time.",
        )
        .hint("Synchronize both hosts' clocks (NTP)."))
    };
    Finding::advice("clocks", answer)
}

fn refused(message: String) -> Error {
    Error::new(Kind::TargetRefused, message)
}

fn not_the_primary(
    primary: &PrimaryIdentity,
    target: &TargetInfo,
    same_paths: bool,
) -> Result<String, Error> {
    let shown = target.directory.display();
    let one_machine = machine::may_be_one(primary.boot_id.as_deref(), target.boot_id.as_deref());
    let same_directory = one_machine && target.identity == Some(primary.identity);
    if same_directory {
        return Err(is_itself(&target.directory));
    }
    if same_paths {
        apart(&primary.directory, &target.directory)?;
        for directory in [Some(&target.directory), target.wal_directory.as_ref()].into_iter().flatten() {
            if let Some(own) = primary.own.iter().find(|own| overlap(own, directory)) {
                return Err(refused(format!(
                    "\"{}\" would be written, but the primary uses it",
                    directory.display()
                ))
                .detail(format!(
                    "The primary uses \"{}\", and the target's own pg_wal may be a link.",
                    own.display()
                ))
                .hint("Give the standby directories of its own."));
            }
        }
    }
    if one_machine && target.wal_identity.is_some() && target.wal_identity == primary.wal_identity {
        return Err(refused(format!("pg_wal of target directory \"{shown}\" is the primary's own"))
            .detail("The target's pg_wal is a symbolic link to the primary's WAL directory, or the same directory is mounted in both.")
            .hint("Let the link lead to, or mount, a directory of the standby's own."));
    }
    Ok(format!("\"{shown}\" is not the primary's data directory"))
}

/// Refuses a target that is the primary's data directory, lies inside it, or around it. Both paths are
/// of one host, their symbolic links resolved.
pub fn apart(primary: &Path, target: &Path) -> Result<(), Error> {
    let shown = target.display();
    let how = if target == primary {
        return Err(is_itself(target));
    } else if target.starts_with(primary) {
        "is inside"
    } else if primary.starts_with(target) {
        "contains"
    } else {
        return Ok(());
    };
    Err(refused(format!("target directory \"{shown}\" {how} the primary's data directory"))
        .detail(format!("The primary's data directory is \"{}\".", primary.display()))
        .hint("Give the data directory of the standby."))
}

fn is_itself(directory: &Path) -> Error {
    refused(format!("target directory \"{}\" is the primary itself", directory.display()))
        .detail("Recovering a server from itself would destroy it.")
        .hint("Give the data directory of the standby.")
}

fn stopped(target: &TargetInfo) -> Result<String, Error> {
    match (target.running, &target.doubts.server) {
        (Some(process), _) => Err(running::refusal(&target.directory, process)),
        (None, Some(doubt)) => Err(doubt.clone()),
        (None, None) => Ok("no server is running there".to_owned()),
    }
}

/// Whether a marker tells of a recovery from this primary. A pg_control in place says more: something else made the
/// directory a cluster since, and a recovery has its own out of the way.
fn resumes(primary: &PrimaryIdentity, target: &TargetInfo) -> bool {
    let ours = |identifier| identifier == primary.system_identifier;
    let is_foreign = target.control_in_place
        && target.control.as_ref().is_some_and(|control| !ours(control.system_identifier));
    target.marker.as_ref().is_some_and(|marker| ours(marker.system_identifier)) && !is_foreign
}

fn identity(
    primary: &PrimaryIdentity,
    wal: Option<OwnWal>,
    target: &TargetInfo,
    any_cluster: bool,
) -> Result<String, Error> {
    let shown = target.directory.display();
    if let Some(doubt) = &target.doubts.identity {
        return Err(doubt.clone());
    }
    match target.content {
        Content::Missing => return Ok("the directory does not exist yet".to_owned()),
        Content::Empty => return Ok("the directory is empty".to_owned()),
        Content::Other => {
            return Err(refused(format!("directory \"{shown}\" is not empty and not a PostgreSQL cluster"))
                .detail("It has neither PG_VERSION nor the marker of an interrupted recovery.")
                .hint("Give the standby's data directory, or empty this one by hand."));
        }
        Content::Wal if any_cluster => {
            return Ok("the WAL of a cluster, and nothing else; overwrite is any_cluster".to_owned());
        }
        Content::Wal => {
            return Err(refused(format!("directory \"{shown}\" holds WAL, and nothing that tells whose it is"))
                .detail("A server whose data directory is elsewhere may need it: its pg_wal may be a link to this place, or this one be mounted there.")
                .hint("Give the standby's data directory. If the WAL may be destroyed, empty pg_wal by hand, or set pgpool_recovery.overwrite = any_cluster, or pass it as an option."));
        }
        Content::Cluster => {}
    }
    let resumes = resumes(primary, target);
    let is_ours = match target.system_identifier {
        Some(found) => found == primary.system_identifier && target.marker.is_none(),
        None => false,
    };
    if (resumes || is_ours)
        && let Some(answer) = timeline::ahead(primary, wal, target, resumes, any_cluster)
    {
        return answer;
    }
    // with pg_control in place a backup may have come since a recovery was interrupted there
    if (is_ours || resumes && target.control_in_place)
        && !any_cluster
        && let Some(why) = backup::unused(target)
    {
        return Err(refused(format!("directory \"{shown}\" is a base backup that no server has used"))
            .detail(why)
            .hint("If it may be destroyed, empty the directory, or set pgpool_recovery.overwrite = any_cluster, or pass it as an option. A standby that was made by other means and has never been started is refused as well."));
    }
    if resumes {
        return Ok("a recovery from this primary was interrupted there; it will be completed".to_owned());
    }
    match target.system_identifier {
        Some(found) if is_ours => Ok(format!("a cluster of this system ({found})")),
        _ if any_cluster => Ok("another cluster; overwrite is any_cluster".to_owned()),
        Some(found) => Err(refused(format!("directory \"{shown}\" belongs to another cluster"))
            .detail(belongs_to(primary, target, found))
            .hint("If it may be destroyed, set pgpool_recovery.overwrite = any_cluster, or pass it as an option.")),
        None => Err(refused(format!("cannot tell to which cluster directory \"{shown}\" belongs"))
            .detail("Its pg_control cannot be read, and its WAL does not tell either.")
            .hint("If it may be destroyed, set pgpool_recovery.overwrite = any_cluster, or pass it as an option.")),
    }
}

fn belongs_to(primary: &PrimaryIdentity, target: &TargetInfo, found: u64) -> String {
    let ours = primary.system_identifier;
    match &target.marker {
        Some(marker) if marker.system_identifier != ours => {
            format!(
                "The marker of a recovery there has system identifier {}, this primary has {ours}.",
                marker.system_identifier
            )
        }
        Some(_) => format!(
            "A recovery from this primary was interrupted there, but its pg_control is in place again and has system \
             identifier {found}; this primary has {ours}. Something else made a cluster there since, or the recovery was \
             interrupted before it changed anything."
        ),
        None => format!("Its system identifier is {found}, this primary's is {ours}."),
    }
}

fn version(primary: &PrimaryIdentity, target: &TargetInfo, any_cluster: bool) -> Result<String, Error> {
    let shown = target.directory.display();
    let ours = &primary.major_version;
    if let Some(server) = target.server_version.as_ref().filter(|server| *server != ours) {
        return Err(refused(format!("the server on the target's host is PostgreSQL {server}"))
            .detail(format!("This primary is PostgreSQL {ours}; a standby must have the same major version."))
            .hint("Install the same major version there, or correct bin_directory in agent.toml."));
    }
    if any_cluster {
        return Ok(format!("PostgreSQL {ours} on both sides"));
    }
    if let Some(found) = target.pg_version.as_ref().filter(|found| *found != ours) {
        return Err(refused(format!("directory \"{shown}\" is a cluster of PostgreSQL {found}"))
            .detail(format!("This primary is PostgreSQL {ours}; a standby has the same major version."))
            .hint("If it may be destroyed, set pgpool_recovery.overwrite = any_cluster, or pass it as an option."));
    }
    if let Some(control) = &target.control {
        let (found, ours) =
            ((control.block_size, control.wal_segment_size), (primary.block_size, primary.wal_segment_size));
        if found != ours {
            return Err(refused(format!("directory \"{shown}\" is a cluster of another layout"))
                .detail(format!(
                    "Its block size and WAL segment size are {} and {} bytes, this primary's are {} and {}.",
                    found.0, found.1, ours.0, ours.1
                ))
                .hint("If it may be destroyed, set pgpool_recovery.overwrite = any_cluster, or pass it as an option."));
        }
    }
    Ok(format!("PostgreSQL {ours} on both sides"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replication::hot_standby::HotStandby;
    use crate::replication::recovery_settings::RecoverySettings;
    use crate::wire::protocol::message::{BackupTraces, Doubts, Marker};
    use pgdata::control_file::ControlFile;
    use pgdata::control_file::sample;
    use pgdata::history::Ancestor;

    /// Beyond what the sample of a pg_control has.
    pub(super) const WAL: OwnWal = OwnWal { flushed: Lsn(0x600_0000), agrees: Agreement::Unknown };

    pub(super) fn primary() -> PrimaryIdentity {
        PrimaryIdentity {
            directory: "/srv/primary".into(),
            identity: file(2),
            own: vec!["/srv/primary".into(), "/srv/wal".into()],
            wal_identity: Some(file(3)),
            boot_id: Some("boot".to_owned()),
            system_identifier: 7,
            timeline: 4,
            history: Some(history(&[(1, 0x100_0000), (3, 0x500_0080)], 4)),
            major_version: "15".to_owned(),
            block_size: 8192,
            wal_segment_size: 16 << 20,
            has_independent_nodes: false,
        }
    }

    pub(super) fn history(ancestors: &[(u32, u64)], timeline: u32) -> Lineage {
        let ancestor = |&(timeline, end): &(u32, u64)| Ancestor { timeline, end: Lsn(end) };
        Lineage::new(timeline, &ancestors.iter().map(ancestor).collect::<Vec<_>>())
    }

    fn file(inode: u64) -> FileId {
        FileId { device: 1, inode }
    }

    pub(super) fn target() -> TargetInfo {
        TargetInfo {
            session: String::new(),
            directory: "/srv/standby".into(),
            content: Content::Cluster,
            control: Some(ControlFile::parse(&sample(7)).expect("valid")),
            control_in_place: true,
            timeline: Some(4),
            history: primary().history,
            landmark: None,
            unarchived: Ok(0),
            system_identifier: Some(7),
            marker: None,
            running: None,
            pg_version: Some("15".to_owned()),
            server_version: Some("15".to_owned()),
            server_release: Some("15.18".to_owned()),
            libraries: None,
            identity: Some(file(9)),
            wal_identity: None,
            wal_directory: None,
            configuration_can_be_extended: true,
            boot_id: Some("boot".to_owned()),
            kept: Vec::new(),
            own_settings: Vec::new(),
            external_configuration: None,
            includes_myrecovery: false,
            recovery_settings: RecoverySettings::default(),
            hot_standby: HotStandby::default(),
            standby: None,
            backup: BackupTraces::default(),
            peer: None,
            addresses: Some(Vec::new()),
            network: None,
            version: String::new(),
            clock: 0,
            starter: Ok(String::new()),
            elsewhere: None,
            listening: None,
            recovery: None,
            linked_wal: None,
            doubts: Doubts::default(),
        }
    }

    pub(super) fn first_refusal(target: &TargetInfo, any_cluster: bool) -> Option<(&'static str, Error)> {
        check_target(&primary(), Some(WAL), target, true, any_cluster)
            .into_iter()
            .find_map(|finding| Some((finding.step, finding.answer.err()?)))
    }

    pub(super) fn refusal(change: impl FnOnce(&mut TargetInfo)) -> Option<&'static str> {
        let mut target = target();
        change(&mut target);
        first_refusal(&target, false).map(|(step, error)| {
            assert!(error.detail.is_some() && error.hint.is_some(), "{error:?}");
            step
        })
    }

    #[test]
    fn a_stopped_cluster_of_this_system_is_accepted() {
        assert!(first_refusal(&target(), false).is_none());
        assert_eq!(strategy(&primary(), &target()), Strategy::Delta);
        for content in [Content::Missing, Content::Empty] {
            let target =
                TargetInfo { content, control: None, system_identifier: None, pg_version: None, ..target() };
            assert!(first_refusal(&target, false).is_none());
            assert_eq!(strategy(&primary(), &target), Strategy::Full);
        }
    }

    #[test]
    fn the_primary_is_never_a_target() {
        let step = Some("target_is_not_primary");
        assert_eq!(refusal(|target| target.directory = "/srv/primary".into()), step);
        assert_eq!(refusal(|target| target.identity = Some(file(2))), step);
        assert_eq!(refusal(|target| target.directory = "/srv/primary/base".into()), step);
        assert_eq!(refusal(|target| target.directory = "/srv".into()), step);
        assert_eq!(refusal(|target| target.wal_identity = Some(file(3))), step);
        assert_eq!(refusal(|target| target.wal_directory = Some("/srv/primary/precious".into())), step);
        assert_eq!(refusal(|target| target.wal_directory = Some("/srv/wal".into())), step);
        assert_eq!(refusal(|target| target.directory = "/srv/wal/standby".into()), step);
        // in another container of the same machine the same path is another directory
        let other = TargetInfo { directory: "/srv/primary".into(), ..target() };
        let accepted = |target: &TargetInfo| {
            let findings = check_target(&primary(), Some(WAL), target, false, false);
            findings.iter().all(|finding| finding.answer.is_ok())
        };
        assert!(accepted(&other));
        // on another machine equal inodes mean nothing
        let elsewhere = TargetInfo { identity: Some(file(2)), boot_id: Some("other".to_owned()), ..target() };
        assert!(accepted(&elsewhere));
        // where it cannot be told whether it is another machine, they mean that
        let unknown = TargetInfo { boot_id: None, ..elsewhere };
        assert!(!accepted(&unknown));
    }

    #[test]
    fn what_cannot_be_told_is_refused() {
        let doubt = || Some(Error::new(Kind::Io, "cannot tell").detail("Why.").hint("What to do."));
        assert_eq!(refusal(|target| target.doubts.server = doubt()), Some("target_stopped"));
        assert_eq!(refusal(|target| target.doubts.identity = doubt()), Some("target_identity"));
        assert_eq!(refusal(|target| target.doubts.wal = doubt()), Some("target_wal"));
        let mut empty = TargetInfo { content: Content::Empty, ..target() };
        empty.doubts.identity = doubt();
        assert!(first_refusal(&empty, true).is_some(), "any_cluster is no answer");
    }

    #[test]
    fn clocks_that_differ_are_told() {
        let at = |clock| {
            clocks(&TargetInfo { clock, ..target() }, 100_000, 100_500).answer.map_err(|error| error.message)
        };
        for clock in [98_000, 100_200, 102_500] {
            assert!(at(clock).is_ok(), "{clock}");
        }
        assert_eq!(at(97_900), Err("the clock of the target's host is 2.1 s behind".to_owned()));
        assert_eq!(at(3_700_500), Err("the clock of the target's host is 3600.0 s ahead".to_owned()));
    }

    #[test]
    fn what_is_not_ours_is_refused() {
        assert_eq!(refusal(|target| target.running = Some(42)), Some("target_stopped"));
        assert_eq!(refusal(|target| target.content = Content::Other), Some("target_identity"));
        assert_eq!(refusal(|target| target.system_identifier = Some(8)), Some("target_identity"));
        assert_eq!(refusal(|target| target.system_identifier = None), Some("target_identity"));
        assert_eq!(refusal(|target| target.pg_version = Some("14".to_owned())), Some("target_version"));
        assert_eq!(refusal(|target| target.server_version = Some("16".to_owned())), Some("target_version"));
        let other_layout = |target: &mut TargetInfo| {
            if let Some(control) = &mut target.control {
                control.wal_segment_size = 1 << 20;
            }
        };
        assert_eq!(refusal(other_layout), Some("target_version"));
    }

    #[test]
    fn any_cluster_allows_another_cluster_but_no_other_directory() {
        let other = TargetInfo { system_identifier: Some(8), pg_version: Some("14".to_owned()), ..target() };
        assert!(first_refusal(&other, true).is_none());
        let photos = TargetInfo { content: Content::Other, ..target() };
        assert_eq!(first_refusal(&photos, true).map(|(step, _)| step), Some("target_identity"));
        let running = TargetInfo { running: Some(1), ..target() };
        assert_eq!(first_refusal(&running, true).map(|(step, _)| step), Some("target_stopped"));
        let server = TargetInfo { server_version: Some("16".to_owned()), ..target() };
        assert_eq!(first_refusal(&server, true).map(|(step, _)| step), Some("target_version"));
    }

    #[test]
    fn a_broken_off_recovery_is_completed_by_its_own_primary_only() {
        let marker = |system_identifier| Some(Marker { system_identifier, timeline: 1, ..Marker::default() });
        let ours = TargetInfo { marker: marker(7), system_identifier: None, control: None, ..target() };
        assert!(first_refusal(&ours, false).is_none());
        assert_eq!(strategy(&primary(), &ours), Strategy::Resume);
        let theirs = TargetInfo { marker: marker(8), ..target() };
        assert_eq!(first_refusal(&theirs, false).map(|(step, _)| step), Some("target_identity"));
    }
}
