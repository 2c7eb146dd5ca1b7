//! Looking at a target directory without changing it.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::policy::Cluster;
use super::{configured, readiness, running, small_file};
use crate::cancel::Cancel;
use crate::clock;
use crate::control_file::{ControlFile, PG_CONTROL, PG_CONTROL_FILE_SIZE, State, wal_system_identifier};
use crate::error::{Error, Kind, Result};
use crate::exclude::{CONTROL_ASIDE, MARKER, MYRECOVERY_CONF};
use crate::path::RelPath;
use crate::process;
use crate::protocol::message::{Content, Marker, Standby, Target};
use crate::standby;

/// What is in the cluster's directory.
pub fn inspect(
    cluster: &Cluster,
    keep: &[RelPath],
    session: &str,
    peer: Option<IpAddr>,
    cancel: &Cancel,
) -> Result<Target> {
    let directory = &cluster.data_directory;
    let metadata = match fs::metadata(directory) {
        Ok(metadata) => Some(metadata),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            return Err(Error::io(format_args!("look at directory \"{}\"", directory.display()), &error));
        }
    };
    if metadata.as_ref().is_some_and(|metadata| !metadata.is_dir()) {
        return Err(Error::new(
            Kind::TargetRefused,
            format!("\"{}\" is not a directory", directory.display()),
        )
        .hint("Give the data directory of the standby."));
    }
    let owner = rustix::process::geteuid().as_raw();
    if let Some(metadata) = metadata.as_ref().filter(|metadata| metadata.uid() != owner) {
        return Err(Error::new(
            Kind::TargetRefused,
            format!("directory \"{}\" belongs to another user", directory.display()),
        )
        .detail(format!("Its owner has user id {}, this process {owner}.", metadata.uid()))
        .hint("PostgreSQL starts only in a directory of its own OS user: chown it."));
    }
    let control = read_control(directory);
    let configuration = cluster.config_file.clone().unwrap_or_else(|| directory.join("postgresql.conf"));
    let settings = small_file::text(&configuration);
    let wal = linked_wal(directory);
    let keeps_settings =
        cluster.config_file.is_some() || keep.iter().any(|path| path.as_str() == "postgresql.conf");
    let kept_settings = settings.as_deref().filter(|_| keeps_settings);
    let mut starter = readiness::starter(cluster);
    let elsewhere = if keeps_settings && configuration.exists() {
        // A configuration that cannot be read now may be complete after the copy: worth knowing, no refusal. The
        // start asks again.
        configured::elsewhere(cluster, cancel).unwrap_or_else(|error| {
            starter = starter.clone().and(Err(error));
            None
        })
    } else {
        None
    };
    Ok(Target {
        session: session.to_owned(),
        content: content(directory, metadata.is_some())?,
        system_identifier: control
            .as_ref()
            .map(|control| control.system_identifier)
            .or_else(|| identifier_from_wal(directory)),
        control,
        marker: marker(directory).1,
        running: metadata.as_ref().and_then(|_| running::server(directory)),
        pg_version: pg_version(directory),
        server_version: server_version(cluster, cancel)?,
        identity: metadata.as_ref().map(|metadata| (metadata.dev(), metadata.ino())),
        wal_identity: wal.as_ref().and_then(|wal| {
            let metadata = fs::metadata(wal).ok()?;
            Some((metadata.dev(), metadata.ino()))
        }),
        wal_directory: wal,
        configuration_can_be_extended: match &cluster.config_file {
            // extended in place, by appending
            Some(file) => settings.is_some() && fs::OpenOptions::new().append(true).open(file).is_ok(),
            None => settings.is_some() && is_regular(&configuration),
        },
        boot_id: boot_id(),
        kept: keep
            .iter()
            .filter(|path| fs::symlink_metadata(directory.join(path)).is_ok())
            .cloned()
            .collect(),
        includes_myrecovery: settings
            .as_deref()
            .is_some_and(|text| standby::reads_myrecovery(text, &myrecovery_path(directory))),
        external_configuration: cluster.config_file.clone(),
        standby: standby_of(directory),
        peer,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        clock: clock::now(),
        starter,
        elsewhere,
        listening: kept_settings.map(standby::listening),
        recovery: None,
        directory: directory.clone(),
    })
}

/// Whether the marker of a recovery is there, and what it says if it can be read.
pub(super) fn marker(directory: &Path) -> (bool, Option<Marker>) {
    let path = directory.join(MARKER);
    let is_there = fs::symlink_metadata(&path).is_ok();
    (is_there, small_file::text(&path).and_then(|text| serde_json::from_str(&text).ok()))
}

/// How the standby in `directory` is set to follow its primary.
pub fn standby_of(directory: &Path) -> Option<Standby> {
    small_file::text(&directory.join(MYRECOVERY_CONF)).map(|text| standby::parse_myrecovery(&text))
}

/// Where the directory's pg_wal is, if it is a link that leads somewhere.
pub fn linked_wal(directory: &Path) -> Option<PathBuf> {
    let link = directory.join("pg_wal");
    let is_link = fs::symlink_metadata(&link).is_ok_and(|metadata| metadata.is_symlink());
    is_link.then(|| link.canonicalize().ok()).flatten().filter(|directory| directory.is_dir())
}

/// myrecovery.conf as a configuration names it.
pub fn myrecovery_path(directory: &Path) -> String {
    directory.join(MYRECOVERY_CONF).display().to_string()
}

/// A configuration that is a link is not extended: what it leads to may belong to others.
fn is_regular(configuration: &Path) -> bool {
    fs::symlink_metadata(configuration).is_ok_and(|metadata| metadata.is_file())
}

/// What tells one boot of one machine from all others.
pub fn boot_id() -> Option<String> {
    small_file::text(Path::new("/proc/sys/kernel/random/boot_id")).map(|text| text.trim().to_owned())
}

fn content(directory: &Path, exists: bool) -> Result<Content> {
    if !exists {
        return Ok(Content::Missing);
    }
    // global/ and base/ too: a cluster whose PG_VERSION was lost is still a cluster
    let looks_like_cluster = directory.join("PG_VERSION").exists()
        || directory.join(MARKER).exists()
        || (directory.join("global").is_dir() && directory.join("base").is_dir());
    if looks_like_cluster {
        return Ok(Content::Cluster);
    }
    let entries = fs::read_dir(directory)
        .map_err(Error::on(format_args!("list directory \"{}\"", directory.display())))?;
    let foreign = entries.filter_map(|entry| Some(entry.ok()?.file_name())).any(|name| name != "lost+found");
    Ok(if foreign { Content::Other } else { Content::Empty })
}

/// The content of PG_VERSION, unless it is none: a run that broke off may have left the file empty.
fn pg_version(directory: &Path) -> Option<String> {
    let text = small_file::text(&directory.join("PG_VERSION"))?;
    let version = text.trim();
    let is_version = version.starts_with(|c: char| c.is_ascii_digit());
    is_version.then(|| version.to_owned())
}

/// pg_control, in place or set aside by a broken-off recovery. A damaged one counts as none: what
/// matters is whom the directory belongs to, and that can still be told by its WAL.
fn read_control(directory: &Path) -> Option<ControlFile> {
    [PG_CONTROL, CONTROL_ASIDE].iter().find_map(|name| {
        let bytes = small_file::head(&directory.join(name), PG_CONTROL_FILE_SIZE)?;
        ControlFile::parse(&bytes).ok()
    })
}

/// Whether the last server here shut down in order and no recovery has begun since: then all that it wrote was
/// synced.
pub(super) fn was_shut_down(directory: &Path) -> bool {
    let is_unmarked = [MARKER, CONTROL_ASIDE].iter().all(|name| {
        fs::symlink_metadata(directory.join(name)).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    });
    let control = read_control(directory);
    is_unmarked
        && control.is_some_and(|control| matches!(control.state, State::ShutDown | State::ShutDownInRecovery))
}

fn identifier_from_wal(directory: &Path) -> Option<u64> {
    let mut segments: Vec<PathBuf> = fs::read_dir(directory.join("pg_wal"))
        .ok()?
        .filter_map(|entry| {
            let name = entry.ok()?.file_name().into_string().ok()?;
            let is_segment = name.len() == 24 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
            is_segment.then(|| directory.join("pg_wal").join(name))
        })
        .collect();
    segments.sort();
    segments.iter().find_map(|segment| wal_system_identifier(&small_file::head(segment, 64)?))
}

/// The major version of the server that will be started here.
fn server_version(cluster: &Cluster, cancel: &Cancel) -> Result<Option<String>> {
    let postgres = cluster.bin_directory.join("postgres");
    let outcome = process::run(process::command(&postgres, ["--version"]), Duration::from_secs(10), cancel)
        .map_err(|error| error.hint("Check bin_directory: it must hold the server's programs."))?;
    Ok(major_version(&outcome.stdout))
}

/// The major version in what `postgres --version` says: "postgres (PostgreSQL) 15.18 (Debian ...)", "postgres
/// (PostgreSQL) 18beta1".
fn major_version(said: &str) -> Option<String> {
    let version = said.lines().find_map(|line| line.split_once("(PostgreSQL)"))?.1.trim_start();
    let digits: String = version.chars().take_while(char::is_ascii_digit).collect();
    (!digits.is_empty()).then_some(digits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control_file::tests::sample;

    fn cluster(directory: &Path) -> Cluster {
        Cluster {
            data_directory: directory.to_owned(),
            bin_directory: "/usr/bin".into(),
            config_file: None,
            start_command: None,
            log_file: None,
            tablespace_roots: Vec::new(),
        }
    }

    fn put(directory: &Path, name: &str, content: &[u8]) {
        let path = directory.join(name);
        fs::create_dir_all(path.parent().expect("parent")).expect("make");
        fs::write(path, content).expect("write");
    }

    #[test]
    fn content_is_told_apart() {
        let top = tempfile::tempdir().expect("temporary directory");
        let data = top.path().join("data");
        assert_eq!(content(&data, false).expect("look"), Content::Missing);
        fs::create_dir_all(data.join("lost+found")).expect("make");
        assert_eq!(content(&data, true).expect("look"), Content::Empty);
        put(&data, "holiday.jpg", b"x");
        assert_eq!(content(&data, true).expect("look"), Content::Other);
        put(&data, "PG_VERSION", b"15\n");
        assert_eq!(content(&data, true).expect("look"), Content::Cluster);
    }

    #[test]
    fn a_version_that_is_none_does_not_count() {
        let data = tempfile::tempdir().expect("temporary directory");
        assert_eq!(pg_version(data.path()), None);
        for (content, version) in [("15\n", Some("15")), ("9.6", Some("9.6")), ("", None), ("\0\0\0", None)] {
            put(data.path(), "PG_VERSION", content.as_bytes());
            assert_eq!(pg_version(data.path()).as_deref(), version, "{content:?}");
        }
    }

    #[test]
    fn a_damaged_cluster_is_known_by_its_wal() {
        let data = tempfile::tempdir().expect("temporary directory");
        put(data.path(), PG_CONTROL, b"");
        assert_eq!(read_control(data.path()), None);
        let mut head = vec![0; 64];
        head[..4].copy_from_slice(&[0x10, 0xD1, 0x02, 0x00]);
        head[24..32].copy_from_slice(&77_u64.to_le_bytes());
        put(data.path(), "pg_wal/000000010000000000000003", &head);
        assert_eq!(identifier_from_wal(data.path()), Some(77));
        put(data.path(), CONTROL_ASIDE, &sample(78));
        assert_eq!(read_control(data.path()).map(|control| control.system_identifier), Some(78));
    }

    #[test]
    fn a_servers_version_is_found_among_other_words() {
        assert_eq!(major_version("postgres (PostgreSQL) 15.18 (Debian 15.18-1)").as_deref(), Some("15"));
        assert_eq!(major_version("postgres (PostgreSQL) 18beta1").as_deref(), Some("18"));
        assert_eq!(major_version("some words\npostgres (PostgreSQL) 13.1").as_deref(), Some("13"));
        assert_eq!(major_version("libpq.so.5: no version information available"), None);
    }

    #[test]
    fn the_loaders_warnings_are_no_version() {
        let top = tempfile::tempdir().expect("temporary directory");
        let program = "echo 'a b 99.9' >&2; echo 'postgres (PostgreSQL) 15.18'";
        process::tests::script(&top.path().join("postgres"), program);
        let cluster = Cluster { bin_directory: top.path().to_owned(), ..cluster(top.path()) };
        assert_eq!(server_version(&cluster, &Cancel::new()).expect("ran").as_deref(), Some("15"));
    }

    #[test]
    fn missing_programs_are_named() {
        let data = tempfile::tempdir().expect("temporary directory");
        let error =
            inspect(&cluster(data.path()), &[], "s", None, &Cancel::new()).expect_err("no postgres there");
        assert!(error.to_string().contains("/usr/bin/postgres") && error.hint.is_some(), "{error:?}");
    }
}
