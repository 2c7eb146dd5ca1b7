//! What the target's directory guards against.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};

use super::*;

fn rel(path: &str) -> RelPath {
    RelPath::parse(path).expect("valid")
}

#[test]
fn a_second_opener_is_refused_and_leaves_the_directory() {
    let parent = tempfile::tempdir().expect("temporary directory");
    let path = parent.path().join("a/b");
    let first = DataDirectory::open(&path).expect("open");
    assert_eq!(DataDirectory::open(&path).err().expect("busy").kind, Kind::Locked);
    drop(first);
    assert!(!parent.path().join("a").exists(), "what was made for a run that never began is removed");
    let second = DataDirectory::open(&path).expect("open again");
    second.keep().expect("keep");
    drop(second);
    assert!(path.exists());
}

#[test]
fn links_are_never_followed() {
    let outside = tempfile::tempdir().expect("temporary directory");
    fs::write(outside.path().join("precious"), "precious").expect("write");
    let data = tempfile::tempdir().expect("temporary directory");
    symlink(outside.path(), data.path().join("base")).expect("link");
    symlink(outside.path().join("precious"), data.path().join("file")).expect("link");
    let target = DataDirectory::open(data.path()).expect("open");
    assert!(target.open_file(&rel("file")).expect("none").is_none());
    assert!(target.open_file(&rel("base/precious")).expect("none").is_none());
    assert!(target.create(&rel("base/new"), 0o600).is_err());
    assert!(!target.remove(&rel("base/precious")).expect("nothing there"));
    target.create(&rel("file"), 0o600).expect("open").write_at(b"new", 0).expect("write");
    target.make_directory(&rel("base"), 0o700).expect("the link makes way");
    target.create(&rel("base/new"), 0o600).expect("open");
    assert_eq!(fs::read(outside.path().join("precious")).expect("read"), b"precious");
    assert_eq!(fs::read_dir(outside.path()).expect("list").count(), 1);
}

#[test]
fn a_file_with_two_names_is_replaced_not_written() {
    let data = tempfile::tempdir().expect("temporary directory");
    let other = data.path().join("other");
    fs::write(&other, "the primary's").expect("write");
    fs::hard_link(&other, data.path().join("file")).expect("link");
    let target = DataDirectory::open(data.path()).expect("open");
    target.create(&rel("file"), 0o600).expect("open").write_at(b"ours", 0).expect("write");
    assert_eq!(fs::read(other).expect("read"), b"the primary's");
}

#[test]
fn whatever_is_in_the_way_makes_way() {
    let data = tempfile::tempdir().expect("temporary directory");
    fs::create_dir_all(data.path().join("file/with/content")).expect("make");
    fs::write(data.path().join("directory"), "x").expect("write");
    let target = DataDirectory::open(data.path()).expect("open");
    target.create(&rel("file"), 0o640).expect("open");
    target.make_directory(&rel("directory"), 0o750).expect("make");
    let mode = |name: &str| fs::metadata(data.path().join(name)).expect("stat").mode() & 0o777;
    assert_eq!((mode("file") & 0o600, mode("directory")), (0o600, 0o750));
    target.install(&rel("directory"), b"now a file", 0o600).expect("install");
    assert_eq!(fs::read(data.path().join("directory")).expect("read"), b"now a file");
    target.sync_directories().expect("sync");
}

#[test]
fn other_roots_take_over_their_prefix() {
    let outside = tempfile::tempdir().expect("temporary directory");
    let data = tempfile::tempdir().expect("temporary directory");
    fs::create_dir(data.path().join("pg_tblspc")).expect("make");
    let mut target = DataDirectory::open(data.path()).expect("open");
    let location = outside.path().join("space");
    target.add_root(&rel("pg_tblspc/16"), &location).expect("root");
    target.link(&rel("pg_tblspc/16"), location.to_str().expect("utf-8")).expect("link");
    target.make_directory(&rel("pg_tblspc/16/PG_15_1"), 0o700).expect("make");
    target.create(&rel("pg_tblspc/16/PG_15_1/file"), 0o600).expect("open");
    assert!(location.join("PG_15_1/file").exists());
    assert_eq!(fs::read_link(data.path().join("pg_tblspc/16")).expect("link"), location);
    target.sync_directories().expect("sync");
}

#[test]
fn unreadable_content_does_not_stop_its_replacement() {
    let data = tempfile::tempdir().expect("temporary directory");
    let file = data.path().join("file");
    fs::write(&file, "x").expect("write");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o000)).expect("chmod");
    let target = DataDirectory::open(data.path()).expect("open");
    target.create(&rel("file"), 0o600).expect("open").write_at(b"y", 0).expect("write");
}

#[test]
fn nothing_is_written_through_a_view() {
    let parent = tempfile::tempdir().expect("temporary directory");
    let path = parent.path().join("data");
    let missing = DataDirectory::open_read_only(&path).expect("view");
    assert_eq!(missing.stat(&rel("file")).expect("stat"), None);
    assert!(missing.entries_but(None, &|_| false).expect("list").named.is_empty());
    assert!(missing.identities().expect("identities").is_empty());
    assert!(!path.exists(), "it is not made");

    fs::create_dir(&path).expect("make");
    fs::write(path.join("file"), "content").expect("write");
    let mut view = DataDirectory::open_read_only(&path).expect("view");
    view.add_root(&rel("pg_tblspc/1"), &parent.path().join("space")).expect("missing, too");
    assert_eq!(view.read(&rel("file"), 100).expect("read").as_deref(), Some(b"content".as_slice()));
    let refused = [
        view.create(&rel("file"), 0o600).err(),
        view.make_directory(&rel("new"), 0o700).err(),
        view.link(&rel("pg_tblspc/2"), "/elsewhere").err(),
        view.install(&rel("file"), b"other", 0o600).err(),
        view.rename(&rel("file"), &rel("other")).err(),
        view.remove(&rel("file")).err(),
    ];
    assert!(
        refused.iter().all(|error| error.as_ref().is_some_and(|error| error.kind == Kind::PermissionDenied)),
        "{refused:?}"
    );
    let _locked = DataDirectory::open(&path).expect("a view locks nothing");
    assert_eq!(fs::read(path.join("file")).expect("read"), b"content");
    assert_eq!(fs::read_dir(parent.path()).expect("list").count(), 1);
}

#[test]
fn the_lock_goes_although_somebody_else_has_the_file_open() {
    let data = tempfile::tempdir().expect("temporary directory");
    let target = DataDirectory::open(data.path()).expect("open");
    // as a program has it that is being started
    let inherited = rustix::io::dup(target.root()).expect("dup");
    drop(target);
    DataDirectory::open(data.path()).expect("no other run has it open");
    drop(inherited);
}

#[test]
fn names_that_no_plan_can_have_are_removed_only() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    let data = tempfile::tempdir().expect("temporary directory");
    let strange = |bytes: &[u8]| data.path().join(OsStr::from_bytes(bytes));
    fs::create_dir_all(strange(b"base/\xff/below/\xfe")).expect("make");
    fs::write(strange(b"\xff"), "").expect("write");
    let unnamed = |target: &DataDirectory, directory: Option<&RelPath>| {
        target.entries_but(directory, &|_| false).expect("list").unnamed
    };
    let view = DataDirectory::open_read_only(data.path()).expect("look");
    let name = unnamed(&view, None).pop().expect("one");
    assert!(view.remove_unnamed(None, &name).is_err(), "nothing changes");
    let target = DataDirectory::open(data.path()).expect("open");
    target.remove_unnamed(None, &name).expect("removed");
    assert!(unnamed(&target, None).is_empty() && strange(b"base/\xff").exists());
    assert!(target.remove(&rel("base")).expect("removed"), "whatever is below");
    assert!(target.entries_but(None, &|_| false).expect("list").named.is_empty());
}

#[test]
fn of_what_is_known_only_files_are_left_out_of_a_list() {
    let data = tempfile::tempdir().expect("temporary directory");
    fs::create_dir_all(data.path().join("base/known")).expect("make");
    for name in ["file", "other"] {
        fs::write(data.path().join("base").join(name), "").expect("write");
    }
    std::os::unix::fs::symlink("file", data.path().join("base/link")).expect("link");
    let target = DataDirectory::open(data.path()).expect("open");
    let is_known = |name: &str| name != "other";
    let base = rel("base");
    for entries in [
        target.entries_but(Some(&base), &is_known).expect("list"),
        target.listing_but(Some(&base), &is_known).expect("list").expect("it may be listed"),
    ] {
        let mut names: Vec<&str> = entries.named.iter().map(|(name, _)| name).collect();
        names.sort_unstable();
        assert_eq!(names, ["known", "link", "other"]);
    }
}
