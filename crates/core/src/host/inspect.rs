//! Looking at a target directory without changing it.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use pgdata::configuration::{MAX_BYTES, content as configuration_content};
use pgdata::control_file::{ControlFile, PG_CONTROL, PG_CONTROL_FILE_SIZE, State};

use super::policy::Cluster;
use super::{configured, places, readiness, references, running};
use crate::data_directory::{DataDirectory, is_mount_point, temporary_name};
use crate::error::{Error, Kind, Result};
use crate::manifest::exclude::{AUTO_CONF, CONTROL_ASIDE, MARKER, POSTGRESQL_CONF};
use crate::manifest::path::RelPath;
use crate::replication::hot_standby::HotStandby;
use crate::replication::{recovery_settings, standby};
use crate::sys::FileId;
use crate::sys::addresses::own_addresses;
use crate::sys::cancel::Cancel;
use crate::sys::clock;
use crate::sys::libraries::Libraries;
use crate::sys::machine::{boot_id, network};
use crate::sys::process;
use crate::sys::small_file;
use crate::wire::protocol::message::{Content, Doubts, Marker, TargetInfo};

mod backup;
mod configuration;
mod wal;

#[cfg(test)]
mod tests;

pub(crate) use configuration::{
    auto_configuration, configuration, log_directory, main_configuration, says_fsync_off,
};
pub use configuration::{myrecovery_path, standby_of};

/// What is in the cluster's directory.
pub fn inspect(
    cluster: &Cluster,
    keep: &[RelPath],
    session: &str,
    peer: Option<IpAddr>,
    cancel: &Cancel,
) -> Result<TargetInfo> {
    inspect_opened(cluster, None, keep, session, peer, cancel)
}

/// What is in the cluster's directory. Of one that is open to be written that one is looked at, and no other that its path
/// may lead to by now.
pub(crate) fn inspect_opened(
    cluster: &Cluster,
    opened: Option<&DataDirectory>,
    keep: &[RelPath],
    session: &str,
    peer: Option<IpAddr>,
    cancel: &Cancel,
) -> Result<TargetInfo> {
    let directory = &cluster.data_directory;
    let look = opened.and_then(DataDirectory::look).unwrap_or_else(|| directory.clone());
    let mut doubts = Doubts::default();
    let metadata = own_directory(&look, directory)?;
    doubts.identity = places::demand_outside_clusters(directory).err();
    let control = control(&look);
    let control = or_doubt(control, &mut doubts.identity, directory, PG_CONTROL);
    let (control, control_in_place) =
        control.map_or((None, false), |(control, in_place)| (Some(control), in_place));
    let timeline = wal::timeline(&look, control.as_ref());
    let timeline = or_doubt(timeline, &mut doubts.identity, directory, "pg_wal");
    let history = wal::history(&look, timeline);
    let history = unless_doubtful(history, &mut doubts.identity);
    let landmark = wal::landmark(&look, control.as_ref().filter(|_| control_in_place), timeline, cancel);
    let landmark = unless_doubtful(landmark, &mut doubts.identity);
    let backup = backup::traces(&look).map(Some);
    let backup = or_doubt(backup, &mut doubts.identity, directory, "the files of a backup");
    let marker = marker(&look).map(|(_, marker)| marker);
    let marker = or_doubt(marker, &mut doubts.identity, directory, MARKER);
    let pg_version = or_doubt(pg_version(&look), &mut doubts.identity, directory, "PG_VERSION");
    let kept = kept(&look, keep);
    let kept = or_doubt(kept.map(Some), &mut doubts.identity, directory, "the files to keep");
    let running = metadata.as_ref().map_or(Ok(None), |_| running::server_at(&look, directory));
    let running = unless_doubtful(running, &mut doubts.server);
    let wal = metadata.as_ref().map_or(Ok(None), |_| wal::linked(opened, &look, directory));
    let wal = unless_doubtful(wal, &mut doubts.wal);
    let wal_identity = wal.as_ref().map_or_else(|| wal::identity(&look), |wal| Ok(Some(wal.identity)));
    let wal_identity = unless_doubtful(wal_identity, &mut doubts.wal);
    let main = main_configuration(cluster);
    let keeps = |name: &str| keep.iter().any(|path| path.as_str() == name);
    let settings = configuration::may_be_there(&main).then(|| configuration(cluster));
    let kept_settings = settings.as_ref().filter(|_| cluster.config_file.is_some() || keeps(POSTGRESQL_CONF));
    let kept_auto = keeps(AUTO_CONF).then(|| auto_configuration(directory));
    let is_readable = configuration_content(&main, MAX_BYTES).is_ok();
    let mut kept = kept.unwrap_or_default();
    let auto = directory.join(AUTO_CONF);
    let own = [(&main, kept_settings), (&auto, kept_auto.as_ref())];
    let needed = || {
        let mut needed = references::of_libpq(directory, std::env::home_dir())?;
        needed.extend(references::of_kept(directory, &kept)?);
        for (file, settings) in own.into_iter().filter_map(|(file, settings)| Some((file, settings?))) {
            needed.extend(references::in_directory(directory, file, settings)?);
        }
        Ok(Some(needed))
    };
    let needed = needed().inspect_err(|error| {
        doubts.identity = doubts.identity.take().or_else(|| references::cannot_be_kept(error));
    });
    let needed = or_doubt(needed, &mut doubts.identity, directory, "files that the standby needs");
    for path in needed.into_iter().flatten() {
        if !keep.contains(&path) && !kept.contains(&path) {
            kept.push(path);
        }
    }
    let mut starter = readiness::starter(cluster);
    // an interrupted recovery brings its configuration with the last files only, and is completed by the next one
    let is_interrupted = marker.is_some() && !control_in_place;
    if let Err(unknown) = configured::demand_known(cluster)
        && !is_interrupted
    {
        doubts.identity.get_or_insert(unknown);
    }
    let elsewhere = if kept_settings.is_some() {
        // A configuration that cannot be read now may be complete after the copy: worth knowing, no refusal. The
        // start asks again.
        configured::elsewhere(cluster, cancel).unwrap_or_else(|error| {
            starter = starter.clone().and(Err(error));
            None
        })
    } else {
        None
    };
    let server_release = server_release(cluster, cancel)?;
    Ok(TargetInfo {
        session: session.to_owned(),
        content: content(&look, directory, metadata.is_some(), &kept)?,
        system_identifier: control
            .as_ref()
            .map(|control| control.system_identifier)
            .or_else(|| wal::identifier_from_wal(&look)),
        control,
        control_in_place,
        timeline,
        history,
        landmark,
        unarchived: wal::unarchived(&look).map_err(Error::on("list pg_wal/archive_status of the target")),
        marker,
        running,
        pg_version,
        server_version: server_release.as_deref().map(major_version),
        server_release,
        libraries: Some(Libraries::of_program(&cluster.bin_directory.join("postgres"), cancel)),
        identity: metadata.as_ref().map(FileId::from),
        wal_identity,
        linked_wal: wal.as_ref().map(|wal| wal.content),
        wal_directory: wal.map(|wal| wal.path),
        configuration_can_be_extended: match &cluster.config_file {
            // extended in place, by appending
            Some(file) => is_readable && fs::OpenOptions::new().append(true).open(file).is_ok(),
            // replaced by one with another line
            None => {
                is_readable && configuration::is_regular(&main) && is_mount_point(&main).is_ok_and(|is| !is)
            }
        },
        boot_id: boot_id(),
        kept,
        own_settings: kept_settings.map(references::of_one_host).unwrap_or_default(),
        includes_myrecovery: settings.as_ref().is_some_and(recovery_settings::reads_last),
        recovery_settings: recovery_settings::judge(kept_settings, kept_auto.as_ref()),
        hot_standby: HotStandby::of_kept(kept_settings, kept_auto.as_ref()),
        external_configuration: cluster.config_file.clone(),
        standby: standby_of(&look),
        backup: backup.unwrap_or_default(),
        peer,
        addresses: own_addresses().ok(),
        network: network(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        clock: clock::now(),
        starter,
        elsewhere,
        listening: kept_settings.map(standby::listening),
        recovery: None,
        doubts,
        directory: directory.clone(),
    })
}

/// The latest timeline that the server with this pg_control has been on. What cannot be told is an error.
pub(crate) fn latest_timeline(directory: &Path, control: &ControlFile) -> Result<u32> {
    let wal = directory.join("pg_wal");
    let latest = wal::timeline(directory, Some(control)).map_err(Error::on_path("read directory", &wal))?;
    Ok(latest.unwrap_or(control.timeline))
}

/// A directory that can be a target of this user's; `None` if it is missing.
fn own_directory(look: &Path, shown: &Path) -> Result<Option<fs::Metadata>> {
    let metadata = match fs::metadata(look) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            return Err(Error::at("stat directory", shown, &error));
        }
    };
    if !metadata.is_dir() {
        let message = format!("\"{}\" is not a directory", shown.display());
        return Err(Error::new(Kind::TargetRefused, message).hint("Give the data directory of the standby."));
    }
    let owner = rustix::process::geteuid().as_raw();
    if metadata.uid() != owner {
        let message = format!("directory \"{}\" belongs to another user", shown.display());
        return Err(Error::new(Kind::TargetRefused, message)
            .detail(format!("Its owner has user id {}, this process {owner}.", metadata.uid()))
            .hint("PostgreSQL starts only in a directory of its own OS user: chown it."));
    }
    Ok(Some(metadata))
}

/// What was found; else the error becomes the doubt.
fn unless_doubtful<T>(found: Result<Option<T>>, doubt: &mut Option<Error>) -> Option<T> {
    found.unwrap_or_else(|error| {
        doubt.get_or_insert(error);
        None
    })
}

/// What was found; else the error becomes the doubt, unless there is one already.
fn or_doubt<T>(
    found: io::Result<Option<T>>,
    doubt: &mut Option<Error>,
    directory: &Path,
    what: &str,
) -> Option<T> {
    found.unwrap_or_else(|error| {
        let message = format!("cannot tell what \"{}\" holds", directory.display());
        doubt.get_or_insert_with(|| {
            Error::new(Kind::TargetRefused, message)
                .detail(format!("{what} could not be read there: {error}."))
                .hint("Make it readable for the receiver's OS user, or remove it if the directory may be replaced.")
        });
        None
    })
}

/// Whether the marker of a recovery is there, and what it says, if it says anything.
pub(crate) fn marker(directory: &Path) -> io::Result<(bool, Option<Marker>)> {
    let path = directory.join(MARKER);
    if !is_there(&path)? {
        return Ok((false, None));
    }
    let text = small_file::read(&path, 1 << 20)?;
    Ok((true, text.and_then(|text| serde_json::from_slice(&text).ok())))
}

/// Which of the files to keep are there.
fn kept(directory: &Path, keep: &[RelPath]) -> io::Result<Vec<RelPath>> {
    let mut kept = Vec::new();
    for path in keep {
        if is_there(&directory.join(path))? {
            kept.push(path.clone());
        }
    }
    Ok(kept)
}

/// Whether something has this name. What cannot be told is an error.
fn is_there(path: &Path) -> io::Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(error) if is_missing(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// What a directory is. One that holds nothing but files of the standby's own, which survive, counts as empty.
pub(crate) fn content(look: &Path, shown: &Path, exists: bool, keep: &[RelPath]) -> Result<Content> {
    if !exists {
        return Ok(Content::Missing);
    }
    let failed = |name: &str| {
        let path = shown.join(name);
        move |error| Error::at("stat file", path, &error)
    };
    let is_there = |name: &str| is_there(&look.join(name)).map_err(failed(name));
    let is_directory = |name: &str| match fs::metadata(look.join(name)) {
        Ok(found) => Ok(found.is_dir()),
        Err(error) if is_missing(&error) => Ok(false),
        Err(error) => Err(failed(name)(error)),
    };
    // global/ and base/ too: a cluster whose PG_VERSION was lost is still a cluster
    let looks_like_cluster =
        is_there("PG_VERSION")? || is_there(MARKER)? || (is_directory("global")? && is_directory("base")?);
    if looks_like_cluster {
        return Ok(Content::Cluster);
    }
    let failed = |error| Error::at("list directory", shown, &error);
    let mut has_wal = false;
    // of a run that died while it wrote its marker, before anything else
    let unfinished_marker = temporary_name(MARKER);
    for entry in fs::read_dir(look).map_err(failed)? {
        match entry.map_err(failed)?.file_name().to_str() {
            Some("lost+found") => {}
            Some(name) if name == unfinished_marker => {}
            Some("pg_wal") => has_wal = true,
            Some(name) if is_kept(look, name, keep).map_err(failed)? => {}
            _ => return Ok(Content::Other),
        }
    }
    if has_wal { wal_volume(&look.join("pg_wal")).map_err(failed) } else { Ok(Content::Empty) }
}

/// Whether an entry is one of the files to keep, or a directory that holds nothing else.
fn is_kept(directory: &Path, path: &str, keep: &[RelPath]) -> io::Result<bool> {
    let Ok(path) = RelPath::parse(path) else { return Ok(false) };
    if keep.iter().any(|kept| path.is_at_or_below(kept.as_str())) {
        return Ok(true);
    }
    let place = directory.join(&path);
    let may_hold = keep.iter().any(|kept| kept.is_at_or_below(path.as_str()));
    if !may_hold || !fs::symlink_metadata(&place)?.is_dir() {
        return Ok(false);
    }
    for entry in fs::read_dir(&place)? {
        match entry?.file_name().to_str() {
            Some(name) if is_kept(directory, &format!("{path}/{name}"), keep)? => {}
            _ => return Ok(false),
        }
    }
    Ok(true)
}

/// What a directory is that holds only pg_wal, perhaps a volume for the WAL of a standby that is going to be made.
fn wal_volume(wal: &Path) -> io::Result<Content> {
    let entries = match fs::read_dir(wal) {
        Ok(entries) => entries,
        // a link that leads nowhere is told apart
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Content::Empty),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => return Ok(Content::Other),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let name = entry?.file_name();
        if !matches!(name.to_str(), Some("lost+found" | "archive_status" | "summaries")) {
            // WAL tells whose it is
            let holds_wal = !wal::segments(wal)?.is_empty();
            return Ok(if holds_wal { Content::Wal } else { Content::Other });
        }
    }
    Ok(Content::Empty)
}

/// The content of PG_VERSION, unless it is none: a run that broke off may have left the file empty.
fn pg_version(directory: &Path) -> io::Result<Option<String>> {
    let text = small_file::read(&directory.join("PG_VERSION"), 64)?.unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let version = text.trim();
    let is_version = version.starts_with(|c: char| c.is_ascii_digit());
    Ok(is_version.then(|| version.to_owned()))
}

/// pg_control, and whether it is in place or set aside by an interrupted recovery. A damaged one counts as none: what
/// matters is whom the directory belongs to, and that can still be told by its WAL.
fn control(directory: &Path) -> io::Result<Option<(ControlFile, bool)>> {
    for name in [PG_CONTROL, CONTROL_ASIDE] {
        let bytes = small_file::read(&directory.join(name), PG_CONTROL_FILE_SIZE)?;
        if let Some(control) = bytes.and_then(|bytes| ControlFile::parse(&bytes).ok()) {
            return Ok(Some((control, name == PG_CONTROL)));
        }
    }
    Ok(None)
}

/// Whether the last server here shut down in order and no recovery has begun since: then all that it wrote was
/// synced.
pub(crate) fn was_shut_down(directory: &Path) -> bool {
    let is_unmarked = [MARKER, CONTROL_ASIDE].iter().all(|name| {
        fs::symlink_metadata(directory.join(name)).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    });
    // what cannot be read is not known to be shut down
    let control = control(directory).ok().flatten();
    is_unmarked
        && control
            .is_some_and(|(control, _)| matches!(control.state, State::ShutDown | State::ShutDownInRecovery))
}

/// The release of the server that will be started here.
fn server_release(cluster: &Cluster, cancel: &Cancel) -> Result<Option<String>> {
    let postgres = cluster.bin_directory.join("postgres");
    let outcome = process::run(process::command(&postgres, ["--version"]), Duration::from_secs(10), cancel)
        .map_err(|error| error.hint("Check bin_directory: it must hold the server's programs."))?;
    if !outcome.status.success() {
        // a server that cannot even say its version would not start after the copy
        return Err(Error::new(
            Kind::TargetRefused,
            "the server's program on the target's host cannot be run",
        )
        .detail(format!(
            "\"{} --version\" {} and said:\n{}",
            postgres.display(),
            outcome.describe(),
            outcome.said()
        ))
        .hint("Complete the installation of PostgreSQL there, or correct bin_directory in agent.toml."));
    }
    Ok(release(&outcome.stdout))
}

/// The release in what `postgres --version` says: "postgres (PostgreSQL) 15.18 (Debian ...)", "postgres
/// (PostgreSQL) 18beta1".
fn release(said: &str) -> Option<String> {
    let said = said.lines().find_map(|line| line.split_once("(PostgreSQL)"))?.1;
    let release = said.split_whitespace().next()?;
    release.starts_with(|c: char| c.is_ascii_digit()).then(|| release.to_owned())
}

/// The major version of a release: `15` of `15.18`, `18` of `18beta1`.
fn major_version(release: &str) -> String {
    release.chars().take_while(char::is_ascii_digit).collect()
}
