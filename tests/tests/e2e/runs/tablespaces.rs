//! Tablespaces: mapped to other directories, and never to the primary's.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use pgpool_recovery_e2e::recovery::remote_start;
use pgpool_recovery_e2e::{Cluster, Host, Recovery, Scratch, compare, probe};

#[test]
fn a_tablespace_goes_where_it_is_mapped() {
    let scratch = Scratch::new();
    let primary = Cluster::primary(&scratch);
    let (old, new) = (scratch.mkdir("space-old"), scratch.mkdir("space-new"));
    let (old, new) = (old.to_str().expect("ASCII"), new.to_str().expect("ASCII"));
    primary.execute(&format!("CREATE TABLESPACE far LOCATION '{old}'"));
    primary.execute("CREATE TABLE there TABLESPACE far AS SELECT generate_series(1, 20000) AS id");
    let target = Cluster::place(&scratch, &Host::here(), "target");
    let recovery = || Recovery::of(&target, &primary).option("dest_port", target.port());

    recovery().fail(&primary).expect("55000").says("tablespace");
    let inside = format!("{old}={}/inside", primary.dir());
    for mapping in [format!("{old}={old}"), inside, format!("{old}={old}/deeper")] {
        recovery().option("tablespace_mapping", mapping).fail(&primary).expect("55000").says("primary");
        assert!(!target.directory().exists());
    }
    assert!(!primary.has("inside"));

    let mapping = format!("{old}={new}");
    recovery().option("tablespace_mapping", mapping.as_str()).run(&primary);
    remote_start(&primary, "localhost", target.dir());
    primary.execute("INSERT INTO there SELECT generate_series(1, 1000)");
    target.wait_for_replay(&primary);
    assert_eq!(target.get::<i64>("SELECT count(*) FROM there", &[]), 21_000);
    let location: String =
        target.get("SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = 'far'", &[]);
    assert_eq!(location, new);
    compare::stop_and_compare(&primary, &target).assert_none();

    // A second time only the difference travels.
    primary.start();
    let report = recovery().option("tablespace_mapping", mapping.as_str()).run(&primary);
    assert!(report.number("/bytes/sent") < report.number("/bytes/total") / 4, "{}", report.0);
}

#[test]
fn a_copy_that_links_to_the_primary_never_writes_there() {
    let scratch = Scratch::new();
    let primary = Cluster::primary(&scratch);
    let space = scratch.mkdir("space");
    let space_name = space.to_str().expect("ASCII");
    primary.execute(&format!("CREATE TABLESPACE far LOCATION '{space_name}'"));
    primary.execute("CREATE TABLE there TABLESPACE far AS SELECT generate_series(1, 20000) AS id");
    let mut witness = probe::Witness::on(&primary);

    // A careless copy: its pg_tblspc, and its pg_wal, are links to what the primary uses.
    let target = Cluster::place(&scratch, &Host::here(), "copy");
    let copied = Command::new("cp").arg("-a").arg(primary.directory()).arg(target.directory()).status();
    assert!(copied.expect("cp").success());
    for name in ["postmaster.pid", "postmaster.opts"] {
        fs::remove_file(target.directory().join(name)).expect("removed");
    }
    let mapping = format!("{space_name}={space_name}");
    let recovery = || Recovery::of(&target, &primary).option("tablespace_mapping", mapping.as_str());
    recovery().fail(&primary).expect("55000").says("primary");

    fs::remove_dir_all(target.directory().join("pg_wal")).expect("removed");
    symlink(primary.directory().join("pg_wal"), target.directory().join("pg_wal")).expect("a link");
    recovery().fail(&primary).expect("55000").says("primary");
    witness.assert_served();
    assert_eq!(primary.get::<i64>("SELECT count(*) FROM there", &[]), 20_000);
    primary.execute("CHECKPOINT");
}

#[test]
fn tablespaces_of_the_standby_lie_apart() {
    let scratch = Scratch::new();
    let primary = Cluster::primary(&scratch);
    let spaces = ["one", "two"].map(|name| {
        let space = scratch.mkdir(name).to_str().expect("ASCII").to_owned();
        primary.execute(&format!("CREATE TABLESPACE {name} LOCATION '{space}'"));
        space
    });
    let place = scratch.mkdir("place");
    symlink(&place, scratch.join("alias")).expect("a link");
    let place = place.to_str().expect("ASCII");
    let target = Cluster::place(&scratch, &Host::here(), "target");
    let alias = scratch.join("alias").to_str().expect("ASCII").to_owned();
    let inside = format!("{}/base", target.dir());
    for second in [format!("{place}/"), alias, format!("{place}/deeper"), inside] {
        let mapping = format!("{}={place},{}={second}", spaces[0], spaces[1]);
        Recovery::of(&target, &primary).option("tablespace_mapping", mapping).fail(&primary).expect("55000");
        assert!(!target.directory().exists(), "{second}");
    }
}
