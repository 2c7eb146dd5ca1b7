//! Runs that leave out what WAL proves equal, between two directories without a PostgreSQL server.

mod fixture;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use fixture::{Hosts, transports};
use pgdata::control_file::{self, ControlFile};
use pgdata::wal::Lsn;
use pgdata::wal::record::RelationFileLocator;
use pgpool_recovery_core::compare::wal_map::skip::SourceFacts;
use pgpool_recovery_core::compare::wal_map::{BlockMap, Layout, Lineage, Reach, Reason};
use pgpool_recovery_core::progress::Progress;
use pgpool_recovery_core::sender::proof::{Rejected, Source};
use pgpool_recovery_core::sender::skip::{Skip, Skipped};
use pgpool_recovery_core::sys::cancel::Cancel;
use pgpool_recovery_core::wire::link::Connector;
use pgpool_recovery_core::wire::protocol::message::Purpose;

const PAGE: usize = 8192;
const PAGES: usize = 3000;

const TABLE: &str = "base/5/16384";

/// An index's page that was changed last at `lsn`: what lies in its special space is logged, `pd_prune_xid` is not.
fn page(lsn: u64, logged: u8, unlogged: u8) -> Vec<u8> {
    let mut page = vec![0; PAGE];
    page[..4].copy_from_slice(&u32::try_from(lsn >> 32).expect("high").to_le_bytes());
    page[4..8].copy_from_slice(&u32::try_from(lsn & 0xFFFF_FFFF).expect("low").to_le_bytes());
    page[12..18].copy_from_slice(&[24, 0, 0xE8, 0x1F, 0xE8, 0x1F]);
    page[20] = unlogged;
    page[0x1FE8] = logged;
    page
}

/// A file of pages that were changed at 50, but for those that are given.
fn file(pages: usize, others: &[(usize, Vec<u8>)]) -> Vec<u8> {
    let mut content = page(50, 1, 0).repeat(pages);
    for (number, page) in others {
        content[number * PAGE..(number + 1) * PAGE].copy_from_slice(page);
    }
    content
}

/// WAL of both sides that names some blocks of the table.
fn skip(listed: &[u32], leaves_out: bool) -> Skip {
    let mut map = BlockMap::default();
    for block in listed {
        map.add(RelationFileLocator { tablespace: 1663, database: 5, relation: 16384 }, *block);
    }
    Skip {
        map,
        last_changed: BlockMap::default(),
        layout: Layout { segment_blocks: 131_072, first_blocks: false },
        reach: Reach { from: Lsn(100), to: Lsn(200), target_end: Lsn(150) },
        leaves_out,
        is_tried: true,
        sampled: 100,
        seed: 1,
    }
}

fn run(hosts: &Hosts, connector: &Arc<dyn Connector>, skip: Skip) -> (Skipped, Arc<Progress>) {
    let (session, progress) = hosts.open(connector, Purpose::Recover).expect("open");
    let session = hosts.begin(hosts.plan(session).expect("plan")).expect("begin");
    let (session, skipped) =
        session.send_data(&hosts.path("primary"), hosts.options(), Some(skip)).expect("send");
    hosts.complete(session).expect("complete");
    (skipped.expect("it was asked for"), progress)
}

/// A table on both sides; what differs is told by `ours` and `theirs`.
fn made(ours: &[(usize, Vec<u8>)], theirs: &[(usize, Vec<u8>)]) -> Hosts {
    let hosts = Hosts::new();
    hosts.write("standby/PG_VERSION", b"15\n");
    hosts.write(&format!("primary/{TABLE}"), &file(PAGES, ours));
    hosts.write(&format!("standby/{TABLE}"), &file(PAGES, theirs));
    hosts
}

#[test]
fn what_no_wal_names_is_read_on_neither_side() {
    for leaves_out in [true, false] {
        for name in ["local", "agent"] {
            let hosts = made(&[(7, page(120, 2, 0)), (900, page(90, 1, 3))], &[(2000, page(130, 3, 0))]);
            hosts.write("primary/base/5/16384_vm", &page(50, 1, 0));
            hosts.write("standby/base/5/16384_vm", &page(50, 2, 0));
            let modified = || fs::metadata(hosts.path(&format!("standby/{TABLE}"))).expect("stat").len();
            let connector = if name == "local" { hosts.local() } else { hosts.agent() };
            let (skipped, progress) = run(&hosts, &connector, skip(&[7, 2000], leaves_out));
            assert_eq!((skipped.refuted, skipped.is_left_out), (0, leaves_out), "{name}: {skipped:?}");
            assert_eq!(skipped.breakdown.listed, 2 * PAGE as u64, "{name}");
            assert_eq!(modified(), (PAGES * PAGE) as u64);
            hosts.assert_same(&["base/5/16384_vm"]);
            // the hint of page 900 is left as it is where it is not read
            let hint = [(900, page(if leaves_out { 50 } else { 90 }, 1, if leaves_out { 0 } else { 3 }))];
            let expected = file(PAGES, &[&[(7, page(120, 2, 0))][..], &hint].concat());
            assert!(hosts.read(&format!("standby/{TABLE}")) == expected, "{name} {leaves_out}");
            if leaves_out {
                assert!(skipped.looked >= 20, "{name}: {skipped:?}");
                assert_eq!(progress.known(), (PAGES as u64 - 2) * PAGE as u64, "{name}");
                assert_eq!(progress.sent(), 3 * PAGE as u64, "{name}");
            } else {
                assert_eq!((skipped.looked, skipped.unlogged), (PAGES as u64 - 2, 1), "{name}");
                assert_eq!((progress.known(), progress.sent()), (0, 4 * PAGE as u64), "{name}");
            }
            assert_eq!(progress.known() + progress.compared(), progress.total(), "{name}");
        }
    }
}

#[test]
fn a_page_that_contradicts_the_map_ends_its_use() {
    type Pages = Vec<(usize, Vec<u8>)>;
    let every = |page: &dyn Fn(usize) -> Vec<u8>| (0..PAGES).step_by(10).map(|at| (at, page(at))).collect();
    let cases: [(&str, Pages, Pages); 4] = [
        ("primary changed", every(&|_| page(120, 2, 0)), Vec::new()),
        ("target changed", Vec::new(), every(&|_| page(120, 2, 0))),
        ("younger than", Vec::new(), every(&|_| page(151, 1, 0))),
        ("pages differ", every(&|_| page(50, 2, 0)), Vec::new()),
    ];
    for (why, ours, theirs) in &cases {
        for leaves_out in [true, false] {
            let hosts = made(ours, theirs);
            for (name, connector) in transports(&hosts) {
                hosts.write(&format!("standby/{TABLE}"), &file(PAGES, theirs));
                let (skipped, progress) = run(&hosts, &connector, skip(&[7], leaves_out));
                assert!(skipped.refuted > 0 && !skipped.is_left_out, "{name} {why}: {skipped:?}");
                let first = &skipped.refutations[0];
                assert!(first.why.contains(why) && first.file.as_str() == TABLE, "{name}: {first:?}");
                assert_eq!(first.page % 10, 0, "{name}: {first:?}");
                // everything was compared
                hosts.assert_same(&[TABLE]);
                assert_eq!((progress.known(), progress.compared()), (0, progress.total()), "{name} {why}");
            }
        }
    }
}

#[test]
fn a_proof_that_cannot_be_tried_is_not_refuted() {
    // what a primary has not written yet, as a dry run finds it
    let theirs: Vec<_> = (0..PAGES).step_by(10).map(|at| (at, page(80, 2, 0))).collect();
    let hosts = made(&[(7, page(120, 2, 0))], &theirs);
    let dry_run = |leaves_out| {
        let (session, progress) = hosts.open(&hosts.local(), Purpose::Look).expect("open");
        let session = hosts.plan(session).expect("plan");
        let skip = Skip { is_tried: false, ..skip(&[7], leaves_out) };
        let (_, _, skipped) =
            session.dry_run(&hosts.path("primary"), hosts.options(), Some(skip)).expect("a dry run");
        (skipped.expect("it was asked for"), progress.known(), progress.compared())
    };
    let known = (PAGES as u64 - 1) * PAGE as u64;
    for leaves_out in [true, false] {
        let (skipped, left_out, compared) = dry_run(leaves_out);
        assert_eq!((skipped.looked, skipped.refuted, skipped.is_left_out), (0, 0, leaves_out));
        assert_eq!(skipped.breakdown.known, known);
        assert_eq!(left_out, if leaves_out { known } else { 0 });
        assert!(leaves_out || compared >= known);
    }
}

#[test]
fn a_listed_page_that_is_younger_than_the_targets_wal_ends_it_too() {
    let hosts = made(&[], &[(7, page(151, 2, 0))]);
    for (name, connector) in transports(&hosts) {
        hosts.write(&format!("standby/{TABLE}"), &file(PAGES, &[(7, page(151, 2, 0))]));
        let (skipped, _) = run(&hosts, &connector, skip(&[7], true));
        assert_eq!((skipped.refuted, skipped.refutations[0].page), (1, 7), "{name}");
        hosts.assert_same(&[TABLE]);
    }
}

#[test]
fn what_the_target_lacks_is_sent_whatever_the_map_says() {
    let elsewhere = tempfile::tempdir().expect("temporary directory");
    type Spoil<'a> = &'a dyn Fn(&Path);
    let cases: [(&str, Spoil<'_>); 7] = [
        ("missing", &|path| fs::remove_file(path).expect("remove")),
        ("shorter", &|path| truncate(path, (PAGES - 100) * PAGE)),
        ("longer", &|path| truncate(path, (PAGES + 5) * PAGE)),
        ("of odd size", &|path| truncate(path, PAGES * PAGE - 100)),
        ("empty", &|path| truncate(path, 0)),
        ("a hard link", &|path| {
            fs::hard_link(
                path,
                elsewhere
                    .path()
                    .join(path.strip_prefix("/").expect("absolute").display().to_string().replace('/', "-")),
            )
            .expect("link");
        }),
        ("a directory", &|path| {
            fs::remove_file(path).expect("remove");
            fs::create_dir(path).expect("make");
        }),
    ];
    for (case, spoil) in cases {
        for transport in 0..2 {
            let hosts = made(&[(7, page(120, 2, 0))], &[]);
            let (name, connector) = &transports(&hosts)[transport];
            spoil(&hosts.path(&format!("standby/{TABLE}")));
            let (skipped, _) = run(&hosts, connector, skip(&[7], true));
            assert_eq!(skipped.refuted, 0, "{name}, {case}: {skipped:?}");
            hosts.assert_same(&[TABLE]);
        }
    }
}

#[test]
fn of_a_pg_control_no_more_is_read_than_a_server_writes() {
    for is_local in [true, false] {
        let hosts = made(&[], &[]);
        let control = control_file::sample(42);
        hosts.write("standby/global/pg_control", &control);
        hosts.write("standby/postgresql.conf", b"fsync = on\n");
        for name in ["pg_wal", "pg_tblspc"] {
            fs::create_dir(hosts.path("standby").join(name)).expect("make");
        }
        // nothing has so much memory
        truncate(&hosts.path("standby/global/pg_control"), 1 << 43);
        let connector = if is_local { hosts.local() } else { hosts.agent() };
        let (session, _) = hosts.open(&connector, Purpose::Recover).expect("open");
        let control = ControlFile::parse(&control).expect("a sample");
        let facts = SourceFacts {
            control,
            lineage: Lineage::new(3, &[]),
            resource_managers: Vec::new(),
            is_encrypted: false,
        };
        let source = Source { wal_directory: hosts.path("primary/pg_wal"), facts, tablespaces: Vec::new() };
        let proved = session
            .prove(&source, Lsn(0x500_0200), &Cancel::new())
            .expect("a target without WAL is compared");
        let Err(Rejected::Reasons(reasons)) = proved else { panic!("{:?}", proved.map(drop)) };
        assert!(reasons.iter().any(|reason| matches!(reason, Reason::Checkpoint { .. })), "{reasons:?}");
    }
}

fn truncate(path: &Path, size: usize) {
    let file = fs::OpenOptions::new().write(true).open(path).expect("open");
    file.set_len(size as u64).expect("set length");
}

/// What some WAL may say of the relations of [`a_map_that_lacks_one_thing_is_refuted`].
#[derive(Debug, Clone, Copy)]
enum Change {
    Block(u32, u32),
    Limit(u32, u32),
    Database(u32),
}

impl Change {
    fn put(self, map: &mut BlockMap) {
        let locator =
            |relation| RelationFileLocator { tablespace: 1663, database: relation % 2 + 5, relation };
        match self {
            Self::Block(relation, block) => map.add(locator(relation), block),
            Self::Limit(relation, block) => map.limit(locator(relation), block),
            Self::Database(database) => map.database(Some(1663), database),
        }
    }

    fn covers(self, relation: u32, block: u32) -> bool {
        match self {
            Self::Block(listed, at) => (listed, at) == (relation, block),
            Self::Limit(listed, from) => listed == relation && block >= from,
            Self::Database(database) => relation % 2 + 5 == database,
        }
    }
}

#[test]
fn a_map_that_lacks_one_thing_is_refuted() {
    const BLOCKS: u32 = 120;
    const RELATIONS: std::ops::Range<u32> = 20_000..20_006;
    let path = |relation: u32| format!("base/{}/{relation}", relation % 2 + 5);
    for seed in 0..12_u32 {
        // relations of odd numbers are in database 6, which was made again on one side
        let blocks = (0..7).map(|n| Change::Block(20_000 + 2 * (n % 2), (seed * 37 + n * 31) % BLOCKS));
        let mut changes: Vec<Change> = blocks.collect();
        changes.extend([Change::Limit(20_004, 1 + seed * 53 % (BLOCKS - 1)), Change::Database(6)]);
        let hosts = Hosts::new();
        hosts.write("standby/PG_VERSION", b"15\n");
        for relation in RELATIONS {
            let pages = |changed: &dyn Fn(u32) -> bool| {
                let pages =
                    (0..BLOCKS).map(|block| if changed(block) { page(120, 2, 0) } else { page(50, 1, 0) });
                pages.collect::<Vec<_>>().concat()
            };
            // each was changed on one of the sides
            let is_changed = |block: u32, side: u32| {
                (block + relation) % 2 == side && changes.iter().any(|change| change.covers(relation, block))
            };
            for (side, number) in [("primary", 0), ("standby", 1)] {
                let content = pages(&|block| is_changed(block, number));
                hosts.write(&format!("{side}/{}", path(relation)), &content);
            }
        }
        let look = |changes: &[Change]| {
            let mut map = BlockMap::default();
            changes.iter().for_each(|change| change.put(&mut map));
            let (session, _) = hosts.open(&hosts.local(), Purpose::Look).expect("open");
            let session = hosts.plan(session).expect("plan");
            let skip = Skip { map, ..skip(&[], false) };
            let (_, _, skipped) =
                session.dry_run(&hosts.path("primary"), hosts.options(), Some(skip)).expect("a dry run");
            skipped.expect("it was asked for")
        };
        let whole = look(&changes);
        assert_eq!((whole.refuted, whole.looked > 0), (0, true), "{whole:?}");
        for lacking in 0..changes.len() {
            let mut others = changes.clone();
            let lost = others.remove(lacking);
            let expected = RELATIONS
                .flat_map(|relation| (0..BLOCKS).map(move |block| (relation, block)))
                .filter(|(relation, block)| {
                    lost.covers(*relation, *block)
                        && !others.iter().any(|other| other.covers(*relation, *block))
                })
                .count();
            assert_eq!(look(&others).refuted, expected as u64, "seed {seed}: without {lost:?}");
            assert!(expected > 0, "seed {seed}: {lost:?} is said twice");
        }
    }
}
