use pgdata::control_file::sample;

use super::backup::traces;
use super::wal::{identifier_from_wal, timeline, unarchived, wal_of};
use super::*;
use crate::wire::protocol::message::{BackupTraces, LinkedWal};

fn cluster(directory: &Path) -> Cluster {
    Cluster::new(directory.to_owned(), "/usr/bin".into())
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
    assert_eq!(content(&data, &data, false, &[]).expect("look"), Content::Missing);
    fs::create_dir_all(data.join("lost+found")).expect("make");
    assert_eq!(content(&data, &data, true, &[]).expect("look"), Content::Empty);
    fs::write(data.join("pgpool_recovery.incomplete.pgpool_recovery.tmp"), "").expect("write");
    assert_eq!(
        content(&data, &data, true, &[]).expect("look"),
        Content::Empty,
        "of a run that died before its marker was there"
    );
    fs::create_dir_all(data.join("pg_wal/lost+found")).expect("make");
    assert_eq!(content(&data, &data, true, &[]).expect("look"), Content::Empty, "a volume for WAL");
    put(&data, "pg_wal/letter.txt", b"x");
    assert_eq!(content(&data, &data, true, &[]).expect("look"), Content::Other);
    put(&data, "pg_wal/000000010000000000000003", b"x");
    assert_eq!(content(&data, &data, true, &[]).expect("look"), Content::Wal, "its WAL is a server's");
    fs::remove_dir_all(data.join("pg_wal")).expect("remove");
    put(&data, "holiday.jpg", b"x");
    assert_eq!(content(&data, &data, true, &[]).expect("look"), Content::Other);
    put(&data, "PG_VERSION", b"15\n");
    assert_eq!(content(&data, &data, true, &[]).expect("look"), Content::Cluster);
}

#[test]
fn a_directory_that_holds_files_to_keep_alone_is_empty() {
    let data = tempfile::tempdir().expect("temporary directory");
    let keep = ["postgresql.conf", "certs/own.key"].map(|path| RelPath::parse(path).expect("valid"));
    let look = |keep: &[RelPath]| content(data.path(), data.path(), true, keep).expect("look");
    put(data.path(), "postgresql.conf", b"port = 5433\n");
    put(data.path(), "certs/own.key", b"x");
    fs::create_dir(data.path().join("lost+found")).expect("make");
    assert_eq!((look(&[]), look(&keep[..1]), look(&keep)), (Content::Other, Content::Other, Content::Empty));
    put(data.path(), "certs/letter.txt", b"x");
    assert_eq!(look(&keep), Content::Other);
    let certs = [keep[0].clone(), RelPath::parse("certs").expect("valid")];
    assert_eq!(look(&certs), Content::Empty, "a directory to keep");
    put(data.path(), "PG_VERSION", b"15\n");
    assert_eq!(look(&certs), Content::Cluster);
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
    assert_eq!(control(data.path()).expect("damaged"), None);
    let mut head = vec![0; 64];
    head[..4].copy_from_slice(&[0x10, 0xD1, 0x02, 0x00]);
    head[24..32].copy_from_slice(&77_u64.to_le_bytes());
    put(data.path(), "pg_wal/000000010000000000000003", &head);
    assert_eq!(identifier_from_wal(data.path()), Some(77));
    put(data.path(), CONTROL_ASIDE, &sample(78));
    let (aside, in_place) = control(data.path()).expect("read").expect("aside");
    assert_eq!((aside.system_identifier, in_place), (78, false));
    put(data.path(), PG_CONTROL, &sample(79));
    let (own, in_place) = control(data.path()).expect("read").expect("in place");
    assert_eq!((own.system_identifier, in_place), (79, true));
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
fn what_is_open_is_looked_at_and_not_what_took_its_place() {
    let programs = tempfile::tempdir().expect("temporary directory");
    std::os::unix::fs::symlink("/bin/true", programs.path().join("postgres")).expect("link");
    let parent = tempfile::tempdir().expect("temporary directory");
    let data = parent.path().join("data");
    put(&data, PG_CONTROL, &sample(7));
    put(&data, "base/1", b"");
    let cluster = Cluster { bin_directory: programs.path().to_owned(), ..cluster(&data) };
    let opened = DataDirectory::open(&data).expect("open");
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

#[test]
fn a_stat_that_fails_is_told_in_the_words_of_postgresql() {
    let data = tempfile::tempdir().expect("temporary directory");
    std::os::unix::fs::symlink("loop", data.path().join("loop")).expect("link");
    let error =
        content(&data.path().join("loop"), Path::new("/srv/data"), true, &[]).expect_err("it cannot be told");
    assert!(error.message.starts_with("could not stat file \"/srv/data/PG_VERSION\": "), "{error}");
}

#[test]
fn the_latest_timeline_counts() {
    let data = tempfile::tempdir().expect("temporary directory");
    let latest = || {
        let control = control(data.path()).expect("read").map(|(control, _)| control);
        timeline(data.path(), control.as_ref()).expect("looks")
    };
    assert_eq!(latest(), None);
    put(data.path(), "pg_wal/000000020000000000000003", b"");
    put(data.path(), "pg_wal/00000009.history", b"known of, but nothing of it is here");
    assert_eq!(latest(), Some(2));
    put(data.path(), PG_CONTROL, &sample(7));
    assert_eq!(latest(), Some(4), "of the minimum recovery point");
    put(data.path(), "pg_wal/000000050000000000000003", b"");
    assert_eq!(latest(), Some(5));
    fs::remove_dir_all(data.path().join("pg_wal")).expect("remove");
    std::os::unix::fs::symlink("pg_wal", data.path().join("pg_wal")).expect("link");
    timeline(data.path(), None).expect_err("it cannot be told");
}

#[test]
fn traces_of_a_backup_are_found_or_the_error_is_told() {
    let data = tempfile::tempdir().expect("temporary directory");
    let found = || traces(data.path()).expect("found");
    assert_eq!(found(), BackupTraces::default());
    put(data.path(), "backup_label", b"LABEL: nightly\n");
    put(data.path(), "backup_manifest", b"{}");
    let backup = BackupTraces {
        label: Some("LABEL: nightly\n".to_owned()),
        has_manifest: true,
        ..BackupTraces::default()
    };
    assert_eq!(found(), backup);
    // a label that is no text is one all the same
    put(data.path(), "backup_label", b"\xff");
    assert_eq!(found().label.as_deref(), Some(""));
    put(data.path(), "standby.signal", b"");
    put(data.path(), "postmaster.opts", b"");
    assert!(found().has_standby_signal && found().has_postmaster_opts);
    assert_eq!(found().version_changed, None);
    put(data.path(), "PG_VERSION", b"14\n");
    // a copy that preserves times sets that of the content only
    let file = fs::File::options().write(true).open(data.path().join("PG_VERSION")).expect("open");
    file.set_modified(std::time::UNIX_EPOCH).expect("set");
    assert!(found().version_changed.is_some_and(|changed| changed > 1_000_000_000));
    std::os::unix::fs::symlink("loop", data.path().join("loop")).expect("link");
    traces(&data.path().join("loop")).expect_err("it cannot be told");
}

#[test]
fn a_servers_version_is_found_among_other_words() {
    for (said, expected) in [
        ("postgres (PostgreSQL) 15.18 (Debian 15.18-1)", Some(("15.18", "15"))),
        ("postgres (PostgreSQL) 18beta1", Some(("18beta1", "18"))),
        ("some words\npostgres (PostgreSQL) 13.1\n", Some(("13.1", "13"))),
        ("libpq.so.5: no version information available", None),
        ("postgres (PostgreSQL) ", None),
        ("postgres (PostgreSQL) devel", None),
    ] {
        let found = release(said).map(|release| (release.clone(), major_version(&release)));
        let expected = expected.map(|(release, major)| (release.to_owned(), major.to_owned()));
        assert_eq!(found, expected, "{said}");
    }
}

#[test]
fn the_loaders_warnings_are_no_version() {
    let top = tempfile::tempdir().expect("temporary directory");
    let program = "echo 'a b 99.9' >&2; echo 'postgres (PostgreSQL) 15.18'";
    process::tests::script(&top.path().join("postgres"), program);
    let cluster = Cluster { bin_directory: top.path().to_owned(), ..cluster(top.path()) };
    assert_eq!(server_release(&cluster, &Cancel::new()).expect("ran").as_deref(), Some("15.18"));
}

#[test]
fn the_server_that_would_be_started_is_told_and_an_older_agent_tells_less() {
    let top = tempfile::tempdir().expect("temporary directory");
    process::tests::script(&top.path().join("postgres"), "echo 'postgres (PostgreSQL) 15.18 (Debian)'");
    let cluster = Cluster { bin_directory: top.path().to_owned(), ..cluster(&top.path().join("data")) };
    let found = inspect(&cluster, &[], "session", None, &Cancel::new()).expect("inspected");
    assert_eq!(
        (found.server_version.as_deref(), found.server_release.as_deref()),
        (Some("15"), Some("15.18"))
    );
    // of what runs the script
    assert!(found.libraries.as_ref().is_some_and(|libraries| libraries.glibc.is_some()), "{found:?}");
    let mut answer = serde_json::to_value(&found).expect("as it travels");
    let fields = answer.as_object_mut().expect("an object");
    assert!(fields.remove("server_release").is_some() && fields.remove("libraries").is_some());
    let older: TargetInfo = serde_json::from_value(answer).expect("understood");
    assert_eq!(older, TargetInfo { server_release: None, libraries: None, ..found });
}

#[test]
fn what_was_never_archived_is_counted() {
    let data = tempfile::tempdir().expect("temporary directory");
    let count = || unarchived(data.path());
    assert_eq!(count().expect("counted"), 0);
    for name in ["000000010000000000000003.ready", "00000002.history.ready", "000000010000000000000002.done"]
    {
        put(data.path(), &format!("pg_wal/archive_status/{name}"), b"");
    }
    assert_eq!(count().expect("counted"), 2);
    fs::remove_dir_all(data.path().join("pg_wal/archive_status")).expect("remove");
    let link = data.path().join("pg_wal/archive_status");
    std::os::unix::fs::symlink("archive_status", link).expect("link");
    count().expect_err("it cannot be told");
}

#[test]
fn a_program_that_cannot_be_run_has_no_version() {
    let top = tempfile::tempdir().expect("temporary directory");
    let program = "echo 'error while loading shared libraries: libicuuc.so.72' >&2; exit 127";
    process::tests::script(&top.path().join("postgres"), program);
    let cluster = Cluster { bin_directory: top.path().to_owned(), ..cluster(top.path()) };
    let error = server_release(&cluster, &Cancel::new()).expect_err("it would not start either");
    assert_eq!(error.kind, Kind::TargetRefused);
    assert!(error.detail.is_some_and(|detail| detail.contains("libicuuc")) && error.hint.is_some());
}

#[test]
fn an_interrupted_recovery_needs_no_configuration_to_be_completed() {
    let top = tempfile::tempdir().expect("temporary directory");
    let data = top.path().join("data");
    process::tests::script(&top.path().join("postgres"), "echo 'postgres (PostgreSQL) 15.18'");
    let cluster = Cluster {
        bin_directory: top.path().to_owned(),
        start_command: Some(vec!["start".to_owned()]),
        ..cluster(&data)
    };
    let doubt = || {
        let found = inspect(&cluster, &[], "session", None, &Cancel::new()).expect("inspected");
        found.doubts.identity.map(|doubt| doubt.message)
    };
    put(&data, "PG_VERSION", b"15\n");
    fs::create_dir_all(data.join("pg_wal")).expect("make");
    let said = doubt().expect("its configuration may be anywhere");
    assert!(said.starts_with("it is not known which configuration"), "{said}");
    let marker = serde_json::to_vec(&Marker { system_identifier: 7, timeline: 1, ..Marker::default() });
    put(&data, MARKER, &marker.expect("a marker"));
    assert_eq!(doubt(), None, "the recovery brings it");
    put(&data, PG_CONTROL, &sample(7));
    assert!(doubt().is_some(), "something else has come since");
}

#[test]
fn a_server_that_may_have_run_without_syncing_is_recognised() {
    let says = |main: &str, auto: &str, options: &str| {
        let data = tempfile::tempdir().expect("temporary directory");
        let contents =
            [("postgresql.conf", main), ("postgresql.auto.conf", auto), ("postmaster.opts", options)];
        for (name, content) in contents.into_iter().filter(|(_, content)| !content.is_empty()) {
            put(data.path(), name, content.as_bytes());
        }
        says_fsync_off(&cluster(data.path()))
    };
    let started = "/usr/bin/postgres \"-D\" \"/srv/data\" \"-c\" \"port=1\"";
    for main in ["port = 1", "fsync = on", "fsync = 'TRUE'", "fsync = off\nfsync = on"] {
        assert!(!says(main, "", started), "{main}");
    }
    for main in ["fsync = off", "fsync = no", "fsync=nonsense", "include 'missing.conf'\nfsync = false"] {
        assert!(says(main, "", started), "{main}");
    }
    assert!(says("fsync = on", "fsync = 'off'", started));
    assert!(says("fsync = on", "", "/usr/bin/postgres \"-F\""));
    assert!(says("fsync = on", "", "/usr/bin/postgres \"-c\" \"fsync=off\""));
    assert!(says("", "", started), "without a configuration nothing is known");
}
