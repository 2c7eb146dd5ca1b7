use std::os::unix::fs::symlink;

use super::*;

fn wanted(path: &Path) -> Vec<Wanted> {
    let path = path.canonicalize().expect("there");
    let found = fs::metadata(&path).expect("stat");
    vec![Wanted { identity: FileId::from(&found), path, is_linked: true, within: None }]
}

/// Two data directories, the second of which has a pg_wal and a tablespace elsewhere.
fn stage() -> (tempfile::TempDir, PathBuf, PathBuf) {
    let top = tempfile::tempdir().expect("temporary directory");
    let (one, other) = (top.path().join("one"), top.path().join("other"));
    for made in ["one", "other/pg_tblspc", "wal", "space/PG_15_1", "free"] {
        fs::create_dir_all(top.path().join(made)).expect("make");
    }
    symlink(top.path().join("wal"), other.join("pg_wal")).expect("link");
    symlink(top.path().join("space"), other.join("pg_tblspc/16400")).expect("link");
    (top, one, other)
}

/// A /proc in which process 7 is a server in `directory`.
fn server_in(directory: &Path) -> tempfile::TempDir {
    let root = tempfile::tempdir().expect("temporary directory");
    let proc = Proc::at(root.path());
    symlink(std::process::id().to_string(), root.path().join("self")).expect("link");
    let user = rustix::process::geteuid().as_raw();
    fs::create_dir_all(proc.of(7, "fd")).expect("make");
    for process in [7, std::process::id()] {
        fs::create_dir_all(proc.of(process, "ns")).expect("make");
        symlink("mnt:[1]", proc.of(process, "ns/mnt")).expect("link");
        symlink("/", proc.of(process, "root")).expect("link");
    }
    let status = format!("Name:\tpostgres\nPPid:\t1\nUid:\t{user}\t{user}\t{user}\t{user}\n");
    fs::write(proc.of(7, "status"), status).expect("write");
    symlink(directory, proc.of(7, "cwd")).expect("link");
    root
}

#[test]
fn what_a_listed_cluster_uses_is_not_taken() {
    let (top, one, other) = stage();
    let identity = fs::metadata(&one).map(|found| FileId::from(&found)).ok();
    let listed = [other.clone(), top.path().join("not/made/yet")];
    let neighbours = Neighbours::new(identity, &listed);
    neighbours.demand_unused(&wanted(&top.path().join("free"))).expect("nobody uses it");
    for used in ["wal", "space", "space/PG_15_1", "other", "."] {
        let error = neighbours.demand_unused(&wanted(&top.path().join(used))).expect_err(used);
        assert!(error.kind == Kind::InUse && error.detail.is_some_and(|detail| detail.contains("other")));
    }
    fs::remove_file(other.join("pg_wal"))
        .and_then(|()| symlink("pg_wal", other.join("pg_wal")))
        .expect("loop");
    let error = neighbours.demand_unused(&wanted(&top.path().join("free"))).expect_err("cannot tell");
    assert!(error.message.contains("cannot tell"), "{error}");
}

#[test]
fn clusters_of_two_major_versions_may_share_a_tablespaces_directory() {
    let (top, one, other) = stage();
    let root = server_in(&other);
    let proc = || Proc::at(root.path());
    fs::create_dir(other.join("global")).expect("make");
    let space = top.path().canonicalize().expect("real").join("space");
    let file = |within: &str| {
        let file = space.join(within).join("file");
        fs::create_dir_all(file.parent().expect("parent"))
            .and_then(|()| fs::write(&file, ""))
            .expect("write");
        let _ = fs::remove_file(proc().of(7, "fd/3"));
        symlink(file, proc().of(7, "fd/3")).expect("link");
    };
    let identity = fs::metadata(&one).map(|found| FileId::from(&found)).ok();
    let listed = [other.clone()];
    let asked = |path: &Path, within: &str, listed: &[PathBuf]| {
        let mut wanted = wanted(path);
        wanted[0].within = Some(within.to_owned());
        Neighbours { proc: proc(), own: identity, listed }.demand_unused(&wanted)
    };
    file("PG_15_202209061");
    for listed in [&listed[..], &[]] {
        asked(&space, "PG_16_202307071", listed).expect_err("its version is unknown");
        fs::write(other.join("PG_VERSION"), "15\n").expect("write");
        asked(&space, "PG_16_202307071", listed).expect("another version's");
        asked(&space, "PG_15_202209061", listed).expect_err("its own");
        asked(&space, "PG_15_202209062", listed).expect_err("the same version, before its release");
        asked(&space.join("PG_15_1"), "PG_16_202307071", listed).expect_err("within");
        asked(&top.path().join("wal"), "PG_16_202307071", listed).expect_err("its pg_wal");
        fs::remove_file(other.join("PG_VERSION")).expect("remove");
    }
    fs::write(other.join("PG_VERSION"), "15\n").expect("write");
    file("PG_16_202307071");
    asked(&space, "PG_16_202307071", &[]).expect_err("it has a file open there");
}

#[test]
fn every_directory_of_another_cluster_is_its_own_wherever_it_is_mounted() {
    let (top, one, other) = stage();
    for made in ["other/base/5", "other/global", "space/PG_15_1/5", "space/PG_14_1/5", "free/5"] {
        fs::create_dir_all(top.path().join(made)).expect("make");
    }
    fs::write(other.join("PG_VERSION"), "15\n").expect("write");
    let identity = fs::metadata(&one).map(|found| FileId::from(&found)).ok();
    let listed = [other.clone()];
    let neighbours = Neighbours::new(identity, &listed);
    // a mount has the path of what it hides, and the identity of what it shows
    let asked = |shown: &Path| {
        let mounted = |wanted: Wanted| Wanted { path: one.join("base"), is_linked: false, ..wanted };
        let wanted: Vec<_> = wanted(shown).into_iter().map(mounted).collect();
        neighbours.demand_unused(&wanted)
    };
    for used in
        ["other/base", "other/base/5", "other/global", "other/pg_tblspc", "space/PG_15_1", "space/PG_15_1/5"]
    {
        let error = asked(&top.path().join(used)).expect_err(used);
        assert!(error.kind == Kind::InUse && error.message.contains("one/base"), "{used}: {error}");
        assert!(error.hint.is_some_and(|hint| hint.contains("mount")), "{used}");
    }
    for free in ["free", "free/5", "space/PG_14_1", "space/PG_14_1/5"] {
        asked(&top.path().join(free)).expect(free);
    }
}

#[test]
fn a_file_that_is_open_is_found_by_the_directory_that_it_lies_in() {
    let (top, one, other) = stage();
    let root = server_in(&one);
    let proc = || Proc::at(root.path());
    let file = top.path().canonicalize().expect("real").join("free/1");
    fs::write(&file, "").expect("write");
    symlink(file, proc().of(7, "fd/3")).expect("link");
    let identity = fs::metadata(&other).map(|found| FileId::from(&found)).ok();
    let neighbours = Neighbours { proc: proc(), own: identity, listed: &[] };
    let asked = |shown: &str| {
        let mounted = |wanted: Wanted| Wanted { path: other.join("base"), is_linked: false, ..wanted };
        let wanted: Vec<_> = wanted(&top.path().join(shown)).into_iter().map(mounted).collect();
        neighbours.demand_unused(&wanted)
    };
    asked("wal").expect("nothing is open there");
    let error = asked("free").expect_err("open");
    assert!(error.detail.as_deref().is_some_and(|detail| detail.contains("Process 7")), "{error}");
}

#[test]
fn of_two_links_to_one_directory_each_is_asked_about() {
    let (top, one, other) = stage();
    fs::write(other.join("PG_VERSION"), "15\n").expect("write");
    let identity = fs::metadata(&one).map(|found| FileId::from(&found)).ok();
    let space = top.path().join("space");
    let of = |within: Option<&str>| -> Vec<Wanted> {
        let within = within.map(str::to_owned);
        wanted(&space).into_iter().map(|wanted| Wanted { within: within.clone(), ..wanted }).collect()
    };
    let asked = |first: Option<&str>, second: Option<&str>| {
        let both: Vec<_> = of(first).into_iter().chain(of(second)).collect();
        Neighbours::new(identity, std::slice::from_ref(&other)).demand_unused(&both)
    };
    let (newer, all) = (Some("PG_16_202307071"), None);
    asked(newer, newer).expect("another version's");
    asked(newer, all).expect_err("its own");
    asked(all, newer).expect_err("its own");
    // and by a file that is open there
    let root = server_in(&one);
    let proc = || Proc::at(root.path());
    fs::write(space.join("file"), "").expect("write");
    symlink(space.canonicalize().expect("real").join("file"), proc().of(7, "fd/3")).expect("link");
    let identity = fs::metadata(&other).map(|found| FileId::from(&found)).ok();
    let shown = |wanted: Wanted| Wanted { path: other.join("base"), is_linked: false, ..wanted };
    for order in [[newer, all], [all, newer]] {
        let both: Vec<_> = order.into_iter().flat_map(of).map(shown).collect();
        let neighbours = Neighbours { proc: proc(), own: identity, listed: &[] };
        neighbours.demand_unused(&both).expect_err("open");
    }
}

#[test]
fn a_directory_that_cannot_be_looked_at_may_be_the_one() {
    let (top, one, other) = stage();
    let root = server_in(&one);
    let proc = || Proc::at(root.path());
    let identity = fs::metadata(&other).map(|found| FileId::from(&found)).ok();
    let asked = |place: &Path| {
        let _ = fs::remove_file(proc().of(7, "fd/3"));
        symlink(place, proc().of(7, "fd/3")).expect("link");
        let neighbours = Neighbours { proc: proc(), own: identity, listed: &[] };
        neighbours.demand_unused(&wanted(&top.path().join("free")))
    };
    asked(Path::new("/nowhere/file (deleted)")).expect("it is gone");
    let twisted = top.path().canonicalize().expect("real").join("loop");
    symlink("loop", &twisted).expect("link");
    let error = asked(&twisted.join("within/file")).expect_err("cannot tell");
    assert!(error.message.contains("cannot tell"), "{error}");
    assert!(error.detail.is_some_and(|detail| detail.contains("loop/within")));
}

#[test]
fn the_links_of_a_server_are_followed_as_it_follows_them() {
    let (top, one, _) = stage();
    let top = top.path().canonicalize().expect("real");
    // what the server takes for / has a directory of the same name as ours, and lacks another one
    let within = top.join("its root");
    for made in ["space", "other/pg_tblspc", "other/global", "wal"] {
        fs::create_dir_all(within.join(top.strip_prefix("/").expect("absolute")).join(made)).expect("make");
    }
    let inside = |path: &str| within.join(top.strip_prefix("/").expect("absolute")).join(path);
    symlink(top.join("wal"), inside("other/pg_wal")).expect("link");
    symlink(top.join("space"), inside("other/pg_tblspc/16400")).expect("link");
    let root = server_in(&inside("other"));
    let proc = || Proc::at(root.path());
    let identity = fs::metadata(&one).map(|found| FileId::from(&found)).ok();
    let asked =
        |path: &Path| Neighbours { proc: proc(), own: identity, listed: &[] }.demand_unused(&wanted(path));
    fs::remove_file(proc().of(7, "root"))
        .and_then(|()| symlink(&within, proc().of(7, "root")))
        .expect("link");
    for free in ["space", "wal", "free", "other"] {
        asked(&top.join(free)).expect(free);
    }
    for used in ["space", "wal", "other"] {
        asked(&inside(used)).expect_err(used);
    }
    // a directory that cannot be found from there
    fs::remove_file(proc().of(7, "root")).and_then(|()| symlink(&one, proc().of(7, "root"))).expect("link");
    let error = asked(&top.join("free")).expect_err("cannot tell");
    assert!(error.message.contains("cannot tell"), "{error}");
}

#[test]
fn the_clusters_own_links_are_its_own() {
    let (top, _, other) = stage();
    let identity = fs::metadata(&other).map(|found| FileId::from(&found)).ok();
    let listed = [other];
    Neighbours::new(identity, &listed).demand_unused(&wanted(&top.path().join("wal"))).expect("its own");
}

#[test]
fn what_a_running_server_has_open_is_not_taken() {
    let (top, one, other) = stage();
    let root = server_in(&one);
    let proc = || Proc::at(root.path());
    let segment = top.path().canonicalize().expect("real").join("free/segment");
    fs::write(&segment, "WAL").expect("write");
    symlink(segment, proc().of(7, "fd/3")).expect("link");
    let identity = fs::metadata(&other).map(|found| FileId::from(&found)).ok();
    let neighbours = Neighbours { proc: proc(), own: identity, listed: &[] };
    neighbours.demand_unused(&wanted(&top.path().join("wal"))).expect("nobody else uses it");
    let error = neighbours.demand_unused(&wanted(&top.path().join("free"))).expect_err("open");
    assert!(error.detail.as_deref().is_some_and(|detail| detail.contains("Process 7")), "{error}");
    // its links, although nothing there is open
    fs::write(one.join("PG_VERSION"), "15").expect("write");
    symlink(top.path().join("wal"), one.join("pg_wal")).expect("link");
    neighbours.demand_unused(&wanted(&top.path().join("wal"))).expect_err("linked");

    fs::remove_file(proc().of(7, "cwd")).and_then(|()| symlink("/", proc().of(7, "cwd"))).expect("link");
    neighbours.demand_unused(&wanted(&top.path().join("wal"))).expect("it is only starting");
    fs::remove_file(proc().of(7, "cwd")).and_then(|()| symlink("cwd", proc().of(7, "cwd"))).expect("hidden");
    let error = neighbours.demand_unused(&wanted(&top.path().join("space"))).expect_err("hidden");
    assert!(error.message.contains("cannot tell"), "{error}");
}
