//! What the page cache says about the target is believed only where it is surely on the disk: after a write that
//! failed, the kernel keeps the page as if it had been written.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;

use pgpool_recovery_e2e::recovery::remote_start;
use pgpool_recovery_e2e::xfs::Xfs;
use pgpool_recovery_e2e::{Cluster, Host, Recovery, Scratch, compare, workload};
use rustix::fs::{Advice, fadvise};

const PAGE: usize = 8192;

/// Where on the disk a page lies.
fn find(xfs: &Xfs, page: &[u8]) -> u64 {
    let image = File::open(xfs.image()).expect("the disk");
    let mut block = vec![0; PAGE];
    let mut offset = 0;
    while image.read_exact_at(&mut block, offset).is_ok() {
        if block == page {
            return offset;
        }
        // the file system's blocks have half the size of a page
        offset += PAGE as u64 / 2;
    }
    panic!("the page is not on the disk");
}

#[test]
fn a_page_that_only_the_cache_has_is_sent_again() {
    let scratch = Scratch::new();
    let xfs = Xfs::new(&scratch, 1000).unwrap_or_else(|reason| panic!("no XFS: {reason}"));
    let primary = Cluster::primary(&scratch);
    workload::fill(&primary, 10);
    let target = Cluster::place(&scratch, &Host::here(), "target").at(xfs.path().join("target"));
    let recover = || {
        Recovery::of(&target, &primary)
            .option("application_name", "target")
            .option("dest_port", target.port())
            .run(&primary)
    };
    recover();
    remote_start(&primary, "localhost", target.dir());
    target.wait_for_replay(&primary);
    // a crash: who knows whether its last write went well
    target.kill();

    let path: String = primary.get("SELECT pg_relation_filepath('bulk')", &[]);
    let path = target.directory().join(path);
    let cached = fs::read(&path).expect("the relation");
    let number = 20;
    let page = &cached[number * PAGE..(number + 1) * PAGE];
    let file = File::open(&path).expect("the relation");
    file.sync_all().expect("synced");
    let disk = OpenOptions::new().write(true).open(xfs.image()).expect("the disk");
    disk.write_all_at(&[0xFF; 100], find(&xfs, page) + 500).expect("damaged");
    assert!(fs::read(&path).expect("the relation") == cached, "the cache does not know of it");

    recover();
    fadvise(&file, 0, None, Advice::DontNeed).expect("the cache forgets");
    let mut found = vec![0; PAGE];
    File::open(&path)
        .and_then(|file| file.read_exact_at(&mut found, (number * PAGE) as u64))
        .expect("a page");
    assert!(found == page, "the disk still has the damaged page");
    remote_start(&primary, "localhost", target.dir());
    compare::stop_and_compare(&primary, &target).assert_none();
}
