//! What the configuration that a standby keeps needs of the standby's own data directory: files that it includes or
//! names. They are kept with it, because without them the server does not start, or starts as another one.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use pgdata::configuration::{self, Reading};

use crate::error::{Error, Kind, Result};
use crate::manifest::exclude::is_of_the_copy;
use crate::manifest::path::RelPath;

/// Parameters that name a file or directory, relative to the data directory.
const NAMED: &[&str] = &[
    "ssl_cert_file",
    "ssl_key_file",
    "ssl_ca_file",
    "ssl_crl_file",
    "ssl_crl_dir",
    "ssl_dh_params_file",
    "krb_server_keyfile",
    "hba_file",
    "ident_file",
    // which certificate for which name of this host, from 19 on
    "hosts_file",
    // the log of the failure that made the recovery necessary
    "log_directory",
];

/// What a server with `ssl = on` reads where nothing else is said.
const TLS_DEFAULTS: &[(&str, &str)] =
    &[("ssl_cert_file", "server.crt"), ("ssl_key_file", "server.key"), ("hosts_file", "pg_hosts.conf")];

/// Files of the primary that a standby gets unless `keep_files` lists them, even where its configuration names them.
const FOLLOWS_THE_PRIMARY: &[&str] = &["pg_hba.conf", "pg_ident.conf"];

/// The settings of one host, besides those in [`NAMED`]: where a standby's own configuration has them, the primary's
/// ALTER SYSTEM has no say.
const OF_ONE_HOST: &[&str] = &[
    "port",
    "listen_addresses",
    "unix_socket_directories",
    "unix_socket_group",
    "unix_socket_permissions",
    "external_pid_file",
    "cluster_name",
    "bonjour_name",
    "log_filename",
    "ssl",
    "ssl_passphrase_command",
];

/// Most links that the kernel follows on one path (MAXSYMLINKS in include/linux/namei.h).
const LINKS: usize = 40;

/// What libpq reads in its user's home directory: the passwords, and certificates for TLS.
const OF_LIBPQ: &[&str] = &[".pgpass", ".postgresql"];

/// What is there of the files and directories beneath `directory` to which a configuration refers, but for data.
pub(crate) fn in_directory(
    directory: &Path,
    main: &Path,
    configuration: &Reading,
) -> io::Result<Vec<RelPath>> {
    let text = |name| configuration.value(name).map(configuration::path);
    let included = configuration.files.iter().filter(|file| *file != main).chain(&configuration.directories);
    let mut paths: Vec<&Path> = included.map(AsRef::as_ref).collect();
    paths.extend(NAMED.iter().filter_map(|name| text(name)));
    if configuration.value("ssl").is_some_and(is_on) {
        paths.extend(
            TLS_DEFAULTS.iter().filter(|(name, _)| text(name).is_none()).map(|(_, file)| Path::new(*file)),
        );
    }
    there(directory, paths)
}

/// What is there of libpq's files beneath `directory`, where the home directory of its user is or lies in that: without
/// them the standby could not log in to its primary.
pub(crate) fn of_libpq(directory: &Path, home: Option<PathBuf>) -> io::Result<Vec<RelPath>> {
    let Some(home) = home.filter(|home| home.is_absolute()) else { return Ok(Vec::new()) };
    let paths: Vec<PathBuf> = OF_LIBPQ.iter().map(|name| home.join(name)).collect();
    there(directory, paths.iter().map(PathBuf::as_path))
}

/// What is there of the files beneath `directory` to which those lead that are kept: one of these may be a link.
pub(crate) fn of_kept(directory: &Path, kept: &[RelPath]) -> io::Result<Vec<RelPath>> {
    there(directory, kept.iter().map(AsRef::as_ref))
}

fn there<'a>(directory: &Path, paths: impl IntoIterator<Item = &'a Path>) -> io::Result<Vec<RelPath>> {
    let (mut found, mut unnamed) = (Vec::new(), Vec::new());
    for path in paths {
        for part in beneath(directory, path)? {
            match as_kept(directory, &part) {
                Ok(path) => found.push(path),
                Err(error) => unnamed.push((part, error)),
            }
        }
    }
    found.retain(may_be_kept);
    found.sort();
    found.dedup();
    // with a directory that is kept all stays that it holds
    let is_held = |part: &Path| found.iter().any(|kept| part.starts_with(kept));
    match unnamed.into_iter().find(|(part, _)| !is_held(part)) {
        Some((_, error)) => Err(error),
        None => Ok(found),
    }
}

/// A path as one that is kept. What cannot be told so would be removed.
fn as_kept(directory: &Path, part: &Path) -> io::Result<RelPath> {
    let unnamed = |why: &str| {
        let message =
            format!("the configuration needs {:?}, which cannot be kept: {why}", directory.join(part));
        io::Error::new(io::ErrorKind::InvalidFilename, message)
    };
    let text = part.to_str().ok_or_else(|| unnamed("its name is not UTF-8"))?;
    RelPath::parse(text).map_err(|error| unnamed(&error.message))
}

/// The refusal of a file that is there and cannot be kept; `None` if the error is the system's.
pub(crate) fn cannot_be_kept(error: &io::Error) -> Option<Error> {
    (error.kind() == io::ErrorKind::InvalidFilename && error.raw_os_error().is_none()).then(|| {
        Error::new(Kind::TargetRefused, error.to_string())
            .detail("A recovery would remove it, and the standby would not start, or start as another one.")
            .hint("Rename it, and change what names it in the configuration.")
    })
}

/// Refuses a password file that a recovery of `directory` would remove.
pub(crate) fn demand_kept_passfile(directory: &Path, passfile: &str, keep: &[RelPath]) -> Result<()> {
    if passfile.is_empty() {
        return Ok(());
    }
    let found = beneath(directory, Path::new(passfile))
        .and_then(|found| found.iter().map(|part| as_kept(directory, part)).collect::<io::Result<Vec<_>>>())
        .map_err(Error::on_path("stat file", passfile))?;
    let is_kept = |found: &RelPath| keep.iter().any(|kept| found.is_at_or_below(kept.as_str()));
    match found.into_iter().find(|found| !is_kept(found)) {
        Some(found) => {
            let message = format!("the password file \"{passfile}\" lies in the directory that is replaced");
            Err(Error::new(Kind::TargetRefused, message)
                .detail(format!(
                    "It is \"{found}\" in \"{}\". The recovery would remove it, and the standby could not log in.",
                    directory.display()
                ))
                .hint(
                    "Move it out of the data directory and set pgpool_recovery.passfile to its new path, or add it to \
                     pgpool_recovery.keep_files.",
                ))
        }
        None => Ok(()),
    }
}

/// Which settings of one host a configuration makes.
pub(crate) fn of_one_host(configuration: &Reading) -> Vec<String> {
    let made = OF_ONE_HOST.iter().chain(NAMED).filter(|name| configuration.value(name).is_some());
    made.map(|name| (*name).to_owned()).collect()
}

fn may_be_kept(path: &RelPath) -> bool {
    !is_of_the_copy(path.as_str()) && !FOLLOWS_THE_PRIMARY.contains(&path.as_str())
}

/// What a path needs beneath the directory: the file that it leads to, or each link on the way there, if that lies in the
/// directory and is there. What cannot be told is an error: without an answer the file would be removed.
fn beneath(directory: &Path, path: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut next = Some(directory.join(path));
    // a server cannot follow more, either
    for _ in 0..LINKS {
        let Some(absolute) = next.take() else { break };
        let Some(inside) = inside(directory, &absolute) else {
            // the link to a file may lie outside, and the file not
            next = fs::read_link(&absolute).ok().and_then(|leads_to| Some(absolute.parent()?.join(leads_to)));
            continue;
        };
        let (mut part, mut components) = (PathBuf::new(), inside.components());
        while let Some(component) = components.next() {
            part.push(component);
            let place = directory.join(&part);
            match fs::symlink_metadata(&place) {
                Ok(metadata) if metadata.is_symlink() => {
                    let above = place.parent().unwrap_or(directory);
                    next = Some(above.join(fs::read_link(&place)?).join(components.collect::<PathBuf>()));
                    break;
                }
                Ok(_) => {}
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
                {
                    return Ok(found);
                }
                Err(error) => return Err(error),
            }
        }
        found.push(part);
    }
    Ok(found)
}

/// The path as one beneath the directory, if it lies there.
fn inside(directory: &Path, absolute: &Path) -> Option<PathBuf> {
    let by_name = || {
        let inside = absolute.strip_prefix(directory).ok()?;
        // what leads up again is told by where it leads to
        let is_plain =
            inside.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
        is_plain.then(|| inside.to_owned())
    };
    // The configuration may name the directory by another path. Where that cannot be followed, a server cannot read the
    // file either.
    let by_its_directory = || {
        let parent = absolute.parent()?.canonicalize().ok()?;
        Some(parent.strip_prefix(directory).ok()?.join(absolute.file_name()?))
    };
    let inside = by_name().or_else(by_its_directory)?;
    let parts = inside.components().filter(|part| *part != Component::CurDir);
    let inside: PathBuf = parts.collect();
    // the directory itself is no part of it
    (!inside.as_os_str().is_empty()).then_some(inside)
}

/// Whether a boolean parameter is on: PostgreSQL takes any beginning of these words that is not ambiguous.
pub(in crate::host) fn is_on(value: &[u8]) -> bool {
    let value = value.to_ascii_lowercase();
    let begins = |word: &[u8], least: usize| value.len() >= least && word.starts_with(&value);
    value == b"1" || begins(b"on", 2) || begins(b"true", 1) || begins(b"yes", 1)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn names(directory: &Path, text: &str) -> Vec<String> {
        let main = directory.join("postgresql.conf");
        fs::write(&main, text).expect("write");
        let found = in_directory(directory, &main, &Reading::of(&main, None)).expect("told");
        found.iter().map(|path| path.as_str().to_owned()).collect()
    }

    #[test]
    fn what_a_configuration_refers_to_is_found() {
        let top = tempfile::tempdir().expect("temporary directory");
        let directory = top.path().canonicalize().expect("resolved").join("data");
        for name in [
            "conf.d/a.conf",
            "own/hba",
            "own/key",
            "host.conf",
            "server.crt",
            "server.key",
            "logs/x",
            "own/hosts",
            "pg_hba.conf",
            "pg_hosts.conf",
        ] {
            let path = directory.join(name);
            fs::create_dir_all(path.parent().expect("parent")).expect("make");
            fs::write(path, "").expect("write");
        }
        fs::create_dir_all(directory.join("base/5")).expect("make");
        symlink(top.path(), directory.join("link")).expect("link");
        symlink(&directory, top.path().join("other")).expect("link");
        fs::write(top.path().join("outside.conf"), "").expect("write");
        let text = format!(
            "include 'host.conf'\ninclude_dir 'conf.d'\ninclude_if_exists 'none.conf'\ninclude 'link/outside.conf'\n\
             hba_file = '{}/other/own/hba'\nssl_key_file = './own/key'\nssl = 'tru'\nhosts_file = 'own/hosts'\n\
             log_directory = '{}/logs'\n",
            top.path().display(),
            directory.display(),
        );
        let expected = [
            "conf.d",
            "conf.d/a.conf",
            "host.conf",
            "link",
            "logs",
            "own/hba",
            "own/hosts",
            "own/key",
            "server.crt",
        ];
        assert_eq!(names(&directory, &text), expected);
        assert_eq!(names(&directory, "ssl = on"), ["pg_hosts.conf", "server.crt", "server.key"]);
        assert_eq!(names(&directory, "ssl = off\nssl_key_file = ''\nlog_directory = 'nowhere'"), [""; 0]);
    }

    #[test]
    fn what_has_no_name_in_utf8_is_not_taken_for_missing() {
        use std::ffi::OsStr;
        use std::os::unix::ffi::OsStrExt;

        let top = tempfile::tempdir().expect("temporary directory");
        let directory = top.path().canonicalize().expect("resolved");
        let main = directory.join("postgresql.conf");
        let needed = |text: &[u8]| {
            fs::write(&main, text).expect("write");
            in_directory(&directory, &main, &Reading::of(&main, None))
        };
        assert_eq!(needed(b"include_if_exists 'own-\xe9.conf'").expect("there is none"), []);
        fs::write(directory.join(OsStr::from_bytes(b"own-\xe9.conf")), "").expect("write");
        fs::create_dir_all(directory.join(OsStr::from_bytes(b"\xe9"))).expect("make");
        fs::write(directory.join(OsStr::from_bytes(b"\xe9/key")), "").expect("write");
        symlink(OsStr::from_bytes(b"own-\xe9.conf"), directory.join("link.conf")).expect("link");
        let texts = [&b"include 'own-\xe9.conf'"[..], b"ssl_key_file '\xe9/key'", b"include 'link.conf'"];
        for text in texts {
            let error = needed(text).expect_err("it would be removed");
            assert!(error.to_string().contains("\\xE9") && error.to_string().contains("UTF-8"), "{error}");
            assert!(cannot_be_kept(&error).is_some_and(|refusal| refusal.hint.is_some()), "{error}");
        }
        fs::create_dir(directory.join("conf.d")).expect("make");
        fs::write(directory.join(OsStr::from_bytes(b"conf.d/\xe9.conf")), "").expect("write");
        let kept = needed(b"include_dir 'conf.d'").expect("the directory is kept");
        assert_eq!(kept, [RelPath::parse("conf.d").expect("valid")]);
        let passfile = directory.join("pass");
        symlink(OsStr::from_bytes(b"\xe9/key"), &passfile).expect("link");
        demand_kept_passfile(&directory, passfile.to_str().expect("UTF-8"), &[])
            .expect_err("it would be removed");
    }

    #[test]
    fn data_is_never_kept() {
        let top = tempfile::tempdir().expect("temporary directory");
        let directory = top.path().canonicalize().expect("resolved");
        for name in ["base/5", "global", "pg_wal", "pg_tblspc"] {
            fs::create_dir_all(directory.join(name)).expect("make");
        }
        fs::write(directory.join("pg_hba.conf"), "").expect("write");
        fs::write(directory.join("standby.signal"), "").expect("write");
        for text in [
            "log_directory = 'base'",
            "log_directory = 'pg_wal'",
            "log_directory = '.'",
            "log_directory = '..'",
            "ssl_key_file = 'global/../base/5'",
            "ssl_ca_file = 'standby.signal'",
            "include_dir = 'global'",
            "hba_file = 'pg_hba.conf'",
        ] {
            assert_eq!(names(&directory, text), [""; 0], "{text}");
        }
    }

    #[test]
    fn settings_of_one_host_are_named() {
        let top = tempfile::tempdir().expect("temporary directory");
        let main = top.path().join("postgresql.conf");
        fs::write(&main, "PORT = 1\nwork_mem = 1\nlisten_addresses = ''\n").expect("write");
        assert_eq!(of_one_host(&Reading::of(&main, None)), ["port", "listen_addresses"]);
    }

    #[test]
    fn what_cannot_be_looked_at_is_not_missing() {
        let top = tempfile::tempdir().expect("temporary directory");
        let main = top.path().join("postgresql.conf");
        let too_long = "x".repeat(300);
        fs::write(&main, format!("ssl_key_file = '{too_long}'\n")).expect("write");
        assert!(in_directory(top.path(), &main, &Reading::of(&main, None)).is_err());
        assert!(of_libpq(top.path(), Some(top.path().join(too_long))).is_err());
    }

    #[test]
    fn what_libpq_reads_in_a_home_directory_is_found() {
        let top = tempfile::tempdir().expect("temporary directory");
        let directory = top.path().canonicalize().expect("resolved").join("data");
        fs::create_dir_all(directory.join("home/.postgresql")).expect("make");
        fs::write(directory.join(".pgpass"), "").expect("write");
        fs::write(top.path().join(".pgpass"), "").expect("write");
        symlink(&directory, top.path().join("other")).expect("link");
        let found = |home: &str| {
            let found = of_libpq(&directory, Some(top.path().join(home))).expect("told");
            found.iter().map(|path| path.as_str().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(found("data"), [".pgpass"]);
        assert_eq!(found("other"), [".pgpass"]);
        assert_eq!(found("data/home"), ["home/.postgresql"]);
        for outside in ["", "data/none"] {
            assert_eq!(found(outside), [""; 0], "{outside:?}");
        }
        assert_eq!(of_libpq(&directory, None).expect("told"), []);
        assert_eq!(of_libpq(&directory, Some("data".into())).expect("told"), []);
    }

    #[test]
    fn a_password_file_that_would_be_removed_is_refused() {
        let top = tempfile::tempdir().expect("temporary directory");
        let directory = top.path().canonicalize().expect("resolved").join("data");
        fs::create_dir_all(directory.join("secrets")).expect("make");
        fs::create_dir_all(directory.join("global")).expect("make");
        for name in [".pgpass", "secrets/pgpass", "global/pgpass"] {
            fs::write(directory.join(name), "").expect("write");
        }
        symlink(&directory, top.path().join("other")).expect("link");
        let told = |passfile: &str, keep: &[&str]| {
            let keep: Vec<RelPath> = keep.iter().map(|name| RelPath::parse(name).expect("valid")).collect();
            let passfile = top.path().join(passfile);
            demand_kept_passfile(&directory, passfile.to_str().expect("UTF-8"), &keep)
        };
        for (removed, kept) in
            [("data/.pgpass", ".pgpass"), ("other/.pgpass", ".pgpass"), ("data/secrets/pgpass", "secrets")]
        {
            let error = told(removed, &["secret"]).expect_err(removed);
            assert_eq!(error.kind, Kind::TargetRefused);
            assert!(error.message.contains(removed) && error.hint.is_some(), "{error}");
            assert_eq!(told(removed, &[kept]), Ok(()), "{removed}");
        }
        assert!(told("data/global/pgpass", &[]).is_err(), "data is never kept");
        for harmless in ["pgpass", "data/none", "none/pgpass"] {
            assert_eq!(told(harmless, &[]), Ok(()), "{harmless}");
        }
        assert_eq!(demand_kept_passfile(&directory, "", &[]), Ok(()));
    }

    #[test]
    fn what_links_lead_to_in_the_directory_is_found_with_them() {
        let top = tempfile::tempdir().expect("temporary directory");
        let directory = top.path().canonicalize().expect("resolved").join("data");
        fs::create_dir_all(directory.join("own/keys")).expect("make");
        fs::create_dir_all(directory.join("global")).expect("make");
        for name in ["own/keys/key", "own/pgpass", "global/pgpass"] {
            fs::write(directory.join(name), "").expect("write");
        }
        let link = |to: &str, name: &str| symlink(to, directory.join(name)).expect("link");
        link("own/keys", "tls");
        link("tls/key", "server.key");
        link("../../data/own/pgpass", "own/link");
        link("global/pgpass", "data.link");
        link("nowhere", "dangling");
        link("loop", "loop");
        symlink("data/server.key", top.path().join("key")).expect("link");
        symlink(directory.join("own/link"), top.path().join("pgpass")).expect("link");
        assert_eq!(names(&directory, "ssl_key_file = 'server.key'"), ["own/keys/key", "server.key", "tls"]);
        let outside = format!("ssl_key_file = '{}/key'", top.path().display());
        assert_eq!(names(&directory, &outside), ["own/keys/key", "server.key", "tls"]);
        assert_eq!(names(&directory, "ssl_key_file = 'data.link'"), ["data.link"], "data is never kept");
        for (text, found) in [("dangling", "dangling"), ("loop", "loop")] {
            assert_eq!(names(&directory, &format!("ssl_key_file = '{text}'")), [found]);
        }
        let kept = |name: &str| {
            let found = of_kept(&directory, &[RelPath::parse(name).expect("valid")]).expect("told");
            found.iter().map(|path| path.as_str().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(kept("own/link"), ["own/link", "own/pgpass"]);
        let passfile = top.path().join("pgpass");
        let told = |keep: &[&str]| {
            let keep: Vec<RelPath> = keep.iter().map(|name| RelPath::parse(name).expect("valid")).collect();
            demand_kept_passfile(&directory, passfile.to_str().expect("UTF-8"), &keep)
        };
        assert!(told(&["own/link"]).is_err(), "only the link would be left");
        assert_eq!(told(&["own/link", "own/pgpass"]), Ok(()));
    }
}
