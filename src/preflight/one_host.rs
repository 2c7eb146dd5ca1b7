//! A target on the primary's own host: what only there can harm the primary.
//!
//! A standby replays the creation of a tablespace at the path the primary gave it. On the primary's host that is the
//! primary's own directory: replay empties it, and both servers write there from then on. And a copy may take the
//! space that the primary's WAL needs.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use pgpool_recovery_core::error::{Error, Kind, Result};
use pgpool_recovery_core::manifest::Side;
use pgpool_recovery_core::manifest::scan::{tablespace_links, tablespace_paths};
use pgpool_recovery_core::sys::FileId;
use pgpool_recovery_core::sys::machine;
use pgpool_recovery_core::sys::space::{Pool, WatchedSpace};
use pgpool_recovery_core::wire::protocol::message::{PrimarySpace, TargetInfo};

use crate::pg::{catalog, log, tablespace_lock, threads};
use crate::preflight::PrimaryFacts;
use crate::run::Run;

/// How long a command that makes or drops a tablespace is waited for. It takes a moment, if nothing else holds it up.
const CREATION: Duration = Duration::from_secs(10);

/// How often that is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// Where this primary writes.
pub(crate) fn primary_space(facts: &PrimaryFacts) -> Result<PrimarySpace> {
    let (mut devices, mut pools) = (Vec::new(), Vec::new());
    for directory in &facts.identity().own {
        let opened = File::open(directory).and_then(|opened| Ok((opened.metadata()?.dev(), opened)));
        match opened {
            Ok((device, _)) if devices.contains(&device) => {}
            Ok((device, opened)) => {
                devices.push(device);
                pools.extend(
                    Pool::of(&opened).map_err(Error::on_path("ask for the free space of", directory))?,
                );
            }
            // a tablespace that was dropped meanwhile
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(Error::at("stat directory", directory, &error)),
        }
    }
    Ok(PrimarySpace {
        boot_id: facts.identity().boot_id.clone(),
        devices,
        pools,
        max_wal_size: facts.primary.max_wal_size,
    })
}

/// The file system of this primary's WAL: a slot keeps WAL there wherever the target is.
pub(crate) fn wal_space(facts: &PrimaryFacts) -> Result<WatchedSpace> {
    WatchedSpace::of_wal(&facts.data_directory.join("pg_wal"), facts.primary.max_wal_size)
}

/// The file systems of this primary that the target is written to; `locations`: device and inode of each of its
/// directories.
pub(crate) fn shared_space(
    facts: &PrimaryFacts,
    target: &TargetInfo,
    locations: &[FileId],
) -> Result<WatchedSpace> {
    if !machine::may_be_one(facts.identity().boot_id.as_deref(), target.boot_id.as_deref()) {
        return Ok(WatchedSpace::default());
    }
    let written: HashSet<u64> = locations.iter().map(|location| location.device).collect();
    let own = facts.identity().own.iter().map(PathBuf::as_path);
    WatchedSpace::shared(own, &written, facts.primary.max_wal_size)
}

/// The primary's tablespaces at one moment, where the target may be on its host.
pub(crate) struct Tablespaces {
    data_directory: PathBuf,
    before: Option<Vec<(u32, String)>>,
}

impl Tablespaces {
    pub(crate) fn now(facts: &PrimaryFacts, target: &TargetInfo) -> Result<Self> {
        let data_directory = facts.data_directory.clone();
        let before = machine::may_be_one(facts.identity().boot_id.as_deref(), target.boot_id.as_deref())
            .then(|| settled_links(&data_directory))
            .transpose()?;
        Ok(Self { data_directory, before })
    }

    /// Fails if there is a tablespace that was not there then. One that was dropped does no harm: the standby
    /// drops its own.
    pub(crate) fn demand_unchanged(&self) -> Result<()> {
        let Some(before) = &self.before else { return Ok(()) };
        let now = tablespace_links(&self.data_directory, Side::Primary)?;
        match now.iter().find(|link| !before.contains(link)) {
            None => Ok(()),
            Some((oid, location)) => Err(would_be_shared(*oid, Path::new(location))
                .hint("Run the recovery again with this tablespace in tablespace_mapping, and create none while it runs.")),
        }
    }
}

/// This primary's tablespaces whose creation is in its WAL already. The link of one may be there before that.
fn settled_links(data_directory: &Path) -> Result<Vec<(u32, String)>> {
    let end = Instant::now() + CREATION;
    loop {
        let look = || tablespace_links(data_directory, Side::Primary);
        if let Some(links) = tablespace_lock::while_tablespaces_stand(look) {
            return links;
        }
        if Instant::now() >= end {
            return Err(Error::new(Kind::InUse, "a tablespace is being created, changed or dropped on the primary")
                .detail(format!(
                    "Another transaction has locked pg_tablespace for more than {} seconds. The standby is on the primary's own host, \
                     where it must have each tablespace in a directory of its own.",
                    CREATION.as_secs()
                ))
                .hint("Find it in pg_locks and pg_stat_activity, and run the recovery again when it has ended. One that waits for a synchronous standby can be canceled with pg_cancel_backend: it has committed."));
        }
        threads::pause(LOOK);
    }
}

/// [`demand_own_tablespaces`] of this primary, with a line in the log where it cannot be told.
pub(crate) fn demand_own_tablespaces_of(target: TargetInfo, run: &mut Run<'_>) -> Result<()> {
    let own = catalog::data_directory()?;
    if let Some(unknown) = run.blocking(|_| demand_own_tablespaces(Path::new(&own), &target))? {
        log::log(&format!("pgpool_recovery: cannot tell whether the standby shares a tablespace: {unknown}"));
    }
    Ok(())
}

/// Refuses to start a standby on this host that does not have every tablespace of the primary `primary` in a
/// directory of its own: it would replay the creation of the others. Returns why that cannot be told where it need not be.
/// Not for the main thread: it looks at the standby's directories.
fn demand_own_tablespaces(primary: &Path, target: &TargetInfo) -> Result<Option<Error>> {
    if target.running.is_some()
        || !machine::may_be_one(machine::boot_id().as_deref(), target.boot_id.as_deref())
    {
        return Ok(None);
    }
    let links = tablespace_paths(primary, Side::Primary)?;
    if links.is_empty() {
        return Ok(None);
    }
    match look(&target.directory) {
        Ok(Some(seen)) if could_share(&seen, target.identity, rustix::process::geteuid().as_raw()) => {}
        Ok(_) => return Ok(None),
        // another user's: with the permissions of the file system the server there cannot write here
        Err(error) if error.kind == Kind::PermissionDenied => return Ok(Some(error)),
        Err(error) => return Err(error),
    }
    let standby = tablespace_paths(&target.directory, Side::Target)?;
    for (oid, location) in links {
        let its = standby.iter().find(|(its_oid, _)| *its_oid == oid).map(|(_, its)| its);
        let is_own = match its {
            Some(its) => identity(its)? != identity(&location)?,
            None => false,
        };
        if !is_own {
            return Err(would_be_shared(oid, &location)
                .hint("Run the recovery again with this tablespace in pgpool_recovery.tablespace_mapping."));
        }
    }
    Ok(None)
}

/// Whether the target's directory, as it is seen here, is that of a standby that could write where this primary does.
fn could_share(seen: &fs::Metadata, target: Option<FileId>, user: u32) -> bool {
    // an agent may see other mounts: the same path is another directory there
    let is_it = Some(FileId::from(seen)) == target;
    // the server runs as the owner of its directory, and another user may not write into this primary's tablespaces,
    // nor this process look into that user's
    is_it && seen.uid() == user
}

/// A directory; `None` if there is none.
fn look(directory: &Path) -> Result<Option<fs::Metadata>> {
    match fs::metadata(directory) {
        Ok(metadata) => Ok(Some(metadata)),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(Error::at("stat directory", directory, &error)),
    }
}

/// Device and inode of a directory; `None` if there is none.
fn identity(directory: &Path) -> Result<Option<FileId>> {
    Ok(look(directory)?.map(|metadata| FileId::from(&metadata)))
}

fn would_be_shared(oid: u32, location: &Path) -> Error {
    Error::new(
        Kind::WrongState,
        format!("tablespace {oid} in \"{}\" was created after the standby was copied", location.display()),
    )
    .detail(
        "The standby is on the primary's own host. It would replay the creation with the primary's path, empty that \
         directory and write there.",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_standby_of_the_same_user_in_the_same_directory_can_share_a_tablespace() {
        let seen = fs::metadata("/").expect("there");
        let identity = FileId::from(&seen);
        assert!(could_share(&seen, Some(identity), seen.uid()));
        assert!(!could_share(&seen, Some(identity), seen.uid() + 1), "another user's");
        assert!(
            !could_share(&seen, Some(FileId { inode: identity.inode + 1, ..identity }), seen.uid()),
            "another directory"
        );
        assert!(!could_share(&seen, None, seen.uid()), "missing");
    }
}
