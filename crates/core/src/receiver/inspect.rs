//! Looking at a target directory without changing it.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::policy::Cluster;
use super::{readiness, running, small_file};
use crate::cancel::Cancel;
use crate::clock;
use crate::control_file::{ControlFile, PG_CONTROL, PG_CONTROL_FILE_SIZE, State, wal_system_identifier};
use crate::error::{Error, Kind, Result};
use crate::exclude::{CONTROL_ASIDE, MARKER, MYRECOVERY_CONF};
use crate::path::RelPath;
use crate::process;
use crate::protocol::message::{Content, Doubts, LinkedWal, Marker, Standby, Target};
use crate::{standby, target};

/// What is in the cluster's directory.
pub fn inspect(
    cluster: &Cluster,
    keep: &[RelPath],
    session: &str,
    peer: Option<IpAddr>,
    cancel: &Cancel,
) -> Result<Target> {
    inspect_opened(cluster, None, keep, session, peer, cancel)
}

/// What is in the cluster's directory. Of one that is open to be written that one is judged, and no other that its path
/// may lead to by now.
pub(super) fn inspect_opened(
    cluster: &Cluster,
    opened: Option<&target::Target>,
    keep: &[RelPath],
    session: &str,
    peer: Option<IpAddr>,
    cancel: &Cancel,
) -> Result<Target> {
    let directory = &cluster.data_directory;
    let look = opened.and_then(target::Target::look).unwrap_or_else(|| directory.clone());
    let mut doubts = Doubts::default();
    let metadata = match fs::metadata(&look) {
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
    let control = read_control(&look);
    let control = or_doubt(control, &mut doubts.identity, directory, PG_CONTROL);
    let marker = marker(&look).map(|(_, marker)| marker);
    let marker = or_doubt(marker, &mut doubts.identity, directory, MARKER);
    let pg_version = or_doubt(pg_version(&look), &mut doubts.identity, directory, "PG_VERSION");
    let kept = kept(&look, keep);
    let kept = or_doubt(kept.map(Some), &mut doubts.identity, directory, "the files to keep");
    let running = match metadata.as_ref().map_or(Ok(None), |_| running::server_at(&look, directory)) {
        Ok(running) => running,
        Err(error) => {
            doubts.server = Some(error);
            None
        }
    };
    let configuration = cluster.config_file.clone().unwrap_or_else(|| directory.join("postgresql.conf"));
    let settings = small_file::text(&configuration);
    let wal = match metadata.as_ref().map_or(Ok(None), |_| wal(opened, &look, directory)) {
        Ok(wal) => wal,
        Err(error) => {
            doubts.wal = Some(error);
            None
        }
    };
    let keeps_settings =
        cluster.config_file.is_some() || keep.iter().any(|path| path.as_str() == "postgresql.conf");
    let kept_settings = settings.as_deref().filter(|_| keeps_settings);
    Ok(Target {
        session: session.to_owned(),
        content: content(&look, directory, metadata.is_some())?,
        system_identifier: control
            .as_ref()
            .map(|control| control.system_identifier)
            .or_else(|| identifier_from_wal(&look)),
        control,
        marker,
        running,
        pg_version,
        server_version: server_version(cluster, cancel)?,
        identity: metadata.as_ref().map(|metadata| (metadata.dev(), metadata.ino())),
        wal_identity: wal.as_ref().map(|wal| wal.identity),
        linked_wal: wal.as_ref().map(|wal| wal.content),
        wal_directory: wal.map(|wal| wal.path),
        configuration_can_be_extended: match &cluster.config_file {
            // extended in place, by appending
            Some(file) => settings.is_some() && fs::OpenOptions::new().append(true).open(file).is_ok(),
            None => settings.is_some() && is_regular(&configuration),
        },
        boot_id: boot_id(),
        kept: kept.unwrap_or_default(),
        includes_myrecovery: settings
            .as_deref()
            .is_some_and(|text| standby::reads_myrecovery(text, &myrecovery_path(directory))),
        external_configuration: cluster.config_file.clone(),
        standby: standby_of(&look),
        peer,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        clock: clock::now(),
        starter: readiness::starter(cluster),
        listening: kept_settings.map(standby::listening),
        recovery: None,
        doubts,
        directory: directory.clone(),
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
pub(super) fn marker(directory: &Path) -> io::Result<(bool, Option<Marker>)> {
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

/// How the standby in `directory` is set to follow its primary.
pub fn standby_of(directory: &Path) -> Option<Standby> {
    small_file::text(&directory.join(MYRECOVERY_CONF)).map(|text| standby::parse_myrecovery(&text))
}

/// A pg_wal that is a link.
struct Wal {
    path: PathBuf,
    identity: (u64, u64),
    content: LinkedWal,
}

fn wal(opened: Option<&target::Target>, look: &Path, directory: &Path) -> Result<Option<Wal>> {
    let (path, identity, look) = if let Some(target) = opened {
        let Some((path, identity, look)) = target.wal()? else { return Ok(None) };
        (path, identity, look)
    } else {
        let opened = fs::File::open(look)
            .map_err(Error::on(format_args!("open directory \"{}\"", directory.display())))?;
        let Some(wal) = target::linked_wal(opened, directory)? else {
            return Ok(None);
        };
        (wal.path, wal.identity, look.join("pg_wal"))
    };
    let content = wal_of(&look)
        .map_err(Error::on(format_args!("read WAL in \"{}\"", path.display())))
        .map_err(|error| error.hint("Let the link lead to a directory of the standby's own."))?;
    Ok(Some(Wal { path, identity, content }))
}

/// Whose WAL a directory holds: its newest segment that says so tells.
fn wal_of(directory: &Path) -> io::Result<LinkedWal> {
    let mut segments = segments(directory)?;
    segments.sort();
    let is_empty = segments.is_empty();
    for segment in segments.iter().rev() {
        let head = small_file::read(segment, 64)?;
        if let Some(identifier) = head.and_then(|head| wal_system_identifier(&head)) {
            return Ok(LinkedWal::Of(identifier));
        }
    }
    Ok(if is_empty { LinkedWal::Empty } else { LinkedWal::Unknown })
}

fn segments(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut segments = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let is_segment = entry
            .file_name()
            .to_str()
            .is_some_and(|name| name.len() == 24 && name.bytes().all(|byte| byte.is_ascii_hexdigit()));
        if is_segment {
            segments.push(entry.path());
        }
    }
    Ok(segments)
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

fn content(look: &Path, shown: &Path, exists: bool) -> Result<Content> {
    if !exists {
        return Ok(Content::Missing);
    }
    let failed = |name: &str| {
        let message = format!("look at \"{}\"", shown.join(name).display());
        move |error| Error::io(message, &error)
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
    let failed = |error| Error::io(format_args!("list directory \"{}\"", shown.display()), &error);
    let mut has_wal = false;
    for entry in fs::read_dir(look).map_err(failed)? {
        match entry.map_err(failed)?.file_name().to_str() {
            Some("lost+found") => {}
            Some("pg_wal") => has_wal = true,
            _ => return Ok(Content::Other),
        }
    }
    if has_wal { wal_volume(&look.join("pg_wal")).map_err(failed) } else { Ok(Content::Empty) }
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
            let holds_wal = !segments(wal)?.is_empty();
            return Ok(if holds_wal { Content::Cluster } else { Content::Other });
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

/// pg_control, in place or set aside by a broken-off recovery. A damaged one counts as none: what
/// matters is whom the directory belongs to, and that can still be told by its WAL.
fn read_control(directory: &Path) -> io::Result<Option<ControlFile>> {
    for name in [PG_CONTROL, CONTROL_ASIDE] {
        let bytes = small_file::read(&directory.join(name), PG_CONTROL_FILE_SIZE)?;
        if let Some(control) = bytes.and_then(|bytes| ControlFile::parse(&bytes).ok()) {
            return Ok(Some(control));
        }
    }
    Ok(None)
}

/// Whether the last server here shut down in order and no recovery has begun since: then all that it wrote was
/// synced.
pub(super) fn was_shut_down(directory: &Path) -> bool {
    let is_unmarked = [MARKER, CONTROL_ASIDE].iter().all(|name| {
        fs::symlink_metadata(directory.join(name)).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    });
    // what cannot be read is not known to be shut down
    let control = read_control(directory).ok().flatten();
    is_unmarked
        && control.is_some_and(|control| matches!(control.state, State::ShutDown | State::ShutDownInRecovery))
}

/// Without an answer the directory is refused, so an error needs none of its own.
fn identifier_from_wal(directory: &Path) -> Option<u64> {
    let mut segments = segments(&directory.join("pg_wal")).ok()?;
    segments.sort();
    segments.iter().find_map(|segment| wal_system_identifier(&small_file::head(segment, 64)?))
}

/// The major version of the server that will be started here.
fn server_version(cluster: &Cluster, cancel: &Cancel) -> Result<Option<String>> {
    let postgres = cluster.bin_directory.join("postgres");
    let outcome = process::run(process::command(&postgres, ["--version"]), Duration::from_secs(10), cancel)
        .map_err(|error| error.hint("Check bin_directory: it must hold the server's programs."))?;
    // "postgres (PostgreSQL) 15.18 (Debian ...)", "postgres (PostgreSQL) 18beta1"
    let digits = outcome
        .output
        .split_whitespace()
        .nth(2)
        .map(|version| version.chars().take_while(char::is_ascii_digit).collect::<String>());
    Ok(digits.filter(|digits| !digits.is_empty()))
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
        assert_eq!(content(&data, &data, false).expect("look"), Content::Missing);
        fs::create_dir_all(data.join("lost+found")).expect("make");
        assert_eq!(content(&data, &data, true).expect("look"), Content::Empty);
        fs::create_dir_all(data.join("pg_wal/lost+found")).expect("make");
        assert_eq!(content(&data, &data, true).expect("look"), Content::Empty, "a volume for WAL");
        put(&data, "pg_wal/letter.txt", b"x");
        assert_eq!(content(&data, &data, true).expect("look"), Content::Other);
        put(&data, "pg_wal/000000010000000000000003", b"x");
        assert_eq!(content(&data, &data, true).expect("look"), Content::Cluster, "its WAL is somebody's");
        fs::remove_dir_all(data.join("pg_wal")).expect("remove");
        put(&data, "holiday.jpg", b"x");
        assert_eq!(content(&data, &data, true).expect("look"), Content::Other);
        put(&data, "PG_VERSION", b"15\n");
        assert_eq!(content(&data, &data, true).expect("look"), Content::Cluster);
    }

    #[test]
    fn a_version_that_is_none_does_not_count() {
        let data = tempfile::tempdir().expect("temporary directory");
        assert_eq!(pg_version(data.path()).expect("missing"), None);
        for (content, version) in [("15\n", Some("15")), ("9.6", Some("9.6")), ("", None), ("\0\0\0", None)] {
            put(data.path(), "PG_VERSION", content.as_bytes());
            assert_eq!(pg_version(data.path()).expect("read").as_deref(), version, "{content:?}");
        }
    }

    #[test]
    fn a_damaged_cluster_is_known_by_its_wal() {
        let data = tempfile::tempdir().expect("temporary directory");
        put(data.path(), PG_CONTROL, b"");
        assert_eq!(read_control(data.path()).expect("damaged"), None);
        let mut head = vec![0; 64];
        head[..4].copy_from_slice(&[0x10, 0xD1, 0x02, 0x00]);
        head[24..32].copy_from_slice(&77_u64.to_le_bytes());
        put(data.path(), "pg_wal/000000010000000000000003", &head);
        assert_eq!(identifier_from_wal(data.path()), Some(77));
        put(data.path(), CONTROL_ASIDE, &sample(78));
        let control = read_control(data.path()).expect("read").expect("aside");
        assert_eq!(control.system_identifier, 78);
    }

    fn segment(identifier: u64) -> Vec<u8> {
        let mut head = vec![0; 64];
        head[..4].copy_from_slice(&[0x10, 0xD1, 0x02, 0x00]);
        head[24..32].copy_from_slice(&identifier.to_le_bytes());
        head
    }

    #[test]
    fn the_newest_wal_tells_whose_it_is() {
        let wal = tempfile::tempdir().expect("temporary directory");
        let found = || wal_of(wal.path()).expect("read");
        put(wal.path(), "archive_status/x", b"");
        assert_eq!(found(), LinkedWal::Empty);
        put(wal.path(), "00000001000000000000000A", &[0; 64]);
        assert_eq!(found(), LinkedWal::Unknown);
        put(wal.path(), "000000010000000000000008", &segment(7));
        put(wal.path(), "000000010000000000000009", &segment(8));
        assert_eq!(found(), LinkedWal::Of(8), "an allocated segment without content says nothing");
    }

    /// Something that is there and cannot be read, by root either.
    fn unreadable(directory: &Path, name: &str) {
        let path = directory.join(name);
        fs::create_dir_all(path.parent().expect("parent")).expect("make");
        std::os::unix::fs::symlink(path.file_name().expect("name"), &path).expect("link");
    }

    #[test]
    fn what_cannot_be_read_is_a_doubt_and_not_missing() {
        let programs = tempfile::tempdir().expect("temporary directory");
        std::os::unix::fs::symlink("/bin/true", programs.path().join("postgres")).expect("link");
        let look = |directory: &Path, keep: &[RelPath]| {
            let cluster = Cluster { bin_directory: programs.path().to_owned(), ..cluster(directory) };
            inspect(&cluster, keep, "s", None, &Cancel::new()).expect("looks").doubts
        };
        for name in [PG_CONTROL, CONTROL_ASIDE, MARKER, "PG_VERSION"] {
            let data = tempfile::tempdir().expect("temporary directory");
            put(data.path(), "base/1", b"");
            assert_eq!(look(data.path(), &[]), Doubts::default(), "{name}");
            unreadable(data.path(), name);
            let doubts = look(data.path(), &[]);
            assert!(doubts.identity.is_some() && doubts.server.is_none(), "{name}: {doubts:?}");
        }
        let data = tempfile::tempdir().expect("temporary directory");
        unreadable(data.path(), "conf.d");
        let keep = RelPath::parse("conf.d/site.conf").expect("valid");
        assert!(look(data.path(), &[keep]).identity.is_some(), "a file to keep that may be there");

        let data = tempfile::tempdir().expect("temporary directory");
        unreadable(data.path(), "postmaster.pid");
        assert!(look(data.path(), &[]).server.is_some());
        let data = tempfile::tempdir().expect("temporary directory");
        std::os::unix::fs::symlink("/not/mounted", data.path().join("pg_wal")).expect("link");
        let doubt = look(data.path(), &[]).wal.expect("a link to nowhere");
        assert!(doubt.detail.expect("a detail").contains("/not/mounted"));
    }

    #[test]
    fn what_is_open_is_judged_and_not_what_took_its_place() {
        let programs = tempfile::tempdir().expect("temporary directory");
        std::os::unix::fs::symlink("/bin/true", programs.path().join("postgres")).expect("link");
        let parent = tempfile::tempdir().expect("temporary directory");
        let data = parent.path().join("data");
        put(&data, PG_CONTROL, &sample(7));
        put(&data, "base/1", b"");
        let cluster = Cluster { bin_directory: programs.path().to_owned(), ..cluster(&data) };
        let opened = target::Target::open(&data).expect("open");
        fs::rename(&data, parent.path().join("moved")).expect("rename");
        put(&data, PG_CONTROL, &sample(8));
        let look = |opened| inspect_opened(&cluster, opened, &[], "s", None, &Cancel::new()).expect("looks");
        assert_eq!(look(Some(&opened)).system_identifier, Some(7));
        assert_eq!(look(None).system_identifier, Some(8));
    }

    #[test]
    fn missing_programs_are_named() {
        let data = tempfile::tempdir().expect("temporary directory");
        let error =
            inspect(&cluster(data.path()), &[], "s", None, &Cancel::new()).expect_err("no postgres there");
        assert!(error.to_string().contains("/usr/bin/postgres") && error.hint.is_some(), "{error:?}");
    }
}
