//! Is there room for a plan? Every file system the target lies on is asked.

use std::collections::HashMap;
use std::os::fd::AsFd;

use super::obstacles::Found;
use crate::data_directory::DataDirectory;
use crate::error::{Error, Kind, Result};
use crate::manifest::list::FileList;
use crate::manifest::path::RelPath;
use crate::sys::machine;
use crate::sys::space::{Pool, Space, reserve};
use crate::wire::protocol::message::{PlanHeader, PrimarySpace};

/// Room a file system must have beyond what is going to be written, bytes.
const SLACK: u64 = 16 << 20;

/// One file system of the target.
struct FileSystem {
    device: u64,
    /// What it may share its space with.
    pool: Option<Pool>,
    /// As a message calls it.
    shown: String,
    free: u64,
    /// Bytes that must stay free.
    kept: u64,
}

/// The file systems of a target, as they are before a run.
pub(super) struct Room {
    all: Vec<FileSystem>,
    /// The one of pg_wal.
    wal_device: u64,
}

impl Room {
    pub(super) fn look(target: &DataDirectory, header: &PlanHeader, found: &Found) -> Result<Self> {
        let kept = Kept::on_this_host(header.primary_space.as_ref(), machine::boot_id().as_deref());
        let all = file_systems(target, found, &kept)?;
        Ok(Self { all, wal_device: device_of(target, &RelPath::parse("pg_wal/x")?, found) })
    }

    /// Fails if the files, which may be there in part, and the WAL that comes besides them do not fit, or leave too
    /// little for a primary on the same file system. What the target has of WAL is gone before either comes, other surplus only
    /// after both.
    pub(super) fn check(
        &self,
        target: &DataDirectory,
        files: &FileList,
        header: &PlanHeader,
        found: &Found,
    ) -> Result<()> {
        // sizes are the peer's
        let whole = header.reserve.saturating_add(files.bytes());
        if self.all.iter().all(|one| one.free >= whole.saturating_add(one.kept)) {
            // every file system has room for all of it: what is there already need not be looked at
            return Ok(());
        }
        let needed = growth(target, files, found, &self.all)?;
        for file_system in &self.all {
            let device = file_system.device;
            let data = needed.get(&device).copied().unwrap_or(0);
            let wal = if device == self.wal_device { header.reserve } else { 0 };
            let (needed, freed) = (data.saturating_add(wal), found.freed.get(&device).copied().unwrap_or(0));
            // one that becomes no fuller than it is may be as full as it is
            if needed > freed {
                file_system.demand(needed, file_system.free.saturating_add(freed))?;
            }
        }
        Ok(())
    }

    /// Bytes that stay free on the file system of pg_wal while WAL comes: half of what is demanded before the run, because a
    /// primary on the same file system writes meanwhile, too; or of what was free there, if that was less and the run frees what it
    /// needs.
    pub(super) fn kept_beside_wal(&self) -> u64 {
        let kept = |one: &FileSystem| one.kept.min(one.free) / 2;
        let of_wal = self.all.iter().find(|one| one.device == self.wal_device);
        of_wal.map_or_else(|| self.all.iter().map(kept).max().unwrap_or(SLACK / 2), kept)
    }
}

impl FileSystem {
    fn demand(&self, needed: u64, free: u64) -> Result<()> {
        let with_kept = needed.saturating_add(self.kept);
        if free >= with_kept {
            return Ok(());
        }
        let megabytes = |bytes: u64| bytes >> 20;
        let detail = if self.kept > SLACK {
            format!(
                "{} MB are needed, {} MB are free, of which {} MB stay free for the primary, which uses the same file system.",
                megabytes(needed),
                megabytes(free),
                megabytes(self.kept)
            )
        } else {
            format!("{} MB are needed, {} MB are free.", megabytes(with_kept), megabytes(free))
        };
        let message = format!("not enough space for {} on the target", self.shown);
        Err(Error::new(Kind::DiskFull, message)
            .detail(detail)
            .hint("Free space on the target's file system, or move tablespaces with tablespace_mapping."))
    }
}

/// What stays free for a primary on this host.
struct Kept<'a>(Option<&'a PrimarySpace>);

impl<'a> Kept<'a> {
    /// Device numbers mean the same on one host. Where a kernel does not tell which it is, it may be the same one.
    fn on_this_host(primary: Option<&'a PrimarySpace>, boot_id: Option<&str>) -> Self {
        Self(primary.filter(|primary| machine::may_be_one(primary.boot_id.as_deref(), boot_id)))
    }

    /// Bytes that must stay free on a file system.
    fn bytes(&self, device: u64, pool: Option<&Pool>, size: u64) -> u64 {
        let Some(primary) = self.0 else { return SLACK };
        let reserve = reserve(size, primary.max_wal_size);
        let is_shared = primary.devices.contains(&device)
            || pool.is_some_and(|pool| primary.pools.iter().any(|other| pool.may_be(other, reserve)));
        if is_shared { reserve.max(SLACK) } else { SLACK }
    }
}

/// Every file system once, that of the data directory first.
fn file_systems(target: &DataDirectory, found: &Found, kept: &Kept<'_>) -> Result<Vec<FileSystem>> {
    let mut all: Vec<FileSystem> = Vec::new();
    let mut add = |device, shown: &str, asked: Result<(Space, Option<Pool>)>| -> Result<()> {
        if all.iter().all(|known| known.device != device) {
            let (Space { size, free }, pool) = asked?;
            let kept = kept.bytes(device, pool.as_ref(), size);
            all.push(FileSystem { device, pool, shown: shown.to_owned(), free, kept });
        }
        Ok(())
    };
    for (prefix, fd) in target.roots() {
        let device = rustix::fs::fstat(&fd)
            .map_err(Error::on_path("stat directory", target.path().join(prefix)))?
            .st_dev;
        let shown = if prefix.is_empty() { "the data directory" } else { prefix };
        add(device, shown, space(&fd))?;
    }
    for (path, device) in &found.mounts {
        add(*device, path.as_str(), target.enter(path).and_then(space))?;
    }
    Ok(all)
}

fn space(fd: impl AsFd) -> Result<(Space, Option<Pool>)> {
    let asked = Space::of(&fd).and_then(|space| Ok((space, Pool::of(&fd)?)));
    asked.map_err(Error::on("ask for the target's free space"))
}

/// The device that a path lies on: of the deepest directory above it on which a file system begins.
fn device_of(target: &DataDirectory, path: &RelPath, found: &Found) -> u64 {
    let above = found.mounts.iter().filter(|(mount, _)| path.is_at_or_below(mount.as_str()));
    let deepest = above.max_by_key(|(mount, _)| mount.as_str().len());
    deepest.map_or_else(|| target.device_of(path), |(_, device)| *device)
}

/// By how many bytes the files will grow, by device. A file that is replaced grows from nothing: where it has another name
/// or is open somewhere, its space is not free when it is gone.
fn growth(
    target: &DataDirectory,
    files: &FileList,
    found: &Found,
    file_systems: &[FileSystem],
) -> Result<HashMap<u64, u64>> {
    let mut needed: HashMap<u64, u64> = HashMap::new();
    for file in files.iter() {
        let device = device_of(target, &file.path, found);
        let there = match target.stat(&file.path)?.filter(|stat| target.is_written_in_place(stat)) {
            // holes fill up; but a compressed file that has no holes looks as if it had some
            Some(stat) if may_compress(file_systems, device) => stat.size,
            Some(stat) => stat.allocated,
            None => 0,
        };
        let needed = needed.entry(device).or_default();
        *needed = needed.saturating_add(file.size.saturating_sub(there));
    }
    Ok(needed)
}

fn may_compress(file_systems: &[FileSystem], device: u64) -> bool {
    file_systems.iter().any(|one| one.device == device && one.pool.is_some())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::manifest::plan::File;

    #[test]
    fn a_primary_on_the_same_file_system_keeps_its_reserve() {
        let primary = PrimarySpace {
            boot_id: Some("this".to_owned()),
            devices: vec![7, 8],
            pools: Vec::new(),
            max_wal_size: 100 << 20,
        };
        let kept =
            |boot_id, device, size| Kept::on_this_host(Some(&primary), boot_id).bytes(device, None, size);
        assert_eq!(kept(Some("this"), 8, 1 << 30), 100 << 20);
        assert_eq!(kept(Some("this"), 9, 1 << 30), SLACK, "another file system");
        assert_eq!(kept(Some("that"), 8, 1 << 30), SLACK, "another host");
        assert_eq!(kept(None, 8, 1 << 30), 100 << 20, "nobody knows which host");
        assert_eq!(kept(Some("this"), 8, 1 << 20), SLACK);
        assert_eq!(Kept::on_this_host(None, Some("this")).bytes(8, None, 1 << 30), SLACK);
    }

    #[test]
    fn a_primary_on_another_subvolume_of_the_same_file_system_keeps_its_reserve() {
        let pool = |free| Pool { kind: Pool::BTRFS, size: 1 << 30, free };
        let primary = PrimarySpace {
            boot_id: None,
            devices: vec![7],
            pools: vec![pool(500 << 20)],
            max_wal_size: 100 << 20,
        };
        let kept =
            |pool: Option<Pool>| Kept::on_this_host(Some(&primary), None).bytes(9, pool.as_ref(), 1 << 30);
        assert_eq!(kept(Some(pool(450 << 20))), 100 << 20, "less is free by now");
        assert_eq!(kept(Some(pool(300 << 20))), SLACK, "another one");
        assert_eq!(kept(None), SLACK);
    }

    #[test]
    fn only_what_is_there_and_stays_counts_as_there() {
        const SIZE: u64 = 1 << 20;
        let data = tempfile::tempdir().expect("temporary directory");
        let target = DataDirectory::open(data.path()).expect("open");
        let device = target.device_of(&RelPath::parse("x").expect("valid"));
        let grows = |name: &str| {
            let file = File { path: RelPath::parse(name).expect("valid"), size: SIZE, mode: 0o600 };
            growth(&target, &[file].into_iter().collect(), &Found::default(), &[]).expect("asked")[&device]
        };
        let path = |name: &str| data.path().join(name);
        fs::write(path("whole"), vec![1; SIZE as usize]).expect("write");
        assert_eq!(grows("whole"), 0);
        fs::write(path("half"), vec![1; SIZE as usize / 2]).expect("write");
        assert_eq!(grows("half"), SIZE / 2);
        fs::write(path("longer"), vec![1; 2 * SIZE as usize]).expect("write");
        assert_eq!(grows("longer"), 0);
        fs::hard_link(path("whole"), path("again")).expect("link");
        assert_eq!(
            (grows("again"), grows("whole")),
            (SIZE, SIZE),
            "it is replaced, and the other name keeps the space"
        );
        fs::File::create(path("sparse")).and_then(|file| file.set_len(SIZE)).expect("made");
        assert_eq!(grows("sparse"), SIZE);
        symlink(path("longer"), path("link")).expect("link");
        assert_eq!((grows("link"), grows("none")), (SIZE, SIZE));
    }

    #[test]
    fn what_the_target_has_of_wal_makes_room_for_data_and_wal() {
        const MUCH: u64 = 4 << 30;
        let data = tempfile::tempdir().expect("temporary directory");
        let target = DataDirectory::open(data.path()).expect("open");
        let device = target.device_of(&RelPath::parse("x").expect("valid"));
        let free = space(target.root()).expect("asked").0.free;
        let found = |freed| Found { freed: HashMap::from([(device, freed)]), ..Found::default() };
        let file = File { path: RelPath::parse("base/5/1").expect("valid"), size: free + MUCH, mode: 0o600 };
        let refused = |files: &FileList, wal, freed| {
            let header = PlanHeader { reserve: wal, ..PlanHeader::default() };
            let found = found(freed);
            let checked = Room::look(&target, &header, &found)
                .and_then(|room| room.check(&target, files, &header, &found));
            checked.map_err(|error| error.kind) == Err(Kind::DiskFull)
        };
        let none = FileList::default();
        assert!(refused(&none, free + MUCH, 0));
        assert!(!refused(&none, free + MUCH, 2 * MUCH));
        let files = [file].into_iter().collect();
        assert!(refused(&files, 0, 0));
        assert!(!refused(&files, 0, 2 * MUCH));
        assert!(refused(&files, 2 * MUCH, 2 * MUCH), "of both");
    }

    #[test]
    fn half_of_what_is_kept_on_the_file_system_of_pg_wal_stays_free_beside_wal() {
        let data = tempfile::tempdir().expect("temporary directory");
        std::fs::create_dir(data.path().join("pg_wal")).expect("make");
        let target = DataDirectory::open(data.path()).expect("open");
        let primary =
            PrimarySpace { boot_id: None, devices: vec![1], pools: Vec::new(), max_wal_size: 1 << 40 };
        let header = PlanHeader { primary_space: Some(primary), ..PlanHeader::default() };
        let beside = |mounts| {
            let found = Found { mounts, ..Found::default() };
            Room::look(&target, &header, &found).expect("asked").kept_beside_wal()
        };
        assert_eq!(beside(Vec::new()), SLACK / 2, "the primary uses another one");
        let wal = RelPath::parse("pg_wal").expect("valid");
        assert!(beside(vec![(wal, 1)]) > SLACK / 2, "the primary uses it, too");
    }

    #[test]
    fn what_fits_has_room_for_its_first_segment() {
        const MB: u64 = 1 << 20;
        let data = tempfile::tempdir().expect("temporary directory");
        let target = DataDirectory::open(data.path()).expect("open");
        let device = target.device_of(&RelPath::parse("x").expect("valid"));
        // the primary's own file system, nearly full; the target's pg_wal is emptied first
        let (free, freed, reserve) = (3000 * MB, 1000 * MB, 32 * MB);
        let one = FileSystem { device, pool: None, shown: "x".to_owned(), free, kept: 10_240 * MB };
        let room = Room { all: vec![one], wal_device: device };
        let header = PlanHeader { reserve, ..PlanHeader::default() };
        let found = Found { freed: HashMap::from([(device, freed)]), ..Found::default() };
        room.check(&target, &FileList::default(), &header, &found).expect("it becomes no fuller");
        assert!(free + freed >= reserve + room.kept_beside_wal());
    }

    #[test]
    fn a_mounted_directory_is_a_file_system_of_its_own() {
        let data = tempfile::tempdir().expect("temporary directory");
        let target = DataDirectory::open(data.path()).expect("open");
        let rel = |path: &str| RelPath::parse(path).expect("valid");
        let found = Found { mounts: vec![(rel("base"), 1), (rel("base/5"), 2)], ..Found::default() };
        assert_eq!(device_of(&target, &rel("base/1/2"), &found), 1);
        assert_eq!(device_of(&target, &rel("base/5/2"), &found), 2);
        assert_eq!(device_of(&target, &rel("base5"), &found), target.device_of(&rel("base5")));
    }
}
